"""Lists of packs: from memory, from SQLite, from footers; verified, bounded, never of another pack."""

from __future__ import annotations

import asyncio
from sqlite3 import Connection

import pytest

from stnode.db import Database
from stnode.errors import Corrupt, Unavailable
from stnode.objectstore.base import ObjectStore
from stnode.repo.packlist import UNREGISTERED_S, ListOptions, PackGone, read_list
from tests.support.packs import World, blocks_of, sha


def again(world: World, **options: object) -> World:
    """The same node after a restart: its database and the store are there, its memory is gone."""
    other = World(world.env, store=world.store.inner, db=world.db, **options)
    other.registry = world.registry
    other.lists._registry = other.dedupe._registry = world.registry
    return other


async def test_lists_of_own_packs_are_there_at_once() -> None:
    blocks = blocks_of(1, 10, 20, 30)
    async with World() as world:
        handle = await world.sealed(blocks)
        number = world.register(handle, 5)
        for pack in (handle, number):
            await world.lists.ensure([pack, 0])
            assert world.lists.hashes(pack, 1, 2) == sha(blocks[1]) + sha(blocks[2])
            assert list(world.lists.lengths(pack, 0, 3)) == [10, 20, 30]
            with pytest.raises(Corrupt, match="which has 3"):
                world.lists.hashes(pack, 2, 2)
        assert world.store.gets == []


async def test_lists_outlive_a_restart_and_are_fetched_after_the_database_is_lost() -> None:
    blocks = blocks_of(2, 10, 20)
    async with World() as world:
        world.register(await world.sealed(blocks), 1)
        restarted = again(world)
        await restarted.lists.ensure([1])
        assert restarted.lists.hashes(1, 0, 2) == sha(blocks[0]) + sha(blocks[1])
        assert restarted.store.gets == []
        lost = again(world)
        lost.db = lost.lists._db = Database(None, inline=True)
        async with lost:
            await asyncio.gather(*(lost.lists.ensure([1]) for _ in range(3)))
            assert lost.lists.hashes(1, 1) == sha(blocks[1])
            assert len(lost.store.gets) == 1
            fetched_again = again(lost)
            await fetched_again.lists.ensure([1])
            assert fetched_again.store.gets == []


async def test_a_number_that_means_another_pack_after_a_restore_is_seen() -> None:
    one, other = blocks_of(3, 10), blocks_of(4, 10)
    async with World() as world:
        first = await world.sealed(one)
        second = await world.sealed(other)
        world.register(first, 1)
        assert world.lists.hashes(1, 0) == sha(one[0])
        world.packer.unregister()
        world.register(second, 1)
        await world.lists.ensure([1])
        assert world.lists.hashes(1, 0) == sha(other[0])
        restarted = again(world)
        await restarted.lists.ensure([1])
        assert restarted.lists.hashes(1, 0) == sha(other[0])


async def test_missing_and_damaged_packs() -> None:
    async with World() as world:
        handles = [await world.sealed(blocks_of(seed, 50, 60)) for seed in range(3)]
        for number, handle in enumerate(handles, 1):
            world.register(handle, number)
        await world.replace(handles[1], None)
        damaged = world.stored(handles[2])
        damaged[-60] ^= 1
        await world.replace(handles[2], damaged)
        await world.db.write(lambda conn: conn.execute("DELETE FROM packlists").rowcount)
        restarted = again(world)
        with pytest.raises(PackGone, match="not in the store"):
            await restarted.lists.ensure([1, 2])
        assert restarted.lists.get(1) is not None
        with pytest.raises(Corrupt, match=world.packer.pending(handles[2]).key):
            await restarted.lists.ensure([3])
        with pytest.raises(PackGone, match="pack 9"):
            await restarted.lists.ensure([9])


async def test_a_damaged_copy_in_the_database_is_fetched_again() -> None:
    blocks = blocks_of(5, 10)
    async with World() as world:
        world.register(await world.sealed(blocks), 1)
        await world.db.write(lambda conn: conn.execute("UPDATE packlists SET footer = zeroblob(90)").rowcount)
        for expected in (1, 0):
            restarted = again(world)
            await restarted.lists.ensure([1])
            assert restarted.lists.hashes(1, 0) == sha(blocks[0])
            assert len(restarted.store.gets) == expected


