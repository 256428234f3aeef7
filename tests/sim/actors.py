"""Random lives of nodes for the seed sweep: writes, deletions, renames, conflicts, crashes, outages, checkpoints, a bucket put back."""

from __future__ import annotations

import asyncio
from random import Random

from stnode.errors import Conflict, StnodeError
from stnode.objectstore.faulty import FaultPlan
from stnode.protocol.vector import Vector
from stnode.repo.records import UNCONDITIONAL, Draft, DraftSet, SetKind
from tests.sim.world import SimNode, World, content_hash, directory, file_info, removed

NAMES = ("a", "b", "d", "d/x", "d/y", "d/e/z", "n.txt")
WRITTEN = ("w1", "w2")
"""Names that only clients write, never delete: what they write must be there exactly once."""
CALM = FaultPlan(latency_s=(0.01, 0.08))
ROUGH = FaultPlan(
    latency_s=(0.01, 0.3),
    unreachable=0.02,
    busy=0.02,
    lost_request=0.05,
    late_write=0.08,
    lost_response=0.08,
    undecided=0.05,
    truncated=0.01,
    bit_flip=0.01,
    late_s=(0.5, 20.0),
    retry_after_s=(0.1, 1.0),
)
DARK = FaultPlan(unreachable=1.0)


async def live(world: World, *, nodes: int = 2, steps: int = 8, roll_back: bool = False) -> None:
    """A whole run: a store, nodes that live at random, faults, and the invariants at the end."""
    random = Random(f"actors {world.seed}")
    await world.two()
    for _ in range(nodes - 2):
        await world.node(skew_s=random.uniform(-9000, 9000))
    for node in world.nodes:
        node.plan = ROUGH if random.random() < 0.7 else CALM
        node.faulty.plan = node.plan
    lives = [_Life(world, node, Random(f"{world.seed} {node.number}")) for node in world.nodes]
    await asyncio.gather(*(life.run(steps) for life in lives))
    if roll_back:
        await _put_back(world, random)
        await asyncio.gather(*(life.run(2) for life in lives))
    await world.settle()
    await asyncio.gather(*(life.close() for life in lives))
    await world.check()
    assert not any(applied.void for node in world.nodes for applied in node.applied), "what the committer judges is never void"


async def _put_back(world: World, random: Random) -> None:
    """An operator puts the bucket back to a backup while nobody reaches it. What was on its way has landed before."""
    await world.settle()
    backup = world.bucket.snapshot()
    [node] = [node for node in world.nodes if node.alive][:1]
    for number in range(random.randint(1, 4)):
        await node.submit(await node.file(f"lost{number}", "lost", ((9, number + 1),)))
    for each in world.nodes:
        each.faulty.plan = DARK
    await asyncio.sleep(random.uniform(100, 200))
    world.bucket.restore(backup)
    world.forget()
    for each in world.nodes:
        each.faulty.plan = CALM
    await asyncio.sleep(1200)


class _Life:
    """What happens on one node."""

    def __init__(self, world: World, node: SimNode, random: Random) -> None:
        self._world = world
        self._node = node
        self._random = random
        self._tasks: dict[asyncio.Task[None], None] = {}

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(self._random.choice((0.0, 0.05, 0.4, 1.5)))
            await self._step()

    async def close(self) -> None:
        """Waits for what was submitted by the life that goes on."""
        async with asyncio.timeout(20_000):
            await asyncio.gather(*self._tasks)

    async def _step(self) -> None:
        roll = self._random.random()
        if roll < 0.82:
            self._spawn(self._change())
        elif roll < 0.90:
            await self._crash()
        elif roll < 0.94:
            self._spawn(self._checkpoint())
        elif roll < 0.97:
            self._node.faulty.plan = DARK
            await asyncio.sleep(self._random.choice((1, 20, 100)))
            self._node.faulty.plan = self._node.plan
        else:
            await asyncio.sleep(self._random.choice((20, 90)))

    def _spawn(self, coro: object) -> None:
        task = asyncio.ensure_future(coro)  # type: ignore[call-overload]
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def _crash(self) -> None:
        self._node.crash()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.sleep(self._random.choice((0.0, 1.0, 70.0)))
        keep = self._random.random() < 0.6
        while True:
            try:
                await self._node.start(keep_cache=keep)
            except StnodeError:
                self._node.crash()
                await asyncio.sleep(1)
            else:
                return

    async def _checkpoint(self) -> None:
        try:
            await self._world.checkpoint(self._node)
            await self._node.submit(await self._node.file("n.txt", "c", ((8, self._random.randint(1, 99)),)))
            await self._world.checkpoint(self._node)
            await self._world.truncate(self._node)
        except Conflict:
            pass

    async def _change(self) -> None:
        outcomes = await self._node.submit(*[await self._draft() for _ in range(self._random.choice((1, 1, 2, 4)))])
        assert outcomes

    async def _draft(self) -> Draft | DraftSet:
        random, node = self._random, self._node
        name, roll = random.choice(NAMES), random.random()
        version = self._version()
        current = node.record(name)
        base = current.info.version if current else None
        if roll < 0.25:
            condition = random.choice((UNCONDITIONAL, UNCONDITIONAL, base, None))
            return await node.local(name, f"local {node.number} {random.random()}", base, condition)
        if roll < 0.31:
            draft = await node.local(random.choice(WRITTEN), f"once {node.number} {random.random()}")
            self._world.written_once.add(content_hash(draft.info))
            return draft
        if roll < 0.37:
            return Draft(1, removed(name, ()).info, (), local=True, base=base)
        if roll < 0.47:
            return removed(name, version, mtime=1000 + version[0][1])
        if roll < 0.53:
            return directory("d", version, deleted=random.random() < 0.5)
        if roll < 0.62:
            return DraftSet(SetKind.NEW_FIRST, (await self._pulled("b", version), removed("a", version)))
        if roll < 0.68:
            gone = [removed(child, version) for child in ("d/x", "d/y")]
            return DraftSet(SetKind.ALL_OR_NONE, (*gone, directory("d", version, deleted=True)))
        return await self._pulled(name, version)

    async def _pulled(self, name: str, version: Vector) -> Draft:
        """A peer's version: its content and time follow from name and version, but for the odd broken peer."""
        odd = "!" if self._random.random() < 0.05 else ""
        handle = await self._node.pack(f"{name}{version}{odd}".encode())
        info = file_info(name, f"{name}{version}{odd}", version, mtime=1000 + sum(value * 7 % 5 for _, value in version), by=version[0][0])
        return Draft(1, info, ((handle, 0, 1),))

    def _version(self) -> Vector:
        peers = sorted(self._random.sample((1, 2, 3), self._random.choice((1, 1, 2))))
        return tuple((peer, self._random.randint(1, 6)) for peer in peers)
