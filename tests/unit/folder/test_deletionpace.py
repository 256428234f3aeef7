"""How long deletions wait for those that follow them."""

from __future__ import annotations

from stnode.folder.deletionpace import LONGEST_S, MANY, QUIET_S, DeletionPace


def test_many_wait_until_no_more_come() -> None:
    pace = DeletionPace()
    pace.came(100.0)
    assert pace.wait_s(MANY, 1000, 100.0) == QUIET_S
    pace.came(103.0)
    assert pace.wait_s(MANY, 1000, 104.0) == QUIET_S - 1
    assert pace.wait_s(5000, 100_000, 103.0 + QUIET_S) == 0


def test_few_or_those_of_a_small_folder_never_wait() -> None:
    pace = DeletionPace()
    pace.came(100.0)
    assert pace.wait_s(MANY - 1, 100_000, 100.0) == 0
    assert pace.wait_s(900, 999, 100.0) == 0


def test_what_was_planned_at_a_start_does_not_wait() -> None:
    assert DeletionPace().wait_s(5000, 10_000, 1.0) == 0


def test_an_endless_stream_waits_ten_minutes() -> None:
    pace = DeletionPace()
    now = 0.0
    while now < LONGEST_S:
        pace.came(now)
        assert pace.wait_s(MANY, 1000, now) > 0
        now += 1.0
    pace.came(now)
    assert pace.wait_s(MANY, 1000, now) == 0
