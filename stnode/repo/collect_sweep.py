"""Deleting: what commits have condemned and what lies below the orphan horizon, each after the store's grace (invariant 4).

Grace runs from the Last-Modified of the commit's slot to the store's present Date; both come from the store, at the time of the pass. A
slot that is not there, or a Date that nobody gave, means: not yet. Every deletion can be repeated: a pass that is killed anywhere is
simply done again. What a store refuses to delete ends the pass's deletions and is told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from sqlite3 import Connection
from typing import Final

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Corrupt, NotFound, Refused
from stnode.objectstore.base import Key, Meta, ObjectStore
from stnode.repo import checkpoint, layout, state
from stnode.repo.codec import Manifest, Slot, decode_slot
from stnode.repo.parameters import Collection
from stnode.repo.restore import manifest_numbers, read_manifest
from stnode.telemetry import get_logger

BATCH: Final = 200
"""Deletions between two looks at the head of the journal, and in one commit that reports them."""
KEPT_MANIFESTS: Final = 2

log = get_logger(__name__)


Report = Callable[[Mapping[int, str], Sequence[str]], Awaitable[None]]
"""Hears what was deleted: condemned packs, number and id, and keys of other condemned objects."""


@dataclass(frozen=True, slots=True)
class Doomed:
    """A condemned object. `number` is the pack's, 0 for another object."""

    key: Key
    commit: int
    number: int = 0
    size_bytes: int = 0


@dataclass(slots=True)
class Swept:
    """What was found and done. `due_us` is when the first of what waits may be deleted, None when nothing waits or that is not known."""

    deleted: int = 0
    freed_bytes: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    due_us: int | None = None
    raise_to_us: int = 0
    denied: bool = False
    problems: list[str] = field(default_factory=list)

    def wait(self, size_bytes: int, due_us: int | None) -> None:
        """Something has to wait, until `due_us` where that is known."""
        self.waiting += 1
        self.waiting_bytes += size_bytes
        if due_us is not None:
            self.due_us = due_us if self.due_us is None else min(self.due_us, due_us)


