"""System calls below `localdir.py`: durable writes without joining buffers, large files past the page cache (`directio.py`), temporary
files that outlive no process, and errors translated. Everything here blocks and runs in threads.
"""
# Names are strings made for system calls by descriptor; a Path for each would cost more than the call.
# ruff: noqa: PTH103, PTH108, PTH116, PTH208

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from stnode.errors import Full, Internal, Refused, StnodeError, Unavailable, UnknownOutcome
from stnode.objectstore.base import Buffer, Key
from stnode.objectstore.directio import DirectIO

_WRITEV_BUFFERS = 1024
_WRITEV_BYTES = 256 << 20
_OWNER_SUFFIX = ".lock"

DIRECT_OBJECT_BYTES = 1 << 20
"""Objects from this size on pass by the page cache; smaller ones are worth caching, and the system calls would outweigh the gain."""
DIRECT_RANGE_BYTES = 256 << 10
"""Shorter ranges of them are read through the page cache, whose read-ahead suits them."""


class TemporaryArea:
    """A directory of temporary files shared by processes. Each process names its files `<owner>-<n>` and holds `<owner>.lock` locked
    while it lives; the first use clears what owners that live no more have left."""

    def __init__(self, directory: str, owner: str) -> None:
        self._directory = directory
        self._owner = owner
        self._guard = threading.Lock()
        self._owner_fd: int | None = None
        self._number = 0

    def path(self) -> str:
        """A name not used yet."""
        with self._guard:
            if self._owner_fd is None:
                self._owner_fd = self._claim()
                self._clear_dead()
            self._number += 1
            return f"{self._directory}/{self._owner}-{self._number:x}"

    def close(self) -> None:
        """Ends the claim; no file of this process may be in use."""
        with self._guard:
            if self._owner_fd is not None:
                unlink_if_there(self._lock_path(self._owner))
                os.close(self._owner_fd)
                self._owner_fd = None

    def _claim(self) -> int:
        os.makedirs(self._directory, 0o700, exist_ok=True)
        path = self._lock_path(self._owner)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd
            os.close(fd)  # a cleaner removed the name between open and flock

    def _clear_dead(self) -> None:
        names = os.listdir(self._directory)
        owners = {name.removesuffix(_OWNER_SUFFIX) for name in names if name.endswith(_OWNER_SUFFIX)}
        alive = {owner for owner in owners if owner == self._owner or not _remove_if_unlocked(self._lock_path(owner))}
        for name in names:
            if not name.endswith(_OWNER_SUFFIX) and name.partition("-")[0] not in alive:
                unlink_if_there(f"{self._directory}/{name}")

    def _lock_path(self, owner: str) -> str:
        return f"{self._directory}/{owner}{_OWNER_SUFFIX}"


def etag(stat: os.stat_result) -> str:
    """Time, size and inode of the file: another one for each write, as `localdir.py` sets the times."""
    return f'"{stat.st_mtime_ns:x}-{stat.st_size:x}-{stat.st_ino:x}"'


def read_range(fd: int, offset: int, wanted: int, size_bytes: int, path: str, direct: DirectIO) -> bytes:
    """`wanted` bytes from `offset` of an object of `size_bytes`."""
    if size_bytes >= DIRECT_OBJECT_BYTES and wanted >= DIRECT_RANGE_BYTES and (data := direct.read(fd, offset, wanted)) is not None:
        return data
    return _pread(fd, offset, wanted, path)


def write_file(path: str, data: Sequence[Buffer], modified_ns: int, direct: DirectIO) -> os.stat_result:
    """A new durable file of these buffers, written without joining them."""
    views = [view for part in data if (view := memoryview(part).cast("B")).nbytes]
    size_bytes = sum(view.nbytes for view in views)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if size_bytes < DIRECT_OBJECT_BYTES or not direct.write(fd, views, size_bytes):
            _write_all(fd, views)
        os.utime(fd, ns=(modified_ns, modified_ns))
        os.fsync(fd)
        return os.fstat(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, views: list[memoryview]) -> None:
    position = 0
    while position < len(views):
        batch: list[memoryview] = []
        size = 0
        for view in views[position : position + _WRITEV_BUFFERS]:
            if batch and size + view.nbytes > _WRITEV_BYTES:
                break
            batch.append(view)
            size += view.nbytes
        written = os.writev(fd, batch)
        for view in batch:
            if written < view.nbytes:
                views[position] = view[written:]
                break
            written -= view.nbytes
            position += 1


def _pread(fd: int, offset: int, wanted: int, path: str) -> bytes:
    data = os.pread(fd, wanted, offset)
    if len(data) == wanted:
        return data
    parts = [data]
    missing = wanted - len(data)
    while missing:
        more = os.pread(fd, missing, offset + wanted - missing)
        if not more:
            raise Unavailable(f"{path} ended {missing} bytes early")
        parts.append(more)
        missing -= len(more)
    return b"".join(parts)


def sync_directory(path: str, named: Key | None) -> None:
    """Makes the names in a directory durable. When `named` was just put there and this fails, its fate is unknown."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if named is None:
            raise
        raise UnknownOutcome(f"{named} was changed in {path}, but it may not be durable: {error.strerror}") from error


def unlink_if_there(path: str) -> None:
    """Removes a name that may be gone already."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def _remove_if_unlocked(path: str) -> bool:
    """True when no process held this owner file; it is removed then."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlink_if_there(path)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


@contextmanager
def translated(action: str, path: str) -> Iterator[None]:
    """Turns the system's errors into ours, with the path and what to do about it."""
    try:
        yield
    except OSError as error:
        raise _error_of(error, action, path) from error


def _error_of(error: OSError, action: str, path: str) -> StnodeError:
    named = error.filename if isinstance(error.filename, str) else path
    what = f"cannot {action} {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Full(what, hint="Free space on this disk or raise the quota.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Refused(f"{what} ({named})", hint=f"Give the user that runs stnode the right to read and write {named}.")
    if error.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK):
        return Refused(what, hint="The file system lacks hard links or locks: put the store on ext4, xfs, btrfs, zfs or NFS 4.")
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return Refused(f"{what} ({named})", hint="A file lies where the store needs a directory, or the other way round.")
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EBADF):
        return Internal(what)
    return Unavailable(what)
