"""Collection of garbage in the simulated world: what goes, when, and what may never go (design 3 and 7; R2, R3, R5, R9, R10, R12, R27)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from stnode.db import Database
from stnode.errors import Archived, Corrupt, NotFound, Refused, StnodeError
from stnode.protocol.fileinfo import FileInfo
from stnode.repo import collect as collecting
from stnode.repo import collect_absence, history, layout, state
from stnode.repo.collect_entries import NothingDue, expire
from stnode.repo.collect_marks import Marks
from stnode.repo.collectreport import GcReport
from stnode.repo.parameters import Collection
from stnode.repo.records import Draft, Status
from stnode.repo.restore import read_manifest, restore
from stnode.repo.settings import DeviceSettings
from stnode.repo.store import SettingsChange
from tests.sim.loop import run
from tests.sim.world import SimNode, World, content_hash, file_info, removed

AGE_S = 600
"""Orphan age and grace of these stores: nodes that poll would make days of simulated time slow."""
HOUR_S = AGE_S / 24
DAY_S = float(AGE_S)
Scenario = Callable[[World], Coroutine[Any, Any, None]]


pytestmark = pytest.mark.expects_log(r"the state is restored|garbage cannot be collected|upload is gone|cannot be repacked")


def simulated(scenario: Scenario, *, seeds: int = 2) -> Callable[[], None]:
    """A test that runs the scenario for a few seeds, the odd ones on an encrypted store."""

    def test() -> None:
        for seed in range(seeds):
            world = World(seed, encrypted=seed % 2 == 1)
            try:
                run(scenario(world))
            finally:
                world.close()

    test.__doc__ = scenario.__doc__
    return test


async def collect(node: SimNode) -> GcReport:
    """One pass of a node, at the head."""
    return await node.store.collector.collect(insist=True)


async def forgetful(world: World) -> tuple[SimNode, SimNode]:
    """Two nodes and a folder that keeps no history."""
    a, b = await world.two(Collection(AGE_S, AGE_S))
    [folder] = state.folders(a.db._connect())
    await a.store.submit_settings(SettingsChange(folders=(replace(folder.settings, history="0", history_floor="0s"),)))
    return a, b


async def packed(node: SimNode, *names: str) -> int:
    """Files of one block each, all in one pack; its number."""
    handle = await node.pack(*(name.encode() for name in names))
    await node.put(*(Draft(1, file_info(name, name, ((1, 1),)), ((handle, place, 1),)) for place, name in enumerate(names)))
    number = node.store.packer.resolve(handle)
    assert number is not None
    return number


async def settled(world: World, *nodes: SimNode, passes: int = 9) -> None:
    """Lets a node collect, pass after pass, half a day apart, until there is nothing left to do."""
    for index in range(passes):
        await asyncio.sleep(DAY_S / 2)
        await collect(nodes[index % len(nodes)])


def keys(world: World, prefix: str) -> list[str]:
    return sorted(key for key in world.bucket.snapshot() if key.startswith(prefix))


async def read(node: SimNode, name: str) -> bytes:
    """A file's content through the reader."""
    record = node.record(name)
    assert record is not None
    [extent] = record.extents
    try:
        blocks = await node.store.reader.blocks(*extent)
    except NotFound:
        await node.store.follow_to_head()
        blocks = await node.store.reader.blocks(*extent)
    return b"".join(blocks)


async def clean(world: World) -> None:
    """The bucket holds nothing but what the state at its head needs, and everything that it needs."""
    await world.check()
    db = Database(None, inline=True)
    await restore(world.bucket, db, world.nodes[0].env)
    conn = db._connect()
    packs = state.packs_after(conn, 0, 1 << 30)
    assert not [pack.number for pack in packs if pack.condemned]
    assert keys(world, "packs/") == sorted(layout.pack_key(pack.fkey, pack.id) for pack in packs)
    await db.close()


