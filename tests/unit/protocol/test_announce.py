"""Delta index decisions and batches (bep-facts 5.3, 6.1; design 5)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from stnode.protocol import announce, fileinfo
from stnode.protocol.announce import Start, batches
from stnode.protocol.fileinfo import FileInfo
from tests.support.bep import file_info

MINE, OTHER = 4711, 4712
INTERVALS = ((10, 20), (100, 110))
NOTHING = Start(0, full=True)


@pytest.mark.parametrize(
    ("peer_index_id", "peer_max", "expected"),
    [
        (MINE, 10, Start(10, full=False)),
        (MINE, 20, Start(20, full=False)),
        (MINE, 110, Start(110, full=False)),
        (MINE, 0, NOTHING),
        (OTHER, 20, NOTHING),
        (0, 20, NOTHING),
        (MINE, 9, NOTHING),
        (MINE, 50, NOTHING),
        (MINE, 111, NOTHING),
    ],
)
def test_decide(peer_index_id: int, peer_max: int, expected: Start) -> None:
    assert announce.decide(MINE, 110, INTERVALS, peer_index_id, peer_max) == expected


def test_an_empty_folder_sends_everything_there_is() -> None:
    assert announce.decide(MINE, 0, (), MINE, 0) == NOTHING
    assert announce.decide(0, 0, (), 0, 0) == NOTHING


def test_intervals_closer_than_a_minute_become_one() -> None:
    intervals = announce.add_interval((), 1_000, 2_000)
    intervals = announce.add_interval(intervals, 2_000 + announce.MERGE_GAP - 1, 70_000_000)
    assert intervals == ((1_000, 70_000_000),)
    intervals = announce.add_interval(intervals, 130_000_000, 130_000_005)
    assert intervals == ((1_000, 70_000_000), (130_000_000, 130_000_005))
    assert announce.assigned(intervals, 70_000_000)
    assert not announce.assigned(intervals, 70_000_001)


@dataclass(frozen=True)
class Item:
    info: FileInfo


LIVE = Item(file_info())
GONE = Item(fileinfo.deletion(file_info(), version=((7, 2),), modified_by=7, modified_s=1))


def cuts(items: list[Item], size: int = 100) -> list[tuple[int, int]]:
    return list(batches(items, [bytes(size)] * len(items)))


def test_batches_have_a_thousand_files() -> None:
    assert cuts([]) == []
    assert cuts([LIVE] * 1000) == [(0, 1000)]
    assert cuts([LIVE] * 2001) == [(0, 1000), (1000, 2000), (2000, 2001)]


def test_batches_have_250_kib() -> None:
    assert cuts([LIVE] * 7, 100 << 10) == [(0, 3), (3, 6), (6, 7)]
    assert cuts([LIVE] * 2, 10 << 20) == [(0, 1), (1, 2)]


def test_a_rename_is_not_torn() -> None:
    assert cuts([LIVE] * 1000 + [GONE, LIVE]) == [(0, 1001), (1001, 1002)]
    assert cuts([LIVE] * 999 + [GONE, GONE, LIVE]) == [(0, 1000), (1000, 1002)]
    assert cuts([GONE] * 1001) == [(0, 1000), (1000, 1001)]
