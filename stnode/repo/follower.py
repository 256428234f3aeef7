"""Follows the journal: reads slots, applies them to SQLite, and notices when the bucket is not the one it was.

The only code that moves this node's head. It is called by the journal's one owner task and by nobody else, so nothing here
is entered twice at a time. What can be wrong with the next slot, and what is done (design 5, R1, R4, R14):

    absent                          this is the head
    fits                            applied
    a stub                          it was truncated: drop the state and restore
    another predecessor, or         the bucket was put back: drop the state, restore, and commit a new index ID for every
    the own head is gone            folder (`new_index_ids_due`)
    damaged, three times read       step over it by restoring from a manifest at or beyond it, else Corrupt
    absent with slots behind it     a gap: step over it likewise, else Corrupt. Slots far behind it are looked for at the start
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from sqlite3 import Connection
from typing import Final, Protocol

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Corrupt, NotFound
from stnode.objectstore.base import Blob, ObjectStore
from stnode.repo import layout, state
from stnode.repo.codec import NO_PREDECESSOR, Body, BodyRef, Slot, Stub, content, decode_body, decode_slot, slot_sha
from stnode.repo.container import PUT_BACK, STEP_OVER
from stnode.repo.records import Applied
from stnode.repo.slots import AnotherProcess
from stnode.telemetry import get_logger

AHEAD: Final = 4
"""Slots read at once when behind."""
FAR_BEHIND: Final = 1000
"""Commits after which a follower looks for a manifest that saves it the rest."""
SILENCE_S: Final = 60.0
"""A head that was not confirmed for so long is looked at before anything is built on it."""
READS_BEFORE_DAMAGE: Final = 3
ROWS_PER_TRANSACTION: Final = 2000

LAYER: Final = "journal"
STEPS: Final = ("CREATE TABLE journal_notes (name TEXT PRIMARY KEY) WITHOUT ROWID",)
_DUE: Final = "new index ids"

log = get_logger(__name__)


class Restore(Protocol):
    """Replaces the state in SQLite by the store's: the newest whole manifest, then every slot after it."""

    async def __call__(self) -> object: ...


CheckStore = Callable[[], Awaitable[int | None]]
"""Reads stnode.json: its answer's Date. Raises Refused when the bucket is empty or holds another store."""


class _End(Enum):
    MORE = "more"
    ABSENT = "absent"
    STUB = "stub"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Commit:
    """A slot as read or written, with all that applying it needs. `body` is what it changes in the end; None where the stored one
    was minted below the orphan horizon, so that the commit is void and its body may be gone."""

    slot: Slot
    sha: bytes
    etag: str
    body: Body | None

    @property
    def records(self) -> int:
        """Records that applying it writes."""
        return sum(len(each.records) for section in self.body.sections for each in section.sets) if self.body else 0