# ---- what goes --------------------------------------------------------------------------------------------------------


async def deleted_goes(world: World) -> None:
    """A deleted file's pack goes when its history is over: condemned a day old, deleted a grace later, and reported."""
    a, b = await forgetful(world)
    gone = await packed(a, "x", "y")
    await packed(a, "kept")
    await a.put(removed("x", ((1, 2),)), removed("y", ((1, 2),)))
    first = await collect(a)
    assert (first.packs_condemned, first.objects_deleted) == (0, 0), "a young pack may be named by what is on its way"
    await asyncio.sleep(25 * HOUR_S)
    second = await collect(a)
    assert second.packs_condemned == 1
    assert second.condemned_packs == 1
    assert second.objects_deleted == 0
    assert second.next_deletion_s is not None
    await asyncio.sleep(23 * HOUR_S)
    assert (await collect(b)).objects_deleted == 0, "before the grace is over"
    await asyncio.sleep(2 * HOUR_S)
    third = await collect(b)
    assert (third.objects_deleted, third.bytes_freed) == (1, second.condemned_bytes)
    await a.store.follow_to_head()
    assert gone not in state.packs(a.db._connect(), [gone])
    assert len(keys(world, "packs/")) == 1
    await clean(world)
    head = state.head(a.db._connect()).number
    await asyncio.sleep(3 * DAY_S)
    assert (await collect(a)).commits == 0, "an idle store commits nothing"
    assert state.head(a.db._connect()).number == head


async def repacked(world: World) -> None:
    """A pack of which more than half is dead is repacked; its blocks are read by their old addresses, by a sibling and after a restart, and
    its relocations go with the last record that names it."""
    a, b = await forgetful(world)
    names = [f"f{number}" for number in range(8)]
    old = await packed(a, *names)
    await a.put(*(removed(name, ((1, 2),)) for name in names[:6]))
    await asyncio.sleep(25 * HOUR_S)
    report = await collect(a)
    assert (report.packs_repacked, report.repack_packs) == (1, 1)
    assert [await read(b, name) for name in names[6:]] == [name.encode() for name in names[6:]]
    await settled(world, a, b, passes=4)
    assert len(keys(world, "packs/")) == 1
    conn = a.db._connect()
    assert old not in state.packs(conn, [old])
    assert state.relocations(conn, old)
    for node, keep in ((a, True), (b, False)):
        node.crash()
        await node.start(keep_cache=keep)
        assert [await read(node, name) for name in names[6:]] == [name.encode() for name in names[6:]]
        record = node.record(names[6])
        assert record is not None
        [present] = await node.store.packlists.present([record.extents])
        assert node.store.packlists.hashes(*present[0]) == record.info.block_hashes or not record.info.block_hashes
    await clean(world)
    await a.put(*(removed(name, ((1, 3),)) for name in names[6:]))
    await settled(world, a, b)
    assert not conn.execute("SELECT 1 FROM relocations").fetchone()
    assert keys(world, "packs/") == []
    await clean(world)


async def repacked_again(world: World) -> None:
    """Blocks that have moved move again: addresses of packs that are long gone lead to them."""
    a, b = await forgetful(world)
    names = [f"f{number}" for number in range(16)]
    await packed(a, *names)
    for left in (8, 4, 2, 1):
        await a.store.follow_to_head()
        await a.put(*(removed(name, ((1, 2),)) for name in names[left : 2 * left]))
        await settled(world, a, b, passes=5)
        assert len(keys(world, "packs/")) == 1
        assert await read(b, names[0]) == names[0].encode()
    await clean(world)


async def small_merged(world: World) -> None:
    """R23: 64 small packs become one."""
    a, b = await forgetful(world)
    for number in range(64):
        await packed(a, f"f{number}")
    assert len(keys(world, "packs/")) == 64
    await asyncio.sleep(25 * HOUR_S)
    assert (await collect(a)).packs_repacked == 64
    await settled(world, b, passes=4)
    assert len(keys(world, "packs/")) == 1
    assert [await read(b, f"f{number}") for number in range(64)] == [f"f{number}".encode() for number in range(64)]
    await clean(world)


