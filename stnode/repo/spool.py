"""Packs on the local disk that wait for a store which does not answer: bounded, and no truth.

Nothing is announced or acknowledged from here, so what a crash leaves behind is deleted at the next start, and asked for again. A file belongs to
whoever kept it; its name means nothing. A disk that refuses (full, read-only) is told once, and tried again a minute later; meanwhile packs
stay in memory, which slows pulling down.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from stnode.clock import Env
from stnode.errors import Refused
from stnode.objectstore.base import Buffer
from stnode.telemetry import get_logger

AGAIN_S: Final = 60.0
"""After the disk refused, so long nothing is tried."""

_SUFFIX: Final = ".pack"
_log = get_logger(__name__)


class Kept:
    """One pack on disk, until `drop`."""

    def __init__(self, spool: Spool, path: Path, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._spool = spool
        self._path = path

    async def read(self) -> list[Buffer]:
        """Its bytes. Raises Refused when the file is not there any more, or not whole."""
        data = await self._spool.env.threads.run(_read, self._path)
        if len(data) != self.size_bytes:
            raise Refused(
                f"{self._path} is not there any more, or not whole", hint="leave the files below state/spool alone while stnode runs"
            )
        return [data]

    def drop(self) -> None:
        """It is not needed any more."""
        self._spool.forget(self)
        with suppress(OSError):
            self._path.unlink()


class Spool:
    """`limit_bytes` is the most that it takes, 0 = nothing. `bytes` and `packs` are there now; `trouble` is why the disk refused, "" if it did not."""

    def __init__(self, path: Path | None, limit_bytes: int, env: Env) -> None:
        self.env = env
        self.limit_bytes = limit_bytes if path is not None else 0
        self.bytes = 0
        self.trouble = ""
        self._path = path
        self._kept: set[Kept] = set()
        self._again_s = float("-inf")
        self._writing = asyncio.Lock()

    @property
    def packs(self) -> int:
        """How many are there."""
        return len(self._kept)

    async def open(self) -> None:
        """Deletes what an earlier process left."""
        if self._path is not None:
            await self.env.threads.run(_clean, self._path)

    def has_room(self, size_bytes: int) -> bool:
        """Whether a pack of this size would be taken."""
        return self.bytes + size_bytes <= self.limit_bytes and self.env.clock.monotonic() >= self._again_s

    async def keep(self, buffers: Sequence[Buffer]) -> Kept | None:
        """Writes a pack; None when there is no room for it. One at a time: who pulls is slowed down to what the disk takes."""
        size = sum(map(len, buffers))
        async with self._writing:
            if self._path is None or not self.has_room(size):
                return None
            self.bytes += size
            path = self._path / f"{self.env.random.bytes(16).hex()}{_SUFFIX}"
            kept = Kept(self, path, size)
            self._kept.add(kept)
            try:
                await self.env.threads.run(_write, path, buffers)
            except OSError as exc:
                kept.drop()
                self._refused(exc)
                return None
            except BaseException:
                kept.drop()
                raise
            self.trouble = ""
            return kept

    def forget(self, kept: Kept) -> None:
        """Its room is free; called by `Kept.drop`."""
        if kept in self._kept:
            self._kept.discard(kept)
            self.bytes -= kept.size_bytes

    def _refused(self, exc: OSError) -> None:
        self._again_s = self.env.clock.monotonic() + AGAIN_S
        trouble = f"packs that wait for the store cannot be kept in {self._path}: {exc.strerror or exc}; they stay in memory, and pulling stops when that is full"
        if not self.trouble:
            _log.warning("the spool refuses", path=str(self._path), error=exc.strerror or str(exc))
        self.trouble = trouble


def _clean(path: Path) -> None:
    with suppress(OSError):
        for entry in path.iterdir():
            if entry.suffix == _SUFFIX:
                entry.unlink()


def _write(path: Path, buffers: Sequence[Buffer]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb", buffering=0) as file:
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                view = view[file.write(view) :]
        # Nothing has to outlive the machine: only the page cache is to be rid of it.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
