"""Nodes of one store: they find each other by heartbeats alone, hint each other, keep out of each other's indexes, and give way to a newer
process of the same identity."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from stnode.folder.sharing import PASSED_OVER_S
from stnode.net import base as net
from stnode.node.sibling_session import ANSWER_S
from stnode.node.siblings import BEAT_S, GIVEN_WAY_LOOK_S, Siblings
from stnode.protocol.connection import BEPConnection
from stnode.protocol.messages import Claim, ClusterConfig, Hello, Hint, Request
from stnode.repo import layout
from stnode.repo.heartbeat import Heartbeat, Heartbeats
from stnode.repo.settings import DeviceSettings, FolderDevice
from stnode.repo.store import SettingsChange
from tests.support.fakepeer import FakePeer, content, device_of, identity_of
from tests.support.links import MemoryLink, Recorder
from tests.support.world import World, simulated


@asynccontextmanager
async def nodes(*names: str) -> AsyncIterator[list[World]]:
    """A node named "node" and more on its bucket, none of which was told of another."""
    async with World() as first:
        worlds = [first]
        for name in names:
            world = World(name=name, beside=first)
            worlds.append(await world.__aenter__())
        try:
            yield worlds
        finally:
            for world in reversed(worlds[1:]):
                await world.__aexit__(None, None, None)


def siblings(world: World) -> Siblings:
    return world.node.siblings


def connected(world: World, other: World) -> bool:
    """Whether the two nodes are connected, as the first sees it."""
    known = siblings(world).states.get(other.device)
    return known is not None and known.session is not None and known.session.greeting is not None


def in_bucket(world: World, other: World) -> Heartbeat | None:
    """What the second one's heartbeat says to the first."""
    return world.node.store.heartbeats.known.get(other.device)


# --- finding each other


@simulated
async def test_nodes_that_know_only_the_bucket_connect_with_each_other() -> None:
    async with nodes("b", "c") as (a, b, c):
        pairs = [(x, y) for x in (a, b, c) for y in (a, b, c) if x is not y]
        await a.until(lambda: all(connected(x, y) for x, y in pairs), 30)
        heartbeat = in_bucket(a, b)
        assert heartbeat is not None
        assert (heartbeat.name, heartbeat.addresses) == ("b", ("memory://b:22000",))
        assert not a.node.connections.pending_devices
        assert not a.node.devices


@simulated
async def test_a_lost_connection_is_made_again() -> None:
    async with nodes("b") as (a, b):
        await a.until(lambda: connected(a, b))
        session = siblings(a).states[b.device].session
        assert session is not None
        assert session.link is not None
        session.link.abort()
        await a.until(lambda: not connected(b, a))
        await a.until(lambda: connected(a, b) and connected(b, a))


@simulated
async def test_a_node_that_stopped_is_not_dialed_and_one_that_starts_again_is_found() -> None:
    async with nodes("b") as (a, b):
        await a.until(lambda: connected(a, b))
        await b.stop()
        await a.until(lambda: not connected(a, b))
        await a.until(lambda: (known := in_bucket(a, b)) is not None and known.stopped, 2 * BEAT_S)
        await a.until(lambda: not siblings(a).states[b.device].dialer)
        assert siblings(a).knows(b.device)
        await b.start()
        await a.until(lambda: connected(a, b))


@simulated
async def test_a_device_without_a_heartbeat_stays_outside() -> None:
    async with World() as world:
        stranger = identity_of(device_of("stranger"))
        for _ in range(3):
            with pytest.raises(Exception, match="closed"):
                await net.dial(world.env, world.address, stranger, world.device, lambda _device, _address: Recorder())
            await world.pause(20)
        assert device_of("stranger") in world.node.connections.pending_devices
        assert not siblings(world).states


