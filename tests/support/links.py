"""Links for tests: a handler that records, and a transport in memory (`memory://name`) without sockets and TLS for simulations.

`MemoryTransport` keeps the same contract as the real ones (tests/conformance/test_transports.py) and is deterministic.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence

from stnode.clock import Env
from stnode.errors import Refused, Unavailable
from stnode.net.base import Accept, Address, Buffer, Link, LinkHandler
from stnode.net.identity import Identity
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID

HIGH, LOW = 1024 * 1024, 256 * 1024


class Recorder:
    """A LinkHandler that keeps what it receives. `chunk`: size of the buffers that it offers."""

    def __init__(self, chunk: int = 64 * 1024) -> None:
        self.received = bytearray()
        self.calls: list[str] = []
        self.link: Link | None = None
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.writing_paused = False
        self.pause_after: int | None = None  # pauses reading inside the delivery that reaches this many bytes
        self._buffer = memoryview(bytearray(chunk))
        self._changed = asyncio.Event()

    def link_made(self, link: Link, peer_id: DeviceID) -> None:
        assert self.link is None
        assert peer_id == link.peer
        self.link = link
        self._note("made")

    def get_buffer(self) -> memoryview:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        assert self.link is not None
        assert 0 < count <= len(self._buffer)
        self.received += self._buffer[:count]
        if self.pause_after is not None and len(self.received) >= self.pause_after:
            self.link.pause_reading()
        self._changed.set()

    def link_lost(self, reason: Exception | None) -> None:
        self.lost.set_result(reason)
        self._note("lost")

    def pause_writing(self) -> None:
        assert not self.writing_paused
        self.writing_paused = True
        self._note("pause")

    def resume_writing(self) -> None:
        assert self.writing_paused
        self.writing_paused = False
        self._note("resume")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._changed.set()

    async def until(self, *, size: int = 0, call: str | None = None, deadline_s: float = 10.0) -> Link:
        """Waits until so many bytes have come, or that call was made; gives the link."""
        async with asyncio.timeout(deadline_s):
            while self.link is None or len(self.received) < size or (call is not None and call not in self.calls):
                self._changed.clear()
                await self._changed.wait()
        return self.link


class MemoryLink:
    """One end of a pair. Bytes move in turns of the loop, at most 64 KiB waiting at the other end."""

    def __init__(self, handler: LinkHandler, peer: DeviceID, kind: str, local: str, remote: str) -> None:
        self.handler, self.peer, self.kind = handler, peer, kind
        self.local_address, self.remote_address = local, remote
        self.bytes_in = self.bytes_out = 0
        self.other: MemoryLink
        self._queue: deque[memoryview] = deque()
        self._inbox = bytearray()
        self._handler_paused = self._reading_paused = self._scheduled = False
        self._closing = self._ended = self._goodbye = False
        self._loop = asyncio.get_running_loop()

    def write(self, buffers: Sequence[Buffer]) -> None:
        if self._closing or self._ended:
            return
        self._queue.extend(memoryview(buffer) for buffer in buffers if len(buffer))
        self.bytes_out += sum(map(len, buffers))
        if sum(map(len, self._queue)) > HIGH and not self._handler_paused:
            self._handler_paused = True
            self.handler.pause_writing()
        self._schedule()

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        self._reading_paused = False
        self._schedule()

    def close(self) -> None:
        self._closing = True
        self._schedule()

    def abort(self) -> None:
        self._end(None)
        self.other._end(Unavailable(f"{self.local_address} closed the connection without a goodbye"))

    def _end(self, reason: Exception | None) -> None:
        if not self._ended:
            self._ended = True
            self._loop.call_soon(self.handler.link_lost, reason)

    def _schedule(self) -> None:
        if not self._scheduled and not self._ended:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._ended:
            return
        while self._queue and len(self.other._inbox) < 64 * 1024:
            part = self._queue.popleft()
            room = 64 * 1024 - len(self.other._inbox)
            self.other._inbox += part[:room]
            if part[room:]:
                self._queue.appendleft(part[room:])
            self.other._schedule()
        if self._handler_paused and not self._closing and sum(map(len, self._queue)) <= LOW:
            self._handler_paused = False
            self.handler.resume_writing()
        self._deliver()
        if self._closing and not self._queue:
            self.other._goodbye = True
            self.other._schedule()
            self._end(None)
        elif self._goodbye and not self._inbox:
            self._end(None)

    def _deliver(self) -> None:
        while self._inbox and not self._reading_paused and not self._ended and not self._closing:
            target = self.handler.get_buffer()
            count = min(len(target), len(self._inbox))
            target[:count] = self._inbox[:count]
            del self._inbox[:count]
            self.bytes_in += count
            self.handler.buffer_updated(count)
            self.other._schedule()
        if self._closing:
            self._inbox.clear()
            self.other._schedule()


class MemoryListener:
    """An open door of a MemoryTransport."""

    def __init__(self, transport: MemoryTransport, address: Address, identity: Identity, accept: Accept) -> None:
        self.address, self.identity, self.accept = str(address), identity, accept
        self._transport, self._name = transport, address.host

    async def close(self) -> None:
        self._transport.doors.pop(self._name, None)


class MemoryTransport:
    """All listeners and links of one simulated network: `base.register("memory", MemoryTransport())`."""

    def __init__(self) -> None:
        self.doors: dict[str, MemoryListener] = {}
        self._numbers = itertools.count(1)

    async def listen(self, env: Env, address: Address, identity: Identity, accept: Accept) -> MemoryListener:
        if address.host in self.doors:
            raise Refused(f"cannot listen on {address}: the port is in use")
        door = self.doors[address.host] = MemoryListener(self, address, identity, accept)
        return door

    async def dial(self, env: Env, address: Address, identity: Identity, expect: DeviceID, handler_factory: Accept, timeout: float) -> Link:
        await asyncio.sleep(0)
        if (door := self.doors.get(address.host)) is None:
            raise Unavailable(f"{address} cannot be reached: Connection refused")
        if door.identity.device_id != expect:
            raise Refused(f"{address} is device {deviceid.format(door.identity.device_id)}, not {deviceid.format(expect)}")
        here = f"dialer-{next(self._numbers)}:0"
        theirs = door.accept(identity.device_id, here)
        if theirs is None:
            raise Unavailable(f"{address} closed the connection")
        ours = handler_factory(expect, str(address))
        if ours is None:
            raise Refused(f"a connection with {deviceid.format(expect)} is not wanted now")
        near = MemoryLink(ours, expect, "memory-client", here, door.address)
        far = MemoryLink(theirs, identity.device_id, "memory-server", door.address, here)
        near.other, far.other = far, near
        ours.link_made(near, expect)
        theirs.link_made(far, identity.device_id)
        return near
