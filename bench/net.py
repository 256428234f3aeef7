"""How fast a link receives and sends on loopback, against the standard library's ssl in another process.

Prints GB/s of wall time and per second of this process's processor time (socket, TLS and handler calls included).
Usage: python bench/net.py [GB]
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import socket
import ssl
import sys
import tempfile
import time
from pathlib import Path

from stnode.clock import SystemClock, system_env
from stnode.net import base, identity
from stnode.protocol.deviceid import DeviceID

BLOCK = 128 * 1024


class Sink:
    """Receives into blocks of 128 KiB, each its own bytearray, as the framing does with responses; `source` bytes are sent."""

    def __init__(self, expected: int, source: int) -> None:
        self.left, self.to_send = expected, source
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._block, self._at = memoryview(bytearray(BLOCK)), 0
        self._paused = False
        self._data = [b"h" * 30, bytes(BLOCK)]

    def link_made(self, link: base.Link, peer_id: DeviceID) -> None:
        self.link = link
        self.started = time.perf_counter(), cpu_s()
        self._produce()

    def _produce(self) -> None:
        while self.to_send > 0 and not self._paused:
            self.link.write(self._data)
            self.to_send -= sum(map(len, self._data))

    def get_buffer(self) -> memoryview:
        return self._block[self._at :]

    def buffer_updated(self, count: int) -> None:
        self._at += count
        self.left -= count
        if self._at == BLOCK:
            self._block, self._at = memoryview(bytearray(BLOCK)), 0
        if self.left <= 0 and not self.done.done():
            self.done.set_result(None)

    def link_lost(self, reason: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._produce()


def cpu_s() -> float:
    """Processor seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def other_side(port: int, certificate: str, send: int, receive: int) -> None:
    """A plain client in C: sends or receives that many bytes, then a byte to say that all is there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["bep/1.0"])
    data, buffer = bytes(1 << 20), bytearray(1 << 20)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as link:
        while send > 0:
            link.sendall(data)
            send -= len(data)
        while receive > 0:
            receive -= link.recv_into(buffer)
        link.sendall(b".")
        link.recv(1)


async def measure(what: str, *, receive: int, send: int) -> None:
    """One run over a fresh listener."""
    env = system_env(1)
    me, other = identity.generate(env.clock), identity.generate(SystemClock())
    sink = Sink(receive or 1, send)
    listener = await base.listen(env, "tcp://127.0.0.1:0", me, lambda _device, _address: sink)
    with tempfile.TemporaryDirectory() as home:
        pem = Path(home) / "pair.pem"
        pem.write_bytes(other.certificate_pem() + other.key_pem())
        port = int(listener.address.rpartition(":")[2])
        process = multiprocessing.get_context("spawn").Process(target=other_side, args=(port, str(pem), receive, send))
        process.start()
        await sink.done
        wall, cpu = time.perf_counter() - sink.started[0], cpu_s() - sink.started[1]
        sink.link.close()
        await listener.close()
        while process.is_alive():
            await asyncio.sleep(0.01)
        process.join()
    env.close()
    total = (receive or send) / 1e9
    print(f"{what:<8} {total:.1f} GB: {total / wall:.2f} GB/s, {total / cpu:.2f} GB per processor second")


async def main() -> None:
    """Both ways, twice."""
    size = int(float(sys.argv[1] if len(sys.argv) > 1 else "3") * 1e9) >> 20 << 20
    for _ in range(2):
        await measure("receive", receive=size, send=0)
        await measure("send", receive=0, send=size)


if __name__ == "__main__":
    asyncio.run(main())