async def removed_folder(world: World) -> None:
    """R12: a removed incarnation goes as a whole, packs that no commit registered too."""
    a, _ = await world.two(Collection(AGE_S, AGE_S))
    await packed(a, "x", "y")
    await a.pack(b"never committed")
    await a.store.submit_settings(SettingsChange(folders_removed=("f",)))
    await settled(world, a)
    assert keys(world, "packs/") == []
    await clean(world)


# ---- what may never go ------------------------------------------------------------------------------------------------


async def r2_dedupe_between(world: World) -> None:
    """R2: while a pack is being copied a sibling names a dead block of it. The repack leaves the pack alone."""
    a, b = await forgetful(world)
    names = [f"f{number}" for number in range(8)]
    old = await packed(a, *names)
    await a.put(*(removed(name, ((1, 2),)) for name in names[:6]))
    await asyncio.sleep(25 * HOUR_S)
    await b.store.follow_to_head()
    named = asyncio.Event()

    async def before(operation: str, key: str) -> None:
        if operation == "put" and key.startswith("packs/") and not named.is_set():
            named.set()
            await b.put(Draft(1, file_info("copy", names[0], ((2, 1),)), ((old, 0, 1),)))

    a.gate.before = before
    report = await collect(a)
    assert named.is_set()
    assert (report.repack_packs, report.packs_repacked) == (1, 0)
    await world.check()
    await settled(world, a, b)
    assert await read(b, "copy") == names[0].encode()
    assert await read(a, names[7]) == names[7].encode()
    await clean(world)


async def r2_one_commit(world: World) -> None:
    """A record that names a block of a pack, and the condemnation of that pack, want into the same commit: the record stands, the pack stays,
    and nothing is void."""
    a, _ = await forgetful(world)
    old = await packed(a, "x", "y")
    await a.put(removed("x", ((1, 2),)), removed("y", ((1, 2),)))
    await collect(a)
    await asyncio.sleep(25 * HOUR_S)
    pass_ = asyncio.ensure_future(collect(a))
    outcome = asyncio.ensure_future(a.submit(Draft(1, file_info("again", "x", ((1, 3),)), ((old, 0, 1),))))
    [result] = await outcome
    await pass_
    assert a.store.status().journal.counts.void == 0
    if result.status is Status.COMMITTED:
        await settled(world, a)
        assert await read(a, "again") == b"x"
    await clean(world)


async def r3_late_upload(world: World) -> None:
    """R3: a writer sleeps with a durable pack for days. The pack is an orphan, goes, and its writer's commit is refused: it uploads again."""
    a, b = await forgetful(world)
    await packed(b, "other")
    late = await a.file("f1", "z", ((1, 1),))
    wake = a.suspend()
    await settled(world, b)
    assert len(keys(world, "packs/")) == 1, "the orphan is gone"
    wake.set()
    a.gate.before = None
    [outcome] = await a.submit(late)
    assert outcome.status is Status.RETRY_UPLOAD
    await a.put(await a.file("f1", "z", ((1, 1),)))
    assert await read(b, "other") == b"other"
    await world.check()


async def r9_partial(world: World) -> None:
    """R9: what is stored of a file that is still being pulled is no garbage, however long that takes, until nobody renews it for 14 days."""
    a, b = await forgetful(world)
    with patch.object(collecting, "PARTIAL_AGE_US", int(14 * DAY_S * 1e6)):
        await pulled_slowly(world, a, b)


