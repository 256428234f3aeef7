"""Packs on the local disk: random reads of a pack cost its bytes about once; the cache never makes an answer wrong."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from stnode.clock import SeededRandomness
from stnode.errors import Unavailable
from stnode.repo import diskcache
from stnode.repo.diskcache import DiskCache
from stnode.repo.reader import ReaderOptions
from tests.support.packs import World, blocks_of, quick_env

KIB = 1 << 10
PIECE = 256 * KIB


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskcache, "PIECE_BYTES", PIECE)


def options(path: Path, disk_bytes: int = 16 << 20) -> ReaderOptions:
    """Next to no memory, so that all is read again and again."""
    return ReaderOptions(cache_bytes=128 * KIB, disk_bytes=disk_bytes, disk_path=path / "packs")


def disk_of(world: World) -> DiskCache:
    assert world.reader._disk is not None
    return world.reader._disk


async def settled(world: World) -> None:
    """Until nothing is fetched any more."""
    while tasks := list(disk_of(world)._fills.values()):
        await asyncio.wait(tasks)
        await asyncio.sleep(0)


def shuffled(count: int) -> list[int]:
    return sorted(range(count), key=lambda place: SeededRandomness(place).uint64())


async def read_all(world: World, pack: int, blocks: Sequence[bytes], order: Sequence[int]) -> None:
    for place in order:
        assert (await world.reader.blocks(pack, place, 1))[0] == blocks[place]


async def warm(world: World, pack: int, blocks: Sequence[bytes]) -> None:
    """Reads at random until the pack is on disk."""
    await read_all(world, pack, blocks, shuffled(len(blocks))[:40])
    await settled(world)
    assert disk_of(world).fetched_bytes == sum(map(len, blocks))
    world.store.gets.clear()


async def test_random_reads_fetch_a_pack_once(tmp_path: Path) -> None:
    blocks = blocks_of(1, *[10 * KIB] * 300)
    async with World(reader=options(tmp_path)) as world:
        pack = await world.sealed(blocks)
        await world.reader.open()
        await read_all(world, pack, blocks, shuffled(300)[:20])
        await settled(world)
        gets = len(world.store.gets)
        await read_all(world, pack, blocks, shuffled(300) * 2)
        assert len(world.store.gets) == gets
        assert sum(length or 0 for _, _, length in world.store.gets) < 1.5 * 300 * 10 * KIB
        assert world.reader.counts.disk_reads > 100


async def test_a_few_reads_and_reads_in_order_fetch_nothing_beside(tmp_path: Path) -> None:
    blocks = blocks_of(2, *[128 * KIB] * 200)
    async with World(reader=ReaderOptions(disk_path=tmp_path / "packs")) as world:
        few, long = await world.sealed(blocks), await world.sealed(blocks[::-1])
        await read_all(world, few, blocks, [50, 7, 120])
        await read_all(world, long, blocks[::-1], range(200))
        assert not disk_of(world)._fills
        assert disk_of(world).fetched_bytes == 0
        assert not (tmp_path / "packs").exists()


@pytest.mark.parametrize("harm", ["deleted", "truncated", "corrupt"])
async def test_whatever_happens_to_its_files_the_blocks_are_right(tmp_path: Path, harm: str) -> None:
    blocks = blocks_of(3, *[10 * KIB] * 200)
    async with World(reader=options(tmp_path)) as world:
        pack = await world.sealed(blocks)
        await warm(world, pack, blocks)
        files = sorted((tmp_path / "packs").iterdir())
        assert len(files) == -(-200 * 10 * KIB // PIECE)
        if harm == "deleted":
            shutil.rmtree(tmp_path / "packs")
        for path in files if harm != "deleted" else ():
            data = path.read_bytes()
            path.write_bytes(data[:1000] if harm == "truncated" else bytes(len(data)))
        await read_all(world, pack, blocks, shuffled(200))
        assert world.store.gets
        assert world.reader.counts.damaged == 0


async def test_the_next_process_finds_what_is_there_and_tidies_up(tmp_path: Path) -> None:
    blocks = blocks_of(4, *[10 * KIB] * 200)
    async with World(reader=options(tmp_path)) as world:
        number = world.register(await world.sealed(blocks), 1)
        await warm(world, number, blocks)
        (tmp_path / "packs" / "nonsense").touch()
        (tmp_path / "packs" / f"{world.registry.entries[number].id}.9.part").touch()
        after = World(world.env, store=world.store.inner, reader=options(tmp_path))
        after.registry.entries = world.registry.entries
        async with after:
            await after.reader.open()
            assert disk_of(after).size_bytes == 200 * 10 * KIB
            await read_all(after, number, blocks, shuffled(200))
            assert [length for _, _, length in after.store.gets] == [world.registry.entries[number].footer_size]
        assert all(path.name[-1].isdecimal() for path in (tmp_path / "packs").iterdir())
        smaller = DiskCache(world.reader._objects, world.env, tmp_path / "packs", 3 * PIECE)
        await smaller.open()
        assert smaller.size_bytes <= 3 * PIECE
        assert sum(path.stat().st_size for path in (tmp_path / "packs").iterdir()) == smaller.size_bytes


async def test_more_than_fits_is_not_fetched_in_circles(tmp_path: Path) -> None:
    blocks = blocks_of(5, *[10 * KIB] * 300)
    limit = 3 << 20
    async with World(reader=options(tmp_path, limit)) as world:
        packs = [await world.sealed([each[::-1] if at else each for each in blocks]) for at in range(2)]
        packs += [await world.sealed(blocks) for _ in range(4)]
        read = 0
        for place in shuffled(300):
            for at, pack in enumerate(packs):
                (block,) = await world.reader.blocks(pack, place, 1)
                assert block == (blocks[place][::-1] if at == 1 else blocks[place])
                read += 64 * KIB
            assert disk_of(world).size_bytes <= limit
        await settled(world)
        assert sum(path.stat().st_size for path in (tmp_path / "packs").iterdir()) <= limit
        assert disk_of(world).fetched_bytes <= limit + read


@pytest.mark.expects_log("disk cache off")
async def test_a_full_disk_turns_it_off_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = blocks_of(6, *[10 * KIB] * 200)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(diskcache, "_write", full)
    async with World(reader=options(tmp_path)) as world:
        packs = [await world.sealed(blocks) for _ in range(2)]
        for pack in packs * 2:
            await read_all(world, pack, blocks, shuffled(200))
            await settled(world)
        assert (disk_of(world).size_bytes, disk_of(world).fetched_bytes) == (0, PIECE)
        assert sum("disk cache off" in record.getMessage() for record in caplog.records) == 1


async def test_a_store_that_is_away_is_not_asked_on(tmp_path: Path) -> None:
    async with World(quick_env()) as world:
        pack = await world.sealed(blocks_of(7, *[10 * KIB] * 200))
        pending = world.packer.pending(pack)

        async def refuse(*_: object) -> object:
            raise Unavailable("away")

        world.store.get = refuse  # type: ignore[method-assign,assignment]
        disk = DiskCache(world.reader._objects, world.env, tmp_path, 1 << 30)
        for _ in range(40):
            disk.missed(pending.id, pending.key, 2_000_000, 64 * KIB)
        while disk._fills:
            await asyncio.sleep(0)
        assert (disk.size_bytes, disk._arriving) == (0, {})
        assert await disk.read(pending.id, 0, 100) is None
