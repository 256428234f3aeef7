"""What a pull has to do for one file: which blocks the folder holds already, which must be asked for. Pure, no IO.

A `Job` is the download of one file version: it knows for every block where it lies (`where`), which blocks are still to
be requested, and turns into a list of extents once all of them lie in sealed packs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileInfo
from stnode.repo.addresses import join_places
from stnode.repo.checksum import xxh3_64
from stnode.repo.packer import OpenPack
from stnode.repo.records import Extent

Place = tuple[int, int]
"""(pack, place) of one block; (0, 0) is a block of zeros."""
Reuse = tuple[int, Extent]
"""(first block of the file, extent): blocks of the file which the store has already."""


@dataclass(slots=True, eq=False)
class Job:
    """One file version on its way into packs. `where[i]` is None until block i has an address."""

    id: int
    info: FileInfo
    devices: set[int]
    where: list[Place | None]
    todo: deque[int]
    missing: int
    large: bool
    hash_bytes: int
    """Of each hash in the block list: 32, in encrypted folders 48."""
    outstanding: int = 0
    failed_at: set[int] = field(default_factory=set)
    aborted: bool = False
    queued: bool = False
    pack: OpenPack | None = None
    made_on: int | None = None
    """See `repo.records.Draft`."""
    content: int = field(init=False)
    """What stands for the file's content between siblings (`claims`): asked for with each of their questions."""

    def __post_init__(self) -> None:
        self.content = xxh3_64(self.info.block_hashes)

    def block_hash(self, index: int) -> bytes:
        """SHA-256 of block `index`, or its token."""
        return self.info.block_hashes[index * self.hash_bytes : (index + 1) * self.hash_bytes]

    def block_length(self, index: int) -> int:
        """Bytes of block `index`; only the last one may be shorter than the block size."""
        return min(self.info.block_size, self.info.size - index * self.info.block_size)

    def extents(self) -> tuple[Extent, ...]:
        """All blocks as runs of addresses; only when none is missing."""
        return _extents(self.where)

    def known_runs(self) -> tuple[Reuse, ...]:
        """Runs of the blocks placed so far, with the file's block at which each begins: what a partial file keeps."""
        runs: list[Reuse] = []
        start = 0
        while start < len(self.where):
            if self.where[start] is None:
                start += 1
                continue
            end = start
            while end < len(self.where) and self.where[end] is not None:
                end += 1
            at = start
            for extent in _extents(self.where[start:end]):
                runs.append((at, extent))
                at += extent[2]
            start = end
        return tuple(runs)


def _extents(where: Sequence[Place | None]) -> tuple[Extent, ...]:
    known = [place for place in where if place is not None]
    if len(known) == 1:  # most files
        return ((*known[0], 1),)
    return join_places(known)


def plan_file(job_id: int, info: FileInfo, devices: Iterable[int], reuse: Sequence[Reuse], large_bytes: int) -> Job:
    """A job for a file with at least one block of data. `reuse` may cover any part of it, overlaps are harmless;
    a file of `large_bytes` or more to fetch counts as large."""
    hash_bytes = fileinfo.hash_bytes(info.block_hashes, info.size, info.block_size)
    blocks = len(info.block_hashes) // hash_bytes
    where: list[Place | None] = [None] * blocks
    for start, (pack, place, count) in reuse:
        for offset in range(min(count, blocks - start)):
            where[start + offset] = (pack, place + offset if pack else 0)
    todo = deque(index for index, known in enumerate(where) if known is None)
    return Job(job_id, info, set(devices), where, todo, len(todo), len(todo) * info.block_size >= large_bytes, hash_bytes)