@simulated
async def test_unknown_devices_do_not_hammer_the_store() -> None:
    async with World() as world:
        await world.pause(60)
        before = world.node.objects.metrics.snapshot().count("get")
        stranger = identity_of(device_of("stranger"))
        for _ in range(200):
            with pytest.raises(Exception, match="closed"):
                await net.dial(world.env, world.address, stranger, world.device, lambda _device, _address: Recorder())
            await world.pause(0.1)
        assert world.node.objects.metrics.snapshot().count("get") - before <= 2 + 3  # of 20 s: two or three looks, and the journal's own


@simulated
async def test_a_node_that_was_removed_is_not_let_in_until_it_writes_again() -> None:
    async with nodes("b", "c") as (a, b, c):
        await a.until(lambda: connected(a, b) and connected(c, b))
        await b.crash()  # as if its rights had been taken away: it writes no more
        await siblings(a).remove("b")
        assert layout.heartbeat_key(b.device) not in a.bucket.snapshot()
        await a.until(lambda: not siblings(a).knows(b.device) and not siblings(c).knows(b.device), 2 * BEAT_S)
        with pytest.raises(Exception, match="closed"):
            await net.dial(a.env, a.address, identity_of(b.device), a.device, lambda _device, _address: Recorder())
        await b.start()
        await a.until(lambda: connected(a, b) and connected(c, b), BEAT_S)


# --- what they say to each other


@simulated
async def test_a_commit_is_hinted_and_reaches_the_siblings_peers_at_once() -> None:
    async with nodes("b") as (a, b):
        peer = await a.connected("p", follows=True)
        other = b.peer("q", follows=True)
        await a.share(peer, other)
        await b.until(lambda: other.device in b.node.connections._numbers)
        other.folder()
        await other.connect()
        await b.until(lambda: connected(a, b) and connected(b, a))
        await b.pause(60)  # the follower's pace is the idle one now
        began = b.clock.monotonic()
        peer.write("x", content("x", 100))
        await b.until(lambda: "x" in other.folder().heard)
        assert b.clock.monotonic() - began < 1.0


# --- who fetches what


FILES = [f"{number:02}" for number in range(40)]
FILE_BYTES = 50_000


@asynccontextmanager
async def two_with_a_peer_each() -> AsyncIterator[tuple[World, World, FakePeer, FakePeer]]:
    """Siblings that are connected; each reaches a device of its own, and has said so nowhere."""
    async with nodes("b") as (a, b):
        await a.until(lambda: connected(a, b) and connected(b, a))
        p = await a.connected("p")
        q = b.peer("q")
        await a.share(p, q)
        await b.until(lambda: q.device in b.node.connections._numbers)
        q.folder()
        await q.connect()
        await b.until(lambda: q.configs)
        yield a, b, p, q


def offer(peer: FakePeer, names: Sequence[str] = FILES, **fields: Any) -> None:
    with peer.batch():
        for name in names:
            peer.write(name, content(name, FILE_BYTES), mtime=1_600_000_000, **fields)


async def offer_one_by_one(a: World, p: FakePeer, q: FakePeer, answers: Callable[[Request], None] = lambda _request: None) -> None:
    """The second device offers what the node of the first has asked for in full and not got; `answers` is what that one does with requests."""
    p.answers = answers
    offer(p)
    await a.until(lambda: len(p.requests) == len(FILES))
    offer(q)


def live_in(*worlds: World) -> bool:
    return all(set(FILES) <= set(world.live()) for world in worlds)


@pytest.mark.parametrize("alike", [True, False], ids=["one version", "concurrent versions"])
def test_what_two_devices_offer_at_once_is_fetched_once(alike: bool) -> None:
    """Each node hears of one device only, and of no heartbeat that reaches the other one: rendezvous alone lets both fetch all."""

    @simulated
    async def scenario() -> None:
        async with two_with_a_peer_each() as (a, b, p, q):
            for peer in (p, q):
                offer(peer, version=((1, 7),) if alike else None)
            await a.until(lambda: live_in(a, b))
            assert len(p.requests) + len(q.requests) == len(FILES)
            assert len(p.requests) > 5
            assert len(q.requests) > 5
            await a.pause(60)
            assert a.live() == b.live() == FILES
            assert len(p.requests) + len(q.requests) == len(FILES)

    scenario()


