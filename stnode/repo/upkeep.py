"""Checkpoints and truncation by themselves: when they are due, by whom, and what is done about errors (design 4, 5; R20).

The node whose own commit makes a checkpoint due writes it; the others give it ten minutes, then compare their state with its
manifest, or write one themselves. Several at once cost objects, never correctness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from stnode.clock import Env, Tasks
from stnode.db import Database
from stnode.errors import Conflict, Corrupt, Internal, NotFound, Refused, StnodeError, Unavailable
from stnode.objectstore.base import ObjectStore
from stnode.repo import checkpoint
from stnode.repo.records import Applied
from stnode.repo.restore import manifest_numbers
from stnode.telemetry import get_logger

PATIENCE_S: Final = 600.0
"""How long another node may take to write a checkpoint that its commit made due."""
RETRY_S: Final = 60.0
TRUNCATE_EVERY_S: Final = 6 * 3600.0

log = get_logger(__name__)


class Upkeep:
    """One task. `trouble` is why checkpoints cannot be written or differ from this node's state, or the bug that ended the task; None when
    all is well."""

    def __init__(self, objects: ObjectStore, db: Database, env: Env, node: bytes, store_time_us: Callable[[], int]) -> None:
        self.trouble: StnodeError | None = None
        self.written = 0
        self._objects = objects
        self._db = db
        self._env = env
        self._node = node
        self._store_time_us = store_time_us
        self._wake = asyncio.Event()
        self._own = False
        self._writing = asyncio.Lock()
        self._truncate_s = env.clock.monotonic() + env.random.uniform(0, TRUNCATE_EVERY_S)
        self._tasks = Tasks(env, self._crashed)

    def start(self) -> None:
        """Runs until `close`."""
        self._tasks.spawn(self._run(), "upkeep")

    async def close(self) -> None:
        """Stops at once; what was uploaded without its manifest becomes an orphan."""
        await self._tasks.close()

    def applied(self, applied: Applied) -> None:
        """Hears of every commit."""
        self._own = self._own or applied.own
        self._wake.set()

    async def write_full(self) -> None:
        """Writes the whole state anew, whatever is due: runs of earlier checkpoints may be damaged. Errors as `checkpoint.write_manifest`."""
        async with self._writing:
            manifest = await checkpoint.write_manifest(self._objects, self._db, self._env, self._node, self._store_time_us(), full=True)
            self.written += manifest is not None

    def _crashed(self, name: str, exc: Exception) -> None:
        """A bug: nothing is lost without checkpoints, so the node goes on and its status says so until it is started again."""
        log.error("checkpoints ended by a bug", task=name, exc_info=exc)
        self.trouble = Internal(f"a bug has ended this until the node is started again: {exc!r}")

    async def _run(self) -> None:
        wait_s = 0.0
        while True:
            try:
                async with asyncio.timeout(max(0.0, self._truncate_s - self._env.clock.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            own, self._own = self._own, False
            try:
                if await self._db.run(checkpoint.due):
                    await self._checkpoint(own=own)
                if self._env.clock.monotonic() >= self._truncate_s:
                    await checkpoint.truncate(self._objects, self._db, self._env, self._store_time_us())
                    self._truncate_s = self._env.clock.monotonic() + TRUNCATE_EVERY_S
                self.trouble, wait_s = None, 0.0
            except Internal:
                raise
            except StnodeError as exc:
                wait_s = self._failed(exc, wait_s)
                await self._env.clock.sleep(wait_s)
                self._wake.set()

    async def _checkpoint(self, *, own: bool) -> None:
        if not own:
            await self._env.clock.sleep(PATIENCE_S)
        for newest in (await manifest_numbers(self._objects))[:1]:
            if await checkpoint.compare(self._objects, self._db, newest) and not await self._db.run(checkpoint.due):
                return
        async with self._writing:
            manifest = await checkpoint.write_manifest(self._objects, self._db, self._env, self._node, self._store_time_us())
            self.written += manifest is not None

    def _failed(self, exc: StnodeError, wait_s: float) -> float:
        if not isinstance(exc, (Unavailable, Conflict)) and self.trouble is None:
            log.error("no checkpoint can be written", kind=exc.kind, error=exc.message, hint=exc.hint)
        if isinstance(exc, (Corrupt, Refused, NotFound, Unavailable)):
            self.trouble = exc
        return min(max(RETRY_S, 2 * wait_s), PATIENCE_S)
