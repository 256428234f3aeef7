"""The scenarios R1 to R15 of the design review, in terms of today's rules. R13 (spool) and single-node stores (half of R8) are not
built yet; what R5 asks of reading runs back is tested with the checkpoints themselves too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from sqlite3 import Connection
from typing import Any

import pytest

from stnode.errors import Conflict, Corrupt, Refused, StnodeError, Unavailable
from stnode.objectstore.base import Capabilities, Key, Mode
from stnode.objectstore.faulty import FaultPlan
from stnode.protocol import fileinfo
from stnode.protocol.vector import covers
from stnode.repo import layout, state
from stnode.repo.codec import Body, Relocation, Slot, decode_slot, encode_slot
from stnode.repo.proposal import PackTable
from stnode.repo.records import UNCONDITIONAL, Draft, DraftSet, HistoryRule, SetKind, Status
from stnode.repo.store import SettingsChange, Store, new_folder
from tests.sim.loop import run
from tests.sim.world import SimNode, World, directory, file_info, removed

Scenario = Callable[[World], Coroutine[Any, Any, None]]
pytestmark = pytest.mark.expects_log(
    r"the state is restored|the journal cannot go on|own commit is void|not whole|deletions wait|upload is gone"
)
QUIET = FaultPlan(latency_s=(0.02, 0.12))


def simulated(scenario: Scenario, *, seeds: int = 4) -> Callable[[], None]:
    """A test that runs the scenario for a few seeds."""

    def test() -> None:
        for seed in range(seeds):
            world = World(seed)
            try:
                run(scenario(world))
            finally:
                world.close()

    test.__doc__ = scenario.__doc__
    return test


async def until(condition: Callable[[], bool], within_s: float = 3600) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.05)


async def fill(node: SimNode, count: int, prefix: str = "x") -> None:
    """`count` commits of one file each."""
    for number in range(count):
        await node.put(await node.file(f"{prefix}{number}", f"{prefix}{number}", ((1, number + 1),)))


async def cut(world: World, node: SimNode, prefix: str = "after") -> None:
    """Two checkpoints, then truncation up to the older of them."""
    await world.checkpoint(node)
    await fill(node, 1, prefix)
    await world.checkpoint(node)
    assert await world.truncate(node) > 0


# ---- R1: truncation ---------------------------------------------------------------------------------------------------


async def r1_follower(world: World) -> None:
    """A follower that slept while its next slots were truncated restores; it neither stands still nor forks."""
    a, b = await world.two()
    wake = b.suspend()
    await fill(a, 3)
    await cut(world, a)
    wake.set()
    await b.store.follow_to_head()
    assert any(applied.restored for applied in b.applied[-3:])
    assert "after0" in b.names()
    await b.put(await b.file("y", "y", ((2, 1),)))
    await world.check()


async def r1_committer(world: World) -> None:
    """A committer whose create was under way while the slot was taken and truncated finds the stub, restores, and commits above."""
    a, b = await world.two()
    wanted = await b.file("late", "late", ((2, 1),))
    held = asyncio.Event()

    async def hold(operation: str, key: str) -> None:
        if operation == "put" and key.startswith("journal/"):
            held.set()
            await go.wait()

    go = asyncio.Event()
    b.gate.before = hold
    task = asyncio.ensure_future(b.submit(wanted))
    await held.wait()
    await fill(a, 3)
    await cut(world, a)
    go.set()
    [outcome] = await task
    assert outcome.status is Status.COMMITTED
    assert any(applied.restored for applied in b.applied)
    await world.check()


async def r1_restorer(world: World) -> None:
    """Slots are truncated while a restore reads on behind the manifest it loaded: it starts over and ends at the head."""
    a, _ = await world.two()
    await fill(a, 3)
    await world.checkpoint(a)
    await fill(a, 3, "y")
    done = False

    async def truncate_first(operation: str, key: str) -> None:
        nonlocal done
        if operation == "get" and key.startswith("journal/") and not done:
            done = True
            await cut(world, a)
            await cut(world, a, "once more")

    c = SimNode(world, 2, 0.0, QUIET)
    world.nodes.append(c)
    starting = asyncio.ensure_future(c.start())
    await asyncio.sleep(0)
    c.gate.before = truncate_first
    await starting
    assert done
    assert c.names().keys() == a.names().keys()
    await world.check()


async def r1_broken_off(world: World) -> None:
    """A node finds its own head truncated, and the restore breaks off because the store does not answer: it is begun again. Nothing is
    built on half a state, though the next commit is there and follows the head that the node had."""
    a, b = await world.two()
    await fill(a, 3)
    await b.store.follow_to_head()
    b.faulty.plan = FaultPlan(unreachable=1.0)
    await cut(world, a)
    await asyncio.sleep(120)
    dark = False

    async def go_dark(_operation: str, key: str) -> None:
        nonlocal dark
        if key.startswith("runs/") and not dark:
            dark, b.faulty.plan = True, FaultPlan(unreachable=1.0)

    b.gate.before, b.faulty.plan = go_dark, QUIET
    with pytest.raises(Unavailable):
        await b.store.follow_to_head()
    assert dark
    b.gate.before, b.faulty.plan = None, QUIET
    await until(lambda: b.names().keys() == a.names().keys())
    await b.put(await b.file("z", "z", ((2, 1),)))
    await world.check()


# ---- R2, R3: collection -----------------------------------------------------------------------------------------------


def repack(pack: int, target: int) -> Callable[[Connection, PackTable], Body]:
    """Moves what is live in `pack` to another pack that has the same blocks, and condemns it; computed anew on every state."""

    def make(conn: Connection, _packs: PackTable) -> Body:
        live = {
            place + offset
            for folder in state.folders(conn)
            for record in state.records_since(conn, folder.fid, 0, 1 << 30)
            for named, place, count in record.extents
            for offset in range(count)
            if named == pack
        }
        moves = tuple(Relocation(pack, place, 1, target, place) for place in sorted(live))
        return Body(relocations=moves, packs_condemned=(pack,))

    return make


async def two_packs(world: World) -> tuple[SimNode, SimNode, int, int]:
    """Pack p holds x (dead) and y (live, of f0); pack q holds the same blocks, so that a repack can move them there."""
    a, b = await world.two()
    info = file_info("f0", "y", ((1, 1),))
    first = await a.pack(b"x", b"y")
    await a.put(Draft(1, info, ((first, 1, 1),)))
    second = await a.pack(b"x", b"y")
    await a.put(Draft(1, file_info("f9", "y", ((1, 1),)), ((second, 1, 1),)))
    p, q = a.store.packer.resolve(first), a.store.packer.resolve(second)
    assert p is not None
    assert q is not None
    await b.store.follow_to_head()
    return a, b, p, q


async def r2_recomputed(world: World) -> None:
    """A repack that loses its slot to a record which deduplicates against the pack is computed anew: the block moves too."""
    a, b, p, q = await two_packs(world)
    held, go = asyncio.Event(), asyncio.Event()

    async def hold(operation: str, key: str) -> None:
        if operation == "put" and key.startswith("journal/"):
            held.set()
            await go.wait()

    b.gate.before = hold
    repacking = b.store.submit_entries(repack(p, q))
    await held.wait()
    await a.put(Draft(1, file_info("f1", "x", ((1, 1),)), ((p, 0, 1),)))
    go.set()
    await repacking
    await a.store.follow_to_head()
    conn = a.db._connect()
    assert state.resolve(conn, p, 0, 1) == [(q, 0, 1)]
    assert state.packs(conn, [p])[p].condemned
    await world.check()


async def r2_writer(world: World) -> None:
    """A record that names a block of a pack condemned meanwhile, which was dead and not moved, is uploaded again."""
    a, b, p, q = await two_packs(world)
    await b.store.submit_entries(repack(p, q))
    [outcome] = await a.submit(Draft(1, file_info("f1", "x", ((1, 1),)), ((p, 0, 1),)))
    assert outcome.status is Status.RETRY_UPLOAD
    [moved] = await a.put(Draft(1, file_info("f2", "y", ((1, 1),)), ((p, 1, 1),)))
    assert moved.names == ("f2",), "blocks that were moved can be named by their old address"
    await world.check()


async def r2_void(world: World) -> None:
    """A commit that condemns a pack which is still referred to is void on every node, the writer included; its number is used up."""
    a, b, p, _ = await two_packs(world)
    with pytest.raises(Conflict, match="void"):
        await b.store.submit_entries(lambda _conn, _packs: Body(packs_condemned=(p,)))
    await a.store.follow_to_head()
    assert [applied.void for applied in a.applied[-3:]] == [applied.void for applied in b.applied[-3:]]
    assert a.applied[-1].void is not None
    await world.check()


async def r3_orphan(world: World) -> None:
    """A pack below the orphan horizon that was not registered may never be: its writer uploads again, whatever was deleted meanwhile."""
    a, b = await world.two()
    late = await a.file("f1", "z", ((1, 1),))
    await asyncio.sleep(26 * 3600)
    horizon = b.store.store_time_us()
    await fill(b, 1)
    horizon = b.store.store_time_us() - 25 * 3600 * 1_000_000
    await b.store.submit_entries(lambda _conn, _packs: Body(horizon_us=horizon))
    [outcome] = await a.submit(late)
    assert outcome.status is Status.RETRY_UPLOAD
    await a.put(await a.file("f1", "z", ((1, 1),)))
    await world.check()


# ---- R4: a bucket put back --------------------------------------------------------------------------------------------


async def put_back(world: World, node: SimNode, commits: int = 3) -> tuple[int, int]:
    """Commits on, then puts the bucket back to before them: (index ID, last sequence) before."""
    backup = world.bucket.snapshot()
    await fill(node, commits, "lost")
    [folder] = state.folders(node.db._connect())
    for each in world.nodes:
        if each.alive:
            await each.store.follow_to_head()
    world.bucket.restore(backup)
    world.forget()
    return folder.settings.index_id, folder.last_sequence


async def r4_committer(world: World) -> None:
    """A node whose head is gone never builds on it: cache dropped, restored, a new index ID, drafts of the lost history given back."""
    a, b = await world.two()
    await fill(a, 2)
    index_id, last = await put_back(world, a)
    await asyncio.sleep(120)
    outcomes = await a.submit(await a.file("new", "new", ((1, 1),)), await a.local("mine", "mine"))
    assert {outcome.status for outcome in outcomes} <= {Status.RETRY_UPLOAD, Status.COMMITTED}
    await a.put(await a.file("new", "new", ((1, 9),)))
    await until(lambda: not a.store.status().journal.index_ids_due)
    await b.store.follow_to_head()
    await until(lambda: not b.store.status().journal.index_ids_due)
    await a.store.follow_to_head()
    [folder] = state.folders(a.db._connect())
    assert folder.settings.index_id != index_id
    assert folder.last_sequence > last, "numbers are never used twice"
    assert "lost0" not in a.names()
    await world.check()


async def r4_idle(world: World) -> None:
    """An idle follower notices within some minutes that its head is gone, though its next slot is as absent as before."""
    a, b = await world.two()
    index_id, _ = await put_back(world, a)
    await asyncio.sleep(1800)
    for node in (a, b):
        assert "lost0" not in node.names()
        [folder] = state.folders(node.db._connect())
        assert folder.settings.index_id != index_id
    await world.check()


async def r4_foreign(world: World) -> None:
    """A follower that slept while the bucket was put back and went on past its head meets a foreign predecessor: it restores."""
    a, b = await world.two()
    index_id, _ = await put_back(world, a, 1)
    wake = b.suspend()
    await a.store.follow_to_head()
    await asyncio.sleep(90)
    await a.store.follow_to_head()
    await fill(a, 3, "again")
    seen = len(b.applied)
    wake.set()
    await until(lambda: any(applied.restored for applied in b.applied[seen:]), 60)
    await until(lambda: not b.store.status().journal.index_ids_due)
    assert "lost0" not in b.names()
    [folder] = state.folders(b.db._connect())
    assert folder.settings.index_id != index_id
    await world.check()


async def r4_upload(world: World) -> None:
    """The bucket is put back to before a pack was uploaded, and no commit is lost with it: nothing in the journal shows it, the pack is
    looked at."""
    a, b = await world.two()
    await fill(a, 1)
    backup = world.bucket.snapshot()
    wanted = await a.file("f", "f", ((1, 1),))
    world.bucket.restore(backup)
    await asyncio.sleep(100)
    [outcome] = await a.submit(wanted)
    assert outcome.status is Status.RETRY_UPLOAD
    await a.put(await a.file("f", "f", ((1, 1),)))
    await b.store.follow_to_head()
    await world.check()


async def r4_pack_numbers(world: World) -> None:
    """On the other history the numbers of packs mean other packs: lists that are kept in memory are forgotten, so that nothing is served
    with the content of what was lost."""
    a, b = await world.two()
    await fill(a, 1)
    backup = world.bucket.snapshot()
    await fill(a, 1, "lost")
    await b.store.follow_to_head()
    assert await b.read(b.names()["lost0"]) == b"lost0"
    world.bucket.restore(backup)
    world.forget()
    await asyncio.sleep(1800)
    await a.put(await a.file("new", "other", ((1, 9),)))
    await b.store.follow_to_head()
    assert await b.read(b.names()["new"]) == b"other"
    assert await a.read(a.names()["new"]) == b"other"
    await world.check()


async def r4_crash(world: World) -> None:
    """A crash between dropping the cache and committing the new index ID does not forget that one is due."""
    a, b = await world.two()
    b.crash()
    index_id, _ = await put_back(world, a)
    a.crash()
    await a.start(keep_cache=True)
    a.crash()
    await a.start(keep_cache=True)
    await until(lambda: not a.store.status().journal.index_ids_due)
    [folder] = state.folders(a.db._connect())
    assert folder.settings.index_id != index_id
    await world.check()


async def r4_fresh(world: World) -> None:
    """A fresh container on a bucket put back numbers above everything that peers can have seen, and its intervals show the hole."""
    a, b = await world.two()
    await fill(a, 2)
    _, last = await put_back(world, a)
    a.crash()
    b.crash()
    await asyncio.sleep(90)
    await a.start()
    await fill(a, 2, "again")
    conn = a.db._connect()
    [folder] = state.folders(conn)
    assert all(record.sequence > last for name, record in a.names().items() if name.startswith("again"))
    assert not any(first <= last <= end for first, end in state.intervals(conn, folder.fid)), "a peer at the lost number gets a full Index"
    await world.check()


async def r4_gap(world: World) -> None:
    """Slots beyond a gap: refused, by followers and by restores, until repaired."""
    a, b = await world.two()
    await fill(a, 1)
    wake = b.suspend()
    await fill(a, 3, "y")
    number = a.store.status().journal.number
    await world.bucket.delete(layout.slot_key(number - 2))
    wake.set()
    b.gate.before = None
    with pytest.raises(Corrupt, match="missing"):
        await b.store.follow_to_head()
    assert "backup" in b.store.status().journal.hint
    b.crash()
    with pytest.raises(Corrupt, match="missing"):
        await b.start()


async def r4_empty(world: World) -> None:
    """An emptied or swapped bucket drops no cache: it is refused."""
    a, _ = await world.two()
    await fill(a, 1)
    world.bucket.restore({})
    await asyncio.sleep(120)
    with pytest.raises(Refused):
        await a.store.follow_to_head()
    assert "x0" in a.names()
    assert a.store.status().journal.kind == "refused"


# ---- R5: checkpoints --------------------------------------------------------------------------------------------------


async def r5_two_writers(world: World) -> None:
    """Two nodes write the same checkpoint at once: one manifest, whole, of one of them."""
    a, b = await world.two()
    await fill(a, 3)
    await b.store.follow_to_head()
    await asyncio.gather(world.checkpoint(a), world.checkpoint(b))
    assert len([key for key in world.bucket.snapshot() if key.startswith("checkpoint/")]) == 1
    b.crash()
    await b.start()
    await world.check()


async def r5_damaged_run(world: World) -> None:
    """A manifest whose run is damaged: restores take the one before, and nothing is truncated on the strength of it."""
    a, _ = await world.two()
    await fill(a, 2)
    await world.checkpoint(a)
    key = next(key for key in world.bucket.snapshot() if key.startswith("runs/"))
    await world.bucket.put(Key(key), [b"damaged"], Mode.OVERWRITE)
    await fill(a, 2, "y")
    await world.checkpoint(a)
    with pytest.raises(Corrupt):
        await world.truncate(a)
    c = await world.node()
    assert c.names().keys() == a.names().keys()
    await world.check()


# ---- R6, R12: settings ------------------------------------------------------------------------------------------------


async def r6_settings(world: World) -> None:
    """Folder settings are the journal's: every node has the same, the last change wins on all."""
    a, b = await world.two()
    await b.store.follow_to_head()
    [folder] = state.folders(a.db._connect())
    await asyncio.gather(
        a.store.submit_settings(SettingsChange(folders=(replace(folder.settings, type="receiveonly"),))),
        b.store.submit_settings(SettingsChange(folders=(replace(folder.settings, ignore_lines=("*.iso",)),))),
    )
    await asyncio.gather(a.store.follow_to_head(), b.store.follow_to_head())
    one, two = state.folders(a.db._connect())[0].settings, state.folders(b.db._connect())[0].settings
    assert one == two
    assert a.applied[-1].settings_changed
    with pytest.raises(Conflict, match="exists already"):
        await b.store.submit_settings(SettingsChange(folders=(new_folder(b.env.random, "f"),)))
    await world.check()


