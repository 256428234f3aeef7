"""One node put together: object store, database, repository, folders, connections.

Devices and folders are settings of the store, equal for all nodes; when a commit changes them, whoever made it, the node starts
and stops folders, dials or disconnects devices and tells its peers. A node that was opened and not started serves a command: no
runner, no listener, but everything that the store can do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import TYPE_CHECKING

import stnode.net.tcp  # noqa: F401 - registers tcp:// with net.base
from stnode import __version__
from stnode.clock import Env, Tasks
from stnode.config import Config
from stnode.db import Database
from stnode.errors import NotFound, StnodeError
from stnode.folder import index
from stnode.folder.runner import FolderRunner
from stnode.folder.transfer import Limits
from stnode.folder.view import FolderView
from stnode.net import base as net
from stnode.net.identity import Identity
from stnode.net.interfaces import interface_addresses, is_loopback, reachable
from stnode.node import identities
from stnode.node.connections import Connections
from stnode.node.objects import open_objects
from stnode.node.siblings import Siblings
from stnode.objectstore.registry import OpenedStore
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.encryption import check_library
from stnode.protocol.fileinfo import FileInfo
from stnode.protocol.messages import Hello
from stnode.repo import state
from stnode.repo.codec import KNOWN_FEATURES
from stnode.repo.collect import CollectOptions
from stnode.repo.heartbeat import Heartbeat, Reach
from stnode.repo.packer import PackerOptions
from stnode.repo.reader import ReaderOptions
from stnode.repo.records import Applied
from stnode.repo.settings import DeviceSettings, FolderSettings
from stnode.repo.store import Store
from stnode.telemetry import Metrics, get_logger

if TYPE_CHECKING:
    from stnode.node.lan import Lan

_SETTINGS_AGAIN_S = 5.0

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the store on this node. `runner` is None while the node is offline or the folder is not pulled here."""

    fid: int
    settings: FolderSettings
    view: FolderView
    runner: FolderRunner | None

    async def close(self) -> None:
        """Ends what the folder does on this node."""
        if self.runner is not None:
            await self.runner.stop()
        await self.view.close()


