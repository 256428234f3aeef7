"""Runs: sorted, immutable pieces of the state (docs/format.md, Runs). Pure.

A run is a row of containers, called frames, each with some 256 KiB of entries, so that neither writing nor reading one ever
needs more than a frame at a time. An entry is (space, key, value); value None removes the key (in deltas only).
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import Final

from stnode.repo.container import Kind, damaged, open_next, seal

Entry = tuple[int, bytes, bytes | None]

FRAME_BYTES: Final = 256 << 10
_HEAD: Final = struct.Struct("<II")
_REMOVED: Final = 0xFFFFFFFF
_UINT: Final = "I"


class Space(IntEnum):
    """Spaces of the state. Those below 16 belong to group 0, the others to the group of their folder's number."""

    HEAD = 0
    FOLDER = 1
    DEVICE = 2
    FEATURE = 3
    PACK = 4
    RELOCATION = 5
    CONDEMNED = 6
    RECORD = 16
    HISTORY = 17
    PARTIAL = 18
    INTERVAL = 19


class RunWriter:
    """Collects the entries of one run in ascending order of (space, key) and seals them in frames."""

    def __init__(self, group: int) -> None:
        self.group = group
        self.entries = 0
        self.frames: list[bytes] = []
        self.sealed_bytes = 0
        self._spaces = bytearray()
        self._keys: list[bytes] = []
        self._values: list[bytes | None] = []
        self._pending_bytes = 0

    def add(self, space: int, key: bytes, value: bytes | None) -> None:
        """One entry; None removes the key."""
        self._spaces.append(space)
        self._keys.append(key)
        self._values.append(value)
        self._pending_bytes += len(key) + len(value or b"") + 9
        if self._pending_bytes >= FRAME_BYTES:
            self._flush()

    def finish(self) -> list[bytes]:
        """All frames, at least one; the run's object is these back to back."""
        if self._keys or not self.frames:
            self._flush()
        return self.frames

    def _flush(self) -> None:
        lengths = array(_UINT, map(len, self._keys))
        sizes = array(_UINT, (_REMOVED if value is None else len(value) for value in self._values))
        payload = b"".join(
            (
                _HEAD.pack(self.group, len(self._keys)),
                self._spaces,
                _little_endian(lengths),
                _little_endian(sizes),
                *self._keys,
                *(value for value in self._values if value),
            )
        )
        frame = seal(Kind.RUN, payload)
        self.frames.append(frame)
        self.sealed_bytes += len(frame)
        self.entries += len(self._keys)
        self._spaces, self._keys, self._values, self._pending_bytes = bytearray(), [], [], 0


def read_frames(data: bytes, group: int, name: str) -> Iterator[list[Entry]]:
    """Entries of the run `name`, a frame at a time. Raises Corrupt, also when it is not of this group."""
    offset = 0
    while offset < len(data):
        payload, offset = open_next(Kind.RUN, data, offset, name)
        yield _entries(payload, group, name)


def _entries(payload: bytes, group: int, name: str) -> list[Entry]:
    if len(payload) < _HEAD.size:
        raise damaged(name, "a frame ends in its header")
    stated, count = _HEAD.unpack_from(payload)
    body = _HEAD.size + 9 * count
    if stated != group or len(payload) < body:
        raise damaged(name, f"a frame is of group {stated} instead of {group}, or ends in its table")
    lengths, sizes = array(_UINT), array(_UINT)
    lengths.frombytes(payload[_HEAD.size + count : _HEAD.size + 5 * count])
    sizes.frombytes(payload[_HEAD.size + 5 * count : body])
    if sys.byteorder == "big":
        lengths.byteswap()
        sizes.byteswap()
    starts = list(accumulate(lengths, initial=body))
    offsets = list(accumulate((0 if size == _REMOVED else size for size in sizes), initial=starts[-1]))
    if offsets[-1] != len(payload):
        raise damaged(name, "the entries of a frame do not fill it")
    keys = [payload[start:end] for start, end in pairwise(starts)]
    values = [None if size == _REMOVED else payload[start:end] for size, (start, end) in zip(sizes, pairwise(offsets), strict=True)]
    return list(zip(payload[_HEAD.size : _HEAD.size + count], keys, values, strict=True))


def _little_endian(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
