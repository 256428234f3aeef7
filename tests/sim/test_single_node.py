"""Stores without conditional writes (R8): one declared node, slots named `<number>-<write id>`, and what happens when two processes overlap
all the same: nothing is overwritten, and at most one of them goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from stnode.clock import Env, InlineThreads, SeededRandomness
from stnode.db import Database
from stnode.errors import Refused, Unavailable
from stnode.objectstore.base import Buffer, Capabilities, IfMatch, Key, Mode, PutResult
from stnode.objectstore.faulty import FaultPlan
from stnode.repo import checkpoint, layout, singlenode, state
from stnode.repo.check_journal import JournalCheck
from stnode.repo.codec import Stub, decode_slot
from stnode.repo.heartbeat import Heartbeat
from stnode.repo.records import Draft, Outcome, Status
from stnode.repo.restore import restore
from stnode.repo.slots import AnotherProcess, NamedSlots, TwoNames
from stnode.repo.store import SettingsChange, Store, new_folder
from tests.sim.test_scenarios import QUIET, fill, simulated, until
from tests.sim.witness import SimBucket
from tests.sim.world import SimNode, World

pytestmark = pytest.mark.expects_log(
    r"the journal has stopped|wrote the same commit|another process of this single-node store|the state is restored|the journal cannot go on"
)


class Careless(SimBucket):
    """Takes a conditional write, ignores its condition and answers 200."""

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        return await super().put(key, data)

    async def capabilities(self) -> Capabilities:
        return Capabilities(create_if_absent=False, if_match=False, name="careless")


def env(world: World) -> Env:
    return Env(world.clock, SeededRandomness(world.seed), InlineThreads())


def careless(world: World) -> None:
    """Another bucket. The world's witness knows plain slot names only: what holds is checked from the bucket alone."""
    world.bucket = Careless(env(world))
    world.watch = world.reached = world.bucket  # type: ignore[assignment]
    world.truth.blind = True
    world.single_node = True


async def alone(world: World) -> SimNode:
    """A store of one declared node, with one folder, and that node."""
    careless(world)
    node = SimNode(world, 0, 0.0, QUIET)
    world.nodes.append(node)
    await Store.init(world.bucket, env(world), single_node=node.device)
    await node.start()
    await node.store.submit_settings(SettingsChange(folders=(new_folder(node.env.random, "f"),)))
    return node


async def twin(world: World, of: SimNode) -> SimNode:
    """Another process with the same identity and a state directory of its own."""
    node = SimNode(world, len(world.nodes), 0.0, QUIET)
    node.device = of.device
    world.nodes.append(node)
    await node.start()
    return node


async def names_of_a_fresh_container(world: World) -> set[str]:
    """The state as a process that starts from nothing sees it; the journal checks clean on the way."""
    objects = NamedSlots(world.bucket)
    check = JournalCheck(objects, env(world))
    async for _ in check.steps():
        pass
    assert not check.problems
    db = Database(None, inline=True)
    try:
        await restore(objects, db, env(world))
        return {record.name for record in state.records_since(db._connect(), 1, 0, 1 << 30)}
    finally:
        await db.close()


def slot_names(world: World, number: int) -> list[str]:
    return [key for key in world.bucket.snapshot() if key.startswith(layout.slot_key(number))]


async def declared(world: World) -> None:
    """Without the declaration such a store is refused, with a hint that names the option; the declaration holds for one device."""
    careless(world)
    with pytest.raises(Refused, match="no conditional writes") as refused:
        await Store.init(world.bucket, env(world))
    assert "--single-node" in refused.value.hint
    node = await alone(world)
    document = json.loads(world.bucket.snapshot()[layout.STORE].data)
    assert document[singlenode.DECLARATION] == node.device.hex()
    world.single_node = False
    with pytest.raises(Refused, match="configuration does not say") as refused:
        await SimNode(world, 0, 0.0, QUIET).start()
    assert "single_node = true" in refused.value.hint
    world.single_node = True
    with pytest.raises(Refused, match="another one"):
        await SimNode(world, 1, 0.0, QUIET).start()
    assert not await Store.init(world.bucket, env(world), single_node=SimNode(world, 1, 0.0, QUIET).device)
    with pytest.raises(Refused, match="another one"):
        await SimNode(world, 0, 0.0, QUIET).start()


