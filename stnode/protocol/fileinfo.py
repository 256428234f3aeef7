"""FileInfo as the code handles it: one frozen value per item, all block hashes in one bytes object.

Responsible for reading one from the wire, writing it, building one for a local change, and the rules that any peer checks
(bep-facts 4, 6.3, 6.4, 9.1). The value itself is in `item.py`, block lists in `blocks.py`, conflicts in `conflict.py`; their public
names are offered here too, so that the other layers import this module only.
"""

from __future__ import annotations

import re
import unicodedata
from typing import cast

from google.protobuf.message import DecodeError

from stnode.errors import Invalid, ProtocolError
from stnode.protocol import blocks
from stnode.protocol.blocks import block_count, block_lengths, block_size_for, blocks_hash, encode, hash_bytes, zero_hash
from stnode.protocol.conflict import conflict_name, conflicts, equivalent, is_conflict_copy, same_content, supersedes, wins
from stnode.protocol.item import FileInfo, FileType
from stnode.protocol.pb import bep_pb2 as pb
from stnode.protocol.unfrozen import unfrozen
from stnode.protocol.vector import Vector, from_message, from_pairs

__all__ = [
    "FileInfo",
    "FileType",
    "block_count",
    "block_lengths",
    "block_size_for",
    "blocks_hash",
    "check",
    "check_name",
    "conflict_name",
    "conflicts",
    "deletion",
    "encode",
    "equivalent",
    "from_record",
    "from_wire",
    "hash_bytes",
    "is_conflict_copy",
    "is_nfc",
    "name_fault",
    "new",
    "normalize",
    "replace",
    "replace_version",
    "same_content",
    "supersedes",
    "wins",
    "zero_hash",
]


_UnfrozenFileInfo = unfrozen(FileInfo)
_TYPES = {0: FileType.FILE, 1: FileType.DIRECTORY, 2: FileType.SYMLINK, 3: FileType.SYMLINK, 4: FileType.SYMLINK}
_OLD_DIRECTORY_SIZE = 128
_NAME_LIMIT = 8192
_UNCLEAN = re.compile(r"(?:^|/)\.{0,2}(?:/|$)").search
"""Finds an empty component (also a leading or trailing slash), "." or ".."."""


def from_wire(message: pb.FileInfo, sequence: int | None = None, block_hashes: bytes | None = None) -> FileInfo:
    """The value of a parsed FileInfo. Takes sequence, blocks and local-only fields out of `message`, so it is used up.

    `sequence` and `block_hashes` replace those of the message (for records, which are kept without). Raises ProtocolError when the
    block list does not cover the size, or the type is unknown; everything else a peer can get wrong is found by `check`."""
    kind = _TYPES.get(message.type)
    if kind is None:
        raise ProtocolError(f"{message.name!r} has the unknown file type {message.type}")
    size, block_size = message.size, 0
    if kind is FileType.FILE:
        block_size = message.block_size
        if block_size < blocks.SMALLEST:  # noqa: PLR1730 - a call of max() for each of a million files
            block_size = blocks.SMALLEST
    elif size == _OLD_DIRECTORY_SIZE and kind is FileType.DIRECTORY:
        message.ClearField("size")
        size = 0
    if block_hashes is None:
        listed = message.blocks
        if listed:
            if message.encrypted and size > (end := listed[-1].offset + listed[-1].size):
                message.size = size = end  # untrusted devices before 1.23.3 count what they keep behind the blocks (bep-facts 10.8)
            block_hashes = blocks.take(message.name, listed, size, block_size)
            message.ClearField("blocks")
        else:
            block_hashes = b""
    if sequence is None:
        sequence = message.sequence
        message.ClearField("sequence")
    wire = message.SerializeToString()
    if b">" in wire:
        wire = _without_local_fields(message)
    counters = message.version.counters
    version: Vector
    if len(counters) == 1:
        counter = counters[0]
        version = ((counter.id, counter.value),)
    else:
        version = from_message(message.version)
    info = _UnfrozenFileInfo(
        message.name,
        kind,
        size,
        message.permissions,
        message.modified_s,
        message.modified_ns,
        message.modified_by,
        message.deleted,
        message.invalid,
        message.no_permissions,
        version,
        sequence,
        block_size,
        block_hashes,
        message.symlink_target,
        wire,
    )
    info.__class__ = FileInfo
    return cast(FileInfo, info)


def from_record(wire: bytes, sequence: int = 0, block_hashes: bytes = b"") -> FileInfo:
    """The value of stored `wire` bytes with its sequence and hashes beside; ProtocolError when `wire` is no FileInfo."""
    try:
        return from_wire(pb.FileInfo.FromString(wire), sequence, block_hashes)
    except DecodeError as error:
        raise ProtocolError("a stored FileInfo cannot be parsed") from error


def new(
    *,
    name: str,
    type: FileType,  # noqa: A002 - the field's name
    version: Vector,
    modified_by: int,
    size: int = 0,
    permissions: int = 0,
    modified_s: int = 0,
    modified_ns: int = 0,
    deleted: bool = False,
    invalid: bool = False,
    no_permissions: bool = False,
    block_size: int = 0,
    block_hashes: bytes = b"",
    symlink_target: bytes = b"",
    previous_blocks_hash: bytes = b"",
    sequence: int = 0,
) -> FileInfo:
    """A FileInfo for a local change, as Syncthing would build it (bep-facts 9.1).

    A file's block size defaults to the one for its size, and an empty file gets its one empty block. `previous_blocks_hash` is
    `blocks_hash` of the content that the change was made on, if known. A symlink never has permissions. Raises Invalid when a
    peer would refuse it."""
    has_content = type is FileType.FILE and not deleted
    if has_content:
        block_size = block_size or block_size_for(size)
        if size == 0 and not block_hashes and not invalid:
            block_hashes = zero_hash(0)
    message = pb.FileInfo(
        name=name,
        type=type,
        size=size,
        permissions=permissions,
        modified_s=modified_s,
        deleted=deleted,
        invalid=invalid,
        no_permissions=no_permissions or type is FileType.SYMLINK,
        version=_version_message(version),
        modified_ns=modified_ns,
        modified_by=modified_by,
        block_size=block_size if has_content else 0,
        symlink_target=symlink_target,
        blocks_hash=blocks_hash(block_hashes) if block_hashes else b"",
        previous_blocks_hash=previous_blocks_hash,
    )
    return _checked(from_wire(message, sequence, block_hashes))


