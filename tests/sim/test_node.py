"""Seeded runs of a node between two or three devices: edits, conflicts, broken connections, a store that loses requests and answers,
crashes. Afterwards everybody has the same, nothing was announced that is not committed, and every announced block hashes right.

Each announced item is compared with the committed state as it is heard (`FakePeer._heard`), each block as it is read (`World.check`).
`SIM_SEEDS` (make soak) sets how many seeds are run.
"""

from __future__ import annotations

import os
from random import Random

import pytest

from stnode.objectstore.faulty import FaultPlan
from tests.support.fakepeer import FakePeer, content
from tests.support.world import World, simulated

BLOCK = 128 << 10
SEEDS = int(os.environ.get("SIM_SEEDS", "25"))
NAMES = ("x", "y.txt", "d/x", "d/y", "d/e/x", "z")
TROUBLES = (
    FaultPlan(),
    FaultPlan(lost_request=0.2, lost_response=0.2),
    FaultPlan(busy=0.4, retry_after_s=(0.1, 2.0)),
    FaultPlan(undecided=0.3, unreachable=0.1, truncated=0.1),
    FaultPlan(unreachable=1.0),
    FaultPlan(late_write=0.3, latency_s=(0.01, 0.5), late_s=(0.5, 5.0)),
)


def _edit(rng: Random, peer: FakePeer, step: int) -> None:
    """One change of a user, by what the device has."""
    files = peer.folder().files
    live = sorted(name for name, held in files.items() if held.live and held.info.type.name == "FILE")
    name = rng.choice(NAMES)
    peer.now_s += rng.randrange(3)
    match rng.randrange(8):
        case 0 | 1 | 2:
            for at in range(name.count("/")):
                parent = "/".join(name.split("/")[: at + 1])
                if parent not in files or not files[parent].live:
                    peer.mkdir(parent)
            size = rng.choice((0, 10, 1000, BLOCK, 3 * BLOCK + 5, 12 * BLOCK))
            peer.write(name, content(f"{peer.name} {step}", size))
        case 3 if live:
            peer.delete(rng.choice(live))
        case 4 if live:
            peer.rename(rng.choice(live), f"renamed {peer.name} {step % 5}")
        case 5 if live:
            old = rng.choice(live)
            peer.write(old, files[old].data, permissions=rng.choice((0o600, 0o644, 0o755)))
        case 6 if live:
            old = rng.choice(live)
            peer.write(old, files[old].data + content(f"{peer.name} {step}", 100))
        case _:
            peer.symlink(f"link {rng.randrange(2)}", f"{peer.name} {step}")


async def _connect(world: World, peer: FakePeer) -> None:
    """Tries until it stands: the node may still have the connection of before, or be off line."""
    for _ in range(200):
        if peer.connected:
            return
        try:
            await peer.connect()
        except Exception:  # noqa: BLE001 - a refused connection is tried again, as devices do
            await world.pause(5)


async def _run(world: World, rng: Random, peers: list[FakePeer]) -> None:
    for step in range(rng.randrange(30, 80)):
        peer = rng.choice(peers)
        match rng.randrange(20):
            case 0:
                peer.disconnect()
            case 1:
                await _connect(world, peer)
            case 2:
                world.faulty.plan = rng.choice(TROUBLES)
            case 3:
                await world.faulty.settle()
                await world.crash()
                await world.start(keep_cache=rng.random() < 0.5)
            case 4:
                peer.answers = rng.choice((peer.answer, lambda _request: (b"", 1), lambda request: (b"\1" * request.size, 0)))
            case 5:
                await world.pause(rng.choice((1, 10, 100)))
            case _:
                _edit(rng, peer, step)
        await world.pause(rng.choice((0, 0, 0.01, 0.3, 2)))


async def _settle(world: World, peers: list[FakePeer]) -> None:
    """Heals everything; returns when all have the same and nothing is under way."""
    world.faulty.plan = FaultPlan()
    await world.faulty.settle()
    for peer in peers:
        peer.answers = peer.answer
        peer.disconnect()
    await world.pause(10)
    for peer in peers:
        await _connect(world, peer)

    def same() -> bool:
        node = world.live()
        return world.runner().state == "idle" and all(sorted(peer.folder().live()) == node for peer in peers)

    await world.until(same, 20_000)
    await world.pause(30)
    await world.until(same, 20_000)


@pytest.mark.expects_log("journal cannot go on|checkpoint|partial file not kept|block not served|pull stopped")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_everybody_ends_with_the_same(seed: int) -> None:
    @simulated
    async def scenario() -> None:
        rng = Random(seed)
        async with World(seed) as world:
            peers = [world.peer(name, follows=True) for name in "abc"[: rng.choice((2, 3))]]
            await world.share(*peers)
            for peer in peers:
                await _connect(world, peer)
            await _run(world, rng, peers)
            await _settle(world, peers)
            first = peers[0].folder()
            for peer in peers:
                assert peer.folder().live() == first.live()
                versions = {name: held.info.version for name, held in peer.folder().files.items() if held.live}
                assert versions == {name: world.version(name) for name in versions}
            for name, (kind, data) in first.live().items():
                if kind == "FILE":
                    assert await world.content(name) == data

    scenario()
