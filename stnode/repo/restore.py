"""Restoring the state from the store: the newest manifest whose runs are all there, then the commits after it (R1, R4, R5, R14).

A restore never takes a truncated tail for the head: a stub means a newer manifest exists, so it starts over; an absent slot is the
head only if no slot lies beyond it. It trusts no manifest unread: the state hash must come out of its runs.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from sqlite3 import Connection
from typing import Final

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Corrupt, NotFound
from stnode.objectstore.base import ObjectStore
from stnode.repo import parameters, state
from stnode.repo.codec_body import Body, decode_body
from stnode.repo.codec_manifest import Manifest, decode_manifest
from stnode.repo.codec_slot import Slot, Stub, content, decode_slot, slot_sha
from stnode.repo.container import PUT_BACK, STEP_OVER
from stnode.repo.layout import MAIN_JOURNAL, body_key, checkpoint_prefix, journal_prefix, manifest_key, slot_key, slot_number
from stnode.repo.runs import read_group
from stnode.repo.state_load import Loader
from stnode.telemetry import get_logger

SLOTS_AHEAD: Final = 16
ATTEMPTS: Final = 5
"""Restores begun before giving up, each because slots were truncated behind the manifest just loaded."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """`head` is the number of the last commit; `restored_from_manifest` that of the manifest used, None when there was none;
    `slots_replayed` how many commits came after it."""

    head: int
    restored_from_manifest: int | None
    slots_replayed: int


async def restore(objects: ObjectStore, db: Database, env: Env, journal: str = MAIN_JOURNAL) -> RestoreReport:
    """Drops the state in `db` and rebuilds it from the store, up to the head of the journal.

    Raises Corrupt for a gap or a damaged slot that no manifest steps over (the hint says what the user does), Refused
    for a store written by a newer version, Unavailable. After an error the state is incomplete or an earlier one; call it again.
    """
    await state.prepare(db)
    with suppress(NotFound):  # which commits are void depends on them; without the file what is known holds
        await state.prepare(db, await parameters.read(objects))
    stubs: list[int] = []
    for _ in range(ATTEMPTS):
        manifest = await _load_newest(objects, db, env, journal, stubs[-1] if stubs else 0)
        replayed, stub = await _replay(objects, db, journal)
        if stub is None:
            at = await db.run(state.head)
            return RestoreReport(at.number, manifest, replayed)
        stubs.append(stub)
    raise Corrupt(f"slot {stubs[-1]} is truncated, but no manifest covers it", hint="run `stnode bucket check`")


# ---- manifests -----------------------------------------------------------------------------------------------------


async def manifest_numbers(objects: ObjectStore, journal: str = MAIN_JOURNAL) -> list[int]:
    """Numbers of all manifests in the store, newest first."""
    numbers = [slot_number(meta.key) async for meta in objects.list(checkpoint_prefix(journal))]
    return sorted((number for number in numbers if number), reverse=True)


async def read_manifest(objects: ObjectStore, number: int, journal: str = MAIN_JOURNAL) -> Manifest:
    """One manifest. Raises NotFound, Corrupt, Refused."""
    key = manifest_key(number, journal)
    manifest = decode_manifest((await objects.get(key)).data, key)
    if manifest.number != number:
        raise Corrupt(f"{key} is the manifest of commit {manifest.number}", hint="run `stnode bucket check`")
    return manifest


async def _load_newest(objects: ObjectStore, db: Database, env: Env, journal: str, at_least: int) -> int | None:
    """Loads the newest whole manifest; its number. Without any the state is that before the first commit."""
    failures = []
    for number in await manifest_numbers(objects, journal):
        try:
            manifest = await read_manifest(objects, number, journal)
            await load_manifest(objects, db, env, manifest)
        except (Corrupt, NotFound) as exc:
            failures.append(exc.message)
            _log.warning("a manifest is not whole, the one before is tried", manifest=number, why=exc.message)
            continue
        if number < at_least:
            raise Corrupt(f"slot {at_least} is truncated, but the newest whole manifest is {number}", hint="run `stnode bucket check`")
        return number
    if at_least:
        why = f" ({'; '.join(failures)})" if failures else ""
        raise Corrupt(f"slot {at_least} is truncated, but there is no whole manifest{why}", hint="run `stnode bucket check`")
    loader = Loader()

    def empty(conn: Connection) -> None:
        loader.begin(conn)
        conn.execute("UPDATE state SET complete = 1")

    await db.write(empty)
    return None


async def load_manifest(objects: ObjectStore, db: Database, env: Env, manifest: Manifest) -> None:
    """Replaces the state in `db` by a manifest's. Raises NotFound for a missing run, Corrupt for a wrong one; the state is incomplete then."""
    loader = Loader()

    def begin(conn: Connection) -> None:
        loader.begin(conn)
        loader.drop_indexes(conn)

    await db.write(begin)
    try:
        for group in manifest.groups:
            async for batch in read_group(objects, env, group):
                await db.write(partial(loader.load, group=group.number, batch=batch))
        await db.write(lambda conn: loader.finish(conn, manifest))
    except BaseException:
        await db.write(loader.abandon)
        raise