async def r12_second_life(world: World) -> None:
    """A folder removed and added again under its ID is another one: nothing of the old one is continued by a stale cache."""
    a, b = await world.two()
    await fill(a, 2)
    await b.store.follow_to_head()
    [old] = state.folders(a.db._connect())
    stale = await b.file("stale", "stale", ((2, 1),))
    wake = b.suspend()
    await a.store.submit_settings(SettingsChange(folders_removed=("f",)))
    world.forget()
    await a.store.submit_settings(SettingsChange(folders=(new_folder(a.env.random, "f"),)))
    submitted = asyncio.ensure_future(b.submit(stale))
    await asyncio.sleep(5)
    wake.set()
    [outcome] = await submitted
    assert outcome.status is Status.CONFLICT
    [new] = state.folders(b.db._connect())
    assert (new.fid, new.settings.index_id) != (old.fid, old.settings.index_id)
    assert not b.names(new.fid)
    with pytest.raises(Conflict):
        await b.store.submit_settings(SettingsChange(folders=(old.settings,)))
    await world.check()


# ---- R7, R10, R11: judgement over several nodes -----------------------------------------------------------------------


async def r7_one_identity(world: World) -> None:
    """Two processes with one device ID change a file from one base in one second: both are acknowledged, both have a version of their
    own, none is lost."""
    a, b = await world.two()
    b.crash()
    twin = SimNode(world, 2, 0.0, QUIET)
    twin.device = a.device
    world.nodes.append(twin)
    await twin.start()
    await a.put(await a.local("f", "base"))
    await twin.store.follow_to_head()
    base = twin.names()["f"].info.version
    one, two = await a.local("f", "one", base), await twin.local("f", "two", base)
    outcomes = await asyncio.gather(a.put(one), twin.put(two))
    assert outcomes[0][0].sequences != outcomes[1][0].sequences
    await a.store.follow_to_head()
    versions = [entry.record.info.version for entry in state.old_versions(a.db._connect(), 1, "f")]
    current = a.record("f")
    assert current is not None
    assert len({*versions, current.info.version}) == 3, "base, one and two"
    await world.check()


