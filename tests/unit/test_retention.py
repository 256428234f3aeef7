"""History policies as users write them."""

from __future__ import annotations

import pytest

from stnode.errors import Invalid
from stnode.retention import DAY_S, FLOOR_S, LOSER_FLOOR_S, Policy, duration_s, policy, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30d", Policy(age_s=30 * DAY_S)),
        ("0", Policy(age_s=0)),
        ("all", Policy()),
        ("simple:5", Policy(keep=5)),
        ("simple:5,30d", Policy(keep=5, age_s=30 * DAY_S)),
        ("simple:5,0", Policy(keep=5)),
        ("trashcan", Policy(keep=1)),
        ("trashcan:2w", Policy(keep=1, age_s=14 * DAY_S)),
        ("staggered:365d", Policy(age_s=365 * DAY_S, staggered=True)),
        ("staggered", Policy(staggered=True)),
    ],
)
def test_policies(text: str, expected: Policy) -> None:
    assert policy(text) == expected
    assert (expected.floor_s, expected.loser_floor_s) == (FLOOR_S, LOSER_FLOOR_S)


@pytest.mark.parametrize(
    "text", ["", "30 days", "simple", "simple:0", "simple:x", "simple:5,", "trashcan:", "staggered:1", "all:1", "-1d", "99999y", "30D"]
)
def test_what_is_no_policy_is_refused_with_examples(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        policy(text)
    assert repr(text) in caught.value.message
    assert "simple:5,30d" in caught.value.hint


def test_an_explicit_floor_holds_for_versions_that_lost_too() -> None:
    assert policy("0", "0s") == Policy(age_s=0, floor_s=0, loser_floor_s=0)
    assert policy("30d", "1d") == Policy(age_s=30 * DAY_S, floor_s=DAY_S, loser_floor_s=DAY_S)
    with pytest.raises(Invalid, match="'a week' is no time span"):
        policy("30d", "a week")


def test_durations() -> None:
    assert [duration_s(text) for text in ("0", "0s", "90s", "30m", "12h", "1w", "1y")] == [0, 0, 90, 1800, 43_200, 7 * DAY_S, 365 * DAY_S]


@pytest.mark.parametrize(
    ("history", "floor", "expected"),
    [
        ("30d", "", "every version, for 30 days"),
        ("0", "", "no version; all of the last 7 days"),
        ("0", "0", "no version"),
        ("simple:1", "", "the last version of each file, for ever; all of the last 7 days"),
        ("simple:3,12h", "0", "the last 3 versions of each file, for 12 hours"),
        ("staggered:1d", "1h", "ever fewer versions the older they are, for 1 day; all of the last 1 hour"),
    ],
)
def test_in_words(history: str, floor: str, expected: str) -> None:
    assert words(history, floor) == expected
