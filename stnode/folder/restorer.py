"""Brings items of a folder back as they were at a store time: new versions by metadata alone, over the blocks that the history keeps.

What was there then and is not, or is another now, is written anew; what came since is left alone, unless `exact` asks for its deletion.
Deletions go first, so that a file can take the place of a directory, then directories before what is in them. Every change is a local one,
made on the version that was read: what somebody changes meanwhile is kept as a conflict copy. Running it again goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

from stnode.db import Database
from stnode.errors import Invalid, NotFound, StnodeError, Unavailable
from stnode.folder.paths import parents
from stnode.folder.treechanges import TreeChanges
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileType
from stnode.repo import past, state
from stnode.repo.addresses import packs_of
from stnode.repo.records import DraftSet, Record, SetKind

_BATCH: Final = 500

Action = Literal["create", "change", "delete"]


@dataclass(frozen=True, slots=True)
class Restored:
    """How far it is: items written by type, deleted, found to be as they were, and refused; `bytes` are those of the files written.
    `changes` are what this step did or, tried only, would do, and `refused` its names that could not be done, with the reasons."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    deleted: int = 0
    unchanged: int = 0
    failed: int = 0
    bytes: int = 0
    changes: tuple[tuple[Action, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Change:
    """One item to be made what it was (`then`; None: to be deleted); `now` is its record, None if there is none."""

    name: str
    then: Record | None
    now: Record | None

    @property
    def action(self) -> Action:
        if self.then is None:
            return "delete"
        return "create" if self.now is None or self.now.info.deleted else "change"


class Restorer:
    """One restoring of the item `name` ("": the whole folder) and what is below it, to the time `at_us`."""

    def __init__(self, db: Database, changes: TreeChanges, fid: int, name: str, at_us: int) -> None:
        self._db, self._changes, self._fid, self._name, self._at_us = db, changes, fid, name, at_us
        self._prefix = name + "/" if name else ""
        self._total = Restored()

    async def steps(self, *, exact: bool, dry_run: bool) -> AsyncIterator[Restored]:
        """Does it, batch by batch; every step has been committed. The last step counts everything. Raises NotFound where nothing was there
        then, Invalid where `exact` would empty a folder that did not exist then, Unavailable when the store cannot take it now."""
        await self._check(exact)
        if exact:
            async for batch in self._surplus():
                yield await self._step(batch, dry_run)
        async for batch in self._differing():
            yield await self._step(batch, dry_run)
        yield self._total

    async def _check(self, exact: bool) -> None:
        began_us = await self._db.run(partial(past.began_us, fid=self._fid))
        if began_us is None or self._at_us < began_us:
            if exact:
                raise Invalid("the folder had no content yet at that time: with --exact everything in it would be deleted")
            raise NotFound("the folder had no content yet at that time", hint="`stnode history` shows which versions there are")
        if not self._name or await self._then([self._name]):
            return
        if not await self._db.run(partial(past.exists_below, fid=self._fid, directory=self._name, at_us=self._at_us)):
            raise NotFound(f"{self._name} was not there at that time", hint="`stnode history` shows which versions there are")

    # --- what differs

    async def _surplus(self) -> AsyncIterator[list[_Change]]:
        """What is there now and was not then: files first, then directories, deepest first."""
        directories: list[Record] = []
        after = ""
        while window := await self._db.run(
            lambda conn: state.walk(conn, self._fid, self._prefix, after, _BATCH)  # noqa: B023 - run before the loop goes on
        ):
            after = window[-1].name
            then = await self._then([record.name for record in window])
            gone = [record for record in window if record.name not in then and not record.info.invalid]
            directories += [record for record in gone if record.info.type is FileType.DIRECTORY]
            if files := [_Change(record.name, None, record) for record in gone if record.info.type is not FileType.DIRECTORY]:
                yield files
        rest = [_Change(record.name, None, record) for record in reversed(directories)]
        for start in range(0, len(rest), _BATCH):
            yield rest[start : start + _BATCH]

    async def _differing(self) -> AsyncIterator[list[_Change]]:
        """What was there then and is not the same now, parents before what is in them, those above the item included."""
        if self._name:
            above = await self._then(parents(self._name))
            found = await self._changed(above, only_missing=True) + await self._changed(await self._then([self._name]))
            if found:
                yield found
        after = ""
        while window := await self._db.run(
            lambda conn: past.walk_at(conn, self._fid, self._prefix, after, _BATCH, self._at_us)  # noqa: B023 - as above
        ):
            after = window[-1].name
            yield await self._changed({record.name: record for record in window if not record.info.invalid})

    async def _then(self, names: Sequence[str]) -> dict[str, Record]:
        found = await self._db.run(lambda conn: past.records_at(conn, self._fid, names, self._at_us))
        return {name: record for name, record in found.items() if not record.info.invalid}

    async def _changed(self, then: dict[str, Record], *, only_missing: bool = False) -> list[_Change]:
        now = await self._changes.records(list(then))
        found: list[_Change] = []
        for name in sorted(then):
            change = _Change(name, then[name], now.get(name))
            if change.action == "create" or (not only_missing and not _same(then[name], now[name])):
                found.append(change)
            elif not only_missing:
                self._total = replace(self._total, unchanged=self._total.unchanged + 1)
        return found

    # --- doing it

    async def _step(self, batch: Sequence[_Change], dry_run: bool) -> Restored:
        refused: dict[str, str] = {} if dry_run else await self._commit(batch)
        done = [change for change in batch if change.name not in refused]
        written = [change.then.info for change in done if change.then is not None]
        files = [info for info in written if info.type is FileType.FILE]
        directories = sum(info.type is FileType.DIRECTORY for info in written)
        total = self._total
        self._total = replace(
            total,
            files=total.files + len(files),
            directories=total.directories + directories,
            symlinks=total.symlinks + len(written) - len(files) - directories,
            deleted=total.deleted + len(done) - len(written),
            failed=total.failed + len(refused),
            bytes=total.bytes + sum(info.size for info in files),
        )
        return replace(self._total, changes=tuple((change.action, change.name) for change in done), refused=tuple(refused.items()))

    async def _commit(self, batch: Sequence[_Change]) -> dict[str, str]:
        """Commits the changes; names that were refused, with the reasons."""
        refused: dict[str, str] = {}
        sets: list[DraftSet] = []
        await self._changes.fetch_lists(
            {pack for change in batch for each in (change.then, change.now) if each for pack in packs_of(each.extents)}
        )
        for change in batch:
            try:
                sets.append(await self._wanted(change))
            except Unavailable:
                raise
            except StnodeError as exc:  # its content is damaged: the others can be had
                refused[change.name] = exc.message
        above = await self._changes.missing_parents([change.name for change in batch if change.then is not None])
        wanted = {change.name for change in batch}
        first = [each for each in above if each.drafts[0].info.name not in wanted]
        await self._changes.commit_sets(sorted([*first, *sets], key=_order), refused=refused)
        return {name: reason for name, reason in refused.items() if name in wanted}

    async def _wanted(self, change: _Change) -> DraftSet:
        if change.then is None:
            assert change.now is not None
            draft = await self._changes.deletion(change.now)
        else:
            draft = await self._changes.again(change.then, change.now)
        return DraftSet(SetKind.SINGLE, (draft,))


def _order(each: DraftSet) -> tuple[bool, str]:
    """Deletions in the order in which they came (sorting is stable), then parents before what is in them."""
    info = each.drafts[0].info
    return (not info.deleted, "" if info.deleted else info.name)


def _same(then: Record, now: Record) -> bool:
    """Whether nothing has to be written to make `now` what it was."""
    if then.sequence == now.sequence:
        return True
    return fileinfo.equivalent(then.info, now.info) and (then.info.type is not FileType.FILE or then.extents == now.extents)
