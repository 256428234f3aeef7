"""Applying a commit to the state in SQLite: mechanical, a pure function of state, slot and body (invariant 2).

Nothing is judged here. `state_validate.py` says which commits are void; a void one only moves the head.
All functions want to run inside one write transaction of the database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from stnode.repo.codec_body import Body, PackAdded, Partial, Section, encode_partial
from stnode.repo.codec_run import Space
from stnode.repo.codec_slot import Slot
from stnode.repo.records import Applied, AppliedFolder, decode_extents
from stnode.repo.settings import FolderSettings, encode_device, encode_folder
from stnode.repo.state_reads import state_hash
from stnode.repo.state_records import COLUMNS, RecordApplier, Row, Totals, count_history, drop_partial, history_bytes, row_value
from stnode.repo.state_schema import (
    META_GROUP,
    Changes,
    canonical,
    folder_value,
    history_key,
    history_value,
    number_key,
    number_value,
    pack_value,
    partial_key,
    partial_value,
    record_value,
    relocation_key,
    relocation_value,
)

MERGE_INTERVALS_US: Final = 60_000_000
"""Intervals of assigned numbers less than this apart are one."""
KEPT_HASHES: Final = 10_000
"""State hashes of so many commits are kept, to be compared with manifests that other nodes write."""
_TIDY: Final = 256
_VERSION: Final = "name, seq, superseded_us, type, size, flags, extents, info"


def write_commit(
    conn: sqlite3.Connection, slot: Slot, slot_sha: bytes, body: Body, *, own: bool = False, void: str | None = None
) -> Applied:
    """Moves the state from commit n - 1 to n. `slot_sha` is the SHA-256 of the slot's object; `void` is what validation said."""
    folders: dict[int, AppliedFolder] = {}
    touched: set[int] = set()
    changes = Changes(conn, slot.number)
    if void is None:
        commit = _Commit(conn, slot, body, changes)
        folders, touched = commit.run(), commit.touched
    changes.flush()
    conn.execute(
        "UPDATE state SET number = ?, slot_sha = ?, store_time_us = max(store_time_us, ?), bytes = bytes + ?",
        (slot.number, slot_sha, slot.store_time_us, body_bytes(slot)),
    )
    conn.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?)", (slot.number, state_hash(conn)))
    if slot.number % _TIDY == 0:
        conn.execute("DELETE FROM hashes WHERE number < ?", (slot.number - KEPT_HASHES,))
    settings = void is None and bool(body.folders or body.folders_removed or body.devices or body.devices_removed or body.features_on)
    packs = void is None and bool(body.packs_lost or body.packs_found or body.relocations)
    return Applied(slot.number, own, folders, settings, packs, void=void, node=slot.node, touched=frozenset(touched))


def body_bytes(slot: Slot) -> int:
    """Roughly what replaying this commit costs, for the rule when a checkpoint is due."""
    return (slot.stored.size_bytes if slot.stored else 0) + 512


