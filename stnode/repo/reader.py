"""Reads blocks out of packs: neighbouring blocks as one range, ahead of the requests; verified before anybody sees them.

A read brings whole cells (1 MiB of a pack, `cache.py`). It begins with one and doubles up to 8 MiB while requests go on where
the last read ended; from the second read of such a row on, the next one is started before it is asked for. Requests for
what is on its way wait for it. Memory: the cache's bound, and at most `reads` ranges of up to 8 MiB and one block on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from stnode.clock import Env
from stnode.errors import Corrupt, Internal
from stnode.objectstore.base import ObjectStore
from stnode.repo.addresses import Move, relocate
from stnode.repo.cache import CELL_BITS, Chunk, RangeCache, cell_of, last_cell, next_cell, places_in
from stnode.repo.checksum import xxh3_64
from stnode.repo.compression import decompress
from stnode.repo.pack import PLAIN_HASH_BYTES, PackList
from stnode.repo.packlist import Listed, PackGone, PackLists, read_range
from stnode.repo.verify import verify_batch

WIDEST_READ_CELLS: Final = 8
CACHE_SHARE: Final = 4
"""No read is wider than this part of the cache."""


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """`cache_bytes` of verified blocks in memory; `reads` of the store at once."""

    cache_bytes: int = 128 << 20
    reads: int = 8


@dataclass(slots=True)
class ReaderCounts:
    """Reads of the store and their bytes, since the start."""

    reads: int = 0
    bytes_read: int = 0
    read_ahead: int = 0
    damaged: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """One read of the store under way, up to before `end_cell`; `window` as in Chunk."""

    end_cell: int
    window: int
    task: asyncio.Task[Chunk]


class Reader:
    """All methods on the event loop. Packs are named by number or, for packs of this process, by handle."""

    def __init__(self, objects: ObjectStore, packlists: PackLists, env: Env, options: ReaderOptions | None = None) -> None:
        options = options or ReaderOptions()
        self.counts = ReaderCounts()
        self._objects = objects
        self._lists = packlists
        self._env = env
        self._cache = RangeCache(options.cache_bytes)
        self._widest = max(1, min(WIDEST_READ_CELLS, options.cache_bytes // CACHE_SHARE >> CELL_BITS))
        self._reads: dict[tuple[int, int], _Read] = {}
        self._tasks: set[asyncio.Task[Chunk]] = set()
        self._slots = asyncio.Semaphore(options.reads)
        self._moves: dict[int, Sequence[Move]] = {}

    def cached(self, pack: int, place: int) -> memoryview | None:
        """The block if it is in memory, at once. None says nothing of whether it can be read."""
        listed = self._lists.get(pack)
        if listed is None or not 0 <= place < len(listed.blocks.lengths):
            return None
        chunk = self._cache.get(listed.serial, listed.blocks.offsets[place] >> CELL_BITS)
        if chunk is None:
            return None
        if not chunk.ahead:
            self._read_ahead(listed, chunk)
        return chunk.views[place - chunk.first]

    async def blocks(self, pack: int, place: int, count: int) -> list[memoryview]:
        """`count` blocks from `place` on. Raises PackGone when the pack is neither in the state nor where it should be, and its
        blocks have not moved (follow to the head, then ask again); Corrupt, naming pack and place, when a block is not what
        its hash says; Unavailable. Pack 0 (zeros) is the caller's: the length of zeros is in its file."""
        if pack == 0 or count < 0:
            raise Internal(f"{count} blocks of pack {pack} cannot be read")
        try:
            if pack in self._moves:
                return await self._moved(pack, place, count)
            return await self._blocks(pack, place, count)
        except PackGone:
            moves = await self._lists.moves(pack)
            if not moves or self._moves.get(pack) == moves:
                raise
            self._moves[pack] = moves
            return await self._moved(pack, place, count)

    def forget_moves(self) -> None:
        """The state was rebuilt: look again where moved blocks are."""
        self._moves.clear()

    async def close(self) -> None:
        """Ends reads that are under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _moved(self, pack: int, place: int, count: int) -> list[memoryview]:
        """The blocks from where relocations say they are now."""
        found: list[memoryview] = []
        for new_pack, new_place, blocks in relocate([(pack, place, count)], self._moves):
            if new_pack == pack:
                raise PackGone(f"pack {pack} is gone, and block {new_place} of it has not moved")
            found += await self._blocks(new_pack, new_place, blocks)
        return found

    async def _blocks(self, pack: int, place: int, count: int) -> list[memoryview]:
        listed = self._lists.get(pack)
        if listed is None:
            await self._lists.ensure((pack,))
            listed = self._lists.loaded(pack)
        end = place + count
        if not 0 <= place <= end <= listed.blocks.count:
            raise Corrupt(f"pack {listed.key} has {listed.blocks.count} blocks, {place} to {end} were asked for")
        found: list[memoryview] = []
        while place < end:
            chunk = await self._chunk(listed, place, end)
            views = chunk.views[place - chunk.first : end - chunk.first]
            if None in views:
                raise Corrupt(
                    f"block {place + views.index(None)} of pack {listed.key} is damaged",
                    hint="run `stnode bucket check`; files are pulled again from peers that have them",
                )
            found += cast("list[memoryview]", views)
            place = chunk.end
        return found

    async def _chunk(self, listed: Listed, place: int, end: int) -> Chunk:
        """The chunk that holds `place`; what is missing up to `end` is asked for at once."""
        offsets = listed.blocks.offsets
        first, last = cell_of(offsets, place), cell_of(offsets, end - 1)
        chunk = self._cache.get(listed.serial, first)
        if chunk is not None:
            if not chunk.ahead:
                self._read_ahead(listed, chunk)
            return chunk
        cell = first
        while cell <= last:
            read = self._reads.get((listed.serial, cell))
            if read is None and self._cache.has(listed.serial, cell):
                cell += 1
                continue
            if read is None:
                read = self._start(listed, cell, last)
            cell = read.end_cell
        read = self._reads[listed.serial, first]
        return await asyncio.shield(read.task)

    def _start(self, listed: Listed, cell: int, last: int) -> _Read:
        """Starts the read of `cell` and of as many after it as pay, up to the next that is there or on its way."""
        serial, offsets = listed.serial, listed.blocks.offsets
        before = self._reads.get((serial, cell - 1))
        window = 2 * (self._cache.window(serial, cell) if before is None else before.window)
        window = min(max(1, window, last - cell + 1), self._widest)
        end_cell = cell + 1
        while end_cell < cell + window and not self._cache.has(serial, end_cell) and (serial, end_cell) not in self._reads:
            end_cell += 1
        end_cell = next_cell(offsets, end_cell)
        task = self._env.spawn(self._fill(listed, cell, end_cell, window), f"read of {listed.key}")
        read = _Read(end_cell, window, task)
        for each in range(cell, end_cell):
            self._reads[serial, each] = read
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return read

    def _ended(self, task: asyncio.Task[Chunk]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # those who waited got it; one that nobody waited for is no news

    def _read_ahead(self, listed: Listed, chunk: Chunk) -> None:
        """The chunk is being used: if it continues a row of reads, the next read starts now, unless the store is busy."""
        chunk.ahead = True
        serial, cell, offsets = listed.serial, chunk.end_cell, listed.blocks.offsets
        if chunk.window == 1 or cell > last_cell(offsets) or self._slots.locked():
            return
        if not self._cache.has(serial, cell) and (serial, cell) not in self._reads:
            self.counts.read_ahead += 1
            self._start(listed, cell, cell)

    async def _fill(self, listed: Listed, cell: int, end_cell: int, window: int) -> Chunk:
        """Reads, verifies and keeps the blocks of these cells. What does not verify is read once more."""
        try:
            first, end = places_in(listed.blocks.offsets, cell, end_cell)
            async with self._slots:
                views = await self._read(listed, first, end)
                if None in views:
                    views = await self._read(listed, first, end)
            cost = listed.blocks.offsets[end] - listed.blocks.offsets[first]
            if listed.blocks.compressed:
                cost += sum(listed.blocks.lengths[first:end])
            self.counts.damaged += views.count(None)
            chunk = Chunk(listed.serial, cell, end_cell, first, views, cost, window)
            self._cache.add(chunk)
            return chunk
        finally:
            for each in range(cell, end_cell):
                del self._reads[listed.serial, each]

    async def _read(self, listed: Listed, first: int, end: int) -> list[memoryview | None]:
        """Blocks `first` to before `end`, None where one is not what the list says."""
        blocks = listed.blocks
        start = blocks.offsets[first]
        data = await read_range(self._objects, listed.key, start, blocks.offsets[end] - start)
        self.counts.reads += 1
        self.counts.bytes_read += len(data)
        views: list[memoryview | None]
        if blocks.hash_bytes != PLAIN_HASH_BYTES:
            return await self._env.threads.run(_checked, blocks, first, end, data)
        if blocks.compressed:
            views = await self._env.threads.run(_unpacked, blocks, first, end, data)
        else:
            views = list(_cut(blocks, first, end, data))
        pairs = [(view if view is not None else b"", blocks.hashes_of(place)) for place, view in enumerate(views, first)]
        good = await verify_batch(self._env, pairs)
        return views if all(good) else [view if ok else None for view, ok in zip(views, good, strict=True)]


def _cut(blocks: PackList, first: int, end: int, data: bytes) -> list[memoryview]:
    """The blocks as stored."""
    whole, offsets = memoryview(data), blocks.offsets
    start = offsets[first]
    return [whole[offsets[place] - start : offsets[place + 1] - start] for place in range(first, end)]


def _unpacked(blocks: PackList, first: int, end: int, data: bytes) -> list[memoryview | None]:
    """The blocks as they were; None where one cannot be unpacked. For a thread."""
    return [_plain(blocks, place, view) for place, view in enumerate(_cut(blocks, first, end, data), first)]


def _checked(blocks: PackList, first: int, end: int, data: bytes) -> list[memoryview | None]:
    """An encrypted folder's blocks, checked by their checksums: their tokens say nothing of them. For a thread."""
    checks = blocks.checks or ()
    return [
        _plain(blocks, place, view) if xxh3_64(view) == checks[place] else None
        for place, view in enumerate(_cut(blocks, first, end, data), first)
    ]


def _plain(blocks: PackList, place: int, stored: memoryview) -> memoryview | None:
    if place not in blocks.compressed:
        return stored
    try:
        return memoryview(decompress(stored, blocks.lengths[place]))
    except Corrupt:
        return None
