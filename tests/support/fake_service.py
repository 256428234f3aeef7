"""A `Service` in memory: what the command line and the API are tested against. It passes tests/conformance/test_service.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from stnode.errors import Conflict, Invalid, NotFound, Refused
from stnode.node import moments
from stnode.node.service import (
    PAGE,
    BucketStats,
    CheckProblem,
    CheckReport,
    CheckStep,
    DeviceSettings,
    Entry,
    FolderChange,
    FolderSettings,
    GcReport,
    History,
    Listing,
    NewFile,
    RepairPlan,
    RepairReport,
    RepairWish,
    RestoreStep,
    SealedPage,
    SettingsChange,
)
from stnode.node.status import DeviceStatus, FolderStatus, NodeStatus, PendingDeletions, StoreStatus

OWN_ID = "MFZWI3D-BONSGYC-YLTMRWG-C43ENR5-QXGZDMM-FZWI3DP-BONSGYY-LTMRWAD"
PEER_ID = "P56IOI7-MZJNU2Y-IQGDREY-DM2MGTI-MGL3BXN-PQ6W5BM-TBBZ4TJ-XZWICQ2"


@dataclass
class FakeService:
    """Folders are dictionaries of path to entry; contents lie beside them."""

    folders: dict[str, FolderSettings] = field(default_factory=lambda: {"docs": FolderSettings("docs", label="My docs")})
    devices: dict[str, DeviceSettings] = field(default_factory=dict)
    passwords: dict[tuple[str, str], str] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    repair_plan = RepairPlan("commit 5 is damaged", ("go on from commit 4",), 5, void=True, set_aside=3, files=("docs/gone",))
    repair_wish: RepairWish | None = None
    problems: tuple[CheckProblem, ...] = ()
    fail_read_after: int | None = None
    hold_deletions: bool = False
    pending: PendingDeletions | None = None
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: bool = False
    begun_writes: int = 0
    broken_writes: int = 0
    changes: int = 0
    rejected: bool = False
    now_us: int = 1_763_700_000_000_000
    versions: dict[str, History] = field(default_factory=dict)
    restores: list[tuple[str, int, bool, bool]] = field(default_factory=list)
    restore_steps: tuple[RestoreStep, ...] = (RestoreStep(),)

    async def close(self) -> None:
        pass

    async def shutdown(self) -> None:
        self.stopped = True

    async def id(self) -> str:
        return OWN_ID

    async def status(self) -> NodeStatus:
        files = [entry for entry in self.entries.values() if entry.type == "file"]
        folders = tuple(
            FolderStatus(
                f.id,
                f.label,
                f.type,
                "idle",
                files=len(files),
                bytes=sum(e.size for e in files),
                devices=f.devices,
                pending_deletions=self.pending,
                encrypted_for=f.encrypted_for,
            )
            for f in self.folders.values()
        )
        devices = tuple(DeviceStatus(d.id, d.name, False, completion={}, untrusted=d.untrusted) for d in self.devices.values())
        return NodeStatus(
            OWN_ID, "fake", "0", True, 1.0, ("tcp://127.0.0.1:1",), StoreStatus("file:///fake", requests={}), folders, devices
        )

    async def node_remove(self, node: str) -> None:
        raise NotFound(f"no other node of this store is {node!r}")

    async def device_add(self, device: DeviceSettings) -> DeviceSettings:
        if device.id in self.devices:
            raise Conflict(f"the device {device.id} is there already")
        if device.id != PEER_ID:
            raise Invalid(f"{device.id} is no device ID")
        self.devices[device.id] = device
        return device

    def _device(self, text: str) -> DeviceSettings:
        for device in self.devices.values():
            if text in (device.id, device.name):
                return device
        raise NotFound(f"there is no device {text}")

    async def device_remove(self, device: str) -> None:
        del self.devices[self._device(device).id]

    async def device_list(self) -> tuple[DeviceSettings, ...]:
        return tuple(self.devices.values())

    async def folder_add(self, folder: FolderSettings) -> FolderSettings:
        if folder.id in self.folders:
            raise Conflict(f"the folder {folder.id} is there already")
        self.folders[folder.id] = self._shown(folder)
        return self.folders[folder.id]

    def _shown(self, folder: FolderSettings) -> FolderSettings:
        """Devices by their IDs, and no password: it is kept aside, as a node does."""
        encrypted = [self._device(each.device).id for each in folder.passwords]
        self.passwords.update({(folder.id, id_): each.password for id_, each in zip(encrypted, folder.passwords, strict=True)})
        devices = [*(self._device(name).id for name in folder.devices), *encrypted]
        kept = [id_ for id_ in folder.encrypted_for if id_ in devices]
        return replace(folder, devices=tuple(dict.fromkeys(devices)), encrypted_for=tuple(dict.fromkeys([*kept, *encrypted])), passwords=())

    def _folder(self, text: str) -> FolderSettings:
        found = [f for f in self.folders.values() if f.id == text] or [f for f in self.folders.values() if f.label == text]
        if len(found) != 1:
            raise NotFound(f"there is no folder {text}", hint="`stnode folder list` shows the folders")
        return found[0]

    async def folder_remove(self, folder: str) -> None:
        del self.folders[self._folder(folder).id]

    async def folder_list(self) -> tuple[FolderSettings, ...]:
        return tuple(self.folders.values())

    async def folder_set(self, folder: str, change: FolderChange) -> FolderSettings:
        old = self._folder(folder)
        values = {
            name: getattr(change, name)
            for name in ("label", "type", "ignore", "ignore_permissions", "history", "history_floor", "delete_guard")
        }
        removed = {self._device(name).id for name in change.remove_devices}
        devices = tuple(peer for peer in old.devices if peer not in removed) + tuple(self._device(name).id for name in change.add_devices)
        new = replace(old, devices=devices, **{name: value for name, value in values.items() if value is not None})
        self.folders[old.id] = self._shown(replace(new, passwords=change.passwords))
        return self.folders[old.id]

    async def folder_override(self, folder: str) -> int:
        if self._folder(folder).type != "sendonly":
            raise Refused(f"{folder} is no send-only folder")
        return 0

    async def folder_revert(self, folder: str) -> int:
        if self._folder(folder).type != "receiveonly":
            raise Refused(f"{folder} is no receive-only folder")
        return 0

    async def confirm_deletions(self, folder: str) -> int:
        if self.pending is None:
            raise NotFound(f"no deletions wait in {self._folder(folder).id}")
        self.confirmed.set()
        return self.pending.files

    async def reject_deletions(self, folder: str) -> int:
        if self.pending is None:
            raise NotFound(f"no deletions wait in {self._folder(folder).id}")
        self.rejected = True
        return self.pending.files

    async def settings_plan(
        self, devices: tuple[DeviceSettings, ...], folders: tuple[FolderSettings, ...], prune: bool
    ) -> tuple[SettingsChange, ...]:
        changes = [SettingsChange("add", "device", d.id, d.name) for d in devices if d.id not in self.devices]
        changes += [SettingsChange("add", "folder", f.id, f.label) for f in folders if f.id not in self.folders]
        if prune:
            wanted = {f.id for f in folders}
            changes += [SettingsChange("remove", "folder", folder, "") for folder in self.folders if folder not in wanted]
        return tuple(changes)

    async def settings_apply(
        self, devices: tuple[DeviceSettings, ...], folders: tuple[FolderSettings, ...], prune: bool
    ) -> tuple[SettingsChange, ...]:
        changes = await self.settings_plan(devices, folders, prune)
        self.devices.update({d.id: d for d in devices})
        self.folders.update({f.id: self._shown(f) for f in folders})
        for change in changes:
            if change.action == "remove":
                self.folders.pop(change.id)
        return changes

    def _path(self, path: str) -> str:
        folder, _, rest = path.partition("/")
        return f"{self._folder(folder).id}/{rest}".rstrip("/")

    def _entry(self, path: str) -> Entry:
        path = self._path(path)
        if "/" not in path:
            return Entry(path, "directory")
        if path not in self.entries:
            raise NotFound(f"there is no {path}")
        return self.entries[path]

    async def time_of(self, at: str) -> int:
        return moments.parse(at, self.now_us)

    def _now(self, at: str) -> None:
        """The fake has no past but the present."""
        if at and moments.parse(at, self.now_us) < self.now_us - 1_000_000:
            raise NotFound("nothing was there then")

    async def history(self, path: str, recursive: bool = False, after: str | None = None) -> History:
        if path in self.versions:
            return self.versions[path]
        raise NotFound(f"there is no {path}")

    async def restore(self, path: str, at: str, exact: bool = False, dry_run: bool = False) -> AsyncIterator[RestoreStep]:
        at_us = await self.time_of(at)
        self.restores.append((self._path(path), at_us, exact, dry_run))
        if self.hold_deletions:
            self.pending = PendingDeletions(1500, 2000, 3600.0)
            await self.confirmed.wait()
        for step in self.restore_steps:
            yield step

    async def ls(self, path: str, recursive: bool = False, after: str | None = None, at: str = "") -> Listing:
        self._now(at)
        if not path:
            return Listing(tuple(Entry(folder, "directory") for folder in sorted(self.folders)))
        top = self._entry(path)
        if top.type != "directory":
            return Listing((top,))
        below = sorted((e for e in self.entries.values() if e.path.startswith(f"{top.path}/")), key=lambda e: e.path)
        found = [e for e in below if (recursive or "/" not in e.path[len(top.path) + 1 :]) and (after is None or e.path > after)]
        return Listing(tuple(found[:PAGE]), found[PAGE - 1].path if len(found) > PAGE else None)

    async def stat(self, path: str, at: str = "") -> Entry:
        self._now(at)
        return self._entry(path)

    async def sealed(self, path: str, after: str | None = None, at: str = "", blocks: bool = False) -> SealedPage:
        folder = self._folder(path.partition("/")[0])
        if folder.type != "receiveencrypted":
            raise Invalid(f"folder {folder.id!r} is not encrypted: there is nothing to decrypt")
        return SealedPage(folder.id, b"", ())

    async def read(self, path: str, offset: int = 0, length: int | None = None, revision: str = "", at: str = "") -> AsyncIterator[bytes]:
        self._now(at)
        entry = self._entry(path)
        if entry.type != "file":
            raise Invalid(f"{entry.path} is no file")
        if revision and revision != entry.revision:
            raise Conflict(f"{entry.path} has changed meanwhile")
        data = self.contents[entry.path][offset : None if length is None else offset + length]
        for number, start in enumerate(range(0, len(data), 100_000)):
            if number == self.fail_read_after:
                raise NotFound(f"{entry.path}: a pack is gone", hint="run `stnode bucket check`")
            yield data[start : start + 100_000]

    def _put(self, entry: Entry) -> Entry:
        parent = entry.path.rpartition("/")[0]
        while "/" in parent:
            self.entries.setdefault(parent, Entry(parent, "directory", revision="0"))
            parent = parent.rpartition("/")[0]
        self.changes += 1
        self.entries[entry.path] = replace(entry, revision=str(self.changes))
        return self.entries[entry.path]

    async def write(
        self,
        path: str,
        source: AsyncIterator[bytes],
        size: int | None = None,
        modified_ns: int | None = None,
        permissions: int | None = None,
    ) -> Entry:
        path = self._path(path)
        if any(there.startswith(f"{path}/") for there in self.entries):
            raise Conflict(f"{path} is a directory that is not empty")
        self.begun_writes += 1
        try:
            data = b"".join([piece async for piece in source])
        except BaseException:
            self.broken_writes += 1
            raise
        if size is not None and size != len(data):
            raise Invalid(f"{path}: {len(data)} bytes came instead of {size}")
        self.contents[path] = data
        return self._put(Entry(path, "file", len(data), modified_ns or 1, permissions))

    async def write_many(self, files: Sequence[NewFile]) -> None:
        for file in files:
            await self.write(file.path, _one(file.data), len(file.data), file.modified_ns, file.permissions)

    async def symlink(self, path: str, target: str, modified_ns: int | None = None) -> Entry:
        return self._put(Entry(self._path(path), "symlink", 0, modified_ns or 1, None, target))

    async def mkdir(self, path: str, parents: bool = False, modified_ns: int | None = None, permissions: int | None = None) -> Entry:
        path = self._path(path)
        if path in self.entries:
            if parents and self.entries[path].type == "directory":
                return self.entries[path]
            raise Conflict(f"{path} exists")
        parent = path.rpartition("/")[0]
        if "/" in parent and parent not in self.entries and not parents:
            raise NotFound(f"there is no directory {parent}", hint="use `mkdir -p`")
        return self._put(Entry(path, "directory", 0, modified_ns or 1, permissions))

    async def rm(self, path: str, recursive: bool = False) -> int:
        entry = self._entry(path)
        if "/" not in entry.path:
            raise Invalid("a folder is removed with `stnode folder remove`")
        below = [p for p in self.entries if p.startswith(f"{entry.path}/")]
        if self.hold_deletions:
            self.pending = PendingDeletions(1 + len(below), len(self.entries), 3600.0)
            await self.confirmed.wait()
            self.pending = None
        if below and not recursive:
            raise Conflict(f"{entry.path} is not empty", hint="use `rm -r`")
        for gone in [entry.path, *below]:
            del self.entries[gone]
            self.contents.pop(gone, None)
        return 1 + len(below)

    async def mv(self, source: str, target: str) -> Entry:
        entry, new = self._entry(source), self._path(target)
        if new in self.entries:
            raise Conflict(f"{new} exists")
        for old in [p for p in self.entries if p == entry.path or p.startswith(f"{entry.path}/")]:
            moved = new + old[len(entry.path) :]
            if old in self.contents:
                self.contents[moved] = self.contents.pop(old)
            self._put(replace(self.entries.pop(old), path=moved))
        return self.entries[new]

    async def bucket_check(self, read_data: bool = False, share: float = 1.0, repair: bool = False) -> AsyncIterator[CheckStep]:
        yield CheckStep("journal", 1, 2)
        if repair:
            yield CheckStep("packs", 2, 2, CheckReport(1, 2, 3, 4, 5, repaired=self.problems))
            return
        yield CheckStep("packs", 2, 2, CheckReport(1, 2, 3, 4, 5, 6 if read_data else 0, 0, self.problems))

    async def bucket_repair(self) -> RepairReport:
        return RepairReport(RepairPlan("", ("write a checkpoint",)), done=True, commit=7)

    async def bucket_gc(self, dry_run: bool = False) -> GcReport:
        done = 0 if dry_run else 2
        return GcReport(dry_run, 7, live_bytes=4096, condemned_packs=1, condemned_bytes=512, next_deletion_s=1.0, objects_deleted=done)

    async def bucket_stats(self) -> BucketStats:
        return BucketStats("file:///fake", "store-id", 7, (), (), {"get": 1})


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data
