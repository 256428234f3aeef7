"""From what wants in to a commit's body, on one state: judges a group in the database's thread and builds what it may write.

Made anew after every lost slot. Nothing here waits or talks to the object store.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from sqlite3 import Connection
from types import MappingProxyType
from typing import Protocol

from stnode.errors import Conflict, Internal, StnodeError
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.vector import covers
from stnode.repo import layout, state
from stnode.repo.codec import Body, BodyRecord, BodySet, PackAdded, Section, joined
from stnode.repo.judge import Context, Judged, Verdict, judge, parents
from stnode.repo.packer import PendingPack
from stnode.repo.records import DraftSet, Extent, Extents, HistoryRule, Record, SetKind, Status

Announced = Callable[[Connection, int, FileInfo], bool]
"""Whether a known device announces exactly this version of a folder's item; asked in the database's thread."""


class PendingPacks(Protocol):
    """What the committer wants of the packer: packs that are durable and not yet registered, by handle."""

    def pending(self, handle: int) -> PendingPack:
        """A sealed pack; Internal when there is none of this handle."""
        ...

    def resolve(self, handle: int) -> int | None:
        """Its number, once a commit has registered it."""
        ...

    def registered(self, numbers: Mapping[int, int]) -> None:
        """A commit has given packs their numbers."""
        ...

    def unregister(self) -> None:
        """The state was rebuilt on another history: no number holds any more."""
        ...


class PackTable:
    """Packs as the records of one commit may name them. `added` are those that the commit registers, in order; `handles` says
    which of the packer's each was. `keep` is the order of an earlier try whose stored body is to be used again. `named` are the extents
    in registered packs that the commit names so far, in records and partial files: other entries must leave their blocks alone."""

    def __init__(
        self, conn: Connection, pending: Mapping[int, PendingPack], *, horizon_us: int, since_us: int, keep: Sequence[PackAdded] = ()
    ) -> None:
        self.added: list[PackAdded] = []
        self.handles: dict[int, int] = {}
        self.numbers: dict[int, int] = {}
        self.named: list[Extent] = []
        self._conn = conn
        self._pending = pending
        self._horizon_us = max(horizon_us, since_us)
        self._live: dict[int, bool] = {}
        self._places = {pack.id: index for index, pack in enumerate(keep)}
        ids = [(pack.id, handle) for handle, pack in pending.items()]
        for object_id, handle in ids:
            row = conn.execute("SELECT number FROM packs WHERE id = ?", (object_id,)).fetchone()
            if row is not None:
                self.numbers[handle] = row[0]
        kept = {pack.id for pack in keep}
        if all(not self._known(pack.id) and layout.minted_us(pack.id) >= self._horizon_us for pack in keep):
            self.added = list(keep)
            self.handles = {handle: -(self._places[pack.id] + 1) for handle, pack in pending.items() if pack.id in kept}

    def usable(self, extents: Extents) -> bool:
        """Whether a new record may name these blocks: live packs, or blocks that were moved into one."""
        return all(self._usable(*extent) for extent in extents)

    def place(self, extents: Extents) -> Extents:
        """The extents as they stand in the body; registers the packs that need it. Only for what is `usable`."""
        if any(extent[0] < 0 for extent in extents):
            extents = tuple((self._refer(pack) if pack < 0 else pack, place, count) for pack, place, count in extents)
        self.named.extend(extent for extent in extents if extent[0] > 0)
        return extents

    def add(self, pack: PackAdded) -> int:
        """Registers a pack that no handle stands for (salvaging); the number by which entries of this body name it."""
        self.added.append(pack)
        return -len(self.added)

    def register(self, handle: int) -> int:
        """Registers a durable pack of this process that no record names yet (repacking); its number or place in the body, by which
        relocations name it. Only for what is `usable`."""
        return self._refer(handle)

    def condemn(self, pack: int) -> None:
        """The commit condemns this pack: no entry made after this one may name it."""
        self._live[pack] = False

    def _refer(self, handle: int) -> int:
        if (number := self.numbers.get(handle)) is not None:
            return number
        if handle not in self.handles:
            pack = self._pending[handle]
            offset = pack.size - pack.footer_size
            self.handles[handle] = self.add(PackAdded(pack.fkey, pack.id, pack.size, pack.blocks, offset, pack.footer_size))
        return self.handles[handle]

    def _known(self, object_id: str) -> bool:
        return self._conn.execute("SELECT 1 FROM packs WHERE id = ?", (object_id,)).fetchone() is not None

    def _usable(self, pack: int, place: int, count: int) -> bool:
        if pack < 0:
            if (number := self.numbers.get(pack)) is None:
                return pack in self._pending and layout.minted_us(self._pending[pack].id) >= self._horizon_us
            pack = number
        if pack == 0 or self._is_live(pack):
            return True
        return all(to != pack and self._is_live(to) for to, _, _ in state.resolve(self._conn, pack, place, count))

    def _is_live(self, pack: int) -> bool:
        if pack not in self._live:
            row = self._conn.execute("SELECT condemned = 0 AND lost = 0 FROM packs WHERE number = ?", (pack,)).fetchone()
            self._live[pack] = bool(row and row[0])
        return self._live[pack]


Entries = Callable[[Connection, PackTable], Body]
"""Makes entries of a commit other than records, anew on every state that it is tried on (relocations, settings, partial files).
Packs are named and registered through the table; `packs_added` stays empty. Raises a StnodeError where the state forbids it."""


_NO_FILES: Mapping[int, int] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class Wish:
    """One set that wants in; `settle` tells its submitter. `records` it asks for, and roughly what they take in a body, `deleted_files` by
    folder: reckoned once, when it comes, for thousands are looked at together when their group is closed."""

    wanted: DraftSet
    settle: Callable[[Status, Sequence[str], Sequence[int], str], None]
    records: int = field(init=False)
    size_bytes: int = field(init=False)
    deleted_files: Mapping[int, int] = field(init=False)
    """Files that it may delete; renames delete none."""

    def __post_init__(self) -> None:
        drafts = self.wanted.drafts
        self.records = len(drafts)
        self.size_bytes = sum([len(draft.info.wire) + 10 * len(draft.extents) + 12 for draft in drafts])
        deleted = [draft.fid for draft in drafts if draft.info.deleted and draft.info.type is FileType.FILE]
        self.deleted_files = Counter(deleted) if deleted and self.wanted.kind is not SetKind.NEW_FIRST else _NO_FILES


@dataclass(slots=True, eq=False)
class EntryWish:
    """Other entries that want in; `handles` are packs that they name. `done` is told the commit's number, or why not."""

    make: Entries
    done: Callable[[int | StnodeError], None]
    handles: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """What committing needs to know of a folder."""

    fkey: str
    last_sequence: int
    live_files: int
    delete_guard: float
    encrypted: bool


