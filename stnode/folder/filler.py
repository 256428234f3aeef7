"""Packs that several writers fill together: blocks of small files of one folder, gathered until a pack is full or all writers are done.

    open --full, all writers finish, or a second since somebody waits--> sealing --uploaded--> durable
                                                                               --refused--> failed, told to all who wait

At most two packs are on their way to the store; a third begins to be filled only then, so memory is bounded by four packs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from stnode.clock import Env, Tasks
from stnode.errors import Internal, StnodeError
from stnode.repo.packer import OpenPack, Packer, SealedPack
from stnode.telemetry import get_logger

_log = get_logger(__name__)

Block = tuple[int, memoryview | bytes, bytes]
"""Block number in its file, data, SHA-256."""

_SEALS: Final = 2
_LINGER_S: Final = 1.0


@dataclass(eq=False, slots=True)
class Shared:
    """A pack that is being filled, or on its way. `done` has the result."""

    pack: OpenPack
    done: asyncio.Future[SealedPack]
    awaited: bool = False
    lingers: bool = False


class Filler:
    """One per folder view. A writer enters by `writer`, waits for `room`, adds, and then waits until its packs are durable."""

    def __init__(self, env: Env, packer: Packer, fid: int) -> None:
        self._env = env
        self._packer = packer
        self._fid = fid
        self._tasks = Tasks(env, self._crashed)
        self._open: Shared | None = None
        self._sealing: set[Shared] = set()
        self._room = asyncio.Event()
        self._writers = 0
        self._finishing = 0
        self._last_job = 0

    def new_job(self) -> int:
        """A number for one file: its blocks lie together in a pack."""
        self._last_job += 1
        return self._last_job

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[None]:
        """While a writer is inside and not finishing, others wait for what it may still add, a second at most."""
        self._writers += 1
        try:
            yield
        finally:
            self._writers -= 1
            self._seal_if_due()

    @asynccontextmanager
    async def finishing(self) -> AsyncIterator[None]:
        """Inside `writer`: nothing more comes from this one."""
        self._finishing += 1
        self._seal_if_due()
        try:
            yield
        finally:
            self._finishing -= 1

    async def room(self) -> None:
        """Returns when blocks may be added; holds writers back while the store is slower than they are."""
        while self._open is None and len(self._sealing) >= _SEALS:
            self._room.clear()
            await self._room.wait()

    def add(self, job: int, blocks: Sequence[Block]) -> list[Shared]:
        """Puts blocks of a file into packs, whose list comes back in the order of the blocks. `data` must not change any more."""
        used: list[Shared] = []
        for number, data, digest in blocks:
            shared = self._open
            if shared is None:
                shared = Shared(self._packer.begin(self._fid, stream=False), asyncio.get_running_loop().create_future())
                self._open = shared
            shared.pack.add((job, number), data, digest)
            if not used or used[-1] is not shared:
                used.append(shared)
            if shared.pack.full:
                self._seal(shared)
        return used

    async def durable(self, packs: Sequence[Shared]) -> list[SealedPack]:
        """Waits until these packs are in the store; raises what the store refuses for good."""
        for shared in packs:
            shared.awaited = True
        self._seal_if_due()
        return [await asyncio.shield(shared.done) for shared in packs]

    async def close(self) -> None:
        """Gives up what is not durable."""
        if self._open is not None:
            self._packer.discard(self._open.pack)
            self._fail(self._open, Internal("the folder view was closed"))
            self._open = None
        await self._tasks.close()

    def _seal_if_due(self) -> None:
        shared = self._open
        if shared is None or not shared.awaited:
            return
        if self._finishing >= self._writers:
            self._seal(shared)
        elif not shared.lingers:
            shared.lingers = True
            self._tasks.spawn(self._linger(shared), "pack linger")

    async def _linger(self, shared: Shared) -> None:
        await self._env.clock.sleep(_LINGER_S)
        if self._open is shared:
            self._seal(shared)

    def _seal(self, shared: Shared) -> None:
        self._open = None
        self._sealing.add(shared)
        self._tasks.spawn(self._upload(shared), "pack upload")

    async def _upload(self, shared: Shared) -> None:
        try:
            shared.done.set_result(await self._packer.seal(shared.pack))
        except StnodeError as exc:
            self._fail(shared, exc)
        except BaseException:
            self._fail(shared, Internal("the upload of a pack was given up"))
            raise
        finally:
            self._sealing.discard(shared)
            self._room.set()

    def _fail(self, shared: Shared, error: StnodeError) -> None:
        if not shared.done.done():
            shared.done.set_exception(error)
            shared.done.exception()  # nobody may be waiting any more

    def _crashed(self, name: str, exc: Exception) -> None:
        _log.error("folder task ended by a bug", task=name, exc_info=exc)
