"""Who does what of a folder, of one moment."""

from __future__ import annotations

import hashlib
from collections import Counter

from stnode.folder.index import NeedKind, Part
from stnode.folder.sharing import weigh
from stnode.folder.split import ITEM_BYTES, Left, Saved, Split

A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))
DEVICE, OTHER = 5, 6


def part(name: str, *devices: int, kind: NeedKind = NeedKind.FILE, size: int = 1000) -> Part:
    key = hashlib.sha256(name.rpartition("/")[2].encode()).digest() if kind is NeedKind.FILE else b""
    return Part(name, kind, key, (size, 7), devices or (DEVICE,))


def split(me: bytes = A, late: tuple[bytes, ...] = (), renamed: tuple[tuple[int, int], ...] = ()) -> Split:
    return Split(me, b"folder", {DEVICE: {A: 1.0, B: 1.0, C: 1.0}, OTHER: {B: 1.0}}, late, renamed)


FILES = [part(f"d{number % 7}/{number}") for number in range(600)]


def test_every_file_has_one_owner_whoever_asks() -> None:
    owners = Counter(split().owner(each) for each in FILES)
    assert all(150 < owners[node] < 250 for node in (A, B, C))
    assert all(split(me).owner(each) == split().owner(each) for each in FILES for me in (B, C))
    done = [name for me in (A, B, C) for name in split(me).mine(FILES, {})[0]]
    assert sorted(done) == sorted(each.name for each in FILES)


def test_the_same_content_has_the_same_owner_under_all_names() -> None:
    assert all(split().owner(part(f"x/{number}")) == split().owner(part(f"y/{number}")) for number in range(50))


def test_what_fetches_nothing_is_one_nodes() -> None:
    kinds = (NeedKind.DIRECTORY, NeedKind.SYMLINK, NeedKind.METADATA, NeedKind.DELETE, NeedKind.DELETE_DIRECTORY)
    [leader] = {split().owner(part(f"{kind} {number}", kind=kind)) for kind in kinds for number in range(20)}
    [following] = {split(late=(leader,)).owner(part(f"{number}", kind=NeedKind.DELETE)) for number in range(20)}
    assert following != leader
    renamed = split(renamed=((1000, 7),))
    assert {renamed.owner(each) for each in FILES} == {leader}


def test_whom_only_one_node_reaches_is_its_own_and_what_nobody_reaches_everybodys() -> None:
    assert {split(me).owner(part(str(number), OTHER)) for number in range(50) for me in (A, B, C)} == {B}
    assert split(C).owner(part("x", 99)) == C
    assert split(C).owner(part("x", 99, kind=NeedKind.DELETE)) == C


def test_directories_above_own_files_are_own_too() -> None:
    directories = [part(f"d{number}", kind=NeedKind.DIRECTORY) for number in range(7)]
    for me in (A, B, C):
        mine, left = split(me).mine([*directories, *FILES], {})
        assert {f"d{number}" for number in range(7)} <= mine
        assert left.items == len(FILES) + 7 - len(mine)


def test_what_is_left_is_summed_by_node_and_ends_with_the_last_names() -> None:
    left = Left()
    for at in range(0, 600, 200):
        left.add(split().mine(FILES[at : at + 200], {FILES[-1].name: Saved(B, 400, 1), FILES[-2].name: Saved(C, 400, 1)})[1])
    assert left.items == sum(split().owner(each) != A for each in FILES)
    saved = sum(400 for each in FILES[-2:] if split().owner(each) != A)
    assert sum(tally.work for tally in left.tallies.values()) == left.items * (ITEM_BYTES + 1000) - saved
    others = [each.name for each in FILES if split().owner(each) != A]
    assert [each.name for each in left.tail] == others[-len(left.tail) :]


def test_names_that_wait_for_an_empty_directory_go_with_the_deletions() -> None:
    leader = split().owner(part("x", kind=NeedKind.DELETE))
    assert split(leader).mine(FILES, {}, {each.name for each in FILES})[0] == {each.name for each in FILES}


def test_weights_are_rates_in_steps_and_the_mean_where_nothing_is_measured() -> None:
    assert weigh({A: 0, B: 0}) == {A: 1.0, B: 1.0}
    weights = weigh({A: 10_000_000, B: 30_000_000, C: 0})
    assert weights[A] < weights[C] < weights[B]
    assert all(0.75 < weights[node] / rate <= 1 for node, rate in ((A, 10e6), (B, 30e6), (C, 20e6)))
    assert weigh({A: 10_000_000, B: 10_400_000}) == weigh({A: 10_300_000, B: 10_000_001})
