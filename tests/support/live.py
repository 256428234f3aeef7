"""Real processes of a test: started together, killed at its end, waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from tests.support.nodes import StnodeProcess
from tests.support.syncthing import SyncthingProcess

T = TypeVar("T")


@asynccontextmanager
async def running(*parts: StnodeProcess | SyncthingProcess) -> AsyncIterator[None]:
    """Starts them all, kills them at the end."""
    try:
        for part in parts:
            if isinstance(part, StnodeProcess):
                await asyncio.to_thread(part.start)
            else:
                await part.start()
        yield
    finally:
        for part in parts:
            if isinstance(part, StnodeProcess):
                part.kill()
            else:
                await part.kill()


async def until(holds: Callable[[], T], deadline_s: float, story: Callable[[], object] = str) -> T:
    """Waits for a condition of real processes; gives its value."""
    deadline = time.monotonic() + deadline_s
    while not (value := await asyncio.to_thread(holds)):
        assert time.monotonic() < deadline, f"not within {deadline_s} s: {story()}"
        await asyncio.sleep(0.2)
    return value
