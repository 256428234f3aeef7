"""The only doors to time, randomness, threads and background tasks.

Everything else takes an `Env`, so that the same seed gives the same run: the simulation passes a virtual clock,
seeded randomness and inline threads. Lint (TID251) bans the originals elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import random as _random
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Clock(Protocol):
    """Wall time in Unix nanoseconds, monotonic time in seconds, and waiting."""

    def now_ns(self) -> int: ...
    def monotonic(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Randomness(Protocol):
    """Random bytes and numbers; cryptographic quality in production."""

    def bytes(self, count: int) -> bytes: ...
    def uint64(self) -> int: ...
    def uniform(self, low: float, high: float) -> float: ...


class SystemRandomness:
    """The operating system's generator."""

    def __init__(self) -> None:
        self._random = _random.SystemRandom()

    def bytes(self, count: int) -> bytes:
        return os.urandom(count)

    def uint64(self) -> int:
        return int.from_bytes(os.urandom(8), "big") or 1

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


class SeededRandomness:
    """Reproducible randomness for tests and simulations; never for keys."""

    def __init__(self, seed: int | str) -> None:
        self._random = _random.Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def uint64(self) -> int:
        return self._random.getrandbits(64) or 1

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


class Threads(Protocol):
    """Runs blocking or GIL-releasing work outside the event loop. One call per batch, never per block."""

    async def run(self, fn: Callable[[Unpack[Ts]], T], *args: Unpack[Ts]) -> T: ...
    def close(self) -> None: ...


class PoolThreads:
    """A thread pool of fixed size."""

    def __init__(self, workers: int = 4) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="stnode")

    async def run(self, fn: Callable[[Unpack[Ts]], T], *args: Unpack[Ts]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, fn, *args)

    def close(self) -> None:
        self._pool.shutdown(wait=True)


class InlineThreads:
    """Runs the work at once in the caller's thread, giving the loop one turn: deterministic."""

    async def run(self, fn: Callable[[Unpack[Ts]], T], *args: Unpack[Ts]) -> T:
        await asyncio.sleep(0)
        return fn(*args)

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Env:
    """What a component may know of the outside world."""

    clock: Clock
    random: Randomness
    threads: Threads

    def spawn(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Starts a task. The caller keeps it and awaits or cancels it: no task outlives its owner."""
        return asyncio.get_running_loop().create_task(coro, name=name)

    def close(self) -> None:
        self.threads.close()


class Tasks:
    """The background tasks of one owner. None outlives `close`; one that ends by an unexpected exception is told to
    `on_crash(name, exception)` at once, so that nothing dies silently."""

    def __init__(self, env: Env, on_crash: Callable[[str, Exception], None]) -> None:
        self._env = env
        self._on_crash = on_crash
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> None:
        """Runs `coro` in the background."""
        task = self._env.spawn(self._guarded(coro, name), name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: coro.close())  # of a task that was cancelled before its first step

    def cancel(self) -> None:
        """Asks all tasks to end, without waiting: for callers that cannot await."""
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Cancels all tasks, except the caller's own, and waits until they are over."""
        while tasks := [task for task in self._tasks if task is not asyncio.current_task()]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _guarded(self, coro: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await coro
        except Exception as exc:  # noqa: BLE001 - the owner decides; see on_crash
            self._on_crash(name, exc)


def system_env(workers: int = 4) -> Env:
    """The real world."""
    return Env(SystemClock(), SystemRandomness(), PoolThreads(workers))
