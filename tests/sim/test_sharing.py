"""Three nodes that reach one device share its files: nothing is pulled twice, parts follow the rates, nobody is waited for in vain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from stnode.protocol.messages import Request
from stnode.repo import state
from tests.support.fakepeer import FakePeer, content
from tests.support.world import World, simulated

MB = 1_000_000
FILE_BYTES = 100_000


@dataclass(eq=False)
class Uplink:
    """A device's way to one node, so many bytes per second; 0: nothing comes."""

    peer: FakePeer
    rate: float
    sent_bytes: int = 0
    _free_s: float = field(default=0.0)

    def __post_init__(self) -> None:
        self.peer.answers = self._later

    def _later(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        if self.rate:
            self._free_s = max(loop.time(), self._free_s) + request.size / self.rate
            loop.call_at(self._free_s, self._send, self.peer.handler, request)

    def _send(self, handler: Any, request: Request) -> None:
        if self.peer.handler is not None and self.peer.handler is handler:
            data, code = self.peer.answer(request)
            self.sent_bytes += len(data)
            handler.connection.send_response(request.id, data, code)
            handler.flush()


@dataclass(eq=False)
class Siblings:
    """Nodes on one bucket, each with its own connection to one and the same device."""

    worlds: list[World]
    links: list[Uplink]

    async def heard(self) -> None:
        """Long enough that each node knows the others (real ones connect to each other at once) and has said whom it reaches."""
        for world in self.worlds:
            await world.node.store.heartbeats.refresh(0)
        await self.worlds[0].pause(400)

    def write(self, names: Sequence[str], size: int = FILE_BYTES) -> None:
        """The device has these files, its index tells all nodes."""
        for link in self.links:
            with link.peer.batch():
                for name in names:
                    link.peer.write(name, content(name, size))

    def done(self, names: Sequence[str]) -> bool:
        """Whether all nodes that are alive have all of them."""
        return all(set(names) <= set(world.live()) for world in self.worlds if world.alive)

    async def until(self, names: Sequence[str], seconds: float = 600.0) -> float:
        """Waits until then; how many seconds it took."""
        began = asyncio.get_running_loop().time()
        await self.worlds[0].until(lambda: self.done(names), seconds)
        took = asyncio.get_running_loop().time() - began
        print(f"{took:.1f} s, pulled {self.pulled}")
        return took

    @property
    def pulled(self) -> list[int]:
        """Bytes that each node has been sent."""
        return [link.sent_bytes for link in self.links]

    def commits(self) -> int:
        """Number of the last commit."""
        return state.head(self.worlds[0].db._connect()).number


@asynccontextmanager
async def siblings(*rates: float, heard: bool = True) -> AsyncIterator[Siblings]:
    """Nodes that reach the device at these rates, and know of each other if they have `heard`."""
    async with AsyncExitStack() as stack:
        worlds: list[World] = []
        for number in range(len(rates)):
            beside = worlds[0] if worlds else None
            worlds.append(await stack.enter_async_context(World(number, name=f"node{number}", beside=beside)))
        links = [Uplink(world.peer("device"), rate) for world, rate in zip(worlds, rates, strict=True)]
        await worlds[0].share(links[0].peer)
        for world, link in zip(worlds, links, strict=True):
            await world.node.store.follow_to_head()
            await world.node.load_settings()
            link.peer.folder()
            await link.peer.connect()
            await world.until(lambda link=link: link.peer.configs)  # type: ignore[misc]
        made = Siblings(worlds, links)
        if heard:
            await made.heard()
        yield made


NAMES = [f"{directory}/{number:03}" for directory in "abc" for number in range(100)]
TOTAL = len(NAMES) * FILE_BYTES


@simulated
async def test_each_file_is_pulled_by_one_node() -> None:
    async with siblings(MB, MB, MB) as nodes:
        nodes.write(NAMES)
        seconds = await nodes.until(NAMES)
        assert TOTAL <= sum(nodes.pulled) < 1.03 * TOTAL, nodes.pulled
        assert all(0.25 * TOTAL < pulled < 0.42 * TOTAL for pulled in nodes.pulled), nodes.pulled
        assert seconds < 0.55 * TOTAL / MB


@simulated
async def test_parts_follow_the_rates() -> None:
    async with siblings(MB, 2 * MB, 5 * MB) as nodes:
        first = [f"first {number}" for number in range(200)]
        nodes.write(first)
        await nodes.until(first)
        await nodes.heard()
        for link in nodes.links:
            link.sent_bytes = 0
        nodes.write(NAMES)
        await nodes.until(NAMES)
        assert sum(nodes.pulled) < 1.03 * TOTAL, nodes.pulled
        for pulled, part in zip(nodes.pulled, (1 / 8, 2 / 8, 5 / 8), strict=True):
            assert abs(pulled / TOTAL - part) < 0.08, nodes.pulled


@simulated
async def test_the_work_of_a_dead_node_is_done_by_others() -> None:
    async with siblings(MB, MB, MB) as nodes:
        nodes.write(NAMES)
        await nodes.worlds[2].pause(2)
        await nodes.worlds[2].crash()
        nodes.links[2].peer.disconnect()
        seconds = await nodes.until(NAMES)
        assert seconds < 180
        assert sum(nodes.pulled) < 1.25 * TOTAL, nodes.pulled


@simulated
async def test_a_slow_node_is_helped() -> None:
    async with siblings(MB, MB, MB) as nodes:
        nodes.links[2].rate = MB / 100  # it had been fast
        nodes.write(NAMES)
        seconds = await nodes.until(NAMES)
        assert seconds < 150  # alone it would need 1,000 s for its part
        assert 0 < nodes.pulled[2] < 0.05 * TOTAL
        assert sum(nodes.pulled) < 1.1 * TOTAL, nodes.pulled


@simulated
async def test_a_change_costs_one_pack_and_one_commit() -> None:
    async with siblings(MB, MB, MB) as nodes:
        for number in range(12):
            before, packs = nodes.commits(), len(await _packs(nodes))
            nodes.write([f"single {number}"])
            await nodes.until([f"single {number}"])
            assert nodes.commits() == before + 1
            assert len(await _packs(nodes)) == packs + 1
        assert sum(pulled > 0 for pulled in nodes.pulled) > 1


@simulated
async def test_directories_deletions_and_renames_come_in_one_commit() -> None:
    async with siblings(MB, MB, MB) as nodes:
        names = [f"old/{number}" for number in range(20)]
        for link in nodes.links:
            link.peer.mkdir("old")
        nodes.write(names)
        await nodes.until(names)
        before, sent = nodes.commits(), sum(nodes.pulled)
        for link in nodes.links:
            with link.peer.batch():
                link.peer.mkdir("new")
                for number in range(20):
                    held = link.peer.folder().files[f"old/{number}"]
                    link.peer.write(f"new/{number}", held.data, mtime=held.info.modified_s)
                    link.peer.delete(f"old/{number}")
                link.peer.delete("old")
        live = sorted(["new", *(f"new/{number}" for number in range(20))])
        await nodes.worlds[0].until(lambda: all(world.live() == live for world in nodes.worlds))
        assert nodes.commits() == before + 1
        assert sum(nodes.pulled) == sent


@simulated
async def test_what_only_one_node_reaches_is_its_own_without_waiting() -> None:
    async with siblings(MB, MB, MB) as nodes:
        nodes.links[1].peer.disconnect()
        nodes.links[2].peer.disconnect()
        await nodes.heard()
        nodes.write(NAMES[:20])
        world = nodes.worlds[0]
        began = asyncio.get_running_loop().time()
        await world.until(lambda: set(NAMES[:20]) <= set(world.live()))
        assert asyncio.get_running_loop().time() - began < 4
        assert nodes.pulled[0] == 20 * FILE_BYTES


@simulated
async def test_what_two_have_pulled_is_registered_once() -> None:
    """Nodes that cannot ask each other pull everything: what comes second is dropped, and no pack is registered for nothing."""

    async def nobody(_folder_key: str, _contents: Collection[int]) -> dict[bytes, Collection[int]]:
        return {}

    async with siblings(MB, MB, heard=False) as nodes:
        for world in nodes.worlds:
            world.node.siblings.who_fetches = nobody  # type: ignore[method-assign,assignment]
        nodes.write(NAMES[:60])
        await nodes.until(NAMES[:60])
        assert sum(nodes.pulled) > 1.5 * 60 * FILE_BYTES
        await nodes.worlds[0].pause(60)
        packs = state.packs_after(nodes.worlds[0].db._connect(), 0, 1000)
        assert all(pack.refs > 0 for pack in packs)
        assert sum(pack.refs for pack in packs) == 60
        assert len(packs) < len(await _packs(nodes))


@simulated
async def test_a_node_alone_asks_the_store_for_no_heartbeats() -> None:
    async with siblings(MB) as nodes:
        listed = nodes.worlds[0].node.objects.metrics.snapshot()
        nodes.write(NAMES)
        await nodes.until(NAMES)
        after = nodes.worlds[0].node.objects.metrics.snapshot()
        assert _lists(after) == _lists(listed)
        assert nodes.pulled == [TOTAL]


async def _packs(nodes: Siblings) -> list[str]:
    return [meta.key async for meta in nodes.worlds[0].bucket.list("packs/")]


def _lists(snapshot: object) -> int:
    return sum(count.count for count in snapshot.requests if count.operation == "list")  # type: ignore[attr-defined]
