"""Moments as users write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from stnode.errors import Invalid
from stnode.node.moments import parse

NOW_US = 1_763_700_000_000_000  # 2025-11-21T04:40:00Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2025-11-21T04:00:00Z", -2400),
        ("2025-11-21T05:00:00+01:00", -2400),
        ("2025-11-21 04:39:59.5Z", -0.5),
        ("2h", -7200),
        ("90 s", -90),
        ("2 hours ago", -7200),
        ("1 Day", -86_400),
        ("3w ago", -3 * 7 * 86_400),
        ("1763700000000000", 0),
        ("@1763699999", -1),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert parse(text, NOW_US) == NOW_US + int(seconds * 1_000_000)


def test_without_a_zone_it_is_local_time() -> None:
    local = datetime(2025, 11, 20, 18, 30).astimezone()
    assert parse("2025-11-20T18:30", NOW_US) == int(local.timestamp()) * 1_000_000
    day = datetime(2025, 11, 20).astimezone()
    assert parse("2025-11-20", NOW_US) == int(day.astimezone(UTC).timestamp()) * 1_000_000


@pytest.mark.parametrize("text", ["", "soon", "2", "2 parsecs", "2025-13-01", "17637", "-2h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(Invalid, match="is no time"):
        parse(text, NOW_US)


def test_the_future_is_refused() -> None:
    with pytest.raises(Invalid, match="in the future"):
        parse("2026-01-01", NOW_US)
