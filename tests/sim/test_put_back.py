"""R4 in the background: a bucket is put back while a node's own maintenance is at work on the lost history. Numbers of packs mean others then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from stnode.errors import Conflict
from stnode.objectstore.base import Meta
from stnode.repo import layout, state
from stnode.repo.records import Draft, Status
from tests.sim.loop import run
from tests.sim.test_collect import DAY_S, collect, forgetful, keys, packed, read
from tests.sim.world import SimNode, World, file_info, removed

pytestmark = pytest.mark.expects_log(r"the state is restored|garbage cannot be collected|cannot be repacked|a pack is damaged")


class Held:
    """A node's requests at a place wait: `came` one has, `go_on` it may."""

    def __init__(self) -> None:
        self.came, self.go_on = asyncio.Event(), asyncio.Event()

    async def wait(self) -> None:
        self.came.set()
        await self.go_on.wait()


def held_head(node: SimNode, wanted: str) -> Held:
    """HEADs of an object wait."""
    held = Held()

    async def before(operation: str, key: str) -> None:
        if (operation, key) == ("head", wanted):
            await held.wait()

    node.gate.before = before
    return held


def held_listing(node: SimNode, wanted: str) -> Held:
    """Listings of a prefix wait."""
    held, listing = Held(), node.gate.list

    async def wait_and_list(prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        if prefix == wanted:
            await held.wait()
        async for meta in listing(prefix, start_after=start_after):
            yield meta

    node.gate.list = wait_and_list  # type: ignore[method-assign]
    return held


def simulated(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        world = World(0)
        try:
            run(scenario(world))
        finally:
            world.close()

    test.__doc__ = scenario.__doc__
    return test


async def damage(world: World) -> None:
    """A pack is found missing, and before that is said its number means another pack, which is whole: nothing is said of that one."""
    a, b = await world.two()
    await a.put(await a.file("kept", "kept", ((1, 1),)))
    await b.store.follow_to_head()
    backup = world.bucket.snapshot()
    await a.put(await a.file("lost", "lost", ((1, 1),)))
    [key] = set(keys(world, "packs/")) - set(backup)
    held = held_head(a, key)
    looked = asyncio.ensure_future(a.store.damage.settle([2]))
    await held.came.wait()
    world.bucket.restore(backup)
    world.forget()
    await asyncio.sleep(120)
    await b.put(await b.file("other", "other", ((2, 1),)))
    await asyncio.sleep(120)
    await a.store.follow_to_head()
    held.go_on.set()
    await looked
    found = state.packs(a.db._connect(), [2])[2]
    assert layout.pack_key(found.fkey, found.id) != key
    assert a.store.damage.lost == 0
    assert await read(a, "other") == b"other"
    await world.check()


async def looked_up(world: World) -> None:
    """What was planned with a pack's number of the lost history names nothing on the present one."""
    a, b = await world.two()
    await a.put(await a.file("kept", "kept", ((1, 1),)))
    await b.store.follow_to_head()
    backup = world.bucket.snapshot()
    await a.put(await a.file("lost", "lost", ((1, 1),)))
    made_on = a.store.histories
    record = a.record("lost")
    assert record is not None
    copy = file_info("copy", "lost", ((1, 1),))
    world.bucket.restore(backup)
    world.forget()
    await asyncio.sleep(120)
    await b.put(await b.file("other", "other", ((2, 1),)))
    await asyncio.sleep(120)
    await a.store.follow_to_head()
    [(pack, _, _)] = record.extents
    assert state.packs(a.db._connect(), [pack]), "the number means another pack now"
    [outcome] = await a.submit(Draft(1, copy, record.extents, made_on=made_on))
    assert outcome.status is Status.RETRY_UPLOAD
    with pytest.raises(Conflict, match="put back"):
        await a.store.submit_partial(1, copy, [(0, record.extents[0])], made_on)
    assert a.record("copy") is None
    await world.check()


async def orphans(world: World) -> None:
    """An object that no commit of the lost history names is one that the present history needs: the pass that listed it ends."""
    a, b = await forgetful(world)
    await packed(a, "x")
    await b.store.follow_to_head()
    backup = world.bucket.snapshot()
    await a.put(removed("x", ((1, 2),)))
    await a.pack(b"nobody's")
    while keys(world, "packs/"):
        await asyncio.sleep(DAY_S / 2)
        await collect(a)
    held = held_listing(a, "packs/")
    swept = asyncio.ensure_future(collect(a))
    await held.came.wait()
    world.bucket.restore(backup)
    world.forget()
    await asyncio.sleep(120)
    held.go_on.set()
    [outcome] = await asyncio.gather(swept, return_exceptions=True)
    assert len(keys(world, "packs/")) == 1
    assert isinstance(outcome, Conflict)
    await asyncio.sleep(120)
    await collect(b)
    assert [await read(node, "x") for node in (a, b)] == [b"x", b"x"]
    await world.check()


async def a_moment_ago(world: World) -> None:
    """The bucket is put back seconds after the head was seen: a pass sees it before it deletes anything."""
    a, b = await forgetful(world)
    await packed(a, "x")
    await b.store.follow_to_head()
    backup = world.bucket.snapshot()
    await a.put(removed("x", ((1, 2),)))
    for _ in range(3):
        await collect(a)
        await asyncio.sleep(DAY_S * 0.9)
    assert keys(world, "packs/")
    await a.store.follow_to_head()
    world.bucket.restore(backup)
    world.forget()
    await asyncio.sleep(1)
    histories = a.store.histories
    with suppress(Conflict):
        await collect(a)
    assert a.store.histories == histories + 1
    await asyncio.sleep(120)
    await b.store.follow_to_head()
    assert await read(b, "x") == b"x"
    await world.check()


test_damage = simulated(damage)
test_orphans = simulated(orphans)
test_looked_up = simulated(looked_up)
test_a_moment_ago = simulated(a_moment_ago)
