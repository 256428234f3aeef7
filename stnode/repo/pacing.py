"""When a committer commits and when a follower looks: times only, no IO. Rules and their reasons are from design 5 and R17.

All times are seconds of a monotonic clock.
"""

from __future__ import annotations

from typing import Final

FIRST_WAIT_S: Final = 0.05
"""A first record after a pause waits this long for company."""
GROUP_S: Final = 1.0
"""While records keep coming, commits of one node that are not full start this far apart: a trickle costs one PUT a second."""
WINNER_PAUSE_S: Final = 0.35
"""A winner leaves each of the others this long: more than a GET and a PUT take. Counted from the win, so that two nodes whose creates met
once do not meet again: nodes that write all the time fall into a row in which each finds its create free. A full group leaves it once."""
LONGEST_PAUSE_S: Final = 5.0
"""However many others write: then creates are lost instead, for waits must stay short."""
CONTENDED_S: Final = 60.0
"""Another node's commit that was applied within this time means that others are at work."""
PATIENT_LOSSES: Final = 3
"""From this loss on a group waits before its next try."""
LONGEST_BACKOFF_S: Final = 3.0
BACKOFF_S: Final = 0.12
OLD_GROUP_S: Final = 10.0
"""A group of this age does not wait any more."""
LOOK_SOON_S: Final = 1.0
LOOK_IDLE_S: Final = 15.0
LOOK_LATE_S: Final = 30.0
HINTED_S: Final = 0.1
"""Hints make a follower look at most this often."""


class CommitPace:
    """When the next group is due. Fed with what happened."""

    def __init__(self) -> None:
        self._started = self._won = self._foreign = float("-inf")
        self._upload_s = 0.0
        self._writers: dict[object, float] = {}

    def started(self, now: float) -> None:
        """A group has been closed and is on its way."""
        self._started = now

    def won(self, now: float, upload_s: float = 0.0) -> None:
        """The group is committed; `upload_s` is what the upload of its body took. The next one's will take as long, and is nobody's time but
        this node's: the pause goes on meanwhile, or a node with a slow uplink would get less than its share."""
        self._won, self._upload_s = now, upload_s

    def foreign(self, now: float, writer: object) -> None:
        """A commit of another node was applied; `writer` tells it from others."""
        self._foreign = now
        self._writers[writer] = now

    def pause_s(self, now: float) -> float:
        """How long after its win this node leaves the journal to those that have committed of late."""
        self._writers = {writer: seen for writer, seen in self._writers.items() if now - seen < CONTENDED_S}
        return max(0.0, min(LONGEST_PAUSE_S, WINNER_PAUSE_S * len(self._writers)) - self._upload_s)

    def contended(self, now: float) -> bool:
        """Whether other nodes commit too, as far as this one has seen."""
        return now - self._foreign < CONTENDED_S

    def due(self, first: float, *, full: bool, now: float) -> float:
        """When a group whose first record came at `first` may start.

        A full group of a node that is alone starts at once. That is safe for a newcomer, who cannot be seen before it wins: a full
        group is larger than a slot, so its body is uploaded between two creates, and a loser, whose body is already there, tries
        again within that time. Its win is seen by the next read, and from then on the winner's pause holds."""
        if full:
            return self._won + WINNER_PAUSE_S if self.contended(now) else first
        due = max(first + FIRST_WAIT_S, self._started + GROUP_S)
        return max(due, self._won + self.pause_s(now))


def backoff_s(losses: int, age_s: float, luck: float) -> float:
    """Wait before a group's next try. `losses` so far, `age_s` since its first record, `luck` uniform in [0, 1).

    The older the group, the shorter: plain random back-off lets one node starve (contention model, `age`)."""
    if losses < PATIENT_LOSSES:
        return 0.0
    return luck * min(LONGEST_BACKOFF_S, BACKOFF_S * (1 << min(losses, 10))) * max(0.0, 1 - age_s / OLD_GROUP_S)


class LookPace:
    """How long a follower waits between looks at the next slot: a second after news, doubling to the idle time; longer while
    the store does not answer. A hint of a sibling makes it look at once; each one that led to nothing doubles the time in which no other
    is followed, up to the idle time, so that a sibling's false hints cost no more than having none."""

    def __init__(self) -> None:
        self.wait_s = LOOK_SOON_S
        self._hint_wait_s = HINTED_S
        self._hint_followed = float("-inf")

    def hint_due(self) -> float:
        """From when on a hint may be followed."""
        return self._hint_followed + self._hint_wait_s

    def hint_followed(self, now: float, *, led_to_news: bool) -> None:
        """A look was taken with a hint at hand."""
        self._hint_followed = now
        self._hint_wait_s = HINTED_S if led_to_news else min(LOOK_IDLE_S, self._hint_wait_s * 2)

    def news(self) -> None:
        """Something was applied."""
        self.wait_s = LOOK_SOON_S

    def nothing(self) -> None:
        """The next slot was absent."""
        self.wait_s = min(LOOK_IDLE_S, self.wait_s * 2)

    def failed(self) -> None:
        """The store did not answer, or what it answered cannot be used."""
        self.wait_s = min(LOOK_LATE_S, self.wait_s * 2)