async def pulled_slowly(world: World, a: SimNode, b: SimNode) -> None:
    """A file that takes weeks."""
    handle = await a.pack(b"part")
    info = file_info("large", "part and the rest", ((1, 1),))
    await a.store.submit_partial(1, info, ((0, (handle, 0, 1)),))
    for _ in range(10):
        await asyncio.sleep(DAY_S)
        await collect(b)
    assert len(keys(world, "packs/")) == 1
    await a.store.submit_partial(1, info, ((0, (handle, 0, 1)),))
    await asyncio.sleep(13 * DAY_S)
    await collect(b)
    assert len(keys(world, "packs/")) == 1
    await settled(world, b)
    assert keys(world, "packs/") == []
    await clean(world)


async def r10_clocks(world: World) -> None:
    """R10: a node whose clock is hours off deletes nothing, and says so. One whose clock is right goes by the store's Date."""
    a, _ = await forgetful(world)
    await packed(a, "x")
    await a.put(removed("x", ((1, 2),)))
    wrong = await world.node(skew_s=5 * 3600.0)
    await asyncio.sleep(25 * HOUR_S)
    with pytest.raises(Refused, match="hours apart"):
        await collect(wrong)
    assert (await collect(a)).packs_condemned == 1
    await world.check()


async def restored_bucket(world: World) -> None:
    """R4: the bucket is put back to before a deletion; a node that has condemned and collected in the lost history deletes nothing of it."""
    a, b = await forgetful(world)
    await packed(a, "x")
    await packed(a, "y")
    await asyncio.sleep(30 * HOUR_S)
    backup = world.bucket.snapshot()
    await a.put(removed("x", ((1, 2),)))
    await collect(a)
    await asyncio.sleep(23.5 * HOUR_S)
    world.bucket.restore(backup)
    world.forget()
    await asyncio.sleep(1 * HOUR_S)
    await collect(a)
    assert len(keys(world, "packs/")) == 2
    await settled(world, a, b)
    assert len(keys(world, "packs/")) == 2
    for node in (a, b):
        assert [await read(node, name) for name in ("x", "y")] == [b"x", b"y"]
    await world.check()


async def denied(world: World) -> None:
    """5.5: a store that lets nothing be deleted is asked once, told of, and not asked again before a day is over."""
    a, _ = await forgetful(world)
    for name in "xyz":
        await packed(a, name)
    await a.put(*(removed(name, ((1, 2),)) for name in "xyz"))
    asked: list[str] = []

    async def before(operation: str, key: str) -> None:
        if operation == "delete":
            asked.append(key)
            raise Refused("Access Denied")

    a.gate.before = before
    for _ in range(9):
        await asyncio.sleep(6 * HOUR_S)
        await a.store.collector.collect()
    assert len(asked) == 1
    status = a.store.collector.status
    assert "does not let" in status.trouble
    assert status.waiting_bytes > 0
    await asyncio.sleep(86_400)
    await a.store.collector.collect()
    assert len(asked) == 2
    a.gate.before = None
    await settled(world, a)
    assert a.store.collector.status.trouble == ""
    assert keys(world, "packs/") == []
    await clean(world)


async def tombstones(world: World) -> None:
    """R27: deleted records go after 16 months, not while a configured device has been away longer."""
    a, b = await forgetful(world)
    await packed(a, "x")
    before_us = a.store.store_time_us() - 1
    await a.put(removed("x", ((1, 2),)))
    await asyncio.sleep(120)
    with pytest.raises(NothingDue):
        await b.store.submit_entries(expire(0, before_us))
    await a.store.follow_to_head()
    assert a.record("x") is not None
    with patch.object(collecting, "TOMBSTONE_AGE_US", 60_000_000):
        device = DeviceSettings(bytes(32), "laptop")
        await a.store.submit_settings(SettingsChange(devices=(device,)))
        await a.db.migrate(collect_absence.LAYER, collect_absence.STEPS)
        await a.db.write(lambda conn: conn.execute("INSERT INTO devices_seen VALUES (?, ?)", (device.device_id, before_us)))
        await collect(a)
        assert a.record("x") is not None
        assert a.store.collector.status.tombstones_held_by == "laptop"
        a.store.collector.hooks.present = lambda: (device.device_id,)
        await collect(a)
    world.forget()
    await a.store.follow_to_head()
    assert a.record("x") is None
    assert a.store.collector.status.tombstones_held_by == ""
    await world.check()


