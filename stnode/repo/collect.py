"""Collection of garbage by itself: when a pass is due, on which node, and what a pass does in which order (design 7; R2, R3, R10, R27).

A pass: end partial files and old deleted records; retire relocations and condemn packs that nothing needs; repack; condemn old checkpoints; delete
what was condemned long enough ago; find orphans, delete those below the horizon, raise it. Every step is a few commits of its own or
deletions that can be repeated, so a pass may be killed anywhere and another one begun on any node. Two nodes that do it at once
only ask the store twice. Correctness is in the entries (`collect_entries.py`) and in the rules of void commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from sqlite3 import Connection
from typing import Final

from stnode.clock import Env, Tasks
from stnode.db import Database
from stnode.errors import Conflict, Internal, Refused, StnodeError, Unavailable
from stnode.objectstore.base import ObjectStore
from stnode.repo import collect_absence, history, layout, state
from stnode.repo.collect_entries import (
    NothingDue,
    condemn_objects,
    condemn_packs,
    expire,
    raise_horizon,
    repack,
    report_gone,
    retire_relocations,
)
from stnode.repo.collect_marks import MarkPass, Marks
from stnode.repo.collect_repack import Copier, Group, worth_repacking
from stnode.repo.collect_sweep import Sweeper, Swept
from stnode.repo.collectreport import CollectStatus, GcReport
from stnode.repo.packer import Packer
from stnode.repo.packlist import PackLists
from stnode.repo.parameters import DAY_S
from stnode.repo.parameters import Collection as Patience
from stnode.repo.proposal import Entries
from stnode.repo.records import Applied
from stnode.repo.throttle import Throttle, Throttled
from stnode.telemetry import get_logger

LONGEST_INTERVAL_S: Final = 6 * 3600.0
SHORTEST_INTERVAL_S: Final = 5.0
INTERVALS_PER_AGE: Final = 4
"""So many passes in the shorter of orphan age and grace."""
RETRY_S: Final = 600.0
DENIED_RETRY_S: Final = float(DAY_S)
"""After the store refused a deletion it is asked again this much later (Object Lock, missing rights)."""
CLOCKS_APART_S: Final = 3600.0
PARTIAL_AGE_US: Final = 14 * DAY_S * 1_000_000
TOMBSTONE_AGE_US: Final = 487 * DAY_S * 1_000_000
"""16 months; Syncthing 2 forgets after 15."""
COMMITS_PER_STEP: Final = 1000

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """At most so many requests and bytes per second; 0 is no bound."""

    requests_per_s: float = 50.0
    bytes_per_s: float = 32 << 20


@dataclass(slots=True)
class Hooks:
    """What others say, each with an answer for when nobody does. `left_to`: the name of the node that collects, "" for this one.
    `present`: devices that are connected with any node of the store."""

    left_to: Callable[[], str] = lambda: ""
    present: Callable[[], Collection[bytes]] = tuple


Submit = Callable[[Entries, frozenset[int]], Awaitable[int]]


@dataclass(slots=True)
class _Parts:
    """What a pass works with. `marked_head` is the commit at which the last pass found nothing more to repack."""

    db: Database
    env: Env
    packer: Packer
    submit: Submit
    patience: Callable[[], Patience]
    sweeper: Sweeper
    copier: Copier
    hooks: Hooks
    marked_head: int = -1


class Collector:
    """`submit` puts entries into a commit, `confirm` follows to the head of the journal, `store_time_us` is its time, `patience` says the
    store's times, `suspect` hears of packs that cannot be read. Only `start` runs it by itself; `collect` is one pass for whoever asks."""

    def __init__(
        self,
        objects: ObjectStore,
        db: Database,
        env: Env,
        packer: Packer,
        packlists: PackLists,
        submit: Submit,
        confirm: Callable[[], Awaitable[None]],
        store_time_us: Callable[[], int],
        patience: Callable[[], Patience],
        suspect: Callable[[int], None],
        options: CollectOptions | None = None,
    ) -> None:
        options = options or CollectOptions()
        throttle = Throttle(env.clock, options.requests_per_s, options.bytes_per_s)
        throttled = Throttled(objects, throttle)
        self.hooks = Hooks()
        self.status = CollectStatus()
        self._env = env
        self._patience = patience
        self._follow = confirm
        self._rebuilt = self._rebuilt_before = 0
        self._parts = _Parts(
            db,
            env,
            packer,
            submit,
            patience,
            Sweeper(throttled, db, env, self._confirm, store_time_us),
            Copier(throttled, env, packer, packlists, throttle, suspect),
            self.hooks,
        )
        self._one_at_a_time = asyncio.Lock()
        self._denied_until_s = float("-inf")
        self._tasks = Tasks(env, self._crashed)

    # ---- by itself ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Runs until `close`."""
        self._tasks.spawn(self._run(), "collect")

    async def close(self) -> None:
        """Stops at once."""
        await self._tasks.close()

    def applied(self, applied: Applied) -> None:
        """Hears of every commit."""
        self._rebuilt += applied.restored

    async def _confirm(self) -> None:
        """Returns when the state is that of the store's head, on the history that the pass began on: on another one the bucket was put
        back to, what the pass has found may be needed."""
        await self._follow()
        if self._rebuilt != self._rebuilt_before:
            raise Conflict("this node's state was rebuilt while garbage was collected: what was found means nothing", hint="run it again")

    def interval_s(self) -> float:
        """Between two passes."""
        patience = self._patience()
        return min(LONGEST_INTERVAL_S, max(SHORTEST_INTERVAL_S, min(patience.orphan_age_s, patience.grace_s) / INTERVALS_PER_AGE))

    async def _run(self) -> None:
        wait_s = self._env.random.uniform(0.1, 0.5) * min(self.interval_s(), RETRY_S)
        while True:
            await self._env.clock.sleep(wait_s)
            wait_s = self.interval_s() * self._env.random.uniform(0.9, 1.1)
            left_to = self.hooks.left_to()
            if left_to:
                self.status = replace(self.status, left_to=left_to, trouble="", hint="")
                continue
            try:
                await self.collect()
            except Internal:
                raise
            except StnodeError as exc:
                self._failed(exc)
                wait_s = min(wait_s, RETRY_S)

    def _failed(self, exc: StnodeError) -> None:
        if exc.message != self.status.trouble and not isinstance(exc, (Unavailable, Conflict)):
            log.error("garbage cannot be collected", kind=exc.kind, error=exc.message, hint=exc.hint)
        self.status = replace(self.status, left_to="", trouble=exc.message, hint=exc.hint)

    def _crashed(self, name: str, exc: Exception) -> None:
        """A bug: the store grows, but nothing is lost; the node goes on and says so until it is started again."""
        log.error("collection ended by a bug", task=name, exc_info=exc)
        self.status = replace(self.status, trouble=f"a bug has ended this until the node is started again: {exc!r}")

    # ---- one pass -----------------------------------------------------------------------------------------------------

    async def collect(self, *, dry_run: bool = False, insist: bool = False) -> GcReport:
        """One pass; with `dry_run` only looks. `insist` asks a store that has refused a deletion again. Raises Unavailable, Refused
        when the clocks are too far apart, Corrupt for what in the store cannot be read."""
        async with self._one_at_a_time:
            await self._follow()
            self._rebuilt_before = self._rebuilt
            work = _Pass(
                self._parts, dry_run=dry_run, insist=insist, may_delete=insist or self._env.clock.monotonic() >= self._denied_until_s
            )
            report = await work.run()
            if not dry_run:
                self._note(report, work)
            return report

    def _note(self, report: GcReport, work: _Pass) -> None:
        old = self.status
        if work.denied:
            self._denied_until_s = self._env.clock.monotonic() + DENIED_RETRY_S
        elif work.may_delete:
            self._denied_until_s = float("-inf")
        told = report.problems[0] if report.problems else old.trouble if not work.may_delete else ""
        if told and told != old.trouble:
            log.warning("garbage cannot be collected", problems=report.problems)
        if report.bytes_freed or report.packs_condemned or report.packs_repacked:
            log.info(
                "garbage collected",
                freed=report.bytes_freed,
                deleted=report.objects_deleted,
                condemned=report.packs_condemned,
                repacked=report.packs_repacked,
            )
        self.status = CollectStatus(
            last_pass_s=self._env.clock.now_ns() / 1e9,
            freed_bytes=old.freed_bytes + report.bytes_freed,
            deleted_objects=old.deleted_objects + report.objects_deleted,
            packs_repacked=old.packs_repacked + report.packs_repacked,
            waiting_bytes=report.condemned_bytes + report.orphan_bytes,
            next_deletion_s=report.next_deletion_s,
            trouble=told,
            hint="give the node's credentials the right to delete, or remove the bucket's Object Lock" if work.denied else "",
            tombstones_held_by=work.held_by,
        )


