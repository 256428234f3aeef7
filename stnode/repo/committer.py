"""Gets a group into the journal: judge, number, upload a large body, create the next slot, three outcomes (design 5).

Called by the journal's owner task only. Rules that must not be lost in a rewrite, with what breaks without them:
- every try follows a look that found the next slot absent, so that lost creates stay rare (R17);
- an unknown outcome is settled by reading the slot; absent: the same slot with the same bytes again. A new write id would be
  refused by its own predecessor arriving late, and the group would be committed twice;
- a body or pack that was uploaded more than a minute ago is looked at before a slot names it: the bucket may have been put back to
  before the upload, and where no commit of ours is lost with it nothing else would show that;
- nothing is cleaned up after an unknown outcome: the lost request may still be on its way;
- an attempt whose outcome is still open when an error ends the work (`Group.open`) goes on with the same bytes; when the journal has
  moved on meanwhile, what it wrote is recognised in the state by its versions before the group is judged again: else a local
  change would be written a second time over what others built on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from sqlite3 import Connection
from typing import Final, assert_never

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Conflict, Corrupt, Internal, NotFound, StnodeError, Unavailable
from stnode.objectstore.base import Exists, Mode, ObjectStore
from stnode.protocol.deviceid import DeviceID, short_id
from stnode.repo import layout
from stnode.repo.codec import (
    EMPTY,
    MAX_SLOT_BYTES,
    Body,
    BodyRef,
    BodySet,
    Section,
    Slot,
    Stub,
    content,
    decode_slot,
    encode_body,
    encode_slot,
    slot_sha,
)
from stnode.repo.follower import READS_BEFORE_DAMAGE, Commit, Follower
from stnode.repo.guard import DeletionGuard
from stnode.repo.judge import ALREADY_THERE
from stnode.repo.pacing import backoff_s
from stnode.repo.packer import PendingPack
from stnode.repo.proposal import Announced, EntryWish, PendingPacks, Proposal, Setting, Wish, covered, propose
from stnode.repo.records import Applied, HistoryRule, Status
from stnode.telemetry import get_logger

FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 15.0
INLINE_BYTES: Final = MAX_SLOT_BYTES - 2048
"""Encoded bodies up to this size lie in the slot; the rest is room for its own fields and the list of dropped sets."""
VOID_TRIES: Final = 3
TOLD_AT_ONCE: Final = 1000
"""After so many outcomes the event loop gets a turn."""
UNSEEN_S: Final = 60.0
"""An upload is taken for granted this long."""
RESTORED: Final = "the bucket was put back to an earlier state"

log = get_logger(__name__)


class _Result(Enum):
    WON = "won"
    LOST = "lost"
    OPEN = "open"
    """The slot cannot be read, or the head was not confirmed for a minute: following the journal will tell."""


@dataclass(slots=True)
class _Stored:
    """A body that is uploaded: what it holds, and whose set each of its sets is, in its own order."""

    ref: BodyRef
    body: Body
    owners: list[tuple[str, Wish, BodySet]]


@dataclass(slots=True)
class Group:
    """What is committed together. `deletions_behind` are the deletions of files that wait for later groups, by folder: the guard must not
    let a mass deletion through piece by piece. `born_s` is when its first wish came (monotonic); `time_s` the store time of its local vectors, fixed
    at the first judgement so that a lost slot alone does not change the body; `upload_s` what the upload of its body took."""

    wishes: list[Wish]
    entries: list[EntryWish]
    born_s: float
    histories: int
    deletions_behind: Mapping[int, int] = field(default_factory=dict)
    time_s: int = 0
    losses: int = 0
    voids: int = 0
    upload_s: float = 0.0
    stored: _Stored | None = None
    open: _Attempt | None = None

    @property
    def settled(self) -> bool:
        """Whether everybody was told."""
        return not self.wishes and not self.entries


@dataclass(slots=True)
class _Attempt:
    """A proposal as one slot: its content, its bytes, and the sets in the order of their numbers."""

    proposal: Proposal
    commit: Commit
    data: bytes
    order: dict[str, list[tuple[Wish, BodySet]]]


@dataclass(slots=True)
class Counts:
    """Creates of this node by outcome, for status and metrics."""

    won: int = 0
    lost: int = 0
    unknown: int = 0
    void: int = 0
    bodies_uploaded: int = 0
    records: int = 0


@dataclass(slots=True)
class Committer:
    """`trouble` is why the store cannot be written now, "" when it can; `on_trouble` hears of it: while an outcome is unknown nothing else
    is done, so whoever waits for the journal need not."""

    objects: ObjectStore
    db: Database
    env: Env
    follower: Follower
    packs: PendingPacks
    guard: DeletionGuard
    node: DeviceID
    instance: int
    announced: Announced
    on_trouble: Callable[[StnodeError], None]
    requeue: Callable[[Sequence[Wish]], None]
    counts: Counts = field(default_factory=Counts)
    trouble: str = ""
    _seen: dict[str, float] = field(default_factory=dict)
    _gone: set[str] = field(default_factory=set)

    async def commit(self, group: Group) -> None:
        """Returns when everybody in the group was told what became of it, or it was put aside by the guard. An error leaves the group as
        it is, to be tried again: the store or the database cannot do it now."""
        proposal: Proposal | None = None
        follower = self.follower
        while not group.settled:
            if follower.silent():
                await follower.check_head()
            await follower.catch_up()
            self.trouble = ""
            if group.histories != follower.histories:
                self._give_up(group)
                return
            if group.open is not None and group.open.commit.slot.prev != follower.head.slot_sha:
                await self._recognise(group, group.open.proposal)
                continue
            if group.open is None:
                if proposal is None or (proposal.number, proposal.epoch) != (follower.head.number, follower.epoch):
                    proposal = await self._propose(group)
                    if proposal is None:
                        continue
                group.open = await self._attempt(group, proposal)
            if group.open is not None:
                if await self._all_there(group.open.commit):
                    await self._try(group, group.open)
                else:
                    group.open = group.stored = proposal = None

    async def _try(self, group: Group, attempt: _Attempt) -> None:
        result, etag = await self._create(attempt)
        match result:
            case _Result.WON:
                [applied] = await self.follower.apply([replace(attempt.commit, etag=etag)])
                group.open = None
                await self._won(group, attempt, applied)
            case _Result.LOST:
                group.open = None
                group.losses += 1
                self.counts.lost += 1
                age_s = self.env.clock.monotonic() - group.born_s
                await self.env.clock.sleep(backoff_s(group.losses, age_s, self.env.random.uniform(0, 1)))
            case _Result.OPEN:
                pass
            case _ as never:
                assert_never(never)

    async def _all_there(self, commit: Commit) -> bool:
        """Whether the objects that the slot is the first to name are still in the store, asked of those not seen for a minute."""
        slot, body = commit.slot, commit.body or EMPTY
        names = [(layout.pack_key(pack.fkey, pack.id), pack.id) for pack in body.packs_added]
        if slot.stored is not None:
            names.append((layout.body_key(slot.stored.id), slot.stored.id))
        now = self.env.clock.monotonic()
        self._seen = {name: seen for name, seen in self._seen.items() if now - seen < UNSEEN_S}
        young_us = self.follower.upload_time_us() - int(UNSEEN_S * 1_000_000)
        old = [(key, name) for key, name in names if layout.minted_us(name) < young_us and name not in self._seen]
        for key, name in old:
            try:
                self.follower.note_date((await self.objects.head(key)).date_ns)
            except NotFound:
                log.warning("an upload is gone from the store", key=key)
                self._gone.add(name)
                continue
            self._seen[name] = now
        return not any(name in self._gone for _, name in names)

    # ---- what to write ------------------------------------------------------------------------------------------------

    async def _propose(self, group: Group) -> Proposal | None:
        """Judges the group on the present state and settles what will not be written. None when nothing is left or it must be judged again."""
        group.time_s = group.time_s or self.follower.store_time_us() // 1_000_000
        setting = Setting(
            me=short_id(self.node),
            time_s=group.time_s,
            nodes=frozenset(short_id(DeviceID(node)) for node in self.follower.nodes),
            pending=self._pending(group),
            since_us=self.follower.history_since_us,
            announced=self.announced,
            epoch=self.follower.epoch,
            keep=group.stored.body.packs_added if group.stored else (),
        )
        wishes, entries = group.wishes, group.entries
        proposal = await self.db.run(lambda conn: propose(conn, wishes, entries, setting))
        if proposal.number != self.follower.head.number:
            raise Internal(f"the state is at commit {proposal.number}, the journal at {self.follower.head.number}")
        self.packs.registered(proposal.known)
        self._answered(proposal)
        if self._hold(group, proposal):
            return None
        for entry, error in proposal.refused.items():
            group.entries.remove(entry)
            entry.done(error)
        self._settle(group, [(wish, verdict.status, verdict.reason) for wish, verdict in proposal.verdicts.items() if not verdict.records])
        return None if group.settled else proposal

    def _pending(self, group: Group) -> dict[int, PendingPack]:
        handles = {extent[0] for wish in group.wishes for draft in wish.wanted.drafts for extent in draft.extents if extent[0] < 0}
        handles.update(handle for entry in group.entries for handle in entry.handles)
        found: dict[int, PendingPack] = {}
        for handle in handles:
            pack = self.packs.pending(handle)
            if pack.id not in self._gone:
                found[handle] = pack
        return found

    def _answered(self, proposal: Proposal) -> None:
        """Gives deletions back to the queue that wait here while another node was told to commit them. That one of them has been committed
        shows when it is judged again (`DeletionGuard.overtaken`)."""
        done = {
            draft.fid
            for wish, verdict in proposal.verdicts.items()
            for draft in wish.wanted.drafts
            if draft.info.deleted and not draft.local and verdict.reason == ALREADY_THERE and draft.fid in proposal.folders
        }
        now = self.env.clock.monotonic()
        self.requeue([wish for fid in done for wish in self.guard.answered(fid, proposal.folders[fid], now)])

    def _hold(self, group: Group, proposal: Proposal) -> bool:
        """Puts mass deletions aside; whether there were any."""
        now, held = self.env.clock.monotonic(), False
        for fid, (wishes, count) in proposal.deletions().items():
            count += group.deletions_behind.get(fid, 0)
            if self.guard.holds(fid, count, proposal.folders[fid], now):
                if not self.guard.held(fid):
                    log.warning("deletions wait for confirmation", folder=proposal.folders[fid].fkey, files=count)
                self.guard.hold(fid, wishes, now)
                gone = set(wishes)
                group.wishes = [wish for wish in group.wishes if wish not in gone]
                held = True
        return held

    async def _recognise(self, group: Group, doubt: Proposal) -> None:
        """The journal has moved on from where an open attempt stood: settles what the state shows to be committed."""
        group.open = None
        verdicts = {wish: doubt.verdicts[wish] for wish in group.wishes if wish in doubt.verdicts and doubt.verdicts[wish].records}

        def read(conn: Connection) -> dict[Wish, list[int] | None]:
            return {wish: covered(conn, verdict) for wish, verdict in verdicts.items()}

        for wish, sequences in (await self.db.run(read)).items():
            if sequences:
                names = [record.name for record in verdicts[wish].records if record.history is not HistoryRule.ONLY]
                group.wishes.remove(wish)
                wish.settle(Status.COMMITTED, names, sequences, "")

    def _give_up(self, group: Group) -> None:
        """The history that the group was made on is gone: numbers of packs and versions mean nothing any more."""
        self.packs.unregister()
        self._settle(group, [(wish, Status.RETRY_UPLOAD, RESTORED) for wish in group.wishes])
        for entry in group.entries:
            entry.done(Conflict(RESTORED))
        group.entries = []

    def _settle(self, group: Group, results: Sequence[tuple[Wish, Status, str]]) -> None:
        gone = {wish for wish, _, _ in results}
        group.wishes = [wish for wish in group.wishes if wish not in gone]
        for wish, status, reason in results:
            wish.settle(status, (), (), reason)

    # ---- the slot -----------------------------------------------------------------------------------------------------

    async def _attempt(self, group: Group, proposal: Proposal) -> _Attempt | None:
        """The next slot. None when a body was uploaded first: then the journal is looked at again before the create."""
        if group.stored is not None and layout.minted_us(group.stored.ref.id) < self.follower.head.horizon_us:
            group.stored = None
        if group.stored is not None:
            reused = await self.env.threads.run(_reuse, group.stored, proposal)
            if reused is not None:
                dropped, extra = reused
                attempt = self._slot(proposal, group.stored, dropped, extra)
                if attempt is not None:
                    return attempt
            group.stored = None
        encoded = await self.env.threads.run(encode_body, proposal.body)
        if len(encoded) <= INLINE_BYTES:
            attempt = self._slot(proposal, None, (), proposal.body)
            if attempt is not None:
                return attempt
        started_s = self.env.clock.monotonic()
        group.stored = await self._upload(proposal, encoded)
        group.upload_s = self.env.clock.monotonic() - started_s
        return None

    async def _upload(self, proposal: Proposal, encoded: bytes) -> _Stored:
        wait_s = FIRST_RETRY_S
        while True:
            ref = BodyRef(layout.mint(self.follower.upload_time_us(), self.env.random), len(encoded), slot_sha(encoded))
            try:
                result = await self.objects.put(layout.body_key(ref.id), [encoded], Mode.CREATE)
            except (Exists, Unavailable) as exc:  # a name of its own for each try: an orphan is collected some day
                wait_s = await self._wait(exc, wait_s)
                continue
            self.trouble = ""
            self.follower.note_date(result.date_ns)
            self.counts.bodies_uploaded += 1
            return _Stored(ref, proposal.body, _owners(proposal))

    def _slot(self, proposal: Proposal, stored: _Stored | None, dropped: tuple[int, ...], extra: Body) -> _Attempt | None:
        """The slot with its numbers; None if it would be too large."""
        order: dict[str, list[tuple[Wish, BodySet]]] = defaultdict(list)
        if stored is None:
            order.update(proposal.placed)
        else:
            gone = set(dropped)
            for index, (fkey, wish, body_set) in enumerate(stored.owners):
                if index not in gone:
                    order[fkey].append((wish, body_set))
            kept = {(fkey, wish) for fkey, sets in order.items() for wish, _ in sets}
            for fkey, sets in proposal.placed.items():
                order[fkey] += [(wish, body_set) for wish, body_set in sets if (fkey, wish) not in kept]
        time_us = self.follower.store_time_us()
        last = {facts.fkey: facts.last_sequence for facts in proposal.folders.values()}
        head = self.follower.head
        slot = Slot(
            number=head.number + 1,
            prev=head.slot_sha,
            node=self.node,
            instance=self.instance,
            write_id=self.env.random.bytes(16),
            store_time_us=time_us,
            firsts=tuple((fkey, max(last[fkey] + 1, time_us)) for fkey, sets in order.items() if sets),
            stored=stored.ref if stored else None,
            dropped=dropped,
            body=extra,
        )
        try:
            data = encode_slot(slot)
        except Internal:
            return None  # does not fit: the body goes into an object of its own
        body = content(slot, stored.body if stored else None)
        return _Attempt(proposal, Commit(slot, slot_sha(data), "", body), data, dict(order))

    async def _create(self, attempt: _Attempt) -> tuple[_Result, str]:
        """Creates the slot; the outcome and, when won, its ETag. Tries again until that is known or a minute is over."""
        key = layout.slot_key(attempt.commit.slot.number)
        wait_s = FIRST_RETRY_S
        while not self.follower.silent():
            try:
                result = await self.objects.put(key, [attempt.data], Mode.CREATE)
            except Exists:
                pass
            except Unavailable as exc:
                self.counts.unknown += 1
                wait_s = await self._wait(exc, wait_s)
            else:
                self.trouble = ""
                self.follower.note_date(result.date_ns)
                return _Result.WON, result.etag
            found = await self._look(attempt)
            if found is not None:
                return found
            await self.env.clock.sleep(self.env.random.uniform(0, FIRST_RETRY_S))
        return _Result.OPEN, ""  # a long outage: the bucket may have been put back in it

    async def _look(self, attempt: _Attempt) -> tuple[_Result, str] | None:
        """What the slot in the store says of the attempt; None if there is none."""
        key, wait_s, damaged = layout.slot_key(attempt.commit.slot.number), FIRST_RETRY_S, 0
        while damaged < READS_BEFORE_DAMAGE and not self.follower.silent():
            try:
                blob = await self.objects.get(key)
            except NotFound:
                return None
            except Unavailable as exc:
                wait_s = await self._wait(exc, wait_s)
                continue
            self.trouble = ""
            self.follower.note_date(blob.meta.date_ns)
            if blob.data == attempt.data:
                return _Result.WON, blob.meta.etag
            try:
                found = decode_slot(blob.data, key)
            except StnodeError:
                damaged += 1
                continue
            if isinstance(found, Stub):
                break  # truncated: it may have been ours
            if found.write_id == attempt.commit.slot.write_id:
                raise Corrupt(f"{key} has this node's write id and other bytes", hint="run `stnode bucket check`")
            return _Result.LOST, ""
        return _Result.OPEN, ""

    async def _wait(self, error: StnodeError, wait_s: float) -> float:
        self.trouble = error.message
        self.on_trouble(error)
        after = error.retry_after_s if isinstance(error, Unavailable) else None
        await self.env.clock.sleep(max(after or 0.0, self.env.random.uniform(wait_s / 2, wait_s)))
        return min(2 * wait_s, LONGEST_RETRY_S)

    # ---- after it -----------------------------------------------------------------------------------------------------

    async def _won(self, group: Group, attempt: _Attempt, applied: Applied) -> None:
        if applied.void is not None:
            self._void(group, applied.void)
            return
        self.counts.won += 1
        proposal = attempt.proposal
        now = self.env.clock.monotonic()
        for fid, (_, removed) in proposal.deletions().items():
            self.guard.committed(fid, removed, now)
        await self._tell_packer(proposal, attempt.commit.body or EMPTY)
        results: dict[Wish, tuple[list[str], list[int]]] = {}
        firsts = dict(attempt.commit.slot.firsts)
        fids = {facts.fkey: fid for fid, facts in proposal.folders.items()}
        for fkey, sets in attempt.order.items():
            names, sequence, at = applied.folders[fids[fkey]].names, firsts[fkey], 0
            for wish, body_set in sets:
                count = len(body_set.records)
                found = results.setdefault(wish, ([], []))
                found[0].extend(names[at : at + count])
                found[1].extend(range(sequence + at, sequence + at + count))
                at += count
            self.counts.records += at
        group.wishes = [wish for wish in group.wishes if wish not in results]
        entries, group.entries = group.entries, []
        for entry in entries:
            entry.done(applied.number)
        for told, (wish, (committed, sequences)) in enumerate(results.items(), 1):
            wish.settle(Status.COMMITTED, committed, sequences, "")
            if told % TOLD_AT_ONCE == 0:
                await self.env.clock.sleep(0)

    async def _tell_packer(self, proposal: Proposal, body: Body) -> None:
        by_place = {place: handle for handle, place in proposal.handles.items()}
        ids = [(by_place.get(-(index + 1)), pack.id) for index, pack in enumerate(body.packs_added)]
        if not ids:
            return

        def read(conn: Connection) -> dict[int, int]:
            query = "SELECT number FROM packs WHERE id = ?"
            return {handle: conn.execute(query, (pack_id,)).fetchone()[0] for handle, pack_id in ids if handle is not None}

        self.packs.registered(await self.db.run(read))

    def _void(self, group: Group, reason: str) -> None:
        """Our own commit was refused by the rules: it has used up its number, nothing of it holds."""
        self.counts.void += 1
        group.voids += 1
        group.stored = None
        log.error("own commit is void", reason=reason, tries=group.voids)
        if group.voids >= VOID_TRIES:
            self._settle(group, [(wish, Status.CONFLICT, f"void: {reason}") for wish in group.wishes])
            for entry in group.entries:
                entry.done(Conflict(f"void: {reason}"))
            group.entries = []


def _owners(proposal: Proposal) -> list[tuple[str, Wish, BodySet]]:
    """Whose each set of the body is, in the order in which `Slot.dropped` counts them."""
    return [(section.fkey, *owned) for section in proposal.body.sections for owned in proposal.placed.get(section.fkey, [])]


def _reuse(stored: _Stored, proposal: Proposal) -> tuple[tuple[int, ...], Body] | None:
    """How a proposal can be written with a body that is uploaded already: which of its sets are dropped, and what is added in the slot.
    None when it cannot: something else differs, or an added set names a pack that the stored body registers."""
    if stored.body.packs_added != proposal.body.packs_added or _rest(stored.body) != _rest(proposal.body):
        return None
    wanted = {(fkey, wish): body_set for fkey, sets in proposal.placed.items() for wish, body_set in sets}
    dropped = tuple(i for i, (fkey, wish, body_set) in enumerate(stored.owners) if wanted.get((fkey, wish)) != body_set)
    kept = {(fkey, wish) for i, (fkey, wish, _) in enumerate(stored.owners) if i not in set(dropped)}
    sections = []
    for fkey, sets in proposal.placed.items():
        added = tuple(body_set for wish, body_set in sets if (fkey, wish) not in kept)
        if any(extent[0] < 0 for each in added for record in each.records for extent in record.extents):
            return None
        if added:
            sections.append(Section(fkey, added))
    return dropped, Body(sections=tuple(sections)) if sections else EMPTY


def _rest(body: Body) -> Body:
    """The body less its sets."""
    sections = tuple(bare for section in body.sections if (bare := replace(section, sets=())) != Section(section.fkey))
    return replace(body, sections=sections)
