"""The state in SQLite: its tables, the bytes of its entries, its hash (docs/format.md, State). No rules of commits here.

In the format's eyes the state is a map (space, group, key) -> value; runs hold exactly that map and the state hash is the sum
of its entries' hashes modulo 2^128. The tables hold the same facts in columns, and besides what follows from them: totals,
reference counts, which keys changed since when (`dirty`, for delta runs), the hashes of the last commits (`hashes`), and which commits
raised the orphan horizon (`horizons`).
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterable
from typing import Final

from stnode.repo.checksum import xxh3_128
from stnode.repo.codec_run import Space
from stnode.repo.records import Extents, encode_extents

LAYER: Final = "state"
BULK_INDEXES: Final = {
    "records_seq": "CREATE UNIQUE INDEX records_seq ON records (fid, seq)",
    "records_deleted": "CREATE INDEX records_deleted ON records (fid, seq) WHERE deleted = 1",
    "history_seq": "CREATE UNIQUE INDEX history_seq ON history (fid, seq)",
    "history_superseded": "CREATE INDEX history_superseded ON history (fid, superseded_us)",
}
"""Indexes that a restore makes only after the rows."""
STEPS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE state (
        id INTEGER PRIMARY KEY CHECK (id = 1), complete INTEGER NOT NULL, number INTEGER NOT NULL, slot_sha BLOB NOT NULL,
        store_time_us INTEGER NOT NULL, horizon_us INTEGER NOT NULL, next_pack INTEGER NOT NULL, next_folder INTEGER NOT NULL,
        hash BLOB NOT NULL, dirty_from INTEGER NOT NULL, bytes INTEGER NOT NULL, truncated INTEGER NOT NULL, verified INTEGER NOT NULL);
    INSERT INTO state VALUES (1, 1, 0, zeroblob(32), 0, 0, 1, 1, zeroblob(16), 0, 0, 0, 0);
    CREATE TABLE hashes (number INTEGER PRIMARY KEY, hash BLOB NOT NULL);
    CREATE TABLE folders (
        fid INTEGER PRIMARY KEY, fkey TEXT NOT NULL UNIQUE, folder_id TEXT NOT NULL, incarnation TEXT NOT NULL, index_id TEXT NOT NULL UNIQUE,
        settings BLOB NOT NULL, removed INTEGER NOT NULL DEFAULT 0, last_sequence INTEGER NOT NULL DEFAULT 0,
        files INTEGER NOT NULL DEFAULT 0, directories INTEGER NOT NULL DEFAULT 0, symlinks INTEGER NOT NULL DEFAULT 0,
        deleted INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, hash BLOB NOT NULL DEFAULT x'00000000000000000000000000000000');
    CREATE TABLE devices (id BLOB PRIMARY KEY, settings BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE features (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE packs (
        number INTEGER PRIMARY KEY, fid INTEGER NOT NULL, id TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, blocks INTEGER NOT NULL,
        footer_offset INTEGER NOT NULL, footer_bytes INTEGER NOT NULL, condemned INTEGER NOT NULL, lost INTEGER NOT NULL,
        refs INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE relocations (
        pack INTEGER NOT NULL, place INTEGER NOT NULL, count INTEGER NOT NULL, to_pack INTEGER NOT NULL, to_place INTEGER NOT NULL,
        PRIMARY KEY (pack, place)) WITHOUT ROWID;
    CREATE INDEX relocations_to ON relocations (to_pack);
    CREATE TABLE condemned (key TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE intervals (
        fid INTEGER NOT NULL, start INTEGER NOT NULL, last INTEGER NOT NULL, PRIMARY KEY (fid, start)) WITHOUT ROWID;
    CREATE TABLE records (
        fid INTEGER NOT NULL, name TEXT NOT NULL, seq INTEGER NOT NULL, type INTEGER NOT NULL, deleted INTEGER NOT NULL,
        invalid INTEGER NOT NULL, flags INTEGER NOT NULL, size INTEGER NOT NULL, version BLOB NOT NULL, info BLOB NOT NULL,
        extents BLOB NOT NULL, PRIMARY KEY (fid, name)) WITHOUT ROWID;
    CREATE TABLE history (
        fid INTEGER NOT NULL, name TEXT NOT NULL, seq INTEGER NOT NULL, superseded_us INTEGER NOT NULL, type INTEGER NOT NULL,
        flags INTEGER NOT NULL, size INTEGER NOT NULL, version BLOB NOT NULL, info BLOB NOT NULL, extents BLOB NOT NULL,
        PRIMARY KEY (fid, name, seq)) WITHOUT ROWID;
    CREATE TABLE partials (
        fid INTEGER NOT NULL, name TEXT NOT NULL, version BLOB NOT NULL, renewed_us INTEGER NOT NULL, partial BLOB NOT NULL,
        extents BLOB NOT NULL, PRIMARY KEY (fid, name, version)) WITHOUT ROWID;
    CREATE TABLE refs (
        pack INTEGER NOT NULL, fid INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (pack, fid, seq)) WITHOUT ROWID;
    CREATE TABLE dirty (
        grp INTEGER NOT NULL, space INTEGER NOT NULL, key BLOB NOT NULL, number INTEGER NOT NULL,
        PRIMARY KEY (grp, space, key)) WITHOUT ROWID
    """,
    ";".join(BULK_INDEXES.values()),
    """
    ALTER TABLE state ADD COLUMN orphan_age_us INTEGER NOT NULL DEFAULT 86400000000;
    CREATE TABLE horizons (number INTEGER PRIMARY KEY, horizon_us INTEGER NOT NULL)
    """,
    "CREATE INDEX records_flagged ON records (fid, name) WHERE flags <> 0",
    """
    ALTER TABLE folders ADD COLUMN old_versions INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE folders ADD COLUMN old_bytes INTEGER NOT NULL DEFAULT 0;
    UPDATE folders SET
        old_versions = (SELECT count(*) FROM history h WHERE h.fid = folders.fid),
        old_bytes = (SELECT coalesce(sum(size), 0) FROM history h WHERE h.fid = folders.fid AND h.type = 0)
    """,
    "CREATE INDEX packs_unwanted ON packs (number) WHERE refs = 0 AND condemned = 0",
)
"""Steps of `Database.migrate`. `index_id` is text because SQLite has no unsigned 64-bit integer."""