async def commits_and_restores(world: World) -> None:
    """Commits, checkpoints, truncation and a fresh container: as elsewhere, by names that cannot overwrite each other."""
    node = await alone(world)
    await fill(node, 3)
    objects = NamedSlots(world.bucket)
    await checkpoint.write_manifest(objects, node.db, node.env, node.device, node.store.store_time_us())
    await fill(node, 1, "after")
    await checkpoint.write_manifest(objects, node.db, node.env, node.device, node.store.store_time_us())
    assert await checkpoint.truncate(objects, node.db, node.env, node.store.store_time_us() + 2 * 86_400_000_000) > 0
    await fill(node, 2, "y")
    keys = [key for key in world.bucket.snapshot() if key.startswith(layout.journal_prefix())]
    assert len(keys) == node.store.status().journal.number
    assert all(layout.slot_number(key) is None for key in keys), "every slot is named by its write id"
    assert isinstance(decode_slot(world.bucket.snapshot()[slot_names(world, 1)[0]].data, "stub"), Stub)
    assert await names_of_a_fresh_container(world) == {"x0", "x1", "x2", "after0", "y0", "y1"}
    node.crash()
    await node.start()
    await node.put(await node.file("z", "z", ((1, 1),)))
    assert "z" in await names_of_a_fresh_container(world)


async def overlap(world: World) -> None:
    """Two processes create the same number at once: both objects stay, at most one process goes on, and nothing that was acknowledged is
    lost; what the stopped one had is not acknowledged."""
    a = await alone(world)
    b = await twin(world, a)
    wanted = [(await node.file(name, name, ((by, 1),))) for node, name, by in ((a, "a", 1), (b, "b", 2))]
    results = await asyncio.gather(a.submit(wanted[0]), b.submit(wanted[1]), return_exceptions=True)
    won = [name for name, result in zip("ab", results, strict=True) if not isinstance(result, BaseException)]
    stopped = [result for result in results if isinstance(result, BaseException)]
    assert len(won) <= 1
    assert all(isinstance(each, (TwoNames, AnotherProcess)) for each in stopped)
    if won:
        winner = a if won == ["a"] else b
        await winner.put(await winner.file("later", "later", ((7, 1),)))
        assert await names_of_a_fresh_container(world) == {*won, "later"}
    else:
        assert len(slot_names(world, 2)) == 2, "both are kept"


async def second_sees_the_first(world: World) -> None:
    """A process that meets a commit of another one after its start ends, before it has written anything, and says why."""
    a = await alone(world)
    b = await twin(world, a)
    await fill(a, 2)
    with pytest.raises(AnotherProcess) as stopped:
        await b.submit(await b.file("b", "b", ((2, 1),)))
    assert await b.store.stopped() is stopped.value
    await fill(a, 2, "on")
    assert await names_of_a_fresh_container(world) == {"x0", "x1", "on0", "on1"}


async def late_put(world: World) -> None:
    """The PUT of a dead process arrives when the number has long been taken: beside it, and it does not count; the living process goes on,
    before and after the next commit, and so does a fresh container."""
    a = await alone(world)
    a.faulty.plan = FaultPlan(late_write=1.0, late_s=(300.0, 300.0), latency_s=(0.02, 0.12))
    wanted = await _pack_quietly(a)
    task = asyncio.ensure_future(a.submit(wanted))
    await until(lambda: any(key.startswith("journal/") for key in a.gate.puts[2:]))
    await asyncio.sleep(0.3)
    a.crash()
    task.cancel()
    a.plan = QUIET
    await a.start()
    await a.put(await a.file("mine", "mine", ((1, 1),)))
    head = a.store.status().journal.number
    await asyncio.sleep(400)
    assert len(slot_names(world, head)) == 2
    await a.store.follow_to_head()
    await a.put(await a.file("next", "next", ((1, 1),)))
    assert await names_of_a_fresh_container(world) == {"mine", "next"}


