"""Writing checkpoints, verifying them, truncating what they cover (design 4 and 5, R5, R20).

A manifest is created last and only if absent; its runs have unique names and are shared between manifests while unchanged. Per
group there are base runs by key range and deltas over them. A delta holds what changed since the previous manifest; a base
range is written anew when a quarter of it has changed. Only one task of a node calls these functions at a time; that several
nodes write a checkpoint at once costs objects, never correctness.
"""

from __future__ import annotations

import hashlib
import sqlite3
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Final

from stnode.clock import Env
from stnode.db import Database, Snapshot
from stnode.errors import Conflict, Corrupt, NotFound
from stnode.objectstore.base import Exists, Mode, ObjectStore
from stnode.repo import state
from stnode.repo.codec_manifest import Group, Manifest, RunRef, encode_manifest
from stnode.repo.codec_run import RunWriter, Space
from stnode.repo.codec_slot import encode_stub
from stnode.repo.layout import MAIN_JOURNAL, journal_prefix, manifest_key, mint, minted_us, run_key, slot_key, slot_number
from stnode.repo.restore import manifest_numbers, read_manifest
from stnode.repo.runs import read_group
from stnode.repo.state_export import lookup, scan
from stnode.repo.state_schema import META_GROUP, MODULUS_MASK, entry_hash, head_value
from stnode.telemetry import get_logger

COMMITS_PER_CHECKPOINT: Final = 1000
BYTES_PER_CHECKPOINT: Final = 8 << 20
BASE_RUN_BYTES: Final = 4 << 20
DELTA_RUN_BYTES: Final = 8 << 20
SMALL_BASE_BYTES: Final = 1 << 20
"""A base range of this size is rather written anew than given deltas."""
REWRITE_SHARE: Final = 4

_CHUNK: Final = 4096
_log = get_logger(__name__)
SMALLEST_SLOT_BYTES: Final = 64
"""A stub has at most 43 bytes; a slot's device ID and write id alone, which do not compress, make 80 with the container's header."""


def due(conn: sqlite3.Connection) -> bool:
    """Whether enough was committed since the newest manifest that this node knows of."""
    number, since, size = conn.execute("SELECT number, dirty_from, bytes FROM state").fetchone()
    return bool(number - since >= COMMITS_PER_CHECKPOINT or size >= BYTES_PER_CHECKPOINT)


async def write_manifest(
    objects: ObjectStore, db: Database, env: Env, node: bytes, store_time_us: int, journal: str = MAIN_JOURNAL, *, full: bool = False
) -> Manifest | None:
    """Writes the state at the head as a checkpoint; None when a manifest at or above it exists already. `store_time_us` is the
    store's time now; with `full` no run of the previous manifest is shared, for when one of them is damaged. Commits may be
    applied meanwhile. Raises Corrupt when a manifest in the store belongs to another state
    than this node's, Conflict when the store moved on so that the runs may not be used any more (start over)."""
    numbers = await manifest_numbers(objects, journal)
    async with db.snapshot() as snapshot:
        at = await snapshot.run(state.head)
        if not at.complete or at.number == 0 or (numbers and numbers[0] >= at.number):
            return None
        previous = None if full or not numbers else await _previous(objects, numbers[0], journal)
        since = await snapshot.run(partial(_since, previous=previous))
        writer = _Writer(objects, env, snapshot, at, store_time_us, since)
        groups = {group.number: group for group in previous.groups} if previous and since is not None else {}
        folders = await snapshot.run(state.folders)
        numbers_now = [META_GROUP, *(folder.fid for folder in folders)]
        manifest = Manifest(
            number=at.number,
            slot_sha=at.slot_sha,
            store_time_us=at.store_time_us,
            horizon_us=at.horizon_us,
            next_pack=at.next_pack,
            next_folder=at.next_folder,
            state_hash=await snapshot.run(state.state_hash),
            node=node,
            groups=tuple([await writer.group(number, groups.get(number)) for number in numbers_now]),
        )
    await db.run(partial(_still_usable, manifest=manifest))
    try:
        await objects.put(manifest_key(at.number, journal), [encode_manifest(manifest)], Mode.CREATE)
    except Exists:
        theirs = await read_manifest(objects, at.number, journal)
        if theirs.state_hash != manifest.state_hash:
            raise _diverged(at.number) from None
        manifest = theirs
    await db.write(partial(_note, number=at.number))
    return manifest


async def _previous(objects: ObjectStore, number: int, journal: str) -> Manifest | None:
    try:
        return await read_manifest(objects, number, journal)
    except (Corrupt, NotFound) as exc:
        _log.warning("the previous manifest cannot be read, all runs are written anew", manifest=number, why=exc.message)
        return None


async def compare(objects: ObjectStore, db: Database, number: int, journal: str = MAIN_JOURNAL) -> bool:
    """Compares another node's manifest with what this node had at that commit, and counts deltas from it on. False when there is
    nothing to compare with (any more, or yet). Raises Corrupt when the states differ."""
    manifest = await read_manifest(objects, number, journal)
    own = await db.run(lambda conn: state.hash_at(conn, number))
    if own is None:
        return False
    if own != manifest.state_hash:
        raise _diverged(number)
    await db.write(partial(_note, number=number))
    return True


