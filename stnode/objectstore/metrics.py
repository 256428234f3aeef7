"""Counters of requests to an object store: plain numbers that anyone can read at any time.

Not responsible for naming or exporting them: `telemetry.py` takes `snapshot()` or hooks in with `observe`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Observer = Callable[[str, str, float, int, int], None]
"""Called after each request: operation, outcome, seconds, bytes in, bytes out. Must be quick and must not raise."""


@dataclass(frozen=True, slots=True)
class RequestCount:
    """Requests of one operation (`get`, `put`, `create`, `replace`, `head`, `list`, `delete`) with one outcome (`ok` or the error's
    class name). A `list` counts once per listing, with `pages` further requests that the backend may need not seen here."""

    operation: str
    outcome: str
    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """The counters at one moment, all since the store was opened."""

    requests: tuple[RequestCount, ...]
    bytes_in: int
    bytes_out: int
    in_flight: int
    retries: int

    def count(self, operation: str | None = None, outcome: str | None = None) -> int:
        """Requests of this operation and outcome; None stands for all."""
        return sum(one.count for one in self.requests if operation in (None, one.operation) and outcome in (None, one.outcome))


@dataclass(slots=True)
class Metrics:
    """The live counters. Only the wrappers write; others read or take a snapshot."""

    bytes_in: int = 0
    bytes_out: int = 0
    in_flight: int = 0
    retries: int = 0
    observe: Observer | None = None
    _requests: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, operation: str, outcome: str, seconds: float, bytes_in: int, bytes_out: int) -> None:
        """Counts one finished request."""
        entry = self._requests.setdefault((operation, outcome), [0, 0.0])
        entry[0] += 1
        entry[1] += seconds
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        if self.observe is not None:
            self.observe(operation, outcome, seconds, bytes_in, bytes_out)

    def snapshot(self) -> MetricsSnapshot:
        """A copy that does not change."""
        requests = tuple(
            RequestCount(operation, outcome, int(count), seconds)
            for (operation, outcome), (count, seconds) in sorted(self._requests.items())
        )
        return MetricsSnapshot(requests, self.bytes_in, self.bytes_out, self.in_flight, self.retries)
