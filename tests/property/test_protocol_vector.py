"""The algebra of version vectors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stnode.protocol import vector
from stnode.protocol.vector import Ordering, Vector

SHORT_IDS = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1))
VALUES = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 2))
VECTORS = st.lists(st.tuples(SHORT_IDS, VALUES), max_size=5).map(vector.from_pairs)
MIRRORED = {
    Ordering.EQUAL: Ordering.EQUAL,
    Ordering.GREATER: Ordering.LESSER,
    Ordering.LESSER: Ordering.GREATER,
    Ordering.CONCURRENT_GREATER: Ordering.CONCURRENT_LESSER,
    Ordering.CONCURRENT_LESSER: Ordering.CONCURRENT_GREATER,
}


@given(VECTORS, VECTORS)
def test_compare_is_antisymmetric(a: Vector, b: Vector) -> None:
    assert vector.compare(b, a) is MIRRORED[vector.compare(a, b)]
    assert vector.concurrent(a, b) == (not vector.covers(a, b) and not vector.covers(b, a))


@given(VECTORS, VECTORS, VECTORS)
def test_covering_is_transitive(a: Vector, b: Vector, c: Vector) -> None:
    top = vector.merge(vector.merge(a, b), c)
    middle = vector.merge(a, b)
    assert vector.covers(top, middle)
    assert vector.covers(middle, a)
    assert vector.covers(top, a)


@given(VECTORS, VECTORS, VECTORS)
def test_merge_is_commutative_associative_and_idempotent(a: Vector, b: Vector, c: Vector) -> None:
    assert vector.merge(a, b) == vector.merge(b, a)
    assert vector.merge(vector.merge(a, b), c) == vector.merge(a, vector.merge(b, c))
    assert vector.merge(a, a) == a
    assert vector.covers(vector.merge(a, b), b)


@given(VECTORS, SHORT_IDS, st.integers(0, 2**40))
def test_an_update_is_greater_and_changes_one_counter(a: Vector, short_id: int, now_s: int) -> None:
    changed = vector.update(a, short_id, now_s)
    assert vector.compare(changed, a) is Ordering.GREATER
    assert vector.counter(changed, short_id) == max(vector.counter(a, short_id) + 1, now_s)
    assert [pair for pair in changed if pair[0] != short_id] == [pair for pair in a if pair[0] != short_id]


@given(VECTORS)
def test_the_wire_keeps_vectors(a: Vector) -> None:
    assert vector.from_wire(vector.to_wire(a)) == a
