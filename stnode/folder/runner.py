"""One owner task per folder: takes indexes in, pulls what is needed, hands finished records to the committer.

Whenever there is news the needed names are walked in order, a window at a time. Directories, symlinks, metadata changes and files whose
blocks the folder has already become drafts at once; the rest are jobs of `Transfer`, which go on beside all this. Deletions follow
the drafts into the same commit, files before directories, deepest first (bep-facts 12.1), so that a rename is announced in one
message. What is to take the place of a directory waits until that is empty. Failed items are tried again by `Retries` (8.3).

    needed --planned--> active (draft or job) --outcome known and need evaluated again--> done, needed again, or failed

Not responsible for: connections (node), what the peers' indexes mean (index), judging conflicts (repo.judge).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from sqlite3 import Connection
from typing import Any, Protocol

from stnode.clock import Env, Tasks
from stnode.db import Database
from stnode.errors import StnodeError
from stnode.folder import index
from stnode.folder.claims import Asker, Claims
from stnode.folder.deletionpace import DeletionPace, is_many
from stnode.folder.index import IndexEffect, Needed, NeedKind, Part
from stnode.folder.planner import Job, plan_file
from stnode.folder.retries import Retries
from stnode.folder.server import BlockServer
from stnode.folder.sharing import Sharing
from stnode.folder.split import Left, leave
from stnode.folder.transfer import Limits, Source, Transfer
from stnode.folder.window import NAMES, Known, read_deletion_totals, read_deletions, read_names, read_window
from stnode.protocol import fileinfo
from stnode.protocol.blocks import HASH_BYTES, TOKEN_BYTES
from stnode.protocol.fileinfo import FileInfo
from stnode.protocol.messages import Index
from stnode.protocol.vector import Vector
from stnode.repo.records import Applied, Draft, DraftSet, Outcome, SetKind, Status
from stnode.repo.settings import FolderSettings
from stnode.repo.store import Store
from stnode.telemetry import get_logger

_log = get_logger(__name__)

_BACKLOG_JOBS = 4000
_BACKLOG_BLOCKS = 500_000
_CROWDED_ROUNDS = 2
_PARTIAL_EVERY_S = 5.0
_RECHECK_AGAIN_S = 5.0
_ASK_AGAIN_S = 1.0
_LONG_INTAKE = 50_000
"""Files of one stream of index messages from which on it goes before pulling."""
_INTAKE_PAUSE_S = 0.25
_INTAKE_LONGEST_S = 30.0


class Peer(Source, Protocol):
    """A connected device that shares the folder: asked for blocks, told of commits."""

    def announce(self, fid: int) -> None:
        """Records newer than what this peer was sent may exist; returns at once."""

    def resend_config(self) -> None:
        """Says soon anew what we share and what we hold of the peer's index, which makes it send what is missing."""


