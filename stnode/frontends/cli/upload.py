"""`put`: copies local files into a folder, many at a time, and sends only what differs from what is there.

A file is the same when type, size, time and mode agree. Directories are compared one by one: memory does not grow with the tree.
Sockets, devices and the like are told as errors; symlinks go as symlinks.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from stnode.clock import Env
from stnode.errors import Conflict, Internal, Invalid, NotFound, StnodeError, Unavailable
from stnode.frontends.cli.app import Failures
from stnode.frontends.cli.download import local_error
from stnode.frontends.cli.output import Progress, printable
from stnode.node.service import MANY_BYTES, Entry, NewFile, Service

PIECE = 256 * 1024
# A file is durable only with the next commit, up to a second away: small ones go in batches, several at a time.
_AT_ONCE = 8
_SMALL = 2**20
_BATCH_BYTES = MANY_BYTES - _SMALL
_BATCH_FILES = 256

Item = tuple[Path, os.stat_result, str]
"""A local path, what lstat says of it, and where it goes."""


class Upload:
    """One `put`. Errors of single paths go to `failures`; anything that ends all of it is raised."""

    def __init__(self, service: Service, env: Env, failures: Failures, progress: Progress) -> None:
        self._service = service
        self._env = env
        self._failures = failures
        self._progress = progress

    async def single(self, local: Path, path: str) -> None:
        """One file, to exactly `path`; a symlink that the user names is followed. Raises its error."""
        try:
            local = await self._env.threads.run(Path.resolve, local)
            await self._item(local, await self._env.threads.run(os.stat, local), path)
        except OSError as exc:
            raise local_error(local, exc) from exc

    async def tree(self, local: Path, path: str) -> None:
        """Everything below the directory `local`, into the directory `path`."""
        queue: asyncio.Queue[list[Item] | None] = asyncio.Queue(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(self._worker(queue))
            batch: list[Item] = []
            size = 0
            async for item in self._differing(local, path):
                if not stat.S_ISREG(item[1].st_mode) or item[1].st_size > _SMALL:
                    await queue.put([item])
                    continue
                batch.append(item)
                size += item[1].st_size
                if size >= _BATCH_BYTES or len(batch) >= _BATCH_FILES:
                    await queue.put(batch)
                    batch, size = [], 0
            if batch:
                await queue.put(batch)
            for _ in range(_AT_ONCE):
                await queue.put(None)

    async def _worker(self, queue: asyncio.Queue[list[Item] | None]) -> None:
        while (job := await queue.get()) is not None:
            if len(job) > 1:
                await self._batch(job)
            else:
                await self._guarded(*job[0])

    async def _guarded(self, local: Path, status: os.stat_result, path: str) -> None:
        """One item; its failure is told, and the rest goes on."""
        with self._told(local):
            await self._item(local, status, path)

    @contextmanager
    def _told(self, local: Path) -> Iterator[None]:
        """Keeps what fails for one path alone to `failures`."""
        try:
            yield
        except (Unavailable, Internal):
            raise  # the next file would fare no better
        except StnodeError as exc:
            self._failures.add(str(local), exc)
        except OSError as exc:
            self._failures.add(str(local), local_error(local, exc))

    async def _batch(self, items: list[Item]) -> None:
        """Small files in one go; one by one if that fails, so that each failure has its path."""
        contents = await self._env.threads.run(_read_all, items)
        files = [
            NewFile(path, data, status.st_mtime_ns, status.st_mode & 0o777)
            for (_, status, path), data in zip(items, contents, strict=True)
            if data is not None
        ]
        try:
            await self._service.write_many(files)
        except (Unavailable, Internal):
            raise
        except StnodeError:
            files = []
        self._progress.files += len(files)
        self._progress.moved(sum(len(file.data) for file in files))
        done = {file.path for file in files}
        for item in items:
            if item[2] not in done:
                await self._guarded(*item)

    async def _differing(self, local: Path, path: str) -> AsyncIterator[Item]:
        """What differs below `local`; makes directories before anything in them."""
        waiting: list[tuple[Path, str, bool]] = [(local, path, await self._ensure_directory(local, path))]
        while waiting:
            local, path, existed = waiting.pop()
            try:
                found = await self._env.threads.run(_scan, local)
                there = await self._entries(path) if existed else {}
            except OSError as exc:
                self._failures.add(str(local), local_error(local, exc))
                continue
            directories: list[tuple[Path, os.stat_result, str, Entry | None]] = []
            for name, status in found:
                child, target = local / name, f"{path}/{name}"
                entry = there.get(name)
                if not _is_text(name):
                    self._failures.add(printable(str(child)), Invalid(f"the name {name!r} is no UTF-8", hint="rename it"))
                elif stat.S_ISDIR(status.st_mode):
                    directories.append((child, status, target, entry))
                elif entry is not None and _is_same(child, status, entry):
                    self._progress.skipped += 1
                else:
                    yield child, status, target
            for at in range(0, len(directories), _BATCH_FILES):
                waiting += await self._directories(directories[at : at + _BATCH_FILES])

    async def _directories(self, wanted: Sequence[tuple[Path, os.stat_result, str, Entry | None]]) -> list[tuple[Path, str, bool]]:
        """Makes what is not there of the directories of one directory, all at once: each by itself would wait for a commit. (local path, path,
        whether it was there) of those that are there now."""
        there: list[tuple[Path, str, bool]] = []

        async def one(local: Path, status: os.stat_result, path: str, entry: Entry | None) -> None:
            with self._told(local):
                there.append((local, path, await self._directory(local, status, path, entry)))

        async with asyncio.TaskGroup() as group:
            for each in wanted:
                group.create_task(one(*each))
        return there

    async def _ensure_directory(self, local: Path, path: str) -> bool:
        """Makes the top directory; whether it was there."""
        try:
            entry = await self._service.stat(path)
        except NotFound:
            if "/" not in path:
                raise
            await self._make_directory(await self._env.threads.run(os.stat, local), path)
            return False
        if entry.type != "directory":
            raise Conflict(f"{path} is no directory", hint="name a directory to put a directory's content into")
        return True

    async def _directory(self, local: Path, status: os.stat_result, path: str, entry: Entry | None) -> bool:
        """Makes a directory unless it is there; whether it was."""
        if entry is not None and entry.type == "directory":
            return True
        if entry is not None:
            raise Conflict(f"{path} is no directory, but {local} is one", hint=f"remove it first: `stnode rm {path}`")
        await self._make_directory(status, path)
        return False

    async def _make_directory(self, status: os.stat_result, path: str) -> None:
        await self._service.mkdir(path, True, status.st_mtime_ns, status.st_mode & 0o777)

    async def _entries(self, path: str) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        after: str | None = None
        while True:
            page = await self._service.ls(path, False, after)
            entries.update((entry.name, entry) for entry in page.entries)
            if page.next is None:
                return entries
            after = page.next

    async def _item(self, local: Path, status: os.stat_result, path: str) -> None:
        if stat.S_ISLNK(status.st_mode):
            target = await self._env.threads.run(os.readlink, local)
            await self._service.symlink(path, target, status.st_mtime_ns)
        elif stat.S_ISREG(status.st_mode):
            source = self._content(local, status)
            try:
                await self._service.write(path, source, status.st_size, status.st_mtime_ns, status.st_mode & 0o777)
            finally:
                await source.aclose()
        else:
            raise Invalid(f"{local} is neither file, directory nor symlink", hint="a pipe is read with `stnode put - FOLDER/PATH`")
        self._progress.files += 1
        self._progress.moved(0)

    async def _content(self, local: Path, status: os.stat_result) -> AsyncGenerator[bytes, None]:
        """The file's bytes. Raises Conflict when the file changes meanwhile: half old and half new must not be stored."""
        run = self._env.threads.run
        stream = await run(_open, local)
        try:
            while piece := await run(stream.read, PIECE):
                self._progress.moved(len(piece))
                yield piece
            now = os.fstat(stream.fileno())
            if (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
                raise Conflict(f"{local} changed while it was read", hint="run the command again")
        finally:
            stream.close()


def _open(local: Path) -> FileIO:
    return FileIO(os.open(local, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb")


def _read_all(items: list[Item]) -> list[bytes | None]:
    """The contents of small files; None for one that cannot be read, or changed meanwhile: it is tried again by itself."""
    contents: list[bytes | None] = []
    for local, status, _ in items:
        try:
            with _open(local) as stream:
                data = stream.read(status.st_size + 1)
                now = os.fstat(stream.fileno())
        except OSError:
            contents.append(None)
            continue
        same = (now.st_size, now.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
        contents.append(data if same and len(data) == status.st_size else None)
    return contents


def _scan(local: Path) -> list[tuple[str, os.stat_result]]:
    with os.scandir(local) as entries:
        return sorted((entry.name, entry.stat(follow_symlinks=False)) for entry in entries)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_same(local: Path, status: os.stat_result, entry: Entry) -> bool:
    if stat.S_ISLNK(status.st_mode):
        return entry.type == "symlink" and str(local.readlink()) == entry.target
    same = (entry.type, entry.size, entry.modified_ns) == ("file", status.st_size, status.st_mtime_ns)
    return same and entry.permissions in (None, status.st_mode & 0o777)
