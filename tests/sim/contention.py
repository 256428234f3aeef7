"""Many nodes that write all the time: who gets in, how long it takes, what it costs (R17). Not a model: `Store` and everything below it, on the
virtual loop, over a bucket whose requests take as long as a store's.

`simulate(load)` gives `Figures`; `tests/sim/test_contention.py` asserts what is promised, `bench/contention.py` prints a table.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from statistics import quantiles

from stnode.clock import Env, InlineThreads, SeededRandomness
from stnode.db import Database
from stnode.objectstore.base import Blob, Buffer, IfMatch, Key, Meta, Mode, ObjectStore, PutResult
from stnode.objectstore.memory import MemoryStore
from stnode.objectstore.wrappers import Wrapper
from stnode.protocol.deviceid import DeviceID
from stnode.repo.journal import JournalOptions
from stnode.repo.records import DraftSet, SetKind, Status
from stnode.repo.store import SettingsChange, Store, new_folder
from tests.sim.loop import run
from tests.sim.world import SimClock, directory

Z99 = 2.326
"""Standard deviations from the median to the 99th percentile."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds that a request takes, lognormal: median and 99th percentile."""

    p50_s: float
    p99_s: float

    def draw(self, random: SeededRandomness) -> float:
        """One request's."""
        normal = math.sqrt(-2 * math.log(1 - random.uniform(0, 1))) * math.cos(2 * math.pi * random.uniform(0, 1))
        return self.p50_s * math.exp(normal * math.log(self.p99_s / self.p50_s) / Z99)


GROUP_RECORDS = 900
PUT = Latency(0.100, 0.195)
GET = Latency(0.063, 0.078)


@dataclass(frozen=True, slots=True)
class Load:
    """`nodes` submit `records` new records each `every_s`, whatever is waiting, for `seconds`. Of the first `slow` of them every upload of a body
    takes `slow_s` longer, and their groups are of `slow_records`, too large for a slot; the first `greedy` always have another full group."""

    nodes: int = 10
    seconds: float = 120.0
    every_s: float = 0.25
    records: int = 1
    slow: int = 0
    slow_s: float = 2.0
    slow_records: int = 900
    greedy: int = 0
    seed: int = 0


@dataclass(slots=True)
class Figures:
    """`commits` by node; `waits_s` from the submission to the answer, of all records of all nodes and of the slow ones; `puts` of slots, won
    and lost; `gets` of anything."""

    load: Load
    commits: list[int]
    waits_s: list[float] = field(default_factory=list)
    slow_waits_s: list[float] = field(default_factory=list)
    puts: int = 0
    gets: int = 0
    bodies: int = 0

    @property
    def puts_per_commit(self) -> float:
        return self.puts / sum(self.commits)

    @property
    def gets_per_commit(self) -> float:
        return self.gets / sum(self.commits)

    @property
    def least_share(self) -> float:
        """Commits of the node that has fewest, as a part of the mean; greedy ones left out."""
        commits = self.commits[self.load.greedy :]
        return min(commits) * len(commits) / sum(commits)

    def wait_s(self, percent: int) -> float:
        """Percentile of the waits."""
        return quantiles(self.waits_s, n=100)[percent - 1]

    @property
    def dollars_a_day(self) -> float:
        """What all nodes together pay AWS for these requests, were they to go on: $5 a million PUTs, $0.40 a million GETs."""
        return ((self.puts + self.bodies) * 5 + self.gets * 0.4) / 1e6 * 86_400 / self.load.seconds


class _Distant(Wrapper):
    """A bucket as one node reaches it: each request takes effect half way."""

    def __init__(self, inner: ObjectStore, random: SeededRandomness, body_s: float) -> None:
        super().__init__(inner)
        self.count: Counter[str] = Counter()
        self._random = random
        self._body_s = body_s

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        half_s = self._begin("get", GET)
        await asyncio.sleep(half_s)
        try:
            return await self.inner.get(key, start, length)
        finally:
            await asyncio.sleep(half_s)

    async def head(self, key: Key) -> Meta:
        half_s = self._begin("get", GET)
        await asyncio.sleep(half_s)
        try:
            return await self.inner.head(key)
        finally:
            await asyncio.sleep(half_s)

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        kind = "body" if key.startswith("bodies/") else "slot" if key.startswith("journal/") else "other"
        half_s = self._begin(kind, PUT) + (self._body_s if kind == "body" else 0.0)
        await asyncio.sleep(half_s)
        try:
            return await self.inner.put(key, data, mode)
        finally:
            await asyncio.sleep(half_s if kind != "body" else PUT.p50_s / 2)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        await asyncio.sleep(GET.p50_s)
        async for meta in self.inner.list(prefix, start_after=start_after):
            yield meta

    def _begin(self, kind: str, latency: Latency) -> float:
        self.count[kind] += 1
        return latency.draw(self._random) / 2


