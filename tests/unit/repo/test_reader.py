"""Reading blocks: right bytes or an error, few reads, bounded memory."""

from __future__ import annotations

import asyncio

import pytest

from stnode.clock import SeededRandomness
from stnode.errors import Corrupt, Internal, Unavailable
from stnode.repo.addresses import Move
from stnode.repo.cache import CELL_BYTES
from stnode.repo.packlist import PackGone
from stnode.repo.reader import ReaderOptions
from tests.support.packs import World, blocks_of
from tests.unit.repo.test_pack import compressed_pack

KIB = 1 << 10


async def test_blocks_of_a_pack_that_is_not_registered_and_after_it_is() -> None:
    blocks = blocks_of(1, 10, 0, 500, 131072, 7)
    async with World() as world:
        handle = await world.sealed(blocks)
        assert world.reader.cached(handle, 2) is None
        assert [bytes(view) for view in await world.reader.blocks(handle, 0, 5)] == blocks
        assert bytes(world.reader.cached(handle, 2) or b"") == blocks[2]
        number = world.register(handle, 3)
        for pack in (handle, number):
            assert bytes(world.reader.cached(pack, 3) or b"") == blocks[3]
            assert [bytes(view) for view in await world.reader.blocks(pack, 1, 3)] == blocks[1:4]
        assert len(world.store.gets) == 1


async def test_sequential_requests_cost_few_reads() -> None:
    blocks = blocks_of(2, *[10 * KIB] * 3000)
    async with World() as world:
        handle = await world.sealed(blocks)
        for place in range(len(blocks)):
            view = world.reader.cached(handle, place)
            if view is None:
                view = (await world.reader.blocks(handle, place, 1))[0]
            assert view == blocks[place]
        assert len(world.store.gets) <= 8
        assert sum(length or 0 for _, _, length in world.store.gets) == 3000 * 10 * KIB
        assert world.reader.counts.read_ahead >= 3


async def test_many_requests_at_once_read_everything_once() -> None:
    blocks = blocks_of(3, *[128 * KIB] * 200)
    async with World() as world:
        handle = await world.sealed(blocks)
        order = list(range(200))
        shuffled = sorted(order, key=lambda place: SeededRandomness(place).uint64())
        got = await asyncio.gather(*(world.reader.blocks(handle, place, 1) for place in shuffled))
        assert [bytes(view[0]) for view in got] == [blocks[place] for place in shuffled]
        assert sum(length or 0 for _, _, length in world.store.gets) == 200 * 128 * KIB


async def test_one_long_run_is_read_in_wide_ranges() -> None:
    blocks = blocks_of(4, *[256 * KIB] * 120)
    async with World() as world:
        handle = await world.sealed(blocks)
        assert [bytes(view) for view in await world.reader.blocks(handle, 0, 120)] == blocks
        assert len(world.store.gets) == 4


@pytest.mark.parametrize(
    "sizes", [[5 << 20, 3 << 20, 100, 2 << 20, 1 << 20, 1 << 20], [CELL_BYTES] * 6, [1] * 9, [0, 0], [CELL_BYTES, 0, 0, 1]]
)
@pytest.mark.parametrize("backwards", [False, True])
async def test_blocks_of_any_size(sizes: list[int], backwards: bool) -> None:
    blocks = blocks_of(5, *sizes)
    async with World() as world:
        handle = await world.sealed(blocks)
        places = range(len(sizes))
        for place in reversed(places) if backwards else places:
            assert (await world.reader.blocks(handle, place, 1))[0] == blocks[place]
        assert [bytes(view) for view in await world.reader.blocks(handle, 0, len(sizes))] == blocks
        assert sum(length or 0 for _, _, length in world.store.gets) == sum(sizes)


async def test_a_single_read_is_narrow() -> None:
    async with World() as world:
        handle = await world.sealed(blocks_of(6, *[128 * KIB] * 200))
        await world.reader.blocks(handle, 100, 1)
        assert [length for _, _, length in world.store.gets] == [128 * KIB]


async def test_memory_is_bounded() -> None:
    blocks = blocks_of(7, *[128 * KIB] * 100)
    async with World(reader=ReaderOptions(cache_bytes=1 << 20)) as world:
        handle = await world.sealed(blocks)
        for place in [*range(0, 100, 9), *range(0, 100, 9)]:
            assert (await world.reader.blocks(handle, place, 1))[0] == blocks[place]
            assert world.reader._cache.size_bytes <= 1 << 20
        assert len(world.store.gets) > 13