async def checkpoints(world: World) -> None:
    """R5: manifests before the two newest go with the runs that only they list, and bodies of truncated slots; what is left restores."""
    a, b = await world.two(Collection(AGE_S, AGE_S))
    for number in range(5):
        await packed(a, f"f{number}")
        await world.checkpoint(a)
    big = await a.pack(b"big")
    await a.put(*(Draft(1, file_info(world.random.bytes(60).hex(), "big", ((1, 1),)), ((big, 0, 1),)) for number in range(2000)))
    assert len(keys(world, "bodies/")) == 1
    await world.checkpoint(a)
    await a.put(await a.file("last", "last", ((1, 1),)))
    await world.checkpoint(a)
    await asyncio.sleep(DAY_S)
    assert await world.truncate(a) > 0
    await settled(world, a, b)
    assert len(keys(world, "checkpoint/")) == 2
    listed = set()
    for key in keys(world, "checkpoint/"):
        manifest = await read_manifest(world.bucket, layout.slot_number(key) or 0)
        listed |= {layout.run_key(each.id) for _, each in manifest.runs()}
    assert set(keys(world, "runs/")) == listed
    assert keys(world, "bodies/") == []
    await clean(world)


async def young_at_first(world: World) -> None:
    """A pack that was too young to be repacked when it became half dead is repacked later, though nothing is committed any more."""
    a, _ = await forgetful(world)
    names = [f"f{number}" for number in range(8)]
    await packed(a, *names)
    await a.put(*(removed(name, ((1, 2),)) for name in names[:6]))
    assert (await a.store.collector.collect()).packs_repacked == 0
    await asyncio.sleep(25 * HOUR_S)
    assert (await a.store.collector.collect()).packs_repacked == 1


async def committed_meanwhile(world: World) -> None:
    """What becomes garbage while a pass looks is found by the next one, though nothing is committed any more."""
    a, _ = await forgetful(world)
    names = [f"f{number}" for number in range(8)]
    await packed(a, *names)
    await asyncio.sleep(25 * HOUR_S)
    look = collecting._Pass._mark

    async def looked(self: collecting._Pass) -> tuple[list[state.Pack], dict[int, Marks]]:
        found = await look(self)
        await a.put(*(removed(name, ((1, 2),)) for name in names[:6]))
        await asyncio.sleep(60)
        await history.expire(a.db, a.store.submit_entries, a.store.present_us())
        return found

    with patch.object(collecting._Pass, "_mark", looked):
        assert (await a.store.collector.collect()).packs_repacked == 0
    await asyncio.sleep(HOUR_S)
    assert (await a.store.collector.collect()).packs_repacked == 1


async def unreadable_once(world: World) -> None:
    """A pack that cannot be read now, archived or mangled on its way, keeps neither the others from being repacked nor itself for ever."""
    a, _ = await forgetful(world)
    for name in "xyz":
        await packed(a, *(f"{name}{number}" for number in range(8)))
        await a.put(*(removed(f"{name}{number}", ((1, 2),)) for number in range(6)))
    await asyncio.sleep(25 * HOUR_S)
    errors: dict[str, StnodeError] = dict(zip(keys(world, "packs/"), (Archived("it is in GLACIER"), Corrupt("mangled")), strict=False))

    async def before(operation: str, key: str) -> None:
        if operation == "get" and key in errors:
            raise errors.pop(key)

    a.gate.before = before
    assert [(await collect(a)).packs_repacked for _ in range(2)] == [1, 2]


