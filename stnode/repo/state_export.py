"""The state's entries as runs hold them, read from the tables in the order of (space, key). Counterpart of `state_load.py`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from stnode.repo.codec_run import Space
from stnode.repo.state_schema import (
    META_GROUP,
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
    split_history_key,
    split_relocation_key,
)

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Export:
    """`query` takes the group, the columns of a key, a limit, and yields rows from that key on; `columns` parses a key."""

    query: str
    columns: Callable[[bytes], Row]
    entry: Callable[[Row], tuple[bytes, bytes]]
    first: Row


def _text(key: bytes) -> Row:
    return (key.decode(),)


def _number(key: bytes) -> Row:
    return (int.from_bytes(key, "big"),)


def _partial_columns(key: bytes) -> Row:
    name, _, version = key.partition(b"\0")
    return name.decode(), version


_EXPORTS: Final = {
    Space.FOLDER: _Export(
        "SELECT fkey, fid, removed, settings FROM folders WHERE ? = 0 AND fkey >= ? ORDER BY fkey LIMIT ?",
        _text,
        lambda row: (row[0].encode(), folder_value(*row[1:])),
        ("",),
    ),
    Space.DEVICE: _Export(
        "SELECT id, settings FROM devices WHERE ? = 0 AND id >= ? ORDER BY id LIMIT ?",
        lambda key: (key,),
        lambda row: (row[0], row[1]),
        (b"",),
    ),
    Space.FEATURE: _Export(
        "SELECT name, number FROM features WHERE ? = 0 AND name >= ? ORDER BY name LIMIT ?",
        _text,
        lambda row: (row[0].encode(), number_value(row[1])),
        ("",),
    ),
    Space.PACK: _Export(
        "SELECT number, fid, id, size, blocks, footer_offset, footer_bytes, condemned, lost FROM packs WHERE ? = 0 AND number >= ? "
        "ORDER BY number LIMIT ?",
        _number,
        lambda row: (number_key(row[0]), pack_value((row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8]))),
        (0,),
    ),
    Space.RELOCATION: _Export(
        "SELECT pack, place, count, to_pack, to_place FROM relocations WHERE ? = 0 AND (pack, place) >= (?, ?) ORDER BY pack, place LIMIT ?",
        split_relocation_key,
        lambda row: (relocation_key(row[0], row[1]), relocation_value(row[2], row[3], row[4])),
        (0, 0),
    ),
    Space.CONDEMNED: _Export(
        "SELECT key, number FROM condemned WHERE ? = 0 AND key >= ? ORDER BY key LIMIT ?",
        _text,
        lambda row: (row[0].encode(), number_value(row[1])),
        ("",),
    ),
    Space.RECORD: _Export(
        "SELECT name, seq, flags, extents, info FROM records WHERE fid = ? AND name >= ? ORDER BY name LIMIT ?",
        _text,
        lambda row: (row[0].encode(), record_value(row[1], row[2], row[3], row[4])),
        ("",),
    ),
    Space.HISTORY: _Export(
        "SELECT name, seq, superseded_us, flags, extents, info FROM history WHERE fid = ? AND (name, seq) >= (?, ?) "
        "ORDER BY name, seq LIMIT ?",
        split_history_key,
        lambda row: (history_key(row[0], row[1]), history_value(row[2], record_value(row[1], row[3], row[4], row[5]))),
        ("", 0),
    ),
    Space.PARTIAL: _Export(
        "SELECT name, version, renewed_us, extents, partial FROM partials WHERE fid = ? AND (name, version) >= (?, ?) "
        "ORDER BY name, version LIMIT ?",
        _partial_columns,
        lambda row: (partial_key(row[0], row[1]), partial_value(row[2], row[3], row[4])),
        ("", b""),
    ),
    Space.INTERVAL: _Export(
        "SELECT start, last FROM intervals WHERE fid = ? AND start >= ? ORDER BY start LIMIT ?",
        _number,
        lambda row: (number_key(row[0]), number_value(row[1])),
        (0,),
    ),
}


def scan(conn: sqlite3.Connection, group: int, first_key: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Entries of a group from `first_key` (space byte, then key; b"" = from the start) on, ascending, read as they are asked for."""
    start = first_key[0] if first_key else 0
    for space, export in _EXPORTS.items():
        if (space < Space.RECORD) is not (group == META_GROUP) or space < start:
            continue
        columns = export.columns(first_key[1:]) if space == start else export.first
        for row in conn.execute(export.query, (group, *columns, -1)):
            yield (space, *export.entry(row))


def lookup(conn: sqlite3.Connection, group: int, space: int, key: bytes) -> bytes | None:
    """Value of one entry, None when there is none."""
    export = _EXPORTS[Space(space)]
    row = conn.execute(export.query, (group, *export.columns(key), 1)).fetchone()
    if row is None:
        return None
    found, value = export.entry(row)
    return value if found == key else None
