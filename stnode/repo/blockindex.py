"""A partial index of block hashes in SQLite: by eight bytes of the hash, where in which list the block stands.

One place per MiB and the first block of each file are entered, the newest pack with a block wins. A cache: it lives and goes
with the lists that it points into.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from sqlite3 import Connection
from typing import Final

from stnode.protocol.encryption import OVERHEAD
from stnode.repo.pack import PLAIN_HASH_BYTES, PackList

EVERY_BYTES: Final = 1 << 20
FULL_SIZES: Final = tuple((128 << 10) << step for step in range(8))
"""The sizes of blocks that are not the last of their file."""
_BATCH: Final = 1000

SCHEMA: Final = (
    """
    CREATE TABLE blockhash (folder INTEGER NOT NULL, h INTEGER NOT NULL, serial INTEGER NOT NULL, place INTEGER NOT NULL,
                            PRIMARY KEY (folder, h)) WITHOUT ROWID;
    CREATE TABLE blockhash_folders (folder INTEGER PRIMARY KEY, fkey TEXT NOT NULL UNIQUE)
    """,
)


class BlockIndex:
    """Called in the database's thread. Folders are known by `fkey`, lists by their serial in the cache of lists."""

    def add(self, conn: Connection, serial: int, fkey: str, blocks: PackList, file_starts: Sequence[int] | None) -> None:
        """Enters a list; `file_starts` are the places where files begin, None if that is not known."""
        folder = _folder(conn, fkey)
        if folder is None:
            folder = conn.execute("INSERT INTO blockhash_folders (fkey) VALUES (?)", (fkey,)).lastrowid
        heads = heads_of(blocks.hashes, blocks.hash_bytes)
        rows = sorted((folder, heads[place], serial, place) for place in indexed_places(blocks, file_starts))
        conn.executemany("INSERT OR REPLACE INTO blockhash VALUES (?, ?, ?, ?)", rows)

    def remove(self, conn: Connection, serial: int, fkey: str, blocks: PackList) -> None:
        """Takes out what points into a list."""
        folder = _folder(conn, fkey)
        rows = sorted((folder, head, serial) for head in heads_of(blocks.hashes, blocks.hash_bytes))
        conn.executemany("DELETE FROM blockhash WHERE folder = ? AND h = ? AND serial = ?", rows)

    def look_up(self, conn: Connection, fkey: str, heads: Iterable[int]) -> dict[int, tuple[int, int]]:
        """Head → (serial, place) for those heads that are there."""
        folder = _folder(conn, fkey)
        hits: dict[int, tuple[int, int]] = {}
        wanted = iter(sorted(heads) if folder is not None else ())
        while part := list(islice(wanted, _BATCH)):
            query = f"SELECT h, serial, place FROM blockhash WHERE folder = ? AND h IN ({','.join('?' * len(part))})"  # noqa: S608
            hits.update((head, (serial, place)) for head, serial, place in conn.execute(query, (folder, *part)))
        return hits


def heads_of(hashes: bytes, hash_bytes: int) -> Sequence[int]:
    """The first eight bytes of each hash as signed numbers."""
    if len(hashes) == hash_bytes:
        return (int.from_bytes(hashes[:8], "big", signed=True),)
    return list(chain.from_iterable(struct.iter_unpack(f">q{hash_bytes - 8}x", hashes)))


def indexed_places(blocks: PackList, file_starts: Sequence[int] | None) -> list[int]:
    """Where files begin, and at least one place per MiB. Where files begin is guessed when it is not known: after a block
    whose size is no full block's."""
    starts = set(file_starts) if file_starts is not None else _guessed_starts(blocks)
    places: list[int] = []
    due = 0
    for place, offset in zip(range(blocks.count), blocks.offsets, strict=False):
        if place in starts or offset >= due:
            places.append(place)
            due = offset + EVERY_BYTES
    return places


def _guessed_starts(blocks: PackList) -> set[int]:
    overhead = 0 if blocks.hash_bytes == PLAIN_HASH_BYTES else OVERHEAD
    full = frozenset(size + overhead for size in FULL_SIZES)
    return {0, *(place for place, before in enumerate(blocks.lengths, 1) if before not in full)}


def _folder(conn: Connection, fkey: str) -> int | None:
    row = conn.execute("SELECT folder FROM blockhash_folders WHERE fkey = ?", (fkey,)).fetchone()
    return None if row is None else row[0]
