"""Who may connect, who is connected, whom to dial.

One connection per device: the first one that stands is kept, unless it has been silent for so long that it is likely dead.
Only devices of the store's settings and siblings get in; others are remembered as pending, for the user to add (invariant: an unknown
device never gets a byte of BEP). Links with siblings are handed on to `siblings`, which dials them too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from sqlite3 import Connection

from stnode.clock import Env, Tasks
from stnode.db import Database
from stnode.errors import Conflict, ProtocolError, StnodeError
from stnode.folder import index
from stnode.folder.index import IndexState
from stnode.folder.runner import FolderRunner
from stnode.net import base as net
from stnode.net.base import LinkHandler
from stnode.net.identity import Identity
from stnode.node.announcer import Announcer
from stnode.node.ciphers import Ciphers
from stnode.node.dialing import Dialer, LinkState
from stnode.node.session import Agreed, Session
from stnode.node.siblings import Siblings
from stnode.protocol import agreement, announce, deviceid
from stnode.protocol.connection import BEPConnection
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.encryption import FolderCipher
from stnode.protocol.messages import ClusterConfig, ClusterDevice, ClusterFolder, Compression, FolderID, Hello
from stnode.repo import state
from stnode.repo.settings import DeviceSettings, FolderDevice, FolderSettings
from stnode.repo.store import Store
from stnode.telemetry import Metrics, get_logger

_log = get_logger(__name__)

_PENDING_KEPT = 100


@dataclass(slots=True)
class DeviceState(LinkState[Session]):
    """What is known of one device beyond its settings."""

    last_seen_s: float | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """A folder that a device lists and that is not shared with it. `encrypted`: it has a password token for us."""

    label: str
    encrypted: bool


class Connections:
    """Listeners, dialers and sessions of a node, and the host that its sessions ask (`session.SessionHost`).

    `devices`, `runners` give the present settings and folders; both change with the store's settings, after which the node
    calls `settings_changed`.
    """

    def __init__(
        self,
        env: Env,
        db: Database,
        store: Store,
        identity: Identity,
        hello: Hello,
        metrics: Metrics,
        devices: Callable[[], Mapping[DeviceID, DeviceSettings]],
        runners: Callable[[], Mapping[str, FolderRunner]],
        siblings: Siblings,
    ) -> None:
        self._env = env
        self._db = db
        self._store = store
        self._identity = identity
        self._hello = hello
        self._metrics = metrics
        self._devices = devices
        self._runners = runners
        self._siblings = siblings
        self._dialer = Dialer(env, identity, self._accept, self._dialed)
        self._ciphers = Ciphers(env)
        self._keeping_token = asyncio.Lock()
        self._numbers: dict[DeviceID, int] = {}
        self._listeners: list[net.Listener] = []
        self._tasks = Tasks(env, self._crashed)
        self._stopping = False
        self._live: set[Session] = set()
        self._moved = (0, 0)
        self.states: dict[DeviceID, DeviceState] = {}
        self.pending_devices: dict[DeviceID, str] = {}
        self.pending_folders: dict[tuple[DeviceID, str], Offer] = {}

    # --- life

    async def start(self, listen: Sequence[str]) -> tuple[str, ...]:
        """Opens the listeners and begins to dial; the addresses really bound. Raises Refused, nothing being open then, when a port is
        taken. May be called again after `stop`."""
        await self._number_devices()
        try:
            for address in listen:
                self._listeners.append(await net.listen(self._env, address, self._identity, self._accept))
        except StnodeError:
            await self._close_listeners()
            raise
        self._stopping = False
        self._dial_all()
        return tuple(str(listener.address) for listener in self._listeners)

    async def stop(self, reason: str = "the node is stopping") -> None:
        """Closes listeners and connections, telling the peers why."""
        self._stopping = True
        await self._close_listeners()
        sessions = [state.session for state in self.states.values() if state.session is not None]
        for session in sessions:
            session.close(reason)
        await self._tasks.close()
        for session in sessions:
            await session.wait_ended()
        for known in self.states.values():
            known.dialer = False  # also of one that was cancelled before its first step

    async def _close_listeners(self) -> None:
        while self._listeners:
            await self._listeners.pop().close()

    async def settings_changed(self) -> None:
        """Devices or folders changed: removed devices are disconnected, all others get a new ClusterConfig."""
        await self._number_devices()
        for device, known in list(self.states.items()):
            if device not in self._devices():
                if known.session is not None:
                    known.session.close("a node of this store" if self._siblings.knows(device) else "the device was removed")
                del self.states[device]
                known.wake.set()  # its dialer ends
            elif known.session is not None:
                known.session.resend_config()
        self._forget_answered()
        self._dial_all()

    def _forget_answered(self) -> None:
        """What was asked for and is there now, or is asked for by nobody, is pending no more."""
        devices = self._devices()
        self.pending_devices = {device: address for device, address in self.pending_devices.items() if device not in devices}
        shared = {device: {runner.settings.folder_id for runner in self._shared_with(device)} for device, _ in self.pending_folders}
        self.pending_folders = {
            (device, folder): offer
            for (device, folder), offer in self.pending_folders.items()
            if device in devices and folder not in shared[device]
        }

    async def _number_devices(self) -> None:
        wanted = [device for device in self._devices() if device not in self._numbers]

        def number(conn: Connection) -> dict[DeviceID, int]:
            return {device: index.device_number(conn, device) for device in wanted}

        if wanted:
            self._numbers.update(await self._db.write(number))

    def _crashed(self, name: str, exc: Exception) -> None:
        _log.error("connection task ended by a bug", task=name, exc_info=exc)

    def bytes_moved(self) -> tuple[int, int]:
        """Bytes from and to devices since the start."""
        came, went = _bytes_of(self._live)
        return self._moved[0] + came, self._moved[1] + went

    # --- who connects

    def _state(self, device: DeviceID) -> DeviceState:
        return self.states.setdefault(device, DeviceState())

    def _accept(self, device: DeviceID, address: str) -> LinkHandler | None:
        """The handler of a new link from `device`, or None to drop it before a byte of BEP."""
        if self._stopping:
            return None
        if device == self._identity.device_id:
            self._siblings.doubt()
            return None
        if self._siblings.knows(device):
            self.pending_devices.pop(device, None)
            return self._siblings.accept(device, address)
        settings = self._devices().get(device)
        if settings is None or device not in self._numbers:
            self._siblings.ask(device)
            if device not in self.pending_devices and len(self.pending_devices) < _PENDING_KEPT:
                _log.info("unknown device refused", device=deviceid.format(device), address=address)
            if len(self.pending_devices) < _PENDING_KEPT:
                self.pending_devices[device] = address
            return None
        known = self._state(device)
        if not known.makes_room():
            return None
        connection = BEPConnection(self._env.clock.monotonic(), compression=Compression[settings.compression.upper()])
        session = Session(self._env, device, self._numbers[device], connection, self)
        known.session = session
        return session

    # --- whom to dial

    def _dial_all(self) -> None:
        if self._stopping:
            return
        for device, settings in self._devices().items():
            known = self._state(device)
            if not known.dialer and _static(settings):
                known.dialer = True
                dialing = self._dialer.keep_dialing(device, known, partial(self._addresses, device))
                self._tasks.spawn(dialing, f"dial {deviceid.format(device)[:7]}")

    def _addresses(self, device: DeviceID) -> Sequence[str]:
        settings = self._devices().get(device)
        return () if settings is None else _static(settings)

    def _dialed(self, ok: bool) -> None:
        self._metrics.dials.labels("ok" if ok else "failed").inc()

    # --- session.SessionHost

    def hello(self) -> Hello:
        """What we say first, with the time of now."""
        return Hello(self._hello.device_name, self._hello.client_name, self._hello.client_version, 1, self._env.clock.now_ns())

    def introduced(self, session: Session) -> None:
        """The device's Hello has come: the connection stands."""
        known = self._state(session.device_id)
        known.last_seen_s = self._env.clock.now_ns() / 1e9
        hello = session.hello
        _log.info(
            "device connected",
            device=deviceid.format(session.device_id),
            name=hello.device_name if hello else "",
            client=f"{hello.client_name} {hello.client_version}" if hello else "",
            address=session.link.remote_address if session.link else "",
        )
        self._live.add(session)

    def ended(self, session: Session, reason: str) -> None:
        """The link is gone."""
        known = self.states.get(session.device_id)
        if session.hello is not None:
            self._live.discard(session)
            came, went = _bytes_of([session])
            self._moved = (self._moved[0] + came, self._moved[1] + went)
            _log.info("device disconnected", device=deviceid.format(session.device_id), reason=reason)
        if known is not None and known.session is session:
            known.session = None
            known.last_error = reason
            known.last_seen_s = self._env.clock.now_ns() / 1e9
            known.wake.set()

    def announcer(self, runner: FolderRunner, cipher: FolderCipher | None) -> Announcer:
        """A new cursor over a folder's records, for a device that gets them encrypted if there is a cipher."""
        return Announcer(self._env, self._db, self._store, runner.fid, cipher)

    def _shared_with(self, device: DeviceID) -> list[FolderRunner]:
        return [runner for runner in self._runners().values() if _shared(runner.settings, device) is not None]

    async def _cipher(self, settings: FolderSettings, device: DeviceID) -> FolderCipher | None:
        """The keys by which the device gets the folder; None where it gets it as it is."""
        entry = _shared(settings, device)
        if entry is None or not entry.encryption_password:
            return None
        return await self._ciphers.get(settings.folder_id, entry.encryption_password)

    async def cluster_config(self, session: Session) -> ClusterConfig:
        """What we share with the session's device, after following the journal to its head (R15). An encrypted folder is not listed before
        it has its password token: until then nothing can be stored in it."""
        await self._store.follow_to_head()
        runners = [each for each in self._shared_with(session.device_id) if not _waits_for_token(each.settings)]

        def read(conn: Connection) -> list[tuple[int, IndexState]]:
            return [(_numbers_of(conn, runner.fid)[0], index.index_state(conn, runner.fid, session.device)) for runner in runners]

        views = await self._db.run(read)
        folders = []
        for runner, view in zip(runners, views, strict=True):
            cipher = await self._cipher(runner.settings, session.device_id)
            entries = self._entries(runner.settings, session, *view, b"" if cipher is None else cipher.token)
            folders.append(ClusterFolder(FolderID(runner.settings.folder_id), runner.settings.label, False, entries))
        return ClusterConfig(tuple(folders))

    def _entries(
        self, settings: FolderSettings, session: Session, last_sequence: int, theirs: IndexState, token: bytes
    ) -> tuple[ClusterDevice, ...]:
        """Our own entry first, then every device that shares the folder, then the siblings, for introducers; of those we say nothing of
        an index (R16). `token` is that of the password by which the session's device gets the folder. Other devices that get it encrypted
        are nobody else's business."""
        own = ClusterDevice(
            self._identity.device_id,
            name=self._hello.device_name,
            max_sequence=last_sequence,
            index_id=settings.index_id,
            encryption_password_token=settings.encryption_password_token if settings.encrypted else b"",
        )
        entries = [own]
        for shared in settings.devices:
            device = self._devices().get(DeviceID(shared.device_id))
            if device is None or device.device_id == self._identity.device_id:
                continue
            receiver = device.device_id == session.device_id
            if shared.encryption_password and not receiver:
                continue
            held = theirs if receiver else IndexState()
            entries.append(
                ClusterDevice(
                    DeviceID(device.device_id),
                    name=device.name,
                    addresses=device.addresses,
                    compression=Compression[device.compression.upper()],
                    cert_name=device.cert_name,
                    max_sequence=held.max_sequence,
                    introducer=device.introducer,
                    index_id=held.index_id,
                    encryption_password_token=token if receiver else b"",
                )
            )
        for node, heartbeat in sorted(self._siblings.others.items()):
            if settings.fkey not in heartbeat.not_pulled:
                entries.append(ClusterDevice(node, name=heartbeat.name, addresses=heartbeat.addresses or ("dynamic",)))
        return tuple(entries)

    async def shared_folders(self, session: Session, config: ClusterConfig) -> dict[str, Agreed]:
        """The folders that both sides list and that run on both. Raises ProtocolError when the two do not agree on a folder's
        encryption."""
        runners = {runner.settings.folder_id: runner for runner in self._shared_with(session.device_id)}
        self.pending_folders = {asked: offer for asked, offer in self.pending_folders.items() if asked[0] != session.device_id}
        shared: dict[str, Agreed] = {}
        for folder in config.folders:
            runner = runners.get(folder.id)
            theirs, ours = folder.device(session.device_id), folder.device(self._identity.device_id)
            if runner is None:
                if len(self.pending_folders) < _PENDING_KEPT:
                    encrypted = any(entry is not None and entry.encryption_password_token for entry in (theirs, ours))
                    self.pending_folders[session.device_id, folder.id] = Offer(folder.label, encrypted)
            elif theirs is not None and ours is not None and not folder.paused:
                cipher = await self._cipher(runner.settings, session.device_id)
                await self._agree(runner, session.device_id, cipher, theirs, ours)
                if _waits_for_token(runner.settings):
                    continue  # when the token is committed both sides' ClusterConfigs are looked at again
                fid = runner.fid
                last, intervals = await self._db.run(partial(_numbers_of, fid=fid))
                start = announce.decide(runner.settings.index_id, last, intervals, ours.index_id, ours.max_sequence)
                shared[folder.id] = Agreed(runner, theirs.index_id, start, cipher)
        if (known := self.states.get(session.device_id)) is not None:
            known.last_error = ""  # not at the Hello: who is refused for a folder connects again and again
        return shared

    async def _agree(
        self, runner: FolderRunner, device: DeviceID, cipher: FolderCipher | None, theirs: ClusterDevice, ours: ClusterDevice
    ) -> None:
        """Whether the device means the same by the folder; the first password token of an encrypted one is committed."""
        settings = runner.settings
        known = self._devices().get(device)
        terms = agreement.Terms(
            b"" if cipher is None else cipher.token,
            settings.encrypted,
            settings.encryption_password_token if settings.encrypted else b"",
            known is not None and known.untrusted,
        )
        try:
            token = agreement.agree(terms, theirs, ours)
            if token:
                await self._keep_token(runner.fid, token)
        except (Conflict, ProtocolError) as exc:
            raise ProtocolError(f"folder {settings.folder_id!r}: {exc.message}") from exc

    async def _keep_token(self, fid: int, token: bytes) -> None:
        """Commits the token of the first device; several connect at the same moment. Raises Conflict for another one than the first."""
        async with self._keeping_token:
            there = await self._db.run(partial(state.folder, fid=fid))
            if there is None or there.settings.encryption_password_token != token:
                await self._store.submit_token(fid, token)


def _bytes_of(sessions: Iterable[Session]) -> tuple[int, int]:
    links = [session.link for session in sessions if session.link is not None]
    return sum(link.bytes_in for link in links), sum(link.bytes_out for link in links)


def _numbers_of(conn: Connection, fid: int) -> tuple[int, list[tuple[int, int]]]:
    """The highest sequence number of a folder, and the ranges that were ever assigned."""
    folder = state.folder(conn, fid)
    return (folder.last_sequence if folder is not None else 0), state.intervals(conn, fid)


def _static(settings: DeviceSettings) -> tuple[str, ...]:
    """Addresses that can be dialed as they are; "dynamic" needs discovery."""
    return tuple(address for address in settings.addresses if address != "dynamic")


def _shared(settings: FolderSettings, device: DeviceID) -> FolderDevice | None:
    """The folder's entry for a device that shares it."""
    return next((entry for entry in settings.devices if entry.device_id == device), None)


def _waits_for_token(settings: FolderSettings) -> bool:
    return settings.encrypted and not settings.encryption_password_token