@dataclass(slots=True)
class Proposal:
    """What a group may write on the state after commit `number`. `placed` has each section's sets with the wish that they are for,
    in the order of the body."""

    number: int
    epoch: int
    verdicts: dict[Wish, Verdict]
    body: Body
    placed: dict[str, list[tuple[Wish, BodySet]]]
    refused: dict[EntryWish, StnodeError]
    folders: dict[int, FolderFacts]
    handles: dict[int, int] = field(default_factory=dict)
    known: dict[int, int] = field(default_factory=dict)

    def deletions(self) -> dict[int, tuple[list[Wish], int]]:
        """Per folder the sets that only delete, whatever was judged of them, and how many live files they delete; renames are none."""
        found: dict[int, tuple[list[Wish], int]] = {}
        for wish, verdict in self.verdicts.items():
            drafts = wish.wanted.drafts
            if wish.wanted.kind is not SetKind.NEW_FIRST and drafts and all(draft.info.deleted for draft in drafts):
                wishes, count = found.get(drafts[0].fid, ([], 0))
                wishes.append(wish)
                found[drafts[0].fid] = (wishes, count + sum(record.removes_file for record in verdict.records))
        return {fid: each for fid, each in found.items() if fid in self.folders}


class SqlView:
    """The state in SQLite, as judging asks for it; what the drafts name is read in advance."""

    def __init__(self, conn: Connection, packs: PackTable, announced: Announced) -> None:
        self._conn = conn
        self._packs = packs
        self._announced = announced
        self._records: dict[tuple[int, str], Record | None] = {}

    def prefetch(self, sets: Iterable[DraftSet]) -> None:
        """Reads the names of the drafts and their parents at once."""
        wanted: dict[int, set[str]] = defaultdict(set)
        for each in sets:
            for draft in each.drafts:
                names = wanted[draft.fid]
                names.add(draft.info.name)
                for above in parents(draft.info.name):
                    if above in names:
                        break
                    names.add(above)
        for fid, names in wanted.items():
            found = state.get_records(self._conn, fid, sorted(names))
            self._records.update(((fid, name), found.get(name)) for name in names)

    def record(self, fid: int, name: str) -> Record | None:
        key = (fid, name)
        if key not in self._records:
            self._records[key] = state.get_records(self._conn, fid, [name]).get(name)
        return self._records[key]

    def live_below(self, fid: int, directory: str) -> Iterable[str]:
        query = "SELECT name FROM records WHERE fid = ? AND name > ? AND name < ? AND deleted = 0"
        return (row[0] for row in self._conn.execute(query, (fid, directory + "/", directory + "0")))

    def usable(self, extents: Extents) -> bool:
        return self._packs.usable(extents)

    def announced(self, fid: int, info: FileInfo) -> bool:
        return self._announced(self._conn, fid, info)


