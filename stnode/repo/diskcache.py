"""Packs on the local disk, so that requests in random order do not cost a request to the store each.

A pack is kept in pieces of 8 MiB, one file per piece, named by the pack's id, which never means another pack. Once small
reads have gone over a good part of a pack, the rest of it is fetched in the background. Nothing here is verified: the reader does
that with everything. The directory may be deleted at any time; a file that is missing or too short is a miss. When the disk
refuses a write, no more is kept, with one warning.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stnode.clock import Env
from stnode.errors import StnodeError
from stnode.objectstore.base import Key, ObjectStore
from stnode.repo.layout import is_id
from stnode.repo.packlist import read_range
from stnode.telemetry import get_logger

PIECE_BYTES: Final = 8 << 20
SMALL_READ_BYTES: Final = 512 << 10
"""Wider reads cost the store little: they count for nothing here."""
MISSES: Final = 8
SHARE: Final = 16
"""A pack is fetched after at least MISSES small reads that brought a SHAREth of its bytes."""
IDLE_S: Final = 600.0
"""What was not used for so long makes room, and misses so far apart do not belong together."""
FETCHES: Final = 2
_PACKS_WATCHED: Final = 1024

_log = get_logger(__name__)

Name = tuple[str, int]  # pack id, number of the piece


@dataclass(slots=True)
class _Piece:
    """A piece on disk: its size, how many bytes were read of it, and when last (monotonic)."""

    size_bytes: int
    read_bytes: int = 0
    used_s: float = float("-inf")


@dataclass(slots=True)
class _Seen:
    """Small reads that went past the cache to one pack."""

    misses: int
    bytes: int
    at_s: float


class DiskCache:
    """On the event loop; files are touched in threads. A piece makes room for others when it was not used for IDLE_S or was read as
    often as it is large; else those others are not kept: requests all over more than `limit_bytes` must not fetch in circles."""

    def __init__(self, objects: ObjectStore, env: Env, directory: Path, limit_bytes: int) -> None:
        self.size_bytes = 0
        self.fetched_bytes = 0
        self._objects = objects
        self._env = env
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._pieces: OrderedDict[Name, _Piece] = OrderedDict()
        self._arriving: dict[Name, asyncio.Future[None]] = {}
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._fills: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(FETCHES)
        self._dropped: list[Path] = []
        self._writable = True

    async def open(self) -> None:
        """Takes over what an earlier process left, and deletes what is too much."""
        for name, size in await self._env.threads.run(_scan, self._directory):
            self._pieces[name] = _Piece(size)
            self.size_bytes += size
        await self._env.threads.run(_unlink, [self._path(name) for name in self._room_for(0) or ()])

    async def close(self) -> None:
        """Ends fetches that are under way."""
        tasks = list(self._fills.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def read(self, pack: str, start: int, length: int) -> bytes | None:
        """That range of a pack, not verified, or None. Waits for what is just being fetched."""
        names = [(pack, number) for number in range(start // PIECE_BYTES, (start + length - 1) // PIECE_BYTES + 1)]
        for name in names:
            arriving = self._arriving.get(name)
            if arriving is not None:
                await asyncio.wait([arriving])
            piece = self._pieces.get(name)
            if piece is None:
                return None
            self._pieces.move_to_end(name)
            piece.used_s = self._env.clock.monotonic()
            piece.read_bytes += length // len(names)
        data = await self._env.threads.run(_read, [self._path(name) for name in names], start % PIECE_BYTES, length)
        if data is None:
            self.forget(pack)
        return data

    def missed(self, pack: str, key: Key, data_bytes: int, length: int) -> None:
        """The store is about to be asked for `length` bytes of a pack of `data_bytes`. Starts to fetch the whole pack when that pays."""
        if length > SMALL_READ_BYTES or not self._writable or pack in self._fills:
            return
        now = self._env.clock.monotonic()
        seen = self._seen.pop(pack, None)
        if seen is None or now - seen.at_s > IDLE_S:
            seen = _Seen(0, 0, now)
        seen.misses, seen.bytes, seen.at_s = seen.misses + 1, seen.bytes + length, now
        if seen.misses >= MISSES and seen.bytes * SHARE >= data_bytes:
            task = self._fills[pack] = self._env.spawn(self._fill(pack, key, data_bytes), f"fetch of {key}")
            task.add_done_callback(lambda _: self._fills.pop(pack, None))
            return
        self._seen[pack] = seen
        if len(self._seen) > _PACKS_WATCHED:
            self._seen.popitem(last=False)

    def forget(self, pack: str) -> None:
        """What is here of a pack is wrong or not to be had."""
        for name in [name for name in self._pieces if name[0] == pack]:
            self.size_bytes -= self._pieces.pop(name).size_bytes
            self._dropped.append(self._path(name))

    async def _fill(self, pack: str, key: Key, data_bytes: int) -> None:
        """Fetches the pieces that are not here yet, one after the other."""
        for number in range(-(-data_bytes // PIECE_BYTES)):
            name, start = (pack, number), number * PIECE_BYTES
            size = min(PIECE_BYTES, data_bytes - start)
            async with self._slots:
                if name in self._pieces:
                    continue
                room = self._room_for(size)
                if room is None or not self._writable:
                    return
                # Counted from now on, so that two fetches do not take the same room.
                self.size_bytes += size
                arriving = self._arriving[name] = asyncio.get_running_loop().create_future()
                kept = False
                try:
                    data = await read_range(self._objects, key, start, size)
                    self.fetched_bytes += size
                    kept = await self._keep(name, data, room)
                except StnodeError:
                    return  # whoever wants the blocks asks the store and hears of it
                finally:
                    if not kept:
                        self.size_bytes -= size
                    del self._arriving[name]
                    arriving.set_result(None)

    async def _keep(self, name: Name, data: bytes, room: Sequence[Name]) -> bool:
        unlinked, self._dropped = [*self._dropped, *(self._path(old) for old in room)], []
        try:
            await self._env.threads.run(_write, self._path(name), data, unlinked)
        except OSError as exc:
            if self._writable:
                self._writable = False
                _log.warning("disk cache off: it cannot be written", directory=str(self._directory), error=exc.strerror)
            return False
        self._pieces[name] = _Piece(len(data), 0, self._env.clock.monotonic())
        return True

    def _room_for(self, size: int) -> list[Name] | None:
        """Takes out pieces until `size` more bytes fit and returns their names; None, and nothing taken out, when too many are in use."""
        excess = self.size_bytes + size - self._limit_bytes
        idle_since = self._env.clock.monotonic() - IDLE_S
        out: list[Name] = []
        for name, piece in self._pieces.items():
            if excess <= 0:
                break
            if piece.used_s < idle_since or piece.read_bytes >= piece.size_bytes:
                out.append(name)
                excess -= piece.size_bytes
        if excess > 0:
            return None
        for name in out:
            self.size_bytes -= self._pieces.pop(name).size_bytes
        return out

    def _path(self, name: Name) -> Path:
        return self._directory / f"{name[0]}.{name[1]}"


# --- in threads


def _scan(directory: Path) -> list[tuple[Name, int]]:
    """The pieces in the directory, the oldest first; what is none is deleted."""
    found: list[tuple[int, Name, int]] = []
    with suppress(OSError):
        for path in directory.iterdir():
            pack, _, number = path.name.partition(".")
            if is_id(pack) and number.isdecimal():
                with suppress(OSError):
                    stat = path.stat()
                    found.append((stat.st_mtime_ns, (pack, int(number)), stat.st_size))
            else:
                _unlink([path])
    return [(name, size) for _, name, size in sorted(found)]


def _read(paths: Sequence[Path], start: int, length: int) -> bytes | None:
    """`length` bytes of the pieces back to back from `start` of the first on; None when they are not all there."""
    parts: list[bytes] = []
    for path in paths:
        wanted = min(length, PIECE_BYTES - start)
        try:
            with path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), wanted, start)
        except OSError:
            return None
        if len(data) != wanted:
            return None
        parts.append(data)
        start, length = 0, length - wanted
    return b"".join(parts)


def _write(path: Path, data: bytes, unlinked: Sequence[Path]) -> None:
    """Writes a piece whole or not at all, after deleting others."""
    _unlink(unlinked)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        part.replace(path)
    except OSError:
        _unlink([part])
        raise


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()
