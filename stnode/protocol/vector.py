"""Version vectors (bep-facts 7). Owned by the protocol layer; pure functions over sorted tuples."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from google.protobuf.message import DecodeError

from stnode.errors import ProtocolError
from stnode.protocol.pb import bep_pb2 as pb

Vector = tuple[tuple[int, int], ...]
"""(short ID, value) pairs, ascending by short ID as unsigned 64-bit, IDs unique; a missing ID counts as 0."""


class Ordering(Enum):
    """Outcome of `compare(a, b)`, read as "a is ... than/with b"."""

    EQUAL = "equal"
    GREATER = "greater"
    LESSER = "lesser"
    CONCURRENT_GREATER = "concurrent-greater"
    CONCURRENT_LESSER = "concurrent-lesser"


def compare(a: Vector, b: Vector) -> Ordering:
    """How `a` stands to `b`. Between concurrent ones the first differing counter, ids ascending, says which is the greater."""
    if a == b:
        return Ordering.EQUAL
    mine, theirs = dict(a), dict(b)
    first = 0
    above = below = False
    for short_id in sorted(mine.keys() | theirs.keys()):
        difference = mine.get(short_id, 0) - theirs.get(short_id, 0)
        first = first or difference
        above = above or difference > 0
        below = below or difference < 0
    if above and below:
        return Ordering.CONCURRENT_GREATER if first > 0 else Ordering.CONCURRENT_LESSER
    if above:
        return Ordering.GREATER
    return Ordering.LESSER if below else Ordering.EQUAL


def covers(a: Vector, b: Vector) -> bool:
    """True if `a` is equal to or greater than `b`: whoever has `a` does not need `b`."""
    return compare(a, b) in (Ordering.EQUAL, Ordering.GREATER)


def concurrent(a: Vector, b: Vector) -> bool:
    """True if neither contains the other."""
    return compare(a, b) in (Ordering.CONCURRENT_GREATER, Ordering.CONCURRENT_LESSER)


def merge(a: Vector, b: Vector) -> Vector:
    """The least vector that is not less than either: per ID the higher value."""
    return from_pairs((*a, *b))


def update(vector: Vector, short_id: int, now_s: int) -> Vector:
    """The vector of a change made by `short_id` at `now_s` (Unix seconds, store time) on `vector`; always greater than it."""
    return from_pairs((*vector, (short_id, max(counter(vector, short_id) + 1, now_s))))


def counter(vector: Vector, short_id: int) -> int:
    """The value of one ID, 0 when it is missing."""
    for one, value in vector:
        if one == short_id:
            return value
    return 0


def drop_others(vector: Vector, short_id: int) -> Vector:
    """Only the own counter: forces a conflict with what others have (bep-facts 7.1)."""
    return tuple(pair for pair in vector if pair[0] == short_id)


def from_pairs(pairs: Iterable[tuple[int, int]]) -> Vector:
    """A well-formed vector of pairs in any order; of equal IDs the higher value counts."""
    highest: dict[int, int] = {}
    for short_id, value in pairs:
        if value > highest.get(short_id, -1):
            highest[short_id] = value
    return tuple(sorted(highest.items()))


def from_message(message: pb.Vector) -> Vector:
    """The vector of a parsed protobuf Vector; peers may send counters unsorted."""
    pairs = tuple([(counter.id, counter.value) for counter in message.counters])
    return pairs if len(pairs) < 2 else from_pairs(pairs)


def to_wire(vector: Vector) -> bytes:
    """The serialized protobuf Vector."""
    return pb.Vector(counters=[pb.Counter(id=short_id, value=value) for short_id, value in vector]).SerializeToString()


def from_wire(wire: bytes) -> Vector:
    """Back from `to_wire`; ProtocolError when it is no protobuf Vector."""
    try:
        return from_message(pb.Vector.FromString(wire))
    except DecodeError as error:
        raise ProtocolError("a version vector cannot be parsed") from error
