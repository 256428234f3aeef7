"""An HTTP server that does what a test says: each request is handed to the test's function, which answers, stays silent or hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from stnode.objectstore.options import StoreOptions


@dataclass(slots=True)
class Received:
    """A request as it came; `body` is empty until `read_body`."""

    method: str
    path: str
    headers: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    body: bytes = b""

    async def read_body(self) -> None:
        self.body = await self.reader.readexactly(int(self.headers.get("content-length", "0")))

    def answer(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        fields = {"Content-Length": str(len(body) if length is None else length), "Date": "Sat, 21 Nov 2026 08:00:00 GMT", **headers}
        lines = [f"HTTP/1.1 {status} x", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if self.method == "HEAD" else body))


Handler = Callable[[Received], Awaitable[bool]]
"""Handles one request; False closes the connection."""


@dataclass(slots=True)
class ScriptedServer:
    """`requests` are all that came, in order."""

    handler: Handler
    port: int = 0
    requests: list[Received] = field(default_factory=list)

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def options(self, read_timeout_s: float = 5.0, connect_timeout_s: float = 2.0) -> StoreOptions:
        return StoreOptions(
            endpoint_url=self.endpoint_url,
            region="us-east-1",
            access_key_id="key",
            secret_access_key="secret",
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                method, path, _ = first.split(" ")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
                received = Received(method, path, headers, reader, writer)
                self.requests.append(received)
                if not await self.handler(received):
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def scripted(handler: Handler) -> AsyncIterator[ScriptedServer]:
    """Runs until the block ends; connections still open are cut then."""
    server = ScriptedServer(handler)
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await server.serve(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            tasks.discard(task)

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listening.wait_closed()
