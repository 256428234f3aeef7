"""Finds blocks that the folder stores already, so that they need not be asked for or stored again.

The index is a cache and partial (`blockindex.py`). A miss costs space, never correctness; a hit counts only after the full
hashes of the pack's own list were compared. It is empty after the state directory was lost, and fills again as packs are
sealed and lists are loaded; what a new version shares with the one it replaces is found without it.

Reused: whole files, what a new version shares with the one it replaces, runs of at least 1 MiB. Never: packs that are
condemned or lost, packs of other folders. Blocks of zeros lie in no pack and cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from sqlite3 import Connection
from typing import Final, NamedTuple

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Corrupt, Internal
from stnode.protocol.fileinfo import FileInfo, zero_hash
from stnode.repo.addresses import ZEROS, follows, packs_of, relocate
from stnode.repo.blockindex import FULL_SIZES, BlockIndex, heads_of
from stnode.repo.pack import PLAIN_HASH_BYTES, PackList, decode_footer
from stnode.repo.packlist import PackGone, PackLists, PackRegistry, stored_lists
from stnode.repo.records import Extent, Extents

Run = tuple[int, Extent]
"""(first block of the file, extent): blocks that are stored already."""

RUN_BYTES: Final = 1 << 20
"""Shorter runs of large files are not reused: they would scatter the file's reads."""
GONE: Final = -(1 << 62)
"""Stands for a pack that new records may not refer to; no handle is as small."""
_BATCH_INFOS: Final = 1000
_BATCH_BLOCKS: Final = 65_536
_INLINE_BLOCKS: Final = 4096


class Dedupe:
    """One for all folders. `fkey_of` names a folder's packs; `index` is the one that the PackLists fill."""

    def __init__(
        self, db: Database, env: Env, packlists: PackLists, registry: PackRegistry, index: BlockIndex, fkey_of: Callable[[int], str]
    ) -> None:
        self._db = db
        self._env = env
        self._packlists = packlists
        self._registry = registry
        self._index = index
        self._fkey_of = fkey_of

    async def find(self, fid: int, infos: Sequence[FileInfo], hash_bytes: int = PLAIN_HASH_BYTES) -> list[list[Run]]:
        """For each file version, what of it is stored: runs in ascending order that do not overlap; all of its blocks when
        the file is known whole. One database hop per 1,000 infos, and for those that replace a version the lists of its
        packs. `hash_bytes` is 48 in encrypted folders. Raises what loading a list raises, unless the pack is gone or damaged."""
        results: list[list[Run]] = []
        fkey = self._fkey_of(fid)
        for batch in _batches(infos, hash_bytes):
            found, replaced = await self._db.run(partial(self._find, fid, fkey, batch, hash_bytes, self._packlists.pending_ids()))
            for at, (query, extents) in replaced.items():
                found[at] = overlay(len(query.heads), found[at], await self._shared(query, extents), query.zeros)
            results += found
        return results

    async def _shared(self, query: _Query, extents: Extents) -> list[Run]:
        """What a version shares with the one it replaces, less what may not be named any more."""
        old_hashes = await self._hashes(extents, query.hash_bytes)
        if len(query.heads) <= _INLINE_BLOCKS:
            runs = diff_against(extents, old_hashes, query.hashes, query.hash_bytes)
        else:
            runs = await self._env.threads.run(diff_against, extents, old_hashes, query.hashes, query.hash_bytes)
        return [run for run in runs if run[1][0] != GONE]

    def _find(
        self, fid: int, fkey: str, infos: Sequence[FileInfo], hash_bytes: int, pending: Mapping[str, int], conn: Connection
    ) -> tuple[list[list[Run]], dict[int, tuple[_Query, Extents]]]:
        """Runs per info, and for those not known whole the extents of the version that they replace."""
        queries = [_query(info, hash_bytes) for info in infos]
        hits = self._index.look_up(conn, fkey, {head for query in queries for head in query.heads})
        sources = self._sources(conn, fkey, {serial for serial, _ in hits.values()}, pending)
        found = [_match(query, hits, sources) for query in queries]
        wanted = {query.name: at for at, query in enumerate(queries) if _covered(found[at]) < len(query.heads)}
        replaced = self._registry.extents(conn, fid, list(wanted))
        usable = self._usable(conn, replaced.values())
        return found, {wanted[name]: (queries[wanted[name]], usable(extents)) for name, extents in replaced.items()}

    def _usable(self, conn: Connection, versions: Iterable[Extents]) -> Callable[[Extents], Extents]:
        """How to turn extents into addresses that new records may name: moved blocks where they are now, GONE for the rest."""
        packs = {pack for extents in versions for pack in packs_of(extents)}
        entries = dict(self._registry.by_number(conn, packs))
        moves = {pack: self._registry.moves(conn, pack) for pack in packs if pack not in entries or not entries[pack].usable}
        entries.update(self._registry.by_number(conn, {move.pack for table in moves.values() for move in table}))
        good = {number for number, entry in entries.items() if entry.usable} | {ZEROS}

        def usable(extents: Extents) -> Extents:
            moved = relocate(extents, moves) if moves else extents
            return tuple(extent if extent[0] in good else (GONE, 0, extent[2]) for extent in moved)

        return usable

    async def _hashes(self, extents: Extents, hash_bytes: int) -> bytes:
        """The hashes of these blocks; zeros for those whose pack cannot be asked, which equal no block's hash."""
        known: set[int] = set()
        for pack in packs_of(extents) - {GONE}:
            try:
                await self._packlists.ensure((pack,))
                known.add(pack)
            except (PackGone, Corrupt):
                continue
        return b"".join(
            self._packlists.hashes(pack, place, count) if pack in known else bytes(hash_bytes * count) for pack, place, count in extents
        )

    def _sources(self, conn: Connection, fkey: str, serials: Iterable[int], pending: Mapping[str, int]) -> dict[int, _Source]:
        """The packs among `serials` that new records may refer to, with their lists."""
        rows = {serial: row for serial, row in stored_lists(conn, set(serials)).items() if row[1] == fkey}
        entries = self._registry.by_id(conn, [row[0] for row in rows.values() if row[0] not in pending])
        sources: dict[int, _Source] = {}
        for serial, (pack_id, _, footer) in rows.items():
            entry = entries.get(pack_id)
            pack = pending.get(pack_id) or (entry.number if entry is not None and entry.usable else 0)
            if pack:
                try:
                    sources[serial] = _Source(pack, decode_footer(footer, pack_id))
                except Corrupt:  # of a cache: not to find it costs nothing, loading the list repairs it
                    continue
        return sources


