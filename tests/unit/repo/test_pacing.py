"""When commits and looks happen: plain arithmetic. What it does to several nodes at once is in `tests/sim/test_contention.py`."""

from __future__ import annotations

import pytest

from stnode.repo.guard import HOLD_S, DeletionGuard
from stnode.repo.pacing import (
    FIRST_WAIT_S,
    HINTED_S,
    LONGEST_PAUSE_S,
    LOOK_IDLE_S,
    LOOK_LATE_S,
    WINNER_PAUSE_S,
    CommitPace,
    LookPace,
    backoff_s,
)
from stnode.repo.proposal import FolderFacts, Wish
from stnode.repo.records import DraftSet, SetKind


def test_the_first_record_after_a_pause_waits_briefly() -> None:
    pace = CommitPace()
    assert pace.due(100.0, full=False, now=100.0) == pytest.approx(100.05)


def test_a_trickle_costs_one_commit_a_second() -> None:
    pace = CommitPace()
    pace.started(100.0)
    pace.won(100.2)
    assert pace.due(100.3, full=False, now=100.3) == 101.0


def test_a_full_group_of_a_node_that_is_alone_starts_at_once() -> None:
    pace = CommitPace()
    pace.started(100.0)
    pace.won(100.2)
    assert pace.due(100.1, full=True, now=100.2) == 100.1


def test_a_winner_among_others_pauses_even_with_a_full_group() -> None:
    pace = CommitPace()
    pace.foreign(95.0, "b")
    pace.won(100.2)
    assert pace.contended(100.2)
    assert pace.due(100.1, full=True, now=100.2) == pytest.approx(100.2 + WINNER_PAUSE_S)
    assert not pace.contended(200.0)


def test_a_winner_leaves_each_of_the_others_its_time() -> None:
    pace = CommitPace()
    for number in range(9):
        pace.foreign(95.0, number)
    pace.foreign(96.0, 3)
    pace.started(100.0)
    pace.won(100.2)
    assert pace.due(100.3, full=False, now=100.3) == pytest.approx(100.2 + 9 * WINNER_PAUSE_S)
    for number in range(90):
        pace.foreign(100.0, number)
    assert pace.due(100.3, full=False, now=100.3) == pytest.approx(100.2 + LONGEST_PAUSE_S)
    assert pace.due(170.3, full=False, now=170.3) == pytest.approx(170.3 + FIRST_WAIT_S), "they have stopped"


def test_an_upload_is_part_of_the_pause() -> None:
    pace = CommitPace()
    for number in range(9):
        pace.foreign(95.0, number)
    pace.started(98.0)
    pace.won(100.2, upload_s=2.0)
    assert pace.due(100.2, full=False, now=100.2) == pytest.approx(98.2 + 9 * WINNER_PAUSE_S)
    pace.won(100.2, upload_s=20.0)
    assert pace.due(100.2, full=False, now=100.2) == pytest.approx(100.25)


@pytest.mark.parametrize(
    ("losses", "age_s", "most"), [(0, 0, 0), (2, 0, 0), (3, 0, 0.96), (5, 0, 3.0), (60, 0, 3.0), (5, 5, 1.5), (5, 10, 0), (5, 99, 0)]
)
def test_back_off_grows_with_losses_and_shrinks_with_age(losses: int, age_s: float, most: float) -> None:
    assert backoff_s(losses, age_s, 1.0) == pytest.approx(most)
    assert backoff_s(losses, age_s, 0.0) == 0


def test_looks_slow_down_to_the_idle_pace() -> None:
    pace = LookPace()
    waits = []
    for _ in range(6):
        pace.nothing()
        waits.append(pace.wait_s)
    assert waits == [2, 4, 8, 15, LOOK_IDLE_S, LOOK_IDLE_S]
    pace.failed()
    assert pace.wait_s == LOOK_LATE_S
    pace.news()
    assert pace.wait_s == 1


def test_hints_are_followed_at_once_and_false_ones_later_and_later() -> None:
    pace = LookPace()
    assert pace.hint_due() <= 0
    waits = []
    for _ in range(10):
        pace.hint_followed(100.0, led_to_news=False)
        waits.append(pace.hint_due() - 100)
    assert waits[0] == pytest.approx(2 * HINTED_S)
    assert waits[-1] == LOOK_IDLE_S
    pace.hint_followed(200.0, led_to_news=True)
    assert pace.hint_due() == pytest.approx(200 + HINTED_S)


# ---- the deletion guard -----------------------------------------------------------------------------------------------


def facts(files: int, share: float = 0.0) -> FolderFacts:
    return FolderFacts("f", 1, files, share, encrypted=False)


def wish() -> Wish:
    return Wish(DraftSet(SetKind.SINGLE, ()), lambda *_: None)


@pytest.mark.parametrize(
    ("files", "removing", "share", "held"),
    [(1000, 500, 0, False), (1000, 501, 0, True), (999, 999, 0, False), (10_000, 1001, 0.1, True), (10_000, 10_000, 1.0, False)],
)
def test_what_is_a_mass_deletion(files: int, removing: int, share: float, held: bool) -> None:
    assert DeletionGuard().holds(1, removing, facts(files, share), 0.0) is held


def test_deletions_of_an_hour_count_together() -> None:
    guard = DeletionGuard()
    guard.committed(1, 4000, 0.0)
    assert not guard.holds(1, 1000, facts(6000), 10.0)
    assert guard.holds(1, 1001, facts(6000), 10.0)
    assert not guard.holds(1, 1001, facts(6000), 3700.0)
    assert not guard.holds(2, 1001, facts(6000), 10.0)


def test_what_another_node_lets_through_unasked_is_no_answer() -> None:
    """It has seen the first few of many deletions only, say."""
    guard = DeletionGuard()
    assert guard.holds(1, 900, facts(1000), 0.0)
    held = [wish() for _ in range(3)]
    guard.hold(1, held, 0.0)
    assert guard.answered(1, facts(950), 1.0) == []
    assert guard.answered(1, facts(500), 2.0) == []
    assert guard.answered(1, facts(499), 3.0) == held
    assert not guard.holds(1, 9999, facts(9999), 4.0)


def test_a_word_or_an_hour_lets_them_go() -> None:
    guard = DeletionGuard()
    first, second = wish(), wish()
    guard.hold(1, [first], 5.0)
    guard.hold(2, [second], 6.0)
    assert guard.next_due() == 5.0 + HOLD_S
    assert [held.fid for held in guard.pending()] == [1, 2]
    assert guard.confirm(2, 7.0) == [second]
    assert not guard.holds(2, 9999, facts(9999), 8.0)
    assert guard.due(5.0 + HOLD_S - 1) == []
    assert guard.due(5.0 + HOLD_S) == [first]
    assert guard.next_due() == float("inf")
