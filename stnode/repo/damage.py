"""Damage in the store while a node runs: packs that are missing or not what they were (design 6, Serve; R15).

Whoever cannot read a pack names it here (`suspect`). It is looked at with the journal followed to its head, for before that a pack may
only have been repacked, and every block of it is read from the store itself, twice where it does not verify. What is damaged then:

    pack whole ------------------------------> what was cached of it is dropped
    pack missing or damaged -> one commit:     marked lost; its readable blocks, copied to a new pack, are relocated
                            -> then records:   those with lost blocks are marked MUST_FETCH under new numbers: peers see them invalid,
                                               never deleted, and the folder pulls the version again from whoever has it
    lost pack there again ---> one commit:     marked found, and the records that need nothing else lose their mark

The state alone says which records these are (`state_damage`), so a crash in between, or another node, goes on where this ended.
A store that does not answer, or refuses, is no damage; nor is an archived object (`Archived`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from sqlite3 import Connection
from typing import Final

from stnode.clock import Env, Tasks
from stnode.db import Database
from stnode.errors import Conflict, Internal, NotFound, Refused, StnodeError, Unavailable
from stnode.objectstore.base import ObjectStore
from stnode.repo import state, state_damage
from stnode.repo.codec import Body, Relocation
from stnode.repo.follower import CheckStore
from stnode.repo.journal import Journal
from stnode.repo.packer import Packer
from stnode.repo.packlist import PackLists
from stnode.repo.packstate import PackState, inspect, read_verified
from stnode.repo.proposal import PackTable
from stnode.repo.records import Applied, Draft, DraftSet, Extent, HistoryRule, LocalFlag, Record, SetKind
from stnode.repo.state import Pack
from stnode.telemetry import get_logger

RETRY_S: Final = 30.0
LOOK_EVERY_S: Final = 3600.0
"""How often lost packs are asked for again: one HEAD each."""
FIRST_LOOK_S: Final = 60.0
_MARKS: Final = 5000
_NAMED: Final = 20

log = get_logger(__name__)


class Damage:
    """One task, from `start` to `close`. `trouble` is why something cannot be looked at or dealt with now; `lost` and `found` count packs
    that this process has marked so. `forget` drops what is cached of a pack, `check_store` raises when the bucket is another one."""

    def __init__(
        self,
        objects: ObjectStore,
        db: Database,
        env: Env,
        journal: Journal,
        packer: Packer,
        packlists: PackLists,
        forget: Callable[[int], None],
        check_store: CheckStore,
    ) -> None:
        self.trouble: StnodeError | None = None
        self.lost = 0
        self.found = 0
        self._objects = objects
        self._db = db
        self._env = env
        self._journal = journal
        self._packer = packer
        self._packlists = packlists
        self._forget = forget
        self._check_store = check_store
        self._suspects: dict[int, None] = {}
        self._marks_due = True
        self._look_s = env.clock.monotonic() + FIRST_LOOK_S
        self._seen: dict[int, str] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._closed = False
        self._tasks = Tasks(env, self._crashed)

    def start(self) -> None:
        """Runs until `close`."""
        self._wake.set()
        self._tasks.spawn(self._run(), "damage")

    async def close(self) -> None:
        """Stops at once; what was begun is found again by the state."""
        self._closed = True
        await self._tasks.close()
        self._tell(Unavailable("the store is closed"))

    def suspect(self, pack: int) -> None:
        """A pack (number or handle) could not be read as it should be; returns at once."""
        number = pack if pack > 0 else self._packer.resolve(pack)
        if number:
            self._suspects[number] = None
            self._wake.set()

    async def settle(self, packs: Iterable[int] = (), *, look_again: bool = False) -> None:
        """Returns when these packs, and all others that were named so far, have been looked at and what hurts is marked; with `look_again` the
        lost ones too. Raises what kept it from that."""
        if self._closed:
            raise Unavailable("the store is closed")
        self._suspects.update(dict.fromkeys(packs))
        self._marks_due = True
        if look_again:
            self._look_s = 0.0
            self._seen.clear()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wake.set()
        await future

    def applied(self, applied: Applied) -> None:
        """Hears of every commit."""
        if applied.packs_changed or applied.restored:
            self._marks_due = True
            self._wake.set()

    def _crashed(self, name: str, exc: Exception) -> None:
        log.error("damage is not dealt with any more, by a bug", task=name, exc_info=exc)
        self.trouble = Internal(f"a bug has ended this until the node is started again: {exc!r}")
        self._closed = True
        self._tell(self.trouble)

    def _tell(self, error: StnodeError | None) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_exception(error) if error is not None else future.set_result(None)

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(max(0.0, self._look_s - self._env.clock.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._step()
                self.trouble = None
                if not self._suspects and not self._marks_due:
                    self._tell(None)
            except Internal:
                raise
            except StnodeError as exc:
                if self.trouble is None:
                    log.warning("damage cannot be looked at now", kind=exc.kind, error=exc.message)
                self.trouble = exc
                self._tell(exc)
                await self._env.clock.sleep(RETRY_S)
                self._wake.set()

    async def _step(self) -> None:
        while self._suspects:
            number = next(iter(self._suspects))
            try:
                await self._examine(number)
            except Refused as exc:  # Archived too: the user must act, and nothing is known to be lost
                log.warning("a pack cannot be read", pack=number, error=exc.message, hint=exc.hint)
            self._suspects.pop(number, None)
        if self._env.clock.monotonic() >= self._look_s:
            await self._look_again()
            self._look_s = self._env.clock.monotonic() + LOOK_EVERY_S
        if self._marks_due:
            self._marks_due = False
            try:
                await self._mark()
            except BaseException:
                self._marks_due = True
                raise

    # --- packs

    async def _pack(self, number: int) -> Pack | None:
        return (await self._db.run(lambda conn: state.packs(conn, [number]))).get(number)

    async def _examine(self, number: int) -> None:
        """Looks at a pack that somebody could not read, and marks it lost if that is so."""
        await self._journal.follow_to_head()
        pack = await self._pack(number)
        if pack is None or pack.condemned:
            return
        if pack.lost:
            self._marks_due = True
            return
        key = pack.key
        found = await inspect(self._objects, self._env, key, pack, await self._packlists.known(number))
        self._forget(number)
        if not found.fault:
            log.info("a pack that could not be read is whole", pack=key)
            return
        await self._check_store()
        saved = await self._save(pack, found)
        handles = frozenset({saved[0]}) if saved else frozenset[int]()
        try:
            await self._journal.submit_entries(partial(_lost, seen=pack, saved=saved), handles)
        except Conflict:
            return  # another node was sooner
        self.lost += 1
        self._marks_due = True
        log.error(
            "a pack is damaged",
            pack=key,
            fault=found.fault,
            blocks=pack.blocks,
            readable=len(found.good),
            hint="what it held is pulled again from devices that have it; `stnode status` names what nobody has",
        )

    async def _save(self, pack: Pack, found: PackState) -> tuple[int, list[Extent]] | None:
        """Copies what can still be read and has not moved yet to a new pack: its handle, and (place, place there, count) of the runs."""
        good = found.good
        if not good or found.blocks is None:
            return None
        moved = await self._db.run(lambda conn: state.resolve(conn, pack.number, 0, pack.blocks))
        here = {place for to, first, count in moved if to == pack.number for place in range(first, first + count)}
        key, size = pack.key, pack.size_bytes
        made = self._packer.begin(pack.fid, stream=True, hash_bytes=found.blocks.hash_bytes)
        runs: list[Extent] = []
        try:
            async for first, views in read_verified(self._objects, self._env, key, found.blocks, size, again=False):
                for place, view in enumerate(views, first):
                    if view is not None and place in here:
                        last = runs[-1] if runs else (-1, 0, 0)
                        if last[0] + last[2] == place and runs:
                            runs[-1] = (last[0], last[1], last[2] + 1)
                        else:
                            runs.append((place, len(made), 1))
                        made.add((0, place), view, found.blocks.hashes_of(place))
        except BaseException:
            self._packer.discard(made)
            raise
        if not runs:
            self._packer.discard(made)
            return None
        return (await self._packer.seal(made)).handle, runs

    async def _look_again(self) -> None:
        """Whether lost packs are there again: a replica that has caught up, a pack put back from a backup."""
        for pack in await self._db.run(state_damage.lost_packs):
            key = pack.key
            try:
                meta = await self._objects.head(key)
            except (NotFound, Refused):
                continue
            seen = f"{meta.etag} {meta.modified_ns}"
            if meta.size_bytes != pack.size_bytes or self._seen.get(pack.number) == seen:
                continue
            found = await inspect(self._objects, self._env, key, pack, None)
            self._forget(pack.number)
            self._seen[pack.number] = seen
            if found.fault:
                continue
            try:
                await self._journal.submit_entries(partial(_found, seen=pack))
            except Conflict:
                continue
            self.found += 1
            self._marks_due = True
            log.info("a lost pack is there again", pack=key)

    # --- records

    async def _mark(self) -> None:
        """Gives the records the marks that the state's packs ask for."""
        while True:
            hurt = await self._db.run(partial(state_damage.unmarked, limit=_MARKS))
            whole = await self._db.run(partial(state_damage.marked_in_vain, limit=_MARKS))
            if not hurt and not whole:
                return
            sets = [_remarked(record, record.local_flags | LocalFlag.MUST_FETCH) for record in hurt]
            sets += [_remarked(record, record.local_flags & ~LocalFlag.MUST_FETCH) for record in whole]
            outcomes = await self._journal.submit(sets)
            self._log(hurt, whole)
            if not any(outcome.sequences for outcome in outcomes):
                return  # judged on a state that has moved on: its commits have told us to look again

    def _log(self, hurt: Sequence[Record], whole: Sequence[Record]) -> None:
        if hurt:
            names = [record.name for record in hurt[:_NAMED]]
            log.error("files have lost content and are pulled again where a device has them", count=len(hurt), names=names)
        if whole:
            log.info("files have their content again", count=len(whole), names=[record.name for record in whole[:_NAMED]])


