"""The commit protocol under fire, beyond R1 to R15 (`test_scenarios.py`): machines that sleep for days, rolling restarts, restored and torn
buckets, damaged slots, requests that arrive when nobody waits for them any more."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from stnode.errors import Corrupt, StnodeError
from stnode.objectstore.base import Key, Mode
from stnode.objectstore.faulty import FaultPlan
from stnode.repo import layout
from stnode.repo.records import DraftSet, LocalFlag, SetKind, Status
from tests.sim.test_scenarios import QUIET, cut, fill, simulated, until
from tests.sim.world import SimNode, World, directory

pytestmark = pytest.mark.expects_log(r"the state is restored|the journal cannot go on|upload is gone|not whole")
DAY_S = 86_400.0


def head_of(node: SimNode) -> int:
    return node.store.status().journal.number


async def sleeper(world: World) -> None:
    """A machine sleeps for days with a change in its hands; meanwhile its next slots were truncated. Its monotonic clock stood still, so it
    takes its head for confirmed; it meets the stub, restores, and commits the change above what others have done."""
    a, b = await world.two()
    await b.put(await b.file("mine", "1", ((2, 1),)))
    wanted = await b.local("mine", "2", ((2, 1),))
    wake = b.suspend()
    task = asyncio.ensure_future(b.submit(wanted))
    await asyncio.sleep(1)
    await fill(a, 3)
    world.leap(5 * DAY_S)
    await cut(world, a)
    wake.set()
    b.gate.before = None
    [outcome] = await asyncio.wait_for(task, 600)
    assert outcome.status in (Status.COMMITTED, Status.RETRY_UPLOAD)
    if outcome.status is Status.RETRY_UPLOAD:
        await b.put(await b.local("mine", "2", ((2, 1),)))
    assert any(applied.restored for applied in b.applied)
    assert {"x0", "x1", "x2", "after0", "mine"} <= b.names().keys()
    await a.store.follow_to_head()
    assert a.names().keys() == b.names().keys()
    await world.check()


async def rolling_restart(world: World) -> None:
    """The new process of one identity starts and writes before the old one has stopped; both write the same names. Everything that was
    acknowledged is there, once, and the old one's end disturbs nothing."""
    a, other = await world.two()
    new = SimNode(world, 0, 0.0, QUIET)
    world.nodes.append(new)
    for number in range(4):
        old_writes = asyncio.ensure_future(a.submit(await a.local(f"f{number}", f"old {number}"), await a.local("both", f"old {number}")))
        if number == 1:
            await new.start()
        if number >= 1:
            await new.put(await new.local(f"g{number}", f"new {number}"), await new.local("both", f"new {number}"))
        assert {outcome.status for outcome in await old_writes} == {Status.COMMITTED}
    await a.stop()
    await new.put(await new.local("last", "x"))
    await other.store.follow_to_head()
    assert {"f0", "f3", "g1", "g3", "both", "last"} <= other.names().keys()
    await world.check()


async def late_by_days(world: World) -> None:
    """The create of a dead process arrives after days: at a number that is taken, and at one that is truncated. It changes nothing."""
    a, b = await world.two()
    wanted = await a.local("dead", "dead")
    a.faulty.plan = replace(QUIET, late_write=1.0, late_s=(3 * DAY_S, 3 * DAY_S))
    task = asyncio.ensure_future(a.submit(wanted))
    await until(lambda: any(key.startswith("journal/") for key in a.gate.puts[2:]))
    late = a.faulty
    await asyncio.sleep(0.3)
    a.crash()
    task.cancel()
    a.plan = QUIET
    await a.start()
    await fill(b, 3)
    if world.seed % 2:
        await cut(world, b)
    await late.settle()
    assert asyncio.get_running_loop().time() > 3 * DAY_S
    await a.put(await a.local("after", "after"))
    await b.store.follow_to_head()
    assert "dead" not in b.names()
    await world.check()


async def older_bucket_siblings_up(world: World) -> None:
    """The bucket is put back under two running nodes: both notice, neither builds on what is gone, and folders get one new index ID."""
    a, b = await world.two()
    await fill(a, 2)
    backup = world.bucket.snapshot()
    await fill(a, 3, "lost")
    await b.store.follow_to_head()
    world.bucket.restore(backup)
    world.forget()
    await asyncio.sleep(1300)
    for node in (a, b):
        assert node.names().keys() == {"x0", "x1"}
        assert not node.store.status().journal.index_ids_due
    await b.put(await b.file("again", "again", ((2, 1),)))
    await a.store.follow_to_head()
    await world.check()