class _Commit:
    """One valid commit on its way into the tables."""

    def __init__(self, conn: sqlite3.Connection, slot: Slot, body: Body, changes: Changes) -> None:
        self._conn = conn
        self._slot = slot
        self._body = body
        self._changes = changes
        self._added: dict[int, int] = {}
        self.touched: set[int] = set()

    def run(self) -> dict[int, AppliedFolder]:
        body = self._body
        for settings in body.folders:
            self._set_folder(settings)
        self._set_devices()
        self._add_packs(body.packs_added)
        for relocation in body.relocations:
            target = self._added.get(relocation.to_pack, relocation.to_pack)
            relocate(self._conn, self._changes, relocation.pack, relocation.place, relocation.count, target, relocation.to_place)
        firsts = dict(self._slot.firsts)
        folders = {}
        for section in body.sections:
            fid = _fid(self._conn, section.fkey)
            self.touched.add(fid)
            applied = self._apply_section(fid, section, firsts.get(section.fkey, 0))
            if applied is not None:
                folders[fid] = applied
        for fkey in body.folders_removed:
            self._remove_folder(_fid(self._conn, fkey))
        self._collect()
        if body.horizon_us:
            raised = self._conn.execute("UPDATE state SET horizon_us = ?1 WHERE horizon_us < ?1", (body.horizon_us,)).rowcount
            if raised:
                self._conn.execute("INSERT INTO horizons VALUES (?, ?)", (self._slot.number, body.horizon_us))
        return folders

    # ---- settings

    def _set_folder(self, settings: FolderSettings) -> None:
        conn, wire, fkey = self._conn, encode_folder(settings), settings.fkey
        row = conn.execute("SELECT fid, removed, settings FROM folders WHERE fkey = ?", (fkey,)).fetchone()
        if row is None:
            fid = conn.execute("SELECT next_folder FROM state").fetchone()[0]
            conn.execute("UPDATE state SET next_folder = next_folder + 1")
            conn.execute(
                "INSERT INTO folders (fid, fkey, folder_id, incarnation, index_id, settings) VALUES (?, ?, ?, ?, ?, ?)",
                (fid, fkey, settings.folder_id, settings.incarnation, str(settings.index_id), wire),
            )
            self._changes.put(Space.FOLDER, META_GROUP, fkey.encode(), None, folder_value(fid, 0, wire))
            return
        conn.execute("UPDATE folders SET settings = ?, index_id = ? WHERE fid = ?", (wire, str(settings.index_id), row[0]))
        self._changes.put(Space.FOLDER, META_GROUP, fkey.encode(), folder_value(*row), folder_value(row[0], row[1], wire))

    def _remove_folder(self, fid: int) -> None:
        """Its content goes at once, its row stays: neither incarnation nor index ID may come back."""
        conn = self._conn
        for table in ("records", "history", "partials"):
            for (extents,) in conn.execute(f"SELECT extents FROM {table} WHERE fid = ? AND extents <> x''", (fid,)):  # noqa: S608
                self._changes.count(decode_extents(extents), -1)
            conn.execute(f"DELETE FROM {table} WHERE fid = ?", (fid,))  # noqa: S608
        self._changes.drop_group(fid)
        conn.execute("DELETE FROM intervals WHERE fid = ?", (fid,))
        conn.execute("DELETE FROM refs WHERE fid = ?", (fid,))
        conn.execute("DELETE FROM dirty WHERE grp = ?", (fid,))
        fkey, wire = conn.execute("SELECT fkey, settings FROM folders WHERE fid = ?", (fid,)).fetchone()
        number = self._slot.number
        conn.execute(
            "UPDATE folders SET removed = ?, last_sequence = 0, files = 0, directories = 0, symlinks = 0, deleted = 0, bytes = 0, "
            "old_versions = 0, old_bytes = 0 WHERE fid = ?",
            (number, fid),
        )
        self._changes.put(Space.FOLDER, META_GROUP, fkey.encode(), folder_value(fid, 0, wire), folder_value(fid, number, wire))

    def _set_devices(self) -> None:
        conn, put = self._conn, self._changes.put
        wires = [(device.device_id, encode_device(device)) for device in self._body.devices]
        for device_id, wire in [*wires, *((gone, None) for gone in self._body.devices_removed)]:
            row = conn.execute("SELECT settings FROM devices WHERE id = ?", (device_id,)).fetchone()
            if row is None and wire is None:
                continue
            conn.execute("DELETE FROM devices WHERE id = ?", (device_id,))
            if wire is not None:
                conn.execute("INSERT INTO devices VALUES (?, ?)", (device_id, wire))
            put(Space.DEVICE, META_GROUP, device_id, row and row[0], wire)
        for feature in self._body.features_on:
            added = conn.execute("INSERT OR IGNORE INTO features VALUES (?, ?)", (feature, self._slot.number)).rowcount
            if added:
                put(Space.FEATURE, META_GROUP, feature.encode(), None, number_value(self._slot.number))

    # ---- packs

    def _add_packs(self, packs: tuple[PackAdded, ...]) -> None:
        conn = self._conn
        number = conn.execute("SELECT next_pack FROM state").fetchone()[0]
        for index, pack in enumerate(packs):
            fid = _fid(conn, pack.fkey)
            row = (fid, pack.id, pack.size_bytes, pack.blocks, pack.footer_offset, pack.footer_bytes, 0, 0)
            conn.execute("INSERT INTO packs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)", (number, *row))
            self._changes.put(Space.PACK, META_GROUP, number_key(number), None, pack_value(row))
            self._added[-(index + 1)] = number
            number += 1
        conn.execute("UPDATE state SET next_pack = ?", (number,))

    def _collect(self) -> None:
        body, conn, number = self._body, self._conn, self._slot.number
        for pack in body.relocations_dropped:
            drop_relocations(conn, self._changes, pack)
        for pack in body.packs_condemned:
            self._mark(pack, "condemned", number)
        for pack in body.packs_lost:
            self._mark(pack, "lost", number)
        for pack in body.packs_found:
            self._mark(pack, "lost", 0)
        for pack in body.packs_gone:
            row = _pack(conn, pack)
            conn.execute("DELETE FROM packs WHERE number = ?", (pack,))
            self._changes.put(Space.PACK, META_GROUP, number_key(pack), pack_value(row), None)
        for key in body.objects_condemned:
            if conn.execute("INSERT OR IGNORE INTO condemned VALUES (?, ?)", (key, number)).rowcount:
                self._changes.put(Space.CONDEMNED, META_GROUP, key.encode(), None, number_value(number))
        for key in body.objects_gone:
            row = conn.execute("DELETE FROM condemned WHERE key = ? RETURNING number", (key,)).fetchone()
            if row is not None:
                self._changes.put(Space.CONDEMNED, META_GROUP, key.encode(), number_value(row[0]), None)

    def _mark(self, pack: int, column: str, value: int) -> None:
        """Condemned and lost keep their first commit."""
        old = _pack(self._conn, pack)
        self._conn.execute(f"UPDATE packs SET {column} = ? WHERE number = ? AND (? = 0 OR {column} = 0)", (value, pack, value))  # noqa: S608
        new = _pack(self._conn, pack)
        if new != old:
            self._changes.put(Space.PACK, META_GROUP, number_key(pack), pack_value(old), pack_value(new))

    # ---- folders' sections

    def _apply_section(self, fid: int, section: Section, first: int) -> AppliedFolder | None:
        records = section.records()
        applied = None
        if records:
            names = RecordApplier(self._conn, self._changes, fid, self._slot.store_time_us, self._added).apply(first, records)
            last = first + len(records) - 1
            self._number(fid, first, last)
            applied = AppliedFolder(first, last, names)
        for partial in section.partials:
            self._set_partial(fid, partial)
        for name, version in section.partials_dropped:
            drop_partial(self._conn, self._changes, fid, name, version)
        if section.partials_dropped_before_us:
            query = "SELECT name, version FROM partials WHERE fid = ? AND renewed_us < ?"
            for name, version in self._conn.execute(query, (fid, section.partials_dropped_before_us)).fetchall():
                drop_partial(self._conn, self._changes, fid, name, version)
        if section.history_dropped_before_us:
            query = f"SELECT {_VERSION} FROM history WHERE fid = ? AND superseded_us < ?"  # noqa: S608
            self._drop_history(fid, self._conn.execute(query, (fid, section.history_dropped_before_us)).fetchall())
        query = f"SELECT {_VERSION} FROM history WHERE fid = ? AND name = ? AND seq = ?"  # noqa: S608
        for name, sequence in dict.fromkeys(section.history_dropped):
            self._drop_history(fid, self._conn.execute(query, (fid, name, sequence)).fetchall())
        if section.tombstones_dropped_below:
            self._drop_tombstones(fid, section.tombstones_dropped_below)
        return applied

    def _number(self, fid: int, first: int, last: int) -> None:
        conn, put = self._conn, self._changes.put
        conn.execute("UPDATE folders SET last_sequence = ? WHERE fid = ?", (last, fid))
        row = conn.execute("SELECT start, last FROM intervals WHERE fid = ? ORDER BY start DESC LIMIT 1", (fid,)).fetchone()
        if row is not None and first - row[1] < MERGE_INTERVALS_US:
            conn.execute("UPDATE intervals SET last = ? WHERE fid = ? AND start = ?", (last, fid, row[0]))
            put(Space.INTERVAL, fid, number_key(row[0]), number_value(row[1]), number_value(last))
        else:
            conn.execute("INSERT INTO intervals VALUES (?, ?, ?)", (fid, first, last))
            put(Space.INTERVAL, fid, number_key(first), None, number_value(last))

    def _set_partial(self, fid: int, partial: Partial) -> None:
        drop_partial(self._conn, self._changes, fid, partial.name, partial.version)
        extents, encoded = canonical(partial.extents, self._added)
        wire, time_us = encode_partial(partial), self._slot.store_time_us
        self._conn.execute("INSERT INTO partials VALUES (?, ?, ?, ?, ?, ?)", (fid, partial.name, partial.version, time_us, wire, encoded))
        self._changes.put(Space.PARTIAL, fid, partial_key(partial.name, partial.version), None, partial_value(time_us, encoded, wire))
        self._changes.count(extents, 1)

    def _drop_history(self, fid: int, versions: Sequence[tuple[str, int, int, int, int, int, bytes, bytes]]) -> None:
        """Versions are columns `_VERSION`; one that is not there any more is not among them."""
        size = 0
        for name, seq, superseded_us, kind, length, flags, extents, info in versions:
            value = history_value(superseded_us, record_value(seq, flags, extents, info))
            self._changes.put(Space.HISTORY, fid, history_key(name, seq), value, None)
            self._changes.forget(fid, seq, decode_extents(extents))
            size += history_bytes(kind, length)
        self._conn.executemany("DELETE FROM history WHERE fid = ? AND name = ? AND seq = ?", [(fid, *version[:2]) for version in versions])
        count_history(self._conn, fid, -len(versions), -size)

    def _drop_tombstones(self, fid: int, below: int) -> None:
        totals = Totals()
        query = f"SELECT {COLUMNS} FROM records WHERE fid = ? AND deleted = 1 AND seq < ?"  # noqa: S608
        for row in map(Row._make, self._conn.execute(query, (fid, below))):
            self._changes.put(Space.RECORD, fid, row.name.encode(), row_value(row), None)
            self._changes.forget(fid, row.seq, decode_extents(row.extents))
            totals.add(row, -1)
        self._conn.execute("DELETE FROM records WHERE fid = ? AND deleted = 1 AND seq < ?", (fid, below))
        totals.write(self._conn, fid)


