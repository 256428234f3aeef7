"""A virtual-time asyncio event loop: no socket, no thread, no real clock. Same seed, same run.

Time stands still while anything is ready to run and jumps to the next timer when nothing is. A loop that has neither is a
deadlock of the simulated program and raises `Deadlock`.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(AssertionError):
    """Nothing is ready and no timer runs, but the main coroutine has not ended."""


class _NoIO(selectors.BaseSelector):
    """A selector that watches nothing: `select` moves the loop's clock instead of waiting."""

    def __init__(self) -> None:
        self.loop: VirtualLoop | None = None
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(fileobj, 0, events, data)
        self._keys[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert self.loop is not None
        if timeout is None:
            raise Deadlock(f"nothing runs and nothing is due at {self.loop.time():.3f} s")
        self.loop.advance(timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is virtual seconds since the start of the run."""

    def __init__(self) -> None:
        self._virtual = 0.0
        selector = _NoIO()
        super().__init__(selector)
        selector.loop = self
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._virtual

    def advance(self, seconds: float) -> None:
        """Moves the clock on; called by the selector when nothing is ready."""
        if seconds > 0:
            self._virtual += seconds


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` to its end in a loop of its own; tasks that are left over are cancelled."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()
