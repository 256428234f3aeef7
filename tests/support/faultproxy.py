"""An HTTP proxy in front of a real S3 server that fails as networks and servers do, by a seed: errors, refusals with Retry-After, lost
answers, broken bodies, resets, latency. Runs in a thread of its own, so that the processes under test and the test's loop go on.

`Host` is forwarded as it came, since SigV4 signs it; so a client is simply given the proxy's URL as its endpoint. `with faults(server,
plan) as proxy:` gives a `FaultProxy` whose `server` is used like the real one; `proxy.plan` may be replaced at any time.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final
from urllib.parse import urlsplit

from tests.support.s3servers import S3Server

_HEAD_BYTES: Final = 1 << 20
_UPSTREAM_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Chances from 0 to 1 for each request, drawn in the order of the fields; at most one of them happens. `latency_s` comes before every
    request that is answered at all. `retry_after_s` is in whole seconds, as servers send it."""

    reset_before: float = 0.0
    """The connection breaks; nothing happened."""
    busy: float = 0.0
    """503 SlowDown with Retry-After; nothing happened."""
    failing: float = 0.0
    """500 InternalError; a write happened or not, with even chance."""
    undecided: float = 0.0
    """409 to a conditional write, which happened or not, with even chance."""
    lost: float = 0.0
    """It happened, and the connection breaks instead of an answer."""
    truncated: float = 0.0
    """It happened, and the connection breaks in the middle of the answer's body, if there is one."""
    latency_s: float = 0.0
    retry_after_s: int = 1


@dataclass(slots=True)
class _Message:
    start: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def get(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def encode(self) -> bytes:
        head = "".join(f"{line}\r\n" for line in (self.start, *(f"{key}: {value}" for key, value in self.headers)))
        return f"{head}\r\n".encode("latin-1") + self.body


@dataclass(slots=True)
class FaultProxy:
    """`requests` by method, `faults` by kind, both since the last `reset`."""

    upstream: S3Server
    plan: Plan
    seed: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    port: int = 0
    _random: Random = field(init=False)
    _coin: Random = field(init=False)
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.reset()

    @property
    def server(self) -> S3Server:
        """The upstream server as it is reached through this proxy."""
        url = f"http://127.0.0.1:{self.port}"
        return replace(self.upstream, endpoint_url=url, options=replace(self.upstream.options, endpoint_url=url))

    def reset(self) -> None:
        """Begins anew: counts, and the seed's row of faults."""
        self.requests.clear()
        self.faults.clear()
        self._random, self._coin = Random(self.seed), Random(-self.seed)

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Listens on a free port until `stop`."""
        listening = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_HEAD_BYTES)
        self.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        listening.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError):
                while await self._one(reader, writer):
                    pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        request = await _read_head(reader)
        if request.get("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.headers = [(key, value) for key, value in request.headers if key.lower() != "expect"]
        request.body = await _read_body(reader, request, answer=False)
        method = request.start.split(" ", 1)[0]
        self.requests[method] += 1
        fault = self._draw(request, method)
        if fault == "reset_before":
            return False
        await asyncio.sleep(self.plan.latency_s)
        if fault == "busy":
            writer.write(_refusal(503, "SlowDown", [("Retry-After", str(self.plan.retry_after_s))], method))
        elif fault in ("failing", "undecided"):
            if self._coin.random() < 0.5:
                await self._forward(request, method)
            writer.write(
                _refusal(500, "InternalError", [], method)
                if fault == "failing"
                else _refusal(409, "ConditionalRequestConflict", [], method)
            )
        else:
            answer = await self._forward(request, method)
            if fault == "lost":
                return False
            whole = answer.encode()
            if fault == "truncated":
                writer.write(whole[: len(whole) - len(answer.body) // 2])
                await writer.drain()
                return False
            writer.write(whole)
        await writer.drain()
        return True

    def _draw(self, request: _Message, method: str) -> str:
        plan, roll = self.plan, self._random.random()
        for kind in ("reset_before", "busy", "failing", "undecided", "lost", "truncated"):
            roll -= getattr(plan, kind)
            if roll < 0:
                if (kind == "undecided" and not request.get("if-none-match")) or (kind == "truncated" and method != "GET"):
                    return ""
                self.faults[kind] += 1
                return kind
        return ""

    async def _forward(self, request: _Message, method: str) -> _Message:
        parts = urlsplit(self.upstream.endpoint_url)
        async with asyncio.timeout(_UPSTREAM_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=_HEAD_BYTES)
            try:
                kept = [(key, value) for key, value in request.headers if key.lower() != "connection"]
                writer.write(_Message(request.start, [*kept, ("Connection", "close")], request.body).encode())
                await writer.drain()
                answer = await _read_head(reader)
                while answer.start.split(" ")[1] == "100":
                    answer = await _read_head(reader)
                answer.body = b"" if method == "HEAD" else await _read_body(reader, answer, answer=True)
            finally:
                writer.close()
        answer.headers = [(key, value) for key, value in answer.headers if key.lower() not in ("connection", "transfer-encoding")]
        if method != "HEAD" and not answer.get("content-length"):
            answer.headers.append(("Content-Length", str(len(answer.body))))
        return answer


async def _read_head(reader: asyncio.StreamReader) -> _Message:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = [(key, value.strip()) for key, _, value in (line.partition(":") for line in lines[1:] if line)]
    return _Message(lines[0], headers)


async def _read_body(reader: asyncio.StreamReader, message: _Message, *, answer: bool) -> bytes:
    if message.get("transfer-encoding").lower() == "chunked":
        parts = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
        return b"".join(parts)
    if length := message.get("content-length"):
        return await reader.readexactly(int(length))
    return await reader.read() if answer and message.start.split(" ")[1] not in ("204", "304") else b""


def _refusal(status: int, code: str, headers: list[tuple[str, str]], method: str) -> bytes:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>by the fault proxy</Message></Error>'.encode()
    common = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    return _Message(f"HTTP/1.1 {status} {code}", [*common, *headers], b"" if method == "HEAD" else body).encode()


@contextmanager
def faults(upstream: S3Server, plan: Plan, seed: int = 0) -> Iterator[FaultProxy]:
    """A proxy before a server, in a thread, until the block ends."""
    proxy, ready = FaultProxy(upstream, plan, seed), threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(proxy.serve(ready, stop),), name="fault-proxy")
    thread.start()
    try:
        if not ready.wait(10):
            raise TimeoutError("the fault proxy does not listen")
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
