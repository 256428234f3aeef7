"""The rules for one name: which version is global, do we need it, who has it (bep-facts 7.2, 7.3 with v2's winner, 12.3, 12.4).

- Invalid entries and our own flagged records are never global; of equal versions ours counts.
- We need the global version unless our record's vector covers it; a deletion only if we have a live item.
- A send-only folder needs nothing: its differences are `held`, except for a version that equals ours but for the vector (METADATA),
  which it takes.

Written for a million calls: an equal version is recognised by its bytes before any vector is parsed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from sqlite3 import Connection
from typing import NamedTuple

from stnode.folder.tables import DELETED, HAS, INVALID, LACKS_DELETE, MARKS, TYPE_SHIFT
from stnode.folder.types import LocalFlag, NeedKind
from stnode.protocol import fileinfo, vector
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.pb import bep_pb2 as pb
from stnode.protocol.vector import Ordering


class Entry(NamedTuple):
    """A row of `remote` without folder and name. `modified` in ns; `content` is None when it is not kept."""

    dev: int
    seq: int
    flags: int
    size: int
    modified: int
    version: bytes
    content: int | None


class Own(NamedTuple):
    """Our record of a name, as far as the decision asks."""

    type: int
    deleted: int
    invalid: int
    flags: int
    size: int
    version: bytes


class Need(NamedTuple):
    """A row of `need` without its key. `replaces`: how many live items of ours (0 or 1) of `replaced_bytes` it takes the place of."""

    kind: int
    held: int
    size: int
    blocks: int
    replaces: int
    replaced_bytes: int
    version: bytes
    content: int | None


_KIND = {FileType.FILE: NeedKind.FILE, FileType.DIRECTORY: NeedKind.DIRECTORY, FileType.SYMLINK: NeedKind.SYMLINK}


class Item:
    """One name with our record of it, and the entry `given` just now by device `dev`."""

    __slots__ = ("_conn", "_counts", "_dev", "_fid", "_name", "_own", "given")

    def __init__(self, conn: Connection, fid: int, name: str, own: Own | None, given: FileInfo | None, dev: int | None) -> None:
        self._conn, self._fid, self._name, self._own, self._dev = conn, fid, name, own, dev
        self._counts = own is not None and not own.flags and not own.invalid
        self.given = given

    def may_be_needed(self, entry: Entry) -> bool:
        """False if our own record makes the content of the entry worthless, now and later."""
        if entry.flags & INVALID:
            return False
        return not self._counts or not self._covers(entry.version)

    def best(self, entries: Iterable[Entry]) -> Entry | None:
        """The winner among the devices' valid entries; None if there is none."""
        best: Entry | None = None
        for entry in entries:
            if not entry.flags & INVALID and (best is None or (entry.version != best.version and _beats(entry, best))):
                best = entry
        return best

    def need(self, best: Entry, entries: Sequence[Entry], takes_nothing: bool) -> Need | None:
        """What we need if `best` is the best of the others' `entries`; None if our own record will do."""
        own = self._own
        live = own is not None and not own.deleted
        deleted = best.flags & DELETED
        if (deleted and not live) or self._satisfies(best):
            return None
        content = best.content
        if content is None:
            content = next((entry.content for entry in entries if entry.version == best.version and entry.content is not None), None)
        held, blocks = takes_nothing, 0
        kind = self._kind(best)
        if live and not deleted and (alike := self._alike(best, content)) is not None:
            kind, held = NeedKind.METADATA, takes_nothing and not alike
        if kind is NeedKind.FILE or (kind is NeedKind.METADATA and best.size):
            blocks = self._blocks(best, content)
        return Need(kind, int(held), best.size, blocks, int(live), own.size if own is not None and live else 0, best.version, content)

    def marked(self, best: Entry | None, entries: Sequence[Entry]) -> Sequence[Entry]:
        """The entries with marks for who has the global version, and who has a live item where it is a deletion."""
        own = self._own
        if best is None or (own is not None and self._counts and self._satisfies(best)):
            if own is None or not self._counts:
                return entries if not any(entry.flags & MARKS for entry in entries) else [_mark(entry, 0) for entry in entries]
            version, deleted = own.version, own.deleted
        else:
            version, deleted = best.version, best.flags & DELETED
        marked = []
        for entry in entries:
            mark = 0
            if not entry.flags & INVALID:
                if deleted:
                    mark = 0 if entry.flags & DELETED else LACKS_DELETE
                elif entry.version == version:
                    mark = HAS
            marked.append(entry if entry.flags & MARKS == mark else _mark(entry, mark))
        return marked

    def _covers(self, version: bytes) -> bool:
        own = self._own
        return own is not None and (own.version == version or vector.covers(vector.from_wire(own.version), vector.from_wire(version)))

    def _satisfies(self, best: Entry) -> bool:
        """True if our own record makes `best` needless: it covers it, or is the concurrent winner."""
        own = self._own
        if own is None or own.invalid or own.flags & LocalFlag.MUST_FETCH:
            return False
        if self._covers(best.version):
            return True
        return self._counts and self._wins(best)

    def _wins(self, best: Entry) -> bool:
        own = self._own
        assert own is not None
        order = vector.compare(vector.from_wire(own.version), vector.from_wire(best.version))
        if order not in (Ordering.CONCURRENT_GREATER, Ordering.CONCURRENT_LESSER):
            return False
        info = self._own_info()
        modified = info.modified_s * 1_000_000_000 + info.modified_ns
        return modified > best.modified if modified != best.modified else order is Ordering.CONCURRENT_GREATER

    def _kind(self, best: Entry) -> NeedKind:
        kind = FileType(best.flags >> TYPE_SHIFT & 7)
        if not best.flags & DELETED:
            return _KIND[kind]
        # What is to be deleted is our item, whatever the device took it for.
        own = self._own
        return NeedKind.DELETE_DIRECTORY if own is not None and own.type == FileType.DIRECTORY else NeedKind.DELETE

    def _alike(self, best: Entry, content: int | None) -> bool | None:
        """None if the content differs from ours, as far as can be told without our hashes; else whether all the rest is the same."""
        own = self._own
        if own is None or own.type != best.flags >> TYPE_SHIFT & 7 or own.size != best.size or own.flags & LocalFlag.MUST_FETCH:
            return None
        theirs = self._info(best, content)
        if theirs is None:
            return None
        ours = self._own_info()
        if not _same_data(ours, theirs):
            return None
        if not (ours.no_permissions or theirs.no_permissions) and ours.permissions & 0o777 != theirs.permissions & 0o777:
            return False
        return ours.type is not FileType.FILE or (ours.modified_s, ours.modified_ns) == (theirs.modified_s, theirs.modified_ns)

    def _blocks(self, best: Entry, content: int | None) -> int:
        info = self._info(best, content)
        return 0 if info is None else fileinfo.block_count(info.size, info.block_size)

    def _info(self, entry: Entry, content: int | None) -> FileInfo | None:
        if entry.dev == self._dev and self.given is not None:
            return self.given
        row = self._conn.execute("SELECT info, blocks FROM remote_content WHERE id = ?", (content,)).fetchone()
        return None if row is None else fileinfo.from_record(row[0], entry.seq, row[1])

    def _own_info(self) -> FileInfo:
        row = self._conn.execute("SELECT info FROM records WHERE fid = ? AND name = ?", (self._fid, self._name)).fetchone()
        return fileinfo.from_record(row[0])


def _mark(entry: Entry, mark: int) -> Entry:
    return entry._replace(flags=entry.flags & ~MARKS | mark)


def _beats(a: Entry, b: Entry) -> bool:
    """Both valid: greater vector, else later modification, else the greater of the concurrent vectors."""
    match vector.compare(vector.from_wire(a.version), vector.from_wire(b.version)):
        case Ordering.GREATER:
            return True
        case Ordering.LESSER | Ordering.EQUAL:
            return False
        case order:
            return a.modified > b.modified if a.modified != b.modified else order is Ordering.CONCURRENT_GREATER


def _same_data(ours: FileInfo, theirs: FileInfo) -> bool:
    """Of one type and size. Our hashes are in the packs, so files are compared by the hash over hashes: as received, or v2's."""
    if ours.type is FileType.DIRECTORY:
        return True
    if ours.type is FileType.SYMLINK:
        return ours.symlink_target == theirs.symlink_target
    if not ours.size:
        return True
    known = pb.FileInfo.FromString(ours.wire).blocks_hash
    if not known:
        return False
    return known in (pb.FileInfo.FromString(theirs.wire).blocks_hash, fileinfo.blocks_hash(theirs.block_hashes))
