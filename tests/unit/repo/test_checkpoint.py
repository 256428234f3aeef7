"""Checkpoints: runs shared, deltas laid over bases, nothing trusted unread; restored states equal the ones that wrote them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Conflict, Corrupt, Internal, NotFound
from stnode.objectstore.base import Buffer, IfMatch, Key, Mode, PutResult
from stnode.objectstore.memory import MemoryStore
from stnode.repo import checkpoint, codec_run, state
from stnode.repo.codec import Body, Manifest, Stub, decode_slot, encode_manifest
from stnode.repo.election import elected
from stnode.repo.heartbeat import Heartbeat, Heartbeats
from stnode.repo.layout import manifest_key, run_key, slot_key
from stnode.repo.records import Applied
from stnode.repo.restore import load_manifest, restore
from stnode.repo.upkeep import Upkeep
from tests.support.journal import DAY_US, NODE, PHOTOS, JournalWriter, dump, new_journal, record, section
from tests.support.random_journal import RandomJournal


class Node:
    """A database that applies what the journal's writer commits, and writes checkpoints."""

    def __init__(self, db: Database, writer: JournalWriter, objects: MemoryStore, env: Env) -> None:
        self.db = db
        self.writer = writer
        self.objects = objects
        self.env = env

    async def commit(self, body: Body) -> str | None:
        slot = await self.writer.commit(body)
        return (await self.db.write(lambda conn: state.apply(conn, slot, self.writer.sha, body))).void

    async def checkpoint(self, *, full: bool = False) -> Manifest:
        manifest = await checkpoint.write_manifest(self.objects, self.db, self.env, NODE, self.writer.clock.now_us, full=full)
        assert manifest is not None
        return manifest

    async def same_when_loaded(self, manifest: Manifest) -> None:
        await checkpoint.verify(self.objects, self.env, manifest)
        other = Database(None, inline=True)
        await state.prepare(other)
        await load_manifest(self.objects, other, self.env, manifest)
        assert await other.run(dump) == await self.db.run(dump)
        assert await other.run(state.state_hash) == manifest.state_hash == await self.db.run(state.state_hash)
        await other.close()


def small_runs(patch: pytest.MonkeyPatch) -> None:
    """Small limits, so that small states make many runs."""
    patch.setattr(codec_run, "FRAME_BYTES", 1000)
    patch.setattr(checkpoint, "BASE_RUN_BYTES", 2000)
    patch.setattr(checkpoint, "DELTA_RUN_BYTES", 1000)
    patch.setattr(checkpoint, "SMALL_BASE_BYTES", 500)
    patch.setattr(checkpoint, "_CHUNK", 7)