# ---- the tail ------------------------------------------------------------------------------------------------------


async def _replay(objects: ObjectStore, db: Database, journal: str) -> tuple[int, int | None]:
    """Applies the slots after the state's head; (how many, number of a stub that was met or None)."""
    replayed = 0
    at = await db.run(state.head)
    while True:
        numbers = range(at.number + 1, at.number + 1 + SLOTS_AHEAD)
        datas = await asyncio.gather(*(_get(objects, number, journal) for number in numbers))
        commits: list[tuple[Slot, bytes, Body | None]] = []
        for number, data in zip(numbers, datas, strict=True):
            if data is None:
                break
            key = slot_key(number, journal)
            slot = decode_slot(data, key)
            if isinstance(slot, Stub):
                return replayed, number
            prev = commits[-1][1] if commits else at.slot_sha
            if slot.number != number or slot.prev != prev:
                raise Corrupt(f"{key} does not follow commit {number - 1}", hint=PUT_BACK)
            body = await read_content(objects, slot)
            if body is None and commits:
                break  # judged on the state before it, in the next round
            if body is None and await db.run(partial(state.check_slot, slot=slot)) is None:
                again = await _get(objects, number, journal)
                if again is not None and isinstance(decode_slot(again, key), Stub):
                    return replayed, number
                raise Corrupt(f"the body of commit {number} is missing", hint=STEP_OVER)
            commits.append((slot, slot_sha(data), body))
        if commits:
            at = await db.write(partial(_apply, commits=commits))
            replayed += len(commits)
        if len(commits) < SLOTS_AHEAD and not await _beyond(objects, at.number, journal):
            return replayed, None


def _apply(conn: Connection, commits: list[tuple[Slot, bytes, Body | None]]) -> state.Head:
    for slot, sha, body in commits:
        state.apply(conn, slot, sha, body)
    return state.head(conn)


async def _get(objects: ObjectStore, number: int, journal: str) -> bytes | None:
    try:
        return (await objects.get(slot_key(number, journal))).data
    except NotFound:
        return None


async def read_content(objects: ObjectStore, slot: Slot) -> Body | None:
    """What a slot changes; None when its stored body is gone. Raises Corrupt when the body is not the one that it names."""
    if slot.stored is None:
        return content(slot, None)
    key = body_key(slot.stored.id)
    try:
        data = (await objects.get(key)).data
    except NotFound:
        return None
    if hashlib.sha256(data).digest() != slot.stored.sha256:
        raise Corrupt(f"{key} is not the body that slot {slot.number} names", hint=STEP_OVER)
    return content(slot, decode_body(data, key))


async def _beyond(objects: ObjectStore, number: int, journal: str) -> bool:
    """Whether slots follow commit `number`, which seemed to be the head. Raises Corrupt when the next one is missing among them."""
    async for meta in objects.list(journal_prefix(journal), start_after=slot_key(number, journal)):
        found = slot_number(meta.key)
        if found is not None and found > number:
            if found == number + 1 or await _get(objects, number + 1, journal) is not None:
                return True
            raise Corrupt(f"commit {number + 1} is missing, {found} is there", hint=STEP_OVER)
    return False
