"""Names that could not be pulled or committed: why, and when they are tried again (bep-facts 8.3). Pure, time is passed in.

All failed names are tried again together: twice after a second, then after a minute, doubling to an hour. What is new about a name
(another version, another device) has it tried at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_QUICK: Final = 2
_QUICK_S: Final = 1.0
_SLOW_S: Final = 60.0
_SLOWEST_S: Final = 3600.0
_KEPT_REASONS: Final = 1000


class Retries:
    """`reasons`: name to message, of a thousand names at most; `due`: monotonic seconds of the next round, None if nothing waits."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self.due: float | None = None
        self._held: set[str] = set()
        self._rounds = 0

    @property
    def rounds(self) -> int:
        """Rounds of retries so far."""
        return self._rounds

    def fail(self, name: str, reason: str, now: float) -> None:
        """Not to be tried before the next round."""
        self._held.add(name)
        if name in self.reasons or len(self.reasons) < _KEPT_REASONS:
            self.reasons[name] = reason
        if self.due is None:
            late = self._rounds - _QUICK
            self.due = now + (_QUICK_S if late < 0 else min(_SLOW_S * 2 ** min(late, 10), _SLOWEST_S))

    def holds(self, name: str) -> bool:
        """Whether the name has to wait."""
        return name in self._held

    def start_round(self, now: float) -> bool:
        """Whether a round is due; then no name has to wait any more."""
        if self.due is None or now < self.due:
            return False
        self.due = None
        self._held.clear()
        self._rounds += 1
        return True

    def news(self, names: Iterable[str]) -> None:
        """Something is new about these: they need not wait."""
        self._held.difference_update(names)

    def start_anew(self) -> None:
        """Something is new about all: try at once, and be quick again."""
        self._held.clear()
        self._rounds, self.due = 0, None

    def solved(self, names: Iterable[str]) -> None:
        """These are done, or not needed any more."""
        if not self._held and not self.reasons:
            return
        for name in names:
            self._held.discard(name)
            self.reasons.pop(name, None)
        if not self._held and not self.reasons:
            self.start_anew()

    def clear(self) -> None:
        """Everything is evaluated anew."""
        self.reasons.clear()
        self.start_anew()
