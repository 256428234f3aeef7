"""Makes the status of a node from its parts: reads only, one look at the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from sqlite3 import Connection

from stnode import __version__, retention
from stnode.errors import Invalid
from stnode.folder import index
from stnode.folder.types import NeedTotals
from stnode.node.connections import DeviceState
from stnode.node.node import Node
from stnode.node.present import count_text
from stnode.node.siblings import SiblingState
from stnode.node.status import (
    DeviceStatus,
    FolderState,
    FolderStatus,
    NodeStatus,
    PathError,
    PendingDeletions,
    PendingDevice,
    PendingFolder,
    SiblingStatus,
    StoreStatus,
)
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from stnode.repo import past, state, state_damage
from stnode.repo.heartbeat import Heartbeat
from stnode.repo.settings import DeviceSettings, FolderSettings

_ERRORS_SHOWN = 20
_RATE_OVER_S = 2.0
_AWAITED = "waits for a device that has its password"
_STATES: dict[str, FolderState] = {"idle": "idle", "syncing": "syncing", "waiting": "waiting", "error": "error"}


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the database says: folders, and per folder number needs, packs as (count, bytes), completion by device, 0 to 1, files with lost
    content: how many, and some names, and when the oldest version of the history was superseded."""

    folders: list[state.FolderState]
    needs: dict[int, NeedTotals]
    packs: dict[int, tuple[int, int]]
    completion: dict[int, dict[DeviceID, float]]
    lost: dict[int, tuple[int, list[str]]]
    oldest_us: dict[int, int | None]


def read_packs(conn: Connection) -> dict[int, tuple[int, int]]:
    """Packs of each folder number that are neither condemned nor lost: how many, and their bytes."""
    rows = conn.execute("SELECT fid, count(*), sum(size) FROM packs WHERE condemned = 0 AND lost = 0 GROUP BY fid")
    return {fid: (count, size) for fid, count, size in rows}


