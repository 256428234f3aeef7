"""Restoring: which manifest, which slots, and what is refused (R1, R4, R5, R14)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import pytest

from stnode.db import Database
from stnode.errors import Corrupt, NotFound, Refused
from stnode.objectstore.base import Blob, Key
from stnode.objectstore.memory import MemoryStore
from stnode.repo import checkpoint, state
from stnode.repo.codec import Body, BodyRef, Manifest, decode_manifest, encode_manifest, encode_stub
from stnode.repo.layout import body_key, journal_prefix, manifest_key, mint, run_key, slot_key
from stnode.repo.restore import RestoreReport, read_manifest, restore
from tests.support.journal import DAY_US, NODE, PHOTOS, JournalWriter, dump, new_journal, record, section


class World:
    """A journal of ten commits with manifests at 3 and 6, and a fresh database."""

    def __init__(self, writer: JournalWriter, objects: MemoryStore, db: Database, source: Database) -> None:
        self.writer = writer
        self.objects = objects
        self.db = db
        self.source = source

    async def restore(self, objects: MemoryStore | None = None) -> RestoreReport:
        return await restore(objects or self.objects, self.db, self.writer.env)

    async def apply(self, body: Body, *, stored: bool = False) -> None:
        slot = await self.writer.commit(body, stored=stored)
        await self.source.write(lambda conn: state.apply(conn, slot, self.writer.sha, body))

    async def manifest(self) -> Manifest:
        manifest = await checkpoint.write_manifest(self.objects, self.source, self.writer.env, NODE, self.writer.clock.now_us)
        assert manifest is not None
        return manifest


def body(number: int) -> Body:
    return Body(sections=(section(record(f"file {number % 7}", number), record(f"new {number}")),))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    writer, objects, env = new_journal()
    del env
    world = World(writer, objects, Database(None, inline=True), Database(None, inline=True))
    await state.prepare(world.source)
    await world.apply(Body(folders=(PHOTOS,)))
    for number in range(2, 11):
        await world.apply(body(number), stored=number % 2 == 0)
        if number in (3, 6):
            await world.manifest()
    yield world
    await world.db.close()
    await world.source.close()


async def test_from_the_newest_manifest(world: World) -> None:
    assert await world.restore() == RestoreReport(10, 6, 4)
    assert await world.db.run(dump) == await world.source.run(dump)
    assert await world.restore() == RestoreReport(10, 6, 4)
    assert await world.db.run(dump) == await world.source.run(dump)


async def test_an_empty_store_is_the_state_before_the_first_commit(world: World) -> None:
    await world.restore()
    assert await world.restore(MemoryStore(world.writer.env)) == RestoreReport(0, None, 0)
    head = await world.db.run(state.head)
    assert (head.number, head.slot_sha, head.complete) == (0, bytes(32), True)


@pytest.mark.expects_log("a manifest is not whole")
async def test_a_manifest_that_misses_a_run_is_passed_over(world: World) -> None:
    newest = await world.manifest()
    assert newest.number == 10
    await world.objects.delete(run_key(newest.groups[1].base[0].id))
    assert await world.restore() == RestoreReport(10, 6, 4)
    await world.objects.put(manifest_key(6), [b"torn"])
    assert await world.restore() == RestoreReport(10, 3, 7)
    assert await world.db.run(dump) == await world.source.run(dump)


@pytest.mark.expects_log("a manifest is not whole")
async def test_wrong_runs_are_not_believed(world: World) -> None:
    """R5d: every checksum is right, the state hash is not."""
    key = manifest_key(6)
    manifest = decode_manifest((await world.objects.get(key)).data, key)
    await world.objects.put(key, [encode_manifest(replace(manifest, groups=manifest.groups[:1]))])
    assert await world.restore() == RestoreReport(10, 3, 7)


async def test_a_stub_behind_the_manifest_means_a_newer_one(world: World) -> None:
    """R1b: another node truncates between the manifest and the tail."""

    class Truncating(MemoryStore):
        done = False

        async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
            if key == slot_key(7) and not self.done:
                Truncating.done = True
                await world.manifest()
                for number in range(1, 9):
                    await world.objects.put(slot_key(number), [encode_stub(number)])
            return await super().get(key, start, length)

    objects = Truncating(world.writer.env)
    objects.__dict__.update(world.objects.__dict__)
    assert await world.restore(objects) == RestoreReport(10, 10, 0)
    assert await world.db.run(dump) == await world.source.run(dump)


async def test_a_stub_that_no_manifest_covers(world: World) -> None:
    await world.objects.put(slot_key(9), [encode_stub(9)])
    with pytest.raises(Corrupt, match="slot 9 is truncated, but the newest whole manifest is 6"):
        await world.restore()
    await world.objects.delete(manifest_key(6))
    await world.objects.delete(manifest_key(3))
    with pytest.raises(Corrupt, match="there is no whole manifest"):
        await world.restore()


async def test_a_gap_says_what_helps(world: World) -> None:
    """R4a: a hole in the journal; nothing is built on the part before it."""
    await world.objects.delete(slot_key(8))
    with pytest.raises(Corrupt, match="commit 8 is missing, 9 is there") as caught:
        await world.restore()
    assert "backup" in caught.value.hint


async def test_a_foreign_predecessor_says_what_helps(world: World) -> None:
    await world.objects.put(slot_key(9), [(await world.objects.get(slot_key(10))).data])
    with pytest.raises(Corrupt, match="000009 does not follow commit 8") as caught:
        await world.restore()
    assert "backup" in caught.value.hint


async def test_damage_below_a_manifest_is_stepped_over_above_it_is_named(world: World) -> None:
    """R14."""
    await world.objects.put(slot_key(5), [b"damaged"])
    assert await world.restore() == RestoreReport(10, 6, 4)
    await world.objects.put(slot_key(9), [b"damaged"])
    with pytest.raises(Corrupt, match="000009 is damaged"):
        await world.restore()
    await world.manifest()
    assert await world.restore() == RestoreReport(10, 10, 0)


async def test_bodies_that_are_gone_or_changed(world: World) -> None:
    slot = world.writer.commits[7][0]
    assert slot.stored is not None
    key = body_key(slot.stored.id)
    await world.objects.put(key, [b"other"])
    with pytest.raises(Corrupt, match="not the body that slot 8 names"):
        await world.restore()
    await world.objects.delete(key)
    with pytest.raises(Corrupt, match="body of commit 8 is missing") as caught:
        await world.restore()
    assert "applied it" in caught.value.hint


async def test_a_void_commits_body_may_be_collected(world: World) -> None:
    """Its slot says that it was minted below the horizon; nobody needs the body to know that it is void."""
    now_us = world.writer.clock.now_us
    await world.apply(Body(horizon_us=now_us - DAY_US))
    ref = BodyRef(mint(now_us - 2 * DAY_US, world.writer.env.random), 1, bytes(32))
    slot = await world.writer.commit(Body(), body_ref=ref)
    assert slot.number == 12
    await world.writer.commit(body(13))
    assert await world.restore() == RestoreReport(13, 6, 7)
    assert set(await world.db.run(partial(state.get_records, fid=1, names=["new 12", "new 13"]))) == {"new 13"}


async def test_a_newer_versions_store_is_refused(world: World) -> None:
    await world.apply(Body())
    slot = await world.writer.commit(Body(), features=("teleport",))
    with pytest.raises(Refused, match="teleport"):
        await world.restore()
    assert slot.number == 12


async def test_commits_made_meanwhile_are_taken_too(world: World) -> None:
    one_at_a_time = asyncio.Lock()

    class Growing(MemoryStore):
        left = 40

        async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
            if key.startswith(journal_prefix()) and self.left:
                Growing.left -= 1
                async with one_at_a_time:
                    await world.apply(body(world.writer.number + 1))
            return await super().get(key, start, length)

    objects = Growing(world.writer.env)
    objects.__dict__.update(world.objects.__dict__)
    report = await world.restore(objects)
    assert report.head == world.writer.number
    assert await world.db.run(dump) == await world.source.run(dump)


async def test_an_interrupted_restore_is_seen(world: World) -> None:
    class Failing(MemoryStore):
        async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
            if key.startswith("runs/"):
                raise ConnectionError
            return await super().get(key, start, length)

    objects = Failing(world.writer.env)
    objects.__dict__.update(world.objects.__dict__)
    with pytest.raises(ConnectionError):
        await world.restore(objects)
    assert not (await world.db.run(state.head)).complete
    assert await world.restore() == RestoreReport(10, 6, 4)
    indexes = await world.db.run(lambda conn: conn.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'index'").fetchone()[0])
    assert indexes == await world.source.run(
        lambda conn: conn.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'index'").fetchone()[0]
    )


async def test_missing_objects_are_not_found(world: World) -> None:
    with pytest.raises(NotFound):
        await read_manifest(world.objects, 5)
    await world.objects.put(manifest_key(7), [(await world.objects.get(manifest_key(6))).data])
    with pytest.raises(Corrupt, match="is the manifest of commit 6"):
        await read_manifest(world.objects, 7)