@simulated
async def test_what_is_offered_later_is_left_to_who_fetches_it() -> None:
    async with two_with_a_peer_each() as (a, b, p, q):
        waiting: list[Request] = []
        await offer_one_by_one(a, p, q, waiting.append)
        await a.pause(2)
        assert not q.requests
        assert p.handler is not None
        for request in waiting:
            data, code = p.answer(request)
            p.handler.connection.send_response(request.id, data, code)
        p.handler.flush()
        await a.until(lambda: live_in(a, b))
        assert not q.requests


@simulated
async def test_what_a_sibling_fetches_no_more_is_fetched() -> None:
    async with two_with_a_peer_each() as (a, b, p, q):
        await offer_one_by_one(a, p, q)
        await a.pause(2)
        assert not q.requests
        p.disconnect()
        began = a.clock.monotonic()
        await a.until(lambda: live_in(a, b))
        assert a.clock.monotonic() - began < 20
        assert len(q.requests) == len(FILES)


@simulated
async def test_a_sibling_that_gets_nowhere_is_not_waited_for() -> None:
    async with two_with_a_peer_each() as (a, b, p, q):
        await offer_one_by_one(a, p, q)
        began = a.clock.monotonic()
        await a.until(lambda: live_in(a, b), 2 * PASSED_OVER_S)
        assert 30 < a.clock.monotonic() - began < PASSED_OVER_S + 20  # it is helped, then passed over
        assert len(q.requests) == len(FILES)


@simulated
async def test_a_sibling_that_does_not_answer_costs_half_a_second() -> None:
    async with World() as world:
        peer = await world.connected("p")
        liar = _Liar(world, "liar")
        await liar.enter()
        began = world.clock.monotonic()
        for number in range(5):
            peer.write(f"{number}", content(f"{number}", 1000))
            await world.until(lambda number=number: world.record(f"{number}"))  # type: ignore[misc]
        assert sum(isinstance(event, Claim) for event in liar.events) == 1
        assert ANSWER_S < world.clock.monotonic() - began < 10
        assert liar.link is not None
        liar.link.abort()


