"""Arithmetic on block addresses: extents of a file, runs of places, moved blocks. Pure, no IO.

An extent is `(pack, place, count)`: `count` blocks of one pack from `place` on. Pack 0 stands for blocks of zeros (place 0
always), a negative pack for one of this process that no commit has registered yet (`packer.py`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from stnode.errors import Corrupt, Internal
from stnode.repo.records import Extent

ZEROS = 0
"""The pack number that stands for blocks of zeros."""
MAX_HOPS: Final = 1_000_000
"""Steps of one `relocate`, far above what any file needs: a bound for damaged tables."""


class Move(NamedTuple):
    """`blocks` blocks from `place` on now lie in `pack` from `to_place` on."""

    place: int
    blocks: int
    pack: int
    to_place: int


def packs_of(extents: Iterable[Extent]) -> set[int]:
    """The packs that the extents name, zeros left out."""
    return {extent[0] for extent in extents if extent[0] != ZEROS}


def follows(before: Extent, after: Extent) -> bool:
    """Whether `after` begins where `before` ends, so that both are one run."""
    return before[0] == after[0] and (before[0] == ZEROS or before[1] + before[2] == after[1])


def join(extents: Iterable[Extent]) -> tuple[Extent, ...]:
    """The same blocks in the fewest extents; empty ones go."""
    joined: list[Extent] = []
    for extent in extents:
        if extent[2] == 0:
            continue
        if joined and follows(joined[-1], extent):
            pack, place, count = joined[-1]
            joined[-1] = (pack, place, count + extent[2])
        else:
            joined.append(extent)
    return tuple(joined)


def join_places(places: Iterable[tuple[int, int]]) -> tuple[Extent, ...]:
    """(pack, place) of each block of a file, in order, as extents."""
    return join((pack, place, 1) for pack, place in places)


def cut(extents: Iterable[Extent], start: int, count: int) -> tuple[Extent, ...]:
    """The extents of blocks `start` to `start + count` of what `extents` cover; Internal if they do not cover that much."""
    out: list[Extent] = []
    end, at = start + count, 0
    for pack, place, blocks in extents:
        first, last = max(start, at), min(end, at + blocks)
        if first < last:
            out.append((pack, place if pack == ZEROS else place + first - at, last - first))
        at += blocks
    if at < end:
        raise Internal(f"blocks {start} to {end} were asked for of a file of {at}")
    return tuple(out)


def number(extents: Iterable[Extent], numbers: Mapping[int, int]) -> tuple[Extent, ...]:
    """The extents with pack handles replaced by what `numbers` has for them; others stay."""
    return tuple((numbers.get(pack, pack), place, count) for pack, place, count in extents)


def relocate(extents: Iterable[Extent], moves: Mapping[int, Sequence[Move]]) -> tuple[Extent, ...]:
    """Follows relocations until none applies: a block may have moved several times. `moves` has the moves of each pack
    sorted by place, not overlapping. A block that has not moved keeps its address."""
    done: list[Extent] = []
    work = list(extents)[::-1]
    hops = 0
    while work:
        pack, place, count = work.pop()
        table = moves.get(pack)
        if pack == ZEROS or not table:
            done.append((pack, place, count))
            continue
        hops += 1
        if hops > MAX_HOPS:
            raise Corrupt(f"the relocations of pack {pack} lead in a circle", hint="run `stnode bucket check`")
        head, moved = _step(pack, place, count, table)
        if head[2] < count:
            work.append((pack, place + head[2], count - head[2]))
        (work if moved else done).append(head)
    return join(done)


def _step(pack: int, place: int, count: int, table: Sequence[Move]) -> tuple[Extent, bool]:
    """The first blocks of the run that share one fate: where they are now, and whether they have moved."""
    index = bisect_right(table, place, key=lambda move: move.place) - 1
    if index >= 0 and place < table[index].place + table[index].blocks:
        move = table[index]
        skip = place - move.place
        return (move.pack, move.to_place + skip, min(count, move.blocks - skip)), True
    until = table[index + 1].place - place if index + 1 < len(table) else count
    return (pack, place, min(count, until)), False


class FileMap:
    """Finds the address of any block of one file: made once, then O(log extents) each."""

    __slots__ = ("_extents", "_starts", "blocks")

    def __init__(self, extents: Sequence[Extent]) -> None:
        self._extents = extents
        self._starts = [0]
        self.blocks: int = extents[0][2] if len(extents) == 1 else 0
        if len(extents) > 1:
            self._starts = list(accumulate((extent[2] for extent in extents), initial=0))
            self.blocks = self._starts.pop()

    def run_at(self, index: int) -> Extent:
        """Block `index` and those after it that lie right behind it; Internal beyond the last block."""
        if not 0 <= index < self.blocks:
            raise Internal(f"block {index} was asked for of a file of {self.blocks}")
        at = bisect_right(self._starts, index) - 1
        pack, place, count = self._extents[at]
        skip = index - self._starts[at]
        return (pack, place if pack == ZEROS else place + skip, count - skip)

    def at(self, index: int) -> tuple[int, int]:
        """(pack, place) of block `index`."""
        return self.run_at(index)[:2]