def _diverged(number: int) -> Corrupt:
    return Corrupt(
        f"this node's state at commit {number} differs from the one in the store's manifest",
        hint="stop this node and delete its state directory; if that does not help run `stnode bucket check`",
    )


def _since(conn: sqlite3.Connection, previous: Manifest | None) -> int | None:
    """The commit after which changed keys are wanted; None when they are not known from there on."""
    if previous is None:
        return None
    own = state.hash_at(conn, previous.number)
    if own is not None and own != previous.state_hash:
        raise _diverged(previous.number)
    known_from = conn.execute("SELECT dirty_from FROM state").fetchone()[0]
    return previous.number if known_from <= previous.number else None


def _still_usable(conn: sqlite3.Connection, manifest: Manifest) -> None:
    """A slow writer's runs may have been condemned meanwhile, or fallen below the orphan horizon (R5b)."""
    horizon_us = state.head(conn).horizon_us
    for _, run in manifest.runs():
        if run.number == manifest.number and minted_us(run.id) < horizon_us:
            raise Conflict("the checkpoint took so long that its runs fell below the orphan horizon")
        if conn.execute("SELECT 1 FROM condemned WHERE key = ?", (run_key(run.id),)).fetchone():
            raise Conflict("a run that the checkpoint shares with its predecessor has been condemned")


def _note(conn: sqlite3.Connection, number: int) -> None:
    conn.execute("UPDATE state SET dirty_from = max(dirty_from, ?), bytes = 0", (number,))
    conn.execute("DELETE FROM dirty WHERE number <= ?", (number,))


class _Writer:
    """Writes the runs of one manifest, group by group."""

    def __init__(self, objects: ObjectStore, env: Env, snapshot: Snapshot, at: state.Head, store_time_us: int, since: int | None) -> None:
        self._objects = objects
        self._env = env
        self._snapshot = snapshot
        self._at = at
        self._store_time_us = store_time_us
        self._since = since or 0

    async def group(self, number: int, previous: Group | None) -> Group:
        """The group's runs now; the previous ones where nothing changed."""
        if previous is None or not previous.base:
            return Group(number, tuple(await self._write_base(number, b"", None)))
        changes = await self._count_changes(number, previous.base)
        if not any(changes):
            return previous
        rewrite = [
            count > 0
            and (
                run.size_bytes < SMALL_BASE_BYTES
                or REWRITE_SHARE * (count + sum(delta.base_entries[index] for delta in previous.deltas)) > run.entries
            )
            for index, (run, count) in enumerate(zip(previous.base, changes, strict=True))
        ]
        base: list[RunRef] = []
        kept: dict[int, int] = {}
        index = 0
        while index < len(rewrite):
            if not rewrite[index]:
                kept[index] = len(base)
                base.append(previous.base[index])
                index += 1
                continue
            first_key = previous.base[index].first_key
            while index < len(rewrite) and rewrite[index]:
                index += 1
            base.extend(await self._write_base(number, first_key, previous.base[index].first_key if index < len(rewrite) else None))
        deltas = [_moved(delta, kept, len(base)) for delta in previous.deltas]
        fresh = await self._write_deltas(number, base)
        return Group(number, tuple(base), tuple(delta for delta in (*deltas, *fresh) if any(delta.base_entries)))

    async def _count_changes(self, group: int, base: Sequence[RunRef]) -> list[int]:
        """Changed keys per base range."""
        starts = [run.first_key for run in base]

        def count(conn: sqlite3.Connection) -> list[int]:
            counts = [0] * len(base)
            for space, key in _dirty(conn, group, self._since):
                counts[bisect_right(starts, bytes((space,)) + key) - 1] += 1
            return counts

        return await self._snapshot.run(count)

    async def _write_base(self, group: int, first_key: bytes, end: bytes | None) -> list[RunRef]:
        """Base runs of all entries from `first_key` up to `end` (None: the group's end), at least one."""
        entries: list[Iterator[tuple[int, bytes, bytes]]] = []
        writers = [(first_key, RunWriter(group))]

        def fill(conn: sqlite3.Connection) -> bool:
            if not entries:
                entries.append(scan(conn, group, first_key))
            count = 0
            for count, (space, key, value) in enumerate(islice(entries[0], _CHUNK), 1):  # noqa: B007 - its last value is wanted
                at = bytes((space,)) + key
                if end is not None and at >= end:
                    return False
                if writers[-1][1].sealed_bytes >= BASE_RUN_BYTES:
                    writers.append((at, RunWriter(group)))
                writers[-1][1].add(space, key, value)
            return count == _CHUNK

        runs: list[RunRef] = []
        more = True
        while more:
            more = await self._snapshot.run(fill)
            while len(writers) > 1 or (writers and not more):
                start, full = writers.pop(0)
                runs.append(await self._upload(full, start, ()))
        return runs

    async def _write_deltas(self, group: int, base: Sequence[RunRef]) -> list[RunRef]:
        """Delta runs of what changed in the base ranges that were not written anew."""
        starts = [run.first_key for run in base]
        keys: list[Iterator[tuple[int, bytes]]] = []
        runs: list[RunRef] = []
        writer, counts, more = RunWriter(group), [0] * len(base), True

        def fill(conn: sqlite3.Connection) -> bool:
            if not keys:
                keys.append(_dirty(conn, group, self._since))
            taken = 0
            for space, key in islice(keys[0], _CHUNK):
                taken += 1
                index = bisect_right(starts, bytes((space,)) + key) - 1
                if base[index].number < self._at.number:
                    writer.add(space, key, lookup(conn, group, space, key))
                    counts[index] += 1
            return taken == _CHUNK

        while more:
            more = await self._snapshot.run(fill)
            if any(counts) and (not more or writer.sealed_bytes >= DELTA_RUN_BYTES):
                runs.append(await self._upload(writer, b"", tuple(counts)))
                writer, counts = RunWriter(group), [0] * len(base)
        return runs

    async def _upload(self, writer: RunWriter, first_key: bytes, base_entries: tuple[int, ...]) -> RunRef:
        frames = await self._env.threads.run(writer.finish)
        digest = await self._env.threads.run(_sha256, frames)
        run = RunRef(
            mint(self._store_time_us, self._env.random),
            sum(map(len, frames)),
            digest,
            writer.entries,
            self._at.number,
            first_key,
            base_entries,
        )
        await self._objects.put(run_key(run.id), frames, Mode.CREATE)
        return run


