"""Ranges of packs in memory. The unit kept is what one read brought; the unit found by is a cell of 64 KiB of a pack.

A block belongs to the cell in which its first byte lies, so that cells share out the blocks of a pack. No IO here.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections import OrderedDict
from typing import Final

CELL_BITS: Final = 16
CELL_BYTES: Final = 1 << CELL_BITS
MAX_CELLS: Final = 1 << 32 - CELL_BITS
"""Cells of a pack: its data ends before 4 GiB."""


class Chunk:
    """Blocks of one pack from place `first` to before `end`, in cells `cell` to before `end_cell`. `data` is what the store holds of
    them, from `start` of the pack on. `views` has each block once it is verified, else None; `bad` the places that stayed
    wrong when the range was read `again`. `window` is how many cells were asked for, `row` whether the read went on where
    another one ended; `ahead` is set once the reading ahead of it was considered."""

    __slots__ = (
        *("again", "ahead", "bad", "cell", "cost_bytes", "data", "end", "end_cell"),
        *("first", "row", "serial", "start", "views", "window"),
    )

    def __init__(
        self, serial: int, cells: tuple[int, int], places: tuple[int, int], start: int, data: memoryview, unpacked_bytes: int = 0
    ) -> None:
        self.serial = serial
        self.cell, self.end_cell = cells
        self.first, self.end = places
        self.start = start
        self.data = data
        count = self.end - self.first
        self.views: list[memoryview | None] = [None] * count
        self.bad: set[int] = set()
        self.again: asyncio.Task[None] | None = None
        self.cost_bytes = len(data) + unpacked_bytes + 200 * count
        self.window = 1
        self.row = False
        self.ahead = False

    def stored(self, offsets: array[int], place: int) -> memoryview:
        """The block as stored, not verified."""
        return self.data[offsets[place] - self.start : offsets[place + 1] - self.start]


class RangeCache:
    """Chunks by cell, least recently used out first when their bytes exceed `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._cells: dict[int, Chunk] = {}
        self._chunks: OrderedDict[Chunk, None] = OrderedDict()

    def get(self, serial: int, cell: int) -> Chunk | None:
        """The chunk that holds this cell; it counts as used."""
        chunk = self._cells.get(serial * MAX_CELLS + cell)
        if chunk is not None:
            self._chunks.move_to_end(chunk)
        return chunk

    def has(self, serial: int, cell: int) -> bool:
        """Whether the cell is there."""
        return serial * MAX_CELLS + cell in self._cells

    def add(self, chunk: Chunk) -> None:
        """Takes a chunk none of whose cells is there."""
        self._chunks[chunk] = None
        self.size_bytes += chunk.cost_bytes
        for cell in range(chunk.cell, chunk.end_cell):
            self._cells[chunk.serial * MAX_CELLS + cell] = chunk
        while self.size_bytes > self.limit_bytes and len(self._chunks) > 1:
            self._remove(next(iter(self._chunks)))

    def drop(self, serial: int) -> None:
        """Forgets a pack."""
        for chunk in [chunk for chunk in self._chunks if chunk.serial == serial]:
            self._remove(chunk)

    def _remove(self, chunk: Chunk) -> None:
        del self._chunks[chunk]
        self.size_bytes -= chunk.cost_bytes
        for cell in range(chunk.cell, chunk.end_cell):
            del self._cells[chunk.serial * MAX_CELLS + cell]


class Rows:
    """Where recent reads ended, and how many cells each was asked for: a read that begins there goes on with a row. Few are kept, so
    that requests in random order do not look like rows."""

    KEPT: Final = 32

    def __init__(self) -> None:
        self._ends: OrderedDict[tuple[int, int], int] = OrderedDict()

    def ended(self, serial: int, cell: int, window: int) -> None:
        """A read of `window` cells ends before this cell."""
        self._ends[serial, cell] = window
        if len(self._ends) > self.KEPT:
            self._ends.popitem(last=False)

    def take(self, serial: int, cell: int) -> int:
        """The window of the read that ended before this cell, 0 if none is known; it is used up."""
        return self._ends.pop((serial, cell), 0)


def cell_of(offsets: array[int], place: int) -> int:
    """The cell of the block at `place`."""
    return offsets[place] >> CELL_BITS


def last_cell(offsets: array[int]) -> int:
    """The cell in which the pack's last block may begin at the latest."""
    return offsets[-1] >> CELL_BITS


def next_cell(offsets: array[int], cell: int) -> int:
    """`cell`, or the first one after it in which a block begins: blocks of more than a cell leave cells empty. Behind the last
    block it is the cell after that block's own."""
    count = len(offsets) - 1
    place = bisect_left(offsets, cell << CELL_BITS, 0, count)
    return cell_of(offsets, place) if place < count else last_cell(offsets) + 1


def places_in(offsets: array[int], cell: int, end_cell: int) -> tuple[int, int]:
    """First place and end of the places whose blocks begin in these cells."""
    count = len(offsets) - 1
    return bisect_left(offsets, cell << CELL_BITS, 0, count), bisect_left(offsets, end_cell << CELL_BITS, 0, count)
