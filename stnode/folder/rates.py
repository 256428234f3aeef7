"""How fast a device gives blocks, measured while it is busy with ours. Pure, time is passed in.

Only time counts in which a good part of a window is outstanding: a trickle of small changes says how often they come, not how fast the way
is.
"""

from __future__ import annotations

from typing import Final

BUSY_BYTES: Final = 1 << 20
"""From so many bytes outstanding on the device is busy."""
SAMPLE_S: Final = 0.5
_WEIGHT: Final = 0.3


class Rate:
    """Of one device. Told of bytes asked for, and of bytes that are no longer waited for (`arrived`: they came)."""

    def __init__(self) -> None:
        self.bytes_per_s = 0
        self._outstanding = 0
        self._since = 0.0
        self._bytes = 0
        self._busy_s = 0.0

    def asked(self, size_bytes: int, now: float) -> None:
        """Requests went out."""
        before = self._outstanding
        self._outstanding += size_bytes
        if before < BUSY_BYTES <= self._outstanding:
            self._since = now

    def over(self, size_bytes: int, now: float, *, arrived: bool) -> None:
        """Requests were answered, or will never be."""
        if self._outstanding >= BUSY_BYTES:
            self._busy_s += now - self._since
            self._since = now
            self._bytes += size_bytes if arrived else 0
        self._outstanding -= size_bytes
        if self._busy_s >= SAMPLE_S:
            found = self._bytes / self._busy_s
            self.bytes_per_s = round(self.bytes_per_s + _WEIGHT * (found - self.bytes_per_s) if self.bytes_per_s else found)
            self._bytes, self._busy_s = 0, 0.0
