"""Re-validation: what a commit may write of the changes that want in, judged on the state that it will be applied to. Pure.

The committer runs this again after every lost slot and writes the judgement down; applying it is mechanical (design 5,
"Re-validation"). Nothing here knows SQLite, the journal or a clock: the state is a `View`, time and nodes are values.

What is asked of a draft, in this order:
1. its blocks may be named in this state, else RETRY_UPLOAD;
2. a local change: its condition; then its vector is made here (merge, own counter), and the last writer wins.
   A change from a peer: older or already there is dropped, newer is taken, of concurrent ones the winner (bep-facts 7.3);
3. a directory with live children is not deleted, a non-directory with live children goes to a conflict copy, a live record
   revives its deleted parents;
4. a loser that nobody announces becomes a conflict copy by metadata alone, in the same set.
A set stands or falls as its kind says. Later sets see what earlier ones of the same commit write.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from stnode.errors import Invalid
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.pb import bep_pb2
from stnode.protocol.vector import Ordering, Vector, compare, covers, merge, update
from stnode.repo.records import UNCONDITIONAL, Draft, DraftSet, Extents, HistoryRule, LocalFlag, Record, SetKind, Status, is_lost

ALREADY_THERE: Final = "already there"
OLDER: Final = "older than the committed version"
LOSES: Final = "loses against the committed version"
TOKENS_DIFFER: Final = "same version as the committed one, with other tokens"
CONDITION: Final = "the committed version is not the one that was demanded"
NOT_EMPTY: Final = "it has live children"
NO_DIRECTORY: Final = "a parent is no directory"
NO_BLOCKS: Final = "its blocks lie in a pack that may not be named any more"
NOT_COVERED: Final = "its blocks do not cover its size"
NO_FOLDER: Final = "the folder is gone"

_NEW_DIRECTORY_PERMISSIONS: Final = 0o755


class View(Protocol):
    """The committed state, as far as judging asks."""

    def record(self, fid: int, name: str) -> Record | None:
        """The current version of a name, deleted or not."""
        ...

    def live_below(self, fid: int, directory: str) -> Iterable[str]:
        """Names of live records below `directory`, at any depth, in any order; read only as far as needed."""
        ...

    def usable(self, extents: Extents) -> bool:
        """Whether a new record may name these blocks: registered packs that are neither condemned nor lost, and handles of packs
        that can still be registered."""
        ...

    def announced(self, fid: int, info: FileInfo) -> bool:
        """Whether a known device still announces exactly this version, so that it will make the conflict copy itself (R28)."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """`me` is the own short ID, `time_s` store time (Unix seconds), `folders` the folders that exist, `nodes` the short IDs of the
    store's nodes as far as known, `encrypted` the folders whose names and contents cannot be read."""

    me: int
    time_s: int
    folders: Container[int]
    nodes: Container[int] = frozenset()
    encrypted: Container[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Judged:
    """One record to write. `extents` may name the packer's handles. `removes_file`: a live file is deleted by it."""

    fid: int
    info: FileInfo
    extents: Extents
    local_flags: int = 0
    history: HistoryRule = HistoryRule.KEEP
    removes_file: bool = False

    @property
    def name(self) -> str:
        """Name of the item."""
        return self.info.name


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one set: COMMITTED with the records to write in order, or why not."""

    status: Status
    records: tuple[Judged, ...] = ()
    reason: str = ""


def judge(view: View, sets: Sequence[DraftSet], context: Context) -> list[Verdict]:
    """A verdict for each set, in order."""
    bench = _Bench(view, context)
    return [bench.judge(each) for each in sets]


def parents(name: str) -> Iterator[str]:
    """The directories above `name`, nearest first."""
    while name := name.rpartition("/")[0]:
        yield name


_Current = Record | Judged
_Name = tuple[int, str]


@dataclass(frozen=True, slots=True)
class _Refusal:
    status: Status
    reason: str


@dataclass(frozen=True, slots=True)
class _Loser:
    """A version that somebody may want to keep: to be copied unless that is needless. `other` is what it lost against."""

    info: FileInfo
    extents: Extents
    other: FileInfo
    local_flags: int = 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the versions alone say: `info` (with its `extents`) is written under its name unless None, `loser` gets a copy. `history`
    None: as the draft says."""

    info: FileInfo | None
    extents: Extents
    loser: _Loser | None = None
    history: HistoryRule | None = None


@dataclass(slots=True)
class _Writes:
    """What one set writes, until it stands."""

    records: list[Judged] = field(default_factory=list)
    current: dict[_Name, Judged] = field(default_factory=dict)

    def add(self, judged: Judged) -> None:
        self.records.append(judged)
        if judged.history is not HistoryRule.ONLY:
            self.current[judged.fid, judged.name] = judged


class _Bench:
    """The state as it will be after the sets judged so far."""

    def __init__(self, view: View, context: Context) -> None:
        self._view = view
        self._context = context
        self._written: dict[_Name, Judged] = {}
        self._added_below: dict[_Name, int] = {}
        # Directories whose parents, and which themselves, are absent or live directories: asked once, not once per file.
        self._sound: set[_Name] = set()

    def judge(self, wanted: DraftSet) -> Verdict:
        if any(draft.fid not in self._context.folders for draft in wanted.drafts):
            return Verdict(Status.CONFLICT, reason=NO_FOLDER)
        writes = _Writes()
        try:
            refusal = self._rename(wanted, writes) if wanted.kind is SetKind.NEW_FIRST else self._all(wanted.drafts, writes)
        except Invalid as exc:  # a draft that no peer would take must not stop the others of its commit
            refusal = _Refusal(Status.CONFLICT, exc.message)
        if refusal is not None:
            self._sound.clear()  # some of it may rest on parents that this set would have revived
            return Verdict(refusal.status, reason=refusal.reason)
        self._keep(writes)
        return Verdict(Status.COMMITTED, tuple(writes.records))

    def _all(self, drafts: Iterable[Draft], writes: _Writes) -> _Refusal | None:
        for draft in drafts:
            if refusal := self._draft(draft, writes):
                return refusal
        return None

    def _rename(self, wanted: DraftSet, writes: _Writes) -> _Refusal | None:
        """The new name first. Where it is there already the old one may still go; where it is refused nothing happens."""
        new, *old = wanted.drafts
        first = self._draft(new, writes)
        if first is not None and first.reason != ALREADY_THERE:
            return first
        refusals = [refusal for draft in old if (refusal := self._draft(draft, writes)) is not None]
        if writes.records:
            return None
        return refusals[0] if refusals else first

    def _keep(self, writes: _Writes) -> None:
        for key, judged in writes.current.items():
            change = self._is_added(key, judged) - self._is_added(key, self._written.get(key))
            self._written[key] = judged
            if change:
                for above in parents(key[1]):
                    self._added_below[key[0], above] = self._added_below.get((key[0], above), 0) + change
            if key in self._sound and (judged.info.deleted or judged.info.type is not FileType.DIRECTORY):
                self._sound.clear()

    def _is_added(self, key: _Name, judged: Judged | None) -> bool:
        """Whether a name is live by what this commit wrote and was not in the state before."""
        if judged is None or judged.info.deleted:
            return False
        before = self._view.record(*key)
        return before is None or before.info.deleted

    def _current(self, fid: int, name: str, writes: _Writes) -> _Current | None:
        return writes.current.get((fid, name)) or self._written.get((fid, name)) or self._view.record(fid, name)

    def _has_live_below(self, fid: int, directory: str, writes: _Writes) -> bool:
        if self._added_below.get((fid, directory), 0):
            return True
        prefix = directory + "/"
        if any(key[0] == fid and key[1].startswith(prefix) and not judged.info.deleted for key, judged in writes.current.items()):
            return True
        for name in self._view.live_below(fid, directory):
            current = self._current(fid, name, writes)
            if current is None or not current.info.deleted:
                return True
        return False

    # ---- one draft ----------------------------------------------------------------------------------------------------

    def _draft(self, draft: Draft, writes: _Writes) -> _Refusal | None:
        """Adds what one draft leads to, or nothing is written for it and the reason comes back."""
        info = draft.info
        if (
            info.size
            and not info.deleted
            and sum(extent[2] for extent in draft.extents) != fileinfo.block_count(info.size, info.block_size)
        ):
            return _Refusal(Status.CONFLICT, NOT_COVERED)
        if draft.remark:
            return self._remark(draft, writes)
        if draft.extents and not self._view.usable(draft.extents):
            return _Refusal(Status.RETRY_UPLOAD, NO_BLOCKS)
        if draft.history is HistoryRule.ONLY:
            writes.add(Judged(draft.fid, draft.info, draft.extents, draft.local_flags, draft.history))
            return None
        current = self._current(draft.fid, draft.info.name, writes)
        plan = self._local(draft, current) if draft.local else self._remote(draft, current)
        if isinstance(plan, _Refusal):
            return plan
        encrypted = draft.fid in self._context.encrypted
        if plan.info is not None and not encrypted:
            aside = self._tree(draft, plan, plan.info, current, writes)
            if isinstance(aside, _Refusal):
                return aside
            if aside:
                return None
        if plan.loser is not None and not encrypted and self._worth_a_copy(plan.loser):
            copy = self._copy(draft.fid, plan.loser, writes)
            if refusal := self._raise_parents(draft.fid, copy.info, False, writes):
                return refusal
            writes.add(copy)
        if plan.info is not None:
            removes = plan.info.deleted and current is not None and current.info.type is FileType.FILE and not current.info.deleted
            history = draft.history if plan.history is None else plan.history
            writes.add(Judged(draft.fid, plan.info, plan.extents, draft.local_flags, history, removes))
        return None

    def _remark(self, draft: Draft, writes: _Writes) -> _Refusal | None:
        """Other flags for the committed record, whatever has become of its blocks; another version of it needs none of them."""
        current = self._current(draft.fid, draft.info.name, writes)
        if current is None or current.info.deleted or current.info.version != draft.info.version or current.extents != draft.extents:
            return _Refusal(Status.DROPPED, OLDER)
        if current.local_flags == draft.local_flags:
            return _Refusal(Status.DROPPED, ALREADY_THERE)
        writes.add(Judged(draft.fid, current.info, current.extents, draft.local_flags, HistoryRule.DROP))
        return None

    def _local(self, draft: Draft, current: _Current | None) -> _Plan | _Refusal:
        there = None if current is None or current.info.deleted else current
        if draft.condition is not UNCONDITIONAL and (None if there is None else there.info.version) != draft.condition:
            return _Refusal(Status.CONFLICT, CONDITION)
        if draft.info.deleted and there is None:
            return _Refusal(Status.DROPPED, ALREADY_THERE)
        base: Vector = draft.base or ()
        committed: Vector = () if current is None else current.info.version
        version = update(merge(committed, base), self._context.me, self._context.time_s)
        info = fileinfo.replace_version(draft.info, version, self._context.me)
        # Between the store's own nodes the last writer simply wins. What somebody else edited, unseen by this writer, is kept
        # aside: the merged vector makes every device replace it without a copy of its own.
        if there is None or covers(base, there.info.version) or there.info.modified_by in self._context.nodes:
            return _Plan(info, draft.extents)
        return _Plan(info, draft.extents, _Loser(there.info, there.extents, info))

    def _remote(self, draft: Draft, current: _Current | None) -> _Plan | _Refusal:
        info = draft.info
        if current is None:
            return _Plan(info, draft.extents)
        committed = current.info
        if is_lost(current.local_flags):
            return self._fetched(draft, committed)
        if current.local_flags & LocalFlag.MUST_FETCH:
            return _Plan(info, draft.extents)
        match compare(info.version, committed.version):
            case Ordering.GREATER:
                return _Plan(info, draft.extents)
            case Ordering.LESSER:
                return _Refusal(Status.DROPPED, OLDER)
            case Ordering.EQUAL:
                return self._equal(draft, current)
            case Ordering.CONCURRENT_GREATER | Ordering.CONCURRENT_LESSER:
                pass
        if info.deleted != committed.deleted and not current.local_flags and draft.fid not in self._context.encrypted:
            return self._outlived(draft, current)
        # A local change of a receive-only folder is known to nobody, so it wins against nobody.
        if current.local_flags & LocalFlag.RECEIVE_ONLY or fileinfo.wins(info, committed):
            if self._view.announced(draft.fid, committed):
                return _Plan(info, draft.extents)
            return _Plan(info, draft.extents, _Loser(committed, current.extents, info, current.local_flags))
        loser = _Loser(info, draft.extents, committed)
        if draft.fid in self._context.encrypted or not self._worth_a_copy(loser) or self._view.announced(draft.fid, info):
            return _Refusal(Status.DROPPED, LOSES)
        return _Plan(None, (), loser)

    def _fetched(self, draft: Draft, lost: FileInfo) -> _Plan | _Refusal:
        """In the place of lost content comes the same version, or one that is not older. The lost one makes no conflict copy, and is
        never deleted but by who knew it."""
        match compare(draft.info.version, lost.version):
            case Ordering.EQUAL:
                return _Plan(draft.info, draft.extents, history=HistoryRule.DROP)
            case Ordering.GREATER:
                return _Plan(draft.info, draft.extents)
            case Ordering.LESSER:
                return _Refusal(Status.DROPPED, OLDER)
            case Ordering.CONCURRENT_GREATER | Ordering.CONCURRENT_LESSER:
                return _Refusal(Status.DROPPED, LOSES) if draft.info.deleted else _Plan(draft.info, draft.extents)

    def _outlived(self, draft: Draft, current: _Current) -> _Plan:
        """A deletion and a change that did not know of each other: the change stays, under a vector above both. Syncthing 1 lets the change
        win whatever the times, Syncthing 2 the later of the two (bep-facts 7.3); without a new vector devices of both would differ until
        the next change. Syncthing 1 itself gives both one vector (docs/adr/0017)."""
        live, extents = (current.info, current.extents) if draft.info.deleted else (draft.info, draft.extents)
        version = update(merge(draft.info.version, current.info.version), self._context.me, self._context.time_s)
        return _Plan(fileinfo.replace_version(live, version, self._context.me), extents)

    def _equal(self, draft: Draft, current: _Current) -> _Plan | _Refusal:
        """Equal vectors: the same, a change of flags, or (two writers with one identity) a conflict that no device can see."""
        info, committed = draft.info, current.info
        if info.invalid != committed.invalid or draft.local_flags != current.local_flags:
            return _Plan(info, draft.extents)
        if _same_content(info, draft.extents, committed, current.extents) is not False:
            return _Refusal(Status.DROPPED, ALREADY_THERE)
        if draft.fid in self._context.encrypted:
            return _Refusal(Status.DROPPED, TOKENS_DIFFER)
        if info.deleted != committed.deleted:
            return self._outlived(draft, current)
        # Whoever has the losing content believes to be in sync: only a greater vector tells them, and then they make no copy.
        version = update(committed.version, self._context.me, self._context.time_s)
        if fileinfo.wins(info, committed):
            winner = fileinfo.replace_version(info, version, self._context.me)
            return _Plan(winner, draft.extents, _Loser(committed, current.extents, winner))
        winner = fileinfo.replace_version(committed, version, self._context.me)
        return _Plan(winner, current.extents, _Loser(info, draft.extents, winner))

    # ---- the tree around it -------------------------------------------------------------------------------------------

    def _tree(self, draft: Draft, plan: _Plan, info: FileInfo, current: _Current | None, writes: _Writes) -> _Refusal | bool:
        """Makes the tree around `info` fit. True when the item itself went to a conflict copy, so that nothing is left to write."""
        fid = draft.fid
        was_live = current is not None and not current.info.deleted
        was_directory = current is not None and current.info.type is FileType.DIRECTORY
        if info.deleted:
            if (was_directory or not was_live) and self._has_live_below(fid, info.name, writes):
                return _Refusal(Status.CONFLICT, NOT_EMPTY)
            return False
        crowded = info.type is not FileType.DIRECTORY and (was_directory or not was_live) and self._has_live_below(fid, info.name, writes)
        if crowded and draft.local:
            return _Refusal(Status.CONFLICT, NOT_EMPTY)
        if refusal := self._raise_parents(fid, info, draft.local, writes):
            return refusal
        if not crowded:
            return False
        directory = self._directory(fid, info.name, info.version, current)
        writes.add(self._copy(fid, _Loser(info, plan.extents, directory.info), writes))
        writes.add(directory)
        return True

    def _raise_parents(self, fid: int, info: FileInfo, local: bool, writes: _Writes) -> _Refusal | None:
        """Revives deleted parents; a parent that is a file makes way for a directory and goes on as a conflict copy."""
        above = [name for name in parents(info.name) if (fid, name) not in self._sound]
        for name in reversed(above):
            current = self._current(fid, name, writes)
            if current is not None and current.info.deleted:
                writes.add(self._directory(fid, name, (), current))
            elif current is not None and current.info.type is not FileType.DIRECTORY:
                if local:
                    return _Refusal(Status.CONFLICT, NO_DIRECTORY)
                writes.add(self._copy(fid, _Loser(current.info, current.extents, info), writes))
                writes.add(self._directory(fid, name, (), current))
        self._sound.update((fid, name) for name in above)
        return None

    def _directory(self, fid: int, name: str, seen: Vector, current: _Current | None) -> Judged:
        """A live directory that supersedes `current` and the version `seen`."""
        old = current.info if current is not None else None
        version = update(merge(old.version if old else (), seen), self._context.me, self._context.time_s)
        was_directory = old is not None and old.type is FileType.DIRECTORY
        info = fileinfo.new(
            name=name,
            type=FileType.DIRECTORY,
            version=version,
            modified_by=self._context.me,
            permissions=(old.permissions & 0o777 if old and was_directory else 0) or _NEW_DIRECTORY_PERMISSIONS,
            no_permissions=old.no_permissions if old and was_directory else False,
            modified_s=self._context.time_s,
        )
        return Judged(fid, info, ())

    # ---- conflict copies ----------------------------------------------------------------------------------------------

    def _worth_a_copy(self, loser: _Loser) -> bool:
        """Whether losing it would lose content: a live file that is no copy itself, and that the winner was not made of."""
        info, other = loser.info, loser.other
        if info.type is not FileType.FILE or info.deleted or info.invalid or fileinfo.is_conflict_copy(info.name):
            return False
        content = _content_hash(info)
        if content and not other.deleted and other.type is FileType.FILE and content == _content_hash(other):
            return False
        made_of = bep_pb2.FileInfo.FromString(other.wire).previous_blocks_hash
        return not (made_of and made_of == content and not covers(other.version, info.version))

    def _copy(self, fid: int, loser: _Loser, writes: _Writes) -> Judged:
        """The loser as a new file of ours under a free conflict name; its blocks stay where they are."""
        time_s = self._context.time_s
        while self._current(fid, name := fileinfo.conflict_name(loser.info.name, loser.other.modified_by, time_s * 10**9), writes):
            time_s += 1
        message = bep_pb2.FileInfo.FromString(loser.info.wire)
        message.name = name
        message.modified_by = self._context.me
        message.ClearField("previous_blocks_hash")
        message.version.Clear()
        message.version.counters.add(id=self._context.me, value=self._context.time_s)
        # Not fileinfo.replace: it demands block hashes, which a committed record has only in its pack's list.
        return Judged(fid, fileinfo.from_wire(message, 0, loser.info.block_hashes), loser.extents, loser.local_flags)


def _same_content(a: FileInfo, a_extents: Extents, b: FileInfo, b_extents: Extents) -> bool | None:
    """Whether both hold the same data; None when that cannot be known. A committed record's block hashes need not be loaded."""
    if a.type is not b.type or a.deleted != b.deleted:
        return False
    if a.type is FileType.SYMLINK:
        return a.symlink_target == b.symlink_target
    if a.type is FileType.DIRECTORY or a.deleted:
        return True
    if a.size != b.size:
        return False
    if a_extents == b_extents:
        return True
    mine, theirs = _content_hash(a), _content_hash(b)
    return mine == theirs if mine and theirs else None


def _content_hash(info: FileInfo) -> bytes:
    """The file's `blocks_hash` as announced, else of its blocks, b"" when unknown."""
    announced: bytes = bep_pb2.FileInfo.FromString(info.wire).blocks_hash
    return announced or (fileinfo.blocks_hash(info.block_hashes) if info.block_hashes else b"")
