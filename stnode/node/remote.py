"""`Service` over HTTP: asks the daemon of this home. What it raises is what the daemon raised."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

import aiohttp

from stnode.errors import StnodeError, Unavailable
from stnode.node import wire
from stnode.node.service import (
    BucketStats,
    CheckStep,
    DeviceSettings,
    Entry,
    FolderChange,
    FolderSettings,
    GcReport,
    History,
    Listing,
    NewFile,
    RepairReport,
    RestoreStep,
    SealedPage,
    SettingsChange,
)
from stnode.node.status import NodeStatus

T = TypeVar("T")
_CONNECT_S = 10.0
_BUFFER = 2**20
_CONNECTIONS = 512


class RemoteService:
    """See `Service`. Requests run side by side, each on a connection of its own; `close` ends them."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            headers={"X-API-Key": api_key},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
            read_bufsize=_BUFFER,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._session.close()

    async def id(self) -> str:
        return await self._call("id", str)

    async def status(self) -> NodeStatus:
        return await self._call("status", NodeStatus)

    async def node_remove(self, node: str) -> None:
        await self._do("node_remove", node=node)

    async def device_add(self, device: DeviceSettings) -> DeviceSettings:
        return await self._call("device_add", DeviceSettings, device=device)

    async def device_remove(self, device: str) -> None:
        await self._do("device_remove", device=device)

    async def device_list(self) -> tuple[DeviceSettings, ...]:
        return await self._call("device_list", tuple[DeviceSettings, ...])

    async def folder_add(self, folder: FolderSettings) -> FolderSettings:
        return await self._call("folder_add", FolderSettings, folder=folder)

    async def folder_remove(self, folder: str) -> None:
        await self._do("folder_remove", folder=folder)

    async def folder_list(self) -> tuple[FolderSettings, ...]:
        return await self._call("folder_list", tuple[FolderSettings, ...])

    async def folder_set(self, folder: str, change: FolderChange) -> FolderSettings:
        return await self._call("folder_set", FolderSettings, folder=folder, change=change)

    async def folder_override(self, folder: str) -> int:
        return await self._call("folder_override", int, folder=folder)

    async def folder_revert(self, folder: str) -> int:
        return await self._call("folder_revert", int, folder=folder)

    async def confirm_deletions(self, folder: str) -> int:
        return await self._call("confirm_deletions", int, folder=folder)

    async def reject_deletions(self, folder: str) -> int:
        return await self._call("reject_deletions", int, folder=folder)

    async def settings_plan(
        self, devices: tuple[DeviceSettings, ...], folders: tuple[FolderSettings, ...], prune: bool
    ) -> tuple[SettingsChange, ...]:
        return await self._call("settings_plan", tuple[SettingsChange, ...], devices=devices, folders=folders, prune=prune)

    async def settings_apply(
        self, devices: tuple[DeviceSettings, ...], folders: tuple[FolderSettings, ...], prune: bool
    ) -> tuple[SettingsChange, ...]:
        return await self._call("settings_apply", tuple[SettingsChange, ...], devices=devices, folders=folders, prune=prune)

    async def time_of(self, at: str) -> int:
        return await self._call("time_of", int, at=at)

    async def ls(self, path: str, recursive: bool = False, after: str | None = None, at: str = "") -> Listing:
        return await self._call("ls", Listing, path=path, recursive=recursive, after=after, at=at)

    async def stat(self, path: str, at: str = "") -> Entry:
        return await self._call("stat", Entry, path=path, at=at)

    async def sealed(self, path: str, after: str | None = None, at: str = "", blocks: bool = False) -> SealedPage:
        return await self._call("sealed", SealedPage, path=path, after=after, at=at, blocks=blocks)

    async def history(self, path: str, recursive: bool = False, after: str | None = None) -> History:
        return await self._call("history", History, path=path, recursive=recursive, after=after)

    async def restore(self, path: str, at: str, exact: bool = False, dry_run: bool = False) -> AsyncIterator[RestoreStep]:
        async for step in self._steps("restore", RestoreStep, path=path, at=at, exact=exact, dry_run=dry_run):
            yield step

    async def read(self, path: str, offset: int = 0, length: int | None = None, revision: str = "", at: str = "") -> AsyncIterator[bytes]:
        async with self._post("read", path=path, offset=offset, length=length, revision=revision, at=at) as response:
            while size := int.from_bytes(await response.content.readexactly(4), "big"):
                yield await response.content.readexactly(size)
            end = json.loads(await response.content.read() or b"{}")
        if end:
            raise wire.error_from_json(end)

    async def write(
        self,
        path: str,
        source: AsyncIterator[bytes],
        size: int | None = None,
        modified_ns: int | None = None,
        permissions: int | None = None,
    ) -> Entry:
        given = {"size": size, "modified_ns": modified_ns, "permissions": permissions}
        query = {"path": path} | {name: str(value) for name, value in given.items() if value is not None}
        kept = _Kept(source)
        try:
            async with self._request("PUT", "write", params=query, data=kept) as response:
                return wire.from_json(Entry, await response.json())
        except StnodeError:
            # aiohttp reports a failing source as a broken connection: the source's own error is the one to tell
            if kept.error is not None:
                raise kept.error from None
            raise

    async def write_many(self, files: Sequence[NewFile]) -> None:
        async with self._request("POST", "write_many", data=wire.pack_files(files)):
            pass

    async def symlink(self, path: str, target: str, modified_ns: int | None = None) -> Entry:
        return await self._call("symlink", Entry, path=path, target=target, modified_ns=modified_ns)

    async def mkdir(self, path: str, parents: bool = False, modified_ns: int | None = None, permissions: int | None = None) -> Entry:
        return await self._call("mkdir", Entry, path=path, parents=parents, modified_ns=modified_ns, permissions=permissions)

    async def rm(self, path: str, recursive: bool = False) -> int:
        return await self._call("rm", int, path=path, recursive=recursive)

    async def mv(self, source: str, target: str) -> Entry:
        return await self._call("mv", Entry, source=source, target=target)

    async def bucket_check(self, read_data: bool = False, share: float = 1.0, repair: bool = False) -> AsyncIterator[CheckStep]:
        async for step in self._steps("bucket_check", CheckStep, read_data=read_data, share=share, repair=repair):
            yield step

    async def bucket_repair(self) -> RepairReport:
        return await self._call("bucket_repair", RepairReport)

    async def bucket_gc(self, dry_run: bool = False) -> GcReport:
        return await self._call("bucket_gc", GcReport, dry_run=dry_run)

    async def bucket_stats(self) -> BucketStats:
        return await self._call("bucket_stats", BucketStats)

    async def shutdown(self) -> None:
        await self._do("shutdown")

    async def _steps(self, verb: str, kind: type[T], **arguments: object) -> AsyncIterator[T]:
        """Steps of something long, one JSON line each."""
        async with self._post(verb, **arguments) as response:
            rest = b""
            async for piece in response.content.iter_any():
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    data = json.loads(line)
                    if "error" in data:
                        raise wire.error_from_json(data["error"])
                    yield wire.from_json(kind, data["step"])

    async def _call(self, verb: str, kind: type[T], **arguments: object) -> T:
        async with self._post(verb, **arguments) as response:
            return wire.from_json(kind, await response.json())

    async def _do(self, verb: str, **arguments: object) -> None:
        async with self._post(verb, **arguments):
            pass

    def _post(self, verb: str, **arguments: object) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._request("POST", verb, json=wire.to_json(arguments, secrets=True))

    @asynccontextmanager
    async def _request(self, method: str, verb: str, **options: object) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request with an answer of success; everything else becomes an error of ours."""
        try:
            async with self._session.request(method, f"{self._url}/api/{verb}", **options) as response:  # type: ignore[arg-type]
                if response.status != 200:
                    raise wire.error_from_json(await _error_body(response))
                yield response
        except (aiohttp.ClientError, EOFError, ConnectionError, TimeoutError) as exc:
            raise Unavailable(
                f"the daemon at {self._url} broke off: {exc or type(exc).__name__}",
                hint="look at its log; when it has ended, the command works without it",
            ) from exc


async def _error_body(response: aiohttp.ClientResponse) -> wire.Json:
    try:
        data: wire.Json = json.loads(await response.read())
    except ValueError:
        return None
    return data


class _Kept:
    """A source for aiohttp that remembers the error it ended with."""

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self.error: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._source:
                if piece:
                    yield piece
        except Exception as exc:
            self.error = exc
            raise
