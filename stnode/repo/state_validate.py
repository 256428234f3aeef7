"""Which commits are void: the rules of docs/format.md, Void commits, the same for every node, the writer included (invariant 2).

`validate` answers with the reason or None. It needs no clock and no configuration but the store's own (`parameters.py`). What is not a matter of the commit's
content is an error instead: a foreign predecessor (Conflict), features that this version does not know (Refused).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final

from google.protobuf.message import DecodeError

from stnode.errors import Conflict, Internal, ProtocolError
from stnode.protocol import vector
from stnode.repo.codec_body import EMPTY, Body, Section
from stnode.repo.codec_slot import Slot, check_features
from stnode.repo.layout import is_id, minted_us
from stnode.repo.pb import store_pb2 as pb
from stnode.repo.records import Applied, Extents, decode_extents
from stnode.repo.state_apply import write_commit
from stnode.repo.state_damage import sources_of
from stnode.repo.state_reads import Head, head, orphan_age_us, resolve

MAX_SEQUENCE: Final = (1 << 63) - 1


def check_slot(conn: sqlite3.Connection, slot: Slot) -> str | None:
    """Why the slot is void whatever its body holds, or None. A stored body minted below the horizon may be gone already, so ask
    this before fetching it. Raises Conflict for a slot that does not continue the state, Refused for unknown features."""
    at = head(conn)
    if slot.number != at.number + 1 or slot.prev != at.slot_sha:
        raise Conflict(f"slot {slot.number} does not continue the state at commit {at.number}")
    check_features(slot.features, f"slot {slot.number}")
    switched_on = {row[0] for row in conn.execute("SELECT name FROM features")}
    if not switched_on.issuperset(slot.features):
        return "it uses a feature that no commit has switched on"
    if not at.store_time_us <= slot.store_time_us <= MAX_SEQUENCE:
        return "its store time is before its predecessor's"
    if slot.stored is not None and (not is_id(slot.stored.id) or minted_us(slot.stored.id) < at.horizon_us):
        return "its body was minted below the orphan horizon"
    return None


def validate(conn: sqlite3.Connection, slot: Slot, body: Body) -> str | None:
    """Why the commit is void on the present state, or None. `body` is `codec.content(slot, …)`. Changes nothing; errors as `check_slot`."""
    reason = check_slot(conn, slot) or _Rules(conn, slot, body).reason()
    if reason is not None or not body.packs_condemned:
        return reason
    conn.execute("SAVEPOINT trial")
    try:
        write_commit(conn, slot, bytes(32), body)
        return condemned_reference(conn, body.packs_condemned)
    finally:
        conn.execute("ROLLBACK TO trial")
        conn.execute("RELEASE trial")


def apply(conn: sqlite3.Connection, slot: Slot, slot_sha: bytes, body: Body | None, *, own: bool = False) -> Applied:
    """Validates and applies the next commit. `body` may be None only where `check_slot` gave a reason. Errors as `check_slot`."""
    reason = check_slot(conn, slot)
    if reason is None:
        if body is None:
            raise Internal(f"slot {slot.number} is to be applied without its body")
        reason = _Rules(conn, slot, body).reason()
    content = EMPTY if body is None else body
    if reason is None and content.packs_condemned:
        conn.execute("SAVEPOINT trial")
        applied = write_commit(conn, slot, slot_sha, content, own=own)
        reason = condemned_reference(conn, content.packs_condemned)
        if reason is None:
            conn.execute("RELEASE trial")
            return applied
        conn.execute("ROLLBACK TO trial")
        conn.execute("RELEASE trial")
    return write_commit(conn, slot, slot_sha, content, own=own, void=reason)


class _Rules:
    """The rules that one look at the state before the commit decides. Each method yields reasons; the first one counts."""

    def __init__(self, conn: sqlite3.Connection, slot: Slot, body: Body) -> None:
        self._conn = conn
        self._slot = slot
        self._body = body
        self._head: Head = head(conn)
        self._last: dict[str, int] = {}
        self._blocks: dict[int, int | None] = {}

    def reason(self) -> str | None:
        """The first broken rule, or None."""
        for rule in (self._features, self._folders, self._horizon, self._packs, self._relocations, self._collection, self._sections):
            found = next(iter(rule()), None)
            if found is not None:
                return found
        return None

    def _features(self) -> Iterator[str]:
        check_features(self._body.features_on, f"slot {self._slot.number}")
        for device in self._body.devices:
            if len(device.device_id) != 32:
                yield "a device ID has not 32 bytes"

    def _folders(self) -> Iterator[str]:
        query = "SELECT fkey, folder_id, index_id, removed, last_sequence FROM folders"
        ids: dict[str, str] = {}
        indexes: dict[str, str] = {}
        gone: set[str] = set()
        for fkey, folder_id, index_id, removed, last in self._conn.execute(query):
            indexes[index_id] = fkey
            if removed:
                gone.add(fkey)
            else:
                ids[folder_id] = fkey
                self._last[fkey] = last
        removing = set(self._body.folders_removed)
        for settings in self._body.folders:
            fkey, index_id = settings.fkey, str(settings.index_id)
            if fkey in gone or fkey in removing or not settings.folder_id or not settings.incarnation or not settings.index_id:
                yield f"folder {settings.folder_id!r} is removed, or incomplete"
            if indexes.setdefault(index_id, fkey) != fkey:
                yield f"folder {settings.folder_id!r} has an index ID that is in use"
            other = ids.setdefault(settings.folder_id, fkey)
            if other != fkey and other not in removing:
                yield f"folder {settings.folder_id!r} exists already"
            self._last.setdefault(fkey, 0)
        for fkey in self._body.folders_removed:
            if fkey not in self._last:
                yield f"there is no folder {fkey} to remove"

    def _horizon(self) -> Iterator[str]:
        age_us = orphan_age_us(self._conn)
        if self._body.horizon_us and self._body.horizon_us > self._slot.store_time_us - age_us:
            yield f"its orphan horizon is less than {age_us // 1_000_000} s before its store time"

    def _packs(self) -> Iterator[str]:
        seen: set[str] = set()
        for index, pack in enumerate(self._body.packs_added):
            if pack.fkey not in self._last:
                yield f"pack {pack.id} belongs to no folder"
            if not is_id(pack.id) or minted_us(pack.id) < self._head.horizon_us:
                yield f"pack {pack.id} was minted below the orphan horizon"
            known = self._conn.execute("SELECT 1 FROM packs WHERE id = ?", (pack.id,)).fetchone()
            if known or pack.id in seen:
                yield f"pack {pack.id} is registered already"
            seen.add(pack.id)
            self._blocks[-(index + 1)] = pack.blocks

    def _live_blocks(self, pack: int) -> int | None:
        """Blocks of a pack that may be referred to; None when it is unknown or condemned."""
        if pack not in self._blocks:
            row = self._conn.execute("SELECT blocks FROM packs WHERE number = ? AND condemned = 0", (pack,)).fetchone()
            self._blocks[pack] = None if row is None else row[0]
        return self._blocks[pack]

    def _relocations(self) -> Iterator[str]:
        for moved in self._body.relocations:
            blocks = self._live_blocks(moved.to_pack)
            if moved.pack <= 0 or moved.count <= 0 or blocks is None or moved.to_place + moved.count > blocks:
                yield f"a relocation of pack {moved.pack} leads to no live block"
            target = (moved.to_pack, moved.to_place, moved.count)
            if moved.to_pack == moved.pack or (moved.to_pack > 0 and resolve(self._conn, *target) != [target]):
                yield f"a relocation of pack {moved.pack} leads to blocks that have moved on"
            if any(other.pack == moved.to_pack for other in self._body.relocations):
                yield f"a relocation of pack {moved.pack} leads to blocks that move on in the same commit"
            if self._conn.execute("SELECT 1 FROM packs WHERE number = ?", (moved.pack,)).fetchone() is None:
                yield f"a relocation moves blocks of pack {moved.pack}, which does not exist"

    def _collection(self) -> Iterator[str]:
        body = self._body
        for pack in (*body.packs_condemned, *body.packs_lost, *body.packs_found):
            if self._conn.execute("SELECT 1 FROM packs WHERE number = ?", (pack,)).fetchone() is None:
                yield f"pack {pack} does not exist"
        gone = set(body.packs_gone)
        if len(gone) != len(body.packs_gone) or gone & {*body.packs_condemned, *body.packs_lost, *body.packs_found}:
            yield "a pack is named twice"
        for pack in gone:
            if self._conn.execute("SELECT 1 FROM packs WHERE number = ? AND condemned > 0", (pack,)).fetchone() is None:
                yield f"pack {pack} was never condemned"
        if body.relocations_dropped:
            referred = {
                extent[0] for (extents,) in self._conn.execute("SELECT extents FROM partials") for extent in decode_extents(extents)
            }
            moving = {moved.pack for moved in body.relocations} | {extent[0] for extents in _all_extents(body) for extent in extents}
            for pack in body.relocations_dropped:
                query = "SELECT 1 FROM refs WHERE pack = ?1 UNION ALL SELECT 1 FROM relocations WHERE to_pack = ?1 LIMIT 1"
                if pack in referred or pack in moving or self._conn.execute(query, (pack,)).fetchone():
                    yield f"relocations of pack {pack} are still needed"

    def _sections(self) -> Iterator[str]:
        firsts = dict(self._slot.firsts)
        if len(firsts) != len(self._slot.firsts) or len({s.fkey for s in self._body.sections}) != len(self._body.sections):
            yield "a folder is named twice"
        for section in self._body.sections:
            last = self._last.get(section.fkey)
            if last is None:
                yield f"there is no folder {section.fkey}"
                continue
            count = sum(len(each.records) for each in section.sets)
            first = firsts.get(section.fkey, 0)
            if count and (first <= last or first + count - 1 > MAX_SEQUENCE):
                yield f"the numbers of folder {section.fkey} begin at {first}, but {last} is assigned"
            yield from _malformed(section)
        for extents in _all_extents(self._body):
            yield from self._dead(extents)

    def _dead(self, extents: Extents) -> Iterator[str]:
        """Invariant 3 for one record: each block is in a live pack, or has been moved into one."""
        for pack, place, count in extents:
            if not pack:
                continue
            blocks = self._live_blocks(pack)
            if blocks is None and pack > 0:
                runs = resolve(self._conn, pack, place, count)
                if any(to == pack or self._live_blocks(to) is None for to, _, _ in runs):
                    yield f"it refers to pack {pack}, which is condemned or not registered"
            elif blocks is None or place + count > blocks:
                yield f"it refers to block {place + count - 1} of pack {pack}, which has {blocks}"


def _all_extents(body: Body) -> Iterator[Extents]:
    for section in body.sections:
        for each in section.sets:
            for record in each.records:
                yield record.extents
        for partial in section.partials:
            yield partial.extents


def _malformed(section: Section) -> Iterator[str]:
    for each in section.sets:
        for record in each.records:
            try:
                view = pb.FileView.FromString(record.info)
                vector.from_wire(view.version)
            except (DecodeError, ProtocolError):
                yield "a record is no FileInfo"
                continue
            if not view.name or "\0" in view.name or view.size < 0:
                yield f"the record {view.name!r} has no proper name, or a negative size"
    for partial in section.partials:
        try:
            vector.from_wire(partial.version)
        except ProtocolError:
            yield f"the partial file {partial.name!r} has no version"
        if not partial.name or "\0" in partial.name or len(partial.starts) != len(partial.extents):
            yield f"the partial file {partial.name!r} has no proper name, or misses starts"
    if any(sequence > MAX_SEQUENCE for _, sequence in section.history_dropped):
        yield "it drops a version with a number that none can have"


def condemned_reference(conn: sqlite3.Connection, packs: Iterable[int]) -> str | None:
    """Why these packs may not go on the present state: something live still resolves into one of them. None if they may."""
    partials = [decode_extents(row[0]) for row in conn.execute("SELECT extents FROM partials")]
    for pack in packs:
        for source in sources_of(conn, pack):
            for extents in (*partials, *referrers(conn, source)):
                for named, place, count in extents:
                    if named == source and any(to == pack for to, _, _ in resolve(conn, named, place, count)):
                        return f"it condemns pack {pack}, which is still referred to"
    return None


def referrers(conn: sqlite3.Connection, pack: int) -> Iterator[Extents]:
    """Extents of all versions that name the pack."""
    for table in ("records", "history"):
        query = f"SELECT t.extents FROM refs r JOIN {table} t ON t.fid = r.fid AND t.seq = r.seq WHERE r.pack = ?"  # noqa: S608
        for (extents,) in conn.execute(query, (pack,)):
            yield decode_extents(extents)
