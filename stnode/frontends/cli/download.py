"""`get`: copies entries of a folder to local files, several at a time, and goes on where an earlier run stopped.

A file is written beside its place as `.<name>.<revision>.stnode-part` and renamed when complete, so that nobody sees half a
file. A part of the same revision is continued from its last flushed 64 MiB. A local item of the same size and time (files), or
the same target (symlinks), is left as it is.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from pathlib import Path
from typing import Any, BinaryIO, cast

from stnode.clock import Env
from stnode.errors import Conflict, Full, Internal, Invalid, Refused, StnodeError, Unavailable
from stnode.frontends.cli.app import Failures
from stnode.frontends.cli.output import Progress
from stnode.node.service import Entry, Files

_AT_ONCE = 16
_FLUSH = 64 * 2**20
_PART = ".stnode-part"


def local_error(path: Path, exc: OSError) -> StnodeError:
    """What a local file system refused, as an error of ours."""
    message = f"{path}: {exc.strerror or exc}"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return Full(message, hint="free some space on that disk and run the command again; it goes on where it stopped")
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Refused(message, hint="change the permissions, or choose another place")
    return Invalid(message)


class Download:
    """One `get` of what is there, or was at the moment `at`. Errors of single paths go to `failures`; anything that ends all of it is
    raised."""

    def __init__(self, service: Files, env: Env, failures: Failures, progress: Progress, at: str = "") -> None:
        self._at = at
        self._service = service
        self._env = env
        self._failures = failures
        self._progress = progress
        self._entered: list[str] = []

    async def single(self, entry: Entry, target: Path) -> None:
        """One file or symlink, to exactly `target`. Raises its error."""
        try:
            await self._env.threads.run(_make_directory, target.parent)
            await self._item(entry, target)
        except OSError as exc:
            raise local_error(target, exc) from exc

    async def tree(self, top: Entry, pages: AsyncIterator[tuple[Entry, ...]], target: Path) -> None:
        """Everything of `pages` (entries below `top`, parents before children) below the directory `target`."""
        directories: list[tuple[Path, Entry]] = [(target, top)]
        queue: asyncio.Queue[tuple[Entry, Path] | None] = asyncio.Queue(_AT_ONCE * 4)
        await self._guarded(target, self._env.threads.run(_make_directory, target))
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(self._worker(queue))
            async for entries in pages:
                for entry in entries:
                    place = await self._place(entry, top, target)
                    if place is not None and entry.type == "directory":
                        directories.append((place, entry))
                    elif place is not None:
                        await queue.put((entry, place))
            for _ in range(_AT_ONCE):
                await queue.put(None)
        # Deepest first: writing below a directory changes its time, and its mode may forbid writing.
        for place, entry in reversed(directories):
            if "/" in entry.path:
                await self._guarded(place, self._env.threads.run(_finish_directory, place, entry))

    async def _worker(self, queue: asyncio.Queue[tuple[Entry, Path] | None]) -> None:
        while (job := await queue.get()) is not None:
            await self._guarded(job[1], self._item(*job))

    async def _guarded(self, place: Path, work: Awaitable[None]) -> None:
        """Awaits the work for one path; its failure is told, and the rest goes on."""
        try:
            await work
        except (Unavailable, Internal):
            raise  # the next path would fare no better
        except StnodeError as exc:
            self._failures.add(str(place), exc)
        except OSError as exc:
            self._told(place, exc)

    def _told(self, place: Path, exc: OSError) -> None:
        error = local_error(place, exc)
        if isinstance(error, Full):
            raise error from exc
        self._failures.add(str(place), error)

    async def _place(self, entry: Entry, top: Entry, target: Path) -> Path | None:
        """Where an entry goes, its parents being real directories inside `target`; None when it cannot go anywhere."""
        parts = entry.path[len(top.path) + 1 :].split("/")
        place = target.joinpath(*parts)
        try:
            if not entry.path.startswith(f"{top.path}/") or any(part in ("", ".", "..") or "\0" in part for part in parts):
                raise Invalid(f"{entry.path} is no name for a local file")
            inside = parts if entry.type == "directory" else parts[:-1]
            if inside != self._entered:
                await self._env.threads.run(_enter, target, inside)
                self._entered = inside
        except StnodeError as exc:
            self._failures.add(str(place), exc)
            return None
        except OSError as exc:
            self._told(place, exc)
            return None
        return place

    async def _item(self, entry: Entry, place: Path) -> None:
        if await self._env.threads.run(_is_same, entry, place):
            self._progress.skipped += 1
            return
        if entry.type == "symlink":
            await self._env.threads.run(_make_symlink, entry, place)
        else:
            await self._file(entry, place)
        self._progress.files += 1
        self._progress.moved(0)

    async def _file(self, entry: Entry, place: Path) -> None:
        mark = hashlib.sha256(f"{entry.path}\0{entry.revision}".encode()).hexdigest()[:16]
        part = place.with_name(f".{place.name.encode()[:200].decode(errors='ignore')}.{mark}{_PART}")  # no name is longer than 255 bytes
        run = self._env.threads.run
        stream, offset = await run(_open_part, part)
        try:
            flushed = offset
            async with aclosing(cast("Any", self._service.read(entry.path, offset, None, entry.revision, self._at))) as pieces:
                async for piece in pieces:
                    await run(stream.write, piece)
                    offset += len(piece)
                    self._progress.moved(len(piece))
                    if offset - flushed >= _FLUSH:
                        await run(_flush, stream)
                        flushed = offset
            if offset != entry.size:
                raise Conflict(
                    f"{entry.path}: {offset} bytes came instead of {entry.size}", hint="it may have changed; run the command again"
                )
            await run(_finish_file, stream, part, place, entry)
        except BaseException:
            await run(_drop_part, stream, part, offset < _FLUSH)
            raise


def _make_directory(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)


def _enter(target: Path, parts: list[str]) -> None:
    """Makes the directories `parts` below `target`. A symlink in the way is not followed: it may lead out of `target`."""
    place = target
    for part in parts:
        place /= part
        try:
            place.mkdir()
        except FileExistsError:
            if not stat.S_ISDIR(place.lstat().st_mode):
                raise Conflict(f"{place} is no directory here", hint="move it away and run the command again") from None


def _is_same(entry: Entry, place: Path) -> bool:
    try:
        found = place.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(found.st_mode):
        raise Conflict(f"{place} is a directory here", hint="move it away and run the command again")
    if entry.type == "symlink":
        return stat.S_ISLNK(found.st_mode) and place.readlink() == Path(entry.target)
    same = stat.S_ISREG(found.st_mode) and (found.st_size, found.st_mtime_ns) == (entry.size, entry.modified_ns)
    if same and entry.permissions is not None and entry.permissions & 0o777 != stat.S_IMODE(found.st_mode):
        place.chmod(entry.permissions & 0o777)
    return same


def _make_symlink(entry: Entry, place: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(entry.target)
    os.utime(place, ns=(entry.modified_ns, entry.modified_ns), follow_symlinks=False)


def _open_part(part: Path) -> tuple[BinaryIO, int]:
    """The part file, positioned where its content is known to be on the disk."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    stream = os.fdopen(descriptor, "r+b", buffering=0)
    # Every 64 MiB were flushed before more was written: what lies below the last full 64 MiB is whole.
    offset = max(stream.seek(0, os.SEEK_END) - 1, 0) // _FLUSH * _FLUSH
    stream.truncate(offset)
    stream.seek(offset)
    return cast("BinaryIO", stream), offset


def _flush(stream: BinaryIO) -> None:
    os.fsync(stream.fileno())


def _finish_file(stream: BinaryIO, part: Path, place: Path, entry: Entry) -> None:
    if entry.permissions is not None:
        os.fchmod(stream.fileno(), entry.permissions & 0o777)
    else:
        os.fchmod(stream.fileno(), 0o666 & ~_umask())
    os.utime(stream.fileno(), ns=(entry.modified_ns, entry.modified_ns))
    stream.close()
    part.replace(place)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _drop_part(stream: BinaryIO, part: Path, small: bool) -> None:
    stream.close()
    if small:
        part.unlink(missing_ok=True)


def _finish_directory(place: Path, entry: Entry) -> None:
    if entry.permissions is not None:
        place.chmod(entry.permissions & 0o777)
    os.utime(place, ns=(entry.modified_ns, entry.modified_ns))
