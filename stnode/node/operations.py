"""`Service` on a node in this process: finds the folder, asks the view or the store, and puts the answer into plain values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Any, cast

from stnode.errors import Corrupt, Invalid, NotFound
from stnode.folder import ignore
from stnode.folder.entries import Version
from stnode.folder.restorer import Restored
from stnode.folder.treewriter import Chunks
from stnode.folder.view import FolderView
from stnode.node.exposition import families
from stnode.node.files import FileReading, checked_inside, entry_of
from stnode.node.mending import mend
from stnode.node.node import Node
from stnode.node.report import Reporter, read_packs
from stnode.node.service import (
    PAGE,
    BucketStats,
    CheckStep,
    DeviceSettings,
    Entry,
    FolderChange,
    FolderSettings,
    FolderStats,
    GcReport,
    History,
    ItemVersion,
    KindStats,
    NewFile,
    RepairReport,
    RestoreChange,
    RestoreStep,
    SettingsChange,
)
from stnode.node.settings import Settings
from stnode.node.status import NodeStatus
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.fileinfo import FileType
from stnode.repo import state
from stnode.repo.check import check
from stnode.repo.repairreport import A_CHECKPOINT
from stnode.repo.store import SettingsChange as Commit

_INCLUDED_BYTES = 1 << 20
_KINDS = ("packs", "journal", "bodies", "checkpoint", "runs", "nodes", "identities", "keys")


class NodeService(FileReading):
    """See `Service`. `stop` is what `shutdown` calls: the daemon passes it, without it there is nothing to stop. `scratch` is a directory
    with room for a second copy of the state."""

    def __init__(self, node: Node, scratch: Path, stop: Callable[[], None] | None = None) -> None:
        self._node = node
        self._scratch = scratch
        self._stop = stop
        self._reporter = Reporter(node)

    async def close(self) -> None:
        """The node is its owner's to stop."""

    async def shutdown(self) -> None:
        if self._stop is None:
            raise Invalid("no daemon runs here")
        self._stop()

    async def id(self) -> str:
        return deviceid.format(self._node.identity.device_id)

    async def status(self) -> NodeStatus:
        if self._stop is None:
            await self._node.store.heartbeats.refresh()  # a daemon has read them
        return await self._reporter.status(running=self._stop is not None)

    async def metrics(self) -> bytes:
        """What `/metrics` shows (`telemetry.CONTENT_TYPE`)."""
        return self._node.metrics.render(families(self._node, await self.status()))

    # --- settings

    async def _settings(self) -> Settings:
        siblings = {id_: heartbeat.name for id_, heartbeat in self._node.siblings.others.items()}

        def read(conn: Connection) -> Settings:
            folders = [folder.settings for folder in state.folders(conn)]
            return Settings(self._node.identity.device_id, state.devices(conn), folders, siblings)

        return await self._node.db.run(read)

    async def _commit(self, change: Commit) -> None:
        """Commits settings; when it returns the node works by them."""
        await self._node.store.submit_settings(change)
        await self._node.load_settings()

    async def node_remove(self, node: str) -> None:
        await self._node.store.heartbeats.refresh(0)
        await self._node.siblings.remove(node)

    async def device_add(self, device: DeviceSettings) -> DeviceSettings:
        await self._node.store.heartbeats.refresh()
        change = (await self._settings()).add_device(device)
        await self._commit(change)
        id_ = deviceid.format(deviceid.from_bytes(change.devices[0].device_id))
        return next(found for found in await self.device_list() if found.id == id_)

    async def device_remove(self, device: str) -> None:
        await self._commit((await self._settings()).remove_device(device))

    async def device_list(self) -> tuple[DeviceSettings, ...]:
        return (await self._settings()).devices()

    async def folder_add(self, folder: FolderSettings) -> FolderSettings:
        [expanded] = await self._expanded([folder])
        await self._commit((await self._settings()).add_folder(expanded, self._node.env.random))
        return await self._shown(folder.id)

    async def folder_remove(self, folder: str) -> None:
        await self._commit((await self._settings()).remove_folder(folder))

    async def folder_list(self) -> tuple[FolderSettings, ...]:
        return (await self._settings()).folders()

    async def folder_set(self, folder: str, change: FolderChange) -> FolderSettings:
        settings = await self._settings()
        folder_id = settings.folder(folder).folder_id
        if change.ignore is not None:
            change = replace(change, ignore=await self._patterns(folder_id, change.ignore))
        await self._commit(settings.change_folder(folder, change))
        return await self._shown(folder_id)

    async def _shown(self, folder_id: str) -> FolderSettings:
        return next(folder for folder in await self.folder_list() if folder.id == folder_id)

    async def settings_plan(
        self, devices: tuple[DeviceSettings, ...], folders: tuple[FolderSettings, ...], prune: bool
    ) -> tuple[SettingsChange, ...]:
        await self._node.store.heartbeats.refresh()
        expanded = await self._expanded(folders)
        return (await self._settings()).compare(devices, expanded, self._node.env.random, prune=prune)[0]

    async def settings_apply(
        self, devices: tuple[DeviceSettings, ...], folders: tuple[FolderSettings, ...], prune: bool
    ) -> tuple[SettingsChange, ...]:
        await self._node.store.heartbeats.refresh()
        expanded = await self._expanded(folders)
        changes, commit = (await self._settings()).compare(devices, expanded, self._node.env.random, prune=prune)
        if changes:
            await self._commit(commit)
        return changes

    async def _expanded(self, folders: Sequence[FolderSettings]) -> list[FolderSettings]:
        return [replace(folder, ignore=await self._patterns(folder.id, folder.ignore)) for folder in folders]

    async def _patterns(self, folder: str, lines: Sequence[str]) -> tuple[str, ...]:
        """Ignore patterns, those of the folder's files that they `#include` in their place, as these are now. Raises Invalid."""

        async def load(path: str) -> bytes:
            found = self._node.view(folder)
            if (await found.stat(path)).size > _INCLUDED_BYTES:
                raise Invalid(f"{path} is too large to be a file of ignore patterns", hint=f"it may have {_INCLUDED_BYTES:,} bytes")
            return b"".join([bytes(piece) async for piece in found.read(path)])

        return tuple(await ignore.expand(lines, load))

    async def folder_override(self, folder: str) -> int:
        return await self._node.view(folder).override()

    async def folder_revert(self, folder: str) -> int:
        return await self._node.view(folder).revert()

    async def confirm_deletions(self, folder: str) -> int:
        found = self._node.folder(folder)
        waiting = [pending.files for pending in self._node.store.pending_deletions() if pending.fid == found.fid]
        if not waiting:
            raise NotFound(f"no deletions wait in the folder {found.settings.folder_id}", hint="`stnode status` shows those that do")
        self._node.store.confirm_deletions(found.fid)
        return sum(waiting)

    async def reject_deletions(self, folder: str) -> int:
        return await self._node.view(folder).reject_deletions()

    # --- files

    def _at(self, path: str) -> tuple[FolderView, str, str]:
        name, _, inside = path.partition("/")
        folder = self._node.folder(name)
        return folder.view, folder.settings.folder_id, inside.rstrip("/")

    def _inside(self, path: str) -> tuple[FolderView, str, str]:
        """As `_at`, for what must not be the folder itself."""
        return checked_inside(self._at(path), path)

    async def _present_us(self) -> int:
        return self._node.store.present_us()

    async def history(self, path: str, recursive: bool = False, after: str | None = None) -> History:
        found, folder, inside = self._at(path)
        names = await self._device_names()
        newest = (await found.versions(inside))[0] if inside else None
        if newest is not None and newest.entry.type is not FileType.DIRECTORY:
            return History(tuple(_version(folder, version, names) for version in await found.versions(inside)), False)
        behind = (after or "").partition("/")[2]
        page = await found.deleted(inside, behind, PAGE, recursive=recursive)
        versions = tuple(_version(folder, version, names) for version in page)
        return History(versions, True, versions[-1].entry.path if len(versions) == PAGE else None)

    async def _device_names(self) -> dict[int, str]:
        """Names of this node and the devices, by short ID."""
        own = self._node.identity.device_id
        names = {deviceid.short_id(DeviceID(device.device_id)): device.name for device in await self._node.db.run(state.devices)}
        return {short: name for short, name in names.items() if name} | {deviceid.short_id(own): self._node.config.node.name}

    async def restore(self, path: str, at: str, exact: bool = False, dry_run: bool = False) -> AsyncIterator[RestoreStep]:
        found, folder, inside = self._at(path)
        at_us = await self.time_of(at)
        async with aclosing(cast("Any", found.restore(inside, at_us, exact=exact, dry_run=dry_run))) as steps:
            async for step in steps:
                yield _step(folder, step, dry_run)

    async def write(
        self,
        path: str,
        source: AsyncIterator[bytes],
        size: int | None = None,
        modified_ns: int | None = None,
        permissions: int | None = None,
    ) -> Entry:
        found, folder, inside = self._inside(path)
        return entry_of(folder, await found.write_file(inside, source, size=size, modified_ns=modified_ns, permissions=permissions))

    async def write_many(self, files: Sequence[NewFile]) -> None:
        by_folder: dict[str, tuple[FolderView, list[Chunks]]] = {}
        for file in files:
            found, folder, inside = self._inside(file.path)
            chunks = Chunks(inside, _one(file.data), len(file.data), file.modified_ns, file.permissions)
            by_folder.setdefault(folder, (found, []))[1].append(chunks)
        for found, items in by_folder.values():
            await found.write_many(_each(items))

    async def symlink(self, path: str, target: str, modified_ns: int | None = None) -> Entry:
        found, folder, inside = self._inside(path)
        return entry_of(folder, await found.symlink(inside, target, modified_ns=modified_ns))

    async def mkdir(self, path: str, parents: bool = False, modified_ns: int | None = None, permissions: int | None = None) -> Entry:
        found, folder, inside = self._inside(path)
        return entry_of(folder, await found.mkdir(inside, parents=parents, modified_ns=modified_ns, permissions=permissions))

    async def rm(self, path: str, recursive: bool = False) -> int:
        found, _, inside = self._inside(path)
        return await found.remove(inside, recursive=recursive)

    async def mv(self, source: str, target: str) -> Entry:
        found, folder, inside = self._inside(source)
        _, other, new = self._inside(target)
        if other != folder:
            raise Invalid(f"{source} and {target} lie in two folders", hint="copy it with `stnode get` and `stnode put`, then remove it")
        return entry_of(folder, await found.rename(inside, new, replace=False))

    # --- the store

    async def bucket_check(self, read_data: bool = False, share: float = 1.0, repair: bool = False) -> AsyncIterator[CheckStep]:
        if not 0 < share <= 1:
            raise Invalid(f"a share of {share:g} of the data cannot be read", hint="give more than 0 and at most 100 %")
        node, found = self._node, None
        async with aclosing(
            cast("Any", check(node.objects, node.env, self._scratch, read_data=read_data, share=share, own=node.db))
        ) as steps:
            async for step in steps:
                found = step.report if repair else None
                if found is None:
                    yield step
        if found is None:
            return
        again = partial(check, node.objects, node.env, self._scratch, own=node.db)
        async with aclosing(cast("Any", mend(node, found, again))) as steps:
            async for step in steps:
                yield step

    async def bucket_repair(self) -> RepairReport:
        try:
            await self._node.store.follow_to_head()
        except Corrupt as exc:
            raise Corrupt(exc.message, hint="stop this daemon (`stnode shutdown`), then run `stnode bucket repair` again") from exc
        commit = await self._node.store.write_checkpoint()
        return RepairReport(A_CHECKPOINT, done=True, commit=commit, advice=("run `stnode bucket check`",))

    async def bucket_gc(self, dry_run: bool = False) -> GcReport:
        return await self._node.store.collector.collect(dry_run=dry_run, insist=True)

    async def bucket_stats(self) -> BucketStats:
        node = self._node

        def read(conn: Connection) -> tuple[list[state.FolderState], dict[int, tuple[int, int]]]:
            return state.folders(conn), read_packs(conn)

        folders, packs = await node.db.run(read)
        kinds = []
        for kind in _KINDS:
            sizes = [meta.size_bytes async for meta in node.objects.list(f"{kind}/")]
            kinds.append(KindStats(kind, len(sizes), sum(sizes)))
        requests: dict[str, int] = {}
        for count in node.objects.metrics.snapshot().requests:
            requests[count.operation] = requests.get(count.operation, 0) + count.count
        status = node.store.status()
        return BucketStats(
            url=node.objects.url,
            store_id=status.store_id,
            head=status.journal.number,
            kinds=tuple(kinds),
            folders=tuple(
                FolderStats(
                    folder.settings.folder_id,
                    folder.settings.label,
                    folder.totals.files,
                    folder.totals.bytes,
                    *packs.get(folder.fid, (0, 0)),
                )
                for folder in folders
            ),
            requests=requests,
        )


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _each(items: Sequence[Chunks]) -> AsyncIterator[Chunks]:
    for item in items:
        yield item


def _version(folder: str, version: Version, names: Mapping[int, str]) -> ItemVersion:
    def who(short: int | None) -> str:
        return "" if short is None else names.get(short) or deviceid.format_short(short)

    return ItemVersion(
        entry_of(folder, version.entry),
        version.entry.sequence,
        version.until_us,
        who(version.modified_by),
        who(version.ended_by),
        version.deleted,
    )


def _step(folder: str, step: Restored, dry_run: bool) -> RestoreStep:
    changes = [RestoreChange(action, f"{folder}/{name}") for action, name in step.changes if dry_run]
    changes += [RestoreChange("change", f"{folder}/{name}", reason) for name, reason in step.refused]
    counts = (step.files, step.directories, step.symlinks, step.deleted, step.unchanged, step.failed, step.bytes)
    return RestoreStep(*counts, tuple(changes))