class Sweeper:
    """`objects` is throttled already. `confirm` returns when the node's state is that of the store's head, and raises Conflict when it was
    rebuilt since the pass began: a bucket that was put back must be noticed before anything in it is deleted. `store_time_us` is what a commit made now would carry at least."""

    def __init__(
        self, objects: ObjectStore, db: Database, env: Env, confirm: Callable[[], Awaitable[None]], store_time_us: Callable[[], int]
    ) -> None:
        self._objects = objects
        self._db = db
        self._env = env
        self._confirm = confirm
        self._store_time_us = store_time_us
        self._bodies: dict[tuple[int, str], str] = {}

    async def now_us(self) -> int:
        """The store's present time, by its Date."""
        date_ns = (await self._objects.head(layout.STORE)).date_ns
        return (self._env.clock.now_ns() if date_ns is None else date_ns) // 1000

    # ---- condemned ----------------------------------------------------------------------------------------------------

    async def condemned(self, collection: Collection, report: Report | None) -> Swept:
        """Deletes condemned objects whose grace is over and tells `report` of each batch; without it only looks."""
        swept = Swept()
        await self._confirm()
        doomed = await self._db.run(_doomed)
        dates = {commit: await self._modified_us(commit) for commit in sorted({each.commit for each in doomed})}
        now_us = await self.now_us()
        due: list[Doomed] = []
        for each in doomed:
            modified_us = dates[each.commit]
            if modified_us is not None and now_us - modified_us >= collection.grace_us:
                due.append(each)
            else:
                swept.wait(each.size_bytes, None if modified_us is None else modified_us + collection.grace_us)
        if report is None:
            for each in due:
                swept.wait(each.size_bytes, now_us)
            return swept
        needed = await self._needed_keys() if any(not each.number for each in due) else set()
        for start in range(0, len(due), BATCH):
            if not await self._delete_batch(due[start : start + BATCH], needed, swept, report):
                break
        return swept

    async def _delete_batch(
        self,
        batch: Sequence[Doomed],
        needed: set[Key],
        swept: Swept,
        report: Report,
    ) -> bool:
        """Whether the store lets itself be deleted from."""
        await self._confirm()
        known = {(each.key, each.commit) for each in await self._db.run(_doomed)}
        gone: list[Doomed] = []
        willing = True
        for each in batch:
            if (each.key, each.commit) not in known:
                continue  # the state was restored meanwhile, or another node has reported it
            if each.key in needed:
                swept.problems.append(f"{each.key} was condemned, but one of the two newest checkpoints lists it: it is kept")
                continue
            size = each.size_bytes or await self._size(each.key)
            if not await self._delete(each.key, size, swept):
                willing = False
                break
            gone.append(each)
        if gone:
            packs = {each.number: layout.object_id(each.key) or "" for each in gone if each.number}
            await report(packs, [each.key for each in gone if not each.number])
        return willing

    async def _delete(self, key: Key, size_bytes: int, swept: Swept) -> bool:
        try:
            await self._objects.delete(key)
        except Refused as exc:
            swept.problems.append(f"the store does not let {key} be deleted: {exc.message}")
            swept.wait(size_bytes, None)
            swept.denied = True
            return False
        swept.deleted += 1
        swept.freed_bytes += size_bytes
        return True

    async def _size(self, key: Key) -> int:
        try:
            return (await self._objects.head(key)).size_bytes
        except NotFound:
            return 0

    async def _modified_us(self, commit: int) -> int | None:
        try:
            return (await self._objects.head(layout.slot_key(commit))).modified_ns // 1000
        except NotFound:
            return None

    # ---- checkpoints --------------------------------------------------------------------------------------------------

    async def old_checkpoints(self) -> list[Key]:
        """Manifests before the two newest, and runs that only they list, none condemned yet. Nothing unless the second newest was read back
        whole: a restore may need it, and what is older is its reserve."""
        numbers = await manifest_numbers(self._objects)
        known = {key for key, _ in (await self._db.run(state.condemned))[1]}
        old = [number for number in numbers[KEPT_MANIFESTS:] if layout.manifest_key(number) not in known]
        if not old:
            return []
        await checkpoint.ensure_verified(self._objects, self._db, self._env, numbers[1])
        kept = await self._needed_keys()
        found: list[Key] = []
        for number in sorted(old):
            found.append(layout.manifest_key(number))
            try:
                manifest = await read_manifest(self._objects, number)
            except (Corrupt, NotFound):
                continue  # its runs, if there are any, are orphans once it is gone
            found += [key for _, run in manifest.runs() if (key := layout.run_key(run.id)) not in kept and key not in known]
        return list(dict.fromkeys(found))

    async def _needed_keys(self) -> set[Key]:
        """The two newest manifests and their runs. Raises Corrupt where one cannot be read: then nothing of the kind is deleted."""
        needed: set[Key] = set()
        for number in (await manifest_numbers(self._objects))[:KEPT_MANIFESTS]:
            manifest = await read_manifest(self._objects, number)
            needed |= {layout.manifest_key(number), *_run_keys(manifest)}
        return needed

    # ---- orphans ------------------------------------------------------------------------------------------------------

    async def orphans(self, collection: Collection, *, delete: bool) -> Swept:
        """Finds objects that no commit registered, by listing, and deletes those below a horizon whose grace is over. `raise_to_us` is the
        horizon that would let more of them go; 0 when none is needed."""
        swept = Swept()
        await self._confirm()
        now_us = await self.now_us()
        horizon_us = (await self._db.run(state.head)).horizon_us
        ripe_us, due_us = await self._ripe_horizon(collection, now_us)
        wanted_us = min(now_us, self._store_time_us()) - collection.orphan_age_us
        ripe: list[Meta] = []
        async for meta in self._unregistered(wanted_us):
            minted = layout.minted_us(layout.object_id(meta.key) or "")
            if minted >= ripe_us or not delete:
                swept.wait(meta.size_bytes, now_us if minted < ripe_us else due_us if minted < horizon_us else None)
                if horizon_us <= minted < wanted_us:
                    swept.raise_to_us = wanted_us
                continue
            ripe.append(meta)
        for index, meta in enumerate(ripe):
            if index % BATCH == 0:
                await self._confirm()
            if not await self._delete(meta.key, meta.size_bytes, swept):
                break
        return swept

    async def _ripe_horizon(self, collection: Collection, now_us: int) -> tuple[int, int | None]:
        """The horizon whose grace is over, 0 if there is none yet, and when that of the next one will be."""
        due_us: int | None = None
        for number, horizon_us in reversed(await self._db.run(state.horizons)):
            modified_us = await self._modified_us(number)
            if modified_us is None:
                continue
            if now_us - modified_us >= collection.grace_us:
                return horizon_us, due_us
            due_us = modified_us + collection.grace_us
        return 0, due_us

    async def _unregistered(self, bodies_before_us: int) -> AsyncIterator[Meta]:
        """Packs, bodies and runs that nothing names. Whose bodies are has to be read from the slots: that is done where one is old enough."""
        async for batch in _batches(self._objects.list("packs/")):
            known = await self._db.run(partial(_known_packs, ids=[layout.object_id(meta.key) for meta in batch]))
            for meta in batch:
                if layout.object_id(meta.key) not in known:
                    yield meta
        bodies = [
            meta
            async for meta in self._objects.list("bodies/")
            if (object_id := layout.object_id(meta.key)) and layout.minted_us(object_id) < bodies_before_us
        ]
        if bodies and (named := await self._named_bodies()) is not None:
            for meta in bodies:
                if layout.object_id(meta.key) not in named:
                    yield meta
        listed = await self._listed_runs()
        if listed is not None:
            condemned = {key for key, _ in (await self._db.run(state.condemned))[1]}
            runs = [meta async for meta in self._objects.list("runs/") if layout.object_id(meta.key)]
            for meta in runs:
                if meta.key not in listed and meta.key not in condemned:
                    yield meta

    async def _named_bodies(self) -> set[str] | None:
        """Ids of the bodies that slots name; None where a slot cannot be read, so that nobody knows. Slots are remembered by their ETags:
        a bucket that was put back has others."""
        present: dict[tuple[int, str], str] = {}
        async for meta in self._objects.list(layout.journal_prefix()):
            number = layout.slot_number(meta.key)
            if number is None or meta.size_bytes < checkpoint.SMALLEST_SLOT_BYTES:
                continue
            seen = (number, meta.etag)
            if seen not in self._bodies:
                try:
                    slot = decode_slot((await self._objects.get(meta.key)).data, meta.key)
                except (Corrupt, NotFound):
                    return None
                self._bodies[seen] = slot.stored.id if isinstance(slot, Slot) and slot.stored is not None else ""
            present[seen] = self._bodies[seen]
        self._bodies = present
        return set(present.values())

    async def _listed_runs(self) -> set[Key] | None:
        """Keys of the runs that any manifest lists; None where a manifest cannot be read."""
        listed: set[Key] = set()
        for number in await manifest_numbers(self._objects):
            try:
                listed |= _run_keys(await read_manifest(self._objects, number))
            except (Corrupt, NotFound):
                return None
        return listed


def _run_keys(manifest: Manifest) -> set[Key]:
    return {layout.run_key(run.id) for _, run in manifest.runs()}


def _doomed(conn: Connection) -> list[Doomed]:
    """Condemned objects: checkpoints before their runs, then the rest."""
    packs, objects = state.condemned(conn)
    found = [Doomed(Key(key), commit) for key, commit in objects]
    for start in range(0, len(packs), BATCH):
        numbers = [number for number, _ in packs[start : start + BATCH]]
        found += [Doomed(pack.key, pack.condemned, pack.number, pack.size_bytes) for pack in state.packs(conn, numbers).values()]
    return found


def _known_packs(conn: Connection, ids: Sequence[str | None]) -> set[str]:
    marks = ",".join("?" * len(ids))
    return {row[0] for row in conn.execute(f"SELECT id FROM packs WHERE id IN ({marks})", ids)}  # noqa: S608


async def _batches(metas: AsyncIterator[Meta]) -> AsyncIterator[list[Meta]]:
    """Objects whose names are ids, some hundred at a time."""
    batch: list[Meta] = []
    async for meta in metas:
        if layout.object_id(meta.key) is not None:
            batch.append(meta)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
