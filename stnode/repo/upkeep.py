"""Checkpoints and truncation by themselves: when they are due, by whom, and what is done about errors (design 4, 5; R20).

One of the nodes whose heartbeats are fresh is elected to write a checkpoint that is due; the next in order steps in after ten minutes, and so
on. The others compare their state with its manifest then. Several at once cost objects, never correctness.
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
from stnode.repo.election import order
from stnode.repo.heartbeat import Heartbeats
from stnode.repo.records import Applied
from stnode.repo.restore import manifest_numbers
from stnode.telemetry import get_logger

PATIENCE_S: Final = 600.0
"""How long a node may take to write a checkpoint before the next one does."""
RETRY_S: Final = 60.0
TRUNCATE_EVERY_S: Final = 6 * 3600.0

log = get_logger(__name__)


class Upkeep:
    """One task. `trouble` is why checkpoints cannot be written or differ from this node's state, or the bug that ended the task; None when
    all is well."""

    def __init__(
        self, objects: ObjectStore, db: Database, env: Env, node: bytes, store_time_us: Callable[[], int], heartbeats: Heartbeats
    ) -> None:
        self.trouble: StnodeError | None = None
        self.written = 0
        self._objects = objects
        self._db = db
        self._env = env
        self._node = node
        self._store_time_us = store_time_us
        self._heartbeats = heartbeats
        self._wake = asyncio.Event()
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
            try:
                if await self._db.run(checkpoint.due):
                    await self._checkpoint()
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

    async def _checkpoint(self) -> None:
        await self._env.clock.sleep(PATIENCE_S * await self._turn())
        for newest in (await manifest_numbers(self._objects))[:1]:
            if await checkpoint.compare(self._objects, self._db, newest) and not await self._db.run(checkpoint.due):
                return
        async with self._writing:
            manifest = await checkpoint.write_manifest(self._objects, self._db, self._env, self._node, self._store_time_us())
            self.written += manifest is not None

    async def _turn(self) -> int:
        """How many nodes are to write it before this one, as far as is known."""
        await self._heartbeats.refresh()
        nodes = {heartbeat.node for heartbeat in self._heartbeats.fresh()} | {self._node}
        return order(b"checkpoint", dict.fromkeys(nodes, 1.0)).index(self._node)

    def _failed(self, exc: StnodeError, wait_s: float) -> float:
        if not isinstance(exc, (Unavailable, Conflict)) and self.trouble is None:
            log.error("no checkpoint can be written", kind=exc.kind, error=exc.message, hint=exc.hint)
        if isinstance(exc, (Corrupt, Refused, NotFound, Unavailable)):
            self.trouble = exc
        return min(max(RETRY_S, 2 * wait_s), PATIENCE_S)