class _Source(NamedTuple):
    """A pack that can be referred to: its number or handle, and its list."""

    pack: int
    blocks: PackList


@dataclass(slots=True, eq=False)
class _Query:
    """A file version to be found: its hashes, the first eight bytes of each as numbers, runs of zeros among its blocks."""

    name: str
    hashes: bytes
    hash_bytes: int
    heads: Sequence[int]
    block_size: int
    zeros: Sequence[Run]


def _query(info: FileInfo, hash_bytes: int) -> _Query:
    hashes = info.block_hashes
    heads = heads_of(hashes, hash_bytes)
    zeros = [(place, (ZEROS, 0, 1)) for place in _zero_places(info, heads)] if hash_bytes == PLAIN_HASH_BYTES else []
    return _Query(info.name, hashes, hash_bytes, heads, info.block_size, zeros)


def _zero_places(info: FileInfo, heads: Sequence[int]) -> list[int]:
    """Blocks of zeros: full ones, and the last one where it happens to have a full block's size."""
    hashes, size, last = info.block_hashes, info.block_size, len(heads) - 1
    if size not in FULL_SIZES or (last == 0 and info.size not in FULL_SIZES):
        return []
    rest = info.size - last * size
    zero = zero_hash(size)
    head = int.from_bytes(zero[:8], "big", signed=True)
    found = [place for place, each in enumerate(heads) if each == head and hashes[place * 32 : place * 32 + 32] == zero]
    if rest != size and rest in FULL_SIZES and hashes[last * 32 :] == zero_hash(rest):
        found.append(last)
    return found


def _batches(infos: Sequence[FileInfo], hash_bytes: int) -> Iterator[Sequence[FileInfo]]:
    """The infos in parts of bounded size."""
    start = blocks = 0
    for at, info in enumerate(infos):
        blocks += len(info.block_hashes) // hash_bytes
        if at - start == _BATCH_INFOS or (blocks > _BATCH_BLOCKS and at > start):
            yield infos[start:at]
            start, blocks = at, len(info.block_hashes) // hash_bytes
    if start < len(infos):
        yield infos[start:]


