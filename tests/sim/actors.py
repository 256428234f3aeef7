"""Random lives of nodes for the seed sweep: writes, deletions, renames, conflicts, transfers, files in parts, reads, crashes, outages,
clocks that jump, days that pass, checkpoints, truncation, collection, a bucket put back."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from random import Random
from typing import Any
from unittest import mock

from stnode.errors import Conflict, StnodeError
from stnode.objectstore.faulty import FaultPlan
from stnode.protocol.fileinfo import FileType
from stnode.protocol.vector import Vector
from stnode.repo import collect_repack
from stnode.repo.records import UNCONDITIONAL, Draft, DraftSet, SetKind
from tests.sim.collector import Collector
from tests.sim.ledger import ACCOUNTS, Ledger
from tests.sim.loop import run
from tests.sim.witness import DAY_S
from tests.sim.world import BLOCK, SimNode, World, content_hash, directory, removed

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
HISTORY_US = 7 * DAY_S * 1_000_000
"""How long a folder keeps history that says nothing of it."""
SMALL_MANY = 2
"""So few small packs are repacked together here, for a life is short."""


def lived(seed: int, *, steps: int = 8, quiet: bool = False, encrypted: bool = False) -> World:
    """The world of a seed after its life, on a store that may be encrypted. Raises the first violation; unless `quiet`, the end of the trace is printed then."""
    world = World(seed, encrypted=encrypted)
    try:
        with mock.patch.object(collect_repack, "SMALL_MANY", SMALL_MANY):
            run(world.run(live(world, nodes=2 + seed % 2, steps=steps, roll_back=seed % 5 == 0)))
    except BaseException:
        if not quiet:
            print(f"seed {seed}", *world.trace[-80:], sep="\n")
        raise
    finally:
        world.close()
    return world


async def live(world: World, *, nodes: int = 2, steps: int = 8, roll_back: bool = False) -> None:
    """A whole run: a store, nodes that live at random, faults, and the invariants at the end."""
    random = Random(f"actors {world.seed}")
    ledger = Ledger(world)
    await world.two()
    for _ in range(nodes - 2):
        await world.node(skew_s=random.uniform(-9000, 9000))
    await ledger.open(world.nodes[0])
    for node in world.nodes:
        node.may_be_void = False  # what the committer judges never is
        node.plan = ROUGH if random.random() < 0.7 else CALM
        node.faulty.plan = node.plan
    lives = [_Life(world, node, ledger, Random(f"{world.seed} {node.number}")) for node in world.nodes]
    await asyncio.gather(*(life.run(steps) for life in lives))
    if roll_back:
        await _put_back(world, ledger, random)
        await asyncio.gather(*(life.run(2) for life in lives))
    await world.settle()
    await asyncio.gather(*(life.close() for life in lives))
    await world.check()
    ledger.check()
    for node in world.nodes:
        await _read_all(node)


async def _read_all(node: SimNode) -> None:
    """Every node can read everything in the end, with all that it keeps in memory from before."""
    for record in node.names().values():
        if not record.info.deleted and record.info.type is FileType.FILE:
            try:
                await node.read(record)
            except StnodeError as exc:
                node.world.violate("resolvable", f"node {node.number} cannot read {record.name}: {exc.message}")


async def _put_back(world: World, ledger: Ledger, random: Random) -> None:
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
    ledger.forget()
    for each in world.nodes:
        each.faulty.plan = CALM
    await asyncio.sleep(1200)


class _Life:
    """What happens on one node."""

    def __init__(self, world: World, node: SimNode, ledger: Ledger, random: Random) -> None:
        self._world = world
        self._node = node
        self._ledger = ledger
        self._random = random
        self._collector = Collector(node)
        self._tasks: dict[asyncio.Task[Any], None] = {}

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await asyncio.sleep(self._random.choice((0.0, 0.05, 0.4, 1.5)))
            await self._step()

    async def close(self) -> None:
        """Waits for what was begun by the life that goes on."""
        async with asyncio.timeout(20_000):
            await asyncio.gather(*self._tasks)

    async def _step(self) -> None:
        roll, random = self._random.random(), self._random
        if roll < 0.52:
            self._spawn(self._change())
        elif roll < 0.66:
            self._spawn(self._ledger.transfer(self._node, random))
        elif roll < 0.70:
            self._spawn(self._read())
        elif roll < 0.72:
            self._spawn(self._in_parts())
        elif roll < 0.77:
            self._spawn(self._collector.step(random))
        elif roll < 0.80:
            self._spawn(self._collect())
        elif roll < 0.86:
            await self._crash()
        elif roll < 0.90:
            self._spawn(self._checkpoint())
        elif roll < 0.93:
            self._node.faulty.plan = DARK
            await asyncio.sleep(random.choice((1, 20, 100)))
            self._node.faulty.plan = self._node.plan
        elif roll < 0.95:
            self._node.clock.skew_s += random.choice((-7200, -60, 60, 86_400 * 3))
        elif roll < 0.98:
            self._world.leap(random.choice((3600, 90_000, 90_000, 200_000)))
        else:
            await asyncio.sleep(random.choice((20, 90)))

    def _spawn(self, coro: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(coro)
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

    async def _collect(self) -> None:
        """A pass of the product's own collector, now and when the grace of what it condemned is over."""
        for wait_s in (0, 90_000, 90_000):
            self._world.leap(wait_s)
            self._world.history_ends(self._world.bucket.now_ns // 1000 - HISTORY_US)
            try:
                report = await self._node.store.collector.collect(insist=True)
            except StnodeError as exc:
                self._world.note(f"n{self._node.number} collects nothing: {exc.kind} {exc.message}")
            else:
                self._world.note(f"n{self._node.number} collected: {report.objects_deleted} deleted, {report.packs_condemned} condemned")

    async def _read(self) -> None:
        """Reads a few files, whose content must be right where it can be read at all."""
        records = [record for record in self._node.names().values() if not record.info.deleted and record.extents]
        for record in self._random.sample(records, min(3, len(records))):
            try:
                await self._node.read(record)
            except StnodeError as exc:
                self._world.note(f"n{self._node.number} cannot read {record.name}: {exc.kind}")

    async def _in_parts(self) -> None:
        """A file of three blocks, the first two of them registered as a partial file before the last is there."""
        node, version, name = self._node, self._version(), f"big{self._random.randint(0, 1)}"
        parts = [hashlib.sha256(f"{name}{version}{number}".encode()).digest() * (BLOCK // 32) for number in range(3)]
        info = self._world.file_info(name, b"".join(parts), version, mtime=1000 + version[0][1], by=version[0][0])
        first = await node.pack(*parts[:2])
        try:
            await node.store.submit_partial(1, info, [(0, (first, 0, 2))])
        except StnodeError as exc:
            self._world.note(f"n{node.number} partial: {exc.message}")
        last = await node.pack(parts[2])
        await node.submit(Draft(1, info, ((first, 0, 2), (last, 0, 1))))

    async def _change(self) -> None:
        drafts = [await self._draft() for _ in range(self._random.choice((1, 1, 2, 4)))]
        await asyncio.sleep(self._random.choice((0.0, 0.0, 0.0, 1.0, 5.0)))  # the state moves on under a plan
        outcomes = await self._node.submit(*drafts)
        assert outcomes

    async def _draft(self) -> Draft | DraftSet:
        random, node = self._random, self._node
        name, roll = random.choice(NAMES), random.random()
        version = self._version()
        current = node.record(name)
        base = current.info.version if current else None
        if roll < 0.22:
            condition = random.choice((UNCONDITIONAL, UNCONDITIONAL, base, None))
            return await node.local(name, f"local {node.number} {random.random()}", base, condition)
        if roll < 0.28:
            draft = await node.local(random.choice(WRITTEN), f"once {node.number} {random.random()}")
            self._world.written_once.add(content_hash(draft.info))
            return draft
        if roll < 0.34:
            return Draft(1, removed(name, ()).info, (), local=True, base=base)
        if roll < 0.42:
            return removed(name, version, mtime=1000 + version[0][1])
        if roll < 0.48:
            return directory("d", version, deleted=random.random() < 0.5)
        if roll < 0.56:
            return DraftSet(SetKind.NEW_FIRST, (await self._pulled("b", version), removed("a", version)))
        if roll < 0.62:
            gone = [removed(child, version) for child in ("d/x", "d/y")]
            return DraftSet(SetKind.ALL_OR_NONE, (*gone, directory("d", version, deleted=True)))
        if roll < 0.74:
            return await self._copied(name, version)
        return await self._pulled(name, version)

    async def _copied(self, name: str, version: Vector) -> Draft:
        """A file that has the content of another, of an old version or of a partial file: its blocks are named where they are (R2, R3)."""
        found: dict[bytes, tuple[bytes, Any]] = {}
        for record in [*self._node.names().values(), *self._node.old_versions()]:
            blocks = content_hash(record.info)
            if record.extents and blocks in self._world.contents and record.name not in (*ACCOUNTS, *WRITTEN):
                found[blocks] = (self._world.contents[blocks], record.extents)
        if not found:
            return await self._pulled(name, version)
        content, extents = found[self._random.choice(sorted(found))]
        info = self._world.file_info(f"copy of {name}", content, version, mtime=1000 + version[0][1], by=version[0][0])
        return Draft(1, info, extents)

    async def _pulled(self, name: str, version: Vector) -> Draft:
        """A peer's version: its content and time follow from name and version, but for the odd broken peer."""
        odd = "!" if self._random.random() < 0.05 else ""
        mtime = 1000 + sum(value * 7 % 5 for _, value in version)
        return await self._node.file(name, f"{name}{version}{odd}", version, mtime=mtime, by=version[0][0])

    def _version(self) -> Vector:
        peers = sorted(self._random.sample((1, 2, 3), self._random.choice((1, 1, 2))))
        return tuple((peer, self._random.randint(1, 6)) for peer in peers)
