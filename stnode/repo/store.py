"""The facade of a store: what the layers above use of the repository. Wires its parts together, has no rules of its own.

All methods run on the event loop. `Store.init` makes a store, `Store.open` opens one and follows it to the head.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from sqlite3 import Connection
from typing import Any, Final, cast

from stnode.clock import Env, Randomness
from stnode.db import Database
from stnode.errors import Conflict, Corrupt, NotFound, Refused, StnodeError, UnknownOutcome
from stnode.objectstore import sealing
from stnode.objectstore.base import Blob, Capabilities, Exists, Mode, ObjectStore
from stnode.objectstore.probe import probe
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.fileinfo import FileInfo, blocks_hash
from stnode.protocol.vector import to_wire
from stnode.repo import layout, parameters, singlenode, state
from stnode.repo.blockindex import BlockIndex
from stnode.repo.codec import Body, Partial, Section
from stnode.repo.collect import CollectOptions, Collector
from stnode.repo.damage import Damage
from stnode.repo.dedupe import Dedupe
from stnode.repo.election import elected
from stnode.repo.guard import PendingDeletions
from stnode.repo.heartbeat import Heartbeats
from stnode.repo.journal import Journal, JournalOptions, JournalStatus
from stnode.repo.packer import Packer, PackerOptions
from stnode.repo.packlist import PackLists
from stnode.repo.proposal import Entries, PackTable
from stnode.repo.reader import Reader, ReaderOptions
from stnode.repo.records import Applied, DraftSet, Extent, Outcome
from stnode.repo.registry import StateRegistry
from stnode.repo.restore import manifest_numbers, restore
from stnode.repo.settings import DeviceSettings, FolderSettings
from stnode.repo.slots import NamedSlots
from stnode.repo.upkeep import Upkeep

FORMAT_VERSION: Final = 1
_STORE_ID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """Settings to be committed together, equal for all nodes. A folder of a known incarnation is changed, of a new one added
    (`new_folder`); `folders_removed` are folder IDs, `devices_removed` device IDs."""

    folders: tuple[FolderSettings, ...] = ()
    folders_removed: tuple[str, ...] = ()
    devices: tuple[DeviceSettings, ...] = ()
    devices_removed: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """`journal` as it stands; `checkpoint_trouble` is why checkpoints are not written, or "" ; `checkpoints` written by this process."""

    journal: JournalStatus
    store_id: str
    checkpoint_trouble: str
    checkpoints: int


@dataclass(frozen=True, slots=True)
class Description:
    """What stnode.json says that has to be known before anything else can be read."""

    store_id: str
    encrypted: bool


async def describe(objects: ObjectStore) -> Description:
    """Reads stnode.json. Raises NotFound when there is no store, Refused for one that is encrypted in an unknown manner."""
    document = _parse(await _read_store(objects))
    encryption = document.get("encryption")
    if encryption is not None and (not isinstance(encryption, dict) or encryption.get("version") != sealing.VERSION):
        raise Refused(f"the store is encrypted in a manner unknown to this stnode: {encryption}", hint="update stnode on this node")
    return Description(document["store"], encryption is not None)


def new_store_id(random: Randomness) -> str:
    """The random name of a store."""
    return random.bytes(_STORE_ID_BYTES).hex()


def new_folder(random: Randomness, folder_id: str) -> FolderSettings:
    """A new incarnation of a folder with default settings."""
    return FolderSettings(folder_id, layout.new_incarnation(random), random.uint64())


class Store:
    """Made by `open`. `packer`, `packlists`, `reader` and `dedupe` are the ways to the blocks; `heartbeats` tell of the other nodes;
    `instance` is the random number of this process in commits and heartbeats; `announced` may be set by the node: whether a known device
    announces exactly this version of an item, asked in the database's thread (R28). Until then nobody does."""

    def __init__(
        self,
        objects: ObjectStore,
        db: Database,
        env: Env,
        node: DeviceID,
        store_id: str,
        packer_options: PackerOptions | None = None,
        journal_options: JournalOptions | None = None,
        reader_options: ReaderOptions | None = None,
        collect_options: CollectOptions | None = None,
        *,
        single_node: bool = False,
    ) -> None:
        self.store_id = store_id
        self.node = node
        self.instance = env.random.uint64()
        self.collection = parameters.DEFAULT
        self.single_node = single_node
        self.objects = objects
        self.db = db
        self.env = env
        self.announced: Callable[[Connection, int, FileInfo], bool] = lambda _conn, _fid, _info: False
        self._objects = objects
        self._db = db
        self._env = env
        registry, index = StateRegistry(), BlockIndex()
        self.packlists = PackLists(objects, db, env, registry, index=index)
        self.packer = Packer(
            objects, env, fkey_of=self.fkey, store_time_us=self._journal_time, options=packer_options, observer=self.packlists
        )
        self.reader = Reader(objects, self.packlists, env, reader_options)
        self.dedupe = Dedupe(db, env, self.packlists, registry, index, self.fkey)
        self._journal = Journal(
            objects,
            db,
            env,
            (node, self.instance),
            self.packer,
            partial(restore, objects, db, env),
            self._check_store,
            self._announced,
            journal_options,
            alone=single_node,
        )
        self.heartbeats = Heartbeats(objects, env, self._journal.upload_time_us)
        self._upkeep = Upkeep(objects, db, env, node, self._journal.upload_time_us, self.heartbeats)
        self.damage = Damage(objects, db, env, self._journal, self.packer, self.packlists, self.reader.forget, self._check_store)
        self.reader.suspect = self.packlists.suspect = self.damage.suspect
        self.collector = Collector(
            objects,
            db,
            env,
            self.packer,
            self.packlists,
            self.submit_entries,
            self._journal.confirm_head,
            self.store_time_us,
            lambda: self.collection,
            self.damage.suspect,
            collect_options,
        )
        self.collector.hooks.left_to = self._left_to
        self.collector.hooks.present = self._present
        self._journal.subscribe(self._applied)

    # ---- life ---------------------------------------------------------------------------------------------------------

    @staticmethod
    async def try_out(objects: ObjectStore, env: Env, *, single_node: bool = False) -> Capabilities:
        """What the object store can do; on S3 found by some 25 requests. Raises Refused where it cannot create if absent, unless a
        `single_node` will be its only user, and what it gets wrong."""
        found = await objects.capabilities() or await probe(objects, env, single_node=True)
        if not (found.create_if_absent or single_node):
            raise singlenode.no_conditional_writes(found.name)
        return found

    @staticmethod
    async def init(
        objects: ObjectStore,
        env: Env,
        capabilities: Capabilities | None = None,
        collection: parameters.Collection = parameters.DEFAULT,
        *,
        single_node: DeviceID | None = None,
        encrypted_id: str = "",
    ) -> bool:
        """Makes a store in an empty bucket; False when there is one already. An encrypted one gets the id that its key slot is bound to
        (`unlock.make_store`). Raises what `try_out` raises, unless its answer is given, and Invalid for a `collection` that is too
        impatient. Without conditional writes the store is declared to be `single_node`'s, one that exists too: of a node that is gone,
        or moved here."""
        capabilities = capabilities or await Store.try_out(objects, env, single_node=single_node is not None)
        document: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "store": encrypted_id or new_store_id(env.random),
            "capabilities": {"create_if_absent": True, "if_match": capabilities.if_match, "backend": capabilities.name},
            "collection": parameters.to_json(collection.check()),
            "encryption": {"version": sealing.VERSION} if encrypted_id else None,
        }
        if not capabilities.create_if_absent:
            assert single_node is not None
            document["capabilities"]["create_if_absent"] = False
            document[singlenode.DECLARATION] = single_node.hex()
            objects = NamedSlots(objects)
        data = _rendered(document)
        await _require_empty(objects)
        while True:
            try:
                await objects.put(layout.STORE, [data], Mode.CREATE)
            except Exists:
                found = await objects.get(layout.STORE)
                if found.data != data and not capabilities.create_if_absent:
                    await _redeclare(objects, env, _parse(found), document)
                return found.data == data
            except UnknownOutcome:
                continue  # the same bytes again: Exists then tells whose they are
            return True

    @classmethod
    async def open(
        cls,
        objects: ObjectStore,
        db: Database,
        env: Env,
        node: DeviceID,
        packer_options: PackerOptions | None = None,
        journal_options: JournalOptions | None = None,
        reader_options: ReaderOptions | None = None,
        *,
        collect_options: CollectOptions | None = None,
        try_out: bool = False,
        single_node: bool = False,
    ) -> Store:
        """Opens the store and follows it to the head. With `try_out` the object store is tried out before anything is written, else what
        stnode.json says of it is trusted. `single_node`: the configuration says that no other node uses it; then a store that cannot create
        if absent is taken, if stnode.json names this node, and other processes are waited for until they are gone. Raises NotFound when
        there is no store, Refused for a newer format or an object store that may not be used, and what following finds wrong."""
        document = _parse(await _read_store(objects))
        if document["format"] != FORMAT_VERSION:
            raise Refused(
                f"the store has format {document['format']}, this stnode knows {FORMAT_VERSION}", hint="update stnode on this node"
            )
        alone = singlenode.check_declaration(document, node, wanted=single_node)
        if try_out:
            await Store.try_out(objects, env, single_node=alone)
        elif not (alone or _recorded(document)):
            raise singlenode.no_conditional_writes()
        if alone:
            objects = objects if isinstance(objects, NamedSlots) else NamedSlots(objects)
            await singlenode.wait_for_silence(objects, env, patience_s=float("inf") if try_out else singlenode.COMMAND_PATIENCE_S)
        store = cls(
            objects, db, env, node, document["store"], packer_options, journal_options, reader_options, collect_options, single_node=alone
        )
        store.collection = parameters.from_json(document)
        await state.prepare(db, store.collection)
        await store.packer.open()
        await store.packlists.open()
        await store.reader.open()
        await store._journal.start()
        store._upkeep.start()
        store.damage.start()
        return store

    async def close(self) -> None:
        """Stops committing and following at once. Neither the database nor the object store is closed."""
        await self.collector.close()
        await self._upkeep.close()
        await self.damage.close()
        await self._journal.close()
        await self.packer.close()
        await self.reader.close()

    async def stopped(self) -> StnodeError:
        """Waits until nothing can be committed any more in this process, and says why (`Journal.stopped`): whoever runs it ends it."""
        return await self._journal.stopped()

    async def _check_store(self) -> int | None:
        try:
            blob = await _read_store(self._objects)
        except NotFound:
            raise Refused(
                "the store's stnode.json is gone: this is an empty bucket or another one",
                hint="check the store's URL; put the bucket back from its backup",
            ) from None
        if _parse(blob)["store"] != self.store_id:
            raise Refused(
                "another store lies in the bucket now", hint="check the store's URL; delete the state directory if that is intended"
            )
        return blob.meta.date_ns

    # ---- committing ---------------------------------------------------------------------------------------------------

    def submit(self, sets: Sequence[DraftSet]) -> asyncio.Future[list[Outcome]]:
        """Queues changes for the next commits; the future gives an outcome for each set, in order, when all are decided. Deletions that
        the guard holds back decide late: keep them in batches of their own. It fails only when the store is closed."""
        return self._journal.submit(sets)

    def submit_entries(self, make: Entries, handles: frozenset[int] = frozenset()) -> asyncio.Future[int]:
        """Queues entries other than records, made anew on every state that they are tried on: the future gives the commit's
        number. `handles` are packs of the packer that they name."""
        return self._journal.submit_entries(make, handles)

    def submit_settings(self, change: SettingsChange) -> asyncio.Future[int]:
        """Queues settings; the future gives the commit's number. It fails with Conflict when a folder of this ID exists already or its
        incarnation is gone, NotFound for removing one that does not exist."""
        return self._journal.submit_entries(partial(_settings, change=change))

    def submit_token(self, fid: int, token: bytes) -> asyncio.Future[int]:
        """Makes this the password token of an encrypted folder, for good; the future gives the commit's number. It fails with Conflict when
        the folder has another one: the first one that is committed counts, whichever node it came to (R25)."""
        return self._journal.submit_entries(partial(_token, fid=fid, token=token))

    def submit_partial(
        self, fid: int, info: FileInfo, runs: Sequence[tuple[int, Extent]], made_on: int | None = None
    ) -> asyncio.Future[int]:
        """Registers what is durable of a version that is still being pulled: (first block, extent) for each run. Blocks whose packs may not
        be named any more are left out. The future gives the commit's number. `made_on`: see `Draft`."""
        handles = frozenset(extent[0] for _, extent in runs if extent[0] < 0)
        return self._journal.submit_entries(partial(_partial, fid=fid, info=info, runs=tuple(runs), node=self.node), handles, made_on)

    @property
    def histories(self) -> int:
        """How often the bucket was found put back. Numbers of packs and folders looked up before mean something else after it."""
        return self._journal.histories

    # ---- following ----------------------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[Applied], None]) -> None:
        """`callback` hears of every commit, own or not, in order, after it is in SQLite; it must not wait."""
        self._journal.subscribe(callback)

    async def follow_to_head(self) -> None:
        """Returns when every commit that existed at the call is in SQLite. Raises Unavailable and what following finds wrong."""
        await self._journal.follow_to_head()

    def hint(self, number: int) -> None:
        """A sibling says that commit `number` exists: it is followed soon."""
        self._journal.hint(number)

    def pending_deletions(self) -> list[PendingDeletions]:
        """Mass deletions that wait for `confirm_deletions` or for their hour."""
        return self._journal.pending_deletions()

    def confirm_deletions(self, fid: int) -> None:
        """Lets a folder's deletions go on, those that wait and those of the next hour."""
        self._journal.confirm_deletions(fid)

    async def write_checkpoint(self) -> int:
        """Writes the whole state as a new checkpoint, of which no run is shared with an earlier one; its commit. Raises what `write_manifest`
        raises."""
        number = self._journal.status().number
        if number == 0 or number <= max(await manifest_numbers(self._objects), default=0):
            number = await self._journal.submit_entries(lambda _conn, _packs: Body())
        await self._upkeep.write_full()
        return number

    def held_deletions(self, fid: int) -> list[DraftSet]:
        """The deletions of a folder that wait."""
        return self._journal.held_deletions(fid)

    def reject_deletions(self, fid: int) -> None:
        """Gives the deletions of a folder up that wait: those of clients fail with Conflict, those of devices are dropped, and come back
        unless a version above them has been committed (`FolderView.reject_deletions`)."""
        self._journal.reject_deletions(fid)

    def status(self) -> StoreStatus:
        """How it stands."""
        trouble = self._upkeep.trouble
        return StoreStatus(self._journal.status(), self.store_id, trouble.message if trouble else "", self._upkeep.written)

    def store_time_us(self) -> int:
        """Store time (Unix microseconds) as far as seen."""
        return self._journal.store_time_us()

    def present_us(self) -> int:
        """Store time (Unix microseconds) as it is about now, for what users ask; nothing is decided by it."""
        return self._journal.upload_time_us()

    def fkey(self, fid: int) -> str:
        """The key part of a folder that exists."""
        fkey = self._journal.fkeys.get(fid)
        if fkey is None:
            raise NotFound(f"folder {fid} does not exist in this store")
        return fkey

    def _applied(self, applied: Applied) -> None:
        if applied.restored:
            self.reader.forget_moves()
        self._upkeep.applied(applied)
        self.damage.applied(applied)
        self.collector.applied(applied)

    def _left_to(self) -> str:
        """The name of the node that collects garbage, as the heartbeats say who is there; "" for this one."""
        fresh = {beat.node: beat.name or deviceid.format(DeviceID(beat.node))[:7] for beat in self.heartbeats.fresh() if not beat.stopped}
        chosen = elected("collect", {*fresh, self.node})
        return "" if chosen == self.node else fresh[chosen]

    def _present(self) -> frozenset[bytes]:
        """Devices that any node of the store is connected with."""
        return frozenset(reach.device_id for beat in self.heartbeats.fresh() for reach in beat.reached)

    def _journal_time(self) -> int:
        return self._journal.upload_time_us()

    def _announced(self, conn: Connection, fid: int, info: FileInfo) -> bool:
        return self.announced(conn, fid, info)


