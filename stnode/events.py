"""The node's event log: what happened, numbered, for subscribers (REST long poll, web page, tests). Not the log of messages.

Names of events are Syncthing's where it has one (DeviceConnected, FolderSummary …), so that known clients understand them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stnode.clock import Clock

Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `number` counts from 1 since the start of the process; time is Unix nanoseconds."""

    number: int
    time_ns: int
    kind: str
    data: Mapping[str, Value]


class EventLog:
    """Keeps the newest `capacity` events. Used from the loop's thread only; `emit` never waits and never fails.

    A reader that is slower than the log sees a gap in the numbers.
    """

    def __init__(self, clock: Clock, capacity: int = 1000) -> None:
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=capacity)
        self._last = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self._subscribers: list[Callable[[Event], None]] = []

    @property
    def last_number(self) -> int:
        """Number of the newest event, 0 before the first."""
        return self._last

    def emit(self, kind: str, **data: Value) -> Event:
        """Appends an event, calls the subscribers and wakes those who wait."""
        self._last += 1
        event = Event(self._last, self._clock.now_ns(), kind, data)
        self._events.append(event)
        for subscriber in tuple(self._subscribers):
            subscriber(event)
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        return event

    def since(self, after: int, kinds: frozenset[str] | None = None, limit: int | None = None) -> list[Event]:
        """Events numbered above `after`, oldest first; with a limit the newest of them."""
        found = [event for event in self._events if event.number > after and (kinds is None or event.kind in kinds)]
        return found if limit is None or len(found) <= limit else found[len(found) - limit :]

    async def wait(self, after: int, kinds: frozenset[str] | None = None, limit: int | None = None, timeout_s: float = 60.0) -> list[Event]:
        """As `since`, but waits up to `timeout_s` for the first one; an empty list when nothing came."""
        try:
            async with asyncio.timeout(timeout_s):
                while not (found := self.since(after, kinds, limit)):
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiters.add(waiter)
                    try:
                        await waiter
                    finally:
                        self._waiters.discard(waiter)
                return found
        except TimeoutError:
            return []

    def subscribe(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Calls `callback` for every later event, in the emitter's turn; the result ends the subscription."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)