async def older_bucket_siblings_down(world: World) -> None:
    """The same while both are stopped, one with its cache and one without: who remembers the lost commits renews the index IDs."""
    a, b = await world.two()
    await fill(a, 2)
    backup = world.bucket.snapshot()
    await fill(a, 3, "lost")
    await b.store.follow_to_head()
    a.crash()
    b.crash()
    world.bucket.restore(backup)
    world.forget()
    await b.start()
    before = head_of(b)
    await a.start(keep_cache=True)
    await until(lambda: not a.store.status().journal.index_ids_due)
    assert head_of(a) > before, "the new index IDs are a commit"
    assert a.names().keys() == {"x0", "x1"}
    await b.put(await b.file("again", "again", ((2, 1),)))
    await world.check()


async def torn_slots_first(world: World) -> None:
    """A replica has a slot beyond a gap. A start without cache and one whose cache ends at the gap refuse it; with a manifest beyond the
    gap both step over it."""
    a, b = await world.two()
    await b.store.follow_to_head()
    b.crash()
    ends = head_of(b)
    await fill(a, 8)
    if world.seed % 2:
        await world.checkpoint(a)
        await fill(a, 1, "beyond")
    a.crash()
    world.truth.blind = True
    for number in range(ends + 1, ends + 7):
        await world.bucket.delete(layout.slot_key(number))
    if world.seed % 2:
        await b.start(keep_cache=True)
        assert "x7" in b.names()
        assert "beyond0" in b.names()
        await a.start()
        assert a.names().keys() == b.names().keys()
    else:
        for keep_cache in (True, False):
            with pytest.raises(Corrupt, match=f"commit {ends + 1} is missing"):
                await b.start(keep_cache=keep_cache)
            b.crash()


async def _torn(world: World, prefix: str, count: int) -> dict[Key, bytes]:
    """Six commits of a file and a pack each; then the youngest `count` objects below a prefix are taken away: a copy of the bucket has not
    brought them yet."""
    a, b = await world.two()
    await fill(a, 6)
    a.crash()
    b.crash()
    world.truth.blind = True
    whole = world.bucket.snapshot()
    keys = sorted((key for key in whole if key.startswith(prefix)), key=lambda key: whole[key].modified_ns)
    taken = {Key(key): whole[key].data for key in keys[-count:]}
    for key in taken:
        await world.bucket.delete(key)
    return taken


async def _bring(world: World, taken: dict[Key, bytes]) -> None:
    for key, data in taken.items():
        await world.bucket.put(key, [data])


async def torn_packs_first(world: World) -> None:
    """A replica that is still being copied has all packs, but of the slots only the first ones. A node on it serves what these say and
    touches nothing else; as the slots come it follows them, and every file is whole."""
    late = await _torn(world, "journal/", 3)
    node = await world.node()
    assert node.names().keys() == {"x0", "x1", "x2"}
    before = world.bucket.snapshot().keys()
    for record in node.names().values():
        await node.read(record)
    await asyncio.sleep(2 * 3600)
    assert before <= world.bucket.snapshot().keys(), "packs that no commit names yet stay"
    epochs = [applied.restored for applied in node.applied].count(True)
    await _bring(world, late)
    await node.store.follow_to_head()
    assert node.names().keys() == {f"x{number}" for number in range(6)}
    for record in node.names().values():
        assert not record.local_flags
        await node.read(record)
    assert [applied.restored for applied in node.applied].count(True) == epochs, "it only went on"
    assert node.store.status().journal.trouble == ""


async def torn_slots_without_packs(world: World) -> None:
    """A replica has all slots, but not the packs of the last commits. Whoever reads one marks it lost: its file is announced invalid, never
    deleted and never served wrong; the others go on. When the packs have come they are found within an hour or two, and the files
    are whole as they were, with nothing pulled."""
    late = await _torn(world, "packs/", 2)
    node = await world.node()
    before = node.names()
    hurt = set[str]()
    for name, record in before.items():
        try:
            await node.read(record)
        except StnodeError:
            hurt.add(name)
    assert hurt == {"x4", "x5"}
    await until(lambda: node.store.damage.lost == 2)
    await until(lambda: {name for name, record in node.names().items() if record.local_flags & LocalFlag.MUST_FETCH} == hurt)
    for name, record in node.names().items():
        assert not record.info.deleted
        assert record.info.version == before[name].info.version
        if name not in hurt:
            await node.read(record)
    await _bring(world, late)
    await until(lambda: node.store.damage.found == 2, within_s=3 * 3600)
    await until(lambda: not any(record.local_flags for record in node.names().values()))
    for name, record in node.names().items():
        assert (record.info.version, record.extents) == (before[name].info.version, before[name].extents)
        assert record.sequence > before[name].sequence or name not in hurt, "peers hear of it"
        await node.read(record)


