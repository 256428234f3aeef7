"""Reads blocks out of packs: neighbouring blocks as one range, ahead of the requests; verified before anybody sees them.

A read brings whole cells (64 KiB of a pack, `cache.py`): those asked for, with what their reader will likely ask for next (the
rest of the file) up to 1 MiB. While reads go on where another one ended they widen up to 8 MiB, and the next one starts before it is
asked for. So requests in random order cost about their own bytes, and those in order few reads. Small blocks are verified when
they are first asked for, large ones with their read, in threads. Requests for what is on its way wait for it.

Memory: the cache's bound, and at most `reads` ranges of up to 8 MiB and one block on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from stnode.clock import Env
from stnode.errors import Corrupt, Internal
from stnode.objectstore.base import ObjectStore
from stnode.repo.addresses import Move, relocate
from stnode.repo.cache import CELL_BITS, Chunk, RangeCache, Rows, cell_of, last_cell, next_cell, places_in
from stnode.repo.diskcache import DiskCache
from stnode.repo.pack import PLAIN_HASH_BYTES, PackList
from stnode.repo.packlist import Listed, PackGone, PackLists, read_range
from stnode.repo.packstate import verified_block
from stnode.repo.verify import INLINE_BLOCK_BYTES, verify_batch

WIDEST_READ_CELLS: Final = 8 << 20 >> CELL_BITS
FIRST_READ_CELLS: Final = 1 << 20 >> CELL_BITS
"""A read that does not go on with another is at most as wide as this, however much is likely wanted."""
CACHE_SHARE: Final = 4
"""No read is wider than this part of the cache."""


@dataclass(frozen=True, slots=True)
class ReaderOptions:
    """`cache_bytes` of blocks in memory; `reads` of the store at once; `disk_bytes` of packs kept in `disk_path` (None, 0: none)."""

    cache_bytes: int = 128 << 20
    reads: int = 8
    disk_bytes: int = 1 << 30
    disk_path: Path | None = None


@dataclass(slots=True)
class ReaderCounts:
    """Reads of the store and their bytes, since the start; `disk_reads` were answered by the cache on disk."""

    reads: int = 0
    bytes_read: int = 0
    read_ahead: int = 0
    disk_reads: int = 0
    damaged: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """One read of the store under way, up to before `end_cell`."""

    end_cell: int
    task: asyncio.Task[Chunk]


class Reader:
    """All methods on the event loop. Packs are named by number or, for packs of this process, by handle. `suspect` may be set: it is told
    of each pack that could not be read as it should be."""

    def __init__(self, objects: ObjectStore, packlists: PackLists, env: Env, options: ReaderOptions | None = None) -> None:
        options = options or ReaderOptions()
        self.counts = ReaderCounts()
        self.suspect: Callable[[int], None] = lambda _pack: None
        self._objects = objects
        self._lists = packlists
        self._env = env
        self._cache = RangeCache(options.cache_bytes)
        self._rows = Rows()
        self._widest = max(1, min(WIDEST_READ_CELLS, options.cache_bytes // CACHE_SHARE >> CELL_BITS))
        self._reads: dict[tuple[int, int], _Read] = {}
        self._tasks: set[asyncio.Task[Chunk] | asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(options.reads)
        self._moves: dict[int, Sequence[Move]] = {}
        self._disk: DiskCache | None = None
        if options.disk_path is not None and options.disk_bytes:
            self._disk = DiskCache(objects, env, options.disk_path, options.disk_bytes)

    async def open(self) -> None:
        """Finds what an earlier process left in the cache on disk. Without it that is only not used."""
        if self._disk is not None:
            await self._disk.open()

    def cached(self, pack: int, place: int) -> memoryview | None:
        """The block if it is in memory, at once. None says nothing of whether it can be read."""
        listed = self._lists.get(pack)
        if listed is None:
            return None
        blocks = listed.blocks
        if not 0 <= place < len(blocks.lengths):
            return None
        chunk = self._cache.get(listed.serial, blocks.offsets[place] >> CELL_BITS)
        if chunk is None:
            return None
        if not chunk.ahead:
            self._read_ahead(listed, chunk)
        view = chunk.views[place - chunk.first]
        if view is None and blocks.lengths[place] <= INLINE_BLOCK_BYTES and place not in chunk.bad:
            view = chunk.views[place - chunk.first] = verified_block(blocks, place, chunk.stored(blocks.offsets, place))
        return view

    async def blocks(self, pack: int, place: int, count: int, likely: int = 0) -> list[memoryview]:
        """`count` blocks from `place` on; `likely` blocks from there on will be asked for, too (a hint). Raises PackGone when the pack is
        neither in the state nor where it should be, and its blocks have not moved (follow to the head, then ask again); Corrupt,
        naming pack and place, when a block is not what its hash says; Unavailable. Pack 0 (zeros) is the caller's: the length
        of zeros is in its file."""
        if pack == 0 or count < 0:
            raise Internal(f"{count} blocks of pack {pack} cannot be read")
        try:
            if pack in self._moves:
                return await self._moved(pack, place, count)
            return await self._blocks(pack, place, count, likely)
        except (PackGone, Corrupt):
            moves = await self._lists.moves(pack)
            if not moves or self._moves.get(pack) == moves:
                raise
            self._moves[pack] = moves
            return await self._moved(pack, place, count)

    def forget(self, pack: int) -> None:
        """Drops what is cached of a pack: it is another one in the store by now."""
        listed = self._lists.get(pack)
        if listed is not None:
            self._cache.drop(listed.serial)
            if self._disk is not None:
                self._disk.forget(listed.id)

    def forget_moves(self) -> None:
        """The state was rebuilt: look again where moved blocks are."""
        self._moves.clear()

    async def close(self) -> None:
        """Ends reads that are under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._disk is not None:
            await self._disk.close()

    async def _moved(self, pack: int, place: int, count: int) -> list[memoryview]:
        """The blocks from where relocations say they are now; of a pack that was repacked or damaged some may not have moved."""
        found: list[memoryview] = []
        for new_pack, new_place, blocks in relocate([(pack, place, count)], self._moves):
            found += await self._blocks(new_pack, new_place, blocks, blocks)
        return found

    async def _blocks(self, pack: int, place: int, count: int, likely: int) -> list[memoryview]:
        try:
            listed = self._lists.get(pack)
            if listed is None:
                await self._lists.ensure((pack,))
                listed = self._lists.loaded(pack)
            return await self._listed_blocks(listed, place, count, likely)
        except (PackGone, Corrupt):
            self.suspect(pack)
            raise

    async def _listed_blocks(self, listed: Listed, place: int, count: int, likely: int) -> list[memoryview]:
        end = place + count
        if not 0 <= place <= end <= listed.blocks.count:
            raise Corrupt(f"pack {listed.key} has {listed.blocks.count} blocks, {place} to {end} were asked for")
        likely_end = min(place + max(count, likely), listed.blocks.count)
        found: list[memoryview] = []
        while place < end:
            chunk = await self._chunk(listed, place, end, likely_end)
            until = min(end, chunk.end)
            found += await self._verified(listed, chunk, place, until)
            place = until
        return found

    # --- what is read

    async def _chunk(self, listed: Listed, place: int, end: int, likely_end: int) -> Chunk:
        """The chunk that holds `place`; what is missing up to `end` is asked for at once."""
        offsets = listed.blocks.offsets
        first, last, likely = cell_of(offsets, place), cell_of(offsets, end - 1), cell_of(offsets, likely_end - 1)
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
                wanted = max(last - cell + 1, min(likely - cell + 1, FIRST_READ_CELLS))
                read = self._start(listed, cell, wanted, self._rows.take(listed.serial, cell))
            cell = read.end_cell
        read = self._reads[listed.serial, first]
        return await asyncio.shield(read.task)

    def _start(self, listed: Listed, cell: int, wanted: int, before: int) -> _Read:
        """Starts the read of `wanted` cells from `cell` on, of more if it goes on where a read of `before` cells ended, up to the
        next that is there or on its way."""
        serial, offsets = listed.serial, listed.blocks.offsets
        window = min(max(wanted, before * (4 if before < FIRST_READ_CELLS else 2)), self._widest)
        end_cell = cell + 1
        while end_cell < cell + window and not self._cache.has(serial, end_cell) and (serial, end_cell) not in self._reads:
            end_cell += 1
        end_cell = next_cell(offsets, end_cell)
        self._rows.ended(serial, end_cell, window)
        read = _Read(end_cell, self._env.spawn(self._fill(listed, (cell, end_cell), window, before > 0), f"read of {listed.key}"))
        for each in range(cell, end_cell):
            self._reads[serial, each] = read
        self._keep(read.task)
        return read

    def _keep(self, task: asyncio.Task[Chunk] | asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Chunk] | asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # those who waited got it; one that nobody waited for is no news

    def _read_ahead(self, listed: Listed, chunk: Chunk) -> None:
        """The chunk is being used: if it continues a row of reads, the next read starts now, unless the store is busy."""
        chunk.ahead = True
        serial, cell, offsets = listed.serial, chunk.end_cell, listed.blocks.offsets
        if not chunk.row or cell > last_cell(offsets) or self._slots.locked():
            return
        if not self._cache.has(serial, cell) and (serial, cell) not in self._reads:
            self.counts.read_ahead += 1
            self._rows.take(serial, cell)
            self._start(listed, cell, 1, chunk.window)

    async def _fill(self, listed: Listed, cells: tuple[int, int], window: int, row: bool) -> Chunk:
        """Reads and keeps the blocks of these cells."""
        blocks = listed.blocks
        try:
            first, end = places_in(blocks.offsets, *cells)
            data = memoryview(await self._fetch(listed, first, end))
            lengths = blocks.lengths[first:end]
            unpacked = sum(lengths) if blocks.compressed else 0
            chunk = Chunk(listed.serial, cells, (first, end), blocks.offsets[first], data, unpacked)
            chunk.window, chunk.row = window, row
            if max(lengths) > INLINE_BLOCK_BYTES:
                await self._verify(blocks, chunk, (place for place, length in enumerate(lengths, first) if length > INLINE_BLOCK_BYTES))
            self._cache.add(chunk)
            return chunk
        finally:
            for each in range(*cells):
                del self._reads[listed.serial, each]

    async def _fetch(self, listed: Listed, first: int, end: int, *, anew: bool = False) -> bytes:
        """What is stored of blocks `first` to before `end`; `anew` from the store itself, what the disk has of the pack is dropped."""
        offsets = listed.blocks.offsets
        start, length = offsets[first], offsets[end] - offsets[first]
        if self._disk is not None:
            if anew:
                self._disk.forget(listed.id)
            else:
                kept = await self._disk.read(listed.id, start, length)
                if kept is not None:
                    self.counts.disk_reads += 1
                    return kept
                self._disk.missed(listed.id, listed.key, listed.blocks.data_bytes, length)
        async with self._slots:
            data = await read_range(self._objects, listed.key, start, length)
        self.counts.reads += 1
        self.counts.bytes_read += len(data)
        return data

    # --- what is verified

    async def _verified(self, listed: Listed, chunk: Chunk, place: int, end: int) -> list[memoryview]:
        """Blocks `place` to before `end` of the chunk. What does not verify is read once more."""
        part = slice(place - chunk.first, end - chunk.first)
        if None not in chunk.views[part]:
            return cast("list[memoryview]", chunk.views[part])

        def missing() -> list[int]:
            return [at for at, view in enumerate(chunk.views[part], place) if view is None and at not in chunk.bad]

        await self._verify(listed.blocks, chunk, missing())
        if missing():
            if chunk.again is None:
                chunk.again = self._env.spawn(self._read_again(listed, chunk), f"second read of {listed.key}")
                self._keep(chunk.again)
            await asyncio.shield(chunk.again)
            await self._verify(listed.blocks, chunk, missing())
            damaged = missing()
            self.counts.damaged += len(damaged)
            chunk.bad.update(damaged)
        views = chunk.views[part]
        if None in views:
            raise Corrupt(
                f"block {place + views.index(None)} of pack {listed.key} is damaged",
                hint="a running node pulls such files again from devices that have them; `stnode status` names those that nobody has",
            )
        return cast("list[memoryview]", views)

    async def _read_again(self, listed: Listed, chunk: Chunk) -> None:
        """Replaces what the chunk holds of blocks that are not verified yet. After an error the next one who asks tries again."""
        try:
            chunk.data = memoryview(await self._fetch(listed, chunk.first, chunk.end, anew=True))
        except BaseException:
            chunk.again = None
            raise

    async def _verify(self, blocks: PackList, chunk: Chunk, places: Iterable[int]) -> None:
        """Puts those of the blocks that are what the list says into the chunk's views."""
        stored = [(place, chunk.stored(blocks.offsets, place)) for place in places]
        if blocks.hash_bytes == PLAIN_HASH_BYTES and not blocks.compressed:
            good = await verify_batch(self._env, [(view, blocks.hashes_of(place)) for place, view in stored])
            found: list[memoryview | None] = [view if ok else None for (_, view), ok in zip(stored, good, strict=True)]
        else:
            found = await self._env.threads.run(_all_good, blocks, stored)
        for (place, _), view in zip(stored, found, strict=True):
            if view is not None:
                chunk.views[place - chunk.first] = view


def _all_good(blocks: PackList, stored: Sequence[tuple[int, memoryview]]) -> list[memoryview | None]:
    """`verified_block` for each. For a thread."""
    return [verified_block(blocks, place, view) for place, view in stored]
