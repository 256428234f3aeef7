"""Which blocks of which packs are still wanted: the pass over all extents, and the same question for one pack. Reads only, in SQLite.

Places are bits of an integer per pack, so that a pack of 16,384 blocks costs 2 KiB. Bytes are those of the files: a file's size spread
evenly over its blocks, which is exact but for the last block of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Final

from stnode.repo import state
from stnode.repo.addresses import Move, relocate
from stnode.repo.codec_body import decode_partial
from stnode.repo.records import Extent, Extents, decode_extents
from stnode.repo.state_damage import sources_of
from stnode.repo.state_validate import referrers

ROWS_PER_STEP: Final = 2000
"""Rows of one step of the pass: some ten milliseconds."""

Wanted = tuple[Extents, int, bool]
"""Extents, the bytes that they hold, and whether they are a current version's or a partial file's (else history)."""


@dataclass(slots=True)
class Marks:
    """What is wanted of one pack: `current` are places of current versions and partial files, `kept` these and the history's."""

    current: int = 0
    kept: int = 0
    current_bytes: float = 0.0
    kept_bytes: float = 0.0

    @property
    def blocks(self) -> int:
        """Blocks that are wanted."""
        return self.kept.bit_count()


class MarkPass:
    """One pass over the state of a snapshot: `step` until it returns False. `packs` has every pack that anything resolves into."""

    def __init__(self) -> None:
        self.packs: dict[int, Marks] = {}
        self._moves: dict[int, list[Move]] | None = None
        self._rows: Iterator[Wanted] = iter(())

    def step(self, conn: Connection) -> bool:
        """Goes on for some rows; whether there is more."""
        if self._moves is None:
            self._moves = state.all_moves(conn)
            self._rows = _wanted(conn)
        for count, (extents, size, current) in enumerate(self._rows, 1):
            self._mark(extents, size, current)
            if count == ROWS_PER_STEP:
                return True
        return False

    def _mark(self, extents: Extents, size: int, current: bool) -> None:
        blocks = sum(extent[2] for extent in extents) or 1
        per_block = size / blocks
        for pack, place, count in relocate(extents, self._moves) if self._moves else extents:
            if not pack:
                continue
            marks = self.packs.get(pack)
            if marks is None:
                marks = self.packs[pack] = Marks()
            bits = ((1 << count) - 1) << place
            fresh = bits & ~marks.kept
            if fresh:
                marks.kept |= fresh
                marks.kept_bytes += fresh.bit_count() * per_block
            if current and (fresh := bits & ~marks.current):
                marks.current |= fresh
                marks.current_bytes += fresh.bit_count() * per_block


def wanted_places(conn: Connection, pack: int, named: Iterable[Extent] = ()) -> int:
    """The places of one pack that any version or partial file resolves into, as bits; `named` are extents that are about to be written."""
    roots = sources_of(conn, pack)
    found = 0
    for extents in (tuple(named), *_partial_extents(conn), *(each for root in roots for each in referrers(conn, root))):
        for root, place, count in extents:
            if root in roots:
                for now, at, length in state.resolve(conn, root, place, count):
                    if now == pack:
                        found |= ((1 << length) - 1) << at
    return found


def runs_of(places: int) -> Iterator[tuple[int, int]]:
    """(first, count) of each row of bits that are set, ascending."""
    start = 0
    while places:
        skip = (places & -places).bit_length() - 1
        places >>= skip
        count = (~places & (places + 1)).bit_length() - 1
        start += skip
        yield start, count
        places >>= count
        start += count


def _partial_extents(conn: Connection) -> Iterator[Extents]:
    return (decode_extents(row[0]) for row in conn.execute("SELECT extents FROM partials"))


def _wanted(conn: Connection) -> Iterator[Wanted]:
    for table, current in (("records", True), ("history", False)):
        query = f"SELECT extents, size FROM {table} WHERE extents <> x''"  # noqa: S608
        for extents, size in conn.execute(query):
            yield decode_extents(extents), size, current
    for wire, extents in conn.execute("SELECT partial, extents FROM partials"):
        partial = decode_partial(wire, extents)
        yield partial.extents, partial.block_size * sum(extent[2] for extent in partial.extents), True