async def follower_steps_over_a_gap(world: World) -> None:
    """A running follower that finds a slot missing among later ones restores from a manifest beyond it, as over a damaged slot."""
    a, b = await world.two()
    wake = b.suspend()
    await fill(a, 4)
    head = head_of(a)
    await world.checkpoint(a)
    world.truth.blind = True
    await world.bucket.delete(layout.slot_key(head - 2))
    wake.set()
    b.gate.before = None
    await b.store.follow_to_head()
    assert b.names().keys() == a.names().keys()
    await b.put(await b.file("on", "on", ((2, 1),)))
    await a.store.follow_to_head()
    assert "on" in a.names()


async def damaged_slot(world: World) -> None:
    """A damaged slot, met by a follower: without a manifest beyond it refused with what to do, then mended by the checkpoint of whoever has
    applied it."""
    a, b = await world.two()
    await fill(a, 1)
    await b.store.follow_to_head()
    wake = b.suspend()
    await fill(a, 3, "y")
    key = layout.slot_key(head_of(a) - 1)
    whole = world.bucket.snapshot()[key].data
    world.truth.blind = True
    await world.bucket.put(Key(key), [whole[:-3]], Mode.OVERWRITE)
    wake.set()
    b.gate.before = None
    with pytest.raises(Corrupt, match="damaged"):
        await b.store.follow_to_head()
    assert b.store.status().journal.hint
    await world.checkpoint(a)
    await until(lambda: b.names().keys() == a.names().keys(), within_s=120)


async def throttled(world: World) -> None:
    """A store that answers 503 with Retry-After for a quarter of an hour: the time that it asks for is kept, by the create that is under way
    (odd seeds) and by the look before it, so the requests stay few; then all is committed."""
    a, _ = await world.two()
    wanted = await a.file("f", "f", ((1, 1),))
    busy = FaultPlan(busy=1.0, retry_after_s=(100.0, 100.0), latency_s=(0.02, 0.12))

    async def refuse(operation: str, key: str) -> None:
        if world.seed % 2 == 0 or (operation == "put" and key.startswith("journal/")):
            a.faulty.plan = busy

    a.gate.before = refuse
    before = a.gate.requests
    task = asyncio.ensure_future(a.submit(wanted))
    await asyncio.sleep(900)
    assert not task.done()
    assert a.gate.requests - before <= 900 / 100 + 3
    a.gate.before = None
    a.faulty.plan = QUIET
    [outcome] = await task
    assert outcome.status is Status.COMMITTED
    await world.check()


async def told_in_slices(world: World) -> None:
    """The outcomes of a large group are told with turns of the event loop between them, so that nothing else waits for all of them."""
    a, _ = await world.two()
    head, turns, seen = head_of(a), 0, list[int]()

    def turn() -> None:
        nonlocal turns
        turns += 1
        if len(seen) < len(futures):
            asyncio.get_running_loop().call_soon(turn)

    def told(_: object) -> None:
        if not seen:
            turn()
        seen.append(turns)

    futures = [a.store.submit([DraftSet(SetKind.SINGLE, (directory(f"d{number}", ((1, 1),)),))]) for number in range(3500)]
    for future in futures:
        future.add_done_callback(told)
    outcomes = await asyncio.gather(*futures)
    assert all(outcome.status is Status.COMMITTED for [outcome] in outcomes)
    assert head_of(a) == head + 1, "one commit"
    assert seen[-1] - seen[0] >= 3
    assert max(seen.count(number) for number in set(seen)) <= 1000


test_a_machine_that_slept_for_days = simulated(sleeper)
test_a_rolling_restart = simulated(rolling_restart, seeds=8)
test_a_create_that_arrives_after_days = simulated(late_by_days)
test_a_bucket_put_back_under_running_nodes = simulated(older_bucket_siblings_up)
test_a_bucket_put_back_while_nodes_are_down = simulated(older_bucket_siblings_down)
test_a_torn_replica_with_slots_beyond_a_gap = simulated(torn_slots_first)
test_a_torn_replica_with_packs_and_not_all_slots = simulated(torn_packs_first)
test_a_torn_replica_with_slots_and_not_all_packs = pytest.mark.expects_log("a pack is damaged|files have lost content")(
    simulated(torn_slots_without_packs)
)
test_a_follower_steps_over_a_gap = simulated(follower_steps_over_a_gap)
test_a_damaged_slot_is_waited_out = simulated(damaged_slot)
test_outcomes_are_told_in_slices = simulated(told_in_slices, seeds=1)
test_retry_after_is_kept = simulated(throttled)