async def test_damage_is_named_and_never_served() -> None:
    blocks = blocks_of(8, *[1000] * 20)
    async with World() as world:
        handle = await world.sealed(blocks)
        stored = world.stored(handle)
        stored[7 * 1000 + 5] ^= 1
        await world.replace(handle, stored)
        with pytest.raises(Corrupt, match=f"block 7 of pack {world.packer.pending(handle).key} is damaged"):
            await world.reader.blocks(handle, 3, 10)
        assert world.reader.cached(handle, 7) is None
        assert bytes(world.reader.cached(handle, 6) or b"") == blocks[6]
        with pytest.raises(Corrupt, match="block 7"):
            await world.reader.blocks(handle, 7, 1)
        assert (await world.reader.blocks(handle, 8, 12))[0] == blocks[8]
        assert (len(world.store.gets), world.reader.counts.damaged) == (2, 1)


async def test_a_read_that_went_wrong_on_the_way_is_repeated() -> None:
    blocks = blocks_of(9, *[1000] * 5)
    async with World() as world:
        handle = await world.sealed(blocks)
        good, bad = bytes(world.stored(handle)), world.stored(handle)
        bad[0] ^= 1
        await world.replace(handle, bad)
        inner_get = world.store.inner.get

        async def get(*args: object) -> object:
            blob = await inner_get(*args)  # type: ignore[arg-type]
            await world.replace(handle, good)
            return blob

        world.store.inner.get = get  # type: ignore[assignment,method-assign]
        assert (await world.reader.blocks(handle, 0, 1))[0] == blocks[0]


async def test_a_truncated_pack_is_damage() -> None:
    async with World() as world:
        handle = await world.sealed(blocks_of(10, *[1000] * 5))
        await world.replace(handle, world.stored(handle)[:2500])
        with pytest.raises(Corrupt, match="ends at byte 2500"):
            await world.reader.blocks(handle, 0, 1)


async def test_encrypted_blocks_are_checked_by_their_checksums() -> None:
    blocks = blocks_of(11, 1064, 1064, 2000)
    async with World() as world:
        handle = await world.sealed(blocks, hash_bytes=48, tokens=blocks_of(12, 48, 48, 48))
        assert [bytes(view) for view in await world.reader.blocks(handle, 0, 3)] == blocks
        other = await world.sealed(blocks, hash_bytes=48, tokens=blocks_of(12, 48, 48, 48))
        stored = world.stored(other)
        stored[1064] ^= 1
        await world.replace(other, stored)
        with pytest.raises(Corrupt, match="block 1 "):
            await world.reader.blocks(other, 0, 3)


async def test_compressed_blocks() -> None:
    data, blocks = compressed_pack()
    async with World() as world:
        handle = await world.sealed(blocks_of(13, 10))
        number = world.register(handle, 1)
        entry = world.registry.entries[number]
        await world.replace(handle, data)
        footer = len(data) - int.from_bytes(data[-32:-24], "little")
        world.registry.entries[number] = entry._replace(size=len(data), footer_size=footer, id=entry.id)
        fresh = World(world.env, store=world.store.inner)
        fresh.registry = world.registry
        fresh.lists._registry = world.registry
        async with fresh:
            assert [bytes(view) for view in await fresh.reader.blocks(number, 0, 4)] == blocks
            assert bytes(fresh.reader.cached(number, 2) or b"") == blocks[2]


async def test_a_missing_pack_is_gone_unless_its_blocks_have_moved() -> None:
    blocks = blocks_of(14, *[100] * 6)
    async with World() as world:
        old, new = world.register(first := await world.sealed(blocks), 1), world.register(await world.sealed(blocks[3:]), 2)
        await world.replace(first, None)
        with pytest.raises(PackGone):
            await world.reader.blocks(old, 3, 2)
        world.registry.moved[old] = [Move(3, 3, new, 0)]
        assert [bytes(view) for view in await world.reader.blocks(old, 4, 2)] == blocks[4:]
        with pytest.raises(PackGone, match="is not in the store"):
            await world.reader.blocks(old, 2, 2)


async def test_a_pack_that_no_state_knows_is_gone() -> None:
    async with World() as world:
        with pytest.raises(PackGone, match="pack 77"):
            await world.reader.blocks(77, 0, 1)
        with pytest.raises(Internal):
            await world.reader.blocks(0, 0, 1)


