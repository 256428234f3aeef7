"""Those of the scenarios R16 to R29 that stores alone can show. Where each of the others is tested: docs/testing.md."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import pytest

from stnode.objectstore.base import Buffer, IfMatch, Key, Mode, PutResult
from stnode.protocol import fileinfo
from stnode.protocol.pb import bep_pb2
from stnode.repo import checkpoint, layout, state
from stnode.repo.codec import Body, Section
from stnode.repo.heartbeat import Heartbeat
from stnode.repo.records import Draft
from stnode.repo.store import SettingsChange, new_folder
from tests.sim.test_scenarios import fill, losing_version_kept, simulated
from tests.sim.world import BLOCK, World

pytestmark = pytest.mark.expects_log("the journal cannot go on")


async def r18_many_folders(world: World) -> None:
    """What an idle node asks of the store does not depend on how many folders it has."""
    asked = []
    a, _ = await world.two()
    for folders in (0, 60):
        await a.store.submit_settings(SettingsChange(folders=tuple(new_folder(a.env.random, f"{number}") for number in range(folders))))
        await asyncio.sleep(120)
        before = a.gate.requests
        await asyncio.sleep(3600)
        asked.append(a.gate.requests - before)
    assert abs(asked[0] - asked[1]) <= 20, asked
    assert asked[1] < 300, "about one GET each 15 seconds"
    await world.check()


async def r19_hashes_once(world: World) -> None:
    """A file of many blocks is one extent in the journal: its hashes lie in its pack's list and nowhere else."""
    a, b = await world.two()
    parts = [bytes([number]) * BLOCK for number in range(48)]
    handle = await a.pack(*parts)
    info = world.file_info("large", b"".join(parts), ((1, 1),))
    await a.put(Draft(1, info, ((handle, 0, 48),)))
    slot = world.bucket.objects[layout.slot_key(a.store.status().journal.number)]
    assert len(slot.data) < 600 < len(info.block_hashes)
    await b.store.follow_to_head()
    assert await b.read(b.names()["large"]) == b"".join(parts)
    await world.check()


async def r20_one_checkpoint(world: World) -> None:
    """When a checkpoint becomes due one node writes it, the others compare their state with it, and a node far behind takes it instead
    of the slots."""
    with mock.patch.object(checkpoint, "COMMITS_PER_CHECKPOINT", 20), mock.patch("stnode.repo.follower.FAR_BEHIND", 10):
        a, b = await world.two()
        c = await world.node()
        c.crash()
        for node in (a, b):
            await node.store.heartbeats.write(Heartbeat(node.device, 1))
        await asyncio.gather(fill(a, 15), fill(b, 15, "y"))
        await asyncio.sleep(1800)
        manifests = [key for key in world.bucket.objects if key.startswith(layout.checkpoint_prefix())]
        assert len(manifests) == 1, manifests
        assert a.store.status().checkpoints + b.store.status().checkpoints == 1
        assert not a.store.status().checkpoint_trouble
        assert not b.store.status().checkpoint_trouble
        await c.start(keep_cache=True)
        assert any("n2.2 get checkpoint/" in line for line in world.trace), "the manifest, not thirty slots"
        await world.check()


async def r24_sent_twice(world: World) -> None:
    """An HTTP client that sends a PUT a second time by itself: the 412 is the answer to the node's own win."""
    a, b = await world.two()
    doubled = []
    put = a.gate.inner.put

    async def twice(key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        if key.startswith("journal/"):
            doubled.append(key)
            await put(key, data, mode)
        return await put(key, data, mode)

    with mock.patch.object(a.gate.inner, "put", twice):
        for number in range(3):
            await asyncio.gather(a.put(await a.local("f", f"{number}")), b.put(await b.local(f"g{number}", "other")))
    assert len(doubled) >= 3
    assert len(a.old_versions()) == 2, "each version once"
    await world.check()


async def r26_what_a_record_keeps(world: World) -> None:
    """Fields of a FileInfo that this version does not know travel through the journal, a checkpoint and a restore."""
    a, b = await world.two()
    plain = await a.file("f", "f", ((1, 1),))
    unknown = b"\xc2\x3e\x05later"  # field 1000, five bytes
    message = bep_pb2.FileInfo.FromString(plain.info.wire + unknown)
    info = replace(plain.info, wire=message.SerializeToString(deterministic=True))
    await a.put(replace(plain, info=info))
    await world.checkpoint(a)
    await b.store.follow_to_head()
    c = await world.node()
    for node in (a, b, c):
        record = node.record("f")
        assert record is not None
        assert unknown in record.info.wire
        assert unknown in fileinfo.encode(record.info.wire, record.sequence, record.info.size, record.info.block_size, b"")
    await world.check()


async def r27_tombstones(world: World) -> None:
    """Deleted records end by a commit, for all nodes at once, and a node that missed it learns it like any other commit."""
    a, b = await world.two()
    await fill(a, 2)
    await a.put(await a.file("gone", "x", ((1, 1),)))
    base = a.names()["gone"].info
    deletion = fileinfo.deletion(base, version=(), modified_by=1, modified_s=9)
    await a.put(Draft(1, deletion, (), local=True, base=base.version))
    assert a.names()["gone"].info.deleted
    [folder] = state.folders(a.db._connect())
    world.forget()
    await a.store.submit_entries(
        lambda _conn, _packs: Body(sections=(Section(folder.fkey, tombstones_dropped_below=folder.last_sequence + 1),))
    )
    await b.store.follow_to_head()
    for node in (a, b):
        assert node.names().keys() == {"x0", "x1"}
    await world.check()


async def r29_read_your_writes(world: World) -> None:
    """What one node has acknowledged another one has after it followed the journal once: what a lookup that misses asks for."""
    a, b = await world.two()
    await asyncio.sleep(300)
    await a.put(await a.local("f", "f"))
    requests = b.gate.requests
    await b.store.follow_to_head()
    assert "f" in b.names()
    assert b.gate.requests - requests <= 8
    await world.check()


test_r18_many_folders_cost_nothing_when_idle = simulated(r18_many_folders, seeds=1)
test_r19_hashes_are_stored_once = simulated(r19_hashes_once, seeds=1)
test_r20_one_node_writes_the_checkpoint = simulated(r20_one_checkpoint, seeds=2)
test_r24_a_put_that_is_sent_twice = simulated(r24_sent_twice)
test_r26_unknown_fields_are_kept = simulated(r26_what_a_record_keeps, seeds=1)
test_r27_tombstones_end_by_a_commit = simulated(r27_tombstones, seeds=2)
test_r28_a_losing_version_that_is_announced = simulated(losing_version_kept, seeds=2)
test_r29_what_another_node_has_acknowledged = simulated(r29_read_your_writes, seeds=2)
