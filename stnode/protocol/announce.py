"""Delta index exchange as pure logic: where announcing to a peer begins, and how records are cut into messages (bep-facts 5.3, 6.1).

Sequence numbers are store time in microseconds where commits assign them, so a folder's assigned numbers lie in intervals with gaps
between; what a peer says it has of us must lie in one of them, else it was told by somebody whom our store does not remember.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from stnode.protocol.fileinfo import FileInfo

Interval = tuple[int, int]
"""First and last of a run of assigned sequence numbers, both included; lists of them ascend and do not overlap."""

MERGE_GAP: Final = 60_000_000
"""Intervals less than a minute apart are kept as one."""
FILES_PER_BATCH: Final = 1000
BYTES_PER_BATCH: Final = 250 << 10
"""A batch that has reached this is full; at 44 bytes a block it also keeps v2's limit of 5,000 blocks, except for a single file."""


@dataclass(frozen=True, slots=True)
class Start:
    """Announce what is numbered above `after`; with `full` the first message is an Index, which replaces all the peer has of us."""

    after: int
    full: bool


class Announced(Protocol):
    """What a record must show to be put into batches."""

    @property
    def info(self) -> FileInfo: ...


def decide(index_id: int, last_sequence: int, intervals: Sequence[Interval], peer_index_id: int, peer_max_sequence: int) -> Start:
    """Where to begin. `index_id`, `last_sequence` and `intervals` are ours; the peer's two are of its ClusterConfig's entry for us.

    The peer continues only if it names our index ID and a number that was assigned; all else gets a full Index."""
    known = index_id != 0 and peer_index_id == index_id and 0 < peer_max_sequence <= last_sequence
    return Start(peer_max_sequence, full=False) if known and assigned(intervals, peer_max_sequence) else Start(0, full=True)


def assigned(intervals: Sequence[Interval], sequence: int) -> bool:
    """True if `sequence` lies in one of the intervals."""
    place = bisect_right(intervals, sequence, key=lambda interval: interval[0])
    return place > 0 and sequence <= intervals[place - 1][1]


def add_interval(intervals: Sequence[Interval], first: int, last: int) -> tuple[Interval, ...]:
    """`intervals` and a later run first..last, merged into the last one when they are less than a minute apart."""
    if intervals and first - intervals[-1][1] < MERGE_GAP:
        return (*intervals[:-1], (intervals[-1][0], max(last, intervals[-1][1])))
    return (*intervals, (first, last))


def batches(records: Sequence[Announced], encoded: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Cuts records, ascending by sequence, into messages: yields (first, end) places, `end` excluded.

    A full batch still takes one deletion after an item that is none, so that the new name and the deleted old name of a rename
    arrive together and the peer renames instead of pulling. The end of `records` ends the last batch."""
    first = size = 0
    deletion_before = False
    for place, record in enumerate(records):
        deletion = record.info.deleted
        full = place - first >= FILES_PER_BATCH or size >= BYTES_PER_BATCH
        if full and (deletion_before or not deletion):
            yield first, place
            first, size = place, 0
        size += len(encoded[place])
        deletion_before = deletion
    if first < len(records):
        yield first, len(records)
