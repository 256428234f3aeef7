"""What is found again, what must not be, and that a found run always is the blocks it is said to be."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from stnode.clock import SeededRandomness
from stnode.protocol.fileinfo import FileInfo
from stnode.repo.addresses import Move
from stnode.repo.blockindex import indexed_places
from stnode.repo.dedupe import Run, diff_against, equal_prefix, overlay
from stnode.repo.pack import plain_list
from tests.support.packs import World, a_file, blocks_of, sha

BLOCK = 131072


def full(seed: int | str, count: int) -> list[bytes]:
    """Different full blocks."""
    return [start + bytes(BLOCK - 8) for start in blocks_of(seed, *[8] * count)]


def with_hashes(hashes: bytes, count: int) -> FileInfo:
    """A FileInfo of `count` full blocks with these hashes."""
    info = a_file("f", [b"x"])
    object.__setattr__(info, "block_hashes", hashes)
    object.__setattr__(info, "size", count * BLOCK)
    return info


async def found(world: World, blocks: Sequence[bytes]) -> list[Run]:
    runs = (await world.dedupe.find(1, [with_hashes(b"".join(map(sha, blocks)), len(blocks))]))[0]
    for start, (pack, place, count) in runs:
        if pack:
            await world.lists.ensure([pack])
            assert world.lists.hashes(pack, place, count) == b"".join(map(sha, blocks[start : start + count]))
    return runs


async def test_small_files_are_found_whole_before_and_after_the_commit() -> None:
    files = [blocks_of(seed, 100) for seed in range(300)]
    async with World() as world:
        handle = await world.sealed(*files)
        infos = [a_file(f"copy{at}", blocks) for at, blocks in enumerate(files)]
        assert await world.dedupe.find(1, infos) == [[(0, (handle, at, 1))] for at in range(300)]
        world.register(handle, 4)
        assert await world.dedupe.find(1, [*infos, a_file("new", blocks_of("new", 50))]) == [*[[(0, (4, at, 1))] for at in range(300)], []]


async def test_runs_of_a_mib_are_found_shorter_ones_are_not() -> None:
    stored = full(1, 64)
    async with World() as world:
        pack = world.register(await world.sealed(stored), 1)
        assert await found(world, stored) == [(0, (pack, 0, 64))]
        shifted = [*full(2, 3), *stored[5:40], *full(3, 2)]
        assert await found(world, shifted) == [(3, (pack, 5, 35))]
        assert await found(world, [*full(2, 10), *stored[9:16], *full(3, 10)]) == []
        assert await found(world, stored[3:9]) == [(0, (pack, 3, 6))]


async def test_a_file_over_several_packs_is_found_whole_whatever_the_last_part() -> None:
    stored = full(1, 33)
    async with World() as world:
        packs = [await world.sealed(stored[:16]), await world.sealed(stored[16:32]), await world.sealed(stored[32:])]
        assert await found(world, stored) == [(0, (packs[0], 0, 16)), (16, (packs[1], 0, 16)), (32, (packs[2], 0, 1))]


async def test_packs_that_are_condemned_unknown_or_of_another_folder_are_left_alone() -> None:
    stored = full(1, 16)
    async with World() as world:
        number = world.register(await world.sealed(stored), 1)
        entry = world.registry.entries[number]
        world.registry.entries[number] = entry._replace(usable=False)
        assert await found(world, stored) == []
        del world.registry.entries[number]
        assert await found(world, stored) == []
        world.registry.entries[number] = entry
        world.dedupe._fkey_of = lambda _: "other-0011223344556677"
        assert await found(world, stored) == []


async def test_eight_equal_bytes_are_not_enough() -> None:
    stored = full(1, 1)
    async with World() as world:
        await world.sealed(stored)
        assert await world.dedupe.find(1, [with_hashes(sha(stored[0])[:8] + bytes(24), 1)]) == [[]]


async def test_zeros_cost_nothing() -> None:
    zeros = bytes(BLOCK)
    async with World() as world:
        data = blocks_of(1, BLOCK)[0]
        info = a_file("sparse", [zeros, zeros, data, zeros, bytes(5)])
        assert await world.dedupe.find(1, [info]) == [[(0, (0, 0, 2)), (3, (0, 0, 1))]]
        assert await world.dedupe.find(1, [a_file("z", [zeros])]) == [[(0, (0, 0, 1))]]
        assert await world.dedupe.find(1, [a_file("z", [bytes(1 << 20), zeros], 1 << 20)]) == [[(0, (0, 0, 2))]]
        assert await world.dedupe.find(1, [a_file("small", [bytes(100)])]) == [[]]


async def test_what_a_version_shares_with_the_one_it_replaces_is_found_without_the_index() -> None:
    old = full(1, 20)
    async with World() as world:
        pack = world.register(await world.sealed(old), 1)
        await world.db.write(lambda conn: conn.execute("DELETE FROM blockhash").rowcount)
        world.registry.versions["f"] = ((pack, 0, 20),)
        changed = [*old[:3], *full(2, 1), *old[4:9], *full(3, 2), *old[9:]]
        assert await found(world, changed) == [(0, (pack, 0, 3)), (4, (pack, 4, 5)), (11, (pack, 9, 11))]
        world.registry.entries[pack] = world.registry.entries[pack]._replace(usable=False)
        assert await found(world, changed) == []


async def test_the_old_version_is_taken_from_where_it_was_moved_to() -> None:
    old = full(1, 6)
    async with World() as world:
        first, second = world.register(await world.sealed(old), 1), world.register(await world.sealed(old[2:]), 2)
        await world.db.write(lambda conn: conn.execute("DELETE FROM blockhash").rowcount)
        world.registry.versions["f"] = ((first, 0, 6),)
        world.registry.entries[first] = world.registry.entries[first]._replace(usable=False)
        world.registry.moved[first] = [Move(2, 4, second, 0)]
        assert await found(world, [*old[:5], *full(2, 1)]) == [(2, (second, 0, 3))]


async def test_encrypted_folders() -> None:
    tokens = blocks_of("tokens", *[48] * 10)
    async with World() as world:
        pack = await world.sealed(blocks_of(1, *[1064] * 10), hash_bytes=48, tokens=tokens)
        assert await world.dedupe.find(1, [with_hashes(b"".join(tokens), 10)], hash_bytes=48) == [[(0, (pack, 0, 10))]]


async def test_many_and_large_files_in_one_call() -> None:
    async with World() as world:
        infos = [a_file(f"f{at}", blocks_of(at, 10)) for at in range(2500)]
        infos.insert(700, with_hashes(SeededRandomness(1).bytes(70_000 * 32), 70_000))
        assert await world.dedupe.find(1, infos) == [[]] * 2501


def test_index_is_partial_but_has_every_file() -> None:
    lengths = [BLOCK] * 20 + [5] + [BLOCK] * 3 + [7, 9]
    listed = plain_list(32, [sha(bytes([at])) for at in range(len(lengths))], lengths)
    assert indexed_places(listed, None) == [0, 8, 16, 21, 25]
    assert indexed_places(listed, [0, 10, 25]) == [0, 8, 10, 18, 25]


pool = st.integers(0, 6).map(lambda seed: sha(bytes([seed])))


@given(st.lists(pool, max_size=12), st.lists(pool, max_size=12))
def test_diff_names_equal_blocks_only_and_all_of_them(old: list[bytes], new: list[bytes]) -> None:
    runs = diff_against([(3, 5, len(old))], b"".join(old), b"".join(new))
    covered = {}
    for start, (pack, place, count) in runs:
        assert pack == 3
        for offset in range(count):
            assert old[place - 5 + offset] == new[start + offset]
            covered[start + offset] = place + offset
    assert set(covered) == {at for at, name in enumerate(new) if name in old}
    assert all(covered[at] == at + 5 for at in range(min(len(old), len(new))) if old[at] == new[at])


layers = st.lists(st.tuples(st.integers(0, 9), st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 4))), max_size=4)


@given(layers, layers)
@settings(max_examples=200)
def test_overlay(lower: list[Run], upper: list[Run]) -> None:
    where: list[tuple[int, int] | None] = [None] * 14
    for start, (pack, place, count) in [*lower, *upper]:
        for offset in range(count):
            where[start + offset] = (pack, place + offset if pack else 0)
    merged = overlay(14, lower, upper)
    if len(lower) + len(upper) != 1:
        flat: list[tuple[int, int] | None] = [None] * 14
        end = 0
        for start, (pack, place, count) in merged:
            assert start >= end
            end = start + count
            flat[start:end] = [(pack, place + offset if pack else 0) for offset in range(count)]
        assert flat == where


@given(st.binary(max_size=40), st.integers(0, 40), st.integers(0, 3))
def test_equal_prefix(data: bytes, at: int, scale: int) -> None:
    one = data * (1 + scale * 400)
    other = bytearray(one)
    if at < len(one):
        other[at * len(one) // 41] ^= 1
    expected = next((index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
    assert equal_prefix(memoryview(one), memoryview(other)) == expected