class Reporter:
    """Remembers the byte counts of connections, so that rates are those since a look at least two seconds ago."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._samples: dict[DeviceID, tuple[float, int, int]] = {}
        self._rates: dict[DeviceID, tuple[float, float]] = {}

    async def status(self, *, running: bool) -> NodeStatus:
        """How the node stands."""
        node = self._node
        facts = await node.db.run(self._read)
        names = {folder.fid: folder.settings.folder_id for folder in facts.folders}
        completion: dict[DeviceID, dict[str, float]] = {}
        for fid, shares in facts.completion.items():
            for device, share in shares.items():
                completion.setdefault(device, {})[names[fid]] = share
        connections = node.connections
        folders = tuple(self._folder(folder, facts) for folder in facts.folders)
        store = self._store(facts)
        return NodeStatus(
            device_id=deviceid.format(node.identity.device_id),
            name=node.config.node.name,
            version=__version__,
            running=running,
            uptime_s=(node.env.clock.now_ns() - node.started_ns) / 1e9,
            listen=tuple(node.listening),
            store=store,
            folders=folders,
            devices=tuple(self._device(id_, settings, completion.get(id_)) for id_, settings in sorted(node.devices.items())),
            pending_devices=tuple(PendingDevice(deviceid.format(id_), address) for id_, address in connections.pending_devices.items()),
            pending_folders=tuple(
                PendingFolder(folder, offer.label, deviceid.format(id_), offer.encrypted)
                for (id_, folder), offer in connections.pending_folders.items()
            ),
            siblings=tuple(self._sibling(id_, heartbeat) for id_, heartbeat in sorted(node.siblings.others.items())),
            in_sync=running and store.unavailable_since_s is None and all(map(_is_in_sync, folders)),
            received_bytes=sum(runner.transfer.received_bytes for runner in node.runners().values()),
            given_way=self._given_way(),
        )

    def _read(self, conn: Connection) -> _Facts:
        folders = state.folders(conn)
        needs: dict[int, NeedTotals] = {}
        completion: dict[int, dict[DeviceID, float]] = {}
        for folder in folders:
            needs[folder.fid] = index.need_totals(conn, folder.fid)
            if not self._node.listening:
                continue  # a node without connections has not numbered its devices
            shared = {device.device_id for device in folder.settings.devices}
            numbers = {id_: index.device_number(conn, id_) for id_ in self._node.devices if id_ in shared}
            found = index.completion(conn, folder.fid, numbers.values())
            completion[folder.fid] = {id_: found[number].percent / 100 for id_, number in numbers.items()}
        lost = {folder.fid: state_damage.lost_names(conn, folder.fid, _ERRORS_SHOWN) for folder in folders}
        oldest_us = {folder.fid: past.oldest_us(conn, folder.fid) for folder in folders}
        return _Facts(folders, needs, read_packs(conn), completion, lost, oldest_us)

    def _store(self, facts: _Facts) -> StoreStatus:
        node = self._node
        status = node.store.status()
        queue = node.store.packer.queue()
        journal, requests = status.journal, dict[str, int]()
        for count in node.objects.metrics.snapshot().requests:
            requests[count.operation] = requests.get(count.operation, 0) + count.count
        return StoreStatus(
            url=node.objects.url,
            head=journal.number,
            lag_s=journal.looked_s,
            unavailable_since_s=None if journal.trouble_s is None else node.env.clock.now_ns() / 1e9 - journal.trouble_s,
            unavailable_reason=f"{journal.trouble}; {journal.hint}" if journal.hint else journal.trouble,
            requests=requests,
            spooled_bytes=node.store.packer.bytes_held + queue.spooled_bytes,
            queued_packs=queue.packs,
            queued_bytes=queue.bytes,
            queued_age_s=queue.age_s,
            spool_packs=queue.spooled_packs,
            spool_bytes=queue.spooled_bytes,
            spool_full=queue.full,
            uploads_mended=queue.mended,
            uploads_unchecked=queue.unchecked,
            objects=sum(count for count, _ in facts.packs.values()),
            bytes=sum(size for _, size in facts.packs.values()),
            warnings=self._warnings(facts),
            collection=node.store.collector.status,
        )

    def _warnings(self, facts: _Facts) -> tuple[str, ...]:
        store = self._node.store
        found = list(self._node.bucket_warnings)
        if trouble := store.status().checkpoint_trouble:
            found.append(f"no checkpoint can be written: {trouble}")
        if trouble := store.collector.status.trouble:
            found.append(f"garbage is not collected: {trouble}")
        if trouble := store.packer.queue().trouble:
            found.append(trouble)
        if store.damage.trouble is not None:
            found.append(f"damage cannot be looked at: {store.damage.trouble.message}")
        if lost := sum(count for count, _ in facts.lost.values()):
            found.append(
                f"{count_text(lost, 'file has', 'files have')} lost content; connect a device that has them, or bring the packs back"
            )
        return tuple(found)

    def _folder(self, folder: state.FolderState, facts: _Facts) -> FolderStatus:
        node, settings = self._node, folder.settings
        needs = facts.needs[folder.fid]
        objects, size = facts.packs.get(folder.fid, (0, 0))
        oldest_us = facts.oldest_us[folder.fid]
        here = node.folders.get(settings.folder_id)
        runner = here.runner if here is not None else None
        errors: Mapping[str, str] = runner.errors if runner is not None else {}
        folder_state = _STATES[runner.state] if runner is not None else "idle"
        reason = runner.broken if runner is not None else ""
        if settings.encrypted and not settings.encryption_password_token and not reason:
            folder_state, reason = "waiting", _AWAITED
        return FolderStatus(
            id=settings.folder_id,
            label=settings.label,
            type=settings.type,
            state=folder_state,
            files=folder.totals.files,
            directories=folder.totals.directories,
            symlinks=folder.totals.symlinks,
            bytes=folder.totals.bytes,
            need_files=needs.files + needs.directories + needs.symlinks,
            need_bytes=needs.bytes,
            need_deletes=needs.deletes,
            left_to_siblings=runner.sharing.items if runner is not None else 0,
            store_objects=objects,
            store_bytes=size,
            sequence=folder.last_sequence,
            devices=tuple(deviceid.format(DeviceID(device.device_id)) for device in settings.devices),
            error_count=len(errors),
            errors=tuple(PathError(path, message) for path, message in list(errors.items())[:_ERRORS_SHOWN]),
            pending_deletions=self._pending(folder),
            lost_count=facts.lost[folder.fid][0],
            lost=tuple(facts.lost[folder.fid][1]),
            history=settings.history,
            history_words=_history_words(settings),
            history_versions=folder.old_versions,
            history_bytes=folder.old_bytes,
            history_oldest_s=None if oldest_us is None else oldest_us / 1_000_000,
            encrypted_for=tuple(deviceid.format(DeviceID(d.device_id)) for d in settings.devices if d.encryption_password),
            reason=reason,
        )

    def _pending(self, folder: state.FolderState) -> PendingDeletions | None:
        clock = self._node.env.clock
        for pending in self._node.store.pending_deletions():
            if pending.fid == folder.fid:
                return PendingDeletions(pending.files, folder.totals.files, clock.now_ns() / 1e9 + pending.until_s - clock.monotonic())
        return None

    def _device(self, device: DeviceID, settings: DeviceSettings, completion: dict[str, float] | None) -> DeviceStatus:
        known = self._node.connections.states.get(device, DeviceState())
        session = known.session
        link = session.link if session is not None else None
        hello = session.hello if session is not None else None
        connected = link is not None and hello is not None
        bytes_in, bytes_out = (link.bytes_in, link.bytes_out) if link is not None else (0, 0)
        rate_in, rate_out = self._rate(device, bytes_in, bytes_out)
        return DeviceStatus(
            id=deviceid.format(device),
            name=settings.name,
            connected=connected,
            address=link.remote_address if link is not None else "",
            client=f"{hello.client_name} {hello.client_version}" if hello is not None else "",
            completion=completion,
            in_bytes=bytes_in,
            out_bytes=bytes_out,
            in_bytes_per_s=rate_in,
            out_bytes_per_s=rate_out,
            last_seen_s=known.last_seen_s,
            last_error=known.last_error,
            untrusted=settings.untrusted,
        )

    def _sibling(self, device: DeviceID, heartbeat: Heartbeat) -> SiblingStatus:
        known = self._node.siblings.states.get(device, SiblingState())
        session = known.greeted
        return SiblingStatus(
            id=deviceid.format(device),
            name=heartbeat.name,
            connected=session is not None,
            heartbeat_age_s=self._node.store.heartbeats.age_s(heartbeat),
            head=heartbeat.head,
            version=heartbeat.version,
            address=session.link.remote_address if session is not None and session.link is not None else "",
            addresses=heartbeat.addresses,
            page=heartbeat.page,
            working=heartbeat.working,
            stopped=heartbeat.stopped,
            last_error=known.last_error,
        )

    def _given_way(self) -> str:
        newer = self._node.siblings.newer
        if newer is None:
            return ""
        where = ", ".join(newer.addresses) or "no address"
        return f"another process with this identity was started later ({newer.name}, {where}): it serves the devices"

    def _rate(self, device: DeviceID, bytes_in: int, bytes_out: int) -> tuple[float, float]:
        """Bytes per second in and out; from the second look on, and at most renewed every two seconds."""
        now = self._node.env.clock.monotonic()
        at, last_in, last_out = self._samples.setdefault(device, (now, bytes_in, bytes_out))
        if bytes_in < last_in or bytes_out < last_out:  # another connection
            self._samples[device] = (now, bytes_in, bytes_out)
            self._rates.pop(device, None)
        elif now - at >= _RATE_OVER_S:
            self._samples[device] = (now, bytes_in, bytes_out)
            self._rates[device] = ((bytes_in - last_in) / (now - at), (bytes_out - last_out) / (now - at))
        return self._rates.get(device, (0.0, 0.0))


def _is_in_sync(folder: FolderStatus) -> bool:
    """Whether the folder lacks nothing that a device announced, and nothing went wrong."""
    return folder.state == "idle" and not (
        folder.need_files or folder.need_bytes or folder.need_deletes or folder.error_count or folder.reason
    )


def _history_words(settings: FolderSettings) -> str:
    try:
        return retention.words(settings.history, settings.history_floor)
    except Invalid:
        return "every version, for ever: this stnode does not know the policy"
