"""The hot part of applying a commit: one folder's records, the history that they make, the totals. Mechanical."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final, NamedTuple

from stnode.protocol import vector
from stnode.protocol.fileinfo import FileType
from stnode.repo.codec_body import BodyRecord
from stnode.repo.codec_run import Space
from stnode.repo.pb import store_pb2 as pb
from stnode.repo.records import HistoryRule, decode_extents
from stnode.repo.state_schema import Changes, canonical, history_key, history_value, partial_key, partial_value, record_value


class Row(NamedTuple):
    """A row of `records`, in the order of its columns."""

    fid: int
    name: str
    seq: int
    type: int
    deleted: int
    invalid: int
    flags: int
    size: int
    version: bytes
    info: bytes
    extents: bytes


COLUMNS: Final = ", ".join(Row._fields)

_BATCH: Final = 500
_DIRECTORY: Final = 1
_SYMLINKS: Final = (2, 3, 4)
_view = pb.FileView.FromString


def make_row(fid: int, seq: int, flags: int, extents: bytes, info: bytes) -> Row:
    """The row of a record; raises protobuf's DecodeError where `info` is no FileInfo."""
    v = _view(info)
    return Row(fid, v.name, seq, v.type, 1 if v.deleted else 0, 1 if v.invalid else 0, flags, v.size, v.version, info, extents)


def load(conn: sqlite3.Connection, fid: int, names: Sequence[str]) -> dict[str, Row]:
    """Current rows of those names that exist."""
    found: dict[str, Row] = {}
    for start in range(0, len(names), _BATCH):
        part = names[start : start + _BATCH]
        marks = ",".join("?" * len(part))
        query = f"SELECT {COLUMNS} FROM records WHERE fid = ? AND name IN ({marks})"  # noqa: S608
        found.update((row[1], Row._make(row)) for row in conn.execute(query, (fid, *part)))
    return found


def row_value(row: Row) -> bytes:
    """The record's value in the state."""
    return record_value(row.seq, row.flags, row.extents, row.info)


class Totals:
    """What a folder's records amount to; invalid ones count nowhere. `bytes` is of live files."""

    __slots__ = ("bytes", "deleted", "directories", "files", "symlinks")

    def __init__(self) -> None:
        self.files = self.directories = self.symlinks = self.deleted = self.bytes = 0

    def add(self, row: Row, sign: int) -> None:
        """Counts a row in (1) or out (-1)."""
        if row.invalid:
            return
        if row.deleted:
            self.deleted += sign
        elif row.type == _DIRECTORY:
            self.directories += sign
        elif row.type in _SYMLINKS:
            self.symlinks += sign
        else:
            self.files += sign
            self.bytes += sign * row.size

    def write(self, conn: sqlite3.Connection, fid: int) -> None:
        """Adds these to the folder's."""
        conn.execute(
            "UPDATE folders SET files = files + ?, directories = directories + ?, symlinks = symlinks + ?, deleted = deleted + ?, "
            "bytes = bytes + ? WHERE fid = ?",
            (self.files, self.directories, self.symlinks, self.deleted, self.bytes, fid),
        )


def history_bytes(type: int, size: int) -> int:  # noqa: A002 - the column's name
    """What a retained version counts."""
    return size if type == FileType.FILE else 0


def count_history(conn: sqlite3.Connection, fid: int, versions: int, size: int) -> None:
    """Adds to what a folder retains."""
    conn.execute("UPDATE folders SET old_versions = old_versions + ?, old_bytes = old_bytes + ? WHERE fid = ?", (versions, size, fid))


class RecordApplier:
    """Applies one folder's records; `added` maps relative pack numbers to registered ones."""

    def __init__(self, conn: sqlite3.Connection, changes: Changes, fid: int, time_us: int, added: dict[int, int]) -> None:
        self._conn = conn
        self._changes = changes
        self._fid = fid
        self._time_us = time_us
        self._added = added
        self._totals = Totals()
        self._written: dict[str, Row] = {}
        self._history: list[tuple[object, ...]] = []
        self._history_bytes = 0

    def apply(self, first: int, records: Sequence[BodyRecord]) -> tuple[str, ...]:
        """Writes the records under the numbers first, first + 1, …; returns their names in that order."""
        fid, changes = self._fid, self._changes
        rows: list[Row] = []
        for seq, record in enumerate(records, first):
            extents, encoded = canonical(record.extents, self._added)
            rows.append(make_row(fid, seq, record.local_flags, encoded, record.info))
            changes.refer(fid, seq, extents)
        names = tuple(row.name for row in rows)
        current = load(self._conn, fid, names)
        for record, row in zip(records, rows, strict=True):
            name = row.name
            if record.history is HistoryRule.ONLY:
                self._keep(row)
                continue
            old = current.get(name)
            changes.put(Space.RECORD, fid, name.encode(), None if old is None else row_value(old), row_value(row))
            if old is not None:
                self._totals.add(old, -1)
                if record.history is HistoryRule.KEEP and not old.deleted:
                    self._keep(old)
                else:
                    changes.forget(fid, old.seq, decode_extents(old.extents))
            self._totals.add(row, 1)
            current[name] = self._written[name] = row
        self._write()
        return names

    def _keep(self, row: Row) -> None:
        value = history_value(self._time_us, row_value(row))
        self._changes.put(Space.HISTORY, self._fid, history_key(row.name, row.seq), None, value)
        self._history.append((*row[:3], self._time_us, row.type, *row[6:]))
        self._history_bytes += history_bytes(row.type, row.size)

    def _write(self) -> None:
        conn = self._conn
        conn.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._written.values())
        conn.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._history)
        self._totals.write(conn, self._fid)
        count_history(conn, self._fid, len(self._history), self._history_bytes)
        if conn.execute("SELECT 1 FROM partials WHERE fid = ? LIMIT 1", (self._fid,)).fetchone():
            for name, row in self._written.items():
                self._end_partials(name, row.version)

    def _end_partials(self, name: str, version: bytes) -> None:
        """A committed version ends the partial files of itself and of the versions that it contains."""
        committed = vector.from_wire(version)
        for (wire,) in self._conn.execute("SELECT version FROM partials WHERE fid = ? AND name = ?", (self._fid, name)).fetchall():
            if vector.covers(committed, vector.from_wire(wire)):
                drop_partial(self._conn, self._changes, self._fid, name, wire)


def drop_partial(conn: sqlite3.Connection, changes: Changes, fid: int, name: str, version: bytes) -> None:
    """Ends a partial file; nothing happens when there is none."""
    query = "SELECT renewed_us, extents, partial FROM partials WHERE fid = ? AND name = ? AND version = ?"
    row = conn.execute(query, (fid, name, version)).fetchone()
    if row is None:
        return
    conn.execute("DELETE FROM partials WHERE fid = ? AND name = ? AND version = ?", (fid, name, version))
    changes.put(Space.PARTIAL, fid, partial_key(name, version), partial_value(*row), None)
    changes.count(decode_extents(row[1]), -1)
