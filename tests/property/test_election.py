"""Weighted rendezvous: everybody finds the same, little moves, weights are honoured."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stnode.errors import Internal
from stnode.repo.election import elected, first, order

KEYS = [number.to_bytes(4, "big") for number in range(4000)]
NODES = [bytes([number]) * 32 for number in range(8)]
weights = st.dictionaries(st.sampled_from(NODES), st.sampled_from((0.0, 0.5, 1.0, 3.0, 1e6, 2e8)))


@given(st.binary(max_size=40), weights)
def test_the_order_has_each_node_that_weighs_anything_once(key: bytes, given_weights: dict[bytes, float]) -> None:
    found = order(key, given_weights)
    assert sorted(found) == sorted(node for node, weight in given_weights.items() if weight > 0)
    assert first(key, given_weights) == (found[0] if found else None)
    assert order(key, dict(reversed(given_weights.items()))) == found


@given(st.binary(max_size=40), weights, st.sampled_from(NODES))
def test_who_leaves_moves_nothing_among_the_others(key: bytes, given_weights: dict[bytes, float], gone: bytes) -> None:
    left = {node: weight for node, weight in given_weights.items() if node != gone}
    assert order(key, left) == [node for node in order(key, given_weights) if node != gone]


@given(st.binary(max_size=40), weights, st.sampled_from(NODES))
def test_who_becomes_heavier_takes_over_and_never_gives_away(key: bytes, given_weights: dict[bytes, float], node: bytes) -> None:
    heavier = {**given_weights, node: given_weights.get(node, 0.0) * 2 + 1}
    before, after = first(key, given_weights), first(key, heavier)
    assert after in (before, node)


@pytest.mark.parametrize("shares", [(1, 1, 1), (1, 2, 5), (1, 100), (3e6, 9e6, 9e6, 9e6)])
def test_parts_follow_the_weights(shares: tuple[float, ...]) -> None:
    found = Counter(first(key, dict(zip(NODES, shares, strict=False))) for key in KEYS)
    for node, share in zip(NODES, shares, strict=False):
        part = share / sum(shares)
        # five standard deviations of a binomial distribution
        assert abs(found[node] - len(KEYS) * part) < 5 * (len(KEYS) * part * (1 - part)) ** 0.5 + 1


@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_new_node_takes_its_part_from_all(count: int) -> None:
    before = dict.fromkeys(NODES[: count - 1], 1.0)
    after = {**before, NODES[count - 1]: 1.0}
    moved = [key for key in KEYS if first(key, before) != first(key, after)]
    assert abs(len(moved) - len(KEYS) / count) < 5 * (len(KEYS) / count) ** 0.5
    assert all(first(key, after) == NODES[count - 1] for key in moved)


def test_tasks_are_spread_and_need_somebody() -> None:
    assert len({elected(f"task {number}", NODES) for number in range(200)}) == len(NODES)
    assert elected("checkpoint", NODES[:1]) == NODES[0]
    with pytest.raises(Internal):
        elected("checkpoint", [])
