"""The witness of a run: sees every write that reaches the bucket, and holds it against the invariants of design 3 at that moment.

It stands between the nodes' faults and the bucket, so what a test does to the bucket by hand is not judged. `Truth` is the journal as
the bucket has it, applied commit by commit as slots are created: what nodes announce, acknowledge and compute is compared with it.
Nothing here asks a node for anything. A violation ends the run and names its invariant (`Violation.invariant`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from stnode.clock import Env
from stnode.objectstore.base import Buffer, IfMatch, Key, Meta, Mode, PutResult
from stnode.objectstore.memory import MemoryStore, StoredObject
from stnode.objectstore.wrappers import Wrapper
from stnode.protocol.pb import bep_pb2
from stnode.protocol.vector import Vector, from_wire
from stnode.repo import layout, state
from stnode.repo.codec import Body, Slot, Stub, content, decode_body, decode_manifest, decode_slot, slot_sha
from stnode.repo.pb import store_pb2
from stnode.repo.records import HistoryRule, decode_extents
from stnode.repo.state_schema import STEPS

DAY_S: Final = 86_400
INVARIANTS: Final = (
    "announced",  # 1: announced, acknowledged or reported in sync without being committed and durable
    "chain",  # 2: commits are dense, each created once, each with the hash of its predecessor
    "state",  # 2: every node computes the same
    "void",  # 2: what a committer judges is never void
    "resolvable",  # 3: whatever is referred to has a live location
    "horizon",  # 4: what lies below the orphan horizon is never registered any more: anybody may delete it
    "deletion",  # 4: nothing goes uncondemned or before its grace is over
    "truncation",  # 4: slots become stubs, never nothing, and only where a manifest stands for them
    "acknowledged",  # 5: what was acknowledged is never lost
    "content",  # 6: what is served is what was written
    "numbers",  # 7: a sequence number never means two things
    "invented",  # 7: no deletion of what nobody deleted
    "once",  # a change is committed at most once
    "stuck",  # a node whose store answers goes on
    "sum",  # transfers conserve the sum of all accounts
)


class Violation(AssertionError):
    """An invariant that did not hold."""

    def __init__(self, invariant: str, message: str) -> None:
        assert invariant in INVARIANTS
        super().__init__(f"[{invariant}] {message}")
        self.invariant = invariant


class SimBucket(MemoryStore):
    """The bucket. `on_restore` hears when an operator puts another content in its place."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.on_restore: Callable[[], None] = lambda: None

    @property
    def objects(self) -> dict[str, StoredObject]:
        """The content now, not a copy."""
        return self._objects

    @property
    def now_ns(self) -> int:
        return self._env.clock.now_ns()

    def restore(self, content: dict[str, StoredObject]) -> None:
        super().restore(content)
        self.on_restore()


@dataclass(frozen=True, slots=True)
class Written:
    """One record as a commit wrote it. `version` is None for one that went to the history at once."""

    fkey: str
    name: str
    sequence: int
    version: Vector
    deleted: bool
    blocks_hash: bytes
    is_current: bool