class _Node:
    """One writer."""

    def __init__(self, load: Load, number: int, bucket: MemoryStore, clock: SimClock) -> None:
        self.slow = number < load.slow
        self.greedy = number < load.greedy
        self.distant = _Distant(bucket, SeededRandomness(f"net {load.seed} {number}"), load.slow_s if self.slow else 0.0)
        self.waits_s: list[float] = []
        self._load = load
        self._number = number
        self._env = Env(clock, SeededRandomness(f"node {load.seed} {number}"), InlineThreads())
        self._device = DeviceID(hashlib.sha256(f"node {number}".encode()).digest())
        self._db = Database(None, inline=True)
        self._told: set[asyncio.Task[None]] = set()
        self._names = 0

    async def open(self) -> None:
        self.store = await Store.open(
            self.distant, self._db, self._env, self._device, journal_options=JournalOptions(group_records=GROUP_RECORDS)
        )

    async def write(self) -> None:
        """Submits until the time is over; what is answered later does not count."""
        load, clock = self._load, self._env.clock
        await clock.sleep(self._env.random.uniform(0, 1))
        end = clock.monotonic() + load.seconds
        while clock.monotonic() < end:
            records = load.slow_records if self.slow else GROUP_RECORDS if self.greedy else load.records
            task = asyncio.ensure_future(self._submit(records))
            self._told.add(task)
            task.add_done_callback(self._told.discard)
            if self.slow:
                await task
            elif self.greedy:
                while len(self._told) > 3:
                    await asyncio.wait(self._told, return_when=asyncio.FIRST_COMPLETED)
            else:
                await clock.sleep(load.every_s)

    async def close(self) -> None:
        for task in tuple(self._told):
            task.cancel()
        await asyncio.gather(*self._told, return_exceptions=True)
        await self.store.close()
        await self._db.close()

    async def _submit(self, records: int) -> None:
        started = self._env.clock.monotonic()
        outcomes = await self.store.submit([self._set() for _ in range(records)])
        assert {outcome.status for outcome in outcomes} == {Status.COMMITTED}
        self.waits_s.append(self._env.clock.monotonic() - started)

    def _set(self) -> DraftSet:
        self._names += 1
        name = hashlib.sha256(f"{self._number}/{self._names}".encode()).hexdigest()
        return DraftSet(SetKind.SINGLE, (directory(name, ((1, 1),)),))


def simulate(load: Load) -> Figures:
    """Runs a load in virtual time."""
    return run(_simulate(load))


async def _simulate(load: Load) -> Figures:
    clock = SimClock()
    bucket = MemoryStore(Env(clock, SeededRandomness(load.seed), InlineThreads()))
    env = Env(clock, SeededRandomness(f"world {load.seed}"), InlineThreads())
    await Store.init(bucket, env)
    nodes = [_Node(load, number, bucket, clock) for number in range(load.nodes)]
    await nodes[0].open()
    await nodes[0].store.submit_settings(SettingsChange(folders=(new_folder(env.random, "f"),)))
    for node in nodes[1:]:
        await node.open()
    for node in nodes:
        node.distant.count.clear()
    won = [node.store.status().journal.counts.won for node in nodes]
    await asyncio.gather(*(node.write() for node in nodes))
    figures = Figures(load, [node.store.status().journal.counts.won - before for node, before in zip(nodes, won, strict=True)])
    for node in nodes:
        figures.puts += node.distant.count["slot"]
        figures.gets += node.distant.count["get"]
        figures.bodies += node.distant.count["body"]
        (figures.slow_waits_s if node.slow else figures.waits_s).extend(node.waits_s)
    for node in nodes:
        await node.close()
    return figures