CONTENT_TABLES: Final = (
    "folders devices features packs relocations condemned intervals records history partials refs dirty hashes horizons".split()  # noqa: SIM905
)
MODULUS_MASK: Final = (1 << 128) - 1
META_GROUP: Final = 0

_HASHED: Final = struct.Struct("<BII")
_RECORD: Final = struct.Struct("<QII")
_HISTORY: Final = struct.Struct("<Q")
_PARTIAL: Final = struct.Struct("<QI")
_PACK: Final = struct.Struct("<IQIQIQQ")
_FOLDER: Final = struct.Struct("<IQ")
_RELOCATION_KEY: Final = struct.Struct(">QI")
_RELOCATION: Final = struct.Struct("<IQI")
_NUMBER_KEY: Final = struct.Struct(">Q")
_NUMBER: Final = struct.Struct("<Q")
_HEAD: Final = struct.Struct("<Q32sQQQI")


def entry_hash(space: int, group: int, key: bytes, value: bytes) -> int:
    """What one entry adds to the state hash."""
    return xxh3_128(_HASHED.pack(space, group, len(key)) + key + value)


def record_value(seq: int, flags: int, extents: bytes, info: bytes) -> bytes:
    return _RECORD.pack(seq, flags, len(extents)) + extents + info


def split_record(value: bytes, at: int = 0) -> tuple[int, int, bytes, bytes]:
    """(sequence, local flags, encoded extents, info) of a record's value that begins at `at`."""
    seq, flags, length = _RECORD.unpack_from(value, at)
    start = at + _RECORD.size
    return seq, flags, value[start : start + length], value[start + length :]


def history_key(name: str, seq: int) -> bytes:
    return name.encode() + b"\0" + _NUMBER_KEY.pack(seq)


def split_history_key(key: bytes) -> tuple[str, int]:
    return key[:-9].decode(), int.from_bytes(key[-8:], "big")


def history_value(superseded_us: int, record: bytes) -> bytes:
    return _HISTORY.pack(superseded_us) + record


def split_history(value: bytes) -> tuple[int, tuple[int, int, bytes, bytes]]:
    """(time superseded, record) of a history entry's value."""
    return _HISTORY.unpack_from(value)[0], split_record(value, _HISTORY.size)


def partial_key(name: str, version: bytes) -> bytes:
    return name.encode() + b"\0" + version


def partial_value(renewed_us: int, extents: bytes, partial: bytes) -> bytes:
    return _PARTIAL.pack(renewed_us, len(extents)) + extents + partial


def split_partial(value: bytes) -> tuple[int, bytes, bytes]:
    """(time renewed, encoded extents, Partial message)."""
    renewed_us, length = _PARTIAL.unpack_from(value)
    return renewed_us, value[_PARTIAL.size : _PARTIAL.size + length], value[_PARTIAL.size + length :]


PackRow = tuple[int, str, int, int, int, int, int, int]
"""(fid, id, size, blocks, footer offset, footer bytes, condemned by, lost by)"""


def pack_value(row: PackRow) -> bytes:
    fid, name, size, blocks, offset, footer, condemned, lost = row
    return _PACK.pack(fid, size, blocks, offset, footer, condemned, lost) + name.encode()


def split_pack(value: bytes) -> PackRow:
    fid, size, blocks, offset, footer, condemned, lost = _PACK.unpack_from(value)
    return fid, value[_PACK.size :].decode(), size, blocks, offset, footer, condemned, lost


def folder_value(fid: int, removed: int, settings: bytes) -> bytes:
    return _FOLDER.pack(fid, removed) + settings


def split_folder(value: bytes) -> tuple[int, int, bytes]:
    """(fid, number of the commit that removed it or 0, settings)."""
    fid, removed = _FOLDER.unpack_from(value)
    return fid, removed, value[_FOLDER.size :]


