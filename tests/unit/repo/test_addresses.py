"""Extent arithmetic against the plain list of addresses that it stands for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stnode.errors import Corrupt, Internal
from stnode.repo.addresses import FileMap, Move, cut, join, join_places, number, packs_of, relocate
from stnode.repo.records import Extent

extents_of_files = st.lists(
    st.tuples(st.integers(-2, 3), st.integers(0, 6), st.integers(0, 5)).map(lambda e: (e[0], e[1] if e[0] else 0, e[2])), max_size=8
)


def flat(extents: list[Extent] | tuple[Extent, ...]) -> list[tuple[int, int]]:
    return [(pack, place + offset if pack else 0) for pack, place, count in extents for offset in range(count)]


@given(extents_of_files)
def test_joining_changes_nothing_but_the_number_of_extents(extents: list[Extent]) -> None:
    joined = join(extents)
    assert flat(joined) == flat(extents)
    assert join(joined) == joined
    assert join_places(flat(extents)) == joined
    assert all(extent[2] for extent in joined)
    assert packs_of(joined) == {pack for pack, _ in flat(extents) if pack}


@given(extents_of_files, st.integers(0, 20), st.integers(0, 20))
def test_cut(extents: list[Extent], start: int, count: int) -> None:
    all_blocks = flat(extents)
    if start + count > len(all_blocks):
        with pytest.raises(Internal):
            cut(extents, start, count)
    else:
        assert flat(cut(extents, start, count)) == all_blocks[start : start + count]


@given(extents_of_files)
def test_file_map(extents: list[Extent]) -> None:
    blocks = FileMap(extents)
    assert [blocks.at(index) for index in range(blocks.blocks)] == flat(extents)
    for index in range(blocks.blocks):
        run = blocks.run_at(index)
        assert flat([run]) == flat(extents)[index : index + run[2]]
    with pytest.raises(Internal):
        blocks.at(blocks.blocks)


@given(extents_of_files, st.dictionaries(st.tuples(st.sampled_from([1, 2]), st.integers(0, 10)), st.integers(0, 50), max_size=12))
def test_relocate(extents: list[Extent], moved: dict[tuple[int, int], int]) -> None:
    moves: dict[int, list[Move]] = {}
    for (pack, place), to_place in sorted(moved.items()):
        moves.setdefault(pack, []).append(Move(place, 1, pack + 1, to_place))
    expected = []
    for address in flat(extents):
        while address in moved:
            address = (address[0] + 1, moved[address])
        expected.append(address)
    assert flat(relocate(extents, moves)) == expected


def test_a_circle_is_damage_not_a_hang() -> None:
    with pytest.raises(Corrupt, match="circle"):
        relocate([(1, 0, 1)], {1: [Move(0, 1, 2, 0)], 2: [Move(0, 1, 1, 0)]})


def test_numbers_for_handles() -> None:
    assert number([(-1, 2, 3), (4, 0, 1), (0, 0, 9)], {-1: 7}) == ((7, 2, 3), (4, 0, 1), (0, 0, 9))
