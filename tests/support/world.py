"""A node in one process and fake peers around it: a bucket in memory that can fail, links without TLS, virtual time.

    @simulated
    async def test_something() -> None:
        async with World() as world:
            a = await world.connected("a")
            a.write("x", b"...")
            await world.until(lambda: world.record("x"))

At the end of each world: no task of the node or of a peer has crashed or is left, and a node that starts from the bucket alone has
the same state.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, Self, TypeVar

from stnode.clock import Env, InlineThreads, SeededRandomness
from stnode.config import Config, NodeSection
from stnode.db import Database
from stnode.errors import StnodeError
from stnode.folder import index
from stnode.folder.announcing import block_hashes
from stnode.folder.runner import FolderRunner
from stnode.net import base as net
from stnode.node import node as node_module
from stnode.node.connections import DeviceState
from stnode.node.node import Node
from stnode.objectstore.base import Buffer, IfMatch, Key, Mode, ObjectStore, PutResult
from stnode.objectstore.faulty import FaultPlan, Faulty
from stnode.objectstore.memory import MemoryStore
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import OpenedStore, wrap
from stnode.protocol.blocks import TOKEN_BYTES
from stnode.protocol.fileinfo import FileInfo
from stnode.repo import state
from stnode.repo.addresses import packs_of
from stnode.repo.records import Record
from stnode.repo.restore import restore
from stnode.repo.settings import DeviceSettings, FolderDevice, FolderSettings
from stnode.repo.store import SettingsChange, Store, new_folder
from stnode.telemetry import Metrics
from tests.sim.loop import run
from tests.support.fakepeer import FOLDER, FakePeer, device_of, identity_of
from tests.support.links import MemoryTransport
from tests.support.sealed import Sealed, encrypted

START_NS = 1_763_700_000 * 10**9
P = ParamSpec("P")
T = TypeVar("T")
Peer = TypeVar("Peer", bound=FakePeer)


def simulated(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test in a virtual-time loop of its own."""

    @functools.wraps(test)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        run(test(*args, **kwargs))

    return wrapped