async def r7_last_writer(world: World) -> None:
    """PUT through two nodes: the last writer wins without a conflict copy; of two conditional creations exactly one wins."""
    a, b = await world.two()
    await asyncio.gather(a.put(await a.local("f", "one")), b.put(await b.local("f", "two")))
    results = await asyncio.gather(a.submit(await a.local("g", "one", condition=None)), b.submit(await b.local("g", "two", condition=None)))
    assert sorted(outcome.status.value for [outcome] in results) == ["committed", "conflict"]
    await a.store.follow_to_head()
    assert a.names().keys() == {"f", "g"}
    await world.check()


async def r10_clocks(world: World) -> None:
    """Clocks that are hours off change nothing: store time comes from the store's Date and never goes back."""
    await Store.init(world.bucket, world.bucket._env)
    a, b = await world.node(skew_s=7200), await world.node(skew_s=-86400)
    await a.store.submit_settings(SettingsChange(folders=(new_folder(a.env.random, "f"),)))
    await b.store.follow_to_head()
    for number in range(3):
        await a.put(await a.local(f"a{number}", "a"))
        await b.put(await b.local(f"b{number}", "b"))
    await a.store.follow_to_head()
    now_us = world.clock.now_ns() // 1000
    assert all(abs(record.sequence - now_us) < 60_000_000 for record in a.names().values())
    sequences = [a.names()[name].sequence for name in ("a0", "b0", "a1", "b1", "a2", "b2")]
    assert sequences == sorted(sequences)
    await world.check()


