"""The simulated world of stores: one bucket, nodes with their own clocks and randomness, faults, crashes, and the invariants of design 3.

A node here is a `Store` and its database, with peers played by the test; `tests/sim/cluster.py` has whole nodes. Everything runs in one
`VirtualLoop`; a run is a function of its seed. Whatever is worth comparing between two runs of a seed goes into `World.trace`.
`witness.py` judges what reaches the bucket, this module what nodes say and hold.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from stnode.clock import Env, InlineThreads, SeededRandomness
from stnode.db import Database
from stnode.errors import StnodeError, Unavailable
from stnode.objectstore.base import Blob, Buffer, IfMatch, Key, Meta, Mode, ObjectStore, PutResult
from stnode.objectstore.faulty import FaultPlan, Faulty
from stnode.objectstore.memory import StoredObject
from stnode.objectstore.wrappers import Wrapper
from stnode.protocol import fileinfo
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.pb import bep_pb2
from stnode.protocol.vector import Vector, covers
from stnode.repo import checkpoint, layout, state
from stnode.repo.codec import NO_PREDECESSOR, Slot, Stub, decode_slot, slot_sha
from stnode.repo.journal import JournalOptions
from stnode.repo.judge import parents
from stnode.repo.packlist import read_list
from stnode.repo.parameters import DEFAULT, Collection
from stnode.repo.records import UNCONDITIONAL, Applied, Condition, Draft, DraftSet, Outcome, Record, SetKind, Status
from stnode.repo.restore import restore
from stnode.repo.store import SettingsChange, Store, new_folder
from tests.sim.loop import Deadlock
from tests.sim.witness import DAY_S, SimBucket, Truth, Violation, Watch
from tests.support.sealed import Sealed, encrypted

START_NS = 1_763_700_000 * 10**9
BLOCK = 131_072
SECOND_US = 1_000_000
"""More than numbers of one commit run ahead of its store time."""
T = TypeVar("T")


class SimClock:
    """Virtual time; `skew_s` is how wrong a node's wall clock is."""

    def __init__(self, skew_s: float = 0.0) -> None:
        self.skew_s = skew_s

    def now_ns(self) -> int:
        return START_NS + int((asyncio.get_running_loop().time() + self.skew_s) * 1e9)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class SimEnv(Env):
    """An Env that knows its tasks, so that a crash ends them."""

    tasks: dict[asyncio.Task[Any], None] = field(default_factory=dict)

    def spawn(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self.tasks[task] = None
        task.add_done_callback(lambda done: self.tasks.pop(done, None))
        return task


class Gate(Wrapper):
    """A node's way out. `dead`: nothing that the node still does after its crash reaches the bucket, or comes back. `before`: a
    scenario's hook, called with (operation, key) before the request leaves."""

    def __init__(self, inner: ObjectStore, trace: Callable[[str], None]) -> None:
        super().__init__(inner)
        self.dead = False
        self.before: Callable[[str, str], Coroutine[Any, Any, None]] | None = None
        self.puts: list[str] = []
        self.requests = 0
        self._trace = trace

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        return await self._pass("get", key, lambda: self.inner.get(key, start, length))

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        self.puts.append(key)
        return await self._pass("put", key, lambda: self.inner.put(key, data, mode))

    async def head(self, key: Key) -> Meta:
        return await self._pass("head", key, lambda: self.inner.head(key))

    async def delete(self, key: Key) -> None:
        await self._pass("delete", key, lambda: self.inner.delete(key))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        self._check()
        async for meta in self.inner.list(prefix, start_after=start_after):
            self._check()
            yield meta

    def _check(self) -> None:
        if self.dead:
            raise asyncio.CancelledError

    async def _pass(self, operation: str, key: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self._check()
        self.requests += 1
        if self.before is not None:
            await self.before(operation, key)
            self._check()
        try:
            result = await call()
        except Exception as exc:
            self._check()
            self._trace(f"{operation} {key} {type(exc).__name__}")
            raise
        self._check()
        self._trace(f"{operation} {key}")
        return result


class SimNode:
    """A node: store, SQLite in memory, and what it has told peers (`announced`: sequence -> (name, version) per index ID)."""

    def __init__(self, world: World, number: int, skew_s: float, plan: FaultPlan) -> None:
        self.world = world
        self.number = number
        self.device = DeviceID(hashlib.sha256(f"node {number}".encode()).digest())
        self.clock = SimClock(skew_s)
        self.plan = plan
        self.life = 0
        self.alive = False
        self.applied: list[Applied] = []
        self.may_be_void = True
        self.db = Database(None, inline=True)

    async def start(self, *, keep_cache: bool = False) -> None:
        """A new process: with an empty cache, or with the one that the last process left."""
        self.life += 1
        random = SeededRandomness(f"{self.world.seed}/{self.number}/{self.life}")
        self.env = SimEnv(self.clock, random, InlineThreads())
        world_env = Env(self.world.clock, SeededRandomness(f"{self.world.seed}/net/{self.number}/{self.life}"), InlineThreads())
        self.faulty = Faulty(self.world.reached, world_env, self.plan)
        way = encrypted(self.faulty, self.env) if self.world.encrypted else self.faulty
        self.gate = Gate(way, lambda line: self.world.note(f"n{self.number}.{self.life} {line}"))
        if not keep_cache:
            self.close()
            self.db = Database(None, inline=True)
        single = self.world.single_node
        self.store = await Store.open(
            self.gate, self.db, self.env, self.device, None, self.world.options, try_out=single, single_node=single
        )
        self.store.subscribe(self._on_applied)
        self.alive = True
        await asyncio.sleep(0)  # its tasks have begun, whatever happens next
        self._tell_all()

    def suspend(self) -> asyncio.Event:
        """No request of the node leaves until the event is set, as if its machine slept."""
        wake = asyncio.Event()

        async def wait(_operation: str, _key: str) -> None:
            await wake.wait()

        self.gate.before = wait
        return wake

    def crash(self) -> None:
        """The process is gone between two instructions: nothing it does any more has any effect."""
        self.alive = False
        self.gate.dead = True
        for task in tuple(self.env.tasks):
            task.cancel()
        self.world.note(f"n{self.number}.{self.life} crashes")

    def close(self) -> None:
        """Throws the cache away."""
        if self.db._conn is not None:
            self.db._conn.close()
            self.db._conn = None

    async def stop(self) -> None:
        await self.store.close()
        self.alive = False

    # ---- what peers hear

    def _on_applied(self, applied: Applied) -> None:
        self.applied.append(applied)
        self.world.note(f"n{self.number} applied {applied.number} own={applied.own} void={applied.void} restored={applied.restored}")
        if not self.gate.dead:
            self.world.require(applied.void is None or self.may_be_void, "void", f"commit {applied.number} is void: {applied.void}")
            self.world.computed(self)
            self._tell(applied)

    def _tell(self, applied: Applied) -> None:
        """Announces what the commit wrote, reading SQLite as it is at this very moment (inline database)."""
        conn = self.db._connect()
        for fid, part in applied.folders.items():
            self.world.announce(self, state.folder(conn, fid), list(state.get_records(conn, fid, part.names).values()))
        if applied.restored:
            self._tell_all()

    def _tell_all(self) -> None:
        conn = self.db._connect()
        for folder in state.folders(conn):
            self.world.announce(self, folder, state.records_since(conn, folder.fid, 0, 1 << 30))

    # ---- changes

    def record(self, name: str, fid: int = 1) -> Record | None:
        return state.get_records(self.db._connect(), fid, [name]).get(name)

    def names(self, fid: int = 1) -> dict[str, Record]:
        return {record.name: record for record in state.records_since(self.db._connect(), fid, 0, 1 << 30)}

    def old_versions(self, fid: int = 1) -> list[Record]:
        """All that the history holds."""
        return [old.record for old in state.walk_history(self.db._connect(), fid, "", ("", 0), 1 << 30)]

    async def read(self, record: Record) -> bytes:
        """A file's content through the node's reader, as peers are served; it must be what was written. Errors are the reader's."""
        found = b""
        for pack, place, count in record.extents:
            found += b"".join(map(bytes, await self.store.reader.blocks(pack, place, count)))
        wanted = self.world.contents.get(content_hash(record.info))
        self.world.require(wanted is None or found == wanted, "content", f"node {self.number} serves {record.name} with another content")
        return found

    async def pack(self, *contents: bytes, fid: int = 1) -> int:
        """Uploads one pack holding one block per content; its handle."""
        pack = self.store.packer.begin(fid, stream=False)
        for index, content in enumerate(contents):
            pack.add((index, 0), content, hashlib.sha256(content).digest())
        return (await self.store.packer.seal(pack)).handle

    async def file(self, name: str, content: str, version: Vector, *, mtime: int = 1000, by: int = 1, **draft: Any) -> Draft:
        """A draft of a pulled file of one block, its pack durable."""
        handle = await self.pack(content.encode())
        return Draft(1, self.world.file_info(name, content, version, mtime=mtime, by=by), ((handle, 0, 1),), **draft)

    async def local(self, name: str, content: str, base: Vector | None = None, condition: Condition = UNCONDITIONAL) -> Draft:
        """A draft of a local write, its pack durable."""
        return await self.file(name, content, (), local=True, base=base, condition=condition)

    async def submit(self, *drafts: Draft | DraftSet) -> list[Outcome]:
        sets = [each if isinstance(each, DraftSet) else DraftSet(SetKind.SINGLE, (each,)) for each in drafts]
        self.world.truth.may_be_deleted.update(draft.info.name for each in sets for draft in each.drafts if draft.info.deleted)
        outcomes = await self.store.submit(sets)
        for wanted, outcome in zip(sets, outcomes, strict=True):
            self.world.note(f"n{self.number} {[d.info.name for d in wanted.drafts]} {outcome.status.value} {outcome.reason}")
            if outcome.status is Status.COMMITTED and not self.gate.dead:
                self.world.acknowledged(self, outcome)
        return outcomes

    async def put(self, *drafts: Draft | DraftSet) -> list[Outcome]:
        """Submits, and expects all to be committed."""
        outcomes = await self.submit(*drafts)
        assert [outcome.status for outcome in outcomes] == [Status.COMMITTED] * len(outcomes), outcomes
        return outcomes


def file_info(name: str, content: str | bytes, version: Vector, *, mtime: int = 1000, by: int = 1) -> FileInfo:
    data = content if isinstance(content, bytes) else content.encode()
    hashes = b"".join(hashlib.sha256(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK))
    return fileinfo.new(
        name=name,
        type=FileType.FILE,
        version=version,
        modified_by=by,
        size=len(data),
        modified_s=mtime,
        block_size=BLOCK,
        block_hashes=hashes,
    )


def content_hash(info: FileInfo) -> bytes:
    """The item's blocks_hash."""
    found: bytes = bep_pb2.FileInfo.FromString(info.wire).blocks_hash
    return found


def directory(name: str, version: Vector, *, deleted: bool = False) -> Draft:
    return Draft(1, fileinfo.new(name=name, type=FileType.DIRECTORY, version=version, modified_by=1, deleted=deleted), ())


def removed(name: str, version: Vector, *, mtime: int = 2000) -> Draft:
    return Draft(1, fileinfo.new(name=name, type=FileType.FILE, version=version, modified_by=1, deleted=True, modified_s=mtime), ())


class World:
    """`seed` decides everything; nodes of an `encrypted` world meet ciphertext. `kept`: acknowledged versions and their numbers (store time in µs), which no run may lose unless `forget` says that the bucket was put back.
    `single_node`: a node's configuration says that it is the store's only one. `written_once`: hashes of contents that were submitted once, so that no name may have two versions of them. `contents`: what a
    blocks_hash stands for, of everything that a node was given to store. `violations`: the first of them ends the run."""

    def __init__(self, seed: int, options: JournalOptions | None = None, *, encrypted: bool = False) -> None:
        self.seed = seed
        self.options = options
        self.clock = SimClock()
        self.random = SeededRandomness(f"world {seed}")
        self.bucket = SimBucket(Env(self.clock, self.random, InlineThreads()))
        self.truth = Truth(self.bucket, self.violate)
        self.bucket.on_restore = self.truth.rewind
        self.watch = Watch(self.bucket, self.truth)
        self.encrypted = encrypted
        self.reached = Sealed(self.watch) if encrypted else self.watch
        self.nodes: list[SimNode] = []
        self.trace: list[str] = []
        self.single_node = False
        self.kept: dict[tuple[str, str], list[tuple[Vector, int]]] = {}
        self.written_once: set[bytes] = set()
        self.contents: dict[bytes, bytes] = {}
        self.violations: list[Violation] = []
        self._violated = asyncio.Event()
        self._history_from_us = 0

    def violate(self, invariant: str, message: str) -> None:
        """Notes that an invariant does not hold. The run ends by it, whatever the code under test makes of it meanwhile."""
        self.note(f"VIOLATION {invariant}: {message}")
        self.violations.append(Violation(invariant, message))
        self._violated.set()

    def require(self, holds: object, invariant: str, message: str) -> None:
        if not holds:
            self.violate(invariant, message)

    async def run(self, life: Coroutine[Any, Any, None]) -> None:
        """Runs `life` to its end or to the first violation, which is raised. Errors that follow from a violation are not."""
        task = asyncio.ensure_future(life)
        end = asyncio.ensure_future(self._violated.wait())
        await asyncio.wait((task, end), return_when=asyncio.FIRST_COMPLETED)
        end.cancel()
        if not task.done():
            task.cancel()
        [result] = await asyncio.gather(task, return_exceptions=True)
        if self.violations:
            raise self.violations[0] from (result if isinstance(result, Exception) else None)
        if isinstance(result, (StnodeError, TimeoutError, Deadlock)):
            raise Violation("stuck", repr(result)) from result
        if isinstance(result, BaseException):
            raise result

    async def checkpoint(self, node: SimNode) -> None:
        """The node writes a checkpoint of what it has applied."""
        await checkpoint.write_manifest(self.watch, node.db, node.env, node.device, node.store.store_time_us())

    async def truncate(self, node: SimNode) -> int:
        """The node truncates as if two days had passed."""
        with self.watch.pretending():
            return await checkpoint.truncate(self.watch, node.db, node.env, node.store.store_time_us() + 2 * DAY_S * 1_000_000)

    def leap(self, seconds: float) -> None:
        """Time passes in which nobody does anything, as in a machine that sleeps: all wall clocks and the store's, no timer."""
        for clock in (self.clock, *(node.clock for node in self.nodes)):
            clock.skew_s += seconds
        self.note(f"{seconds:.0f} s pass")

    def file_info(self, name: str, content: str | bytes, version: Vector, *, mtime: int = 1000, by: int = 1) -> FileInfo:
        """As the function; the content is known by its hash from now on."""
        info = file_info(name, content, version, mtime=mtime, by=by)
        self.contents[content_hash(info)] = content if isinstance(content, bytes) else content.encode()
        return info

    def close(self) -> None:
        """Throws all caches away."""
        for node in self.nodes:
            node.close()
        self.truth.close()

    def note(self, line: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():.6f} {line}")

    def trace_hash(self) -> str:
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    async def node(self, *, skew_s: float = 0.0, plan: FaultPlan | None = None) -> SimNode:
        """Adds a node and starts it."""
        node = SimNode(self, len(self.nodes), skew_s, plan or FaultPlan(latency_s=(0.02, 0.12)))
        self.nodes.append(node)
        await node.start()
        return node

    async def two(self, collection: Collection = DEFAULT, **options: Any) -> tuple[SimNode, SimNode]:
        """A store with one folder and two nodes at its head."""
        await Store.init(self.bucket, Env(self.clock, self.random, InlineThreads()), collection=collection)
        a = await self.node(**options)
        await a.store.submit_settings(SettingsChange(folders=(new_folder(a.env.random, "f"),)))
        return a, await self.node(**options)

    # ---- what must hold at every moment

    def computed(self, node: SimNode) -> None:
        """Invariant 2: at each commit every node has the state that the journal adds up to."""
        conn = node.db._connect()
        number = state.head(conn).number
        if not self.truth.blind and number in self.truth.hashes:
            same = state.state_hash(conn) in self.truth.hashes[number]
            self.require(same, "state", f"node {node.number} has another state at commit {number} than the journal says")

    def announce(self, node: SimNode, folder: state.FolderState | None, records: Sequence[Record]) -> None:
        """Invariants 1 and 7: what a node tells its peers is committed under this number, and its blocks are in the bucket."""
        if folder is None or self.truth.blind:
            return
        conn = node.db._connect()
        for record in records:
            said = (record.name, record.info.version)
            truth = self.truth.meaning(folder.fkey, record.sequence)
            self.require(
                truth == said,
                "announced",
                f"node {node.number} announces {said} as number {record.sequence}, which commits gave to {truth}",
            )
            for pack, place, count in record.extents:
                for now, _, _ in state.resolve(conn, pack, place, count):
                    found = state.packs(conn, [now])
                    self.require(now == 0 or now in found, "resolvable", f"{record.name} refers to unknown pack {now}")
                    if now in found:
                        key = layout.pack_key(found[now].fkey, found[now].id)
                        there = key in self.bucket.objects or self.truth.has_moved_on(found[now].id)
                        self.require(there, "announced", f"{record.name} is announced without its pack {key}")

    def acknowledged(self, node: SimNode, outcome: Outcome) -> None:
        """Invariant 1: what is acknowledged is committed, under the numbers that are named."""
        [fkey] = {folder.fkey for folder in state.folders(node.db._connect()) if folder.fid == 1} or {""}
        for name, sequence in zip(outcome.names, outcome.sequences, strict=True):
            truth = self.truth.meaning(fkey, sequence)
            said = f"node {node.number} acknowledges {name} as number {sequence}"
            self.require(self.truth.blind or (truth and truth[0] == name), "announced", f"{said}, which commits gave to {truth}")
            record = node.record(name)
            if record is None:
                self.violate("acknowledged", f"{said}, and does not know the name")
            elif not record.info.deleted:  # a deletion that loses against a later change leaves nothing to keep
                self.kept.setdefault(("f", name), []).append((record.info.version, record.sequence))

    def history_ends(self, before_us: int) -> None:
        """Versions superseded before then may go from the history."""
        self._history_from_us = max(self._history_from_us, before_us)

    def forget(self) -> None:
        """The bucket is put back: what was acknowledged after the backup is lost by the operator's will."""
        self.kept.clear()

    # ---- what must hold at the end of a run

    async def settle(self) -> None:
        """Heals the network and lets every living node follow to the head."""
        for node in self.nodes:
            if node.alive:
                node.faulty.plan = FaultPlan()
                await node.faulty.settle()
        for node in self.nodes:
            if node.alive:
                await asyncio.wait_for(_until_followed(node), 3600)

    async def check(self) -> None:
        """Invariants 2, 3, 5, 6, 7 on the bucket, on every node, and on a node that starts from nothing."""
        await self.settle()
        self._check_chain()
        fresh = Database(None, inline=True)
        env = Env(self.clock, SeededRandomness(0), InlineThreads())
        await restore(self.bucket, fresh, env)
        conn = fresh._connect()
        others = [(f"node {node.number}", node.db._connect()) for node in self.nodes if node.alive]
        if not self.truth.blind:
            others.append(("the journal, commit by commit,", self.truth.conn))
        for who, theirs in others:
            self.require(state.head(theirs) == state.head(conn), "state", f"{who} is elsewhere than what a restore gives")
            self.require(state.state_hash(theirs) == state.state_hash(conn), "state", f"{who} has another state than what a restore gives")
        await self._check_state(conn)
        await fresh.close()
        if self.violations:
            raise self.violations[0]

    def _check_chain(self) -> None:
        content = self.bucket.objects
        numbers = sorted(layout.slot_number(key) or 0 for key in content if key.startswith(layout.journal_prefix()))
        self.require(numbers == list(range(1, len(numbers) + 1)), "chain", f"the journal has holes: {numbers}")
        prev: bytes | None = NO_PREDECESSOR
        for number in numbers:
            stored: StoredObject = content[layout.slot_key(number)]
            slot = decode_slot(stored.data, "slot")
            if isinstance(slot, Slot) and prev is not None:
                self.require(slot.prev == prev, "chain", f"slot {number} has a foreign predecessor")
            prev = None if isinstance(slot, Stub) else slot_sha(stored.data)

    async def _check_state(self, conn: Any) -> None:
        for folder in state.folders(conn):
            records = {record.name: record for record in state.records_since(conn, folder.fid, 0, 1 << 30)}
            sequences = [record.sequence for record in records.values()]
            self.require(len(set(sequences)) == len(sequences), "numbers", f"a number stands for two names in {folder.fkey}")
            for record in records.values():
                await self._check_blocks(conn, record)
                if not record.info.deleted:
                    for above in parents(record.name):
                        parent = records.get(above)
                        whole = parent is None or (not parent.info.deleted and parent.info.type is FileType.DIRECTORY)
                        self.require(whole, "state", f"{record.name} lives below {above}, which does not")
            self._check_once(conn, folder.fid, records)
            for (folder_id, name), versions in self.kept.items():
                if folder_id == folder.settings.folder_id:
                    self._check_kept(conn, folder.fid, name, records.get(name), versions)

    def _check_kept(self, conn: Any, fid: int, name: str, current: Record | None, versions: Sequence[tuple[Vector, int]]) -> None:
        """Invariant 5: an acknowledged change is never lost."""
        if current is None:
            self.violate("acknowledged", f"{name} was acknowledged and is gone")
            return
        old = [entry.record.info.version for entry in state.old_versions(conn, fid, name)]
        for version, sequence in versions:
            there = covers(current.info.version, version) or version in old or sequence < self._history_from_us + SECOND_US
            self.require(there, "acknowledged", f"{name} {version} was acknowledged and is lost")

    def _check_once(self, conn: Any, fid: int, records: dict[str, Record]) -> None:
        """A change whose outcome was not known for a while was not written a second time."""
        for name, record in records.items():
            infos = [record.info, *(entry.record.info for entry in state.old_versions(conn, fid, name))]
            found = [blocks for info in infos if (blocks := content_hash(info)) in self.written_once]
            self.require(len(found) == len(set(found)), "once", f"{name} was written twice")

    async def _check_blocks(self, conn: Any, record: Record) -> None:
        """Invariant 3 and 6, past all of stnode's readers: the blocks of the record, as the bucket has them, are what was written."""
        wanted = self.contents.get(content_hash(record.info))
        if record.info.deleted or record.info.type is not FileType.FILE or wanted is None:
            return
        found = b""
        for pack, place, count in record.extents:
            for now, at, length in state.resolve(conn, pack, place, count):
                row = state.packs(conn, [now]).get(now)
                key = layout.pack_key(row.fkey, row.id) if row else ""
                if key not in self.bucket.objects:
                    self.violate("resolvable", f"{record.name} has lost its pack {now} {key}")
                    return
                blocks = await read_list(self.bucket, Key(key))
                found += self.bucket.objects[key].data[blocks.offsets[at] : blocks.offsets[at + length]]
        self.require(found == wanted, "content", f"{record.name} has {len(found)} bytes that are not what was written")


async def _until_followed(node: SimNode) -> None:
    while True:
        try:
            await node.store.follow_to_head()
        except Unavailable as exc:  # a request of before the healing
            node.world.note(f"n{node.number} not yet: {type(exc).__name__}")
            await asyncio.sleep(1)
        else:
            return
