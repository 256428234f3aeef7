"""An object store in a directory: the embedded default (`file://`). Every object is one file, named by its key.

A put writes a temporary file, makes it durable, gives it its name (link = create-if-absent, rename = replace) and makes
the name durable: kill -9 or a power cut leaves the old object, the new one, or none, never a part. Temporary files lie in
`~tmp`, which no key can name, under a prefix that their process holds locked; what a dead process left is removed by
the next one that writes. Several processes may share the directory where the file system has hard links and flock.

ETag = modification time, size and inode. The time is set by us, strictly rising, so that every write has its own ETag.
Each call is one hop to a thread; everything in `_Files` blocks.
"""
# Names are strings made for system calls by descriptor; a Path for each would cost more than the call.
# ruff: noqa: PTH102, PTH103, PTH104, PTH108, PTH112, PTH116, PTH120

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from stnode.clock import Env
from stnode.errors import NotFound, Unavailable
from stnode.objectstore.base import (
    Blob,
    Buffer,
    Capabilities,
    Exists,
    IfMatch,
    Key,
    Meta,
    Mode,
    PutResult,
    beyond_end,
    check_key,
    check_prefix,
    check_range,
    is_key,
)
from stnode.objectstore.directio import DirectIO
from stnode.objectstore.localfiles import TemporaryArea, etag, read_range, sync_directory, translated, unlink_if_there, write_file

_LIST_PAGE = 1000
_TEMPORARY = "~tmp"
_REPLACE_LOCK = "~lock"
_PARENT_TRIES = 3


class LocalDirStore:
    """The directory is made when absent. After that it must stay: a directory that vanishes (an unmounted disk) makes calls
    fail with `Unavailable`, never with `NotFound`."""

    def __init__(self, path: str | os.PathLike[str], env: Env) -> None:
        self._env = env
        self._files = _Files(Path(path).absolute(), env.clock.now_ns, env.random.bytes(8).hex())

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        ranged = check_range(check_key(key), start, length)
        return await self._env.threads.run(self._files.read, key, start if ranged else -1, length)

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        check_key(key)
        return await self._env.threads.run(self._files.write, key, data, mode)

    async def head(self, key: Key) -> Meta:
        return await self._env.threads.run(self._files.head, check_key(key))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        found = self._files.walk(check_prefix(prefix), start_after)
        while page := await self._env.threads.run(_page, found):
            for meta in page:
                yield meta

    async def delete(self, key: Key) -> None:
        await self._env.threads.run(self._files.delete, check_key(key))

    async def capabilities(self) -> Capabilities:
        return Capabilities(create_if_absent=True, if_match=True, name="file")

    async def close(self) -> None:
        await self._env.threads.run(self._files.close)


def _page(found: Iterator[Meta]) -> list[Meta]:
    return list(islice(found, _LIST_PAGE))