async def r11_one_copy(world: World) -> None:
    """Two siblings see the same conflict: one conflict copy in the end, not one each."""
    a, b = await world.two()
    await a.put(await a.file("f", "loser", ((1, 1),), mtime=5))
    await b.store.follow_to_head()
    winners = [await node.file("f", "winner", ((2, 1),), mtime=6, by=2) for node in (a, b)]
    outcomes = await asyncio.gather(a.submit(winners[0]), b.submit(winners[1]))
    assert sorted(outcome.status.value for [outcome] in outcomes) == ["committed", "dropped"]
    await a.store.follow_to_head()
    names = sorted(a.names())
    assert len(names) == 2
    assert sum(fileinfo.is_conflict_copy(name) for name in names) == 1
    await world.check()


async def r11_tree(world: World) -> None:
    """One node deletes a directory with its children while another adds a child: in either order no live file lies in a dead directory."""
    a, b = await world.two()
    await a.put(directory("d", ((1, 1),)), await a.file("d/f", "f", ((1, 1),)))
    await b.store.follow_to_head()
    gone = DraftSet(SetKind.ALL_OR_NONE, (removed("d/f", ((1, 2),)), directory("d", ((1, 2),), deleted=True)))
    child = await b.file("d/x", "x", ((2, 1),))
    await asyncio.gather(a.submit(gone), b.submit(child))
    await a.store.follow_to_head()
    assert not a.names()["d/x"].info.deleted
    assert not a.names()["d"].info.deleted
    await world.check()