class _Pass:
    """One pass."""

    def __init__(self, parts: _Parts, *, dry_run: bool, insist: bool, may_delete: bool) -> None:
        self.may_delete = may_delete and not dry_run
        self.denied = False
        self.held_by = ""
        self._c = parts
        self._look = dry_run or insist
        self._dry_run = dry_run
        self._report = GcReport(dry_run, 0)

    async def run(self) -> GcReport:
        c = self._c
        now_us = await c.sweeper.now_us()
        apart_s = abs(now_us / 1e6 - c.env.clock.now_ns() / 1e9)
        if apart_s > CLOCKS_APART_S:
            raise Refused(
                f"this node's clock and the store's are {apart_s / 3600:.1f} hours apart: nothing is deleted meanwhile",
                hint="set the clock of this machine",
            )
        young_us = now_us - c.patience().orphan_age_us
        if not self._dry_run:
            await self._expire(now_us)
            self._add(packs_condemned=await self._condemn(young_us))
        await self._repack(young_us)
        if not self._dry_run:
            await self._commit(retire_relocations)
            if keys := await c.sweeper.old_checkpoints():
                await self._commit(condemn_objects(keys))
        await self._sweep()
        head = await c.db.run(state.head)
        return replace(self._report, head=head.number)

    def _add(self, **changes: int) -> None:
        self._report = replace(self._report, **{name: getattr(self._report, name) + change for name, change in changes.items()})

    async def _commit(self, make: Entries, handles: frozenset[int] = frozenset()) -> bool:
        """Whether there was something to say."""
        try:
            await self._c.submit(make, handles)
        except NothingDue:
            return False
        self._add(commits=1)
        return True

    async def _expire(self, now_us: int) -> None:
        below_us = now_us - TOMBSTONE_AGE_US
        await self._c.db.migrate(collect_absence.LAYER, collect_absence.STEPS)
        absent = await self._c.db.write(partial(collect_absence.longest_absent, present=self._c.hooks.present(), now_us=now_us))
        if absent is not None and absent.seen_us < below_us:
            below_us = absent.seen_us
            self.held_by = absent.name
        await self._commit(expire(now_us - PARTIAL_AGE_US, below_us))

        async def submit(make: Entries) -> int:
            number = await self._c.submit(make, frozenset())
            self._add(commits=1)
            return number

        await history.expire(self._c.db, submit, now_us)

    async def _condemn(self, young_us: int) -> int:
        """Packs that nothing refers to; how many."""
        c = self._c

        def count(conn: Connection) -> int:
            found: int = conn.execute("SELECT count(*) FROM packs WHERE condemned > 0").fetchone()[0]
            return found

        before = await c.db.run(count)
        for _ in range(COMMITS_PER_STEP):
            if not await self._commit(condemn_packs(young_us)):
                break
        return max(0, await c.db.run(count) - before)

    # ---- repacking ----------------------------------------------------------------------------------------------------

    async def _repack(self, young_us: int) -> None:
        c = self._c
        head = (await c.db.run(state.head)).number
        if head == c.marked_head and not self._look:
            return
        packs, marks = await self._mark()
        self._figures(packs, marks, young_us)
        groups = worth_repacking(packs, marks, c.packer.options.target_bytes, c.packer.options.max_blocks, young_us)
        self._add(
            repack_packs=sum(map(len, groups)),
            repack_frees_bytes=sum(worth.pack.size_bytes - worth.wanted_bytes for group in groups for worth in group),
        )
        if self._dry_run:
            return
        for group in groups:
            await self._repack_group(group)
        # Packs that are young now may be worth it later though no commit comes: then the next pass looks again. It does, too, where there
        # was something to repack: some may have been left alone. What was committed during this pass it has not seen.
        settled = not groups and all(layout.minted_us(pack.id) < young_us for pack in packs)
        c.marked_head = head if settled else -1

    async def _repack_group(self, group: Group) -> None:
        copied = await self._c.copier.copy(group)
        done: list[int] = []

        def told(packs: Collection[int]) -> None:
            done[:] = packs

        if copied.moves and await self._commit(repack(copied, told), copied.handles):
            self._add(packs_repacked=len(done))

    async def _mark(self) -> tuple[list[state.Pack], dict[int, Marks]]:
        """The pass over all extents, in a snapshot: commits go on beside it."""
        work = MarkPass()
        async with self._c.db.snapshot() as snapshot:
            packs = await snapshot.run(state.all_packs)
            while await snapshot.run(work.step):
                await self._c.env.clock.sleep(0.01)
        return packs, work.packs

    def _figures(self, packs: list[state.Pack], marks: dict[int, Marks], young_us: int) -> None:
        live = history = dead = 0
        for pack in packs:
            found = marks.get(pack.number, _NOTHING)
            if pack.condemned or pack.lost:
                continue
            current, kept = min(int(found.current_bytes), pack.size_bytes), min(int(found.kept_bytes), pack.size_bytes)
            live, history, dead = live + current, history + kept - current, dead + pack.size_bytes - kept
        nobodys = [p for p in packs if not p.condemned and p.number not in marks and layout.minted_us(p.id) < young_us]
        self._add(
            live_bytes=live,
            history_bytes=history,
            dead_bytes=dead,
            unwanted_packs=len(nobodys),
            unwanted_bytes=sum(pack.size_bytes for pack in nobodys),
        )

    # ---- deleting -----------------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        c = self._c
        patience = c.patience()

        async def report(packs: Mapping[int, str], keys: Sequence[str]) -> None:
            await self._commit(report_gone(packs, keys))

        swept = await c.sweeper.condemned(patience, report if self.may_delete else None)
        packs, objects = await c.db.run(state.condemned)
        self._add(condemned_packs=len(packs), condemned_objects=len(objects), condemned_bytes=swept.waiting_bytes)
        self._take(swept)
        orphans = await c.sweeper.orphans(patience, delete=self.may_delete and not self.denied)
        self._add(orphans=orphans.waiting, orphan_bytes=orphans.waiting_bytes)
        self._take(orphans)
        if orphans.raise_to_us and not self._dry_run:
            await self._commit(raise_horizon(orphans.raise_to_us))

    def _take(self, swept: Swept) -> None:
        self._add(objects_deleted=swept.deleted, bytes_freed=swept.freed_bytes)
        self.denied = self.denied or swept.denied
        problems = (*self._report.problems, *swept.problems)
        due_s = swept.due_us / 1e6 if swept.due_us is not None else None
        known = [each for each in (self._report.next_deletion_s, due_s) if each is not None]
        self._report = replace(self._report, problems=problems, next_deletion_s=min(known, default=None))


_NOTHING: Final = Marks()