def _dirty(conn: sqlite3.Connection, group: int, since: int) -> Iterator[tuple[int, bytes]]:
    query = "SELECT space, key FROM dirty WHERE grp = ? AND number > ? ORDER BY space, key"
    return conn.execute(query, (group, since))


def _moved(delta: RunRef, kept: dict[int, int], ranges: int) -> RunRef:
    """The delta with its counts moved to where the ranges are now; those written anew count nothing any more."""
    counts = [0] * ranges
    for old, new in kept.items():
        counts[new] = delta.base_entries[old]
    return replace(delta, base_entries=tuple(counts))


def _sha256(frames: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(frame)
    return digest.digest()


# ---- verifying and truncating --------------------------------------------------------------------------------------


async def verify(objects: ObjectStore, env: Env, manifest: Manifest) -> None:
    """Reads back all runs of a manifest and rebuilds its state hash. Raises NotFound or Corrupt; returns when all is well."""
    head = head_value(
        manifest.number, manifest.slot_sha, manifest.store_time_us, manifest.horizon_us, manifest.next_pack, manifest.next_folder
    )
    total = entry_hash(Space.HEAD, META_GROUP, b"", head)
    for group in manifest.groups:
        async for batch in read_group(objects, env, group):
            total += batch.hash_sum
    if (total & MODULUS_MASK).to_bytes(16, "little") != manifest.state_hash:
        raise Corrupt(f"the runs of manifest {manifest.number} do not add up to its state hash", hint="run `stnode bucket check`")


async def ensure_verified(objects: ObjectStore, db: Database, env: Env, number: int, journal: str = MAIN_JOURNAL) -> None:
    """As `verify`, unless this node has done that for this manifest already."""
    if await db.run(lambda conn: conn.execute("SELECT verified FROM state").fetchone()[0]) != number:
        await verify(objects, env, await read_manifest(objects, number, journal))
        await db.write(lambda conn: conn.execute("UPDATE state SET verified = ?", (number,)))


async def truncate(objects: ObjectStore, db: Database, env: Env, store_time_us: int, journal: str = MAIN_JOURNAL) -> int:
    """Overwrites slots with stubs: those that the second newest manifest covers, which is verified first, and that are older than
    the orphan age (a day) by the store's clock (`store_time_us`: its time now). How many. Errors as `verify`: nothing is truncated then."""
    numbers = await manifest_numbers(objects, journal)
    if len(numbers) < 2:
        return 0
    covered = numbers[1]
    done, age_us = await db.run(lambda conn: conn.execute("SELECT truncated, orphan_age_us FROM state").fetchone())
    if done >= covered:
        return 0
    await ensure_verified(objects, db, env, covered, journal)
    old: list[int] = []
    async for meta in objects.list(journal_prefix(journal), start_after=slot_key(done, journal)):
        number = slot_number(meta.key)
        is_slot = number is not None and number <= covered and meta.size_bytes >= SMALLEST_SLOT_BYTES
        if number is not None and is_slot and meta.modified_ns // 1000 < store_time_us - age_us:
            old.append(number)
        elif is_slot:
            covered = min(covered, (number or 1) - 1)
    for number in sorted(old):
        await objects.put(slot_key(number, journal), [encode_stub(number)])
    # Slots too young now are looked at again: `covered` stops before the first of them.
    await db.write(lambda conn: conn.execute("UPDATE state SET truncated = ?", (max(done, covered),)))
    return len(old)