async def r11_file_and_directory(world: World) -> None:
    """One node gets a file D while another gets D/x: the file goes on as a conflict copy, D is a directory."""
    a, b = await world.two()
    await b.store.follow_to_head()
    await asyncio.gather(a.submit(await a.file("d", "file", ((1, 1),))), b.submit(await b.file("d/x", "x", ((2, 1),))))
    await a.store.follow_to_head()
    names = a.names()
    assert not names["d/x"].info.deleted
    assert any(fileinfo.is_conflict_copy(name) for name in names)
    await world.check()


# ---- R8, R9, R14, R15 -------------------------------------------------------------------------------------------------


async def r8_no_conditional_writes(world: World) -> None:
    """A store without create-if-absent is refused at the door: nothing is ever overwritten by a commit."""

    async def without() -> Capabilities:
        return Capabilities(create_if_absent=False, if_match=False, name="sloppy")

    world.bucket.capabilities = without  # type: ignore[method-assign]
    with pytest.raises(Refused, match="conditional"):
        await Store.init(world.bucket, world.bucket._env)
    with pytest.raises(Refused, match="conditional"):
        await Store.try_out(world.bucket, world.bucket._env)


async def r9_partial(world: World) -> None:
    """The packs of an unfinished file are referred to: not collectable, seen by siblings, and free again with the file's record."""
    a, b = await world.two()
    wanted = file_info("big", "part", ((1, 1),))
    handle = await a.pack(b"part", b"more")
    await a.store.submit_partial(1, wanted, [(0, (handle, 0, 1))])
    await b.store.follow_to_head()
    conn = b.db._connect()
    [(partial, _)] = state.partials(conn, 1)
    assert (partial.name, partial.starts) == ("big", (0,))
    pack = a.store.packer.resolve(handle)
    assert pack is not None
    with pytest.raises(Conflict, match="void"):
        await b.store.submit_entries(lambda _conn, _packs: Body(packs_condemned=(pack,)))
    b.crash()
    await b.start()
    await b.put(Draft(1, wanted, ((pack, 0, 1),)))
    assert not state.partials(b.db._connect(), 1)
    await world.check()


