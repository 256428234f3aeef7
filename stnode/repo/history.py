"""Which retained versions a folder's history policy lets go, and the entries that say so. When to look is the collector's.

Versions end by entries only, never by a node's clock (R10): `due` is a pure function of a state and a store time, `expire` writes down what
it says, made anew on the state that each commit is tried on. A version's age counts from when it was replaced or deleted.

A version counts as one that lost (R28) while the present version of its name does not contain it: it was current and a concurrent one
took its place, or it went to the history itself. A policy that cannot be read (a newer stnode's) lets nothing go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from sqlite3 import Connection
from typing import Final

from stnode.db import Database
from stnode.errors import Invalid
from stnode.protocol.vector import covers, from_wire
from stnode.repo import state
from stnode.repo.codec import Body, Section
from stnode.repo.proposal import Entries, PackTable
from stnode.repo.settings import FolderSettings
from stnode.repo.state_records import history_bytes
from stnode.retention import STAGES, Policy, policy

STRETCH: Final = 5_000
"""Versions that are looked at in one go, and that one commit drops, but for those of one name or one moment beyond it."""

_US: Final = 1_000_000

Cursor = tuple[int, str, int]
"""Where a look goes on: (step, name, number); the steps are those of `due`."""
START: Final[Cursor] = (0, "", 0)


@dataclass(frozen=True, slots=True)
class Due:
    """What a stretch of a folder's history has to give: the entry (None: nothing), how many versions it drops, what they add up to, and where
    the next stretch begins (None: that was all)."""

    section: Section | None
    versions: int
    bytes: int
    next: Cursor | None


@dataclass(frozen=True, slots=True)
class Expired:
    """Versions dropped (or, tried only, that would be), and what they add up to."""

    versions: int = 0
    bytes: int = 0


def policy_of(settings: FolderSettings) -> Policy | None:
    """The folder's policy; None for one that cannot be read."""
    try:
        return policy(settings.history, settings.history_floor)
    except Invalid:
        return None


async def expire(
    db: Database, submit: Callable[[Entries], Awaitable[int]], store_time_us: int, *, dry_run: bool = False
) -> dict[str, Expired]:
    """Drops what is due in all folders at this store time; by folder ID. `submit` is `Store.submit_entries`, whose errors it raises."""
    found: dict[str, Expired] = {}
    for folder in await db.run(state.folders):
        versions = size = 0
        after: Cursor | None = START
        while after is not None:
            stretch = await db.run(partial(due, fid=folder.fid, now_us=store_time_us, after=after))
            if stretch.section is not None and not dry_run:
                await submit(_entries(folder.fid, store_time_us, after))
            versions += stretch.versions
            size += stretch.bytes
            after = stretch.next
        if versions:
            found[folder.settings.folder_id] = Expired(versions, size)
    return found


def _entries(fid: int, now_us: int, after: Cursor) -> Entries:
    def make(conn: Connection, _packs: PackTable) -> Body:
        section = due(conn, fid, now_us, after).section
        return Body(sections=() if section is None else (section,))

    return make


def due(conn: Connection, fid: int, now_us: int, after: Cursor = START) -> Due:
    """The next stretch from `after` on, at store time `now_us`. Steps: 0, all that is older than the policy keeps anything; 1, by age, those
    that did not lose; 2, by what other versions of the name there are."""
    folder = state.folder(conn, fid)
    rules = None if folder is None or folder.removed else policy_of(folder.settings)
    if folder is None or rules is None:
        return Due(None, 0, 0, None)
    floor_us, loser_us = now_us - rules.floor_s * _US, now_us - rules.loser_floor_s * _US
    cutoff_us = 0 if rules.age_s is None else min(now_us - rules.age_s * _US, floor_us)
    step, name, number = after
    if step == 0:
        found = _all_before(conn, folder.fkey, fid, number, min(cutoff_us, loser_us))
        if found is not None:
            return found
        step = 1 if rules.by_age_alone else 2
    if step == 1:
        return _by_age(conn, folder.fkey, fid, max(number, loser_us), cutoff_us)
    return _by_name(conn, folder.fkey, fid, rules, now_us, name)