async def daemon(world: World) -> None:
    """By itself: started, it collects without a command, and a sibling that is not elected leaves it to the other."""
    a, b = await forgetful(world)
    await packed(a, "x")
    await a.put(removed("x", ((1, 2),)))
    b.store.collector.hooks.left_to = lambda: "a"
    for node in (a, b):
        node.store.collector.start()
    await asyncio.sleep(3 * DAY_S)
    assert keys(world, "packs/") == []
    assert a.store.collector.status.deleted_objects == 1
    assert b.store.collector.status.left_to == "a"
    assert b.store.collector.status.last_pass_s is None
    for node in (a, b):
        await node.store.collector.close()
    await clean(world)


# ---- killed anywhere --------------------------------------------------------------------------------------------------


async def killed(world: World, at: int, keep_cache: bool) -> bool:
    """A node is killed at its `at`-th request of the work of some passes; another life and a sibling finish it. Whether it came so far."""
    a, b = await forgetful(world)
    names = [f"f{number}" for number in range(6)]
    await packed(a, *names)
    await packed(a, "gone")
    await a.pack(b"orphan")
    await world.checkpoint(a)
    await a.put(removed("gone", ((1, 2),)), *(removed(name, ((1, 2),)) for name in names[:4]))
    await world.checkpoint(a)
    await a.put(await a.file("last", "last", ((1, 1),)))
    await world.checkpoint(a)
    counted = 0

    async def before(_operation: str, _key: str) -> None:
        nonlocal counted
        counted += 1
        if counted == at:
            a.crash()

    a.gate.before = before
    for _ in range(4):
        work = asyncio.ensure_future(collect(a))
        await asyncio.wait([work], timeout=DAY_S / 2)
        await asyncio.sleep(DAY_S / 2)
        if not a.alive:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            break
        work.result()
    reached = counted >= at
    if not a.alive:
        await a.start(keep_cache=keep_cache)
    a.gate.before = None
    await settled(world, b, a)
    await clean(world)
    for node in (a, b):
        assert [await read(node, name) for name in [*names[4:], "last"]] == [name.encode() for name in [*names[4:], "last"]]
    return reached


@pytest.mark.parametrize("keep_cache", [True, False])
def test_a_pass_may_be_killed_at_any_request(keep_cache: bool) -> None:
    at = 1
    while True:
        world = World(at)
        try:
            if not run(killed(world, at, keep_cache)):
                break
        finally:
            world.close()
        at += 13 if keep_cache else 17
    assert at > 60, "the work has become so little that this test shows nothing"


# ---- whatever happens -------------------------------------------------------------------------------------------------