def replace(
    info: FileInfo,
    *,
    name: str | None = None,
    version: Vector | None = None,
    modified_by: int | None = None,
    permissions: int | None = None,
    no_permissions: bool | None = None,
    modified_s: int | None = None,
    modified_ns: int | None = None,
    invalid: bool | None = None,
    previous_blocks_hash: bytes | None = None,
    sequence: int | None = None,
) -> FileInfo:
    """The same item with some fields changed; platform data, unknown fields and content stay. The only right way to change a
    FileInfo: dataclasses.replace would leave `wire` behind. Block hashes need not be loaded. Raises Invalid for a `name` that a peer
    would refuse."""
    message = pb.FileInfo.FromString(info.wire)
    changes = {
        "name": name,
        "modified_by": modified_by,
        "permissions": permissions,
        "no_permissions": no_permissions,
        "modified_s": modified_s,
        "modified_ns": modified_ns,
        "invalid": invalid,
        "previous_blocks_hash": previous_blocks_hash,
    }
    for field, value in changes.items():
        if value is not None:
            setattr(message, field, value)
    if version is not None:
        message.version.CopyFrom(_version_message(version))
    changed = from_wire(message, info.sequence if sequence is None else sequence, info.block_hashes)
    if name is not None and name_fault(name):
        raise Invalid(f"a file name is refused: {name_fault(name)}")
    return changed


def replace_version(info: FileInfo, version: Vector, modified_by: int) -> FileInfo:
    """The same item as changed by `modified_by`, with its new vector."""
    return replace(info, version=version, modified_by=modified_by)


def deletion(info: FileInfo, *, version: Vector, modified_by: int, modified_s: int) -> FileInfo:
    """The item as deleted at `modified_s`: type, permissions and platform data kept, content gone; `previous_blocks_hash` names the
    deleted content if `info` has its block hashes loaded (bep-facts 9.1)."""
    message = pb.FileInfo.FromString(info.wire)
    message.previous_blocks_hash = blocks_hash(info.block_hashes) if info.block_hashes else b""
    message.deleted, message.modified_s, message.modified_by = True, modified_s, modified_by
    message.version.CopyFrom(_version_message(version))
    for field in ("size", "invalid", "blocks_hash", "encrypted"):
        message.ClearField(field)
    return from_wire(message, info.sequence, b"")


def check(info: FileInfo) -> None:
    """Raises ProtocolError for what a real peer closes a connection for (bep-facts 6.3); `from_wire` checked the block list."""
    if _UNCLEAN(info.name) or len(info.name) > _NAME_LIMIT:
        raise ProtocolError(f"a file name is refused: {name_fault(info.name)}")
    if info.type is FileType.FILE:
        if info.block_hashes:
            if info.deleted:
                raise ProtocolError(f"{info.name!r} is deleted and has blocks")
        elif not info.deleted and not info.invalid:
            raise ProtocolError(f"{info.name!r} is a file without blocks")
        if info.size < 0 or info.block_size > blocks.LARGEST_ON_WIRE:
            raise ProtocolError(f"{info.name!r} has the size {info.size} and the block size {info.block_size}")
    elif info.block_hashes or info.size:
        raise ProtocolError(f"{info.name!r} is no file and has a size or blocks")


def check_name(name: str) -> None:
    """Raises ProtocolError unless a peer would take the name of an item (index and requests)."""
    if _UNCLEAN(name) or len(name) > _NAME_LIMIT:
        raise ProtocolError(f"a file name is refused: {name_fault(name)}")


def name_fault(name: str) -> str:
    """Why no peer would take this name, "" when it is fine. Paths are relative, with "/", without empty, "." or ".." parts."""
    if not name:
        return "it is empty"
    if len(name) > _NAME_LIMIT:
        return f"it has {len(name)} characters, more than {_NAME_LIMIT}"
    return f"{name!r} is not a clean relative path" if _UNCLEAN(name) else ""


def is_nfc(name: str) -> bool:
    """True if the name is in the form that goes over the wire (bep-facts 9.2)."""
    return unicodedata.is_normalized("NFC", name)


def normalize(name: str) -> str:
    """The NFC form of a name: what is stored, sent and compared."""
    return unicodedata.normalize("NFC", name)


def _checked(info: FileInfo) -> FileInfo:
    try:
        check(info)
    except ProtocolError as error:
        raise Invalid(error.message) from error
    return info


def _version_message(version: Vector) -> pb.Vector:
    return pb.Vector(counters=[pb.Counter(id=short_id, value=value) for short_id, value in from_pairs(version)])


def _without_local_fields(message: pb.FileInfo) -> bytes:
    """Drops what must not travel (field numbers from 1000, whose two tag bytes end in ">"); rarely there, so looked for by that."""
    for field in ("local_flags", "version_hash", "inode_change_ns", "encryption_trailer_size"):
        message.ClearField(field)
    return message.SerializeToString()
