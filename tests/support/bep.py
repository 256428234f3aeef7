"""Building blocks of protocol tests: FileInfos as peers would send them, framed messages, connections past the handshake."""

from __future__ import annotations

import hashlib
from typing import Any

from stnode.protocol import codec, vector
from stnode.protocol.connection import BEPConnection
from stnode.protocol.fileinfo import FileInfo, FileType, block_lengths, encode, new
from stnode.protocol.framing import frame, frame_head, frame_hello
from stnode.protocol.messages import ClusterConfig, DownloadProgress, Hello, MessageType
from stnode.protocol.pb import bep_pb2 as pb

HELLO = Hello("peer", "syncthing", "v1.29.5", 1, 1_700_000_000_000_000_000)


def digest(text: object) -> bytes:
    """Some block hash."""
    return hashlib.sha256(repr(text).encode()).digest()


def file_message(name: str = "a", size: int = 11, block_size: int = 131072, sequence: int = 1, **fields: Any) -> pb.FileInfo:
    """A FileInfo message of a file with a well-formed block list; `fields` replace or add."""
    message = pb.FileInfo(name=name, size=size, permissions=0o644, modified_s=1_700_000_000, block_size=block_size, sequence=sequence)
    message.version.counters.add(id=7, value=1)
    for number, length in enumerate(block_lengths(size, max(block_size, 131072))):
        message.blocks.add(offset=number * max(block_size, 131072), size=length, hash=digest((name, number)))
    for field, value in fields.items():
        setattr(message, field, value)
    return message


def file_info(name: str = "a", size: int = 11, **fields: Any) -> FileInfo:
    """A local file."""
    hashes = b"".join(digest((name, number)) for number in range(len(block_lengths(size, 131072)))) if size else b""
    defaults: dict[str, Any] = {"version": ((7, 1),), "modified_by": 7, "modified_s": 1_700_000_000, "block_hashes": hashes}
    return new(name=name, type=FileType.FILE, size=size, **(defaults | fields))


def encoded(info: FileInfo) -> bytes:
    """As it goes over the wire."""
    return encode(info.wire, info.sequence, info.size, info.block_size, info.block_hashes)


def index_frame(*messages: pb.FileInfo, folder: str = "default", pack: bool = False) -> bytes:
    """A framed Index."""
    return frame(MessageType.INDEX, pb.Index(folder=folder, files=messages).SerializeToString(), pack=pack)


def encoded_progress(progress: DownloadProgress) -> bytes:
    """As real peers send it; a node of ours sends none."""
    message = pb.DownloadProgress(folder=progress.folder)
    for update in progress.updates:
        entry = message.updates.add(
            update_type=int(update.forget), name=update.name, block_indexes=update.block_indexes, block_size=update.block_size
        )
        entry.version.MergeFromString(vector.to_wire(update.version))
    return message.SerializeToString()


def response_frame(request_id: int, data: bytes) -> bytes:
    """A framed, uncompressed Response."""
    head = codec.encode_response_head(request_id, len(data), 0)
    return frame_head(MessageType.RESPONSE, len(head) + len(data)) + head + data


def greeting(config: ClusterConfig | None = None) -> bytes:
    """Hello and ClusterConfig, the start of any stream."""
    return frame_hello(HELLO) + frame(MessageType.CLUSTER_CONFIG, codec.encode_cluster_config(config or ClusterConfig()), pack=False)


def running(now: float = 0.0, **options: Any) -> BEPConnection:
    """A connection with the handshake behind it and nothing queued."""
    connection = BEPConnection(now, **options)
    connection.send_hello(HELLO)
    connection.send_cluster_config(ClusterConfig())
    connection.receive_data(greeting())
    connection.data_to_send()
    return connection


def sent(connection: BEPConnection) -> bytes:
    """All that is queued, joined."""
    return b"".join(connection.data_to_send())
