"""One item of an index as a value: the FileInfo that every layer passes around. Made only by `fileinfo.py`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from stnode.protocol.vector import Vector


class FileType(IntEnum):
    """Wire values of FileInfo.type; the two deprecated symlink kinds are read as SYMLINK."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 4


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One item of an index. `wire` is the protobuf as received without `sequence` and `blocks`, unknown fields kept (R26);
    announcing it means `wire` + sequence + blocks. `block_hashes` is the concatenation of all hashes (32 bytes each; in
    encrypted folders 48, see `blocks`), b"" for anything without blocks. `block_size` is in bytes, 0 for non-files."""

    name: str
    type: FileType
    size: int
    permissions: int
    modified_s: int
    modified_ns: int
    modified_by: int
    deleted: bool
    invalid: bool
    no_permissions: bool
    version: Vector
    sequence: int
    block_size: int
    block_hashes: bytes
    symlink_target: bytes
    wire: bytes