class VirtualClock:
    """The loop's virtual time, as a wall clock that may be wrong by `skew_s`, and as a monotonic one."""

    skew_s = 0.0

    def now_ns(self) -> int:
        return START_NS + int((asyncio.get_running_loop().time() + self.skew_s) * 1e9)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class TrackedEnv(Env):
    """An Env that knows its tasks: a crash ends them, an orderly end leaves none."""

    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def spawn(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class World:
    """One bucket, one node on it, any number of peers. `faulty.plan` may be changed at any time. `beside` another world: a second node, with
    a name of its own, on the same bucket and network; or with the same name, a second process of the same identity.
    `reached` is the bucket as nodes reach it, for a witness in between; with `encrypted` they meet ciphertext (`sealed`), `bucket` and
    `reached` stay in the clear."""

    def __init__(
        self,
        seed: int | str = 1,
        *,
        pull_memory: int = 64 << 20,
        name: str = "node",
        address: str = "",
        beside: World | None = None,
        bucket: MemoryStore | None = None,
        encrypted: bool = False,
    ) -> None:
        self.clock = VirtualClock()
        self.seed = seed if beside is None else f"{seed} {name} {address}"
        self.random = SeededRandomness(f"world {self.seed}")
        fresh = bucket or MemoryStore(Env(self.clock, self.random, InlineThreads()))
        self.bucket: MemoryStore = fresh if beside is None else beside.bucket
        self.reached: ObjectStore = self.bucket if beside is None else beside.reached
        self.sealed: Sealed | None = (Sealed(self.reached) if encrypted else None) if beside is None else beside.sealed
        self.beside = beside
        self.name = name
        self.address = address or f"memory://{name}"
        self.device = device_of(name)
        self.peers: dict[str, FakePeer] = {}
        self.lives = 0
        self.alive = False
        self._pull_memory = pull_memory
        self._env = TrackedEnv(self.clock, SeededRandomness(f"peers {self.seed}"), InlineThreads())

    async def __aenter__(self) -> Self:
        if self.beside is None:
            net.register("memory", MemoryTransport())
            await Store.init(self.bucket, Env(self.clock, self.random, InlineThreads()))
        await self.start()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        for peer in self.peers.values():
            peer.follows = False
        if self.alive:
            self.faulty.plan = FaultPlan()
            broken = [runner.broken for runner in self.node.runners().values() if runner.broken]
            if kind is None:
                await self.check()
            for peer in self.peers.values():
                peer.disconnect()
            held = self.node.store.packer
            await self.stop()
            if kind is None:
                assert not broken
                assert held.bytes_held == 0, f"{held.bytes_held} bytes of packs were never given back"
        for peer in self.peers.values():
            peer.disconnect()
        await self.turns(20)
        if kind is None:
            assert not self._env.tasks, f"tasks of peers left: {self._env.tasks}"
            troubles = [trouble for peer in self.peers.values() for trouble in peer.troubles]
            assert not troubles, troubles

    # --- the node

    async def start(self, *, keep_cache: bool = False, plan: FaultPlan | None = None) -> None:
        """A new process, with an empty database or the one that the last process left."""
        self.lives += 1
        self.env = TrackedEnv(self.clock, SeededRandomness(f"node {self.seed} {self.lives}"), InlineThreads())
        self.faulty = Faulty(
            self.sealed or self.reached,
            Env(self.clock, SeededRandomness(f"net {self.seed} {self.lives}"), InlineThreads()),
            plan or FaultPlan(),
        )
        if not keep_cache:
            self.db = Database(None, inline=True)
        objects = wrap(self.faulty, StoreOptions(), self.env, "memory://")
        if self.sealed is not None:
            objects = OpenedStore(encrypted(objects, self.env), objects.url, objects.metrics)
        store = await Store.open(objects, self.db, self.env, self.device)
        await index.migrate(self.db)
        store.announced = node_module._announced_by_a_device
        base = Config()
        limits = base.limits.model_copy(update={"pull_memory": self._pull_memory})
        config = base.model_copy(update={"node": NodeSection.model_construct(name=self.name, listen=(self.address,)), "limits": limits})
        self.node = Node(config, identity_of(self.device), self.env, objects, self.db, store, Metrics())
        await self.node._load_settings()
        await self.node.start()
        self.alive = True

    async def stop(self) -> None:
        """An orderly end, after which no task is left."""
        self.alive = False
        await self.node.stop()
        await self.turns(20)
        assert not self.env.tasks, f"tasks left: {[task.get_name() for task in self.env.tasks]}"

    async def crash(self) -> None:
        """The process is gone between two instructions; its database stays as it was."""
        self.alive = False
        for known in self.node.connections.states.values():
            if known.session is not None and known.session.link is not None:
                known.session.link.abort()
        for listener in self.node.connections._listeners:
            await listener.close()
        for task in tuple(self.env.tasks):
            task.cancel()
        await self.turns(20)

    async def share(self, *peers: FakePeer, folder: str = FOLDER, passwords: Mapping[str, str] | None = None, **settings: Any) -> None:
        """Commits the devices, and the folder shared with exactly these peers; returns when the node acts on it. `passwords`: of peers that
        get it encrypted, by name."""
        there = self.settings(folder)
        devices = tuple(FolderDevice(peer.device, (passwords or {}).get(peer.name, "")) for peer in peers)
        made = replace(there or new_folder(self.random, folder), devices=devices, **settings)
        known = set(self.node.devices)
        new = tuple(DeviceSettings(peer.device, peer.name) for peer in peers if peer.device not in known)
        await self.change(SettingsChange(folders=(made,), devices=new))
        for peer in peers:
            peer.folder(folder)

    async def change(self, change: SettingsChange) -> None:
        """Commits settings and waits until the node has taken them up."""
        await self.node.store.submit_settings(change)
        await self.node.load_settings()

    def settings(self, folder: str = FOLDER) -> FolderSettings | None:
        """A folder's committed settings."""
        found = self.node.folders.get(folder)
        return None if found is None else found.settings

    def peer(self, name: str, *, follows: bool = False) -> FakePeer:
        """A device, not yet connected."""
        return self.peer_of(FakePeer, name, follows=follows)

    def peer_of(self, kind: type[Peer], name: str, *, follows: bool = False) -> Peer:
        """A device of a kind, not yet connected."""
        peer = kind(self._env, name, self.device, self.address)
        self.peers[name] = peer
        peer.follows = follows
        peer.committed = self._committed
        return peer

    async def connected(self, *names: str, follows: bool = False, **settings: Any) -> FakePeer:
        """New peers that share the folder and are connected; the first of them."""
        peers = [self.peer(name, follows=follows) for name in names]
        await self.share(*peers, **settings)
        for peer in peers:
            await peer.connect()
        await self.until(lambda: all(peer.configs for peer in peers))
        return peers[0]

    async def listen(self, peer: FakePeer) -> net.Listener:
        """Opens the peer's door, `memory://<its name>`."""
        return await net.listen(self._env, f"memory://{peer.name}", identity_of(peer.device), peer.accept)

    # --- looking

    def runner(self, folder: str = FOLDER) -> FolderRunner:
        return self.node.runners()[folder]

    def device_state(self, peer: FakePeer) -> DeviceState:
        """What the node knows of the peer's connection."""
        return self.node.connections.states[peer.device]

    def records(self, folder: str = FOLDER) -> dict[str, Record]:
        """All committed records, deletions too."""
        fid = self.node.folders[folder].fid
        return {record.name: record for record in state.records_since(self.db._connect(), fid, 0, 1 << 30)}

    def record(self, name: str, folder: str = FOLDER) -> Record | None:
        return state.get_records(self.db._connect(), self.node.folders[folder].fid, [name]).get(name)

    def version(self, name: str, folder: str = FOLDER) -> object:
        """The committed version of a name, None without a record."""
        record = self.record(name, folder)
        return None if record is None else record.info.version

    def live(self, folder: str = FOLDER) -> list[str]:
        """Names of live items."""
        return sorted(name for name, record in self.records(folder).items() if not record.info.deleted)

    def _committed(self, folder: str, info: FileInfo) -> bool:
        """Whether the node may announce this: a commit has given the name this number or (it was superseded meanwhile) a later one."""
        record = self.record(info.name, folder)
        if record is None or record.sequence < info.sequence:
            return False
        conn = self.db._connect()
        for pack in packs_of(record.extents):
            found = state.packs(conn, [pack]).get(pack)
            if found is None:
                return False
        return record.sequence > info.sequence or info.invalid or record.info.version == info.version

    def hold_puts(self, prefix: str) -> asyncio.Event:
        """Writes of keys with this prefix wait for the event."""
        gate, put = asyncio.Event(), self.bucket.put

        async def held(key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
            if key.startswith(prefix):
                await gate.wait()
            return await put(key, data, mode)

        self.bucket.put = held  # type: ignore[method-assign]
        return gate

    # --- waiting

    async def turns(self, count: int) -> None:
        """Lets the loop go round without time passing."""
        for _ in range(count):
            await asyncio.sleep(0)

    def soon(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """A call in the next turn."""
        asyncio.get_running_loop().call_soon(functools.partial(call, *args, **kwargs))

    async def until(self, holds: Callable[[], object], seconds: float = 60.0) -> None:
        """Waits for a condition, with a deadline in virtual time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not holds():
            assert loop.time() < began + seconds, f"not within {seconds} s; " + self.story()
            await asyncio.sleep(0.02 if loop.time() < began + 5 else 0.5)

    async def pause(self, seconds: float) -> None:
        """Lets virtual time pass, for what must not happen."""
        await asyncio.sleep(seconds)

    def story(self) -> str:
        """How things stand, for messages of failed tests."""
        runners = {name: (runner.state, runner.errors, runner.broken) for name, runner in self.node.runners().items()} if self.alive else {}
        peers = {peer.name: (peer.connected, peer.closes, peer.troubles, len(peer.requests)) for peer in self.peers.values()}
        return f"folders {runners}, peers {peers}"

    async def check(self) -> None:
        """What must hold in the end (design 3): a restored state is the same, and every live block can be read and hashes right."""
        await self._reached(self.node.store.follow_to_head)
        fresh = Database(None, inline=True)
        await restore(self.bucket, fresh, Env(self.clock, SeededRandomness(0), InlineThreads()))
        theirs, ours = fresh._connect(), self.db._connect()
        assert state.head(theirs) == state.head(ours)
        assert state.state_hash(theirs) == state.state_hash(ours)
        await fresh.close()
        for folder in self.node.folders:
            for record in self.records(folder).values():
                if not record.info.deleted:
                    await self.read(record, folder)

    async def read(self, record: Record, folder: str = FOLDER) -> bytes:
        """A record's content from the bucket, checked against the hashes that are announced for it."""
        store = self.node.store
        parts: list[bytes] = []
        size = record.info.size
        for pack, place, count in record.extents:
            if pack:
                parts += [bytes(block) for block in await store.reader.blocks(pack, place, count)]
            else:
                at = sum(map(len, parts))
                parts += [bytes(min(record.info.block_size, size - at - number * record.info.block_size)) for number in range(count)]
        await store.packlists.ensure(packs_of(record.extents))
        if size:
            announced = block_hashes(store.packlists, record.info, record.extents)
            if self.node.folders[folder].settings.encrypted:
                assert len(announced) == TOKEN_BYTES * len(parts), record.name
            else:
                assert b"".join(hashlib.sha256(part).digest() for part in parts) == announced, record.name
        data = b"".join(parts)
        assert len(data) == size or record.info.invalid, record.name
        return data

    async def content(self, name: str, folder: str = FOLDER) -> bytes:
        """A live file's bytes as the store has them."""
        record = self.record(name, folder)
        assert record is not None
        assert not record.info.deleted
        return await self.read(record, folder)

    async def _reached(self, call: Callable[[], Awaitable[None]]) -> None:
        for _ in range(100):
            try:
                await call()
            except StnodeError:
                await asyncio.sleep(1)
            else:
                return
        raise AssertionError("the store is not reached")


def names_of(infos: Sequence[FileInfo]) -> list[str]:
    return [info.name for info in infos]