class Follower:
    """`head` is the last commit applied. `epoch` counts rebuilt states, `histories` those on another history, after which numbers
    of packs and folders may mean something else; `fkeys` names the folders that exist, `nodes` the writers seen, `last_writer` that of the commit applied last. `on_applied`
    hears of every commit after its transaction. `alone`: a commit of another process is `AnotherProcess`."""

    def __init__(
        self,
        objects: ObjectStore,
        db: Database,
        env: Env,
        writer: tuple[bytes, int],
        restore: Restore,
        check_store: CheckStore,
        on_applied: Callable[[Applied], None],
    ) -> None:
        self.head = state.Head(0, NO_PREDECESSOR, 0, 0, 1, 1, complete=True)
        self.epoch = 0
        self.histories = 0
        self.foreign_seen = 0
        self.nodes: set[bytes] = {writer[0]}
        self.last_writer = writer
        self.fkeys: dict[int, str] = {}
        self.new_index_ids_due = False
        self.history_since_us = 0
        self.alone = False
        self._objects = objects
        self._db = db
        self._env = env
        self._writer = writer
        self._restore = restore
        self._check_store = check_store
        self._on_applied = on_applied
        self._torn: tuple[str, bool] | None = None
        """Why a rebuild was begun that has not ended: what is in SQLite may be half a state until one does."""
        self._etag = ""
        self._undated = False
        self._date_us = 0
        self._date_seen_s = 0.0
        self._confirmed_s = float("-inf")
        self._confirmed_ns = 0

    # ---- what is known ------------------------------------------------------------------------------------------------

    def store_time_us(self) -> int:
        """Store time as commits carry it: never below the head's, else the latest Date seen."""
        return max(self.head.store_time_us, self._date_us)

    def upload_time_us(self) -> int:
        """Store time as object ids carry it: the latest Date seen and what has passed since, for an idle node sees none."""
        passed_s = self._env.clock.monotonic() - self._date_seen_s
        return max(self.store_time_us(), self._date_us + int(passed_s * 1_000_000))

    def note_date(self, date_ns: int | None) -> None:
        """Takes the Date of an answer. A store that sends none has only this machine's clock."""
        self._undated = date_ns is None
        now_ns = self._env.clock.now_ns() if date_ns is None else date_ns
        if now_ns // 1000 > self._date_us:
            self._date_us, self._date_seen_s = now_ns // 1000, self._env.clock.monotonic()

    def silent(self) -> bool:
        """Whether nothing has shown for a minute that the head is still the store's. Both clocks: one stands still in suspend."""
        clock = self._env.clock
        return clock.monotonic() - self._confirmed_s > SILENCE_S or abs(clock.now_ns() - self._confirmed_ns) > SILENCE_S * 10**9

    def _confirm(self) -> None:
        self._confirmed_s = self._env.clock.monotonic()
        self._confirmed_ns = self._env.clock.now_ns()

    # ---- starting -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Loads what SQLite has, checks it against the store or restores, and follows to the head."""
        await state.prepare(self._db)
        await self._db.migrate(LAYER, STEPS)
        self.note_date(await self._check_store())
        complete = await self._load()
        if not complete or self.head.number == 0 or await self._far_behind():
            await self._rebuild("nothing usable is cached", foreign=False)
        else:
            await self.check_head()
        await self.catch_up()
        await self._look_beyond()

    async def _look_beyond(self) -> None:
        """Whether what seemed to be the head is followed by slots further on: a torn copy of the bucket, of which no look at the next slot
        tells. A manifest beyond the gap steps over it; raises Corrupt where there is none."""
        head = self.head.number
        async for meta in self._objects.list(layout.journal_prefix(), start_after=layout.slot_key(head)):
            number = layout.slot_number(meta.key)
            if number is None or number <= head or await self.catch_up():
                return  # none, or committed a moment ago
            if await self._newest_manifest() <= head:
                raise Corrupt(f"commit {head + 1} is missing, {number} is there", hint=PUT_BACK)
            await self._rebuild(f"commit {head + 1} is missing, a manifest steps over it", foreign=False)
            await self.catch_up()
            return

    async def _load(self) -> bool:
        def read(conn: Connection) -> tuple[state.Head, bool, dict[int, str]]:
            due = conn.execute("SELECT 1 FROM journal_notes WHERE name = ?", (_DUE,)).fetchone()
            return state.head(conn), due is not None, _fkeys(conn)

        self.head, self.new_index_ids_due, self.fkeys = await self._db.run(read)
        self._etag = ""
        return self.head.complete

    async def check_head(self) -> None:
        """Confirms that the own head is still in the store, else rebuilds (R4)."""
        if self.head.number == 0:
            self.note_date(await self._check_store())
            self._confirm()
            return
        key = layout.slot_key(self.head.number)
        try:
            if self._etag:
                meta = await self._objects.head(key)
                self.note_date(meta.date_ns)
                if meta.etag == self._etag:
                    self._confirm()
                    return
            blob = await self._objects.get(key)
        except NotFound:
            await self._rebuild(f"commit {self.head.number} is gone from the store", foreign=True)
            return
        self.note_date(blob.meta.date_ns)
        if slot_sha(blob.data) == self.head.slot_sha:
            self._etag = blob.meta.etag
            self._confirm()
            return
        found = await self._decode(self.head.number, blob)
        truncated = isinstance(found[0], Stub)
        await self._rebuild(
            f"commit {self.head.number} is {'truncated' if truncated else 'another one'} in the store", foreign=not truncated
        )

    async def _rebuild(self, why: str, *, foreign: bool) -> None:
        foreign = foreign or (self._torn is not None and self._torn[1])
        if foreign:
            self.note_date(await self._check_store())
            await self._check_journal()
            # Noted before anything is dropped: a crash in between must not forget that peers hold numbers of a lost history.
            await self._db.write(lambda conn: conn.execute("INSERT OR IGNORE INTO journal_notes VALUES (?)", (_DUE,)))
            self.history_since_us = self.store_time_us()
        self._torn = (why, foreign)
        tell = log.warning if foreign else log.info
        tell("the state is restored from the store", why=why, head=self.head.number)
        await self._restore()
        await self._load()
        self._torn = None
        self.epoch += 1
        self.histories += foreign
        self._confirm()
        self._on_applied(Applied(self.head.number, restored=True, settings_changed=True))

    async def _check_journal(self) -> None:
        """Raises Corrupt when the store has no journal any more: then this node's state may be the last there is, and must not be dropped."""
        for prefix in (layout.journal_prefix(), layout.checkpoint_prefix()):
            async for _ in self._objects.list(prefix):
                return
        raise Corrupt(
            f"the journal is gone from the store: no commit and no checkpoint is there, this node knows commit {self.head.number}",
            hint="put it back from a backup; or stop this node and run `stnode bucket repair`, which writes it again from the node's state",
        )

    async def index_ids_renewed(self) -> None:
        """A commit has given every folder a new index ID."""
        self.new_index_ids_due = False
        await self._db.write(lambda conn: conn.execute("DELETE FROM journal_notes WHERE name = ?", (_DUE,)))

    # ---- following ----------------------------------------------------------------------------------------------------

    async def catch_up(self) -> int:
        """Applies all commits up to the first absent slot; how many. The state may be rebuilt on the way (`epoch`)."""
        if self._torn is not None:
            why, foreign = self._torn
            await self._rebuild(why, foreign=foreign)
        ahead, applied = 1, 0
        while True:
            commits, end = await self._read(self.head.number + 1, ahead)
            if commits:
                await self.apply(commits)
                applied += len(commits)
            match end:
                case _End.ABSENT:
                    return applied
                case _End.STUB:
                    await self._rebuild(f"commit {self.head.number + 1} is truncated", foreign=False)
                case _End.FOREIGN:
                    await self._rebuild(f"commit {self.head.number + 1} follows another history", foreign=True)
                case _End.MORE:
                    ahead = AHEAD
                    if applied % FAR_BEHIND < len(commits) and applied >= FAR_BEHIND and await self._far_behind():
                        await self._rebuild("a manifest is far ahead", foreign=False)

    async def apply(self, commits: Sequence[Commit]) -> list[Applied]:
        """Applies commits that follow the head, in transactions of bounded size, and tells of each."""
        results: list[Applied] = []
        start = 0
        while start < len(commits):
            end, rows = start, 0
            while end < len(commits) and (end == start or rows < ROWS_PER_TRANSACTION):
                rows += commits[end].records
                end += 1
            results += await self._apply(commits[start:end])
            start = end
        return results

    async def _apply(self, commits: Sequence[Commit]) -> list[Applied]:
        def write(conn: Connection) -> tuple[list[Applied], state.Head, dict[int, str] | None]:
            results: list[Applied] = []
            for commit in commits:
                own = (commit.slot.node, commit.slot.instance) == self._writer
                results.append(state.apply(conn, commit.slot, commit.sha, commit.body, own=own))
            return results, state.head(conn), _fkeys(conn) if any(result.settings_changed for result in results) else None

        results, self.head, fkeys = await self._db.write(write)
        self.fkeys = self.fkeys if fkeys is None else fkeys
        self._etag = commits[-1].etag
        self._confirm()
        for commit, result in zip(commits, results, strict=True):
            self.nodes.add(commit.slot.node)
            self.last_writer = (commit.slot.node, commit.slot.instance)
            self.foreign_seen += not result.own
            self._on_applied(result)
            if self.alone and not result.own:
                raise AnotherProcess(result.number)
        return results

    async def _read(self, first: int, count: int) -> tuple[list[Commit], _End]:
        """The commits from `first` on that are there and fit, and what ended the row."""
        blobs = await asyncio.gather(*(self._get(number) for number in range(first, first + count)))
        if blobs[0] is None and any(blobs):
            blobs[0] = await self._get(first)  # read before it was created, while its successors were read after
            if blobs[0] is None:
                if await self._newest_manifest() < first:
                    raise Corrupt(f"commit {first} is missing, later ones are there", hint=PUT_BACK)
                return [], _End.STUB  # like a truncated slot: what it held is in the manifest
        commits: list[Commit] = []
        sha = self.head.slot_sha
        for number, blob in enumerate(blobs, first):
            if blob is None:  # the head, unless a later one was there: then this one has come while it was read
                return commits, _End.MORE if any(blobs[number - first :]) else _End.ABSENT
            slot, data, etag = await self._decode(number, blob)
            if isinstance(slot, Stub):
                return commits, _End.STUB if number == first else _End.MORE
            if slot.prev != sha:
                return commits, _End.FOREIGN if number == first else _End.MORE
            try:
                body = await self._body(slot)
            except NotFound:
                if number > first:
                    return commits, _End.MORE  # asked again when everything before it is applied
                if await self._body_truncated(slot):
                    return commits, _End.STUB
                body = None
            sha = slot_sha(data)
            commits.append(Commit(slot, sha, etag, body))
        return commits, _End.MORE

    async def _get(self, number: int) -> Blob | None:
        try:
            blob = await self._objects.get(layout.slot_key(number))
        except NotFound as exc:
            # An idle node hears nothing else: without this Date its next commit would be dated by an answer of minutes ago.
            if exc.date_ns is not None or self._undated:
                self.note_date(exc.date_ns)
            return None
        self.note_date(blob.meta.date_ns)
        return blob

    async def _decode(self, number: int, blob: Blob) -> tuple[Slot | Stub, bytes, str]:
        """The slot with its bytes and ETag; damage is believed only when it stays. Corrupt where no manifest helps over it."""
        key = layout.slot_key(number)
        damage = ""
        for _ in range(READS_BEFORE_DAMAGE):
            if damage:
                blob = await self._objects.get(key)
            try:
                slot = decode_slot(blob.data, key)
            except Corrupt as exc:
                damage = exc.message
                continue
            if slot.number == number:
                return slot, blob.data, blob.meta.etag
            damage = f"it holds commit {slot.number}"
        if await self._newest_manifest() >= number:
            return Stub(number), b"", ""  # like a truncated slot: what it held is in the manifest
        raise Corrupt(f"commit {number} is damaged: {damage}", hint=STEP_OVER)

    async def _body(self, slot: Slot) -> Body:
        return content(slot, None if slot.stored is None else await read_body(self._objects, slot.stored))

    async def _body_truncated(self, slot: Slot) -> bool:
        """What the missing body of the next commit means: True when it was truncated meanwhile, or a manifest knows what was in it;
        False when the commit is void for naming it. Else Corrupt."""
        if slot.stored is not None and layout.minted_us(slot.stored.id) < self.head.horizon_us:
            return False
        again = await self._get(slot.number)
        if again is not None and isinstance((await self._decode(slot.number, again))[0], Stub):
            return True
        if await self._newest_manifest() >= slot.number:
            return True
        raise Corrupt(f"the body of commit {slot.number} is missing", hint=STEP_OVER)

    async def _far_behind(self) -> bool:
        return await self._newest_manifest() > self.head.number + FAR_BEHIND

    async def _newest_manifest(self) -> int:
        numbers = [layout.slot_number(meta.key) or 0 async for meta in self._objects.list(layout.checkpoint_prefix())]
        return max(numbers, default=0)


def _fkeys(conn: Connection) -> dict[int, str]:
    return {folder.fid: folder.fkey for folder in state.folders(conn)}


async def read_body(objects: ObjectStore, ref: BodyRef) -> Body:
    """The stored body that a slot names. NotFound; Corrupt when it is damaged however often it is read."""
    key = layout.body_key(ref.id)
    for _ in range(READS_BEFORE_DAMAGE):
        blob = await objects.get(key)
        if slot_sha(blob.data) == ref.sha256:
            return decode_body(blob.data, key)
    raise Corrupt(f"{key} does not have the hash that its slot names", hint="run `stnode bucket check`")
