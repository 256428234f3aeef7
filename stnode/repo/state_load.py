"""Filling the state's tables from the entries of a manifest's runs, in bulk. `begin`, `load` for every batch, `finish`."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from stnode.errors import Corrupt
from stnode.repo.codec_body import decode_partial
from stnode.repo.codec_manifest import Manifest
from stnode.repo.codec_run import Space
from stnode.repo.records import decode_extents
from stnode.repo.runs import Batch
from stnode.repo.settings import decode_folder
from stnode.repo.state_reads import state_hash
from stnode.repo.state_records import Row, Totals, count_history, history_bytes, make_row
from stnode.repo.state_schema import (
    BULK_INDEXES,
    CONTENT_TABLES,
    META_GROUP,
    add_to_hash,
    split_folder,
    split_history,
    split_history_key,
    split_number,
    split_pack,
    split_partial,
    split_record,
    split_relocation,
    split_relocation_key,
)

Items = list[tuple[bytes, bytes]]


class Loader:
    """One restore. Group 0 comes first, for the folders' rows; every method runs in a write transaction of the database."""

    def __init__(self) -> None:
        self._refs: dict[int, int] = {}

    def begin(self, conn: sqlite3.Connection) -> None:
        """Empties the state and marks it incomplete."""
        conn.execute("UPDATE state SET complete = 0")
        for table in CONTENT_TABLES:
            conn.execute(f"DELETE FROM {table}")  # noqa: S608
        conn.execute(
            "UPDATE state SET number = 0, slot_sha = zeroblob(32), store_time_us = 0, horizon_us = 0, next_pack = 1, next_folder = 1, "
            "hash = zeroblob(16), dirty_from = 0, bytes = 0, truncated = 0, verified = 0"
        )

    def drop_indexes(self, conn: sqlite3.Connection) -> None:
        """Bulk inserts are twice as fast without them; `finish` makes them again."""
        for name in BULK_INDEXES:
            conn.execute(f"DROP INDEX IF EXISTS {name}")

    def load(self, conn: sqlite3.Connection, group: int, batch: Batch) -> None:
        """Inserts entries of one group. Raises Corrupt for an entry that no version 1 state has."""
        spaces: dict[int, Items] = {}
        for space, key, value in batch.entries:
            spaces.setdefault(space, []).append((key, value))
        try:
            for space, items in spaces.items():
                self._load_space(conn, group, Space(space), items)
        except (ValueError, struct.error, DecodeError, sqlite3.IntegrityError) as exc:
            raise Corrupt(f"an entry of group {group} of a manifest cannot be read: {exc}") from exc
        add_to_hash(conn, "state", 1, batch.hash_sum)
        if group != META_GROUP:
            add_to_hash(conn, "folders", group, batch.hash_sum)

    def abandon(self, conn: sqlite3.Connection) -> None:
        """After an error: empties the state, which stays incomplete, so that another manifest can be loaded."""
        self.begin(conn)
        self._make_indexes(conn)

    def _make_indexes(self, conn: sqlite3.Connection) -> None:
        for name, sql in BULK_INDEXES.items():
            conn.execute(f"DROP INDEX IF EXISTS {name}")
            conn.execute(sql)

    def _load_space(self, conn: sqlite3.Connection, group: int, space: Space, items: Items) -> None:
        match space:
            case Space.RECORD:
                self._records(conn, group, items)
            case Space.HISTORY:
                self._history(conn, group, items)
            case Space.PARTIAL:
                self._partials(conn, group, items)
            case _:
                query, row = _SMALL[space]
                conn.executemany(query, [row(group, key, value) for key, value in items])

    def _refer(self, encoded: bytes, fid: int, seq: int, rows: list[tuple[int, int, int]]) -> None:
        refs = self._refs
        named = set()
        for pack, _, count in decode_extents(encoded):
            if pack:
                refs[pack] = refs.get(pack, 0) + count
                named.add(pack)
        rows.extend((pack, fid, seq) for pack in named)

    def _records(self, conn: sqlite3.Connection, fid: int, items: Items) -> None:
        totals = Totals()
        rows: list[Row] = []
        refs: list[tuple[int, int, int]] = []
        for key, value in items:
            seq, flags, extents, info = split_record(value)
            row = make_row(fid, seq, flags, extents, info)
            if row.name.encode() != key:
                raise ValueError("a record lies under another name")
            totals.add(row, 1)
            rows.append(row)
            if extents:
                self._refer(extents, fid, seq, refs)
        conn.executemany(f"INSERT INTO records VALUES ({','.join('?' * len(Row._fields))})", rows)  # noqa: S608
        conn.executemany("INSERT INTO refs VALUES (?, ?, ?)", sorted(refs))
        totals.write(conn, fid)

    def _history(self, conn: sqlite3.Connection, fid: int, items: Items) -> None:
        size = 0
        rows: list[tuple[object, ...]] = []
        refs: list[tuple[int, int, int]] = []
        for key, value in items:
            name, _ = split_history_key(key)
            superseded_us, (seq, flags, extents, info) = split_history(value)
            row = make_row(fid, seq, flags, extents, info)
            rows.append((fid, name, seq, superseded_us, row.type, flags, row.size, row.version, info, extents))
            if extents:
                self._refer(extents, fid, seq, refs)
            size += history_bytes(row.type, row.size)
        conn.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        count_history(conn, fid, len(rows), size)
        conn.executemany("INSERT INTO refs VALUES (?, ?, ?)", sorted(refs))

    def _partials(self, conn: sqlite3.Connection, fid: int, items: Items) -> None:
        for _, value in items:
            renewed_us, extents, wire = split_partial(value)
            partial = decode_partial(wire, extents)
            conn.execute("INSERT INTO partials VALUES (?, ?, ?, ?, ?, ?)", (fid, partial.name, partial.version, renewed_us, wire, extents))
            for pack, _, count in partial.extents:
                if pack:
                    self._refs[pack] = self._refs.get(pack, 0) + count

    def finish(self, conn: sqlite3.Connection, manifest: Manifest) -> None:
        """Makes what follows from the entries and compares the state hash: Corrupt when it is not the manifest's."""
        self._make_indexes(conn)
        conn.executemany("UPDATE packs SET refs = ? WHERE number = ?", [(refs, pack) for pack, refs in self._refs.items()])
        conn.execute("UPDATE folders SET last_sequence = coalesce((SELECT max(last) FROM intervals i WHERE i.fid = folders.fid), 0)")
        conn.execute(
            "UPDATE state SET complete = 1, number = ?, slot_sha = ?, store_time_us = ?, horizon_us = ?, next_pack = ?, next_folder = ?, dirty_from = ?",
            (
                manifest.number,
                manifest.slot_sha,
                manifest.store_time_us,
                manifest.horizon_us,
                manifest.next_pack,
                manifest.next_folder,
                manifest.number,
            ),
        )
        if manifest.horizon_us:
            conn.execute("INSERT INTO horizons VALUES (?, ?)", (manifest.number, manifest.horizon_us))
        if state_hash(conn) != manifest.state_hash:
            raise Corrupt(f"the runs of manifest {manifest.number} do not add up to its state hash", hint="run `stnode bucket check`")
        conn.execute("INSERT INTO hashes VALUES (?, ?)", (manifest.number, manifest.state_hash))