def relocation_key(pack: int, place: int) -> bytes:
    return _RELOCATION_KEY.pack(pack, place)


def split_relocation_key(key: bytes) -> tuple[int, int]:
    pack, place = _RELOCATION_KEY.unpack(key)
    return pack, place


def relocation_value(count: int, to_pack: int, to_place: int) -> bytes:
    return _RELOCATION.pack(count, to_pack, to_place)


def split_relocation(value: bytes) -> tuple[int, int, int]:
    count, to_pack, to_place = _RELOCATION.unpack(value)
    return count, to_pack, to_place


def number_key(number: int) -> bytes:
    return _NUMBER_KEY.pack(number)


def number_value(number: int) -> bytes:
    return _NUMBER.pack(number)


def split_number(value: bytes) -> int:
    number: int = _NUMBER.unpack(value)[0]
    return number


def head_value(number: int, slot_sha: bytes, store_time_us: int, horizon_us: int, next_pack: int, next_folder: int) -> bytes:
    return _HEAD.pack(number, slot_sha, store_time_us, horizon_us, next_pack, next_folder)


class Changes:
    """What a commit does to hashes, dirty keys and reference counts, collected and written at once by `flush`."""

    def __init__(self, conn: sqlite3.Connection, number: int) -> None:
        self.conn = conn
        self.number = number
        self._sums: dict[int, int] = {}
        self._dirty: list[tuple[int, int, bytes, int]] = []
        self._refs: dict[int, int] = {}
        self._ref_rows: list[tuple[int, int, int]] = []
        self._unref_rows: list[tuple[int, int, int]] = []

    def put(self, space: Space, group: int, key: bytes, old: bytes | None, new: bytes | None) -> None:
        """An entry's value changed from `old` to `new`; None where there is none."""
        total = self._sums.get(group, 0)
        if old is not None:
            total -= entry_hash(space, group, key, old)
        if new is not None:
            total += entry_hash(space, group, key, new)
        self._sums[group] = total
        self._dirty.append((group, space, key, self.number))

    def refer(self, fid: int, seq: int, extents: Extents) -> None:
        """The version with this sequence refers to these blocks."""
        self.count(extents, 1)
        self._ref_rows.extend((pack, fid, seq) for pack in {extent[0] for extent in extents} if pack)

    def forget(self, fid: int, seq: int, extents: Extents) -> None:
        """The version with this sequence is gone."""
        self.count(extents, -1)
        self._unref_rows.extend((pack, fid, seq) for pack in {extent[0] for extent in extents} if pack)

    def count(self, extents: Iterable[tuple[int, int, int]], sign: int) -> None:
        """Adds to the block references of the packs."""
        for pack, _, count in extents:
            if pack:
                self._refs[pack] = self._refs.get(pack, 0) + sign * count

    def drop_group(self, group: int) -> None:
        """All of a folder's entries are gone; the caller deletes the rows."""
        self._sums.pop(group, None)
        row = self.conn.execute("SELECT hash FROM folders WHERE fid = ?", (group,)).fetchone()
        self.conn.execute("UPDATE folders SET hash = zeroblob(16) WHERE fid = ?", (group,))
        add_to_hash(self.conn, "state", 1, -int.from_bytes(row[0], "little"))
        self._dirty = [row for row in self._dirty if row[0] != group]
        self._ref_rows = [row for row in self._ref_rows if row[1] != group]

    def flush(self) -> None:
        """Writes what was collected."""
        conn = self.conn
        conn.executemany("INSERT OR REPLACE INTO dirty VALUES (?, ?, ?, ?)", self._dirty)
        conn.executemany("INSERT OR IGNORE INTO refs VALUES (?, ?, ?)", self._ref_rows)
        conn.executemany("DELETE FROM refs WHERE pack = ? AND fid = ? AND seq = ?", self._unref_rows)
        conn.executemany(
            "UPDATE packs SET refs = refs + ? WHERE number = ?", [(change, pack) for pack, change in self._refs.items() if change]
        )
        for group, change in self._sums.items():
            if group != META_GROUP:
                add_to_hash(conn, "folders", group, change)
        add_to_hash(conn, "state", 1, sum(self._sums.values()))


def add_to_hash(conn: sqlite3.Connection, table: str, key: int, change: int) -> None:
    """Adds to the sum of entry hashes that the state keeps (without the head), or one of the folders."""
    column = "id" if table == "state" else "fid"
    row = conn.execute(f"SELECT hash FROM {table} WHERE {column} = ?", (key,)).fetchone()  # noqa: S608
    total = (int.from_bytes(row[0], "little") + change) & MODULUS_MASK
    conn.execute(f"UPDATE {table} SET hash = ? WHERE {column} = ?", (total.to_bytes(16, "little"), key))  # noqa: S608


def canonical(extents: Extents, added: dict[int, int]) -> tuple[Extents, bytes]:
    """Extents of a body with registered pack numbers (`added` maps -(i + 1) to them), and their bytes."""
    if any(extent[0] < 0 for extent in extents):
        extents = tuple((added[pack] if pack < 0 else pack, place, count) for pack, place, count in extents)
    return extents, encode_extents(extents)