def _match(query: _Query, hits: Mapping[int, tuple[int, int]], sources: Mapping[int, _Source]) -> list[Run]:
    """Runs of the query's blocks that lie in known packs, and of zeros."""
    count, place = len(query.heads), 0
    if not sources:
        return overlay(count, query.zeros)
    found: list[Run] = []
    while place < count:
        hit = hits.get(query.heads[place])
        source = sources.get(hit[0]) if hit is not None else None
        if hit is None or source is None or source.blocks.hash_bytes != query.hash_bytes:
            place += 1
            continue
        floor = found[-1][0] + found[-1][1][2] if found else 0
        before, after = _extension(query, place, source.blocks, hit[1], floor)
        if after:
            found.append((place - before, (source.pack, hit[1] - before, before + after)))
        place += max(after, 1)
    whole = overlay(count, found, query.zeros)
    if _covered(whole) == count and len(whole) <= 2 + count * query.block_size // RUN_BYTES:
        return whole
    return overlay(count, [run for run in found if run[1][2] * query.block_size >= RUN_BYTES], query.zeros)


def _covered(runs: Sequence[Run]) -> int:
    """How many blocks the runs have together."""
    return sum(run[1][2] for run in runs)


def _extension(query: _Query, place: int, blocks: PackList, at: int, floor: int) -> tuple[int, int]:
    """How many blocks before `place` (not below `floor`) and from it on equal those around place `at` of the list."""
    size = query.hash_bytes
    mine, theirs = memoryview(query.hashes), memoryview(blocks.hashes)
    limit = min(len(query.heads) - place, blocks.count - at)
    after = equal_prefix(mine[place * size : (place + limit) * size], theirs[at * size : (at + limit) * size]) // size
    if not after:
        return 0, 0
    before = 0
    reach = min(place - floor, at)
    while (
        before < reach
        and mine[(place - before - 1) * size : (place - before) * size] == theirs[(at - before - 1) * size : (at - before) * size]
    ):
        before += 1
    return before, after


def equal_prefix(one: memoryview, other: memoryview) -> int:
    """Length of the longest common prefix of two views of the same length, by comparing ever smaller pieces."""
    low, high = 0, len(one)
    if one == other:
        return high
    step = 4096
    while low + step <= high and one[low : low + step] == other[low : low + step]:
        low += step
    high = min(high, low + step)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def diff_against(old_extents: Sequence[Extent], old_hashes: bytes, new_hashes: bytes, hash_bytes: int = PLAIN_HASH_BYTES) -> list[Run]:
    """What a new version shares with the one it replaces, whatever the length of the runs: blocks at the same position
    first, then blocks that moved within the file. `old_extents` must be addresses that new records may name."""
    where = [(pack, place + offset if pack else 0) for pack, place, count in old_extents for offset in range(count)]
    old = [old_hashes[at : at + hash_bytes] for at in range(0, len(old_hashes), hash_bytes)]
    if len(old) != len(where):
        raise Internal(f"a version of {len(where)} blocks came with {len(old)} hashes")
    by_hash = dict(zip(reversed(old), reversed(where), strict=True))
    found: list[tuple[int, int] | None] = []
    for index, at in enumerate(range(0, len(new_hashes), hash_bytes)):
        name = new_hashes[at : at + hash_bytes]
        found.append(where[index] if index < len(old) and old[index] == name else by_hash.get(name))
    return _runs(found)


def overlay(count: int, *layers: Sequence[Run]) -> list[Run]:
    """Runs of a file of `count` blocks put over each other, later layers winning; in order, joined, without overlaps."""
    used = [layer for layer in layers if layer]
    if len(used) < 2 and not (used and len(used[0]) > 1):
        return list(used[0]) if used else []
    where: list[tuple[int, int] | None] = [None] * count
    for layer in used:
        for start, (pack, place, blocks) in layer:
            where[start : start + blocks] = [(pack, place + offset if pack else 0) for offset in range(blocks)]
    return _runs(where)


def _runs(where: Sequence[tuple[int, int] | None]) -> list[Run]:
    """Addresses by block number as runs; None where there is none."""
    runs: list[Run] = []
    for index, address in enumerate(where):
        if address is None:
            continue
        pack, place = address
        if runs:
            first, last = runs[-1]
            if first + last[2] == index and follows(last, (pack, place, 1)):
                runs[-1] = (first, (pack, last[1], last[2] + 1))
                continue
        runs.append((index, (pack, place, 1)))
    return runs