async def r14_stepped_over(world: World) -> None:
    """A damaged slot is stepped over by a manifest of a node that has applied it."""
    a, b = await world.two()
    await fill(a, 1)
    await b.store.follow_to_head()
    wake = b.suspend()
    await fill(a, 3, "y")
    await a.store.follow_to_head()
    key = layout.slot_key(a.store.status().journal.number - 1)
    whole = world.bucket.snapshot()[key].data
    await world.bucket.put(key, [whole[:40] + b"?" + whole[41:]], Mode.OVERWRITE)
    wake.set()
    b.gate.before = None
    with pytest.raises(Corrupt, match="damaged"):
        await b.store.follow_to_head()
    assert b.store.status().journal.kind == "corrupt"
    await world.checkpoint(a)
    await b.store.follow_to_head()
    assert b.names().keys() == a.names().keys()
    await b.put(await b.file("z", "z", ((2, 1),)))
    await a.store.follow_to_head()
    assert "z" in a.names()


async def r14_newer_format(world: World) -> None:
    """A slot that needs an unknown feature: refused with what to do, never guessed; the node serves what it has and goes on trying."""
    a, b = await world.two()
    await fill(a, 1)
    await b.store.follow_to_head()
    number = a.store.status().journal.number
    for node in (a, b):
        node.suspend()
    slot = decode_slot(world.bucket.snapshot()[layout.slot_key(number)].data, "slot")
    assert isinstance(slot, Slot)
    head = state.head(a.db._connect())
    newer = replace(slot, number=number + 1, prev=head.slot_sha, features=("time-travel",), firsts=(), body=Body())
    await world.bucket.put(layout.slot_key(number + 1), [encode_slot(newer)], Mode.CREATE)
    b.gate.before = None
    with pytest.raises(Refused, match="time-travel"):
        await b.store.follow_to_head()
    assert "update" in b.store.status().journal.hint
    assert "x0" in b.names()


async def r15_lagging(world: World) -> None:
    """A sibling that was away follows to the head before it talks to peers, and does not take its lag for a bucket put back."""
    a, b = await world.two()
    b.crash()
    await fill(a, 12)
    await b.start(keep_cache=True)
    await b.store.follow_to_head()
    assert b.names().keys() == a.names().keys()
    assert not any(applied.restored for applied in b.applied)
    assert not b.store.status().journal.index_ids_due
    await world.check()


# ---- outcomes that are not known --------------------------------------------------------------------------------------


async def lost_answer(world: World) -> None:
    """The create happened, its answer was lost: the slot is read, the group is committed once."""
    a, _ = await world.two()
    wanted = await a.local("f", "f")
    a.faulty.plan = replace(QUIET, lost_response=0.5)
    [outcome] = await a.put(wanted)
    a.faulty.plan = QUIET
    assert len(state.old_versions(a.db._connect(), 1, "f")) == 0, "written once"
    assert outcome.sequences[0] == a.names()["f"].sequence
    await world.check()


async def lost_answer_in_an_outage(world: World) -> None:
    """The create happened, its answer was lost, and the store fell silent for longer than a minute: the group is recognised in the state,
    not written again, and its pack is known to be registered."""
    a, b = await world.two()
    wanted = await a.local("f", "f")
    await fill(b, 1, "before")
    await a.store.follow_to_head()

    async def lose(operation: str, key: str) -> None:
        if operation == "put" and key.startswith("journal/"):
            a.faulty.plan = replace(QUIET, lost_response=1.0)
        elif operation == "get" and a.faulty.plan.lost_response:
            a.faulty.plan = FaultPlan(unreachable=1.0)

    a.gate.before = lose
    task = asyncio.ensure_future(a.submit(wanted))
    await until(lambda: bool(a.faulty.plan.unreachable))
    await asyncio.sleep(100)
    await b.put(await b.local("f", "over it", condition=UNCONDITIONAL))
    a.gate.before, a.faulty.plan = None, QUIET
    [outcome] = await task
    assert outcome.status is Status.COMMITTED
    await a.store.follow_to_head()
    assert len(state.old_versions(a.db._connect(), 1, "f")) == 1, "written once, and not over what came after it"
    await a.put(Draft(1, file_info("again", "f", ((1, 1),)), wanted.extents))
    assert not any(applied.void for applied in a.applied)
    await world.check()


