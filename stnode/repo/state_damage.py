"""What lost packs mean for the records of the state: which cannot be read, which are marked though they can. Reads only.

A block is lost where its address, relocations followed, lies in a pack that a commit has marked lost. A record with a lost block must
carry `LocalFlag.MUST_FETCH`, any other one must not: both follow from the state alone, so every node finds the same. Local changes of a
receive-only folder are left out: peers see them invalid anyway, and nobody else can have had them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from stnode.protocol.fileinfo import from_record
from stnode.repo.records import Extents, LocalFlag, Record, decode_extents
from stnode.repo.state_reads import Pack, packs, resolve

_FLAGS = int(LocalFlag.MUST_FETCH | LocalFlag.RECEIVE_ONLY)
_COLUMNS = "r.fid, r.name, r.seq, r.flags, r.info, r.extents"


def lost_packs(conn: sqlite3.Connection) -> list[Pack]:
    """Packs that are marked lost and may still be named."""
    numbers = [number for (number,) in conn.execute("SELECT number FROM packs WHERE lost > 0 AND condemned = 0")]
    return sorted(packs(conn, numbers).values(), key=lambda pack: pack.number)


def sources_of(conn: sqlite3.Connection, pack: int) -> set[int]:
    """The pack and those whose blocks have been moved into it, over any number of steps."""
    found, open_ends = {pack}, [pack]
    while open_ends:
        for (source,) in conn.execute("SELECT DISTINCT pack FROM relocations WHERE to_pack = ?", (open_ends.pop(),)).fetchall():
            if source not in found:
                found.add(source)
                open_ends.append(source)
    return found


def unmarked(conn: sqlite3.Connection, limit: int) -> list[Record]:
    """Live records with lost blocks that are not marked, at most `limit`."""
    found: list[Record] = []
    for record in _naming_lost(conn, "records", f"AND r.deleted = 0 AND r.flags & {_FLAGS} = 0"):
        found.append(record)
        if len(found) == limit:
            break
    return found


def marked_in_vain(conn: sqlite3.Connection, limit: int) -> list[Record]:
    """Marked records all of whose blocks are there (again), at most `limit`."""
    lost = {pack.number for pack in lost_packs(conn)}
    query = f"SELECT {_COLUMNS} FROM records r WHERE r.flags <> 0 AND r.flags & {_FLAGS} = {LocalFlag.MUST_FETCH:d}"  # noqa: S608
    found: list[Record] = []
    for row in conn.execute(query):
        if not _is_lost(conn, decode_extents(row[5]), lost):
            found.append(_record(row))
            if len(found) == limit:
                break
    return found


def lost_names(conn: sqlite3.Connection, fid: int, limit: int) -> tuple[int, list[str]]:
    """How many records of a folder have lost content, and at most `limit` of their names."""
    where = f"FROM records WHERE flags <> 0 AND fid = ? AND flags & {_FLAGS} = {LocalFlag.MUST_FETCH:d}"
    count = conn.execute(f"SELECT count(*) {where}", (fid,)).fetchone()[0]
    names = [name for (name,) in conn.execute(f"SELECT name {where} ORDER BY name LIMIT ?", (fid, limit))] if count else []
    local = [record.name for record in _naming_lost(conn, "records", f"AND r.flags & {LocalFlag.RECEIVE_ONLY:d} AND r.fid = {fid:d}")]
    return count + len(local), [*names, *local][:limit]


def lost_history(conn: sqlite3.Connection, limit: int) -> list[Record]:
    """Retained versions with lost blocks, at most `limit`."""
    found: list[Record] = []
    for record in _naming_lost(conn, "history", ""):
        found.append(record)
        if len(found) == limit:
            break
    return found


def _naming_lost(conn: sqlite3.Connection, table: str, condition: str) -> Iterator[Record]:
    lost = {pack.number for pack in lost_packs(conn)}
    seen: set[tuple[int, int]] = set()
    query = f"SELECT {_COLUMNS} FROM refs x JOIN {table} r ON r.fid = x.fid AND r.seq = x.seq WHERE x.pack = ? {condition}"  # noqa: S608
    for source in sorted({source for pack in lost for source in sources_of(conn, pack)}):
        for row in conn.execute(query, (source,)):
            if (row[0], row[2]) not in seen and _is_lost(conn, decode_extents(row[5]), lost):
                seen.add((row[0], row[2]))
                yield _record(row)


def _is_lost(conn: sqlite3.Connection, extents: Extents, lost: set[int]) -> bool:
    return any(pack in lost for extent in extents for pack, _, _ in resolve(conn, *extent))


def _record(row: tuple[int, str, int, int, bytes, bytes]) -> Record:
    fid, name, seq, flags, info, extents = row
    return Record(fid, name, seq, from_record(info, seq), decode_extents(extents), flags)
