"""What the store really has of a pack: the object, its list and every block, read from the store itself and past all caches."""

from __future__ import annotations

from bisect import bisect
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from stnode.clock import Env
from stnode.errors import Corrupt, NotFound, StnodeError
from stnode.objectstore.base import Key, ObjectStore
from stnode.repo import compression
from stnode.repo.checksum import xxh3_64
from stnode.repo.pack import PLAIN_HASH_BYTES, PackList, decode_footer
from stnode.repo.packlist import PackGone, read_range
from stnode.repo.state import Pack
from stnode.repo.verify import verify_blocks

READ_BYTES = 8 << 20
_SMALLEST_READ_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class PackState:
    """`fault` says what is wrong, "" for a whole pack. `bad` are the places that cannot be read; with `blocks` None no list of the pack is
    known, and no block of it can be used."""

    fault: str
    blocks: PackList | None
    bad: tuple[int, ...] = ()

    @property
    def good(self) -> list[int]:
        """The places that can be read."""
        if self.blocks is None:
            return []
        bad = set(self.bad)
        return [place for place in range(self.blocks.count) if place not in bad]


async def read_footer(objects: ObjectStore, env: Env, key: Key, pack: Pack) -> PackList:
    """The pack's list, as its footer says. Raises PackGone, Corrupt, also where it is not the list that was registered, Refused."""
    footer = await read_range(objects, key, pack.size_bytes - pack.footer_bytes, pack.footer_bytes)
    blocks = await env.threads.run(decode_footer, footer, key, pack.size_bytes)
    if (blocks.count, blocks.data_bytes) != (pack.blocks, pack.footer_offset):
        raise Corrupt(f"its list has {blocks.count} blocks, {pack.blocks} are registered")
    return blocks


async def inspect(objects: ObjectStore, env: Env, key: Key, pack: Pack, known: PackList | None) -> PackState:
    """Reads a whole pack. `known` is its list as somebody remembers it, for when the footer is gone. What does not verify is read twice.
    Raises Unavailable, and Archived or Refused where the store does not let us look: that is no damage."""
    try:
        size = (await objects.head(key)).size_bytes
    except NotFound:
        return PackState("it is missing", known, tuple(range(known.count)) if known is not None else ())
    fault, blocks = "", known
    if size != pack.size_bytes:
        fault = f"it has {size} bytes instead of {pack.size_bytes}"
    else:
        try:
            blocks = await read_footer(objects, env, key, pack)
        except (Corrupt, NotFound) as exc:
            fault = exc.message
    if blocks is None:
        return PackState(fault, None)
    bad: list[int] = []
    async for first, views in read_verified(objects, env, key, blocks, size):
        bad += [place for place, view in enumerate(views, first) if view is None]
    if bad and not fault:
        fault = damaged_blocks(bad, blocks.count)
    return PackState(fault, blocks, tuple(bad))


def damaged_blocks(bad: Sequence[int], count: int) -> str:
    """What is wrong with a pack of `count` blocks of which these are `bad`."""
    return f"{len(bad)} of its {count} blocks are damaged: {', '.join(map(str, bad[:10]))}{' …' if len(bad) > 10 else ''}"


async def read_verified(
    objects: ObjectStore, env: Env, key: Key, blocks: PackList, size_bytes: int, *, again: bool = True
) -> AsyncIterator[tuple[int, list[memoryview | None]]]:
    """All blocks of a pack whose object has `size_bytes`, some megabytes at a time: (first place, blocks as they were), None for each that does
    not verify; with `again` not before it was read twice."""
    place = 0
    while place < blocks.count:
        end = place + 1
        while end < blocks.count and blocks.offsets[end + 1] - blocks.offsets[place] <= READ_BYTES:
            end += 1
        views = await _read(objects, env, key, blocks, (place, end), size_bytes)
        for at in [at for at, view in enumerate(views, place) if view is None] if again else ():
            views[at - place] = (await _read(objects, env, key, blocks, (at, at + 1), size_bytes))[0]
        yield place, views
        place = end


async def _read(
    objects: ObjectStore, env: Env, key: Key, blocks: PackList, places: tuple[int, int], size_bytes: int
) -> list[memoryview | None]:
    first, end = places
    start = blocks.offsets[first]
    length = min(blocks.offsets[end], size_bytes) - start
    if length <= 0 and blocks.offsets[end] > start:
        return [None] * (end - first)
    try:
        data = await read_range(objects, key, start, length)
    except PackGone:
        return [None] * (end - first)
    except Corrupt:  # of an encrypted store: one damaged segment spoils the whole read
        if end - first == 1 or length <= _SMALLEST_READ_BYTES:
            return [None] * (end - first)
        middle = bisect(blocks.offsets, start + length // 2, first + 1, end - 1)
        halves = ((first, middle), (middle, end))
        return [view for half in halves for view in await _read(objects, env, key, blocks, half, size_bytes)]
    return await env.threads.run(verified, blocks, first, end, data)


def verified(blocks: PackList, first: int, end: int, data: bytes) -> list[memoryview | None]:
    """Blocks `first` to before `end` out of `data`, which begins with the first of them; None for those that are not what the list names.
    For a thread."""
    view, base = memoryview(data), blocks.offsets[first]
    return [
        verified_block(blocks, place, view[blocks.offsets[place] - base : blocks.offsets[place + 1] - base]) for place in range(first, end)
    ]


def verified_block(blocks: PackList, place: int, stored: memoryview) -> memoryview | None:
    """The block as it was, None unless it is what the list says. An encrypted folder's block is checked by its checksum: its
    token says nothing of it."""
    if len(stored) != blocks.offsets[place + 1] - blocks.offsets[place]:
        return None
    if blocks.checks is not None and xxh3_64(stored) != blocks.checks[place]:
        return None
    plain = stored
    if place in blocks.compressed:
        try:
            plain = memoryview(compression.decompress(stored, blocks.lengths[place]))
        except StnodeError:
            return None
    if blocks.hash_bytes == PLAIN_HASH_BYTES and not verify_blocks([(plain, blocks.hashes_of(place))])[0]:
        return None
    return plain
