"""Pulling: what a peer announces comes into the store, with as few bytes as may be, and is announced to others."""

from __future__ import annotations

from tests.support.fakepeer import content
from tests.support.world import World, simulated

BLOCK = 128 << 10


@simulated
async def test_a_new_file_is_pulled_and_committed() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.write("x", content("x", 3 * BLOCK + 5))
        await world.until(lambda: world.record("x"))
        assert await world.content("x") == content("x", 3 * BLOCK + 5)
        assert len(a.requests) == 4