@dataclass(frozen=True, slots=True)
class Setting:
    """The circumstances of a proposal: own short ID, store time (s) of the group, store nodes, packs of the group by handle, the time
    before which nothing uploaded can be trusted to be there, and the packs of a stored body to keep."""

    me: int
    time_s: int
    nodes: frozenset[int]
    pending: Mapping[int, PendingPack]
    since_us: int
    announced: Announced
    epoch: int
    keep: Sequence[PackAdded] = ()


def propose(conn: Connection, wishes: Sequence[Wish], entries: Sequence[EntryWish], setting: Setting) -> Proposal:
    """Judges a group on the present state."""
    head = state.head(conn)
    folders = folder_facts(conn)
    packs = PackTable(conn, setting.pending, horizon_us=head.horizon_us, since_us=setting.since_us, keep=setting.keep)
    view = SqlView(conn, packs, setting.announced)
    sets = [wish.wanted for wish in wishes]
    view.prefetch(sets)
    encrypted = {fid for fid, facts in folders.items() if facts.encrypted}
    verdicts = judge(view, sets, Context(setting.me, setting.time_s, folders, setting.nodes, encrypted))
    placed: dict[str, list[tuple[Wish, BodySet]]] = defaultdict(list)
    for wish, verdict in zip(wishes, verdicts, strict=True):
        for fid, records in _by_folder(verdict.records).items():
            body_set = BodySet(wish.wanted.kind, tuple(_body_record(record, packs) for record in records))
            placed[folders[fid].fkey].append((wish, body_set))
    body = Body(sections=tuple(Section(fkey, tuple(body_set for _, body_set in sets)) for fkey, sets in placed.items()))
    refused: dict[EntryWish, StnodeError] = {}
    for entry in entries:
        try:
            body = merged(body, _apart(body, entry.make(conn, packs)))
        except StnodeError as exc:
            refused[entry] = exc
    return Proposal(
        head.number,
        setting.epoch,
        dict(zip(wishes, verdicts, strict=True)),
        replace(body, packs_added=tuple(packs.added)),
        dict(placed),
        refused,
        folders,
        packs.handles,
        packs.numbers,
    )


def folder_facts(conn: Connection) -> dict[int, FolderFacts]:
    """The folders that exist, by their number."""
    return {
        folder.fid: FolderFacts(
            folder.settings.fkey,
            folder.last_sequence,
            folder.totals.files,
            folder.settings.delete_guard,
            folder.settings.encrypted,
        )
        for folder in state.folders(conn)
    }


def merged(first: Body, then: Body) -> Body:
    """Both bodies' entries in one. Both name packs by the same table, so nothing is renumbered."""
    if then.packs_added or any(section.sets for section in then.sections):
        raise Internal("entries register packs through the table, and records come as drafts")
    return joined(first, then)


def _apart(body: Body, then: Body) -> Body:
    """`then`, unless it sets what `body` sets already: both were made on the same state, so that one would undo the other unseen."""
    ours = {folder.folder_id for folder in body.folders}
    for folder in then.folders:
        if folder.folder_id in ours:
            raise Conflict(f"somebody else changes the settings of folder {folder.folder_id!r} at this moment", hint="try again")
    return then


def _by_folder(records: Sequence[Judged]) -> dict[int, list[Judged]]:
    found: dict[int, list[Judged]] = defaultdict(list)
    for record in records:
        found[record.fid].append(record)
    return found


def _body_record(record: Judged, packs: PackTable) -> BodyRecord:
    extents = packs.place(record.extents) if record.extents else ()
    return BodyRecord(record.info.wire, extents, record.local_flags, record.history)


def covered(conn: Connection, verdict: Verdict) -> list[int] | None:
    """Sequences of a set's records when the state shows that a commit in doubt has won: it holds these versions or later ones."""
    sequences = []
    for record in verdict.records:
        if record.history is HistoryRule.ONLY:
            continue
        current = state.get_records(conn, record.fid, [record.name]).get(record.name)
        if current is None or not covers(current.info.version, record.info.version):
            return None
        if current.info.version == record.info.version and (current.info.wire, current.local_flags) != (
            record.info.wire,
            record.local_flags,
        ):
            return None  # another process with this identity, in the same second; or only the flags differ
        sequences.append(current.sequence)
    return sequences
