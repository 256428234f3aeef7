"""The frame around every object that the journal and the checkpoints consist of (docs/format.md, Container). Pure.

    0   4  magic "stn" and the kind
    4   1  format version, 1
    5   1  compression: 0 none, 1 one LZ4 block
    6   2  zero
    8   4  bytes of the payload as stored
    12  4  bytes of the payload unpacked
    16  16 XXH3-128 of bytes 0..15 and the stored payload
    32     payload

Numbers are little-endian. A container is self-delimiting, so that a run can be a row of them.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import Final

from stnode.errors import Corrupt, Refused
from stnode.repo.checksum import xxh3_128
from stnode.repo.compression import compress, decompress

Buffer = bytes | bytearray | memoryview

FORMAT_VERSION: Final = 1
HEADER_BYTES: Final = 32
MAX_UNPACKED_BYTES: Final = 256 << 20
PUT_BACK: Final = "put it back from a backup or copy of the bucket; else `stnode bucket repair` says what can be done"
"""What the user does about a journal that is damaged or has gaps."""
STEP_OVER: Final = f"run `stnode bucket repair` on a node that has applied it, with its state directory; else {PUT_BACK}"
"""As `PUT_BACK`, for a commit that a node may have applied."""
_COMPRESS_FROM_BYTES: Final = 128
_HEAD: Final = struct.Struct("<4sBBHII")


class Kind(Enum):
    """What a container holds; its value is the magic."""

    SLOT = b"stnS"
    STUB = b"stnX"
    BODY = b"stnB"
    MANIFEST = b"stnM"
    RUN = b"stnR"
    HEARTBEAT = b"stnH"


def seal(kind: Kind, payload: bytes) -> bytes:
    """The payload in its frame, packed where that makes it smaller."""
    stored, packed = payload, 0
    if len(payload) >= _COMPRESS_FROM_BYTES:
        smaller = compress(payload)
        if len(smaller) < len(payload):
            stored, packed = smaller, 1
    head = _HEAD.pack(kind.value, FORMAT_VERSION, packed, 0, len(stored), len(payload))
    return b"".join((head, xxh3_128(head + stored).to_bytes(16, "little"), stored))


def kind_of(data: Buffer) -> Kind | None:
    """Kind by the magic alone, None for something else."""
    magic = bytes(data[:4])
    return next((kind for kind in Kind if kind.value == magic), None)


def open_one(kind: Kind, data: Buffer, name: str) -> bytes:
    """Payload of an object that is exactly one container; `name` is its key, for errors. Raises Corrupt, or Refused for a newer format."""
    payload, end = open_next(kind, data, 0, name)
    if end != len(data):
        raise damaged(name, f"{len(data) - end} bytes follow its end")
    return payload


def open_next(kind: Kind, data: Buffer, offset: int, name: str) -> tuple[bytes, int]:
    """Payload of the container at `offset` and where the next one begins."""
    view = memoryview(data)[offset:]
    if len(view) < HEADER_BYTES:
        raise damaged(name, f"it ends after {len(view)} bytes")
    magic, version, packed, zero, stored_bytes, unpacked_bytes = _HEAD.unpack_from(view)
    if magic != kind.value:
        raise damaged(name, f"it begins with {magic!r} instead of {kind.value!r}")
    if version != FORMAT_VERSION:
        raise Refused(f"{name} has format version {version}, this stnode knows {FORMAT_VERSION}", hint="update stnode on this node")
    if len(view) < HEADER_BYTES + stored_bytes:
        raise damaged(name, f"{HEADER_BYTES + stored_bytes - len(view)} bytes are missing at its end")
    stored = view[HEADER_BYTES : HEADER_BYTES + stored_bytes]
    if xxh3_128(b"".join((view[:16], stored))) != int.from_bytes(view[16:32], "little"):
        raise damaged(name, "its checksum is wrong")
    if packed > 1 or zero or unpacked_bytes > MAX_UNPACKED_BYTES or (not packed and stored_bytes != unpacked_bytes):
        raise damaged(name, "its header contradicts itself")
    payload = decompress(stored, unpacked_bytes) if packed else bytes(stored)
    return payload, offset + HEADER_BYTES + stored_bytes


def damaged(name: str, what: str) -> Corrupt:
    """The error for a damaged object of the store."""
    return Corrupt(f"{name} is damaged: {what}", hint=PUT_BACK)