async def late_create(world: World) -> None:
    """The create arrives long after it was given up: the same bytes were tried again, so it is harmless."""
    a, b = await world.two()
    wanted = await a.local("f", "f")
    a.faulty.plan = replace(QUIET, late_write=0.7, late_s=(0.1, 20.0))
    await a.put(wanted)
    assert len(state.old_versions(a.db._connect(), 1, "f")) == 0
    await b.put(await b.local("g", "g"))
    await world.check()


async def dead_mans_create(world: World) -> None:
    """A process dies with its create on the way, which arrives when the next process of that node has started."""
    a, b = await world.two()
    wanted = await a.local("f", "f")
    a.faulty.plan = replace(QUIET, late_write=1.0, late_s=(5.0, 5.0))
    task = asyncio.ensure_future(a.submit(wanted))
    await until(lambda: any(key.startswith("journal/") for key in a.gate.puts[2:]))
    await asyncio.sleep(0.3)
    a.crash()
    task.cancel()
    a.plan = QUIET
    await a.start()
    await asyncio.gather(a.put(await a.local("g", "g")), b.put(await b.local("h", "h")))
    await asyncio.sleep(10)
    await world.check()


async def outage(world: World) -> None:
    """The store does not answer for an hour: nothing is acknowledged, `status` says so, then everything is committed once."""
    a, b = await world.two()
    wanted = await a.file("f", "f", ((1, 1),))
    a.faulty.plan = FaultPlan(unreachable=1.0)
    task = asyncio.ensure_future(a.submit(wanted))
    await asyncio.sleep(3600)
    assert not task.done()
    assert a.store.status().journal.trouble
    with pytest.raises(StnodeError):
        await a.store.follow_to_head()
    a.faulty.plan = QUIET
    [outcome] = await task
    assert outcome.status is Status.COMMITTED
    await b.store.follow_to_head()
    await world.check()


async def put_back_in_an_outage(world: World) -> None:
    """The bucket is put back while a create is undecided: nothing is built on the head that is gone."""
    a, b = await world.two()
    await fill(a, 1)
    backup = world.bucket.snapshot()
    await fill(a, 2, "lost")
    await b.store.follow_to_head()
    wanted = await a.file("f", "f", ((1, 1),))
    a.faulty.plan = replace(QUIET, lost_request=1.0)
    task = asyncio.ensure_future(a.submit(wanted))
    await asyncio.sleep(200)
    world.bucket.restore(backup)
    world.forget()
    a.faulty.plan = QUIET
    [outcome] = await task
    assert outcome.status is Status.RETRY_UPLOAD
    await a.put(await a.file("f", "f", ((1, 1),)))
    await b.store.follow_to_head()
    await asyncio.sleep(120)
    await world.check()


async def large_body(world: World) -> None:
    """A group too large for a slot that loses: its body is uploaded once; what re-validation drops is named, what it changes goes into
    the slot."""
    a, b = await world.two()
    await b.store.follow_to_head()
    drafts = [await a.file(f"many/{number}", "x", ((1, 1),)) for number in range(3)]
    extents = drafts[0].extents
    many = [replace(drafts[0], info=file_info(f"many/{number}", f"x{number}", ((1, 1),)), extents=extents) for number in range(1500)]
    held, go = asyncio.Event(), asyncio.Event()

    async def hold(operation: str, key: str) -> None:
        if operation == "put" and key.startswith("journal/"):
            held.set()
            await go.wait()

    a.gate.before = hold
    task = asyncio.ensure_future(a.submit(*many))
    await held.wait()
    await b.put(*[await b.file(f"many/{number}", f"x{number}", ((1, 1),)) for number in range(3)])
    go.set()
    outcomes = await task
    assert [outcome.status for outcome in outcomes[:3]] == [Status.DROPPED] * 3
    assert all(outcome.status is Status.COMMITTED for outcome in outcomes[3:])
    assert [outcome.names for outcome in outcomes[3:5]] == [("many/3",), ("many/4",)]
    record = a.record("many/700")
    assert record is not None
    assert outcomes[700].sequences == (record.sequence,)
    assert a.store.status().journal.counts.bodies_uploaded == 1
    await world.check()


async def mass_deletion(world: World) -> None:
    """Deleting more than half of a thousand files waits for an hour, or for a word; other changes go on."""
    a, _ = await world.two()
    first = await a.file("f0", "x", ((1, 1),))
    files = [replace(first, info=file_info(f"f{number}", "x", ((1, 1),))) for number in range(1200)]
    await a.put(*files)
    gone = asyncio.ensure_future(a.submit(*[removed(f"f{number}", ((1, 2),)) for number in range(700)]))
    await a.put(await a.file("other", "y", ((1, 1),)))
    assert not gone.done()
    [held] = a.store.pending_deletions()
    assert (held.fid, held.files) == (1, 700)
    if world.seed % 2:
        a.store.confirm_deletions(1)
        await gone
        assert a.env.clock.monotonic() < 60
    else:
        await gone
        assert a.env.clock.monotonic() > 3600
    assert not a.store.pending_deletions()
    await world.check()