async def test_an_unreachable_store_is_told_to_everybody_who_waits_and_asked_again_later() -> None:
    blocks = blocks_of(15, *[100] * 6)
    async with World() as world:
        handle = await world.sealed(blocks)
        inner_get = world.store.inner.get

        async def refuse(*_: object) -> object:
            raise Unavailable("away")

        world.store.inner.get = refuse  # type: ignore[assignment,method-assign]
        results = await asyncio.gather(*(world.reader.blocks(handle, place, 1) for place in range(6)), return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results)
        assert len(world.store.gets) == 1
        world.store.inner.get = inner_get  # type: ignore[method-assign]
        assert (await world.reader.blocks(handle, 5, 1))[0] == blocks[5]


async def test_who_gives_up_waiting_does_not_take_the_read_away_from_others() -> None:
    async with World() as world:
        handle = await world.sealed(blocks_of(16, 100, 100))
        one = asyncio.ensure_future(world.reader.blocks(handle, 0, 1))
        other = asyncio.ensure_future(world.reader.blocks(handle, 1, 1))
        await asyncio.sleep(0)
        one.cancel()
        assert len((await other)[0]) == 100
        assert one.cancelled()


async def test_random_requests_cost_about_their_own_bytes() -> None:
    blocks = blocks_of(17, *[10 * KIB] * 3000)
    async with World() as world:
        handle = await world.sealed(blocks)
        order = sorted(range(3000), key=lambda place: SeededRandomness(place).uint64())[:100]
        for place in order:
            assert (await world.reader.blocks(handle, place, 1))[0] == blocks[place]
        assert sum(length or 0 for _, _, length in world.store.gets) < 120 * 70 * KIB


async def test_what_is_likely_wanted_comes_along_up_to_a_mebibyte() -> None:
    blocks = blocks_of(18, *[128 * KIB] * 100)
    async with World() as world:
        handle = await world.sealed(blocks)
        await world.reader.blocks(handle, 10, 1, likely=3)
        await world.reader.blocks(handle, 50, 1, likely=50)
        assert [length for _, _, length in world.store.gets] == [3 * 128 * KIB, 1 << 20]
        assert bytes(world.reader.cached(handle, 12) or b"") == blocks[12]
        await world.reader.blocks(handle, 98, 1, likely=500)
        assert len(world.store.gets) == 3


async def test_damage_beside_what_is_asked_for_is_found_when_it_is_asked_for() -> None:
    blocks = blocks_of(19, *[1000] * 20)
    async with World() as world:
        handle = await world.sealed(blocks)
        stored = world.stored(handle)
        for place in (3, 7):
            stored[place * 1000 + 5] ^= 1
        await world.replace(handle, stored)
        assert (await world.reader.blocks(handle, 4, 3))[0] == blocks[4]
        assert (len(world.store.gets), world.reader.counts.damaged) == (1, 0)
        results = await asyncio.gather(*(world.reader.blocks(handle, place, 1) for place in (3, 7, 7)), return_exceptions=True)
        assert all(isinstance(result, Corrupt) for result in results)
        assert world.reader.cached(handle, 3) is None
        assert (len(world.store.gets), world.reader.counts.damaged) == (2, 2)
        assert [bytes(view) for view in await world.reader.blocks(handle, 8, 12)] == blocks[8:]


async def test_a_second_read_that_fails_is_tried_again_later() -> None:
    blocks = blocks_of(20, *[1000] * 5)
    async with World() as world:
        handle = await world.sealed(blocks)
        good, bad = bytes(world.stored(handle)), world.stored(handle)
        bad[0] ^= 1
        await world.replace(handle, bad)
        assert (await world.reader.blocks(handle, 1, 1))[0] == blocks[1]
        inner_get = world.store.inner.get

        async def refuse(*_: object) -> object:
            raise Unavailable("away")

        world.store.inner.get = refuse  # type: ignore[assignment,method-assign]
        with pytest.raises(Unavailable):
            await world.reader.blocks(handle, 0, 1)
        world.store.inner.get = inner_get  # type: ignore[method-assign]
        await world.replace(handle, good)
        assert (await world.reader.blocks(handle, 0, 1))[0] == blocks[0]
        assert world.reader.counts.damaged == 0


async def test_large_blocks_are_verified_with_their_read() -> None:
    blocks = blocks_of(21, *[128 * KIB] * 8)
    async with World() as world:
        handle = await world.sealed(blocks)
        stored = world.stored(handle)
        stored[5 * 128 * KIB] ^= 1
        await world.replace(handle, stored)
        await world.reader.blocks(handle, 0, 1, likely=8)
        assert [place for place in range(8) if world.reader.cached(handle, place) is None] == [5]
        with pytest.raises(Corrupt, match="block 5 "):
            await world.reader.blocks(handle, 5, 1)
