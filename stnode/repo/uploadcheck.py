"""Reads fresh uploads back in the background, and stores again what the store lost or changed (`[store] verify_uploads`).

Every pack is copied to the spool before it leaves memory, and stays there until the store has given the same bytes back; while the spool is full,
packs go unchecked, and are counted. What was lost is put under its own key again: a commit may name it by then.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from stnode.clock import Env, Tasks
from stnode.errors import Corrupt, NotFound, StnodeError, Unavailable
from stnode.objectstore.base import Key, Mode, ObjectStore
from stnode.repo.checksum import xxh3_128
from stnode.repo.spool import Kept
from stnode.telemetry import get_logger

RETRY_S: Final = 30.0
TRIES: Final = 4
"""A store that does not give back what it was given so often is not mended by giving it again."""

_log = get_logger(__name__)


class UploadCheck:
    """`checked`, `mended`, `unchecked` count packs."""

    def __init__(self, objects: ObjectStore, env: Env) -> None:
        self.checked = 0
        self.mended = 0
        self.unchecked = 0
        self._objects = objects
        self._env = env
        self._queue: deque[tuple[Key, Kept]] = deque()
        self._running = False
        self._tasks = Tasks(env, self._crashed)

    async def close(self) -> None:
        """Gives the copies up."""
        await self._tasks.close()
        while self._queue:
            self._queue.popleft()[1].drop()

    def add(self, key: Key, kept: Kept | None) -> None:
        """A pack was uploaded; `kept` is its copy, None if there was no room for one."""
        if kept is None:
            self.unchecked += 1
            return
        self._queue.append((key, kept))
        if not self._running:
            self._running = True
            self._tasks.spawn(self._run(), "check of uploads")

    def _crashed(self, name: str, exc: Exception) -> None:
        _log.error("uploads are not checked any more: a bug", task=name, exc_info=exc)

    async def _run(self) -> None:
        try:
            while self._queue:
                key, kept = self._queue[0]
                try:
                    await self._check(key, kept)
                except Unavailable:
                    await self._env.clock.sleep(RETRY_S)
                    continue
                except StnodeError as exc:
                    _log.error("an upload could not be checked", key=key, error=exc.message)
                    self.unchecked += 1
                self._queue.popleft()
                kept.drop()
        finally:
            self._running = False

    async def _check(self, key: Key, kept: Kept) -> None:
        """Raises Corrupt when the store does not keep the pack however often it is put."""
        wanted = await kept.read()
        for mended in range(TRIES):
            try:
                found = (await self._objects.get(key)).data
            except NotFound:
                found = b""
            if await self._env.threads.run(_same, found, bytes(wanted[0])):
                self.checked += 1
                self.mended += mended > 0
                return
            _log.error(
                "the store lost a pack, or gave other bytes back: it is stored again", key=key, there=len(found), wanted=kept.size_bytes
            )
            await self._objects.put(key, wanted, Mode.OVERWRITE)
            await self._env.clock.sleep(RETRY_S * mended)
        raise Corrupt(f"the store does not give {key} back as it was stored, {TRIES} times")


def _same(found: bytes, wanted: bytes) -> bool:
    return len(found) == len(wanted) and xxh3_128(found) == xxh3_128(wanted)