@pytest.fixture
async def node(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    small_runs(monkeypatch)
    db = Database(None, inline=True)
    await state.prepare(db)
    writer, objects, env = new_journal()
    node = Node(db, writer, objects, env)
    await node.commit(Body(folders=(PHOTOS,)))
    yield node
    await db.close()


def many(first: int, last: int, version: int = 1) -> Body:
    return Body(sections=(section(*(record(f"name {number:04d}", version) for number in range(first, last))),))


async def test_unchanged_runs_are_shared_and_deltas_become_bases(node: Node) -> None:
    await node.commit(many(0, 400))
    first = await node.checkpoint()
    assert len(first.groups[1].base) > 5
    assert first.groups[1].deltas == ()
    await node.same_when_loaded(first)
    assert await checkpoint.write_manifest(node.objects, node.db, node.env, NODE, 0) is None

    await node.commit(many(200, 203, 2))
    second = await node.checkpoint()
    assert second.groups[0] == first.groups[0]
    assert second.groups[1].base[:-1] == first.groups[1].base[:-1]
    assert sum(run.entries for run in second.groups[1].deltas) >= 3
    await node.same_when_loaded(second)

    await node.commit(many(200, 240, 3))
    third = await node.checkpoint()
    kept = set(third.groups[1].base) & set(second.groups[1].base)
    assert 0 < len(kept) < len(second.groups[1].base)
    await node.same_when_loaded(third)

    await node.commit(Body(sections=(section(history_dropped_before_us=node.writer.clock.now_us),)))
    fourth = await node.checkpoint()
    await node.same_when_loaded(fourth)
    await node.same_when_loaded(replace(fourth, groups=fourth.groups))


async def test_removed_entries_stay_removed(node: Node) -> None:
    await node.commit(Body(sections=(section(*(record(f"n{number:03d}", deleted=number % 2 == 0) for number in range(100))),)))
    await node.checkpoint()
    await node.commit(Body(sections=(section(record("n001", 2), tombstones_dropped_below=node.writer.clock.now_us + 2),)))
    second = await node.checkpoint()
    await node.same_when_loaded(second)
    await node.commit(Body(folders_removed=(PHOTOS.fkey,)))
    third = await node.checkpoint()
    assert [group.number for group in third.groups] == [0]
    await node.same_when_loaded(third)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
async def test_random_states_survive_checkpoint_and_restore(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_runs(monkeypatch)
    db = Database(None, inline=True)
    await state.prepare(db)
    writer, objects, env = new_journal(str(seed))
    node, bodies = Node(db, writer, objects, env), RandomJournal(writer, seed)
    for number in range(1, 91):
        await node.commit(bodies.body())
        if number % 15 == 7:
            await node.same_when_loaded(await node.checkpoint())
    expected, digest = await db.run(dump), await db.run(state.state_hash)

    async def restored() -> tuple[int | None, int]:
        other = Database(None, inline=True)
        report = await restore(objects, other, env)
        assert report.head == 90
        assert await other.run(dump) == expected
        assert await other.run(state.state_hash) == digest
        await other.close()
        return report.restored_from_manifest, report.slots_replayed

    assert await restored() == (82, 8)
    for number in (82, 67):
        await objects.delete(manifest_key(number))
    assert await restored() == (52, 38)
    for number in (52, 37, 22, 7):
        await objects.delete(manifest_key(number))
    assert await restored() == (None, 90)
    await db.close()


async def test_a_restored_node_goes_on_with_deltas(node: Node) -> None:
    await node.commit(many(0, 400))
    first = await node.checkpoint()
    other = Database(None, inline=True)
    await restore(node.objects, other, node.env)
    node.db, gone = other, node.db
    await gone.close()
    await node.commit(many(100, 101, 2))
    second = await node.checkpoint()
    assert set(second.groups[1].base) & set(first.groups[1].base)
    await node.same_when_loaded(second)


async def test_a_node_that_does_not_know_what_changed_writes_all(node: Node) -> None:
    await node.commit(many(0, 50))
    await node.checkpoint()
    await node.commit(many(50, 60))
    await node.db.write(lambda conn: conn.execute("UPDATE state SET dirty_from = number"))
    second = await node.checkpoint()
    assert all(run.number == second.number for _, run in second.runs())
    await node.commit(many(60, 61))
    assert all(run.number == node.writer.number for _, run in (await node.checkpoint(full=True)).runs())


async def test_the_first_manifest_of_a_number_counts(node: Node) -> None:
    """R5a: two writers at the same commit."""
    await node.commit(many(0, 5))
    other = Database(None, inline=True)
    await restore(node.objects, other, node.env)
    slow = Racing(node.objects, node)
    theirs = await checkpoint.write_manifest(slow, other, node.env, bytes(32), node.writer.clock.now_us)
    assert theirs == slow.first
    await node.commit(many(5, 6))
    await other.close()


class Racing(MemoryStore):
    """Lets another node write the same manifest just before this one does."""

    def __init__(self, objects: MemoryStore, node: Node) -> None:
        self.__dict__.update(objects.__dict__)
        self._node: Node | None = node
        self.first: Manifest | None = None

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        if key.startswith("checkpoint/") and self._node is not None:
            node, self._node = self._node, None
            self.first = await node.checkpoint()
        return await super().put(key, data, mode)


async def test_nodes_compare_their_states(node: Node) -> None:
    await node.commit(many(0, 5))
    manifest = await node.checkpoint()
    number = manifest.number
    await node.commit(many(5, 6))
    assert await checkpoint.compare(node.objects, node.db, number)
    await node.objects.put(manifest_key(number), [encode_manifest(replace(manifest, state_hash=bytes(16)))])
    with pytest.raises(Corrupt, match=f"commit {number} differs"):
        await checkpoint.compare(node.objects, node.db, number)
    with pytest.raises(Corrupt, match="differs"):
        await node.checkpoint()
    await node.db.write(lambda conn: conn.execute("DELETE FROM hashes"))
    assert not await checkpoint.compare(node.objects, node.db, number)


async def test_runs_that_may_be_gone_are_not_named(node: Node) -> None:
    """R5b: a slow writer's runs fall below the horizon, or are condemned, before the manifest is written."""
    await node.commit(many(0, 50))
    first = await node.checkpoint()
    await node.commit(many(50, 51))
    await node.commit(Body(objects_condemned=(run_key(first.groups[1].base[0].id),)))
    with pytest.raises(Conflict, match="condemned"):
        await node.checkpoint()
    now_us = node.writer.clock.now_us
    node.writer.clock.now_us += 3 * DAY_US
    await node.commit(Body(horizon_us=now_us + DAY_US))
    with pytest.raises(Conflict, match="horizon"):
        await checkpoint.write_manifest(node.objects, node.db, node.env, NODE, now_us, full=True)


async def test_due_by_commits_or_bytes(node: Node) -> None:
    assert not await node.db.run(checkpoint.due)
    await node.db.write(lambda conn: conn.execute("UPDATE state SET bytes = ?", (checkpoint.BYTES_PER_CHECKPOINT,)))
    assert await node.db.run(checkpoint.due)
    await node.checkpoint()
    assert not await node.db.run(checkpoint.due)
    await node.db.write(lambda conn: conn.execute("UPDATE state SET dirty_from = number - 1000"))
    assert await node.db.run(checkpoint.due)


async def test_only_what_a_verified_manifest_covers_is_truncated(node: Node) -> None:
    async def truncate() -> int:
        return await checkpoint.truncate(node.objects, node.db, node.env, node.writer.clock.now_us)

    async def stubs() -> list[int]:
        found = []
        for number in range(1, node.writer.number + 1):
            key = slot_key(number)
            if isinstance(decode_slot((await node.objects.get(key)).data, key), Stub):
                found.append(number)
        return found

    for number in range(3):
        await node.commit(many(number, number + 1))
    first = await node.checkpoint()
    node.writer.clock.now_us += 2 * DAY_US
    assert await truncate() == 0
    for number in range(3, 6):
        await node.commit(many(number, number + 1))
    second = await node.checkpoint()

    run = first.groups[1].base[0]
    whole = (await node.objects.get(run_key(run.id))).data
    await node.objects.put(run_key(run.id), [whole[:-1]])
    with pytest.raises(Corrupt, match="not the object"):
        await truncate()
    await node.objects.delete(run_key(run.id))
    with pytest.raises(NotFound):
        await truncate()
    assert await stubs() == []

    await node.objects.put(run_key(run.id), [whole])
    assert await truncate() == 4
    assert await stubs() == [1, 2, 3, 4]
    assert await truncate() == 0
    await node.commit(many(8, 9))
    await node.checkpoint()
    assert await truncate() == 0  # slots of the second manifest are too young
    node.writer.clock.now_us += DAY_US + 1_000_000
    assert await truncate() == second.number - first.number
    other = Database(None, inline=True)
    assert (await restore(node.objects, other, node.env)).slots_replayed == 0
    await other.close()


async def test_a_checkpoint_shows_one_moment_of_a_database_in_a_file(tmp_path: Path) -> None:
    """Commits go on while the runs are written."""
    db = Database(tmp_path / "state.db")
    await state.prepare(db)
    writer, objects, env = new_journal()
    node = Node(db, writer, objects, env)
    await node.commit(Body(folders=(PHOTOS,)))
    await node.commit(many(0, 300))
    expected = await db.run(state.state_hash)

    class Interrupting(MemoryStore):
        async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
            if key.startswith("runs/"):
                await node.commit(many(0, 10, writer.number))
            return await super().put(key, data, mode)

    wrapped = Interrupting(env)
    wrapped.__dict__.update(objects.__dict__)
    manifest = await checkpoint.write_manifest(wrapped, db, env, NODE, writer.clock.now_us)
    assert manifest is not None
    assert manifest.number == 2
    assert manifest.state_hash == expected
    assert writer.number > 2
    await checkpoint.verify(objects, env, manifest)
    await node.same_when_loaded(await node.checkpoint())
    await db.close()


async def test_one_node_is_elected_and_the_others_know_their_turn(node: Node) -> None:
    """Each finds it alone, by the fresh heartbeats; one that has none yet counts itself."""
    nodes = [bytes([number]) * 32 for number in range(3)]
    heartbeats = Heartbeats(node.objects, node.env, lambda: node.writer.clock.now_us)
    for each in nodes[:2]:
        await heartbeats.write(Heartbeat(each, 1))

    async def turns() -> list[int]:
        kept = [Upkeep(node.objects, node.db, node.env, each, lambda: node.writer.clock.now_us, heartbeats) for each in nodes]
        return [await upkeep._turn() for upkeep in kept]

    assert sorted((await turns())[:2]) == [0, 1]
    await heartbeats.write(Heartbeat(nodes[2], 1))
    assert sorted(await turns()) == [0, 1, 2]
    assert (await turns()).index(0) == nodes.index(elected("checkpoint", nodes))
    node.writer.clock.now_us += 11 * 60 * 1_000_000 + 1
    assert await turns() == [0, 0, 0]


@pytest.mark.expects_log("checkpoints ended by a bug")
async def test_a_bug_that_ends_checkpoints_is_noted(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost by it, but the status must say so."""

    def due(_: object) -> bool:
        raise Internal("two and two are five")

    monkeypatch.setattr(checkpoint, "due", due)
    heartbeats = Heartbeats(node.objects, node.env, lambda: node.writer.clock.now_us)
    upkeep = Upkeep(node.objects, node.db, node.env, NODE, lambda: node.writer.clock.now_us, heartbeats)
    upkeep.start()
    upkeep.applied(Applied(1, own=True))
    async with asyncio.timeout(10):
        while upkeep.trouble is None:
            await asyncio.sleep(0)
    assert "two and two are five" in upkeep.trouble.message
    await upkeep.close()
