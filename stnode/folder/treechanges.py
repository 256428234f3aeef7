"""Changes of the tree by metadata alone: directories, links, deletions, renames, times and modes, override and revert.

Everything is drafts for the committer, which judges them on the newest state: what is read here only says what to ask for.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import replace
from functools import partial
from sqlite3 import Connection
from typing import Final

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Conflict, Invalid, NotFound, Unavailable
from stnode.folder import index
from stnode.folder.paths import parents
from stnode.folder.writer import Writer
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.vector import Vector, merge, update
from stnode.repo import state
from stnode.repo.addresses import packs_of
from stnode.repo.records import UNCONDITIONAL, Condition, Draft, DraftSet, HistoryRule, LocalFlag, Outcome, Record, SetKind, Status
from stnode.repo.settings import FolderSettings
from stnode.repo.store import Store

_BATCH: Final = 1000
_UPLOAD_TRIES: Final = 3
_DIRECTORY_PERMISSIONS: Final = 0o755


class _Everything(Container[str]):
    def __contains__(self, name: object) -> bool:
        return True


_ALL: Final = _Everything()


class TreeChanges:
    """For one folder. `me` is the node's short ID, `local_flags` what local changes are flagged with."""

    def __init__(
        self, env: Env, db: Database, store: Store, writer: Writer, fid: int, settings: FolderSettings, me: int, local_flags: int
    ) -> None:
        self._env, self._db, self._store, self._writer = env, db, store, writer
        self._fid, self._settings, self._me, self._local_flags = fid, settings, me, local_flags

    # --- committing

    async def commit(self, drafts: Iterable[Draft]) -> None:
        """Commits each draft by itself; Conflict names the first that was refused, Unavailable one whose blocks cannot be kept."""
        await self.commit_sets([DraftSet(SetKind.SINGLE, (draft,)) for draft in drafts])

    async def commit_sets(self, sets: Sequence[DraftSet], *, may_fail: Container[str] = (), refused: dict[str, str] | None = None) -> int:
        """Commits sets, judged in this order; how many were. Blocks that may not be named any more are uploaded again. A set whose first
        name is in `may_fail` is only not counted when it is refused; with `refused` none fails, first name and reason are put there."""
        wanted = list(sets)
        committed = 0
        for _ in range(_UPLOAD_TRIES):
            if not wanted:
                return committed
            outcomes = await self._store.submit(wanted)
            committed += sum(outcome.status is Status.COMMITTED for outcome in outcomes)
            again: list[DraftSet] = []
            for each, outcome in zip(wanted, outcomes, strict=True):
                if outcome.status is Status.RETRY_UPLOAD:
                    again.append(DraftSet(each.kind, tuple([await self._writer.copied(draft) for draft in each.drafts])))
                elif outcome.status is Status.CONFLICT and refused is not None:
                    refused[each.drafts[0].info.name] = outcome.reason
                elif outcome.status is Status.CONFLICT and each.drafts[0].info.name not in may_fail:
                    raise _refused(each, outcome)
            wanted = again
        if wanted:
            raise Unavailable(f"{wanted[0].drafts[0].info.name} could not be stored: its packs were given up each time", hint="try again")
        return committed

    async def _commit_below(self, above: Sequence[DraftSet], drafts: Iterable[Draft]) -> None:
        """Drafts with the directories above them, which may be there by now, in one commit."""
        sets = [*above, *(DraftSet(SetKind.SINGLE, (draft,)) for draft in drafts)]
        await self.commit_sets(sets, may_fail={each.drafts[0].info.name for each in above})

    async def missing_parents(self, names: Iterable[str]) -> list[DraftSet]:
        """Sets that make the directories above these names that do not exist. A name above that is a file is the committer's to refuse."""
        above = sorted({parent for name in names for parent in parents(name)})
        known = await self.records(above) if above else {}
        missing = [name for name in above if name not in known or known[name].info.deleted]
        return [DraftSet(SetKind.SINGLE, (self._directory(name, known.get(name), None, None, None),)) for name in missing]

    # --- changes

    async def mkdir(self, name: str, make_parents: bool, modified_ns: int | None, permissions: int | None) -> None:
        """See `FolderView.mkdir`."""
        old = (await self.records([name])).get(name)
        if old is not None and not old.info.deleted:
            if make_parents and old.info.type is FileType.DIRECTORY:
                return
            raise Conflict(f"{name} exists already")
        above = await self.missing_parents([name])
        if above and not make_parents:
            raise NotFound(f"{above[0].drafts[0].info.name} does not exist", hint="make the parent directories too")
        await self._commit_below(above, [self._directory(name, old, modified_ns, permissions, None)])

    async def symlink(self, name: str, target: str, modified_ns: int | None, condition: Condition) -> None:
        """See `FolderView.symlink`."""
        old = (await self.records([name])).get(name)
        await self._commit_below(await self.missing_parents([name]), [self.symlink_draft(name, target, old, modified_ns, condition)])

    def symlink_draft(self, name: str, target: str, old: Record | None, modified_ns: int | None, condition: Condition) -> Draft:
        """A link in place of `old`."""
        if not target or "\0" in target:
            raise Invalid(f"{name}: a link cannot have the target {target!r}")
        seconds, nanoseconds = self._time(modified_ns)
        info = fileinfo.new(
            name=name,
            type=FileType.SYMLINK,
            version=_version(old),
            modified_by=self._me,
            modified_s=seconds,
            modified_ns=nanoseconds,
            symlink_target=target.encode(),
        )
        return self._draft(info, old, condition=condition)

    def directory_draft(self, name: str, old: Record | None, modified_ns: int | None, permissions: int | None) -> Draft | None:
        """A directory in place of `old`; None if it is there and nothing of it changes."""
        live = old is not None and not old.info.deleted
        if old is not None and live and old.info.type is FileType.DIRECTORY:
            if permissions is None or old.info.no_permissions or old.info.permissions & 0o777 == permissions & 0o777:
                return None
            return self._draft(fileinfo.replace(old.info, permissions=permissions & 0o777), old)
        if old is not None and live:
            raise Conflict(f"{name} exists already and is no directory")
        return self._directory(name, old, modified_ns, permissions, UNCONDITIONAL)

    async def remove(self, name: str, recursive: bool, condition: Condition) -> int:
        """See `FolderView.remove`."""
        record = await self._live(name)
        if record.info.type is FileType.DIRECTORY and recursive and condition is UNCONDITIONAL:
            return await self._remove_tree(record)
        await self.commit([self._deletion(await self._loaded(record), record, condition)])
        return 1

    async def set_meta(self, name: str, modified_ns: int | None, permissions: int | None, condition: Condition) -> None:
        """See `FolderView.set_meta`."""
        record = await self._live(name)
        info = await self._loaded(record)
        if modified_ns is not None:
            info = fileinfo.replace(info, modified_s=modified_ns // 1_000_000_000, modified_ns=modified_ns % 1_000_000_000)
        if permissions is not None and info.type is not FileType.SYMLINK and not self._settings.ignore_permissions:
            info = fileinfo.replace(info, permissions=permissions & 0o777, no_permissions=False)
        previous = await self._writer.previous_hash(record)
        info = fileinfo.replace(info, previous_blocks_hash=previous)
        await self.commit([self._draft(info, record, record, condition, HistoryRule.DROP)])

    async def rename(self, source: str, target: str, replace: bool) -> None:
        """See `FolderView.rename`."""
        if target == source:
            return
        if target.startswith(source + "/"):
            raise Invalid(f"{source} cannot be moved into itself")
        record = await self._live(source)
        there = (await self.records([target])).get(target)
        if there is not None and not there.info.deleted and (not replace or FileType.DIRECTORY in (there.info.type, record.info.type)):
            raise Conflict(f"{target} exists already")
        above = await self.missing_parents([target])
        allowed = {each.drafts[0].info.name for each in above}
        if record.info.type is not FileType.DIRECTORY:
            await self.commit_sets([*above, *await self._moves([record], source, target)], may_fail=allowed)
            return
        # A small tree goes in one commit. Old directories at the end, deepest first: one into which somebody put something stays.
        sets = [*above, DraftSet(SetKind.SINGLE, (self._moved_directory(record, target, there),))]
        directories, after = [record], ""
        while window := await self._below(source, after):
            after = window[-1].name
            inner = [each for each in window if each.info.type is FileType.DIRECTORY]
            olds = await self.records([target + each.name[len(source) :] for each in inner])
            for each in inner:
                name = target + each.name[len(source) :]
                sets.append(DraftSet(SetKind.SINGLE, (self._moved_directory(each, name, olds.get(name)),)))
            sets += await self._moves([each for each in window if each.info.type is not FileType.DIRECTORY], source, target)
            directories += inner
            if len(window) == _BATCH:
                await self.commit_sets(sets, may_fail=allowed)
                sets = []
        sets += [DraftSet(SetKind.SINGLE, (self._deletion(each.info, each),)) for each in reversed(directories)]
        allowed |= {each.name for each in directories}
        for start in range(0, len(sets), _BATCH):
            await self.commit_sets(sets[start : start + _BATCH], may_fail=allowed)

    # --- folder types

    async def override(self) -> int:
        """Every item in which somebody has a newer version gets a vector beyond it, with our content or as deleted (bep-facts 12.4)."""
        count, after = 0, ""
        while True:
            names = await self._db.run(partial(_held, fid=self._fid, after=after))
            if not names:
                return count
            after = max(names)
            wanted = await self._db.run(partial(index.needed_info, fid=self._fid, names=names))
            records = await self.records(names)
            drafts: list[Draft] = []
            for name, theirs in wanted.items():
                record = records.get(name)
                if record is None or record.info.deleted:
                    drafts.append(self._foreign_deletion(theirs, record))
                else:
                    info = await self._loaded(record)
                    base = merge(record.info.version, theirs.version)
                    drafts.append(Draft(self._fid, info, record.extents, local=True, base=base, history=HistoryRule.DROP))
            count += await self.commit_sets([DraftSet(SetKind.SINGLE, (draft,)) for draft in drafts], may_fail=_ALL)

    async def reject(self, deletions: Sequence[FileInfo]) -> int:
        """What is there of these deleted items gets a vector beyond the deletions, with its content as it is; how many items."""
        count = 0
        for start in range(0, len(deletions), _BATCH):
            window = {info.name: info for info in deletions[start : start + _BATCH]}
            there = {name: record for name, record in (await self.records(list(window))).items() if not record.info.deleted}
            await self.fetch_lists({pack for record in there.values() for pack in packs_of(record.extents)})
            drafts = [
                replace(
                    self._draft(await self._loaded(record), record, record, history=HistoryRule.DROP),
                    base=merge(record.info.version, window[name].version),
                )
                for name, record in sorted(there.items())
            ]
            count += await self.commit_sets([DraftSet(SetKind.SINGLE, (draft,)) for draft in drafts], may_fail=_ALL)
        return count

    async def revert(self) -> int:
        """Flagged records become what the devices have: the version of the history if that is it, a deletion if nobody has the item, else
        needed again, so that it is pulled."""
        count, after = 0, 0
        while True:
            records = await self._db.run(partial(_flagged, fid=self._fid, after_sequence=after))
            if not records:
                return count
            after = records[-1].sequence
            theirs = await self._db.run(partial(index.best_versions, fid=self._fid, names=[each.name for each in records]))
            sets: list[DraftSet] = []
            for record in sorted(records, key=lambda each: each.name, reverse=True):
                sets += await self._reverted(record, theirs.get(record.name))
            await self.commit_sets(sets, may_fail=_ALL)
            count += len(records)

    async def _reverted(self, record: Record, theirs: Vector | None) -> list[DraftSet]:
        info = await self._loaded(record)
        if theirs is None:
            gone = info if info.deleted else self._as_deleted(info, record.info.version)
            return [DraftSet(SetKind.SINGLE, (Draft(self._fid, gone, (), history=HistoryRule.DROP),))]
        given_up = Draft(self._fid, info, record.extents, local_flags=record.local_flags | LocalFlag.MUST_FETCH, history=HistoryRule.DROP)
        sets = [DraftSet(SetKind.SINGLE, (given_up,))]
        olds = await self._db.run(lambda conn: state.old_versions(conn, self._fid, record.name))
        for old in olds:
            if old.record.info.version == theirs and not old.record.local_flags:
                kept = await self._loaded(old.record)
                sets.append(DraftSet(SetKind.SINGLE, (Draft(self._fid, kept, old.record.extents, history=HistoryRule.DROP),)))
                break
        return sets

    # --- drafts

    async def fetch_lists(self, packs: Collection[int]) -> None:
        """Gets the lists of many packs at once, before drafts are made of records in them."""
        await self._store.packlists.ensure(set(packs))

    async def deletion(self, record: Record) -> Draft:
        """The item as deleted."""
        return self._deletion(await self._loaded(record), record)

    async def again(self, then: Record, now: Record | None) -> Draft:
        """An earlier version as a change of what is there now, over the blocks that it had."""
        previous = await self._writer.previous_hash(None if now is None or now.info.deleted else now)
        info = fileinfo.replace(await self._loaded(then), version=_version(now), previous_blocks_hash=previous)
        return self._draft(info, now, then)

    def _draft(
        self,
        info: FileInfo,
        old: Record | None,
        content: Record | None = None,
        condition: Condition = UNCONDITIONAL,
        history: HistoryRule = HistoryRule.KEEP,
    ) -> Draft:
        """A local change on `old` with the blocks of `content`."""
        extents = () if content is None else content.extents
        base = None if old is None else old.info.version
        return Draft(self._fid, info, extents, local=True, base=base, condition=condition, local_flags=self._local_flags, history=history)

    def _directory(self, name: str, old: Record | None, modified_ns: int | None, permissions: int | None, condition: Condition) -> Draft:
        seconds, nanoseconds = self._time(modified_ns)
        info = fileinfo.new(
            name=name,
            type=FileType.DIRECTORY,
            version=_version(old),
            modified_by=self._me,
            permissions=(_DIRECTORY_PERMISSIONS if permissions is None else permissions) & 0o777,
            no_permissions=self._settings.ignore_permissions,
            modified_s=seconds,
            modified_ns=nanoseconds,
        )
        return self._draft(info, old, condition=condition)

    def _deletion(self, info: FileInfo, record: Record, condition: Condition = UNCONDITIONAL) -> Draft:
        return self._draft(self._as_deleted(info, record.info.version), record, condition=condition)

    def _as_deleted(self, info: FileInfo, version: Vector) -> FileInfo:
        return fileinfo.deletion(info, version=version, modified_by=self._me, modified_s=self._now_s())

    def _foreign_deletion(self, theirs: FileInfo, record: Record | None) -> Draft:
        """A deletion of what we never had: not a local change for the committer, which deletes only what is there."""
        seen = merge(theirs.version, _version(record))
        return Draft(self._fid, self._as_deleted(theirs, update(seen, self._me, self._now_s())), ())

    def _moved_directory(self, record: Record, name: str, old: Record | None) -> Draft:
        info = fileinfo.replace(record.info, name=name, version=_version(old))
        return self._draft(info, old)

    async def _moves(self, records: Sequence[Record], source: str, target: str) -> list[DraftSet]:
        """New name with the same content, old name deleted: one set each."""
        olds = await self.records([target + record.name[len(source) :] for record in records])
        await self._store.packlists.ensure({pack for record in records for pack in packs_of(record.extents)})
        sets: list[DraftSet] = []
        for record in records:
            name = target + record.name[len(source) :]
            old = olds.get(name)
            info = await self._loaded(record)
            previous = await self._writer.previous_hash(old)
            moved = fileinfo.replace(info, name=name, version=_version(old), previous_blocks_hash=previous)
            sets.append(DraftSet(SetKind.NEW_FIRST, (self._draft(moved, old, record), self._deletion(info, record))))
        return sets

    async def _remove_tree(self, top: Record) -> int:
        """A directory with all below it: a small tree in one commit, else files in batches and then directories, deepest first."""
        count, after = 0, ""
        directories, files = [top], list[Record]()
        while window := await self._below(top.name, after):
            after = window[-1].name
            directories += [record for record in window if record.info.type is FileType.DIRECTORY]
            files += [record for record in window if record.info.type is not FileType.DIRECTORY]
            if len(window) == _BATCH:
                count += await self._remove(files)
                files = []
        rest = [*files, *reversed(directories)]
        for start in range(0, len(rest), _BATCH):
            count += await self._remove(rest[start : start + _BATCH])
        return count

    async def _remove(self, records: Sequence[Record]) -> int:
        await self._store.packlists.ensure({pack for record in records for pack in packs_of(record.extents)})
        drafts = [self._deletion(await self._loaded(record), record) for record in records]
        return await self.commit_sets([DraftSet(SetKind.SINGLE, (draft,)) for draft in drafts])

    # --- reading

    async def _loaded(self, record: Record) -> FileInfo:
        is_file = record.info.type is FileType.FILE and not record.info.deleted
        return await self._writer.loaded(record) if is_file else record.info

    async def records(self, names: Sequence[str]) -> dict[str, Record]:
        """Current records of the names, deleted ones too."""
        return await self._db.run(lambda conn: state.get_records(conn, self._fid, names))

    async def _live(self, name: str) -> Record:
        record = (await self.records([name])).get(name)
        if record is None or record.info.deleted or record.info.invalid:
            raise NotFound(f"{name} does not exist in folder {self._settings.folder_id!r}")
        return record

    async def _below(self, name: str, after: str) -> list[Record]:
        return await self._db.run(lambda conn: state.walk(conn, self._fid, name + "/", after, _BATCH))

    def _time(self, modified_ns: int | None) -> tuple[int, int]:
        return divmod(self._env.clock.now_ns() if modified_ns is None else modified_ns, 1_000_000_000)

    def _now_s(self) -> int:
        return self._env.clock.now_ns() // 1_000_000_000


def _version(record: Record | None) -> Vector:
    return () if record is None else record.info.version


def _refused(wanted: DraftSet, outcome: Outcome) -> Conflict:
    return Conflict(f"{wanted.drafts[0].info.name}: {outcome.reason}", hint="look at what is there now, then try again")


def _held(conn: Connection, fid: int, after: str) -> list[str]:
    """Names after `after` in which a send-only folder differs from others, a window of them."""
    found = [need.name for deletes in (False, True) for need in index.next_needed(conn, fid, after, _BATCH, deletes=deletes, held=True)]
    return sorted(found)[:_BATCH]


def _flagged(conn: Connection, fid: int, after_sequence: int) -> list[Record]:
    """Records flagged as receive-only changes, a window of them by sequence."""
    rows = conn.execute(
        "SELECT name FROM records WHERE fid = ? AND seq > ? AND flags & ? AND NOT flags & ? ORDER BY seq LIMIT ?",
        (fid, after_sequence, int(LocalFlag.RECEIVE_ONLY), int(LocalFlag.MUST_FETCH), _BATCH),
    )
    records = state.get_records(conn, fid, [name for (name,) in rows])
    return sorted(records.values(), key=lambda record: record.sequence)