async def mass_deletion_on_two_nodes(world: World) -> None:
    """A device that is connected to two nodes deletes everything: each holds by itself, one answer is enough for both."""
    a, b = await world.two()
    first = await a.file("f0", "x", ((1, 1),))
    await a.put(*[replace(first, info=file_info(f"f{number}", "x", ((1, 1),))) for number in range(1200)])
    await b.store.follow_to_head()
    gone = [removed(f"f{number}", ((1, 2),)) for number in range(900)]
    waiting = [asyncio.ensure_future(node.submit(*gone)) for node in (a, b)]
    while not (a.store.pending_deletions() and b.store.pending_deletions()):
        await a.env.clock.sleep(1)
    assert [node.store.pending_deletions()[0].files for node in (a, b)] == [900, 900]
    a.store.confirm_deletions(1)
    outcomes = await asyncio.gather(*waiting)
    assert {outcome.status for outcome in outcomes[0]} == {Status.COMMITTED}
    assert {outcome.status for outcome in outcomes[1]} == {Status.DROPPED}
    assert b.env.clock.monotonic() < 600
    assert not b.store.pending_deletions()
    await world.check()


async def losing_version_kept(world: World) -> None:
    """A losing version that a device announces is not copied here; it may be kept as history, without touching what is current."""
    a, b = await world.two()
    a.store.announced = lambda _conn, _fid, info: info.modified_by == 1
    await a.put(await a.file("f", "loser", ((1, 1),), mtime=5))
    await a.put(await a.file("f", "winner", ((2, 1),), mtime=6, by=2))
    assert a.names().keys() == {"f"}
    await a.put(replace(await a.file("f", "third", ((3, 1),), mtime=4), history=HistoryRule.ONLY))
    assert len(state.old_versions(a.db._connect(), 1, "f")) == 2
    current = a.record("f")
    assert current is not None
    assert covers(current.info.version, ((2, 1),))
    await b.store.follow_to_head()
    await world.check()


test_r1_a_sleeping_follower = simulated(r1_follower)
test_r1_a_create_under_way = simulated(r1_committer)
test_r1_a_restore_under_way = simulated(r1_restorer)
test_r1_a_restore_that_breaks_off = simulated(r1_broken_off)
test_r2_a_repack_is_computed_anew = simulated(r2_recomputed)
test_r2_a_record_into_a_condemned_pack = simulated(r2_writer)
test_r2_a_wrong_condemnation_is_void = simulated(r2_void)
test_r3_an_orphan_below_the_horizon = simulated(r3_orphan, seeds=2)
test_r4_a_committer_on_a_bucket_put_back = simulated(r4_committer)
test_r4_an_idle_follower_on_a_bucket_put_back = simulated(r4_idle)
test_r4_a_foreign_predecessor = simulated(r4_foreign)
test_r4_an_upload_lost_without_a_commit = simulated(r4_upload)
test_r4_numbers_of_packs = simulated(r4_pack_numbers)
test_r4_a_crash_before_the_new_index_id = simulated(r4_crash)
test_r4_a_fresh_container_on_a_bucket_put_back = simulated(r4_fresh)
test_r4_a_gap = simulated(r4_gap)
test_r4_an_empty_bucket = simulated(r4_empty)
test_r5_two_writers_of_one_checkpoint = simulated(r5_two_writers)
test_r5_a_damaged_run = simulated(r5_damaged_run)
test_r6_settings_are_the_stores = simulated(r6_settings)
test_r7_two_processes_of_one_identity = simulated(r7_one_identity)
test_r7_last_writer_wins = simulated(r7_last_writer)
test_r8_a_store_without_conditional_writes = simulated(r8_no_conditional_writes)
test_r9_an_unfinished_file = simulated(r9_partial)
test_r10_wrong_clocks = simulated(r10_clocks)
test_r11_one_conflict_copy = simulated(r11_one_copy)
test_r11_a_child_in_a_directory_that_goes = simulated(r11_tree)
test_r11_a_file_where_a_directory_comes = simulated(r11_file_and_directory)
test_r12_a_folders_second_life = simulated(r12_second_life)
test_r14_a_damaged_slot = simulated(r14_stepped_over)
test_r14_a_newer_format = simulated(r14_newer_format)
test_r15_a_lagging_sibling = simulated(r15_lagging)
test_a_lost_answer = simulated(lost_answer)
test_a_lost_answer_in_an_outage = simulated(lost_answer_in_an_outage)
test_a_late_create = simulated(late_create)
test_a_dead_mans_create = simulated(dead_mans_create)
test_an_outage = simulated(outage)
test_a_bucket_put_back_in_an_outage = simulated(put_back_in_an_outage)
test_a_large_body_that_loses = simulated(large_body, seeds=2)
test_a_mass_deletion_waits = simulated(mass_deletion, seeds=2)
test_a_mass_deletion_waits_on_each_node = simulated(mass_deletion_on_two_nodes, seeds=2)
test_a_losing_version_that_is_announced = simulated(losing_version_kept)