class FolderRunner:
    """Owner of one folder on this node. Methods run in the event loop; `start` and `stop` bracket its tasks."""

    def __init__(self, env: Env, db: Database, store: Store, settings: FolderSettings, fid: int, limits: Limits, siblings: Asker) -> None:
        self._env = env
        self._db = db
        self._store = store
        self.fid = fid
        self.settings = settings
        self.hash_bytes = TOKEN_BYTES if settings.encrypted else HASH_BYTES
        """Of the folder's block lists. A folder's type never changes between encrypted and plain."""
        self.server = BlockServer(env, db, store, fid)
        self.transfer = Transfer(
            env,
            settings.folder_id,
            fid,
            store.packer,
            limits,
            hash_bytes=self.hash_bytes,
            done=self._downloaded,
            failed=self._job_failed,
            saved=self._save_partial,
        )
        self.peers: dict[int, Peer] = {}
        self.broken = ""
        self.sharing = Sharing(env, store.heartbeats, store.node, fid)
        self.claims = Claims(env, siblings, store.node, settings.fkey, lambda: (job.content for job in self.transfer.jobs.values()))
        self._retries = Retries()
        self._job_ids = 0
        self._active: set[str] = set()
        self._deleting: set[str] = set()
        self._outdated: set[str] = set()
        self._stale: set[str] = set()
        self._settled: set[str] = set()
        self._recheck_all = False
        self._asked_again: set[int] = set()
        self._asking_again = False
        self._wake = asyncio.Event()
        self._recheck_wake = asyncio.Event()
        self._progress = asyncio.Event()
        self._saved_at: dict[int, float] = {}
        self._planning = self._rechecking = self._stopped = False
        self._intake_files = 0
        self._intake_ends = 0.0
        self._deletion_pace = DeletionPace()
        self._deletions_due: float | None = None
        self._tasks = Tasks(env, self._crashed)

    # --- life

    async def start(self) -> None:
        """Begins pulling; evaluates need once, since settings or records may have changed while the folder was not run."""
        await self._evaluate_all()
        self._spawn(self._pull_loop(), "pull")
        self._spawn(self._recheck_loop(), "recheck")
        self._wake.set()

    async def stop(self) -> None:
        """Ends all tasks, and heeds no device any more. Uploaded but uncommitted packs stay behind as orphans; the next start plans
        anew."""
        self._stopped = True
        await self._tasks.close()
        await self.sharing.close()
        await self.transfer.close()

    def _crashed(self, name: str, exc: Exception) -> None:
        """A bug. The folder says so in its status; what it committed is not touched, and a restart plans anew."""
        _log.error("folder task ended by a bug", task=name, exc_info=exc)
        self.broken = f"internal error in {name}: {exc!r}"

    def _spawn(self, coro: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.spawn(coro, f"{name} {self.settings.folder_id}")

    @property
    def state(self) -> str:
        """idle, syncing (here or at a sibling), waiting (items failed; they are tried again later) or error (a task of the folder ended by
        a bug)."""
        if self.broken:
            return "error"
        if self._planning or self._active or self.transfer.jobs or self._wake.is_set() or self.sharing.items:
            return "syncing"
        return "waiting" if self.errors else "idle"

    @property
    def working(self) -> bool:
        """Whether this node itself pulls or commits something of the folder: not where it only waits for siblings."""
        return bool(self._active or self._deleting or self.transfer.jobs)

    def rate(self, device: int) -> int:
        """Bytes per second that the device gave while it was busy with this folder, 0 if that was never measured."""
        rate = self.transfer.rates.get(device)
        return 0 if rate is None else rate.bytes_per_s

    @property
    def errors(self) -> dict[str, str]:
        """Names that failed, a thousand at most, and why."""
        return self._retries.reasons

    # --- what sessions tell

    async def begin_index(self, device: int, index_id: int) -> None:
        """The device's ClusterConfig names this index ID for the folder: another one than before drops what we had of it. Of a device with
        which the folder is not shared any more nothing is taken in, nor by `receive_index`: it would stay after it was forgotten."""
        held = await self._db.run(lambda conn: index.index_state(conn, self.fid, device))
        if held.index_id != index_id and held.max_sequence:
            await self._drop_index(device)

        def begin(conn: Connection) -> IndexEffect:
            return index.begin_index(conn, self.fid, device, index_id) if self._listens_to(conn, device) else IndexEffect()

        self._heed(await self._db.write(begin), {})
        self._wake_up()

    async def _drop_index(self, device: int) -> None:
        """In steps, so that a million entries do not hold the database for seconds."""
        done = False
        while not done:
            effect, done = await self._db.write(partial(index.drop_step, fid=self.fid, dev=device))
            self._heed(effect, {})

    def _listens_to(self, conn: Connection, device: int) -> bool:
        """Asked in the database's thread, where the settings of this moment are newer than the evaluation that follows their change."""
        return not self._stopped and not index.is_stranger(conn, device, {device.device_id for device in self.settings.devices})

    async def receive_index(self, device: int, message: Index) -> None:
        """Stores a checked Index or IndexUpdate; returns when it is in the database, so that the caller can hold back the peer."""

        def take(conn: Connection) -> IndexEffect | None:
            if not self._listens_to(conn, device):
                return None
            return index.apply_index(conn, self.fid, device, message.files, full=not message.update, settings=self.settings)

        effect = await self._db.write(take)
        if effect is None:
            return
        self._note_intake(len(message.files))
        if any(info.deleted for info in message.files):
            self._deletion_pace.came(self._env.clock.monotonic())
        announced = {info.name: info for info in message.files if not info.deleted and not info.invalid}
        self._heed(effect, announced)
        for name, info in announced.items():
            job = self.transfer.job_named(name)
            if job is not None and job.info.version == info.version:
                job.devices.add(device)
        self._retries.news(info.name for info in message.files)
        self.transfer.pump()
        self._wake_up()

    def _heed(self, effect: IndexEffect, announced: Mapping[str, FileInfo]) -> None:
        """A device's index has changed what is needed; `announced`: the live items that it gave."""
        for name in {*effect.needed, *effect.satisfied}:
            given = announced.get(name)
            self._change_wanted(name, None if given is None else given.version)
        self._retries.solved(effect.satisfied)

    def _note_intake(self, files: int) -> None:
        """Messages that follow each other closely are one stream; a long one is let in before more is planned (`_intake_over`)."""
        now = self._env.clock.monotonic()
        self._intake_files = files if now > self._intake_ends else self._intake_files + files
        self._intake_ends = now + _INTAKE_PAUSE_S

    def _change_wanted(self, name: str, version: Vector | None) -> None:
        """Another version than before is needed, or none: what is under way for the old one ends, or is followed by the new one."""
        job = self.transfer.job_named(name)
        if job is not None:
            if job.info.version != version:
                self.transfer.abort(name)
                self._saved_at.pop(job.id, None)
                self._active.discard(name)
        elif name in self._active or name in self._deleting:
            self._outdated.add(name)

    def _wake_up(self) -> None:
        self._wake.set()
        self._progress.set()

    def peer_up(self, peer: Peer) -> None:
        """The device is connected and lists this folder."""
        self.peers[peer.device] = peer
        self.transfer.source_up(peer)
        self.sharing.about_to_pull(peer.device)
        self._retries.start_anew()
        self._wake_up()

    def peer_down(self, peer: Peer, lost: Sequence[tuple[Job, int]]) -> None:
        """It left; `lost` are the requests it will not answer."""
        if self.peers.get(peer.device) is peer:
            del self.peers[peer.device]
        self.sharing.device_lost()
        self.transfer.source_down(peer, lost)

    # --- what the store tells

    def applied(self, applied: Applied) -> None:
        """A commit, own or a sibling's, is in the database."""
        self.sharing.applied(applied)
        if applied.restored:
            self._recheck_all = True
            self.server.forget_all()
        else:
            changed = applied.folders.get(self.fid)
            if changed is None:
                return
            self._stale.update(changed.names)
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
        """After commits: which names are still needed. The only place that lets a name be planned again. Outcomes are told after the
        commit they come from, so what has settled here is evaluated on a state that has it."""
        while True:
            await self._recheck_wake.wait()
            self._rechecking = True
            self._recheck_wake.clear()
            names, self._stale = sorted(self._stale), set()
            settled, self._settled = self._settled, set()
            every, self._recheck_all = self._recheck_all, False
            effect = IndexEffect()
            try:
                if every:
                    await self._evaluate_all()
                if names:
                    effect, without_content = await self._db.write(partial(self._recheck, names=names))
                    self._asked_again.update(without_content)
            except StnodeError as exc:  # a full disk, most likely: all of it again, when there may be room
                _log.warning("need not evaluated", folder=self.settings.folder_id, error=exc.message)
                self._stale.update(names)
                self._settled |= settled
                self._recheck_all |= every
                self._fail("", exc.message)
                await self._env.clock.sleep(_RECHECK_AGAIN_S)
                self._recheck_wake.set()
                continue
            changed = False
            if names:
                for name in effect.satisfied:
                    self._change_wanted(name, None)
                self._retries.solved(effect.satisfied)
                self.sharing.satisfied(sum(name not in self._active and name not in self._deleting for name in effect.satisfied))
                changed = bool(effect.needed)
            busy = bool(self._active)
            self._active -= settled
            self._deleting -= settled
            again = settled & self._outdated
            self._outdated -= settled
            if self._asked_again and not self._asking_again:
                self._asking_again = True
                self._spawn(self._ask_again(), "ask again")
            if every or changed or again or self.errors or (busy and not self._active and self.sharing.items):
                self._wake.set()
            self._rechecking = False
            self._progress.set()

    def _recheck(self, conn: Connection, names: Sequence[str]) -> tuple[IndexEffect, list[int]]:
        """Runs in the database's thread. Also who has content that we dropped as known, and lost since: their index is to come again."""
        effect = index.recheck(conn, self.fid, names, self.settings)
        devices = index.missing_content(conn, self.fid, effect.needed) if effect.needed else []
        for device in devices:
            index.forget(conn, self.fid, device)
        return effect, devices

    async def _ask_again(self) -> None:
        """A while after the last of a row of commits, so that what was lost with many files is asked for once."""
        while True:
            count = len(self._asked_again)
            await self._env.clock.sleep(_ASK_AGAIN_S)
            if len(self._asked_again) == count and not self._recheck_wake.is_set():
                break
        self._asking_again = False
        devices, self._asked_again = self._asked_again, set()
        for device in sorted(devices):
            if device in self.peers:
                self.peers[device].resend_config()

    async def _evaluate_all(self) -> None:
        """Need from the beginning; who has content that we dropped as known, and lost since, is asked for its index again. What we had
        of devices that the folder is not shared with any more goes away: nobody may wait for their files, or for their conflict copies."""
        shared = {device.device_id for device in self.settings.devices}
        for device in await self._db.run(lambda conn: index.strangers(conn, self.fid, shared)):
            await self._drop_index(device)
            await self._db.write(partial(index.forget, fid=self.fid, dev=device))

        def work(conn: Connection) -> list[int]:
            index.evaluate_all(conn, self.fid, self.settings)
            devices = index.missing_content(conn, self.fid)
            for device in devices:
                index.forget(conn, self.fid, device)
            return devices

        devices = await self._db.write(work)
        self._retries.clear()
        for device in devices:
            if device in self.peers:
                self.peers[device].resend_config()

    # --- pulling

    async def _pull_loop(self) -> None:
        while True:
            await self._news()
            self._planning = True
            try:
                await self._drop_needless_errors()
                await self._begin_pass()
                crowded = await self._plan_needed()
                await self._delete()
                self._fail_crowded(crowded)
                await self._help()
            except StnodeError as exc:
                _log.warning("pull stopped", folder=self.settings.folder_id, error=exc.message)
                self._fail("", exc.message)
            else:
                self._retries.solved([""])
            finally:
                self._planning = False

    async def _news(self) -> None:
        """Returns when something has changed, failed items are due again, or it is time to see what siblings have done."""
        while not self._wake.is_set() and not self._retries.start_round(now := self._env.clock.monotonic()):
            due = [at for at in (self._retries.due, self._deletions_due, self.sharing.due(idle=not self._active)) if at is not None]
            if due and min(due) <= now:
                self._deletions_due = None
                break
            try:
                async with asyncio.timeout(min(due) - now if due else None):
                    await self._wake.wait()
            except TimeoutError:
                pass
        self._wake.clear()

    async def _drop_needless_errors(self) -> None:
        """What fails when it is not wanted any more, refused by the committer for instance, is not evaluated as satisfied again."""
        if failed := [name for name in self.errors if name]:
            self._retries.solved(await self._db.run(partial(index.needless, fid=self.fid, names=failed)))

    async def _begin_pass(self) -> None:
        """What siblings have committed is no longer needed: first of all it is looked for, if work was left to them."""
        await self.sharing.begin()
        if self.sharing.items:
            await self._store.follow_to_head()
            await self._until(lambda: not self._recheck_wake.is_set() and not self._rechecking)

    async def _help(self) -> None:
        """The pass is over: with nothing of its own to do this node may take over some of what it left to others."""
        names = self.sharing.end(idle=not self._active and not self._deleting, store_time_us=self._store.store_time_us())
        if names:
            made_on = self._store.histories
            known = await self._db.run(partial(read_names, fid=self.fid, names=names, skip=self._skips))
            await self._plan(known, made_on, whoever_fetches=True)

    def _fail(self, name: str, reason: str) -> None:
        earlier = self._retries.due
        self._retries.fail(name, reason, self._env.clock.monotonic())
        if earlier is None:
            self._wake.set()  # the loop waits without a deadline

    async def _plan_needed(self) -> list[str]:
        """Once over all content that is needed now; names that have to wait until a directory is empty come back."""
        after, crowded = "", list[str]()
        while True:
            await self._intake_over()
            split = await self.sharing.split(self._db, self.settings, self.peers)
            heeds_crowds = self._retries.rounds < _CROWDED_ROUNDS
            made_on = self._store.histories
            known = await self._db.run(
                partial(read_window, fid=self.fid, after=after, skip=self._skips, split=split, heeds_crowds=heeds_crowds)
            )
            if not known.last:
                return crowded
            after = known.last
            crowded += known.crowded
            self.sharing.leave(known.left)
            await self._plan(known, made_on)
            await self._until(lambda: len(self.transfer.jobs) < _BACKLOG_JOBS and self.transfer.queued_blocks < _BACKLOG_BLOCKS)

    async def _intake_over(self) -> None:
        """While a long index streams in, the database works for it alone, but for a window of names each half minute: planning and
        committing beside it make both slow, and much of what comes later (renames, deletions) belongs to what came first."""
        give_up = self._env.clock.monotonic() + _INTAKE_LONGEST_S
        while self._intake_files >= _LONG_INTAKE and self._env.clock.monotonic() < min(self._intake_ends, give_up):
            await self._env.clock.sleep(_INTAKE_PAUSE_S / 2)

    def _fail_crowded(self, names: Sequence[str]) -> None:
        for name in names:
            self._fail(name, "takes the place of a directory that is not empty yet")

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._progress.clear()
            await self._progress.wait()

    async def _plan(self, known: Known, made_on: int, *, whoever_fetches: bool = False) -> None:
        """Drafts for what the store can do alone, jobs for the rest, as far as no sibling fetches it. `made_on`: see `Draft`."""
        wanted = {name: info for name, info in known.infos.items() if name not in known.crowded}
        self._active.update(wanted)  # from here on a change of what is wanted is noted
        drafts = [
            Draft(self.fid, info, known.same.get(name, ()), made_on=made_on)
            for name, info in wanted.items()
            if name in known.same or not info.size
        ]
        files = [info for name, info in wanted.items() if name not in known.same and info.size]
        jobs: list[Job] = []
        for info, reuse in zip(files, await self._store.dedupe.find(self.fid, files, self.hash_bytes), strict=True):
            if info.name in self._outdated:
                self._give_back(info.name)
                continue
            self._job_ids += 1
            devices = [device for device in known.sources.get(info.name, ()) if device in self.peers]
            large = self._store.packer.options.target_bytes
            job = plan_file(self._job_ids, info, devices, (*known.partials.get(info.name, ()), *reuse), large)
            job.made_on = made_on
            if not job.missing:
                drafts.append(Draft(self.fid, info, job.extents(), made_on=made_on))
            elif devices:
                jobs.append(job)
            else:
                self._active.discard(info.name)
                self._fail(info.name, "no connected device has the announced version")
        self.transfer.add(jobs if whoever_fetches else await self._unclaimed(jobs))
        self._submit(drafts)

    async def _unclaimed(self, jobs: Sequence[Job]) -> list[Job]:
        """Those whose content no sibling fetches; the rest is left to the siblings. No await may be between this and `transfer.add`."""
        fetched_by = await self.claims.ask({job.content for job in jobs})
        mine, left = list[Job](), Left()
        for job in jobs:
            name = job.info.name
            node = fetched_by.get(job.content)
            if name in self._outdated:
                self._give_back(name)
            elif node is None or self.sharing.passes_over(node):
                mine.append(job)
            else:
                self._active.discard(name)
                key = fileinfo.blocks_hash(job.info.block_hashes)
                leave(left, Part(name, NeedKind.FILE, key, (job.info.size, 0), tuple(job.devices)), node, None)
        self.sharing.leave(left)
        return mine

    def _give_back(self, name: str) -> None:
        """Another version is wanted meanwhile: plan anew."""
        self._outdated.discard(name)
        self._active.discard(name)
        self._wake_up()

    def _skips(self, name: str) -> bool:
        """Asked in the database's thread: the sets of names that must wait are only looked into."""
        return name in self._active or self._retries.holds(name)

    def _skips_deletion(self, name: str) -> bool:
        return name in self._deleting or self._retries.holds(name)

    async def _delete(self) -> None:
        """Deletions: files and symlinks in any order, then directories deepest first, in one go."""
        after, found = "", list[Needed]()
        deletions, live_files = await self._db.run(partial(read_deletion_totals, fid=self.fid))
        now = self._env.clock.monotonic()
        wait_s = self._deletion_pace.wait_s(deletions, live_files, now)
        self._deletions_due = now + wait_s if wait_s else None
        if wait_s:
            return
        while True:
            split = await self.sharing.split(self._db, self.settings, self.peers)
            after, window, left = await self._db.run(
                partial(
                    read_deletions,
                    fid=self.fid,
                    after=after,
                    skip=self._skips_deletion,
                    # Each node's guard has to see all of many deletions; whoever commits them second finds them done.
                    split=None if is_many(deletions, live_files) else split,
                )
            )
            if not after:
                break
            found += window
            self.sharing.leave(left)
        found.sort(key=lambda needed: (needed.kind is NeedKind.DELETE_DIRECTORY, -needed.name.count("/")))
        windows: list[list[Draft]] = []
        for start in range(0, len(found), NAMES):
            names = [needed.name for needed in found[start : start + NAMES]]
            infos = await self._db.run(partial(index.needed_info, fid=self.fid, names=names))
            # Between the two reads a name can have become one that is wanted again.
            windows.append([Draft(self.fid, infos[name], ()) for name in names if name in infos and infos[name].deleted])
        for drafts in windows:  # all at once, for the guard
            self._deleting.update(draft.info.name for draft in drafts)
            self._submit(drafts)

    # --- results

    def _downloaded(self, jobs: list[Job]) -> None:
        self._submit([Draft(self.fid, job.info, job.extents(), made_on=job.made_on) for job in jobs])
        self.claims.fetched(job.content for job in jobs)
        for job in jobs:
            self._saved_at.pop(job.id, None)
        self._progress.set()

    def _job_failed(self, job: Job, reason: str) -> None:
        self._fail(job.info.name, reason)
        self._active.discard(job.info.name)
        self._saved_at.pop(job.id, None)
        self._progress.set()

    def _submit(self, drafts: Sequence[Draft]) -> None:
        """Queues drafts for the next commit, in the order of the calls."""
        if drafts:
            outcomes = self._store.submit([DraftSet(SetKind.SINGLE, (draft,)) for draft in drafts])
            self._spawn(self._await_commit(drafts, outcomes), "commit")

    async def _await_commit(self, drafts: Sequence[Draft], decided: asyncio.Future[list[Outcome]]) -> None:
        """What was not committed is looked at again, and tried again with the retries."""
        try:
            outcomes = await decided
        except StnodeError as exc:
            for draft in drafts:
                self._fail(draft.info.name, exc.message)
        else:
            for draft, outcome in zip(drafts, outcomes, strict=True):
                if draft.info.name not in outcome.names:
                    self._stale.add(draft.info.name)
                if outcome.status is Status.RETRY_UPLOAD:  # else the same blocks would be found again, in the same pack
                    self._store.packlists.forget_pending(extent[0] for extent in draft.extents if extent[0] < 0)
                if outcome.status in (Status.CONFLICT, Status.RETRY_UPLOAD):
                    self._fail(draft.info.name, outcome.reason)
        self._settled.update(draft.info.name for draft in drafts)
        self._recheck_wake.set()

    def _save_partial(self, job: Job) -> None:
        """Keeps what a long download has in the store, so that a restart or a sibling goes on from there (R9)."""
        now = self._env.clock.monotonic()
        if now - self._saved_at.setdefault(job.id, now) >= _PARTIAL_EVERY_S or job.aborted:
            self._saved_at[job.id] = now
            self._spawn(self._commit_partial(job), "partial")

    async def _commit_partial(self, job: Job) -> None:
        try:
            await self._store.submit_partial(self.fid, job.info, job.known_runs(), job.made_on)
        except StnodeError as exc:
            _log.warning("partial file not kept", folder=self.settings.folder_id, file=job.info.name, error=exc.message)