class _Files:
    """The blocking half. Methods may run in several threads at once."""

    def __init__(self, root: Path, now_ns: Callable[[], int], owner: str) -> None:
        self._root = str(root)
        self._now_ns = now_ns
        self._direct = DirectIO()
        self._temporaries = TemporaryArea(f"{root}/{_TEMPORARY}", owner)
        self._guard = threading.Lock()
        self._replacing = threading.Lock()
        self._identity: tuple[int, int] | None = None
        self._stamp_ns = 0

    def read(self, key: Key, start: int, length: int | None) -> Blob:
        """The whole object when start is -1."""
        path = self._path(key)
        with translated("read", path), self._missing_checked(key):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                stat = os.fstat(fd)
                if start >= 0 and start >= stat.st_size:
                    raise beyond_end(key, start, stat.st_size)
                offset = max(start, 0)
                wanted = stat.st_size - offset if length is None else min(length, stat.st_size - offset)
                return Blob(self._meta(key, stat), read_range(fd, offset, wanted, stat.st_size, path, self._direct))
            finally:
                os.close(fd)

    def write(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch) -> PutResult:
        path = self._path(key)
        with translated("write", path):
            self._open_root()
            if mode is Mode.CREATE and os.path.lexists(path):
                raise Exists(f"{key} exists")
            temporary = self._temporaries.path()
            try:
                stat = write_file(temporary, data, self._stamp(), self._direct)
                self._publish(key, temporary, path, mode)
            finally:
                unlink_if_there(temporary)
        return PutResult(etag(stat), self._now_ns())

    def head(self, key: Key) -> Meta:
        path = self._path(key)
        with translated("read", path), self._missing_checked(key):
            return self._meta(key, os.stat(path))

    def delete(self, key: Key) -> None:
        path = self._path(key)
        with translated("delete", path):
            self._open_root()
            with self._replace_lock():
                try:
                    os.unlink(path)
                except (FileNotFoundError, NotADirectoryError):
                    return
            sync_directory(os.path.dirname(path), key)

    def walk(self, prefix: str, start_after: str) -> Iterator[Meta]:
        """Depth first, each directory in ascending order. Passed over: what vanishes meanwhile, and names that are no keys (`lost+found`)."""
        directory, _, name = prefix.rpartition("/")
        with translated("list", self._path(directory)):
            self._open_root()
            yield from self._walk(directory, name, start_after)

    def close(self) -> None:
        self._temporaries.close()

    def _walk(self, directory: str, name_prefix: str, start_after: str) -> Iterator[Meta]:
        path = self._path(directory)
        try:
            with os.scandir(path) as entries:
                found = sorted((entry.name, entry) for entry in entries if entry.name.startswith(name_prefix) and is_key(entry.name))
        except (FileNotFoundError, NotADirectoryError):
            return
        for name, entry in found:
            key = f"{directory}/{name}" if directory else name
            if entry.is_dir(follow_symlinks=False):
                if f"{key}0" > start_after:  # "0" follows "/": some key below can be greater
                    yield from self._walk(key, "", start_after)
            elif key > start_after:
                try:
                    yield self._meta(Key(key), os.stat(f"{path}/{name}"))
                except FileNotFoundError:
                    continue

    def _publish(self, key: Key, temporary: str, path: str, mode: Mode | IfMatch) -> None:
        for attempt in range(_PARENT_TRIES):
            try:
                self._name(key, temporary, path, mode)
                break
            except FileNotFoundError:
                if attempt == _PARENT_TRIES - 1:
                    raise
                self._make_parents(key)
        sync_directory(os.path.dirname(path), key)

    def _name(self, key: Key, temporary: str, path: str, mode: Mode | IfMatch) -> None:
        if mode is Mode.CREATE:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise Exists(f"{key} exists") from None
            return
        with self._replace_lock():
            if isinstance(mode, IfMatch):
                try:
                    found = etag(os.stat(path))
                except FileNotFoundError:
                    raise Exists(f"{key} does not exist any more: it cannot have the ETag {mode.etag}") from None
                if found != mode.etag:
                    raise Exists(f"{key} was changed: its ETag is {found}, not {mode.etag}")
            os.rename(temporary, path)

    @contextmanager
    def _replace_lock(self) -> Iterator[None]:
        """Held around every change of an existing name, in all threads and processes, so that IfMatch compares and replaces in one step."""
        with self._replacing:
            fd = os.open(f"{self._root}/{_REPLACE_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)

    def _make_parents(self, key: Key) -> None:
        made = self._root
        for part in key.split("/")[:-1]:
            parent, made = made, f"{made}/{part}"
            with suppress(FileExistsError):
                os.mkdir(made, 0o700)
            # Also when another thread made it: its fsync may not have come yet.
            sync_directory(parent, None)

    def _open_root(self) -> None:
        with self._guard:
            if self._identity is None:
                if not os.path.isdir(self._root):
                    os.makedirs(self._root, 0o700)
                    sync_directory(os.path.dirname(self._root), None)
                stat = os.stat(self._root)
                self._identity = (stat.st_dev, stat.st_ino)
        self._check_root()

    def _check_root(self) -> None:
        """An unmounted disk must not look like an empty store."""
        try:
            stat = os.stat(self._root)
        except FileNotFoundError:
            stat = None
        if stat is None or (self._identity is not None and (stat.st_dev, stat.st_ino) != self._identity):
            raise Unavailable(f"the store's directory {self._root} is gone", hint="Mount the disk that holds it, or correct store.url.")

    @contextmanager
    def _missing_checked(self, key: Key) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._open_root()
            raise NotFound(f"{key} does not exist") from None

    def _stamp(self) -> int:
        with self._guard:
            self._stamp_ns = max(self._stamp_ns + 1, self._now_ns())
            return self._stamp_ns

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _meta(self, key: Key, stat: os.stat_result) -> Meta:
        return Meta(key, stat.st_size, etag(stat), stat.st_mtime_ns, self._now_ns())
