"""Moves blocks from peers into packs: request windows, verification, open packs, memory.

Responsible for: which block is asked of whom and when, what comes back, and when a job is wholly durable.
Not responsible for: what is needed (`index`), what a file already has (`planner`), committing (`runner`).

The data path contract of the design holds here: no task, executor hop, transaction or log line per block or small file.
Responses come in batches, small ones are hashed at once (cheaper than a thread hop), larger ones in batches in threads;
packs keep the received buffers themselves until they are uploaded.

All methods run in the event loop; nothing here awaits while it changes state, so no locks.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from stnode.clock import Env, Tasks
from stnode.errors import StnodeError
from stnode.folder.leftovers import Leftovers
from stnode.folder.planner import Job
from stnode.folder.rates import Rate
from stnode.protocol.blocks import HASH_BYTES
from stnode.repo.packer import OpenPack, Packer, SealedPack
from stnode.repo.verify import verify_blocks
from stnode.telemetry import get_logger

_log = get_logger(__name__)

Context = tuple[Job, int]
"""What a request was for: the job and the index of its block."""
Ask = tuple[str, int, int, bytes, int, Context]
"""name, offset, size, SHA-256 (or token), block index, context."""
Answer = tuple[Context, memoryview | bytes, int]
"""context, data, BEP error code (0 = data is there)."""

_MEMORY_WAIT_S = 0.2
_REFILL = 4
"""A window is filled again when one part in so many is free, or nothing is under way."""


class Source(Protocol):
    """A connected device that can be asked for blocks. `device` is the small local number of the folder index."""

    device: int

    @property
    def bytes_in_flight(self) -> int: ...
    @property
    def requests_in_flight(self) -> int: ...

    def request(self, receiver: Transfer, folder: str, asks: Sequence[Ask]) -> None:
        """Queues the requests; every one of them comes back through `Transfer.answered` or `Transfer.source_down`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes unless said otherwise. Windows are per device over all its folders; memory counts requested and packed bytes."""

    window: int = 32 << 20
    window_requests: int = 2000
    memory: int = 192 << 20
    batch: int = 4 << 20
    inline_hash: int = 32 << 10
    verify_hops: int = 2
    linger_s: float = 1.0


class Transfer:
    """The downloads of one folder.

    `done(jobs)` is called with jobs all of whose blocks lie in uploaded packs; `failed(job, reason)` with one that no
    connected source can complete; `saved(job)` after each uploaded pack of a large job that goes on. `rates` are those of the devices
    that were ever asked, by number. `hash_bytes`: of the folder's block lists; in an encrypted folder (48) blocks come as ciphertext.
    """

    def __init__(
        self,
        env: Env,
        folder: str,
        fid: int,
        packer: Packer,
        limits: Limits,
        *,
        hash_bytes: int = HASH_BYTES,
        done: Callable[[list[Job]], None],
        failed: Callable[[Job, str], None],
        saved: Callable[[Job], None],
    ) -> None:
        self._env = env
        self._folder = folder
        self._fid = fid
        self._packer = packer
        self._limits = limits
        self._hash_bytes = hash_bytes
        self._done = done
        self._failed = failed
        self._saved = saved
        self._sources: list[Source] = []
        self._small: deque[Job] = deque()
        self._large: deque[Job] = deque()
        self.jobs: dict[int, Job] = {}
        self._by_name: dict[str, Job] = {}
        self._unverified: deque[tuple[Source, Context, memoryview | bytes]] = deque()
        self._unverified_bytes = 0
        self._verifying = 0
        self._shared: OpenPack | None = None
        self._sealing: set[OpenPack] = set()
        self._leftovers = Leftovers()
        self._lingering = False
        self._shared_sealed_at = float("-inf")
        self._waits_for_memory = False
        self._tasks = Tasks(env, self._crashed)
        self.bytes_in_flight = 0
        self._requests_in_flight = 0
        self.queued_blocks = 0
        self.received_bytes = 0
        self.rates: dict[int, Rate] = {}
        packer.on_room.append(self.pump)

    # --- what the runner tells it

    def add(self, jobs: Sequence[Job]) -> None:
        """Takes jobs over and asks for their blocks as windows allow."""
        self._leftovers.inherit(jobs, self._sealing)
        for job in jobs:
            self.jobs[job.id] = job
            self._by_name[job.info.name] = job
            self.queued_blocks += len(job.todo)
            self._enqueue(job)
            if not self._reachable(job):
                self._fail(job)
        self.pump()

    def abort(self, name: str) -> None:
        """Gives up the job for `name`, if any: its version is no longer wanted. Blocks already asked for are dropped on arrival."""
        job = self._by_name.get(name)
        if job is not None:
            self._drop(job)
            self._discard(job)
            self._leftovers.left(job)

    def job_named(self, name: str) -> Job | None:
        """The running job for `name`."""
        return self._by_name.get(name)

    def source_up(self, source: Source) -> None:
        """A device that shares the folder is connected and its index is known."""
        if source not in self._sources:
            self._sources.append(source)
        self.pump()

    def source_down(self, source: Source, lost: Sequence[Context]) -> None:
        """The device went away; `lost` are the requests it never answered. They go to other sources, or their jobs fail."""
        if source in self._sources:
            self._sources.remove(source)
        size = 0
        for job, index in lost:
            size += self._came_back(job, index)
            self._return(job, index)
        if size:
            self.rates[source.device].over(size, self._env.clock.monotonic(), arrived=False)
        self._fail_orphans()
        self.pump()

    @property
    def drained(self) -> bool:
        """No job is left."""
        return not self.jobs

    async def close(self) -> None:
        """Stops all tasks; jobs are forgotten. What was uploaded and not committed becomes an orphan of the store."""
        self._packer.on_room.remove(self.pump)
        self._sources.clear()
        for job in list(self.jobs.values()):
            self._drop(job)
            self._discard(job)
        await self._tasks.close()
        packs = [*self._sealing, *([self._shared] if self._shared is not None else ())]
        for pack in packs:  # memory is the packer's, which goes on
            self._packer.discard(pack)
        self._shared = None

    def _crashed(self, name: str, exc: Exception) -> None:
        _log.error("transfer task ended by a bug", task=name, exc_info=exc)
        for job in list(self.jobs.values()):
            self._drop(job)
            self._discard(job)
            self._failed(job, f"internal error: {exc!r}")

    # --- requests

    def pump(self) -> None:
        """Fills the windows of all sources, least busy first, as far as memory allows."""
        if self._small or self._large:
            self._ask()
        self._seal_if_quiet()

    def _ask(self) -> None:
        for source in sorted(self._sources, key=_busy):
            room = min(self._limits.window - source.bytes_in_flight, self._limits.memory - self._packer.bytes_held - self.bytes_in_flight)
            count = self._limits.window_requests - source.requests_in_flight
            if room <= 0 or count <= 0:
                continue
            # A request for each response would be a frame, a TLS record and a system call each: wait until a good part is free.
            if source.requests_in_flight and (room < self._limits.window // _REFILL or count < self._limits.window_requests // _REFILL):
                continue
            # Half of the window is kept for small files while there are any, so that one huge file does not stop them (R22).
            half = room // 2 if self._small and self._large else room
            asks = self._take(self._small, source, half, count)
            used = sum(ask[2] for ask in asks)
            asks += self._take(self._large, source, room - used, count - len(asks))
            if asks:
                size = sum(ask[2] for ask in asks)
                self.bytes_in_flight += size
                self.rates.setdefault(source.device, Rate()).asked(size, self._env.clock.monotonic())
                self._requests_in_flight += len(asks)
                source.request(self, self._folder, asks)
        if self._limits.memory <= self._packer.bytes_held + self.bytes_in_flight:
            self._make_room()

    def _make_room(self) -> None:
        """Memory is full. If it is open packs that fill it, which nothing under way will complete, they go to the store as they are."""
        if self._requests_in_flight or self._unverified or self._verifying:
            return
        for job in self.jobs.values():
            if job.pack is not None:
                pack, job.pack = job.pack, None
                self._seal_soon(pack)
        self._seal_shared()
        if not self._sealing and not self._waits_for_memory:
            self._waits_for_memory = True
            self._tasks.spawn(self._wait_for_memory(), f"wait {self._folder}")

    async def _wait_for_memory(self) -> None:
        """Other folders hold it."""
        await self._env.clock.sleep(_MEMORY_WAIT_S)
        self._waits_for_memory = False
        self.pump()

    def _take(self, queue: deque[Job], source: Source, room: int, count: int) -> list[Ask]:
        """Blocks from the head of `queue` that `source` has, until `room` bytes or `count` requests are reached."""
        asks: list[Ask] = []
        turns = len(queue)
        while queue and turns and room > 0 and count > 0:
            job = queue[0]
            if job.aborted or not job.todo:
                queue.popleft().queued = False
                turns -= 1
                continue
            if source.device not in job.devices or source.device in job.failed_at:
                queue.rotate(-1)
                turns -= 1
                continue
            info = job.info
            while job.todo and room > 0 and count > 0:
                index = job.todo.popleft()
                size = job.block_length(index)
                asks.append((info.name, index * info.block_size, size, job.block_hash(index), index, (job, index)))
                job.outstanding += 1
                room -= size
                count -= 1
                self.queued_blocks -= 1
        return asks

    # --- responses

    def answered(self, source: Source, answers: Sequence[Answer]) -> None:
        """Responses in order of arrival. Data is kept until its pack is uploaded, so buffers must not be reused."""
        small: list[tuple[Context, memoryview | bytes]] = []
        came = 0
        for context, data, code in answers:
            job, index = context
            size = self._came_back(job, index)
            came += size
            if job.aborted:
                continue
            if code or len(data) != size:
                self._refused(source, job, index)
            elif self._hash_bytes != HASH_BYTES:
                small.append((context, data))  # a token says nothing of the ciphertext: there is no more to check than its length
            elif size <= self._limits.inline_hash:
                if hashlib.sha256(data).digest() == job.block_hash(index):
                    small.append((context, data))
                else:
                    self._refused(source, job, index)
            else:
                job.outstanding += 1  # until it is verified
                self._unverified.append((source, context, data))
                self._unverified_bytes += size
        self.rates[source.device].over(came, self._env.clock.monotonic(), arrived=True)
        for context, data in small:
            self._place(context, data)
        if self._unverified and self._verifying < self._limits.verify_hops and (self._unverified_bytes >= 1 << 20 or not self._verifying):
            self._verifying += 1
            self._tasks.spawn(self._verify(), f"verify {self._folder}")
        self.pump()

    def _came_back(self, job: Job, index: int) -> int:
        """A request is over, answered or not; its size."""
        size = job.block_length(index)
        self.bytes_in_flight -= size
        self._requests_in_flight -= 1
        job.outstanding -= 1
        return size

    async def _verify(self) -> None:
        """Hashes what has gathered, a batch per thread hop, until nothing is left."""
        try:
            while self._unverified:
                batch, taken = [], 0
                while self._unverified and taken < self._limits.batch:
                    entry = self._unverified.popleft()
                    batch.append(entry)
                    taken += len(entry[2])
                self._unverified_bytes -= taken
                good = await self._env.threads.run(verify_blocks, [(data, job.block_hash(index)) for _, (job, index), data in batch])
                for (source, context, data), right in zip(batch, good, strict=True):
                    job, index = context
                    job.outstanding -= 1
                    if job.aborted:
                        continue
                    if right:
                        self._place(context, data)
                    else:
                        self._refused(source, job, index)
                self.pump()
        finally:
            self._verifying -= 1
        self.pump()

    def _refused(self, source: Source, job: Job, index: int) -> None:
        """This source cannot give a right block of the file: ask the others for it."""
        job.failed_at.add(source.device)
        self._return(job, index)

    def _return(self, job: Job, index: int) -> None:
        if job.aborted:
            return
        job.todo.appendleft(index)
        self.queued_blocks += 1
        self._enqueue(job, first=True)
        if not self._reachable(job):
            self._fail(job)

    def _enqueue(self, job: Job, *, first: bool = False) -> None:
        if not job.queued:
            job.queued = True
            queue = self._large if job.large else self._small
            if first:
                queue.appendleft(job)
            else:
                queue.append(job)

    def _reachable(self, job: Job) -> bool:
        return any(source.device in job.devices and source.device not in job.failed_at for source in self._sources)

    def _fail_orphans(self) -> None:
        for job in list(self.jobs.values()):
            if job.todo and not self._reachable(job):
                self._fail(job)

    def _fail(self, job: Job) -> None:
        """Gives up for this round. What a large file has in its open pack is uploaded first, so that the next round resumes there."""
        self._drop(job)
        reason = "devices did not deliver the announced content" if job.failed_at else "no connected device has the announced version"
        if job.pack is not None:
            pack, job.pack = job.pack, None
            self._sealing.add(pack)
            self._tasks.spawn(self._save_rest(job, pack, reason), f"save {self._folder}")
        else:
            self._failed(job, reason)

    async def _save_rest(self, job: Job, pack: OpenPack, reason: str) -> None:
        try:
            sealed = await self._packer.seal(pack)
        except StnodeError as exc:
            self._sealing.discard(pack)
            reason = exc.message
        else:
            self._sealing.discard(pack)
            for (_, index), place in sealed.places.items():
                job.where[index] = (sealed.handle, place)
            self._saved(job)
        self._failed(job, reason)

    def _drop(self, job: Job) -> None:
        if job.aborted:
            return
        job.aborted = True
        self.queued_blocks -= len(job.todo)
        self.jobs.pop(job.id, None)
        if self._by_name.get(job.info.name) is job:
            del self._by_name[job.info.name]

    def _discard(self, job: Job) -> None:
        """What a dropped job has in its open pack is of no use to anybody."""
        if job.pack is not None:
            self._packer.discard(job.pack)
            job.pack = None

    # --- packs

    def _place(self, context: Context, data: memoryview | bytes) -> None:
        """Appends a verified block to the job's own pack (a large file, except its last part) or to the shared one."""
        job, index = context
        self.received_bytes += len(data)
        if job.large and (
            job.pack is not None or (len(job.todo) + job.outstanding + 1) * job.info.block_size >= self._packer.options.target_bytes // 2
        ):
            pack = job.pack
            if pack is None:
                pack = job.pack = self._packer.begin(self._fid, stream=True, hash_bytes=self._hash_bytes)
            pack.add((job.id, index), data, job.block_hash(index))
            if pack.full:
                job.pack = None
                self._seal_soon(pack)
        else:
            if self._shared is None:
                self._shared = self._packer.begin(self._fid, stream=False, hash_bytes=self._hash_bytes)
            self._shared.add((job.id, index), data, job.block_hash(index))
            if self._shared.full:
                self._seal_shared()
        if not job.todo and not job.outstanding:
            self._received(job)

    def _received(self, job: Job) -> None:
        """All blocks of the job are here: nothing more will come to its pack, and a record begins to wait."""
        if job.pack is not None:
            pack, job.pack = job.pack, None
            self._seal_soon(pack)
        if self._shared is not None:
            self._linger()

    def _linger(self) -> None:
        if not self._lingering:
            self._lingering = True
            self._tasks.spawn(self._seal_later(), f"linger {self._folder}")

    async def _seal_later(self) -> None:
        await self._env.clock.sleep(self._limits.linger_s)
        self._lingering = False
        self._seal_shared()

    def _seal_if_quiet(self) -> None:
        """Nothing is under way that could still fill the shared pack: do not let its records wait, unless one went just now."""
        if self._shared is None or self._requests_in_flight or self._unverified or self._verifying:
            return
        if self._env.clock.monotonic() - self._shared_sealed_at >= self._limits.linger_s:
            self._seal_shared()
        else:
            self._linger()

    def _seal_shared(self) -> None:
        if self._shared is None:
            return
        pack, self._shared = self._shared, None
        pack.keep(self.jobs)  # what a job was given up for often comes again under another name: it must not be stored twice
        if len(pack):
            if not pack.full:  # small packs keep their distance; what is left after full ones, at the end of much, need not
                self._shared_sealed_at = self._env.clock.monotonic()
            self._seal_soon(pack)
        else:
            self._packer.discard(pack)

    def _seal_soon(self, pack: OpenPack) -> None:
        self._sealing.add(pack)
        self._tasks.spawn(self._seal(pack), f"seal {self._folder}")

    async def _seal(self, pack: OpenPack) -> None:
        """Uploads a pack, then gives its blocks their addresses."""
        try:
            sealed = await self._packer.seal(pack)
        except StnodeError as exc:
            self._sealing.discard(pack)
            heirs = self._leftovers.settled(pack.tokens)
            for job_id in {token[0] for token in pack.tokens} | {job.id for waiting in heirs.values() for job, _ in waiting}:
                job = self.jobs.get(job_id)
                if job is not None:
                    self._drop(job)
                    self._discard(job)
                    self._failed(job, exc.message)
            return
        self._sealing.discard(pack)
        self._settle(sealed)
        self.pump()

    def _settle(self, sealed: SealedPack) -> None:
        done: list[Job] = []
        going_on: set[int] = set()
        jobs = self.jobs
        handle = sealed.handle
        heirs = self._leftovers.settled(sealed.places)
        inherited = [((job.id, index), sealed.places[token]) for token, waiting in heirs.items() for job, index in waiting]
        for (job_id, index), place in (*sealed.places.items(), *inherited):
            job = jobs.get(job_id)
            if job is None:
                continue
            if job.where[index] is None:
                job.where[index] = (handle, place)
                job.missing -= 1
            if not job.missing:
                done.append(job)
                del jobs[job_id]
                self._by_name.pop(job.info.name, None)
            elif job.large:
                going_on.add(job_id)
        for job_id in going_on:
            if job_id in jobs:
                self._saved(jobs[job_id])
        if done:
            self._done(done)


def _busy(source: Source) -> int:
    return source.bytes_in_flight