def _all_before(conn: Connection, fkey: str, fid: int, from_us: int, before_us: int) -> Due | None:
    """The oldest versions superseded from `from_us` to before `before_us`; None when there are none."""
    query = "SELECT superseded_us FROM history WHERE fid = ? AND superseded_us >= ? AND superseded_us < ? ORDER BY superseded_us LIMIT 1 OFFSET ?"
    first = conn.execute(query, (fid, from_us, before_us, 0)).fetchone()
    if first is None:
        return None
    later = conn.execute(query, (fid, from_us, before_us, STRETCH)).fetchone()
    if later is not None:
        before_us = max(later[0], first[0] + 1)
    query = "SELECT type, size FROM history WHERE fid = ? AND superseded_us >= ? AND superseded_us < ?"
    sizes = [history_bytes(*row) for row in conn.execute(query, (fid, from_us, before_us))]
    return Due(Section(fkey, history_dropped_before_us=before_us), len(sizes), sum(sizes), (0, "", before_us))


def _by_age(conn: Connection, fkey: str, fid: int, from_us: int, cutoff_us: int) -> Due:
    """Versions superseded from `from_us` to before `cutoff_us`, less those that lost. A stretch ends between two moments."""
    query = (
        "SELECT h.superseded_us, h.name, h.seq, h.type, h.size, h.version, r.version FROM history h "
        "LEFT JOIN records r ON r.fid = h.fid AND r.name = h.name "
        "WHERE h.fid = ? AND h.superseded_us >= ? AND h.superseded_us < ? ORDER BY h.superseded_us LIMIT ?"
    )
    rows = conn.execute(query, (fid, from_us, cutoff_us, STRETCH)).fetchall()
    more: Cursor | None = None
    if len(rows) == STRETCH:
        last_us = rows[-1][0]
        rows = [row for row in rows if row[0] < last_us] or conn.execute(query, (fid, last_us, last_us + 1, -1)).fetchall()
        more = (1, "", rows[-1][0] + 1)
    return _dropping(fkey, [row[1:5] for row in rows if not _lost(row[5], row[6])], more)


def _by_name(conn: Connection, fkey: str, fid: int, rules: Policy, now_us: int, after: str) -> Due:
    """Versions of the next names that their policy does without. A stretch ends between two names."""
    columns = "h.name, h.seq, h.type, h.size, h.superseded_us, h.version, r.version"
    query = (
        f"SELECT {columns} FROM history h LEFT JOIN records r ON r.fid = h.fid AND r.name = h.name "  # noqa: S608
        "WHERE h.fid = ? AND h.name {} ? ORDER BY h.name, h.seq LIMIT ?"
    )
    rows = conn.execute(query.format(">"), (fid, after, STRETCH)).fetchall()
    more: Cursor | None = None
    if len(rows) == STRETCH:
        last = rows[-1][0]
        rows = [row for row in rows if row[0] != last] or conn.execute(query.format("="), (fid, last, -1)).fetchall()
        more = (2, rows[-1][0], 0)
    floor_us, loser_us = now_us - rules.floor_s * _US, now_us - rules.loser_floor_s * _US
    dropped = []
    for _, group in groupby(rows, key=lambda row: row[0]):
        versions = sorted(group, key=lambda row: (row[4], row[1]))
        for index in surplus(rules, [(now_us - row[4]) / _US for row in versions]):
            _, _, _, _, superseded_us, version, present = versions[index]
            if superseded_us < floor_us and (superseded_us < loser_us or not _lost(version, present)):
                dropped.append(versions[index][:4])
    return _dropping(fkey, dropped, more)


def _dropping(fkey: str, rows: Sequence[tuple[str, int, int, int]], more: Cursor | None) -> Due:
    """An entry for rows of (name, sequence, type, size)."""
    section = Section(fkey, history_dropped=tuple((row[0], row[1]) for row in rows)) if rows else None
    return Due(section, len(rows), sum(history_bytes(row[2], row[3]) for row in rows), more)


def _lost(version: bytes, present: bytes | None) -> bool:
    return present is not None and not covers(from_wire(present), from_wire(version))


def surplus(rules: Policy, ages_s: Sequence[float]) -> list[int]:
    """Which versions of one name the policy does without, floors aside: places among `ages_s`, the ages from the oldest on."""
    found = []
    kept_from = 0 if rules.keep is None else len(ages_s) - rules.keep
    before_s: float | None = None
    for index, age_s in enumerate(ages_s):
        crowded = rules.staggered and before_s is not None and before_s - age_s < _step_s(age_s)
        if index < kept_from or crowded or (rules.age_s is not None and age_s > rules.age_s):
            found.append(index)
        else:
            before_s = age_s
    return found


def _step_s(age_s: float) -> int:
    return next(step_s for end_s, step_s in STAGES if end_s is None or age_s < end_s)