class Truth:
    """The state that the bucket's journal adds up to. `hashes`: every state hash that a commit number has had, in all histories of a bucket
    that is put back; `may_be_deleted`: names that somebody has asked to delete."""

    def __init__(self, bucket: SimBucket, violate: Callable[[str, str], None]) -> None:
        self.hashes: dict[int, set[bytes]] = {}
        self.may_be_deleted: set[str] = set()
        self.on_commit: list[Callable[[int, Sequence[Written]], None]] = []
        self.on_rewind: list[Callable[[], None]] = []
        self.blind = False
        """A test has put something into the journal by hand: it is not followed any more."""
        self.conn = sqlite3.connect(":memory:", isolation_level=None)
        for statement in ";".join(STEPS).split(";"):
            self.conn.execute(statement)
        self._bucket = bucket
        self._violate = violate
        self._used: dict[tuple[str, int], tuple[str, Vector, int]] = {}
        self._modified: dict[int, int] = {}
        self._horizons: list[tuple[int, int]] = []
        self._saved: dict[bytes, bytes] = {state.head(self.conn).slot_sha: self.conn.serialize()}

    @property
    def number(self) -> int:
        """The last commit."""
        return state.head(self.conn).number

    def close(self) -> None:
        self.conn.close()

    # ---- commits

    def created(self, key: str, data: bytes) -> None:
        """A slot was created."""
        number, slot = layout.slot_number(key), decode_slot(data, key)
        at = state.head(self.conn)
        if self.blind:
            return
        if isinstance(slot, Stub) or number != at.number + 1 or slot.number != number or slot.prev != at.slot_sha:
            self._violate("chain", f"slot {number} is created on commit {at.number}, or with a foreign predecessor")
            return
        body, horizon_us = self._body(slot), at.horizon_us
        self.conn.execute("UPDATE state SET orphan_age_us = ?", (self._patience("orphan_age_s") * 1_000_000,))
        applied = state.apply(self.conn, slot, slot_sha(data), body)
        self._modified[slot.number] = self._bucket.objects[key].modified_ns
        self.hashes.setdefault(slot.number, set()).add(state.state_hash(self.conn))
        self._saved[slot_sha(data)] = self.conn.serialize()
        if applied.void is None and body is not None:
            if body.horizon_us:
                self._horizons.append((body.horizon_us, self._modified[slot.number]))
            written = list(self._written(slot, body))
            for pack in body.packs_added:
                if layout.minted_us(pack.id) < horizon_us:
                    self._violate("horizon", f"commit {slot.number} registers pack {pack.id}, which was minted below the orphan horizon")
            self._number(slot, written)
            self.check_references()
            for hear in self.on_commit:
                hear(slot.number, written)

    def rewind(self) -> None:
        """The bucket was put back: so is the truth."""
        slots = {
            layout.slot_number(key): each.data for key, each in self._bucket.objects.items() if key.startswith(layout.journal_prefix())
        }
        numbers = [number for number in slots if number]
        head = slot_sha(slots[max(numbers)]) if numbers else bytes(32)
        self.blind = head not in self._saved
        if not self.blind:
            self.conn.deserialize(self._saved[head])
            self._horizons = [(horizon_us, ns) for horizon_us, ns in self._horizons if horizon_us <= state.head(self.conn).horizon_us]
        for hear in self.on_rewind:
            hear()

    def _body(self, slot: Slot) -> Body | None:
        if slot.stored is None:
            return content(slot, None)
        key = layout.body_key(slot.stored.id)
        if key not in self._bucket.objects:
            if layout.minted_us(slot.stored.id) >= state.head(self.conn).horizon_us:
                self._violate("announced", f"commit {slot.number} names a body that is not in the bucket: {key}")
            return None
        return content(slot, decode_body(self._bucket.objects[key].data, key))

    def _written(self, slot: Slot, body: Body) -> Iterator[Written]:
        firsts = dict(slot.firsts)
        for section in body.sections:
            for sequence, record in enumerate(section.records(), firsts.get(section.fkey, 0)):
                view = store_pb2.FileView.FromString(record.info)
                blocks_hash = bep_pb2.FileInfo.FromString(record.info).blocks_hash
                is_current = record.history is not HistoryRule.ONLY
                yield Written(section.fkey, view.name, sequence, from_wire(view.version), view.deleted, blocks_hash, is_current)

    def _number(self, slot: Slot, written: Sequence[Written]) -> None:
        for each in written:
            meaning = (each.name, each.version, slot.number)
            before = self._used.setdefault((each.fkey, each.sequence), meaning)
            if before != meaning:
                self._violate("numbers", f"number {each.sequence} is given to {meaning} and was given to {before}")
            if each.deleted and each.name not in self.may_be_deleted:
                self._violate("invented", f"commit {slot.number} deletes {each.name}, which nobody has deleted")

    def meaning(self, fkey: str, sequence: int) -> tuple[str, Vector] | None:
        """What commits have given a number to."""
        found = self._used.get((fkey, sequence))
        return None if found is None else found[:2]

    def has_moved_on(self, pack_id: str) -> bool:
        """Whether a commit has condemned the pack: a node that lags may announce records that name it, for what was live in it is elsewhere
        (`check_references`), and the node finds that when it has followed (R15)."""
        row = self.conn.execute("SELECT condemned FROM packs WHERE id = ?", (pack_id,)).fetchone()
        return row is None or row[0] > 0

    # ---- references

    def check_references(self) -> None:
        """Invariant 3, and that what a commit names is in the bucket."""
        packs = {
            row[0]: row[1:]
            for row in self.conn.execute(
                "SELECT p.number, p.blocks, p.condemned, p.lost, p.id, f.fkey FROM packs p JOIN folders f USING (fid)"
            )
        }
        moves = {
            (pack, place + i): (to_pack, to_place + i)
            for pack, place, count, to_pack, to_place in self.conn.execute("SELECT pack, place, count, to_pack, to_place FROM relocations")
            for i in range(count)
        }
        for table in ("records", "history", "partials"):
            for name, extents in self.conn.execute(f"SELECT name, extents FROM {table} WHERE extents <> x''"):
                for pack, place, count in decode_extents(extents):
                    for at in range(place, place + count):
                        if pack:
                            self._check_block(f"{name} ({table})", _final(moves, (pack, at)), packs)

    def _check_block(self, what: str, at: tuple[int, int], packs: dict[int, tuple[int, int, int, str, str]]) -> None:
        pack, place = at
        if pack not in packs:
            self._violate("resolvable", f"{what} refers to pack {pack}, which is not registered")
            return
        blocks, condemned, lost, pack_id, fkey = packs[pack]
        if place >= blocks:
            self._violate("resolvable", f"{what} refers to block {place} of pack {pack}, which has {blocks}")
        if condemned:
            self._violate("resolvable", f"{what} refers to pack {pack}, which commit {condemned} condemned")
        if not lost and layout.pack_key(fkey, pack_id) not in self._bucket.objects:
            self._violate("resolvable", f"{what} refers to pack {pack}, which is not in the bucket")

    # ---- deletions

    def deleting(self, key: str) -> None:
        """Invariant 4, before an object goes."""
        if key not in self._bucket.objects or self.blind or key.startswith(("nodes/", "probe/")):
            return
        kind = key.partition("/")[0]
        if kind == "journal":
            self._violate("truncation", f"{key} is deleted: create-if-absent forgets it")
        elif kind == "checkpoint":
            newer = [other for other in self._bucket.objects if other.startswith(layout.checkpoint_prefix()) and other > key]
            if len(newer) < 2:
                self._violate("deletion", f"{key} is deleted with {len(newer)} newer manifests")
        elif kind in ("packs", "bodies", "runs"):
            reason = self._must_stay(kind, key)
            if reason:
                self._violate("deletion", f"{key} is deleted: {reason}")
        else:
            self._violate("deletion", f"{key} is deleted")

    def _must_stay(self, kind: str, key: str) -> str:
        object_id = layout.object_id(key) or ""
        condemned = self.conn.execute("SELECT number FROM condemned WHERE key = ?", (key,)).fetchone()
        if kind == "packs":
            condemned = self.conn.execute("SELECT condemned FROM packs WHERE id = ?", (object_id,)).fetchone()
        elif key in set(self._named(kind)):
            return "a slot or one of the two newest manifests names it"
        now_ns, grace_ns = self._bucket.now_ns, self._patience("grace_s") * 10**9
        if condemned is not None:
            if not condemned[0]:
                return "no commit has condemned it"
            age_ns = now_ns - self._modified[condemned[0]]
            return "" if age_ns >= grace_ns else f"it was condemned {age_ns // 10**9} s ago"
        minted_us = layout.minted_us(object_id)
        if any(horizon_us > minted_us and now_ns - ns >= grace_ns for horizon_us, ns in self._horizons):
            return ""
        return "it is not condemned, and not below an orphan horizon whose grace is over"

    def _named(self, kind: str) -> Iterator[str]:
        for key, stored in self._bucket.objects.items():
            if kind == "bodies" and key.startswith(layout.journal_prefix()):
                slot = decode_slot(stored.data, key)
                if isinstance(slot, Slot) and slot.stored is not None:
                    yield layout.body_key(slot.stored.id)
        if kind == "runs":
            for key in sorted(key for key in self._bucket.objects if key.startswith(layout.checkpoint_prefix()))[-2:]:
                yield from (layout.run_key(run.id) for _, run in decode_manifest(self._bucket.objects[key].data, key).runs())

    def _patience(self, which: str) -> int:
        """Orphan age or grace of the store, in seconds."""
        document = json.loads(self._bucket.objects[layout.STORE].data)
        return int(document.get("collection", {}).get(which, DAY_S))

    def overwriting(self, key: str, data: bytes, *, pretended: bool) -> None:
        """Nothing is ever overwritten but heartbeats, and slots by stubs."""
        old = self._bucket.objects.get(key)
        if old is None or key.startswith(("nodes/", "probe/")) or self.blind:
            return
        number = layout.slot_number(key) or 0
        if not key.startswith(layout.journal_prefix()) or not isinstance(decode_slot(data, key), Stub):
            self._violate("truncation", f"{key} is overwritten")
            return
        if isinstance(decode_slot(old.data, key), Stub):
            return
        manifests = sorted(layout.slot_number(other) or 0 for other in self._bucket.objects if other.startswith(layout.checkpoint_prefix()))
        if len(manifests) < 2 or number > manifests[-2]:
            self._violate("truncation", f"slot {number} is truncated, the manifests are {manifests}")
        if not pretended and self._bucket.now_ns - old.modified_ns < self._patience("orphan_age_s") * 10**9:
            self._violate("truncation", f"slot {number} is truncated before its time")


def _final(moves: dict[tuple[int, int], tuple[int, int]], at: tuple[int, int]) -> tuple[int, int]:
    while at in moves:
        at = moves[at]
    return at


class Watch(Wrapper):
    """The bucket as nodes reach it: what they write is shown to the truth."""

    def __init__(self, bucket: SimBucket, truth: Truth) -> None:
        super().__init__(bucket)
        self.truth = truth
        self._pretended = 0

    @contextmanager
    def pretending(self) -> Iterator[None]:
        """While a test truncates as if days had passed."""
        self._pretended += 1
        try:
            yield
        finally:
            self._pretended -= 1

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        if mode is Mode.OVERWRITE:
            self.truth.overwriting(key, b"".join(data), pretended=self._pretended > 0)
        result = await self.inner.put(key, data, mode)
        if mode is Mode.CREATE and key.startswith(layout.journal_prefix()):
            self.truth.created(key, b"".join(data))
        return result

    async def delete(self, key: Key) -> None:
        self.truth.deleting(key)
        await self.inner.delete(key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        async for meta in self.inner.list(prefix, start_after=start_after):
            yield meta

    async def close(self) -> None:
        """The bucket stays for the other nodes."""