async def test_one_failed_load_does_not_fail_those_who_wait_for_another_pack() -> None:
    async with World() as world:
        handles = [await world.sealed(blocks_of(number, 10)) for number in (1, 2)]
        for number, handle in enumerate(handles, 1):
            world.register(handle, number)
        await world.replace(handles[1], None)
        await world.db.write(lambda conn: conn.execute("DELETE FROM packlists").rowcount)
        restarted = again(world)
        both, first = await asyncio.gather(restarted.lists.ensure([1, 2]), restarted.lists.ensure([1]), return_exceptions=True)
        assert isinstance(both, PackGone)
        assert first is None


async def test_memory_and_disk_are_bounded() -> None:
    async with World(lists=ListOptions(memory_bytes=3000, disk_bytes=1000)) as world:
        blocks = [blocks_of(seed, *[5] * 10) for seed in range(6)]
        for number, each in enumerate(blocks, 1):
            world.register(await world.sealed(each), number)
        footer = world.registry.entries[1].footer_size

        def kept(conn: Connection) -> tuple[int, int, int]:
            count, size = conn.execute("SELECT count(*), sum(bytes) FROM packlists").fetchone()
            (counted,) = conn.execute("SELECT bytes FROM packlists_size").fetchone()
            assert size == counted
            return count, size, conn.execute("SELECT count(DISTINCT serial) FROM blockhash").fetchone()[0]

        assert await world.db.run(kept) == (1000 // footer, 1000 // footer * footer, 1000 // footer)
        clock = world.env.clock
        later = clock.monotonic() + 100
        clock.monotonic = lambda: later  # type: ignore[method-assign]
        await world.lists.ensure([1])
        world.register(await world.sealed(blocks[0]), 7)
        assert world.lists.memory_bytes <= 3000
        assert world.lists.get(1) is not None
        assert world.lists.get(2) is None
        await world.lists.ensure([2])
        assert world.lists.hashes(2, 0) == sha(blocks[1][0])


async def test_packs_that_nobody_registers_are_let_go_after_an_hour_or_a_word() -> None:
    """Somebody else stored the same: no commit will ever name them."""
    async with World() as world:
        handles = [await world.sealed(blocks_of(seed, 10)) for seed in range(2)]
        assert sorted(world.lists.pending_ids().values()) == sorted(handles)
        world.lists.forget_pending(handles[:1])
        assert world.lists.get(handles[0]) is None
        clock = world.env.clock
        later = clock.monotonic() + UNREGISTERED_S + 1
        clock.monotonic = lambda: later  # type: ignore[method-assign]
        new = await world.sealed(blocks_of(7, 10))
        assert list(world.lists.pending_ids().values()) == [new]
        assert world.lists.get(handles[1]) is None
        world.register(handles[1], 1)  # somebody was slow: it is found all the same
        await world.lists.ensure([1])
        assert world.lists.hashes(1, 0) == sha(blocks_of(1, 10)[0])


async def test_an_unreachable_store_is_said() -> None:
    async with World() as world:
        world.register(await world.sealed(blocks_of(1, 10)), 1)
        await world.db.write(lambda conn: conn.execute("DELETE FROM packlists").rowcount)
        restarted = again(world)

        async def away(*_: object) -> object:
            raise Unavailable("away")

        restarted.store.inner.get = away  # type: ignore[assignment,method-assign]
        with pytest.raises(Unavailable):
            await restarted.lists.ensure([1])


async def test_a_list_is_read_with_nothing_known_but_the_key() -> None:
    async with World() as world:
        small = await world.sealed(blocks_of(1, 10, 20))
        large = await world.sealed(blocks_of(2, *range(1, 4000)))
        for handle, count in ((small, 2), (large, 3999)):
            pending = world.packer.pending(handle)
            listed = await read_list(world.store, pending.key)  # type: ignore[arg-type]
            assert (listed.count, listed.data_bytes + pending.footer_size) == (count, pending.size)
        objects: ObjectStore = world.store.inner
        await world.replace(small, b"x" * 100)
        with pytest.raises(Corrupt, match="does not end like a pack"):
            await read_list(objects, world.packer.pending(small).key)
        await world.replace(small, None)
        with pytest.raises(PackGone):
            await read_list(objects, world.packer.pending(small).key)