def _folder_row(_: int, key: bytes, value: bytes) -> tuple[object, ...]:
    fid, removed, wire = split_folder(value)
    settings = decode_folder(wire)
    return fid, key.decode(), settings.folder_id, settings.incarnation, str(settings.index_id), wire, removed


_SMALL: Final[dict[Space, tuple[str, Callable[[int, bytes, bytes], tuple[object, ...]]]]] = {
    Space.FOLDER: (
        "INSERT INTO folders (fid, fkey, folder_id, incarnation, index_id, settings, removed) VALUES (?, ?, ?, ?, ?, ?, ?)",
        _folder_row,
    ),
    Space.DEVICE: ("INSERT INTO devices VALUES (?, ?)", lambda _, key, value: (key, value)),
    Space.FEATURE: ("INSERT INTO features VALUES (?, ?)", lambda _, key, value: (key.decode(), split_number(value))),
    Space.PACK: (
        "INSERT INTO packs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
        lambda _, key, value: (int.from_bytes(key, "big"), *split_pack(value)),
    ),
    Space.RELOCATION: (
        "INSERT INTO relocations VALUES (?, ?, ?, ?, ?)",
        lambda _, key, value: (*split_relocation_key(key), *split_relocation(value)),
    ),
    Space.CONDEMNED: ("INSERT INTO condemned VALUES (?, ?)", lambda _, key, value: (key.decode(), split_number(value))),
    Space.INTERVAL: (
        "INSERT INTO intervals VALUES (?, ?, ?)",
        lambda fid, key, value: (fid, int.from_bytes(key, "big"), split_number(value)),
    ),
}
"""How entries of the small spaces become rows: statement, and row of (group, key, value)."""
