"""Numbers as people read them; shared by the frontends, which do not know each other."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size_text(size_bytes: float) -> str:
    """ "0 B", "999 B", "1.5 KiB", "12.3 GiB"."""
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def span_text(seconds: float) -> str:
    """ "3 s", "4 min", "5 h", "6 d"."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def count_text(count: int, one: str, many: str) -> str:
    """ "1 file", "2 files"."""
    return f"{count:,} {one if count == 1 else many}"
