"""Moments as users write them, as store time. Pure but for the local time zone.

2026-11-20T18:30     ISO 8601, also a date alone (its beginning) and with seconds; local time unless it names a zone
2h, 3d, 2 hours ago  so long before the store's present time
1763657480000123     the number of a version, as `stnode history` shows it: just that version, and what was there beside it
@1763657480          Unix seconds
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from stnode.errors import Invalid

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_NAMES: Final = r"s|seconds?|secs?|m|minutes?|mins?|h|hours?|d|days?|w|weeks?|y|years?"
_AGO: Final = re.compile(rf"(\d{{1,9}})\s*({_NAMES})(\s+ago)?")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HINT: Final = "write it like 2026-11-20T18:30, 2h, 3d, or as the number of a version that `stnode history` shows"


def parse(text: str, now_us: int) -> int:
    """Store time (µs) of `text`; `now_us` is the present one. Raises Invalid, also for a moment that is still to come."""
    at_us = _parsed(text.strip(), now_us)
    if at_us is None:
        raise Invalid(f"{text!r} is no time", hint=_HINT)
    if at_us > now_us + _UNITS["m"] * 1_000_000:
        raise Invalid(f"{text} is in the future by the store's clock", hint=_HINT)
    return at_us


def _parsed(text: str, now_us: int) -> int | None:
    if re.fullmatch(r"\d{14,16}", text):
        return int(text)
    if re.fullmatch(r"@\d{1,11}", text):
        return int(text[1:]) * 1_000_000
    if match := _AGO.fullmatch(text.lower()):
        return now_us - int(match[1]) * _UNITS[match[2][0]] * 1_000_000
    try:
        moment = datetime.fromisoformat(text)
        local = moment.astimezone() if moment.tzinfo is None else moment
    except (ValueError, OverflowError):
        return None
    return (local - _EPOCH) // timedelta(microseconds=1)
