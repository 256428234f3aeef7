"""What every transport promises (stnode/net/base.py). A new transport adds its scheme and a listening address below."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from stnode.clock import Env, system_env
from stnode.errors import Refused, StnodeError, Unavailable
from stnode.net import base, identity
from stnode.net.base import Link, Listener
from stnode.net.identity import Identity
from tests.support.links import MemoryTransport, Recorder

ADDRESSES = {"tcp": "tcp://127.0.0.1:0", "tcp4": "tcp4://127.0.0.1:0", "tcp6": "tcp6://[::1]:0", "memory": "memory://door:1"}


@pytest.fixture
def env() -> Iterator[Env]:
    env = system_env(1)
    yield env
    env.close()


class Bench:
    """Two devices, a door of the second, and what connects them."""

    def __init__(self, env: Env, address: str) -> None:
        self.env, self._address = env, address
        self.dialer: Identity = identity.generate(env.clock)
        self.listener: Identity = identity.generate(env.clock)
        self.far: list[Recorder] = []
        self.far_chunk = 64 * 1024
        self.wanted = True
        self.door: Listener

    async def open(self) -> None:
        self.door = await base.listen(self.env, self._address, self.listener, self._accept)

    def _accept(self, device: bytes, address: str) -> Recorder | None:
        assert device == self.dialer.device_id
        assert address
        if not self.wanted:
            return None
        self.far.append(Recorder(self.far_chunk))
        return self.far[-1]

    async def connect(self) -> tuple[Recorder, Link, Recorder, Link]:
        near = Recorder()
        link = await base.dial(self.env, self.door.address, self.dialer, self.listener.device_id, lambda _d, _a: near)
        assert near.link is link
        async with asyncio.timeout(10):
            while not self.far:
                await asyncio.sleep(0.001)
        return near, link, self.far[-1], await self.far[-1].until()


@pytest.fixture(params=sorted(ADDRESSES))
async def bench(env: Env, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setitem(base._transports, "memory", MemoryTransport())
    bench = Bench(env, ADDRESSES[request.param])
    await bench.open()
    yield bench
    for recorder in bench.far:
        if recorder.link is not None and not recorder.lost.done():
            recorder.link.abort()
            await recorder.lost
    await bench.door.close()


async def end(*recorders: Recorder) -> None:
    """Aborts the links and waits for their ends."""
    for recorder in recorders:
        assert recorder.link is not None
        recorder.link.abort()
    async with asyncio.timeout(10):
        for recorder in recorders:
            await recorder.lost


async def test_both_ends_know_each_other(bench: Bench) -> None:
    near, link, far, far_link = await bench.connect()
    assert (link.peer, far_link.peer) == (bench.listener.device_id, bench.dialer.device_id)
    assert link.kind.endswith("-client")
    assert far_link.kind.endswith("-server")
    assert link.local_address == far_link.remote_address
    await end(near, far)


async def test_bytes_arrive_in_order_whatever_the_sizes(bench: Bench) -> None:
    bench.far_chunk = 50_021
    near, link, far, far_link = await bench.connect()
    seeded = random.Random(1)
    parts = [seeded.randbytes(size) for size in (0, 1, 5, 16383, 16384, 16385, 200_000, 0, 3, 131_072, 700_001)]
    link.write(parts[:4])
    link.write([memoryview(part) for part in parts[4:]])
    far_link.write([bytearray(b"answer")])
    sent = b"".join(parts)
    await far.until(size=len(sent))
    assert far.received == sent
    await near.until(size=6)
    assert near.received == b"answer"
    assert (link.bytes_out, far_link.bytes_in, link.bytes_in, far_link.bytes_out) == (len(sent), len(sent), 6, 6)
    await end(near, far)


async def test_a_reader_that_stops_stops_the_writer(bench: Bench, eventually: Callable[..., object]) -> None:
    near, link, far, far_link = await bench.connect()
    far_link.pause_reading()
    block, written = bytes(500_000), 0
    async with asyncio.timeout(20):
        while not near.writing_paused:
            link.write([block])
            written += len(block)
            await asyncio.sleep(0.0005)
            assert written < 100_000_000, "nothing stops the writer"
    assert not far.received
    far_link.resume_reading()
    await far.until(size=written)
    await near.until(call="resume")
    assert len(far.received) == written
    await end(near, far)


async def test_pause_inside_a_delivery_holds_the_rest_back(bench: Bench) -> None:
    bench.far_chunk = 1000
    near, link, far, far_link = await bench.connect()
    far.pause_after = 5000
    link.write([bytes(100_000)])
    await far.until(size=5000)
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert len(far.received) == 5000
    far.pause_after = None
    far_link.resume_reading()
    await far.until(size=100_000)
    await end(near, far)


async def test_close_sends_everything_then_both_see_an_orderly_end(bench: Bench) -> None:
    near, link, far, _ = await bench.connect()
    link.write([bytes(3_000_000), b"end"])
    link.close()
    link.close()
    link.write([b"dropped"])
    async with asyncio.timeout(10):
        assert await far.lost is None
        assert await near.lost is None
    assert len(far.received) == 3_000_003
    assert far.received.endswith(b"end")
    assert (near.calls[0], near.calls[-1], near.calls.count("lost")) == ("made", "lost", 1)


async def test_abort_is_an_error_for_the_other_side_only(bench: Bench) -> None:
    near, link, far, far_link = await bench.connect()
    far_link.pause_reading()
    link.write([bytes(50_000_000)])
    far_link.resume_reading()
    link.close()
    link.abort()
    link.abort()
    assert "lost" not in near.calls, "the end comes in a later turn"
    async with asyncio.timeout(10):
        assert await near.lost is None
        assert isinstance(await far.lost, StnodeError)
    link.write([b"dropped"])
    link.close()


async def test_another_device_than_expected_is_refused(bench: Bench) -> None:
    stranger = identity.generate(bench.env.clock).device_id
    with pytest.raises(Refused, match="is device"):
        await base.dial(bench.env, bench.door.address, bench.dialer, stranger, lambda _d, _a: pytest.fail("handler asked for"))


async def test_not_wanted_by_the_listener(bench: Bench) -> None:
    bench.wanted = False
    near = Recorder()

    async def refused() -> None:
        """At once, or by the loss of the link: a TLS 1.3 client is done before the server has judged."""
        await base.dial(bench.env, bench.door.address, bench.dialer, bench.listener.device_id, lambda _d, _a: near)
        async with asyncio.timeout(10):
            raise await near.lost or Unavailable("closed")

    with pytest.raises(StnodeError):
        await refused()
    assert not bench.far


async def test_not_wanted_by_the_dialer(bench: Bench) -> None:
    with pytest.raises(Refused, match="not wanted"):
        await base.dial(bench.env, bench.door.address, bench.dialer, bench.listener.device_id, lambda _d, _a: None)


async def test_nobody_at_a_closed_door(bench: Bench) -> None:
    await bench.door.close()
    with pytest.raises(Unavailable):
        await base.dial(bench.env, bench.door.address, bench.dialer, bench.listener.device_id, lambda _d, _a: None)


async def test_a_door_is_there_once(bench: Bench) -> None:
    with pytest.raises(Refused, match="in use"):
        await base.listen(bench.env, bench.door.address, bench.listener, lambda _d, _a: None)


async def test_links_outlive_the_door(bench: Bench) -> None:
    near, link, far, _ = await bench.connect()
    await bench.door.close()
    link.write([b"still there"])
    await far.until(size=11)
    await end(near, far)
