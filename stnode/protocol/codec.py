"""Messages to protobuf and back. What comes by the thousand (responses, requests, index entries) is written by hand, the rest goes
through the generated code. Framing is not done here.

Received messages are checked as real peers check them (bep-facts 6.3): what is returned is well-formed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias, cast

from google.protobuf.message import DecodeError

from stnode.errors import Internal, Invalid, ProtocolError
from stnode.protocol import deviceid, fileinfo, vector
from stnode.protocol.messages import (
    Claim,
    Close,
    ClusterConfig,
    ClusterDevice,
    ClusterFolder,
    Compression,
    DownloadProgress,
    FolderID,
    Hello,
    Hint,
    Index,
    Message,
    MessageType,
    Ping,
    ProgressUpdate,
    Request,
    Response,
)
from stnode.protocol.pb import bep_pb2 as pb
from stnode.protocol.unfrozen import unfrozen
from stnode.protocol.varint import read_varint, signed32, varint

Payload: TypeAlias = bytes | bytearray | memoryview

REQUEST_LIMIT = 32 << 20
"""Bytes that one Request may ask for (v2.1); so no Response can legally be much larger."""

_UnfrozenRequest = unfrozen(Request)
_UnfrozenResponse = unfrozen(Response)


def decode(kind: int, payload: Payload) -> Message | None:
    """The message of type `kind`; None for a type that we do not know. A Response's data is a view of `payload`. ProtocolError when
    it cannot be parsed or breaks a rule."""
    if kind == MessageType.RESPONSE:
        return decode_response(payload, 0, len(payload), copy=False)
    if kind == MessageType.REQUEST:
        return decode_request(payload)
    serialized = bytes(payload)
    try:
        match kind:
            case MessageType.INDEX | MessageType.INDEX_UPDATE:
                return _index(pb.Index.FromString(serialized), kind == MessageType.INDEX_UPDATE)
            case MessageType.CLUSTER_CONFIG:
                return _cluster_config(pb.ClusterConfig.FromString(serialized))
            case MessageType.DOWNLOAD_PROGRESS:
                return _download_progress(pb.DownloadProgress.FromString(serialized))
            case MessageType.PING:
                pb.Ping.FromString(serialized)
                return Ping()
            case MessageType.CLOSE:
                return Close(pb.Close.FromString(serialized).reason)
            case MessageType.HINT:
                return Hint(pb.Hint.FromString(serialized).head)
            case MessageType.CLAIM:
                claim = pb.Claim.FromString(serialized)
                return Claim(claim.id, claim.folder_key, tuple(claim.contents), claim.reply)
            case _:
                return None
    except DecodeError as error:
        if kind in (MessageType.HINT, MessageType.CLAIM):
            return None  # a device that is no node of ours may use these numbers for something else
        raise ProtocolError(f"a {MessageType(kind).name} message cannot be parsed") from error


def decode_response(data: Payload, place: int, end: int, *, copy: bool) -> Response:
    """The Response in data[place:end], read by hand. Its data is a view of `data`, or with `copy` bytes of its own."""
    number = code = start = stop = 0
    while place < end:
        tag = data[place]
        place += 1
        if tag == 0x12:
            length, start = read_varint(data, place, end)
            place = stop = start + length
        elif tag in (0x08, 0x18):
            value = data[place] if place < end else 0x80
            if value < 0x80:
                place += 1
            else:
                value, place = read_varint(data, place, end)
            if tag == 0x08:
                number = value
            else:
                code = value
        else:
            place = _skip(data, place - 1, end)
    if place > end:
        raise ProtocolError("a RESPONSE message is cut off")
    if number > 0x7FFF_FFFF or code > 0x7FFF_FFFF:
        number, code = signed32(number), signed32(code)
    content: bytes | memoryview = b""
    if start != stop:
        content = memoryview(data)[start:stop]
        if copy:
            content = bytes(content)
    response = _UnfrozenResponse(number, content, code)
    response.__class__ = Response
    return cast(Response, response)


def decode_request(payload: Payload) -> Request:
    """A Request whose name and size any peer may ask for; size 0 comes from peers before v2.1.1."""
    try:
        message = pb.Request.FromString(bytes(payload))
    except DecodeError as error:
        raise ProtocolError("a REQUEST message cannot be parsed") from error
    name, size, offset = message.name, message.size, message.offset
    fileinfo.check_name(name)
    if not 0 <= size <= REQUEST_LIMIT or offset < 0:
        raise ProtocolError(f"a request for {size} bytes at {offset} of {name!r}")
    request = _UnfrozenRequest(message.id, message.folder, name, offset, size, message.hash, message.from_temporary, message.block_no)
    request.__class__ = Request
    return cast(Request, request)


def decode_hello(payload: Payload) -> Hello:
    """The Hello in these bytes."""
    try:
        message = pb.Hello.FromString(bytes(payload))
    except DecodeError as error:
        raise ProtocolError("a Hello cannot be parsed") from error
    return Hello(message.device_name, message.client_name, message.client_version, message.num_connections, message.timestamp)


def encode_hello(hello: Hello) -> bytes:
    """A Hello without the magic and length before it."""
    return pb.Hello(
        device_name=hello.device_name,
        client_name=hello.client_name,
        client_version=hello.client_version,
        num_connections=hello.num_connections,
        timestamp=hello.timestamp_ns,
    ).SerializeToString()


def encode_cluster_config(config: ClusterConfig) -> bytes:
    """Raises Internal for a device ID that is not 32 bytes: it would crash the whole peer process (trap 1)."""
    message = pb.ClusterConfig(secondary=config.secondary)
    for folder in config.folders:
        entry = message.folders.add(id=folder.id, label=folder.label, stop_reason=int(folder.paused))
        for device in folder.devices:
            if len(device.id) != 32:
                raise Internal(f"a device ID of {len(device.id)} bytes in folder {folder.id!r}")
            entry.devices.add(
                id=device.id,
                name=device.name,
                addresses=device.addresses,
                compression=device.compression,
                cert_name=device.cert_name,
                max_sequence=device.max_sequence,
                introducer=device.introducer,
                index_id=device.index_id,
                skip_introduction_removals=device.skip_introduction_removals,
                encryption_password_token=device.encryption_password_token,
            )
    return message.SerializeToString()


def encode_index(folder: FolderID, encoded_files: Iterable[bytes], last_sequence: int, prev_sequence: int) -> bytes:
    """An Index or IndexUpdate of FileInfos that are encoded already (`fileinfo.encode`)."""
    pieces = [_text(b"\x0a", folder)]
    for encoded in encoded_files:
        pieces.append(b"\x12" + varint(len(encoded)))
        pieces.append(encoded)
    pieces.append(_number(b"\x18", last_sequence) + _number(b"\x20", prev_sequence))
    return b"".join(pieces)


def encode_request(request: Request, folder_field: bytes) -> bytes:
    """`folder_field` is `request_folder(request.folder)`, made once for many. Raises Internal for what closes a connection: size 0,
    more than the limit, no hash."""
    name, size = request.name.encode(), request.size
    if not 0 < size <= REQUEST_LIMIT or not request.hash:
        raise Internal(f"a request for {size} bytes of {request.name!r} with a hash of {len(request.hash)} bytes")
    return b"%b%b\x1a%b%b%b\x28%b\x32%b%b%b%b" % (
        b"\x08" + varint(request.id) if request.id else b"",
        folder_field,
        varint(len(name)),
        name,
        b"\x20" + varint(request.offset) if request.offset else b"",
        varint(size),
        varint(len(request.hash)),
        request.hash,
        b"\x38\x01" if request.from_temporary else b"",
        b"\x48" + varint(request.block_no) if request.block_no else b"",
    )


def request_folder(folder: FolderID) -> bytes:
    """The folder field of a Request."""
    return _text(b"\x12", folder)


def encode_response_head(request_id: int, length: int, code: int) -> bytes:
    """All of a Response but its `length` bytes of data, which follow."""
    data = b"\x12" + varint(length) if length else b""
    return _number(b"\x08", request_id & 0xFFFF_FFFF_FFFF_FFFF) + _number(b"\x18", code) + data


def encode_close(reason: str) -> bytes:
    """The reason in words."""
    return pb.Close(reason=reason).SerializeToString()


def encode_hint(hint: Hint) -> bytes:
    """For nodes of the same store."""
    return pb.Hint(head=hint.head).SerializeToString()


def encode_claim(claim: Claim) -> bytes:
    """For nodes of the same store."""
    return pb.Claim(id=claim.id, reply=claim.reply, folder_key=claim.folder_key, contents=claim.contents).SerializeToString()


def _index(message: pb.Index, update: bool) -> Index:
    files: list[fileinfo.FileInfo] = []
    take, check = fileinfo.from_wire, fileinfo.check
    previous = 0
    for entry in message.files:
        info = take(entry)
        check(info)
        if info.sequence <= previous:
            raise ProtocolError(f"{info.name!r} has the sequence {info.sequence} after {previous}")
        previous = info.sequence
        files.append(info)
    return Index(FolderID(message.folder), files, message.last_sequence, message.prev_sequence, update)


def _cluster_config(message: pb.ClusterConfig) -> ClusterConfig:
    return ClusterConfig(tuple([_cluster_folder(folder) for folder in message.folders]), message.secondary)


def _cluster_folder(message: pb.Folder) -> ClusterFolder:
    devices = tuple([_cluster_device(device) for device in message.devices])
    return ClusterFolder(FolderID(message.id), message.label, message.stop_reason != 0, devices)


def _cluster_device(message: pb.Device) -> ClusterDevice:
    try:
        device = deviceid.from_bytes(message.id)
    except Invalid as error:
        raise ProtocolError(f"a cluster configuration lists {message.name!r}: {error.message}") from error
    known: Sequence[int] = tuple(Compression)
    return ClusterDevice(
        device,
        message.name,
        tuple(message.addresses),
        Compression(message.compression) if message.compression in known else Compression.METADATA,
        message.cert_name,
        message.max_sequence,
        message.introducer,
        message.index_id,
        message.skip_introduction_removals,
        message.encryption_password_token,
    )


def _download_progress(message: pb.DownloadProgress) -> DownloadProgress:
    updates = [
        ProgressUpdate(
            update.name, vector.from_message(update.version), update.update_type == 1, tuple(update.block_indexes), update.block_size
        )
        for update in message.updates
    ]
    return DownloadProgress(FolderID(message.folder), tuple(updates))


def _text(tag: bytes, text: str) -> bytes:
    encoded = text.encode()
    return b"%b%b%b" % (tag, varint(len(encoded)), encoded)


def _number(tag: bytes, value: int) -> bytes:
    return tag + varint(value) if value else b""


def _skip(data: Payload, place: int, end: int) -> int:
    """The place behind an unknown field."""
    tag, place = read_varint(data, place, end)
    match tag & 7:
        case 0:
            return read_varint(data, place, end)[1]
        case 1:
            return place + 8
        case 2:
            length, place = read_varint(data, place, end)
            return place + length
        case 5:
            return place + 4
        case _:
            raise ProtocolError("a RESPONSE message cannot be parsed")
