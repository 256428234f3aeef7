"""Repairing a journal that no node can follow any more (`stnode bucket repair`): what is there, what can be built on, and the step over the rest.

Nothing is deleted or overwritten. A repair takes the newest state that can be had, of the store or of this node's own cache, and makes it the
state after a new commit above everything that lies in the journal:

    1. slot M, created if absent, M above every slot and manifest. It follows no slot, so whoever is at M - 1 drops its state and restores;
    2. manifest M: that state. From here on everybody restores to it; commits below it are set aside, not gone;
    3. a stub where a slot is missing behind one that is there, so that a node which slept cannot commit into the gap.

A crash between two of these leaves a store that the next repair goes on with. What set-aside commits held is brought back by `salvage.py`.
Two names for the number at the head of a single-node store (`slots.py`) need no step: this decides which of them counts, the next commit says
so to everybody by its predecessor's hash, and what the other one holds is brought back as a set-aside commit's is.
Where this node's own state has the damaged commit behind it, and its slot is still there, a manifest of that state is all that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from sqlite3 import Connection
from typing import Literal

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Conflict, Corrupt, NotFound, StnodeError
from stnode.objectstore.base import Exists, Key, Mode, ObjectStore
from stnode.repo import checkpoint, layout, state
from stnode.repo.check_journal import JournalCheck
from stnode.repo.codec import EMPTY, Slot, decode_slot, encode_slot, encode_stub, slot_sha
from stnode.repo.restore import manifest_numbers, read_content, restore
from stnode.repo.slots import NamedSlots, TwoNames
from stnode.repo.state_load import Loader

Way = Literal["nothing", "checkpoint", "own", "void", "rebuild", "names"]


@dataclass(frozen=True, slots=True)
class Survey:
    """What lies in the journal. `way` is what helps: nothing is wrong; a `checkpoint` of a whole state steps over damage that nobody needs any
    more; this node's `own` state is ahead of what can be restored; `void`: commits from `first` on are set aside; `rebuild`: nothing of the
    journal is left, only packs; `names`: two processes wrote commit `first`, the object `counting` counts, `others` do not. `base` is the commit whose state is built on, `first` the one that cannot be read, `newest` the highest
    number of a slot or manifest. `slots` are those that are there."""

    way: Way
    fault: str
    base: int
    first: int
    newest: int
    slots: tuple[int, ...]
    counting: Key | None = None
    others: tuple[Key, ...] = ()

    @property
    def set_aside(self) -> tuple[int, ...]:
        """Commits that are there and not part of the state that is built on."""
        return tuple(number for number in self.slots if number > self.base)


async def survey(objects: ObjectStore, env: Env, scratch: Database, own: Database | None) -> Survey:
    """Looks at the journal by restoring from it into `scratch`, which has the state to build on then, unless `own` has it. Raises Unavailable,
    Refused for what a newer version wrote."""
    slots = sorted([number async for meta in objects.list(layout.journal_prefix()) if (number := layout.slot_number(meta.key))])
    manifests = await manifest_numbers(objects)
    newest = max([0, *slots, *manifests])
    fault, doubled = "", 0
    try:
        await restore(objects, scratch, env)
    except TwoNames as exc:
        fault, doubled = exc.message, exc.number
    except (Corrupt, NotFound) as exc:
        fault = exc.message
    if not (await scratch.run(state.head)).complete:
        await scratch.write(_emptied)
    base = await (_as_far_as_it_goes(objects, scratch) if fault else scratch.run(state.head))
    ours = await own.run(state.head) if own is not None else None
    if not fault and newest == 0:
        if ours is not None and ours.complete and ours.number:
            return Survey("own", "the journal and all checkpoints are gone", ours.number, 1, ours.number, ())
        packs = bool([meta.key async for meta in objects.list("packs/")])
        return Survey("rebuild" if packs else "nothing", "the journal and all checkpoints are gone" if packs else "", 0, 1, 0, ())
    if not fault:
        found = JournalCheck(objects, env)
        async for _ in found.steps():
            pass
        wrong = [*(f"{problem.key}: {problem.message}" for problem in found.problems), *found.notes]
        return Survey("checkpoint" if wrong else "nothing", "; ".join(wrong[:3]), base.number, base.number + 1, newest, tuple(slots))
    if doubled == base.number + 1 and (ours is None or not ours.complete or ours.number <= doubled):
        counting, others = await _which_counts(objects, base, ours)
        if counting is not None:
            return Survey("names", fault, base.number, doubled, newest, tuple(slots), counting, others)
    if ours is not None and ours.complete and ours.number > base.number and await _same_history(objects, ours, newest):
        return Survey("own", fault, ours.number, base.number + 1, max(newest, ours.number), tuple(slots))
    return Survey("void" if base.number else "rebuild", fault, base.number, base.number + 1, newest, tuple(slots))


async def _which_counts(objects: ObjectStore, base: state.Head, ours: state.Head | None) -> tuple[Key | None, tuple[Key, ...]]:
    """Of the names of the commit after `base` the one to go on from, and the others: what this node has applied; else the oldest that follows
    `base`, for only who found its name alone has told anybody. None if none follows."""
    assert isinstance(objects, NamedSlots)
    metas = sorted(await objects.names(base.number + 1), key=lambda meta: (meta.modified_ns, meta.key))
    able: list[Key] = []
    for meta in metas:
        data = (await objects.inner.get(meta.key)).data
        try:
            slot = decode_slot(data, meta.key)
        except Corrupt:
            continue
        if isinstance(slot, Slot) and (slot.number, slot.prev) == (base.number + 1, base.slot_sha):
            applied = ours is not None and ours.complete and ours.slot_sha == slot_sha(data)
            able.insert(0 if applied else len(able), meta.key)
    return (able[0], tuple(meta.key for meta in metas if meta.key != able[0])) if able else (None, ())


def _emptied(conn: Connection) -> None:
    Loader().abandon(conn)
    conn.execute("UPDATE state SET complete = 1")


async def _as_far_as_it_goes(objects: ObjectStore, db: Database) -> state.Head:
    """Applies commits one by one until one cannot be read; the state's head then."""
    while True:
        at = await db.run(state.head)
        key = layout.slot_key(at.number + 1)
        try:
            data = (await objects.get(key)).data
            slot = decode_slot(data, key)
            if not isinstance(slot, Slot) or (slot.number, slot.prev) != (at.number + 1, at.slot_sha):
                return at
            body = await read_content(objects, slot)
        except (Corrupt, NotFound):
            return at
        if body is None and await db.run(partial(state.check_slot, slot=slot)) is None:
            return at
        await db.write(partial(state.apply, slot=slot, slot_sha=slot_sha(data), body=body))


