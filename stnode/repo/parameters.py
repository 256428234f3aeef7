"""What a store is told once, when it is made, and what all of its nodes read from stnode.json then: how patient collection is."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from stnode.errors import Corrupt, Invalid
from stnode.objectstore.base import ObjectStore
from stnode.repo import layout

DAY_S: Final = 86_400
SHORTEST_S: Final = 30
"""Below this nobody could register an upload in time."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": DAY_S, "w": 7 * DAY_S, "y": 365 * DAY_S}


@dataclass(frozen=True, slots=True)
class Collection:
    """`orphan_age_s`: how far the orphan horizon stays behind store time, so how long an upload may take to be registered. `grace_s`: how
    long what was condemned stays readable. Both are part of the rules of the journal, so they never change."""

    orphan_age_s: int = DAY_S
    grace_s: int = DAY_S

    @property
    def orphan_age_us(self) -> int:
        """In microseconds, as store time is counted."""
        return self.orphan_age_s * 1_000_000

    @property
    def grace_us(self) -> int:
        """In microseconds."""
        return self.grace_s * 1_000_000

    def check(self) -> Collection:
        """Itself; raises Invalid for what no store can work with."""
        for option, value in (("--orphan-age", self.orphan_age_s), ("--grace", self.grace_s)):
            if value < SHORTEST_S:
                raise Invalid(
                    f"{option} is {value} s", hint=f"take {SHORTEST_S} s at least; short times are for tests and throwaway stores"
                )
        return self


async def read(objects: ObjectStore) -> Collection:
    """That of a store. Raises NotFound when there is none, Corrupt."""
    data = (await objects.get(layout.STORE)).data
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Corrupt("stnode.json cannot be read", hint="put it back from a backup of the bucket")
    return from_json(document)


def span_s(text: str) -> int:
    """Seconds of "30s", "15m", "12h", "30d", "2w", "1y" or "0"; raises Invalid."""
    match = re.fullmatch(r"(\d{1,9})([smhdwy])", text)
    if match is None and text != "0":
        raise Invalid(f"{text!r} is no time span", hint="write it like 30s, 15m, 12h, 30d, 2w or 1y")
    return int(match[1]) * _UNITS[match[2]] if match else 0


DEFAULT: Final = Collection()


def to_json(collection: Collection) -> dict[str, int]:
    """The member `collection` of stnode.json."""
    return asdict(collection)


def from_json(document: dict[str, Any]) -> Collection:
    """From the whole of stnode.json; raises Corrupt. A store made before there were any has the defaults."""
    found = document.get("collection", to_json(DEFAULT))
    try:
        return Collection(int(found["orphan_age_s"]), int(found["grace_s"])).check()
    except (TypeError, KeyError, ValueError, Invalid) as exc:
        raise Corrupt("stnode.json cannot be read: `collection` is malformed", hint="put it back from a backup of the bucket") from exc