async def _redeclare(objects: ObjectStore, env: Env, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Makes this node the one of a store that exists. Raises Refused while another process works on it."""
    if singlenode.declared_node(there) == singlenode.declared_node(wanted):
        return
    age_s = await singlenode.youngest_heartbeat_s(objects, env)
    if age_s is not None:
        raise Refused(
            f"another node works on this store: its heartbeat is {age_s:.0f} seconds old", hint="stop it, and try again two minutes later"
        )
    changed = {name: wanted[name] for name in ("capabilities", singlenode.DECLARATION)}
    await objects.put(layout.STORE, [_rendered(there | changed)])


def _rendered(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


async def _require_empty(objects: ObjectStore) -> None:
    """Raises Refused for a bucket that has lost its stnode.json alone: a new one would have another id, and another key."""
    async with aclosing(cast("Any", objects.list(layout.journal_prefix()))) as found:
        slot = await anext(aiter(found), None)
    if slot is None:
        return
    try:
        await objects.get(layout.STORE)
    except NotFound:
        raise Refused(
            f"there is a journal here ({slot.key}) and no stnode.json: this is a store that has lost it",
            hint="put stnode.json back from a backup of the bucket, or use another prefix for a new store",
        ) from None


async def _read_store(objects: ObjectStore) -> Blob:
    try:
        return await objects.get(layout.STORE)
    except NotFound:
        raise NotFound("there is no store here: stnode.json is missing", hint="check the store's URL, or run `stnode init`") from None


def _parse(blob: Blob) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(blob.data)
        if not isinstance(document["store"], str) or not isinstance(document["format"], int):
            raise TypeError
    except (ValueError, KeyError, TypeError) as exc:
        raise Corrupt("stnode.json cannot be read", hint="put it back from a backup of the bucket") from exc
    return document


def _recorded(document: dict[str, Any]) -> bool:
    """Whether the store was found to create if absent when it was made."""
    capabilities = document.get("capabilities")
    return isinstance(capabilities, dict) and capabilities.get("create_if_absent") is True


def _fkey(conn: Connection, fid: int) -> str:
    folder = state.folder(conn, fid)
    if folder is None or folder.removed:
        raise NotFound(f"folder {fid} does not exist any more")
    return folder.fkey


def _settings(conn: Connection, _packs: PackTable, change: SettingsChange) -> Body:
    removed = []
    for folder_id in change.folders_removed:
        there = state.folder_by_id(conn, folder_id)
        if there is None:
            raise NotFound(f"there is no folder {folder_id!r}")
        removed.append(there.fkey)
    gone = {folder.fkey for folder in state.folders(conn, removed=True) if folder.removed}
    for settings in change.folders:
        there = state.folder_by_id(conn, settings.folder_id)
        if settings.fkey in gone or settings.fkey in removed:
            raise Conflict(f"this incarnation of folder {settings.folder_id!r} was removed", hint="add the folder anew")
        if there is not None and there.fkey != settings.fkey and there.fkey not in removed:
            raise Conflict(f"folder {settings.folder_id!r} exists already")
    return Body(
        folders=tuple(_with_token(conn, each) for each in change.folders),
        folders_removed=tuple(removed),
        devices=change.devices,
        devices_removed=change.devices_removed,
    )


def _with_token(conn: Connection, settings: FolderSettings) -> FolderSettings:
    """The settings with the password token that was accepted meanwhile: whoever changes something else may not have seen it yet."""
    there = state.folder_by_id(conn, settings.folder_id)
    if there is None or there.fkey != settings.fkey:
        return settings
    return replace(settings, encryption_password_token=there.settings.encryption_password_token)


def _token(conn: Connection, _packs: PackTable, fid: int, token: bytes) -> Body:
    there = state.folder(conn, fid)
    if there is None or there.removed:
        raise NotFound("the folder was removed")
    if there.settings.encryption_password_token not in (b"", token):
        raise Conflict(f"folder {there.settings.folder_id!r} was filled with another encryption password")
    return Body(folders=(replace(there.settings, encryption_password_token=token),))


def _partial(conn: Connection, packs: PackTable, fid: int, info: FileInfo, runs: Sequence[tuple[int, Extent]], node: bytes) -> Body:
    usable = [(start, extent) for start, extent in runs if packs.usable((extent,))]
    if not usable:
        raise Conflict(f"no block of {info.name!r} may be named any more")
    partial_file = Partial(
        name=info.name,
        version=to_wire(info.version),
        node=node,
        size_bytes=info.size,
        block_size=info.block_size,
        blocks_hash=blocks_hash(info.block_hashes) if info.block_hashes else b"",
        starts=tuple(start for start, _ in usable),
        extents=tuple(packs.place((extent,))[0] for _, extent in usable),
    )
    return Body(sections=(Section(_fkey(conn, fid), partials=(partial_file,)),))
