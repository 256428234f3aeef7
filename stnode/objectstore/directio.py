"""Reads and writes of large files past the page cache, through staging memory that is used again and again.

Every new page of the page cache is memory touched for the first time; where a virtual machine gives its free pages back that is a
fault in the host, 2 CPU s/GB. Aligned staging costs one copy in its place: 0.1 CPU s/GB. What was written so is not cached, which suits
packs: they are read again rarely, and then by `repo/cache.py`, which keeps what it reads.

A file system may refuse (O_DIRECT or fallocate, by EINVAL and its like). The first refusal is remembered, and all later calls give the
work back at once; the caller does it through the page cache. Everything here blocks and runs in threads, several at once.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

BLOCK_BYTES: Final = 4096
"""Offsets, lengths and memory are multiples of it: that satisfies disks of 512 and 4,096 byte sectors."""

STAGING_BYTES: Final = 4 << 20
_STAGING_KEPT = 4
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY)


class DirectIO:
    """For the files of one file system. Memory: one staging buffer for each call at work; up to four stay for the next calls."""

    def __init__(self, staging_bytes: int = STAGING_BYTES) -> None:
        self._staging_bytes = staging_bytes
        self._idle: deque[memoryview] = deque(maxlen=_STAGING_KEPT)
        self._fallocate = _find_fallocate()
        self.usable = _O_DIRECT != 0 and self._fallocate is not None

    def write(self, fd: int, views: Sequence[memoryview], size_bytes: int) -> bool:
        """Fills the new, empty file with the views (bytes, `size_bytes` together). False when refused: the file is empty then.

        All space is reserved before the first byte is written, so that a full disk shows at once (ENOSPC). Not durable yet."""
        if not self.usable:
            return False
        try:
            with _direct(fd), self._staging() as staging:
                self._reserve(fd, _rounded_up(size_bytes))
                for filled in _staged(views, staging):
                    padded = _rounded_up(filled)
                    staging[filled:padded] = bytes(padded - filled)
                    _write_fully(fd, staging[:padded])
            if size_bytes % BLOCK_BYTES:
                os.ftruncate(fd, size_bytes)
        except OSError as error:
            self._note_refusal(error)
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            return False
        return True

    def read(self, fd: int, offset: int, wanted: int) -> bytes | None:
        """`wanted` bytes from `offset`; None when refused or when the file ends before."""
        if not self.usable:
            return None
        out = io.BytesIO()  # grows by reallocation and hands its memory over: one copy, of any number of pieces
        end = offset + wanted
        try:
            with _direct(fd), self._staging() as staging:
                while (begin := offset + out.tell()) < end:
                    before = begin % BLOCK_BYTES
                    span = min(_rounded_up(end - begin + before), self._staging_bytes)
                    got = os.preadv(fd, [staging[:span]], begin - before)
                    if got <= before:
                        return None
                    out.write(staging[before : min(got, end - begin + before)])
        except OSError as error:
            self._note_refusal(error)
            return None
        return out.getvalue()

    def _note_refusal(self, error: OSError) -> None:
        """Raises the error again if it is none of a file system that can't do this."""
        if error.errno not in _REFUSALS:
            raise error
        self.usable = False

    def _reserve(self, fd: int, size_bytes: int) -> None:
        assert self._fallocate is not None, "checked by `usable`"
        if self._fallocate(fd, 0, 0, size_bytes) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    @contextmanager
    def _staging(self) -> Iterator[memoryview]:
        try:
            buffer = self._idle.pop()
        except IndexError:
            buffer = memoryview(mmap.mmap(-1, self._staging_bytes))
        try:
            yield buffer
        finally:
            self._idle.append(buffer)


@contextmanager
def _direct(fd: int) -> Iterator[None]:
    """The file is in direct mode within, and back in its own mode after."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | _O_DIRECT)
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _staged(views: Sequence[memoryview], staging: memoryview) -> Iterator[int]:
    """Copies the views into the staging memory piece by piece, and gives the size of each piece when it lies there: full but for the last."""
    filled = 0
    for view in views:
        taken = 0
        while taken < view.nbytes:
            count = min(view.nbytes - taken, staging.nbytes - filled)
            staging[filled : filled + count] = view[taken : taken + count]
            taken += count
            filled += count
            if filled == staging.nbytes:
                yield filled
                filled = 0
    if filled:
        yield filled


def _write_fully(fd: int, data: memoryview) -> None:
    """A short write that ends within a block makes the next one fail as a refusal does: the caller writes anew, through the page cache."""
    written = 0
    while written < data.nbytes:
        written += os.write(fd, data[written:])


def _rounded_up(count: int) -> int:
    return count + -count % BLOCK_BYTES


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    """The system's own. `os.posix_fallocate` is no substitute: where the file system refuses it writes a byte into each block."""
    library = ctypes.CDLL(None, use_errno=True)
    # 32-bit glibc takes 64-bit offsets under the second name only; musl always does and may lack it.
    found = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if found is None:
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    found.restype = ctypes.c_int
    call: Callable[[int, int, int, int], int] = found
    return call