async def _same_history(objects: ObjectStore, ours: state.Head, newest: int) -> bool:
    """Whether a state is that of the journal in the store: its slot is the same there, or beyond all that is there."""
    try:
        return slot_sha((await objects.get(layout.slot_key(ours.number))).data) == ours.slot_sha
    except NotFound:
        return ours.number > newest
    except TwoNames:
        return False


async def step_over(objects: ObjectStore, env: Env, db: Database, found: Survey, node: bytes, store_time_us: int) -> int:
    """Makes the state in `db`, that of `found.base`, the one that everybody restores to; its commit. Raises Conflict when somebody else has
    written meanwhile: survey again."""
    if found.base in found.slots and found.way in ("own", "checkpoint"):
        try:
            if await checkpoint.write_manifest(objects, db, env, node, store_time_us, full=True) is not None:
                await _fill_gaps(objects, found.slots, found.base)
                return found.base
        except (Corrupt, NotFound):  # the manifest of this number is there and damaged
            pass
    at = await db.run(state.head)
    slot = Slot(
        number=found.newest + 1,
        prev=env.random.bytes(32),
        node=node,
        instance=env.random.uint64(),
        write_id=env.random.bytes(16),
        store_time_us=max(at.store_time_us, store_time_us),
        firsts=(),
        stored=None,
        dropped=(),
        body=EMPTY,
    )
    data = encode_slot(slot)
    try:
        await objects.put(layout.slot_key(slot.number), [data], Mode.CREATE)
    except Exists:
        raise Conflict("somebody else writes to this journal", hint="stop all nodes of this store, then run the repair again") from None
    sha = slot_sha(data)

    def move(conn: Connection) -> None:
        conn.execute(
            "UPDATE state SET number = ?, slot_sha = ?, store_time_us = ?, dirty_from = ?, bytes = 0, truncated = 0, verified = 0",
            (slot.number, sha, slot.store_time_us, slot.number),
        )
        conn.execute("DELETE FROM hashes")
        conn.execute("DELETE FROM dirty")
        conn.execute("INSERT INTO hashes VALUES (?, ?)", (slot.number, state.state_hash(conn)))

    await db.write(move)
    if await checkpoint.write_manifest(objects, db, env, node, slot.store_time_us, full=True) is None:
        raise Conflict("somebody else has written a checkpoint meanwhile", hint="stop all nodes of this store, then run the repair again")
    await _fill_gaps(objects, found.slots, slot.number - 1)
    return slot.number


async def _fill_gaps(objects: ObjectStore, slots: Sequence[int], upto: int) -> None:
    """A stub at the beginning of each gap: a node whose head is the slot before it must not take the gap for the end of the journal."""
    there = set(slots)
    for number in sorted({0, *there}):
        if number + 1 not in there and number + 1 <= upto:
            try:
                await objects.put(layout.slot_key(number + 1), [encode_stub(number + 1)], Mode.CREATE)
            except Exists:
                continue


async def read_set_aside(objects: ObjectStore, number: int) -> list[bytes]:
    """The slots of a commit's number: one, or two where two processes of a single-node store wrote it."""
    if isinstance(objects, NamedSlots):
        return [(await objects.inner.get(meta.key)).data for meta in await objects.names(number)]
    try:
        return [(await objects.get(layout.slot_key(number))).data]
    except StnodeError:
        return []
