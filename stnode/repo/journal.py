"""The journal of a store, as the node sees it: one owner task that follows it and commits to it, one thing at a time.

Everything else talks to it through this class, on the event loop: `submit` and `submit_entries` queue, `follow_to_head`
makes it look now, `subscribe` hears of every commit after its SQLite transaction.

    idle --look due, somebody waits for the head--> following --absent--> idle
    idle --group due--> committing (committer.py) --everybody told--> idle
    any --the store does not answer, or what it has cannot be used--> idle, trouble noted, tried again later

`PendingPacks` (proposal.py) is what it wants of the packer.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from sqlite3 import Connection
from typing import Final

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Conflict, Corrupt, Internal, NotFound, Refused, StnodeError, Unavailable
from stnode.objectstore.base import ObjectStore
from stnode.protocol.deviceid import DeviceID
from stnode.repo import state
from stnode.repo.codec import Body
from stnode.repo.committer import RESTORED, Committer, Counts, Group
from stnode.repo.follower import CheckStore, Follower, Restore
from stnode.repo.guard import DeletionGuard, PendingDeletions
from stnode.repo.pacing import CommitPace, LookPace
from stnode.repo.proposal import Announced, Entries, EntryWish, PackTable, PendingPacks, Wish
from stnode.repo.records import Applied, DraftSet, Outcome, Status
from stnode.repo.slots import AnotherProcess, TwoNames
from stnode.telemetry import get_logger

__all__ = ["Journal", "JournalStatus", "PendingPacks"]

CONFIRM_LOOKS: Final = 40
"""Every so many looks that found nothing, the own head is looked at too: else an idle node never notices a bucket put back behind it."""

REJECTED: Final = "the deletion was rejected"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JournalOptions:
    """When a group is full: this many records, or about this many bytes of body. The design's bound is 10,000 records; half of it keeps
    what the event loop does for a group at one go well below 50 ms, and is still many times what is ever pulled in a second."""

    group_records: int = 5_000
    group_bytes: int = 8 << 20


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """`looked_s` and `trouble_s` are seconds since the last look that reached the head and since trouble began (None: never, none).
    `trouble` is the error's message and `hint` what the user does; `contended`: other nodes commit too. `index_ids_due`: the bucket was
    put back and peers have not been told yet."""

    number: int
    store_time_us: int
    looked_s: float | None
    trouble: str
    hint: str
    kind: str
    trouble_s: float | None
    waiting: int
    contended: bool
    index_ids_due: bool
    counts: Counts


class _Submission:
    """One `submit`: its future is done when every set of it is."""

    def __init__(self, future: asyncio.Future[list[Outcome]], count: int) -> None:
        self._future = future
        self._outcomes: list[Outcome | None] = [None] * count
        self._left = count

    def settle(self, index: int, status: Status, names: Sequence[str], sequences: Sequence[int], reason: str) -> None:
        self._outcomes[index] = Outcome(status, tuple(names), tuple(sequences), reason)
        self._left -= 1
        if self._left == 0 and not self._future.done():
            self._future.set_result([outcome for outcome in self._outcomes if outcome is not None])

    def fail(self, error: StnodeError) -> None:
        if not self._future.done():
            self._future.set_exception(error)


class Journal:
    """`writer` is (device ID, random number of this process); `check_store` raises when the bucket holds another store now;
    `announced` is asked in the database's thread (proposal.Announced); `alone`: nobody else may commit (`slots.py`), and who does ends this
    journal."""

    def __init__(
        self,
        objects: ObjectStore,
        db: Database,
        env: Env,
        writer: tuple[DeviceID, int],
        packs: PendingPacks,
        restore: Restore,
        check_store: CheckStore,
        announced: Announced,
        options: JournalOptions | None = None,
        *,
        alone: bool = False,
    ) -> None:
        self._env = env
        self._options = options or JournalOptions()
        self._packs = packs
        self._alone = alone
        self._guard = DeletionGuard()
        self._follower = Follower(objects, db, env, writer, restore, check_store, self._on_applied)
        self._committer = Committer(
            objects, db, env, self._follower, packs, self._guard, *writer, announced, self._fail_followers, self._queue
        )
        self._pace = CommitPace()
        self._look = LookPace()
        self._wishes: deque[Wish] = deque()
        self._entries: deque[EntryWish] = deque()
        self._queued_records = self._queued_bytes = 0
        self._queued_deletions: Counter[int] = Counter()
        self._first_s = 0.0
        self._group: Group | None = None
        self._renewing = self._renewed = False
        self._histories = 0
        self._doubted = False
        self._subscribers: list[Callable[[Applied], None]] = []
        self._followers: list[asyncio.Future[None]] = []
        self._submissions: set[_Submission] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ended_by_itself = asyncio.Event()
        self._broken: StnodeError | None = None
        self._trouble: StnodeError | None = None
        self._trouble_since_s = 0.0
        self._looked_s: float | None = None
        self._looks = 0
        self._next_look_s = 0.0
        self._hinted = 0

    # ---- for the node -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Restores or checks what is cached, follows to the head, and goes on from there in a task until `close`."""
        await self._follower.start()
        self._follower.alone = self._alone
        self._looked()
        self._task = self._env.spawn(self._run(), "journal")
        self._task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Stops at once. What was submitted and not answered fails with Unavailable; it may have been committed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._break(Unavailable("the store is closed"))

    async def stopped(self) -> StnodeError:
        """Waits until the journal has ended by itself, which it never gets over, and says why: a bug, or another process at work on the store
        of a single node."""
        await self._ended_by_itself.wait()
        assert self._broken is not None
        return self._broken

    def submit(self, sets: Sequence[DraftSet]) -> asyncio.Future[list[Outcome]]:
        """Queues sets; the future gives an outcome for each, in order, when all are decided. It fails only with the journal."""
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        if self._broken is not None:
            future.set_exception(self._broken)
        elif not sets:
            future.set_result([])
        else:
            submission = _Submission(future, len(sets))
            self._submissions.add(submission)
            future.add_done_callback(lambda _: self._submissions.discard(submission))
            wishes = [Wish(each, partial(submission.settle, index)) for index, each in enumerate(sets)]
            current = (None, self.histories)
            self._give_back([wish for wish in wishes if any(draft.made_on not in current for draft in wish.wanted.drafts)])
            self._queue([wish for wish in wishes if all(draft.made_on in current for draft in wish.wanted.drafts)])
        return future

    def submit_entries(self, make: Entries, handles: frozenset[int] = frozenset(), made_on: int | None = None) -> asyncio.Future[int]:
        """Queues other entries: the future gives the number of their commit. It fails with what `make` raises, and with Conflict when
        they were `made_on` another history."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def done(result: int | StnodeError) -> None:
            if future.done():
                return
            if isinstance(result, int):
                future.set_result(result)
            else:
                future.set_exception(result)

        if self._broken is not None:
            future.set_exception(self._broken)
        elif made_on not in (None, self.histories):
            future.set_exception(Conflict(RESTORED))
        else:
            self._queue_entries(EntryWish(make, done, handles))
        return future

    def subscribe(self, callback: Callable[[Applied], None]) -> None:
        """`callback` hears of every commit applied here, in order, after its transaction; it must not wait."""
        self._subscribers.append(callback)

    async def follow_to_head(self) -> None:
        """Returns when all commits that existed at the call are applied here. Raises Unavailable and what following finds wrong."""
        if self._broken is not None:
            raise self._broken
        if self._committer.trouble:
            raise Unavailable(self._committer.trouble)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._followers.append(future)
        self._wake.set()
        await future

    async def confirm_head(self) -> None:
        """`follow_to_head`, and looks at the own head's slot even if it was seen a moment ago: what is deleted on the strength of a state
        must not rest on one that the bucket was put back behind."""
        self._doubted = True
        await self.follow_to_head()

    def hint(self, number: int) -> None:
        """Somebody says that commit `number` exists: looks soon, as far as earlier hints have earned it."""
        if number > max(self._hinted, self._follower.head.number):
            self._hinted = number
            self._wake.set()

    def pending_deletions(self) -> list[PendingDeletions]:
        """Mass deletions that wait for `confirm_deletions` or for their hour."""
        return self._guard.pending()

    def confirm_deletions(self, fid: int) -> None:
        """Lets the deletions of a folder go on, those that wait and those of the next hour."""
        self._queue(self._guard.confirm(fid, self._env.clock.monotonic()))

    def held_deletions(self, fid: int) -> list[DraftSet]:
        """The deletions of a folder that wait."""
        return [wish.wanted for wish in self._guard.held(fid)]

    def reject_deletions(self, fid: int) -> None:
        """Gives them up: local ones get Conflict, those of devices are dropped."""
        for wish in self._guard.take(fid):
            local = any(draft.local for draft in wish.wanted.drafts)
            wish.settle(Status.CONFLICT if local else Status.DROPPED, (), (), REJECTED)

    def store_time_us(self) -> int:
        """Store time as commits carry it."""
        return self._follower.store_time_us()

    def upload_time_us(self) -> int:
        """Store time as object ids carry it."""
        return self._follower.upload_time_us()

    @property
    def histories(self) -> int:
        """How often the state was rebuilt on another history."""
        return self._follower.histories

    @property
    def fkeys(self) -> Mapping[int, str]:
        """Key parts of the folders that exist, by number."""
        return self._follower.fkeys

    def status(self) -> JournalStatus:
        """How it stands."""
        now = self._env.clock.monotonic()
        trouble = self._trouble
        message = trouble.message if trouble else self._committer.trouble
        return JournalStatus(
            number=self._follower.head.number,
            store_time_us=self.store_time_us(),
            looked_s=None if self._looked_s is None else now - self._looked_s,
            trouble=message,
            hint=trouble.hint if trouble else "",
            kind=trouble.kind if trouble else "unavailable" if message else "",
            trouble_s=now - self._trouble_since_s if trouble else 0.0 if message else None,
            waiting=len(self._wishes) + (len(self._group.wishes) if self._group else 0),
            contended=self._pace.contended(now),
            index_ids_due=self._follower.new_index_ids_due,
            counts=replace(self._committer.counts),
        )

    # ---- queue --------------------------------------------------------------------------------------------------------

    def _queue(self, wishes: Sequence[Wish]) -> None:
        if not wishes:
            return
        self._first()
        self._wishes.extend(wishes)
        self._queued_records += sum(wish.records for wish in wishes)
        self._queued_bytes += sum(wish.size_bytes for wish in wishes)
        for wish in wishes:
            if wish.deleted_files:
                self._queued_deletions.update(wish.deleted_files)
        self._wake.set()

    def _queue_entries(self, entry: EntryWish) -> None:
        self._first()
        self._entries.append(entry)
        self._wake.set()

    def _first(self) -> None:
        if not self._wishes and not self._entries:
            self._first_s = self._env.clock.monotonic()

    def _full(self) -> bool:
        return self._queued_records >= self._options.group_records or self._queued_bytes >= self._options.group_bytes

    def _due(self) -> float:
        """When the next group starts; infinity if nothing waits."""
        if not self._wishes and not self._entries:
            return float("inf")
        return self._pace.due(self._first_s, full=self._full(), now=self._env.clock.monotonic())

    def _take(self) -> Group:
        """Closes the group: at least one set, then as many as fit."""
        wishes: list[Wish] = []
        records = size = 0
        while self._wishes and (not wishes or (records < self._options.group_records and size < self._options.group_bytes)):
            wish = self._wishes.popleft()
            wishes.append(wish)
            records += wish.records
            size += wish.size_bytes
            if wish.deleted_files:
                self._queued_deletions.subtract(wish.deleted_files)
        self._queued_records -= records
        self._queued_bytes -= size
        entries = list(self._entries)
        self._entries.clear()
        now = self._env.clock.monotonic()
        group = Group(wishes, entries, self._first_s, self._follower.histories, dict(self._queued_deletions))
        self._first_s = now
        self._pace.started(now)
        return group

    def _look_due(self) -> float:
        """When the next slot is looked at."""
        if self._hinted > self._follower.head.number and self._trouble is None:
            return min(self._next_look_s, self._look.hint_due())
        return self._next_look_s

    # ---- the owner task -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._sleep()
            try:
                await self._step()
            except (TwoNames, AnotherProcess):
                raise  # whoever goes on after this gets into the other's way
            except (Unavailable, Corrupt, Refused, NotFound) as exc:
                self._failed(exc)  # any other kind is a bug and ends the task

    async def _sleep(self) -> None:
        """Until there is something to do."""
        while True:
            self._wake.clear()
            now = self._env.clock.monotonic()
            until = min(self._look_due(), self._guard.next_due())
            if self._trouble is None:
                until = min(until, now if self._group is not None else self._due())
            if until <= now or self._followers:
                return
            try:
                async with asyncio.timeout(until - now):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _step(self) -> None:
        now = self._env.clock.monotonic()
        self._queue(self._guard.due(now))
        if self._trouble is not None or self._followers or now >= self._look_due():
            await self._follow()
        self._renew_index_ids()
        now = self._env.clock.monotonic()
        if self._group is None and self._due() <= now:
            self._group = self._take()
        if self._group is not None:
            try:
                await self._committer.commit(self._group)
            finally:
                self._committer.trouble = ""  # from here on it is the journal's
            upload_s, self._group = self._group.upload_s, None
            if self._renewed:
                self._renewed = False
                await self._follower.index_ids_renewed()
            self._pace.won(self._env.clock.monotonic(), upload_s)
            self._looked()
            self._look.news()
            self._next_look_s = self._env.clock.monotonic() + self._look.wait_s

    async def _follow(self) -> None:
        waiting, self._followers = self._followers, []
        self._looks += 1
        hinted = self._hinted > self._follower.head.number
        doubted, self._doubted = self._doubted, False
        try:
            if doubted or (self._follower.silent() and (waiting or self._looks % CONFIRM_LOOKS == 0)):
                await self._follower.check_head()
            news = await self._follower.catch_up()
        except BaseException as exc:
            error = exc if isinstance(exc, StnodeError) else Unavailable("the store is closed")
            for future in waiting:
                if not future.done():
                    future.set_exception(error)
            raise
        for future in waiting:
            if not future.done():
                future.set_result(None)
        if hinted:
            self._look.hint_followed(self._env.clock.monotonic(), led_to_news=bool(news))
            self._hinted = 0
        if news:
            self._look.news()
        else:
            self._look.nothing()
        self._looked()
        self._next_look_s = self._env.clock.monotonic() + self._look.wait_s

    def _looked(self) -> None:
        self._looked_s = self._env.clock.monotonic()
        self._trouble = None

    def _failed(self, exc: StnodeError) -> None:
        """The store or what is in it cannot be used now: noted, and tried again later."""
        now = self._env.clock.monotonic()
        if self._trouble is None:
            self._trouble_since_s = now
            log.warning("the journal cannot go on", kind=exc.kind, error=exc.message, hint=exc.hint)
        self._trouble = exc
        self._fail_followers(exc)
        self._look.failed()
        asked_s = (exc.retry_after_s or 0.0) if isinstance(exc, Unavailable) else 0.0
        self._next_look_s = now + max(self._look.wait_s, asked_s)

    def _fail_followers(self, exc: StnodeError) -> None:
        for future in self._followers:
            if not future.done():
                future.set_exception(exc)
        self._followers.clear()

    def _renew_index_ids(self) -> None:
        """After a bucket was put back: every folder gets a new index ID before anything else is committed (invariant 7)."""
        if not self._follower.new_index_ids_due or self._renewing:
            return
        self._renewing = True
        ids = self._env.random

        def make(conn: Connection, _packs: PackTable) -> Body:
            return Body(folders=tuple(replace(folder.settings, index_id=ids.uint64()) for folder in state.folders(conn)))

        def done(result: int | StnodeError) -> None:
            self._renewing = False
            self._renewed = isinstance(result, int)

        self._queue_entries(EntryWish(make, done))

    def _on_applied(self, applied: Applied) -> None:
        now = self._env.clock.monotonic()
        if applied.restored:
            self._on_restored()
        elif not applied.own:
            self._pace.foreign(now, self._follower.last_writer)
        for fid, changed in applied.folders.items():
            self._queue(self._guard.overtaken(fid, changed.names))
        for callback in tuple(self._subscribers):
            callback(applied)

    def _on_restored(self) -> None:
        """The bucket was put back: what was made on the lost history is given back. (The group under way is the committer's.)"""
        if self._histories != self._follower.histories:
            self._histories = self._follower.histories
            self._packs.unregister()
            wishes = [*self._wishes, *self._guard.take_all()]
            self._wishes.clear()
            self._queued_records = self._queued_bytes = 0
            self._queued_deletions.clear()
            self._give_back(wishes)
            entries = [*self._entries]
            self._entries.clear()
            for entry in entries:
                entry.done(Conflict(RESTORED))

    def _give_back(self, wishes: Sequence[Wish]) -> None:
        for wish in wishes:
            wish.settle(Status.RETRY_UPLOAD, (), (), RESTORED)

    # ---- the end ------------------------------------------------------------------------------------------------------

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that ended by itself does not come back: nobody waits for it in vain."""
        if task.cancelled():
            return
        exc = task.exception()
        error = exc if isinstance(exc, StnodeError) else Internal(f"the journal has stopped: {exc!r}")
        log.error("the journal has stopped", error=str(exc), exc_info=None if isinstance(exc, StnodeError) else exc)
        self._break(error)
        self._ended_by_itself.set()

    def _break(self, error: StnodeError) -> None:
        self._broken = self._broken or error
        self._fail_followers(error)
        for submission in tuple(self._submissions):
            submission.fail(error)
        entries = [*self._entries, *(self._group.entries if self._group else ())]
        self._entries.clear()
        self._wishes.clear()
        for entry in entries:
            entry.done(error)