class _Liar:
    """A device with a heartbeat that talks the protocol, and says what a test wants."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.device = world, device_of(name)
        self.conn = BEPConnection(0.0)
        self.link: MemoryLink | None = None
        self.events: list[object] = []

    async def enter(self) -> None:
        beats = Heartbeats(self.world.bucket, self.world.env, lambda: 0)
        await beats.write(Heartbeat(self.device, 1, "liar"))
        await siblings(self.world)._beats.refresh(0)
        await net.dial(self.world.env, self.world.address, identity_of(self.device), self.world.device, lambda _device, _address: self)  # type: ignore[arg-type,return-value]
        await self.world.until(lambda: any(isinstance(event, ClusterConfig) for event in self.events))

    def link_made(self, link: MemoryLink, _peer: object) -> None:
        self.link = link
        self.conn.send_hello(Hello("liar", "stnode", "v0"))
        self.conn.send_cluster_config(ClusterConfig())
        self.flush()

    def get_buffer(self) -> memoryview:
        return self.conn.get_buffer()

    def buffer_updated(self, count: int) -> None:
        self.events += self.conn.buffer_updated(count)

    def flush(self) -> None:
        assert self.link is not None
        self.link.write(self.conn.data_to_send())

    def link_lost(self, _reason: Exception | None) -> None:
        pass

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass


@simulated
async def test_a_sibling_gets_no_folder_and_no_index() -> None:
    async with World() as world:
        peer = await world.connected("p")
        peer.write("x", b"x")
        await world.until(lambda: world.record("x"))
        liar = _Liar(world, "liar")
        await liar.enter()
        peer.write("y", b"y")
        await world.until(lambda: world.record("y"))
        await world.until(
            lambda: any(isinstance(event, Hint) and event.head == world.node.store.status().journal.number for event in liar.events)
        )
        assert {type(event) for event in liar.events} == {Hello, ClusterConfig, Claim, Hint}
        assert ClusterConfig() in liar.events
        assert liar.link is not None
        liar.link.abort()


@simulated
async def test_false_hints_cost_no_more_than_being_idle() -> None:
    async with World() as world:
        liar = _Liar(world, "liar")
        await liar.enter()
        await world.pause(120)

        def gets() -> int:
            return world.node.objects.metrics.snapshot().count("get")

        before = gets()
        for number in range(3000):
            liar.conn.send_hint(Hint(10**6 + number))
            liar.flush()
            await world.pause(0.1)
        assert gets() - before <= 3 * 300 / 15
        assert liar.link is not None
        liar.link.abort()


# --- a device that is a sibling


@simulated
async def test_a_configured_device_that_is_a_sibling_is_no_peer() -> None:
    async with nodes("b") as (a, b):
        peer = await a.connected("p")
        settings = a.settings()
        assert settings is not None
        shared = (*settings.devices, FolderDevice(b.device))
        await a.change(
            SettingsChange(folders=(replace(settings, devices=shared),), devices=(DeviceSettings(b.device, "b", ("memory://b",)),))
        )
        await a.until(lambda: connected(a, b) and connected(b, a))
        assert set(a.node.devices) == {peer.device}
        there = a.settings()
        assert there is not None
        assert {device.device_id for device in there.devices} == {peer.device}
        peer.write("x", b"x")
        await a.until(lambda: a.record("x"))
        assert connected(a, b)


@simulated
async def test_peers_are_told_of_the_siblings_without_an_index() -> None:
    async with nodes("b") as (a, b):
        peer = await a.connected("p")
        await a.until(lambda: peer.configs[-1].folders[0].device(b.device) is not None)
        entry = peer.configs[-1].folders[0].device(b.device)
        assert entry is not None
        assert (entry.name, entry.addresses, entry.index_id, entry.max_sequence) == ("b", ("memory://b:22000",), 0, 0)
        peer.write("x", content("x", 100))
        await a.until(lambda: "x" in peer.folder().heard)


# --- two processes with one identity


@simulated
@pytest.mark.expects_log("another process with this node's identity")
async def test_the_older_of_two_processes_leaves_the_devices_to_the_newer() -> None:
    async with World() as old:
        peer = await old.connected("p")
        async with World(address="memory://copy", beside=old) as new:
            await old.until(lambda: siblings(old).newer is not None)
            assert not old.node.listening
            assert not peer.connected
            assert siblings(new).newer is None
            assert new.node.listening == ("memory://copy:22000",)
            await old.change(SettingsChange(devices=(DeviceSettings(device_of("x"), "x"),)))  # committing stays safe
            await new.until(lambda: device_of("x") in new.node.devices)
            await new.pause(3 * BEAT_S)
            assert siblings(old).newer is not None
        await old.until(lambda: siblings(old).newer is None, 2 * GIVEN_WAY_LOOK_S)
        assert old.node.listening
        await peer.connect()
        await old.until(lambda: peer.connected)


@simulated
@pytest.mark.expects_log("another process with this node's identity")
async def test_a_newer_process_that_died_is_not_waited_for_for_ever() -> None:
    async with World() as old:
        new = await World(address="memory://copy", beside=old).__aenter__()
        await old.until(lambda: siblings(old).newer is not None)
        await new.crash()
        await old.until(lambda: siblings(old).newer is None, 900)
        assert old.node.listening


@simulated
async def test_a_process_that_comes_after_a_crash_is_the_newer_one() -> None:
    async with World() as world:
        await world.until(lambda: layout.heartbeat_key(world.device) in world.bucket.snapshot())
        await world.crash()
        await world.start(keep_cache=True)
        await world.pause(60)
        assert siblings(world).newer is None
