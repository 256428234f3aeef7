"""Reading the runs of a manifest: each group's entries, deltas laid over base runs. Used to restore and to verify.

Memory: the deltas of one group as they lie in the store, and one base run unpacked. All checks that a run can fail are made
here and raise Corrupt naming its key; a missing run is NotFound.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final

from stnode.clock import Env
from stnode.objectstore.base import ObjectStore
from stnode.repo.codec_manifest import Group, RunRef
from stnode.repo.codec_run import Entry, read_frames
from stnode.repo.container import damaged
from stnode.repo.layout import run_key
from stnode.repo.state_schema import entry_hash

ENTRIES_PER_BATCH: Final = 8192


@dataclass(frozen=True, slots=True)
class Batch:
    """Some entries of a group, none of them removed, and the sum of their hashes."""

    entries: list[tuple[int, bytes, bytes]]
    hash_sum: int


async def read_run(objects: ObjectStore, env: Env, run: RunRef) -> bytes:
    """The run's bytes, checked against its manifest."""
    key = run_key(run.id)
    data = (await objects.get(key)).data
    if len(data) != run.size_bytes or (await env.threads.run(_sha256, data)) != run.sha256:
        raise damaged(key, "it is not the object that its manifest names")
    return data


async def read_group(objects: ObjectStore, env: Env, group: Group) -> AsyncIterator[Batch]:
    """All entries of a group; ascending except that a base run's changed ones come after the others."""
    deltas = [_Delta(await read_run(objects, env, run), group.number, run) for run in group.deltas]
    for index, run in enumerate(group.base):
        data = await read_run(objects, env, run)
        end = group.base[index + 1].first_key if index + 1 < len(group.base) else None
        for batch in await env.threads.run(_merge, data, group.number, run, deltas, end):
            yield batch
    for delta in deltas:
        await env.threads.run(delta.finish)


class _Delta:
    """Goes once through the entries of a delta run, range by range."""

    def __init__(self, data: bytes, group: int, run: RunRef) -> None:
        self.number = run.number
        self._run = run
        self._frames: Iterator[list[Entry]] = read_frames(data, group, run_key(run.id))
        self._pending: list[Entry] = []
        self._keys: list[bytes] = []
        self._seen = 0

    def take(self, end: bytes | None) -> Iterator[Entry]:
        """The entries before the end of a range; None for all that are left."""
        while True:
            count = len(self._pending) if end is None else bisect_left(self._keys, end)
            yield from self._pending[:count]
            if count < len(self._pending):
                self._pending, self._keys = self._pending[count:], self._keys[count:]
                return
            frame = next(self._frames, None)
            if frame is None:
                self._pending, self._keys = [], []
                return
            self._seen += len(frame)
            self._pending, self._keys = frame, [bytes((space,)) + key for space, key, _ in frame]

    def finish(self) -> None:
        """Checks that the run held as many entries as its manifest says."""
        for _ in self.take(None):
            pass
        if self._seen != self._run.entries:
            raise damaged(run_key(self._run.id), f"it holds {self._seen} entries instead of {self._run.entries}")


def _merge(data: bytes, group: int, run: RunRef, deltas: list[_Delta], end: bytes | None) -> list[Batch]:
    changed: dict[tuple[int, bytes], bytes | None] = {}
    for delta in deltas:
        for space, key, value in delta.take(end):
            if delta.number > run.number:
                changed[space, key] = value
    batches, seen = [], 0
    entries: list[tuple[int, bytes, bytes]] = []
    for frame in read_frames(data, group, run_key(run.id)):
        seen += len(frame)
        entries.extend((space, key, value) for space, key, value in frame if value is not None and (space, key) not in changed)
        if len(entries) >= ENTRIES_PER_BATCH:
            batches.append(_batch(group, entries))
            entries = []
    if seen != run.entries:
        raise damaged(run_key(run.id), f"it holds {seen} entries instead of {run.entries}")
    entries.extend((space, key, value) for (space, key), value in changed.items() if value is not None)
    batches.append(_batch(group, entries))
    return batches


def _batch(group: int, entries: list[tuple[int, bytes, bytes]]) -> Batch:
    return Batch(entries, sum(entry_hash(space, group, key, value) for space, key, value in entries))


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
