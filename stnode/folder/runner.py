"""One owner task per folder: takes indexes in, pulls what is needed, hands finished records to the committer.

A pull pass walks the needed names in order, a window at a time. Directories, symlinks, metadata changes and files whose
blocks the folder has already become drafts at once; the rest are jobs of `Transfer`. Deletions wait for the end of the pass
(a peer may still rename or copy from what is to be deleted), files before directories, deepest first (bep-facts 12.1).
Failed items are retried three times at once, then after a minute, doubling to an hour (8.3).

Not responsible for: connections (node), what the peers' indexes mean (index), judging conflicts (repo.judge).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from sqlite3 import Connection
from typing import Any, Protocol

from stnode.clock import Env, Tasks
from stnode.db import Database
from stnode.errors import StnodeError
from stnode.folder import index
from stnode.folder.index import Needed, NeedKind
from stnode.folder.planner import Job, Reuse, plan_file
from stnode.folder.server import BlockServer
from stnode.folder.transfer import Limits, Source, Transfer
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileInfo
from stnode.protocol.messages import Index
from stnode.repo import state
from stnode.repo.records import Applied, Draft, DraftSet, Extents, SetKind, Status
from stnode.repo.settings import FolderSettings
from stnode.repo.store import Store
from stnode.telemetry import get_logger

_log = get_logger(__name__)

_WINDOW = 1000
_BACKLOG_JOBS = 4000
_BACKLOG_BYTES = 512 << 20
_IMMEDIATE_ROUNDS = 3
_RETRY_S = (1.0, 60.0, 3600.0)
_PARTIAL_EVERY_S = 5.0
_KEPT_ERRORS = 1000


class Peer(Source, Protocol):
    """A connected device that shares the folder: asked for blocks, told of commits."""

    def announce(self, fid: int) -> None:
        """Records newer than what this peer was sent may exist; returns at once."""

    async def send_cluster_config(self) -> None:
        """Says anew what we share and what we hold of the peer's index, which makes it send what is missing."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database has of a window of needed names: global versions, devices that have them, extents of our record where only
    metadata differs, and runs of unfinished downloads of that very version."""

    infos: dict[str, FileInfo]
    sources: dict[str, list[int]]
    same: dict[str, Extents]
    partials: dict[str, tuple[Reuse, ...]]


class FolderRunner:
    """Owner of one folder on this node. Methods run in the event loop; `start` and `stop` bracket its tasks."""

    def __init__(self, env: Env, db: Database, store: Store, settings: FolderSettings, fid: int, limits: Limits) -> None:
        self._env = env
        self._db = db
        self._store = store
        self.fid = fid
        self.settings = settings
        self.server = BlockServer(env, db, store, fid)
        self.transfer = Transfer(
            env, settings.folder_id, fid, store.packer, limits, done=self._downloaded, failed=self._job_failed, saved=self._save_partial
        )
        self.peers: dict[int, Peer] = {}
        self.errors: dict[str, str] = {}
        self.broken = ""
        self._round_errors: dict[str, str] = {}
        self._rounds_failed = 0
        self._job_ids = 0
        self._active: set[str] = set()
        self._deleting: set[str] = set()
        self._recheck: set[str] = set()
        self._recheck_all = False
        self._wake = asyncio.Event()
        self._recheck_wake = asyncio.Event()
        self._progress = asyncio.Event()
        self._saved_at: dict[int, float] = {}
        self._in_pass = False
        self._tasks = Tasks(env, self._crashed)

    # --- life

    async def start(self) -> None:
        """Begins pulling; evaluates need once, since settings or records may have changed while the folder was not run."""
        await self._evaluate_all()
        self._spawn(self._pull_loop(), "pull")
        self._spawn(self._recheck_loop(), "recheck")
        self._wake.set()

    async def stop(self) -> None:
        """Ends all tasks. Uploaded but uncommitted packs stay behind as orphans; the next start plans anew."""
        await self._tasks.close()
        await self.transfer.close()

    def _crashed(self, name: str, exc: Exception) -> None:
        """A bug. The folder says so in its status; what it committed is not touched, and a restart plans anew."""
        _log.error("folder task ended by a bug", task=name, exc_info=exc)
        self.broken = f"internal error in {name}: {exc!r}"

    def _spawn(self, coro: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.spawn(coro, f"{name} {self.settings.folder_id}")

    @property
    def state(self) -> str:
        """idle, syncing, waiting (items failed; they are tried again later) or error (a task of the folder ended by a bug)."""
        if self.broken:
            return "error"
        if self._in_pass or self._active or self.transfer.jobs:
            return "syncing"
        return "waiting" if self.errors else "idle"

    # --- what sessions tell

    async def begin_index(self, device: int, index_id: int) -> None:
        """The device's ClusterConfig names this index ID for the folder: another one than before drops what we had of it."""
        held = await self._db.run(lambda conn: index.index_state(conn, self.fid, device))
        if held.index_id != index_id and held.max_sequence:
            # In steps, so that a million entries do not hold the database for seconds.
            while not await self._db.write(lambda conn: index.drop_step(conn, self.fid, device)):
                pass
        await self._db.write(lambda conn: index.begin_index(conn, self.fid, device, index_id))
        self._wake.set()

    async def receive_index(self, device: int, message: Index) -> None:
        """Stores a checked Index or IndexUpdate; returns when it is in the database, so that the caller can hold back the peer."""
        for info in message.files:
            job = self.transfer.job_named(info.name)
            if job is None:
                continue
            if job.info.version == info.version:
                job.devices.add(device)
            else:
                self.transfer.abort(info.name)
                self._active.discard(info.name)
        await self._db.write(lambda conn: index.apply_index(conn, self.fid, device, message.files, full=not message.update, settings=self.settings))
        self._rounds_failed = 0
        self._wake.set()

    def peer_up(self, peer: Peer) -> None:
        """The device is connected and lists this folder."""
        self.peers[peer.device] = peer
        self.transfer.source_up(peer)
        self._rounds_failed = 0
        self._wake.set()

    def peer_down(self, peer: Peer, lost: Sequence[tuple[Job, int]]) -> None:
        """It left; `lost` are the requests it will not answer."""
        if self.peers.get(peer.device) is peer:
            del self.peers[peer.device]
        self.transfer.source_down(peer, lost)

    # --- what the store tells

    def applied(self, applied: Applied) -> None:
        """A commit, own or a sibling's, is in the database."""
        if applied.restored:
            self._recheck_all = True
            self.server.forget_all()
        else:
            changed = applied.folders.get(self.fid)
            if changed is None:
                return
            self._recheck.update(changed.names)
            self.server.forget(changed.names)
        self._recheck_wake.set()
        for peer in self.peers.values():
            peer.announce(self.fid)

    def settings_changed(self, settings: FolderSettings) -> None:
        """Type or ignore patterns changed for all nodes: what is needed is another set now."""
        self.settings = settings
        self._recheck_all = True
        self._recheck_wake.set()

    async def _recheck_loop(self) -> None:
        """After commits: which names are still needed. The only place that lets a name be planned again."""
        while True:
            await self._recheck_wake.wait()
            self._recheck_wake.clear()
            names, self._recheck = sorted(self._recheck), set()
            every, self._recheck_all = self._recheck_all, False
            if every:
                await self._evaluate_all()
            if names:
                await self._db.write(partial(index.recheck, fid=self.fid, names=names, settings=self.settings))
            self._active.difference_update(names)
            self._deleting.difference_update(names)
            self._progress.set()
            if every or self._round_errors:
                self._wake.set()

    async def _evaluate_all(self) -> None:
        """Need from the beginning; who has content that we dropped as known, and lost since, is asked for its index again."""

        def work(conn: Connection) -> list[int]:
            index.evaluate_all(conn, self.fid, self.settings)
            devices = index.missing_content(conn, self.fid)
            for device in devices:
                index.forget(conn, self.fid, device)
            return devices

        for device in await self._db.write(work):
            peer = self.peers.get(device)
            if peer is not None:
                await peer.send_cluster_config()

    # --- pulling

    async def _pull_loop(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._in_pass = True
            self._round_errors = {}
            try:
                await self._pass()
            except StnodeError as exc:
                _log.warning("pull stopped", folder=self.settings.folder_id, error=exc.message)
                self._round_errors[""] = exc.message
            finally:
                self._in_pass = False
            self.errors = dict(list(self._round_errors.items())[:_KEPT_ERRORS])
            if self.errors and not self._wake.is_set():
                self._retry_later()

    def _retry_later(self) -> None:
        self._rounds_failed += 1
        first, after, most = _RETRY_S
        late = self._rounds_failed - _IMMEDIATE_ROUNDS
        self._spawn(self._wake_after(first if late <= 0 else min(after * 2 ** (late - 1), most)), "retry")

    async def _wake_after(self, seconds: float) -> None:
        await self._env.clock.sleep(seconds)
        self._wake.set()

    async def _pass(self) -> None:
        """Once over everything that is needed now; content first, deletions last."""
        after = ""
        while True:
            window = await self._db.run(partial(index.next_needed, fid=self.fid, after=after, limit=_WINDOW, deletes=False))
            if not window:
                break
            after = window[-1].name
            await self._plan([needed for needed in window if needed.name not in self._active])
            await self._until(lambda: len(self.transfer.jobs) < _BACKLOG_JOBS and self.transfer.queued_bytes < _BACKLOG_BYTES)
        await self._until(lambda: self.transfer.drained and not self._active)
        await self._delete()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._progress.clear()
            await self._progress.wait()

    async def _plan(self, window: Sequence[Needed]) -> None:
        """Drafts for what the store can do alone, jobs for the rest."""
        if not window:
            return
        known = await self._db.run(partial(self._read_window, window=window))
        drafts = [Draft(self.fid, info, known.same.get(name, ())) for name, info in known.infos.items() if name in known.same or not info.size]
        files = [info for name, info in known.infos.items() if name not in known.same and info.size]
        jobs: list[Job] = []
        for info, reuse in zip(files, await self._store.dedupe.find(self.fid, files), strict=True):
            self._job_ids += 1
            devices = [device for device in known.sources.get(info.name, ()) if device in self.peers]
            large = self._store.packer.options.target_bytes
            job = plan_file(self._job_ids, info, devices, (*known.partials.get(info.name, ()), *reuse), large)
            if not job.missing:
                drafts.append(Draft(self.fid, info, job.extents()))
            elif devices:
                jobs.append(job)
            else:
                self._round_errors[info.name] = "no connected device has the announced version"
        self._active.update(draft.info.name for draft in drafts)
        self._active.update(job.info.name for job in jobs)
        self.transfer.add(jobs)
        self._submit(drafts)

    def _read_window(self, conn: Connection, window: Sequence[Needed]) -> _Known:
        infos = index.needed_info(conn, self.fid, [needed.name for needed in window])
        same = [needed.name for needed in window if needed.kind is NeedKind.METADATA and needed.size]
        files = [name for name, info in infos.items() if info.size]
        return _Known(
            infos,
            index.sources(conn, self.fid, files),
            {name: record.extents for name, record in state.get_records(conn, self.fid, same).items()} if same else {},
            self._partial_runs(conn, infos) if files else {},
        )

    def _partial_runs(self, conn: Connection, infos: Mapping[str, FileInfo]) -> dict[str, tuple[Reuse, ...]]:
        """What unfinished downloads, ours or a sibling's, have of these very versions."""
        found: dict[str, tuple[Reuse, ...]] = {}
        for partial_file, _ in state.partials(conn, self.fid):
            info = infos.get(partial_file.name)
            if info is not None and partial_file.blocks_hash == fileinfo.blocks_hash(info.block_hashes):
                found[info.name] = (*found.get(info.name, ()), *zip(partial_file.starts, partial_file.extents, strict=True))
        return found

    async def _delete(self) -> None:
        """Deletions of this pass: files and symlinks in any order, then directories deepest first, in one go."""
        after, found = "", list[Needed]()
        while window := await self._db.run(partial(index.next_needed, fid=self.fid, after=after, limit=_WINDOW, deletes=True)):
            after = window[-1].name
            found += [needed for needed in window if needed.name not in self._deleting]
        found.sort(key=lambda needed: (needed.kind is NeedKind.DELETE_DIRECTORY, -needed.name.count("/")))
        for start in range(0, len(found), _WINDOW):
            names = [needed.name for needed in found[start : start + _WINDOW]]
            infos = await self._db.run(partial(index.needed_info, fid=self.fid, names=names))
            drafts = [Draft(self.fid, infos[name], ()) for name in names if name in infos]
            self._deleting.update(draft.info.name for draft in drafts)
            self._submit(drafts)

    # --- results

    def _downloaded(self, jobs: list[Job]) -> None:
        self._submit([Draft(self.fid, job.info, job.extents()) for job in jobs])
        for job in jobs:
            self._saved_at.pop(job.id, None)
        self._progress.set()

    def _job_failed(self, job: Job, reason: str) -> None:
        self._round_errors[job.info.name] = reason
        self._active.discard(job.info.name)
        self._saved_at.pop(job.id, None)
        self._progress.set()

    def _submit(self, drafts: Sequence[Draft]) -> None:
        if drafts:
            self._spawn(self._commit(drafts), "commit")

    async def _commit(self, drafts: Sequence[Draft]) -> None:
        """Hands a batch to the committer. What was not committed is looked at again, and tried again with the retries."""
        try:
            outcomes = await self._store.submit([DraftSet(SetKind.SINGLE, (draft,)) for draft in drafts])
        except StnodeError as exc:
            for draft in drafts:
                self._round_errors[draft.info.name] = exc.message
            self._recheck.update(draft.info.name for draft in drafts)
        else:
            for draft, outcome in zip(drafts, outcomes, strict=True):
                if outcome.status is not Status.COMMITTED:
                    self._recheck.add(draft.info.name)
                if outcome.status is Status.CONFLICT:
                    self._round_errors[draft.info.name] = outcome.reason
        self._recheck_wake.set()

    def _save_partial(self, job: Job) -> None:
        """Keeps what a long download has in the store, so that a restart or a sibling goes on from there (R9)."""
        now = self._env.clock.monotonic()
        if now - self._saved_at.setdefault(job.id, now) >= _PARTIAL_EVERY_S or job.aborted:
            self._saved_at[job.id] = now
            self._spawn(self._commit_partial(job), "partial")

    async def _commit_partial(self, job: Job) -> None:
        try:
            await self._store.submit_partial(self.fid, job.info, job.known_runs())
        except StnodeError as exc:
            _log.warning("partial file not kept", folder=self.settings.folder_id, file=job.info.name, error=exc.message)
