"""Which version of an item wins, what counts as a conflict, and how a conflict copy is named (bep-facts 7.2 to 7.5, v2's rules)."""

from __future__ import annotations

from datetime import UTC, datetime

from stnode.protocol.blocks import blocks_hash
from stnode.protocol.deviceid import format_short
from stnode.protocol.item import FileInfo, FileType
from stnode.protocol.pb import bep_pb2 as pb
from stnode.protocol.vector import Ordering, compare, covers

_MARK = ".sync-conflict-"


def wins(a: FileInfo, b: FileInfo) -> bool:
    """True if `a` wins over the concurrent `b`, alike on every device: valid over invalid, later modification over earlier,
    then the greater of the concurrent vectors. Deletion does not count (v2)."""
    if a.invalid != b.invalid:
        return b.invalid
    at, bt = (a.modified_s, a.modified_ns), (b.modified_s, b.modified_ns)
    if at != bt:
        return at > bt
    return compare(a.version, b.version) is Ordering.CONCURRENT_GREATER


def supersedes(a: FileInfo, b: FileInfo) -> bool:
    """True if `a` is to be global rather than `b`: greater vector, or concurrent and winning, or equal and valid where `b` is not."""
    match compare(a.version, b.version):
        case Ordering.GREATER:
            return True
        case Ordering.LESSER:
            return False
        case Ordering.EQUAL:
            return b.invalid and not a.invalid
        case Ordering.CONCURRENT_GREATER | Ordering.CONCURRENT_LESSER:
            return wins(a, b)


def conflicts(remote: FileInfo, local: FileInfo) -> bool:
    """True if replacing `local` by `remote` would lose content nobody has seen: the remote vector does not cover the local one, nor
    does the remote version name our content as the one it was made of. Needs the local block hashes."""
    if covers(remote.version, local.version):
        return False
    message = pb.FileInfo.FromString(remote.wire)
    made_of = message.previous_blocks_hash if message.blocks_hash else b""
    return not (made_of and local.block_hashes and made_of == blocks_hash(local.block_hashes))


def same_content(a: FileInfo, b: FileInfo) -> bool:
    """True if both are of one type and hold the same data: block lists of files, targets of symlinks. Needs block hashes loaded."""
    if a.type is not b.type or a.deleted != b.deleted:
        return False
    if a.type is FileType.SYMLINK:
        return a.symlink_target == b.symlink_target
    return a.size == b.size and a.block_hashes == b.block_hashes and (len(a.block_hashes) <= 48 or a.block_size == b.block_size)


def equivalent(a: FileInfo, b: FileInfo) -> bool:
    """True if nothing that travels differs but vector, modified_by and sequence (bep-facts 9.1): no pull is needed for it."""
    if a.invalid != b.invalid or not same_content(a, b):
        return False
    if not (a.no_permissions or b.no_permissions) and a.permissions & 0o777 != b.permissions & 0o777:
        return False
    return a.type is not FileType.FILE or (a.modified_s, a.modified_ns) == (b.modified_s, b.modified_ns)


def conflict_name(name: str, short_id: int, time_ns: int) -> str:
    """Where the losing content of `name` goes. `short_id` is modified_by of the winner; the time is written in UTC. The extension is
    what follows the last dot of the last component, as in Syncthing also when that dot is its first character."""
    directory, slash, base = name.rpartition("/")
    stem, dot, extension = base.rpartition(".")
    if not dot:
        stem, extension = base, ""
    stamp = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y%m%d-%H%M%S")
    return f"{directory}{slash}{stem}{_MARK}{stamp}-{format_short(short_id)}{dot}{extension}"


def is_conflict_copy(name: str) -> bool:
    """True if the name is one of a conflict copy; such a file is not copied again."""
    return _MARK in name.rpartition("/")[2]