class Anything:
    """Random writes, copies by address, deletions, partial files and passes on two nodes, some killed: no live block is ever lost, every
    content is read back, and in the end only what is needed is left."""

    def __init__(self, world: World, nodes: tuple[SimNode, SimNode]) -> None:
        self.world = world
        self.nodes = nodes
        self.dice = random.Random(world.seed)
        self.known: list[tuple[int, int, str]] = []
        self.texts: dict[bytes, str] = {}
        self.step = 0

    async def run(self) -> None:
        acts = {self.write: 6, self.copy: 5, self.delete: 6, self.partial: 1, self.collect: 6, self.sleep: 5, self.crash: 1}
        for self.step in range(1, 60):
            node = self.dice.choice(self.nodes)
            if not node.alive:
                await node.start(keep_cache=self.dice.random() < 0.5)
            [act] = self.dice.choices(list(acts), list(acts.values()))
            await act(node)
        for node in self.nodes:
            if not node.alive:
                await node.start()
            assert node.store.status().journal.counts.void == 0
        self.world.forget()  # versions that lost against concurrent ones: the folder keeps no history
        await settled(self.world, *self.nodes, passes=20)
        await clean(self.world)
        for node in self.nodes:
            await node.store.follow_to_head()
            for name, record in node.names().items():
                if not record.info.deleted:
                    assert await read(node, name) == self.texts[content_hash(record.info)].encode()

    def info(self, node: SimNode, text: str) -> FileInfo:
        info = file_info(f"n{self.dice.randrange(20)}", text, ((node.number + 1, self.step),), mtime=self.step)
        self.texts[content_hash(info)] = text
        return info

    async def write(self, node: SimNode) -> None:
        texts = [f"content {self.step} {index}" for index in range(self.dice.randint(1, 6))]
        handle = await node.pack(*(text.encode() for text in texts))
        for place, text in enumerate(texts):
            [outcome] = await node.submit(Draft(1, self.info(node, text), ((handle, place, 1),)))
            number = node.store.packer.resolve(handle)
            if outcome.status is Status.COMMITTED and number is not None:
                self.known.append((number, place, text))

    async def copy(self, node: SimNode) -> None:
        if self.known:
            number, place, text = self.dice.choice(self.known)
            await node.submit(Draft(1, self.info(node, text), ((number, place, 1),)))

    async def delete(self, node: SimNode) -> None:
        names = [name for name, record in node.names().items() if not record.info.deleted]
        for name in self.dice.sample(names, min(len(names), self.dice.randint(1, 8))):
            record = node.record(name)
            assert record is not None
            (device, counter), *rest = record.info.version
            await node.submit(removed(name, ((device, counter + 1), *rest), mtime=self.step))

    async def partial(self, node: SimNode) -> None:
        handle = await node.pack(f"part {self.step}".encode())
        await node.store.submit_partial(1, file_info(f"part{self.step}", "x", ((1, self.step),)), ((0, (handle, 0, 1)),))

    async def collect(self, node: SimNode) -> None:
        work = asyncio.ensure_future(collect(node))
        if self.dice.random() < 0.3:
            await asyncio.sleep(self.dice.uniform(0, 3))
            node.crash()
            work.cancel()
        await asyncio.gather(work, return_exceptions=not node.alive)

    async def sleep(self, _node: SimNode) -> None:
        await asyncio.sleep(self.dice.choice([1, HOUR_S, 13 * HOUR_S, 26 * HOUR_S]))

    async def crash(self, node: SimNode) -> None:
        node.crash()


async def anything(world: World) -> None:
    """See `Anything`."""
    await Anything(world, await forgetful(world)).run()


test_deleted_data_goes_after_its_grace = simulated(deleted_goes)
test_a_mostly_dead_pack_is_repacked = simulated(repacked)
test_a_pack_is_repacked_again_and_again = simulated(repacked_again)
test_r23_many_small_packs_become_one = simulated(small_merged)
test_r12_a_removed_folder_goes_as_a_whole = simulated(removed_folder)
test_r2_a_repack_leaves_a_pack_that_became_live_again = simulated(r2_dedupe_between)
test_r2_a_record_and_a_condemnation_in_one_commit = simulated(r2_one_commit, seeds=6)
test_r3_a_late_upload_is_an_orphan = simulated(r3_late_upload)
test_r9_partial_files_are_no_garbage = simulated(r9_partial)
test_r10_wrong_clocks_pause_deleting = simulated(r10_clocks)
test_r4_a_bucket_put_back_is_not_collected_by_its_lost_history = simulated(restored_bucket)
test_a_store_that_refuses_deletions_is_asked_once = simulated(denied)
test_r27_old_deleted_records_go = simulated(tombstones)
test_r5_old_checkpoints_and_bodies_go = simulated(checkpoints)
test_a_young_pack_is_looked_at_again = simulated(young_at_first)
test_garbage_made_during_a_pass_is_found_by_the_next = simulated(committed_meanwhile)
test_an_unreadable_pack_holds_nothing_up = simulated(unreadable_once)
test_a_daemon_collects_by_itself = simulated(daemon)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_no_live_block_is_lost(seed: int) -> None:
    world = World(seed)
    try:
        run(anything(world))
    finally:
        world.close()