async def _pack_quietly(node: SimNode) -> Draft:
    plan, node.faulty.plan = node.faulty.plan, QUIET
    draft = await node.file("dead", "dead", ((3, 1),))
    node.faulty.plan = plan
    return draft


async def two_at_the_head(world: World) -> None:
    """Two names at the head that nobody living has seen alone stop a start, with the way out in the hint; neither is touched."""
    a = await alone(world)
    await fill(a, 1)
    head = a.store.status().journal.number
    [name] = slot_names(world, head)
    other = Key(f"{layout.slot_key(head)}-{'ab' * 16}")
    await world.bucket.put(other, [world.bucket.snapshot()[name].data + b"x"])
    a.crash()
    with pytest.raises(TwoNames, match="two processes wrote commit") as found:
        await twin(world, a)
    assert "bucket repair" in found.value.hint
    assert sorted(slot_names(world, head)) == sorted([name, other])


async def waits(world: World) -> None:
    """A start waits until another process's heartbeat is two minutes old, by the store's clock; an orderly end need not be waited for."""
    a = await alone(world)
    beat = Heartbeat(a.device, a.store.instance)
    await a.store.heartbeats.write(beat)
    before = world.clock.monotonic()
    starting = asyncio.ensure_future(twin(world, a))
    for _ in range(5):
        await asyncio.sleep(60)
        await a.store.heartbeats.write(beat)
        assert not starting.done()
    a.crash()
    b = await starting
    assert 400 < world.clock.monotonic() - before < 450
    await b.put(await b.file("b", "b", ((2, 1),)))
    await b.store.heartbeats.write(beat)
    await b.store.heartbeats.write(replace(beat, stopped=True))
    b.crash()
    before = world.clock.monotonic()
    await b.start()
    assert world.clock.monotonic() - before < 10


async def commands_do_not_wait_for_ever(world: World) -> None:
    """A command beside a living daemon of another machine says so instead of waiting."""
    a = await alone(world)

    async def beats() -> None:
        while True:
            await a.store.heartbeats.write(Heartbeat(a.device, a.store.instance))
            await asyncio.sleep(40)

    beating = asyncio.ensure_future(beats())
    await asyncio.sleep(1)
    with pytest.raises(Unavailable, match="another process works"):
        await Store.open(world.bucket, Database(None, inline=True), env(world), a.device, single_node=True)
    beating.cancel()


async def outage(world: World) -> None:
    """Answers get lost, listings fail: an unknown outcome is settled by looking, and everything is committed once."""
    a = await alone(world)
    a.faulty.plan = FaultPlan(lost_response=0.3, lost_request=0.2, unreachable=0.1, latency_s=(0.02, 0.1))
    drafts = []
    for number in range(6):
        drafts.append(asyncio.ensure_future(_commit(a, f"f{number}")))
        await asyncio.sleep(1.3)
    outcomes = await asyncio.gather(*drafts)
    assert all(outcome.status is Status.COMMITTED for [outcome] in outcomes)
    assert await names_of_a_fresh_container(world) == {f"f{number}" for number in range(6)}
    numbers = [key.partition("-")[0] for key in world.bucket.snapshot() if key.startswith(layout.journal_prefix())]
    assert len(numbers) == len(set(numbers)), "one name for each number"


async def _commit(node: SimNode, name: str) -> list[Outcome]:
    return await node.submit(await node.file(name, name, ((1, 1),)))


test_r8_a_single_node_is_declared = simulated(declared, seeds=1)
test_r8_commits_and_restores = simulated(commits_and_restores, seeds=2)
test_r8_two_processes_at_once = simulated(overlap, seeds=20)
test_r8_the_second_process_ends = simulated(second_sees_the_first)
test_r8_a_put_that_arrives_late = simulated(late_put)
test_r8_two_names_at_the_head = simulated(two_at_the_head, seeds=1)
test_r8_a_start_waits_for_the_other_process = simulated(waits, seeds=2)
test_r8_a_command_does_not_wait_for_ever = simulated(commands_do_not_wait_for_ever, seeds=1)
test_r8_lost_answers = simulated(outage)
