"""What a store really does, tried out at start: rights, reading back, conditional writes. Never judged by a vendor's name.

Some S3 servers take a conditional write, ignore its condition and answer 200 (MinIO of 2021, rclone): two nodes on such a store
would overwrite each other's commits. Writes a few objects under `probe/` and deletes them; what an earlier probe that was killed
left there goes too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from stnode.clock import Env
from stnode.errors import Corrupt, NotFound, Refused, StnodeError, UnknownOutcome
from stnode.objectstore.base import Capabilities, Exists, IfMatch, Key, Mode, ObjectStore

PREFIX = "probe/"

_RACERS = 4
_LEFTOVER_AGE_NS = 3600 * 10**9
_NO_CONDITIONS = "Two nodes would overwrite each other here. Use a store that obeys If-None-Match, or store.url = file:///directory."


async def probe(store: ObjectStore, env: Env, *, single_node: bool = False) -> Capabilities:
    """Tries everything that stnode relies on. `Refused` or `Unavailable` of the store itself goes out as it is (wrong bucket, no rights,
    no answer); `Refused` too when creates are not exclusive, unless `single_node`; `Corrupt` when reads do not give what was written."""
    name = f"{env.clock.now_ns():x}-{env.random.bytes(8).hex()}"
    keys = [Key(f"{PREFIX}{name}-{part}") for part in ("a", "b", "c")]
    warnings: list[str] = []
    await _check_missing(store, keys[0])
    try:
        exclusive = await _try_create(store, keys[0], warnings) and await _try_race(store, keys[1], warnings)
        if_match = await _try_if_match(store, keys[2], warnings)
        await _check_list(store, keys[2])
    except StnodeError:
        with suppress(StnodeError):  # the first failure is the one to tell
            await _delete(store, keys)
        raise
    await _delete(store, keys)
    await _check_deleted(store, keys[2])
    await _delete_leftovers(store)
    if not exclusive and not single_node:
        raise Refused(f"this store has no conditional writes: {warnings[0]}", hint=_NO_CONDITIONS)
    return Capabilities(create_if_absent=exclusive, if_match=if_match, name="probed", warnings=tuple(warnings))


async def _check_missing(store: ObjectStore, key: Key) -> None:
    try:
        await store.get(key)
    except NotFound:
        return
    raise Corrupt(f"the store answers a read of {key}, which was never written", hint="Does the URL point to an S3 server?")


async def _try_create(store: ObjectStore, key: Key, warnings: list[str]) -> bool:
    """Two creates one after the other: the second must fail and change nothing."""
    try:
        await _settled_create(store, key, b"first")
    except Refused as error:
        await store.put(key, [b"first"])  # raises by itself when all writing is refused
        warnings.append(f"it refuses a create: {error.message}")
        return False
    await _check_content(store, key, b"first")
    try:
        await store.put(key, [b"second"], Mode.CREATE)
    except (Exists, UnknownOutcome):
        await _check_content(store, key, b"first")
        return True
    except Refused as error:
        warnings.append(f"it refuses a create: {error.message}")
        return False
    warnings.append("it accepted a create of an object that exists")
    return False


async def _settled_create(store: ObjectStore, key: Key, data: bytes) -> None:
    """A create whose unknown outcome is looked up, as the journal does."""
    try:
        await store.put(key, [data], Mode.CREATE)
    except UnknownOutcome:
        try:
            await store.get(key)
        except NotFound:
            await store.put(key, [data], Mode.CREATE)


async def _try_race(store: ObjectStore, key: Key, warnings: list[str]) -> bool:
    """Several creates at once: at most one may be told that it won, and its bytes must be there."""

    async def racer(number: int) -> bool:
        try:
            await store.put(key, [b"racer %d" % number], Mode.CREATE)
        except StnodeError:
            return False
        return True

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(racer(number)) for number in range(_RACERS)]
    winners = [number for number, task in enumerate(tasks) if task.result()]
    if len(winners) > 1:
        warnings.append(f"{len(winners)} of {_RACERS} simultaneous creates of one object were accepted")
        return False
    if winners:
        await _check_content(store, key, b"racer %d" % winners[0])
    return True


async def _try_if_match(store: ObjectStore, key: Key, warnings: list[str]) -> bool:
    """Nothing relies on it, so everything but obedience counts as not there."""
    first = await store.put(key, [b"first"])
    second = await store.put(key, [b"second"])
    try:
        await store.put(key, [b"third"], IfMatch(second.etag))
    except StnodeError:
        return False
    try:
        await store.put(key, [b"fourth"], IfMatch(first.etag))
    except Exists:
        await _check_content(store, key, b"third")
        return True
    except StnodeError:
        return False
    warnings.append("it ignores If-Match")
    return False


async def _check_content(store: ObjectStore, key: Key, expected: bytes) -> None:
    blob = await store.get(key)
    part = await store.get(key, 1, len(expected) - 2)
    if blob.data != expected or part.data != expected[1:-1] or part.meta.size_bytes != len(expected):
        raise Corrupt(f"the store gives {blob.data[:40]!r} for {key}, {expected!r} was written", hint="Do not use this store.")


async def _check_list(store: ObjectStore, key: Key) -> None:
    if key not in [meta.key async for meta in store.list(key[:-1])]:
        raise Corrupt(f"the listing does not show {key}, which was just written", hint="stnode needs a store with consistent listings.")


async def _check_deleted(store: ObjectStore, key: Key) -> None:
    try:
        await store.head(key)
    except NotFound:
        return
    raise Corrupt(f"{key} is still there after its deletion", hint="stnode needs a store that reads its own deletions.")


async def _delete_leftovers(store: ObjectStore) -> None:
    old = [meta.key async for meta in store.list(PREFIX) if meta.date_ns is not None and meta.date_ns - meta.modified_ns > _LEFTOVER_AGE_NS]
    await _delete(store, old)


async def _delete(store: ObjectStore, keys: Sequence[Key]) -> None:
    for key in keys:
        await store.delete(key)
