"""Version vectors (bep-facts 7.1)."""

from __future__ import annotations

import pytest

from stnode.errors import ProtocolError
from stnode.protocol import vector
from stnode.protocol.pb import bep_pb2 as pb
from stnode.protocol.vector import Ordering


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((), (), Ordering.EQUAL),
        (((1, 0),), (), Ordering.EQUAL),
        (((1, 1),), (), Ordering.GREATER),
        ((), ((1, 1),), Ordering.LESSER),
        (((1, 2), (2, 1)), ((1, 1), (2, 1)), Ordering.GREATER),
        (((1, 1), (2, 2)), ((1, 2), (2, 1)), Ordering.CONCURRENT_LESSER),
        (((1, 1),), ((2, 9),), Ordering.CONCURRENT_GREATER),
        (((2**63, 1),), ((1, 1),), Ordering.CONCURRENT_LESSER),
    ],
)
def test_compare(a: vector.Vector, b: vector.Vector, expected: Ordering) -> None:
    assert vector.compare(a, b) is expected


def test_a_change_never_jumps_ahead_of_the_clock_and_never_stands_still() -> None:
    assert vector.update((), 5, 100) == ((5, 100),)
    assert vector.update(((5, 100),), 5, 90) == ((5, 101),)
    assert vector.update(((9, 3),), 5, 100) == ((5, 100), (9, 3))


def test_merge_takes_the_higher_and_drop_others_keeps_own() -> None:
    merged = vector.merge(((1, 5), (2, 1)), ((2, 3), (4, 4)))
    assert merged == ((1, 5), (2, 3), (4, 4))
    assert vector.drop_others(merged, 2) == ((2, 3),)
    assert vector.counter(merged, 3) == 0


def test_unsorted_and_doubled_counters_of_a_peer_are_put_in_order() -> None:
    message = pb.Vector(
        counters=[pb.Counter(id=9, value=1), pb.Counter(id=2**64 - 1, value=4), pb.Counter(id=3, value=2), pb.Counter(id=9, value=5)]
    )
    assert vector.from_wire(message.SerializeToString()) == ((3, 2), (9, 5), (2**64 - 1, 4))


def test_garbage_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        vector.from_wire(b"\xff")
