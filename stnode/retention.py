"""How long replaced and deleted versions are kept: a folder's `history` and `history_floor` as users write them, read and checked. Pure.

`history` is one of
    30d                 every version, for 30 days after it was replaced or deleted
    0                   none beyond the floor
    all                 every version, for ever
    simple:5            the last 5 versions of each file; simple:5,30d: none of them longer than 30 days
    trashcan:30d        the last version of each file, for 30 days; trashcan: for ever
    staggered:365d      ever fewer the older they are (`STAGES`), none longer than 365 days; staggered: for ever
simple, trashcan and staggered mean what Syncthing means by them. `history_floor` is a duration: what is younger is kept whatever
`history` says. Unless it is set that is 7 days, and 30 days for a version that lost against a concurrent one; set, it holds for both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from stnode.errors import Invalid

HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
FLOOR_S: Final = 7 * DAY_S
LOSER_FLOOR_S: Final = 30 * DAY_S
STAGES: Final = ((HOUR_S, 30), (DAY_S, HOUR_S), (30 * DAY_S, DAY_S), (None, 7 * DAY_S))
"""Of versions up to this age (s; None: all older ones) those are kept that are at least so many seconds younger than the one before."""

_UNITS: Final = {"s": 1, "m": 60, "h": HOUR_S, "d": DAY_S, "w": 7 * DAY_S, "y": 365 * DAY_S}
_LONGEST_S: Final = 1000 * _UNITS["y"]
_HINT: Final = "write it like 30d, 12h, 2w, 1y, 0, all, simple:5, simple:5,30d, trashcan:30d or staggered:365d"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a folder keeps. `keep`: so many versions of a name at most, None: all; `age_s`: none is kept longer, None: no limit;
    `staggered`: thinned out by `STAGES`; `floor_s`, `loser_floor_s`: younger ones stay whatever the rest says."""

    keep: int | None = None
    age_s: int | None = None
    staggered: bool = False
    floor_s: int = FLOOR_S
    loser_floor_s: int = LOSER_FLOOR_S

    @property
    def by_age_alone(self) -> bool:
        """Whether a version's age decides, and not what other versions of its name there are."""
        return self.keep is None and not self.staggered


def duration_s(text: str) -> int:
    """Seconds of 90s, 30m, 12h, 30d, 2w, 1y or 0. Raises Invalid."""
    match = re.fullmatch(r"(\d{1,9})([smhdwy])|0", text.strip())
    seconds = 0 if match is None or match[1] is None else int(match[1]) * _UNITS[match[2]]
    if match is None or seconds > _LONGEST_S:
        raise Invalid(f"{text!r} is no time span", hint="write it like 90s, 30m, 12h, 30d, 2w, 1y or 0")
    return seconds


def policy(history: str, floor: str = "") -> Policy:
    """The policy of a folder's settings. Raises Invalid."""
    keep, age_s, staggered = _kept(history.strip())
    if not floor.strip():
        return Policy(keep, age_s, staggered)
    floor_s = duration_s(floor)
    return Policy(keep, age_s, staggered, floor_s, floor_s)


def _kept(text: str) -> tuple[int | None, int | None, bool]:
    kind, colon, rest = text.partition(":")
    try:
        match kind:
            case "all" if not colon:
                return None, None, False
            case "simple":
                count, comma, age = rest.partition(",")
                if not re.fullmatch(r"[1-9]\d{0,5}", count.strip()):
                    raise Invalid("")
                return int(count), _limit(age) if comma else None, False
            case "trashcan":
                return 1, _limit(rest) if colon else None, False
            case "staggered":
                return None, _limit(rest) if colon else None, True
            case _:
                return None, duration_s(text), False
    except Invalid:
        raise Invalid(f"{text!r} is no history policy", hint=_HINT) from None


def _limit(text: str) -> int | None:
    """As in Syncthing, 0 is no limit here."""
    return duration_s(text) or None


def words(history: str, floor: str = "") -> str:
    """The policy in force, in words. Raises Invalid."""
    found = policy(history, floor)
    age = "for ever" if found.age_s is None else f"for {_span(found.age_s)}"
    if found.staggered:
        text = f"ever fewer versions the older they are, {age}"
    elif found.keep is not None:
        text = f"the last {found.keep} versions of each file, {age}" if found.keep > 1 else f"the last version of each file, {age}"
    elif found.age_s == 0:
        text = "no version"
    else:
        text = f"every version, {age}"
    if found.floor_s and (found.keep is not None or found.staggered or (found.age_s is not None and found.age_s < found.floor_s)):
        text += f"; all of the last {_span(found.floor_s)}"
    return text


def _span(seconds: int) -> str:
    for unit, name in (("d", "day"), ("h", "hour"), ("m", "minute"), ("s", "second")):
        if seconds % _UNITS[unit] == 0:
            count = seconds // _UNITS[unit]
            return f"{count} {name}{'' if count == 1 else 's'}"
    raise AssertionError(seconds)