class Node:
    """Made by `Node.open`; `start` brings it on line, `stop` ends it in order. A kill -9 at any moment loses nothing committed. `page` is
    where other machines find the status page, "" if nowhere; whoever serves it sets it before the start."""

    def __init__(
        self, config: Config, identity: Identity, env: Env, objects: OpenedStore, db: Database, store: Store, metrics: Metrics
    ) -> None:
        self.config = config
        self.identity = identity
        self.env = env
        self.objects = objects
        self.db = db
        self.store = store
        self.metrics = metrics
        self.started_ns = env.clock.now_ns()
        self.listening: tuple[str, ...] = ()
        self.bucket_warnings: tuple[str, ...] = ()
        self.page = ""
        self.devices: dict[DeviceID, DeviceSettings] = {}
        self.folders: dict[str, Folder] = {}
        self._replaced: list[FolderView] = []
        """Views of former settings, kept until the end: calls that are under way end by them."""
        self._online = False
        self._untold = False
        """Whether something has changed that `connections` was not told of: kept over errors in between."""
        self._lan: Lan | None = None
        self._settings_wake = asyncio.Event()
        self._settings_lock = asyncio.Lock()
        self._tasks = Tasks(env, self._crashed)
        hello = Hello(config.node.name, "stnode", f"v{__version__}")
        self.siblings = Siblings(
            env, store, identity, metrics, hello, self._describe, self._siblings_changed, self._give_way, self._fetches
        )
        self.connections = Connections(env, db, store, identity, hello, self.metrics, lambda: self.devices, self.runners, self.siblings)
        store.subscribe(self._applied)

    # --- life

    @classmethod
    async def open(cls, home: Path, config: Config, env: Env, *, try_out: bool = False) -> Node:
        """Opens store and caches and follows the journal to its head; `try_out`: not without trying out what the object store does, for
        a node that stays. `Node.config` has what `config` left to the store (`identities.resolve`). Raises what the store or the
        configuration gets wrong, Internal for an OpenSSL that encrypts wrongly. Until `start` the node is off line: no folder is pulled,
        nobody connects, but commands work."""
        check_library()
        metrics = Metrics()
        objects = await open_objects(home, config, env, metrics.store_request)
        async with AsyncExitStack() as opened:
            opened.push_async_callback(objects.close)
            identity, config = await identities.resolve(home, config, objects, env)
            db = Database(await env.threads.run(_state_file, home))
            opened.push_async_callback(db.close)
            options = _reader_options(home, config, objects.url)
            store = await Store.open(
                objects,
                db,
                env,
                identity.device_id,
                collect_options=CollectOptions(config.limits.collect_requests, config.limits.collect_rate),
                packer_options=_packer_options(home, config),
                reader_options=options,
                try_out=try_out,
                single_node=config.store.single_node,
            )
            opened.push_async_callback(store.close)
            await index.migrate(db)
            store.announced = _announced_by_a_device
            node = cls(config, identity, env, objects, db, store, metrics)
            await node._load_settings()
            opened.pop_all()
            return node

    async def start(self) -> None:
        """Runs the folders, listens and dials."""
        self.bucket_warnings = await self.objects.bucket_rules()
        for warning in self.bucket_warnings:
            _log.warning("the bucket has rules of its own", warning=warning)
        self._online = True
        async with self._settings_lock:  # the API may change settings already
            await self._load_settings()
            self._untold = False
        self.listening = await self.connections.start(self.config.node.listen)
        self._tasks.spawn(self._watch_settings(), "settings")
        self.siblings.start()
        self.store.collector.start()
        await self._announce_on_lan()

    async def stop(self) -> None:
        """Tells the peers, ends all tasks, closes store and caches."""
        if self._online:
            await self._leave_lan()
            await self.siblings.stop()
            await self.connections.stop()
        await self._tasks.close()
        for folder in self.folders.values():
            await folder.close()
        for view in self._replaced:
            await view.close()
        await self.store.close()
        await self.db.close()
        await self.objects.close()

    def _crashed(self, name: str, exc: Exception) -> None:
        _log.error("node task ended by a bug", task=name, exc_info=exc)

    # --- settings

    def runners(self) -> Mapping[str, FolderRunner]:
        """The folders that run here, by folder ID."""
        return {name: folder.runner for name, folder in self.folders.items() if folder.runner is not None}

    def _applied(self, applied: Applied) -> None:
        for folder in self.folders.values():
            if folder.runner is not None:
                folder.runner.applied(applied)
        self.siblings.applied(applied)
        if applied.settings_changed or applied.restored:
            self._settings_wake.set()

    async def _watch_settings(self) -> None:
        while True:
            await self._settings_wake.wait()
            self._settings_wake.clear()
            try:
                await self.load_settings()
            except StnodeError as exc:  # a full disk, most likely: again, when there may be room
                _log.warning("changed settings are not taken up yet", error=exc.message, hint=exc.hint)
                await self.env.clock.sleep(_SETTINGS_AGAIN_S)
                self._settings_wake.set()

    async def load_settings(self) -> None:
        """Returns when devices, folders and views are those of the committed settings."""
        async with self._settings_lock:
            await self._load_settings()
            if self._untold and self._online:
                self._untold = False
                try:
                    await self.connections.settings_changed()
                except StnodeError:
                    self._untold = True
                    raise

    async def _load_settings(self) -> None:
        """Reads devices and folders from the state; starts and stops folders as they came and went."""

        def read(conn: Connection) -> tuple[list[DeviceSettings], list[tuple[int, FolderSettings]]]:
            return state.devices(conn), [(row.fid, row.settings) for row in state.folders(conn)]

        found, folders = await self.db.run(read)
        devices = {DeviceID(device.device_id): device for device in found if not self.siblings.knows(DeviceID(device.device_id))}
        if devices != self.devices:
            self.devices, self._untold = devices, True
        present = {settings.folder_id: (fid, self._among_devices(settings)) for fid, settings in folders}
        for name, folder in list(self.folders.items()):
            if name not in present or present[name][0] != folder.fid:
                self._untold = True
                del self.folders[name]
                await folder.close()
                await self.db.write(partial(index.drop_folder, fid=folder.fid))
        for name, (fid, settings) in present.items():
            known = self.folders.get(name)
            if known is None or (known.runner is None and self._online):
                self.folders[name] = await self._make_folder(fid, settings)
                self._untold = True
                if known is not None:
                    self._replaced.append(known.view)
            elif known.settings != settings:
                self._untold = True
                self.folders[name] = Folder(fid, settings, self._make_view(fid, settings), known.runner)
                self._replaced.append(known.view)
                if known.runner is not None:
                    known.runner.settings_changed(settings)

    def _among_devices(self, settings: FolderSettings) -> FolderSettings:
        """The folder without those of its devices that are siblings: no index of theirs counts, and none is sent to them."""
        devices = tuple(device for device in settings.devices if not self.siblings.knows(DeviceID(device.device_id)))
        return settings if devices == settings.devices else replace(settings, devices=devices)

    async def _make_folder(self, fid: int, settings: FolderSettings) -> Folder:
        runner: FolderRunner | None = None
        if self._online:
            limits = Limits(memory=self.config.limits.pull_memory)
            runner = FolderRunner(self.env, self.db, self.store, settings, fid, limits, self.siblings)
            try:
                await runner.start()
            except BaseException:
                await runner.stop()
                raise
        return Folder(fid, settings, self._make_view(fid, settings), runner)

    def _make_view(self, fid: int, settings: FolderSettings) -> FolderView:
        return FolderView(self.env, self.db, self.store, fid, settings, self.identity.device_id)

    # --- siblings

    def _describe(self) -> Heartbeat:
        """This node's heartbeat of now; when its process was started the siblings know."""
        status = self.store.status().journal
        runners = self.runners()
        reached = [
            Reach(device, max((runner.rate(known.session.device) for runner in runners.values()), default=0))
            for device, known in sorted(self.connections.states.items())
            if known.session is not None and known.session.hello
        ]
        return Heartbeat(
            node=self.identity.device_id,
            instance=self.store.instance,
            name=self.config.node.name,
            version=__version__,
            addresses=reachable(self.listening, interface_addresses()),
            page=self.page,
            reached=tuple(reached),
            not_pulled=tuple(sorted(folder.settings.fkey for folder in self.folders.values() if folder.runner is None)),
            unshared=tuple(sorted(runner.settings.fkey for runner in runners.values() if not runner.peers)),
            full=self.store.packer.queue().full,
            working=status.waiting > 0 or any(runner.working for runner in runners.values()),
            head=status.number,
            features=tuple(sorted(KNOWN_FEATURES)),
        )

    def _siblings_changed(self) -> None:
        """A device may be a sibling now, or none any more; peers are told of the siblings."""
        self._untold = True
        self._settings_wake.set()

    def _fetches(self, node: bytes, folder_key: str, contents: Collection[int]) -> tuple[int, ...]:
        """Which of the contents that a sibling is about to fetch are fetched here."""
        found = (runner for runner in self.runners().values() if runner.settings.fkey == folder_key)
        return next((runner.claims.answer(node, contents) for runner in found), ())

    async def _give_way(self, newer: bool) -> None:
        """Leaves the devices to another process with this identity, or takes them up again."""
        if newer:
            self.listening = ()
            await self._leave_lan()
            await self.connections.stop("another process with this identity was started later")
        else:
            self.listening = await self.connections.start(self.config.node.listen)
            await self._announce_on_lan()

    async def _announce_on_lan(self) -> None:
        """Where other machines of the local network reach this node, they are told, if that is wanted."""
        addresses = [text for text in reachable(self.listening, interface_addresses()) if not is_loopback(net.parse_address(text).host)]
        if self.config.node.zeroconf and any(address.startswith("tcp") for address in addresses):
            from stnode.node.lan import Lan  # takes a fifth of a second to import

            self._lan = Lan(self.env, self.store.store_id, self.identity.device_id, self.config.node.name, self.siblings.heard_of)
            self._lan.open(addresses, self.page)

    async def _leave_lan(self) -> None:
        lan, self._lan = self._lan, None
        if lan is not None:
            await lan.close()

    # --- for frontends

    def folder(self, folder_id: str) -> Folder:
        """A folder by its ID, else by a label that only one has; raises NotFound."""
        found = self.folders.get(folder_id)
        if found is not None:
            return found
        labelled = [folder for folder in self.folders.values() if folder.settings.label == folder_id]
        if len(labelled) != 1:
            raise NotFound(f"there is no folder {folder_id!r}", hint="`stnode folder list` shows them; `stnode folder add` makes one")
        return labelled[0]

    def view(self, folder_id: str) -> FolderView:
        """The one way to see and change a folder's content."""
        return self.folder(folder_id).view


def _state_file(home: Path) -> Path:
    directory = home / "state"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory / "state.db"


def _packer_options(home: Path, config: Config) -> PackerOptions:
    return PackerOptions(spool_path=home / "state" / "spool", spool_bytes=config.limits.spool, verify=config.store.verify_uploads)


def _reader_options(home: Path, config: Config, store_url: str) -> ReaderOptions:
    """A store in a local directory is on disk already."""
    path = home / "state" / "packs" if store_url.startswith("s3:") else None
    return ReaderOptions(config.limits.read_cache, disk_bytes=config.limits.disk_cache, disk_path=path)


def _announced_by_a_device(conn: Connection, fid: int, info: FileInfo) -> bool:
    """Whether a device still has exactly this version: then it makes the conflict copy, should the version lose (R28)."""
    return bool(index.announced_by(conn, fid, info.name, info.version))
