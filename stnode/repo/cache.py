"""Verified ranges of packs in memory. The unit kept is what one read brought; the unit found by is a cell of 1 MiB of a pack.

A block belongs to the cell in which its first byte lies, so that cells share out the blocks of a pack. No IO here.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import OrderedDict
from typing import Final

CELL_BITS: Final = 20
CELL_BYTES: Final = 1 << CELL_BITS
MAX_CELLS: Final = 1 << 12
"""Cells of a pack: its data ends before 4 GiB."""


class Chunk:
    """Blocks of one pack from place `first` to before `end`, in cells `cell` to before `end_cell`. `views` holds the blocks,
    None for those that are damaged in the store. `window` is how many cells were asked for; `ahead` is set once the
    reading ahead of it was considered."""

    __slots__ = ("ahead", "cell", "cost_bytes", "end", "end_cell", "first", "serial", "views", "window")

    def __init__(
        self, serial: int, cell: int, end_cell: int, first: int, views: list[memoryview | None], cost_bytes: int, window: int
    ) -> None:
        self.serial = serial
        self.cell = cell
        self.end_cell = end_cell
        self.first = first
        self.end = first + len(views)
        self.views = views
        self.cost_bytes = cost_bytes + 200 * len(views)
        self.window = window
        self.ahead = False


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

    def window(self, serial: int, cell: int) -> int:
        """How many cells the read brought that ended right before this cell; 0 if that is not in memory."""
        chunk = self._cells.get(serial * MAX_CELLS + cell - 1) if cell else None
        return 0 if chunk is None else chunk.window

    def add(self, chunk: Chunk) -> None:
        """Takes a chunk none of whose cells is there."""
        self._chunks[chunk] = None
        self.size_bytes += chunk.cost_bytes
        for cell in range(chunk.cell, chunk.end_cell):
            self._cells[chunk.serial * MAX_CELLS + cell] = chunk
        while self.size_bytes > self.limit_bytes and len(self._chunks) > 1:
            self._remove(next(iter(self._chunks)))

    def forget(self, serial: int) -> None:
        """Drops all of one pack."""
        for chunk in [chunk for chunk in self._chunks if chunk.serial == serial]:
            self._remove(chunk)

    def _remove(self, chunk: Chunk) -> None:
        del self._chunks[chunk]
        self.size_bytes -= chunk.cost_bytes
        for cell in range(chunk.cell, chunk.end_cell):
            del self._cells[chunk.serial * MAX_CELLS + cell]


def cell_of(offsets: array[int], place: int) -> int:
    """The cell of the block at `place`."""
    return offsets[place] >> CELL_BITS


def last_cell(offsets: array[int]) -> int:
    """The cell in which the pack's last block may begin at the latest."""
    return offsets[-1] >> CELL_BITS


def next_cell(offsets: array[int], cell: int) -> int:
    """`cell`, or the first one after it in which a block begins: blocks of more than a MiB leave cells empty. Behind the last
    block it is the cell after that block's own."""
    count = len(offsets) - 1
    place = bisect_left(offsets, cell << CELL_BITS, 0, count)
    return cell_of(offsets, place) if place < count else last_cell(offsets) + 1


def places_in(offsets: array[int], cell: int, end_cell: int) -> tuple[int, int]:
    """First place and end of the places whose blocks begin in these cells."""
    count = len(offsets) - 1
    return bisect_left(offsets, cell << CELL_BITS, 0, count), bisect_left(offsets, end_cell << CELL_BITS, 0, count)