def _remarked(record: Record, flags: int) -> DraftSet:
    draft = Draft(record.fid, record.info, record.extents, local_flags=flags, history=HistoryRule.DROP, remark=True)
    return DraftSet(SetKind.SINGLE, (draft,))


def _lost(conn: Connection, packs: PackTable, seen: Pack, saved: tuple[int, list[Extent]] | None) -> Body:
    if _still(conn, seen).lost:
        raise _dealt_with(seen)
    relocations: list[Relocation] = []
    if saved is not None and packs.usable(((saved[0], 0, 1),)):
        target = 0
        for place, to_place, count in saved[1]:
            for at, first, blocks in state.resolve(conn, seen.number, place, count):
                if at == seen.number:
                    target = target or packs.register(saved[0])
                    relocations.append(Relocation(seen.number, first, blocks, target, to_place + first - place))
    return Body(relocations=tuple(relocations), packs_lost=(seen.number,))


def _found(conn: Connection, _packs: PackTable, seen: Pack) -> Body:
    if not _still(conn, seen).lost:
        raise _dealt_with(seen)
    return Body(packs_found=(seen.number,))


def _still(conn: Connection, seen: Pack) -> Pack:
    """The pack that was looked at as it is registered now; Conflict where nothing can be said of it any more. On another history its
    number means another pack."""
    pack = state.packs(conn, [seen.number]).get(seen.number)
    if pack is None or pack.id != seen.id or pack.condemned:
        raise _dealt_with(seen)
    return pack


def _dealt_with(pack: Pack) -> Conflict:
    return Conflict(f"pack {pack.number} has been dealt with")
