"""When a folder's deletions may be handed to the committer. Pure, time is passed in.

The guard against mass deletions (`repo/guard.py`) judges what it is shown. A device that deletes everything says so in many messages: while
such a stream flows, deletions of a large folder wait, so that all of them are shown at once and none slips through before it.
"""

from __future__ import annotations

from typing import Final

from stnode.repo.guard import FILES_AT_LEAST

MANY: Final = 100
"""Fewer deletions than that never wait."""
QUIET_S: Final = 5.0
LONGEST_S: Final = 600.0


def is_many(deletions: int, live_files: int) -> bool:
    """Whether so many deletions could be part of a mass deletion."""
    return deletions >= MANY and live_files >= FILES_AT_LEAST


class DeletionPace:
    """Of one folder. Times are a monotonic clock's."""

    def __init__(self) -> None:
        self._first_s = self._last_s = float("-inf")

    def came(self, now: float) -> None:
        """A device's message announced deletions."""
        if now - self._last_s > QUIET_S:
            self._first_s = now
        self._last_s = now

    def wait_s(self, deletions: int, live_files: int, now: float) -> float:
        """Seconds that so many planned deletions have to wait, 0 = none: until no more came for a while, or for ten minutes at most."""
        if not is_many(deletions, live_files) or now >= self._first_s + LONGEST_S:
            return 0.0
        return max(0.0, self._last_s + QUIET_S - now)
