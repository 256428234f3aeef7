"""House rules that every test is held to: nothing left running, the loop never blocked, no unexpected warning in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from inspect import iscoroutinefunction
from pathlib import Path

import pytest
from hypothesis import settings

# A loaded machine is slow, not wrong: no deadline for single examples. `make soak` takes the second profile.
settings.register_profile("stnode", deadline=None, print_blob=True)
settings.register_profile("soak", settings.get_profile("stnode"), max_examples=10_000)
settings.load_profile("stnode")

BLOCKED_LIMIT_S = 1.0
WATCH_INTERVAL_S = 0.2
OUR_LOGGERS = ("stnode", "asyncio")


def _left_threads(before: set[threading.Thread]) -> list[str]:
    """Names of threads that started since `before` and do not end within two seconds. The loop's default executor is the loop's."""
    deadline = time.monotonic() + 2
    left = [t for t in threading.enumerate() if t not in before and not t.name.startswith("asyncio_")]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread.name for thread in left if thread.is_alive()]


@pytest.fixture(autouse=True)
def house_rules(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs around all other fixtures: set up first, torn down last."""
    threads = set(threading.enumerate())
    if iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("loop_rules")
    yield
    if request.node.get_closest_marker("leaves_threads") is None:
        left = _left_threads(threads)
        assert not left, f"threads left running: {left}"


class LoopWatch:
    """Notices when callbacks hold the event loop. Time in which the machine did not let this thread run is not counted."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.worst_s = 0.0
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._waited_s = 0.0
        # The loop stops between fixtures and test: only its running counts.
        self._run_forever = loop.run_forever
        loop.run_forever = self._run_watched  # type: ignore[method-assign]

    def _run_watched(self) -> None:
        self._arm()
        try:
            self._run_forever()
        finally:
            self._check()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = time.monotonic() + WATCH_INTERVAL_S
        self._waited_s = _run_queue_wait_s()
        self._timer = self._loop.call_later(WATCH_INTERVAL_S, self._tick)

    def _check(self) -> None:
        starved_s = _run_queue_wait_s() - self._waited_s
        self.worst_s = max(self.worst_s, time.monotonic() - self._due - starved_s)

    def _tick(self) -> None:
        self._check()
        self._arm()

    def close(self) -> None:
        """Takes the watch off the loop."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.run_forever = self._run_forever  # type: ignore[method-assign]


def _run_queue_wait_s() -> float:
    """Seconds this thread has waited for a processor since it began (Linux; else 0)."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


@pytest.fixture
async def loop_rules(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """For tests on a loop: no task left, no callback that holds the loop for longer than a second."""
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    watch = LoopWatch(loop)
    yield
    watch.close()
    me = asyncio.current_task()
    for _ in range(3):  # what is ending already may end
        await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if task not in before and task is not me]
    names = [f"{task.get_name()}: {task.get_coro()}" for task in left]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    assert not left, f"tasks left running: {names}"
    if request.node.get_closest_marker("blocks_loop") is None:
        assert watch.worst_s < BLOCKED_LIMIT_S, f"the event loop was held for {watch.worst_s:.2f} s"


@pytest.fixture(autouse=True)
def quiet_log(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A warning or error in the log fails the test unless it says `@pytest.mark.expects_log(pattern)`."""
    expected = [re.compile(mark.args[0]) for mark in request.node.iter_markers("expects_log")]
    yield
    records = [record for when in ("setup", "call", "teardown") for record in caplog.get_records(when)]
    loud = [
        record.getMessage()
        for record in records
        if record.levelno >= logging.WARNING
        and record.name.split(".")[0] in OUR_LOGGERS
        and not any(p.search(record.getMessage()) for p in expected)
    ]
    assert not loud, f"unexpected warnings in the log: {loud}"


@pytest.fixture
def eventually() -> Callable[..., object]:
    """`await eventually(lambda: condition, seconds)`: waits for a condition of the real world, with a deadline; gives its value."""

    async def wait(condition: Callable[[], object], seconds: float = 10.0) -> object:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
            await asyncio.sleep(0.01)
        return value

    return wait


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: at the end of a run side by side nobody waits for the last of them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
