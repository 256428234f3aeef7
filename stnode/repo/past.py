"""Reads of a folder as it was at a store time, and of what was deleted from it. Synchronous, as `state_reads.py`.

The version of a name that was current at time T has the greatest sequence up to T and was not superseded by then (docs/format.md, History).
A version's own sequence, given as T, always shows that version: it counts as there for the microsecond in which it got its number, also
where the store's coarse time says that it was superseded at once. What the history has let go is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Final

from stnode.protocol.fileinfo import from_record
from stnode.repo import state
from stnode.repo.records import Record, decode_extents
from stnode.repo.state import OldVersion
from stnode.repo.state_reads import after_prefix

_BATCH: Final = 500
_COLUMNS: Final = "name, seq, flags, info, extents"
_CURRENT: Final = f"SELECT {_COLUMNS} FROM records WHERE fid = ?1 AND seq <= ?2 AND deleted = 0 AND "  # noqa: S608
_OLD: Final = f"SELECT {_COLUMNS} FROM history WHERE fid = ?1 AND seq <= ?2 AND max(superseded_us, seq + 1) > ?2 AND "  # noqa: S608

_Row = tuple[str, int, int, bytes, bytes]


@dataclass(frozen=True, slots=True)
class Deleted:
    """A name that is deleted now: the record that says so, and the newest version that is retained, None if none is."""

    record: Record
    last: OldVersion | None


def records_at(conn: Connection, fid: int, names: Sequence[str], at_us: int) -> dict[str, Record]:
    """Of these names the versions that were there at a time."""
    rows: list[_Row] = []
    for start in range(0, len(names), _BATCH):
        part = names[start : start + _BATCH]
        marks = ",".join(f"?{number + 3}" for number in range(len(part)))
        for query in (_CURRENT, _OLD):
            rows += conn.execute(f"{query} name IN ({marks})", (fid, at_us, *part)).fetchall()
    return {record.name: record for record in _newest(fid, rows)}


def walk_at(conn: Connection, fid: int, prefix: str, after: str, limit: int, at_us: int) -> list[Record]:
    """What was there at a time below a prefix, in byte order of names after `after`, at most `limit`."""
    where = " name > ?3 AND name >= ?4 AND (?5 = '' OR name < ?5) ORDER BY name, seq LIMIT ?6"
    arguments = (fid, at_us, after, prefix, after_prefix(prefix), limit)
    pages: list[list[_Row]] = [conn.execute(query + where, arguments).fetchall() for query in (_CURRENT, _OLD)]
    # A full page says nothing of names beyond its last one, and of that one perhaps not all.
    ends = [page[-1][0] for page in pages if len(page) == limit]
    rows = [row for page in pages for row in page if not ends or row[0] <= min(ends)]
    if ends and len(pages[1]) == limit and min(ends) == pages[1][-1][0]:
        rows += conn.execute(f"{_OLD} name = ?3", (fid, at_us, min(ends))).fetchall()
    return _newest(fid, rows)[:limit]


def children_at(conn: Connection, fid: int, directory: str, after: str, limit: int, at_us: int) -> list[Record]:
    """As `walk_at`, directly in a directory ("" = the folder's root); what lies deeper is jumped over."""
    prefix = directory + "/" if directory else ""
    found: list[Record] = []
    while len(found) < limit:
        names = _child_names(conn, fid, prefix, after, limit)
        at = records_at(conn, fid, names, at_us)
        found += [at[name] for name in names if name in at]
        if len(names) < limit:
            break
        after = names[-1]
    return found[:limit]


def _child_names(conn: Connection, fid: int, prefix: str, after: str, limit: int) -> list[str]:
    """Names directly below a prefix of which there is a record or a retained version, ascending."""
    query = "SELECT min(name) FROM {} WHERE fid = ? AND name >= ? AND (? = '' OR name < ?)"
    queries = [query.format(table) for table in ("records", "history")]
    end, start = after_prefix(prefix), max(prefix, after + "\0" if after else prefix)
    found: list[str] = []
    while len(found) < limit:
        heads = [row[0] for each in queries if (row := conn.execute(each, (fid, start, end, end)).fetchone())[0] is not None]
        if not heads:
            break
        name = min(heads, key=str.encode)
        slash = name.find("/", len(prefix))
        if slash >= 0:
            start = name[:slash] + "0"  # "0" follows "/": the next name that is not below this directory
            continue
        found.append(name)
        start = name + "\0"
    return found


def deleted_below(conn: Connection, fid: int, directory: str, after: str, limit: int, *, recursive: bool) -> list[Deleted]:
    """What is deleted in a directory, or with `recursive` anywhere below it, in byte order of names after `after`, at most `limit`."""
    prefix = directory + "/" if directory else ""
    found: list[Record] = []
    while len(found) < limit:
        wanted = limit - len(found)
        if recursive:
            rows = state.walk(conn, fid, prefix, after, wanted, deleted=True)
        else:
            rows = state.children(conn, fid, directory, after=after, limit=wanted, deleted=True)
        found += [record for record in rows if record.info.deleted]
        if len(rows) < wanted:
            break
        after = rows[-1].name
    return [Deleted(record, next(iter(state.old_versions(conn, fid, record.name, limit=1)), None)) for record in found]


def exists_below(conn: Connection, fid: int, directory: str, at_us: int) -> bool:
    """Whether anything was there below a directory at a time."""
    return bool(walk_at(conn, fid, directory + "/", "", 1, at_us))


def began_us(conn: Connection, fid: int) -> int | None:
    """About when the folder got its first record; None while it has none."""
    row = conn.execute("SELECT min(start) FROM intervals WHERE fid = ?", (fid,)).fetchone()
    return None if row is None else row[0]


def oldest_us(conn: Connection, fid: int) -> int | None:
    """When the version was superseded that is retained longest; None if none is."""
    row = conn.execute("SELECT min(superseded_us) FROM history WHERE fid = ?", (fid,)).fetchone()
    return None if row is None else row[0]


def _newest(fid: int, rows: Sequence[_Row]) -> list[Record]:
    """Per name the version with the greatest sequence, by name."""
    best: dict[str, _Row] = {}
    for row in rows:
        if row[0] not in best or row[1] > best[row[0]][1]:
            best[row[0]] = row
    names = sorted(best, key=str.encode)
    return [
        Record(fid, name, seq, from_record(info, seq), decode_extents(extents), flags)
        for name, seq, flags, info, extents in (best[name] for name in names)
    ]