def _fid(conn: sqlite3.Connection, fkey: str) -> int:
    fid: int = conn.execute("SELECT fid FROM folders WHERE fkey = ?", (fkey,)).fetchone()[0]
    return fid


def _pack(conn: sqlite3.Connection, number: int) -> tuple[int, str, int, int, int, int, int, int]:
    query = "SELECT fid, id, size, blocks, footer_offset, footer_bytes, condemned, lost FROM packs WHERE number = ?"
    row: tuple[int, str, int, int, int, int, int, int] = conn.execute(query, (number,)).fetchone()
    return row


def relocate(conn: sqlite3.Connection, changes: Changes, pack: int, place: int, count: int, to_pack: int, to_place: int) -> None:
    """Sets where `count` blocks from (pack, place) on are; earlier relocations of the same blocks give way, of others stay."""
    end = place + count
    query = "SELECT place, count, to_pack, to_place FROM relocations WHERE pack = ? AND place < ? AND place + count > ?"
    for start, length, old_pack, old_place in conn.execute(query, (pack, end, place)).fetchall():
        _set_relocation(conn, changes, (pack, start), (length, old_pack, old_place), None)
        if start < place:
            _set_relocation(conn, changes, (pack, start), None, (place - start, old_pack, old_place))
        if start + length > end:
            _set_relocation(conn, changes, (pack, end), None, (start + length - end, old_pack, old_place + end - start))
    _set_relocation(conn, changes, (pack, place), None, (count, to_pack, to_place))


def drop_relocations(conn: sqlite3.Connection, changes: Changes, pack: int) -> None:
    """Forgets where the blocks of a pack went that nothing refers to."""
    for place, *value in conn.execute("SELECT place, count, to_pack, to_place FROM relocations WHERE pack = ?", (pack,)).fetchall():
        _set_relocation(conn, changes, (pack, place), (value[0], value[1], value[2]), None)


def _set_relocation(
    conn: sqlite3.Connection, changes: Changes, at: tuple[int, int], old: tuple[int, int, int] | None, new: tuple[int, int, int] | None
) -> None:
    if old is not None:
        conn.execute("DELETE FROM relocations WHERE pack = ? AND place = ?", at)
    if new is not None:
        conn.execute("INSERT INTO relocations VALUES (?, ?, ?, ?, ?)", (*at, *new))
    changes.put(
        Space.RELOCATION,
        META_GROUP,
        relocation_key(*at),
        None if old is None else relocation_value(*old),
        None if new is None else relocation_value(*new),
    )
