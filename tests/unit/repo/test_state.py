"""The state: what commits do, which are void, what reads answer. One journal per test, applied to a database in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from sqlite3 import Connection
from typing import Any

import pytest

from stnode.db import Database
from stnode.errors import Conflict, Internal, Refused
from stnode.protocol import vector
from stnode.protocol.fileinfo import FileType
from stnode.repo import state
from stnode.repo.codec import Body, BodyRecord, PackAdded, Partial, Relocation, Section
from stnode.repo.layout import mint
from stnode.repo.parameters import Collection
from stnode.repo.records import Applied, HistoryRule
from stnode.repo.settings import DeviceSettings, FolderSettings
from tests.support.journal import DAY_US, DOCS, NODE, PHOTOS, JournalWriter, dump, new_journal, record, section

FID = 1


class Node:
    """A journal's writer with one database that applies each commit at once."""

    def __init__(self, db: Database, writer: JournalWriter) -> None:
        self.db = db
        self.writer = writer

    async def commit(self, body: Body, **changes: Any) -> Applied:
        slot = await self.writer.commit(body, **changes)
        return await self.db.write(lambda conn: state.apply(conn, slot, self.writer.sha, body))

    async def records(self, *records: BodyRecord, packs: tuple[PackAdded, ...] = (), **entries: Any) -> Applied:
        applied = await self.commit(Body(sections=(section(*records, **entries),), packs_added=packs))
        assert applied.void is None
        return applied

    async def void(self, body: Body, match: str, **changes: Any) -> None:
        """The commit is void, for `validate` and `apply`, and moves the head and nothing else."""
        before = await self.db.run(dump)
        slot = await self.writer.commit(body, **changes)
        reason = await self.db.run(lambda conn: state.validate(conn, slot, body))
        applied = await self.db.write(lambda conn: state.apply(conn, slot, self.writer.sha, body))
        assert applied.void == reason
        assert reason is not None
        assert match in reason
        assert not applied.folders
        assert not applied.settings_changed
        after = await self.db.run(dump)
        assert (await self.read(state.head)).number == slot.number
        before.pop("state")
        after.pop("state")
        assert before == after

    async def read(self, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return await self.db.run(lambda conn: fn(conn, *args, **options))


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """A node whose store has the folder `photos` (fid 1)."""
    db = Database(None, inline=True)
    await state.prepare(db)
    node = Node(db, new_journal()[0])
    assert (await node.commit(Body(folders=(PHOTOS,)))).settings_changed
    yield node
    await db.close()


async def test_records_get_dense_numbers_and_totals(node: Node) -> None:
    pack = node.writer.pack(10)
    applied = await node.records(
        record("a", 1, ((-1, 0, 1),), size=100),
        record("dir", type=FileType.DIRECTORY),
        record("link", type=FileType.SYMLINK),
        record("gone", deleted=True),
        packs=(pack,),
    )
    first = node.writer.clock.now_us
    assert applied.folders[FID].names == ("a", "dir", "link", "gone")
    assert (applied.folders[FID].first_seq, applied.folders[FID].last_seq) == (first, first + 3)
    found = await node.read(state.get_records, FID, ["a", "gone", "missing"])
    assert set(found) == {"a", "gone"}
    assert found["a"].sequence == found["a"].info.sequence == first
    assert found["a"].extents == ((1, 0, 1),)
    assert found["a"].info.version == ((77, 1),)
    assert await node.read(state.totals, FID) == state.Totals(1, 1, 1, 1, 100)
    await node.records(record("a", 2, size=50), record("gone", 2), record("link", 2, deleted=True))
    assert await node.read(state.totals, FID) == state.Totals(2, 1, 0, 1, 60)
    assert [each.name for each in await node.read(state.records_since, FID, first, 2)] == ["dir", "a"]
    assert await node.read(state.last_sequence, FID) == node.writer.clock.now_us + 2


async def test_what_serving_needs_of_files(node: Node) -> None:
    await node.records(
        record("small", 1, ((-1, 0, 1),), size=100),
        record("large", 1, ((-1, 1, 2), (0, 0, 1)), size=300_000),
        record("empty", size=0),
        record("dir", type=FileType.DIRECTORY),
        record("link", type=FileType.SYMLINK),
        record("gone", deleted=True),
        packs=(node.writer.pack(10),),
    )
    found = await node.read(state.served, FID, ["small", "large", "empty", "dir", "link", "gone", "missing"])
    assert found == {
        "small": (100, 100, ((1, 0, 1),)),
        "large": (300_000, 131_072, ((1, 1, 2), (0, 0, 1))),
        "empty": (0, 131_072, ()),
    }


async def test_replaced_versions_are_kept_until_a_commit_ends_them(node: Node) -> None:
    await node.records(record("a", 1, ((-1, 0, 2),)), packs=(node.writer.pack(10),))
    await node.records(record("a", 2, ((1, 2, 3),)))
    replaced_us = node.writer.clock.now_us
    await node.records(record("a", 3, deleted=True))
    await node.records(record("a", 4, deleted=True), record("a", 5, history=HistoryRule.ONLY))
    old = await node.read(state.old_versions, FID, "a")
    assert [each.record.info.version for each in old] == [((77, 5),), ((77, 2),), ((77, 1),)]
    assert old[2].superseded_us == replaced_us
    assert (await node.read(state.get_records, FID, ["a"]))["a"].info.version == ((77, 4),)
    assert (await node.read(state.packs, [1]))[1].refs == 5
    await node.records(history_dropped_before_us=replaced_us + 1)
    assert [each.record.info.version for each in await node.read(state.walk_history, FID, "", ("", 0), 9)] == [((77, 2),), ((77, 5),)]
    assert (await node.read(state.packs, [1]))[1].refs == 3
    await node.records(history_dropped_before_us=node.writer.clock.now_us)
    assert (await node.read(state.packs, [1]))[1].refs == 0


async def test_a_replaced_version_can_be_dropped_at_once(node: Node) -> None:
    await node.records(record("a", 1, ((-1, 0, 2),)), packs=(node.writer.pack(10),))
    await node.records(record("a", 2, ((1, 0, 2),), history=HistoryRule.DROP))
    assert await node.read(state.old_versions, FID, "a") == []
    assert (await node.read(state.packs, [1]))[1].refs == 2


async def test_one_name_twice_in_a_commit(node: Node) -> None:
    applied = await node.records(record("a", 1), record("a", 2))
    assert applied.folders[FID].names == ("a", "a")
    assert (await node.read(state.get_records, FID, ["a"]))["a"].info.version == ((77, 2),)
    assert len(await node.read(state.old_versions, FID, "a")) == 1
    assert (await node.read(state.totals, FID)).files == 1


async def test_old_tombstones_go_by_a_commit(node: Node) -> None:
    await node.records(record("a", deleted=True), record("b"))
    await node.records(record("c", deleted=True))
    await node.records(tombstones_dropped_below=node.writer.clock.now_us)
    assert set(await node.read(state.get_records, FID, ["a", "b", "c"])) == {"b", "c"}
    assert (await node.read(state.totals, FID)).deleted == 1


async def test_intervals_of_numbers_merge_when_close(node: Node) -> None:
    await node.records(record("a"), record("b"))
    first = node.writer.clock.now_us
    await node.records(record("c"))
    assert await node.read(state.intervals, FID) == [(first, first + 1_000_000)]
    node.writer.clock.now_us += 61_000_000
    await node.records(record("d"))
    later = node.writer.clock.now_us
    assert await node.read(state.intervals, FID) == [(first, first + 1_000_000), (later, later)]


def partial(name: str, version: int, *extents: tuple[int, int, int]) -> Partial:
    return Partial(name, vector.to_wire(((77, version),)), NODE, 1 << 30, 1 << 20, b"h", tuple(range(0, 10 * len(extents), 10)), extents)


async def test_partial_files_count_as_references_and_end_with_their_version(node: Node) -> None:
    pack = node.writer.pack(20)
    await node.records(partials=(partial("big", 2, (-1, 0, 3)), partial("big", 4, (-1, 3, 4))), packs=(pack,))
    await node.records(partials=(partial("big", 2, (1, 0, 3), (1, 10, 2)), partial("other", 1, (1, 0, 1)), partial("third", 1)))
    assert (await node.read(state.packs, [1]))[1].refs == 10
    runs = await node.read(state.partial_runs, FID, [("big", ((77, 2),)), ("big2", ((77, 2),))])
    assert runs == {"big": ((0, (1, 0, 3)), (10, (1, 10, 2)))}
    await node.records(record("big", 3, ((1, 0, 5),)))
    left = await node.read(state.partials, FID)
    assert [(each.name, each.version) for each, _ in left] == [
        ("big", vector.to_wire(((77, 4),))),
        ("other", left[1][0].version),
        ("third", left[2][0].version),
    ]
    await node.records(partials_dropped=(("other", left[1][0].version), ("none", b"")))
    await node.records(partials_dropped_before_us=left[2][1])
    assert [each.name for each, _ in await node.read(state.partials, FID)] == ["third"]
    assert (await node.read(state.packs, [1]))[1].refs == 5


async def test_relocations_are_followed_split_and_dropped(node: Node) -> None:
    packs = tuple(node.writer.pack(30) for _ in range(3))
    await node.records(record("a", 1, ((-1, 0, 30),)), packs=packs)
    await node.commit(Body(relocations=(Relocation(1, 5, 20, 2, 0),)))
    assert await node.read(state.resolve, 1, 0, 30) == [(1, 0, 5), (2, 0, 20), (1, 25, 5)]
    await node.commit(Body(relocations=(Relocation(1, 10, 5, 3, 7),)))
    assert await node.read(state.resolve, 1, 8, 10) == [(2, 3, 2), (3, 7, 5), (2, 10, 3)]
    assert [(r.place, r.count) for r in await node.read(state.relocations, 1)] == [(5, 5), (10, 5), (15, 10)]
    await node.commit(Body(relocations=(Relocation(2, 0, 4, 3, 20),)))
    assert await node.read(state.resolve, 1, 4, 4) == [(1, 4, 1), (3, 20, 3)]
    assert await node.read(state.resolve, 0, 0, 4) == [(0, 0, 4)]
    await node.void(Body(relocations=(Relocation(3, 0, 1, 2, 1),)), "have moved on")
    await node.void(Body(relocations=(Relocation(3, 0, 1, 2, 30),)), "no live block")
    await node.void(Body(relocations=(Relocation(3, 0, 1, 1, 0), Relocation(1, 0, 1, 2, 9))), "in the same commit")
    await node.void(Body(relocations_dropped=(1,)), "still needed")
    await node.records(record("a", 2, history=HistoryRule.DROP))
    await node.commit(Body(relocations_dropped=(1,)))
    assert await node.read(state.relocations, 1) == []


async def test_a_pack_still_referred_to_is_not_condemned(node: Node) -> None:
    """R2: the repacker planned before a block became live again."""
    packs = (node.writer.pack(10), node.writer.pack(10))
    await node.records(record("live", 1, ((-1, 0, 2),)), record("again", 1, ((-1, 5, 1),)), packs=packs)
    moved = Relocation(1, 0, 2, 2, 0)
    await node.void(Body(relocations=(moved,), packs_condemned=(1,)), "still referred to")
    await node.void(Body(packs_condemned=(9,)), "does not exist")
    whole = Body(relocations=(moved, Relocation(1, 5, 1, 2, 2)), packs_condemned=(1,))
    assert (await node.commit(whole)).void is None
    assert await node.read(state.condemned) == ([(1, node.writer.number)], [])
    await node.records(record("copy", 1, ((1, 0, 2),)))
    await node.void(Body(sections=(section(record("dead", 1, ((1, 7, 1),))),)), "condemned or not registered")
    await node.void(Body(packs_condemned=(2,)), "still referred to")
    await node.void(Body(packs_gone=(2,)), "never condemned")
    assert (await node.commit(Body(packs_gone=(1,)))).void is None
    assert await node.read(state.packs, [1]) == {}
    assert (await node.read(state.packs_after, 0, 9))[0].number == 2


async def test_history_and_partial_files_hold_packs(node: Node) -> None:
    await node.records(
        record("a", 1, ((-1, 0, 1),)), partials=(partial("p", 1, (-2, 0, 1)),), packs=(node.writer.pack(9), node.writer.pack(9))
    )
    await node.records(record("a", 2))
    await node.void(Body(packs_condemned=(1,)), "pack 1")
    await node.void(Body(packs_condemned=(2,)), "pack 2")
    ended = section(history_dropped_before_us=node.writer.clock.now_us, partials_dropped=(("p", partial("p", 1).version),))
    assert (await node.commit(Body(sections=(ended,), packs_condemned=(1, 2)))).void is None


async def test_the_horizon_follows_the_age_that_the_store_was_made_with(node: Node) -> None:
    """And which commit raised it is remembered: grace runs from there."""
    await state.prepare(node.db, Collection(orphan_age_s=30))
    now_us = node.writer.clock.now_us
    await node.void(Body(horizon_us=now_us - 28_000_000), "less than 30 s")
    raised = await node.commit(Body(horizon_us=now_us - 29_000_000))
    assert raised.void is None
    assert (await node.commit(Body(horizon_us=now_us - 29_500_000))).void is None
    assert await node.read(state.horizons) == [(raised.number, now_us - 29_000_000)]


async def test_nothing_unregistered_below_the_horizon_may_be_named(node: Node) -> None:
    """R3: a forgotten orphan is collected, its late writer's commit is void."""
    old = node.writer.pack(5)
    node.writer.clock.now_us += 3 * DAY_US
    now_us = node.writer.clock.now_us
    await node.void(Body(horizon_us=now_us - DAY_US + 2_000_000), "less than 86400 s")
    assert (await node.commit(Body(horizon_us=now_us - DAY_US))).void is None
    assert (await node.commit(Body(horizon_us=now_us - 2 * DAY_US))).void is None
    assert (await node.read(state.head)).horizon_us == now_us - DAY_US
    await node.void(Body(sections=(section(record("a", 1, ((-1, 0, 1),))),), packs_added=(old,)), "orphan horizon")
    slot = await node.writer.commit(Body(), stored=True)
    assert slot.stored is not None
    late = replace(slot, stored=replace(slot.stored, id=mint(now_us - 2 * DAY_US, node.writer.env.random)))
    assert "body was minted" in (await node.read(state.check_slot, late) or "")
    applied = await node.db.write(lambda conn: state.apply(conn, late, bytes(32), None))
    assert "body was minted" in str(applied.void)


async def test_void_records(node: Node) -> None:
    await node.records(record("a", 1, ((-1, 0, 1),)), packs=(node.writer.pack(3),))
    last = node.writer.clock.now_us
    for extents, match in (
        (((1, 2, 2),), "block 3 of pack 1"),
        (((2, 0, 1),), "not registered"),
        (((-1, 0, 1),), "which has None"),
        (((0, 0, 5), (7, 0, 1)), "pack 7"),
    ):
        await node.void(Body(sections=(section(record("b", 1, extents)),)), match)
    await node.void(Body(sections=(section(record("b")),)), f"{last} is assigned", firsts=((PHOTOS.fkey, last),))
    await node.void(Body(sections=(section(record("b")),)), "begin at 0", firsts=())
    await node.void(Body(sections=(section(record("b"), folder=DOCS),)), "there is no folder")
    await node.void(Body(sections=(section(BodyRecord(b"\xff")),)), "no FileInfo")
    await node.void(Body(sections=(section(BodyRecord(b"")),)), "no proper name")
    await node.void(Body(sections=(section(), section())), "named twice")
    await node.void(Body(packs_added=(node.writer.pack(1, DOCS),)), "belongs to no folder")
    pack = node.writer.pack(1)
    await node.void(Body(packs_added=(pack, pack)), "registered already")
    await node.void(Body(), "before its predecessor", store_time_us=last - 1)
    assert (await node.read(state.head)).store_time_us == node.writer.clock.now_us - 1_000_000


async def test_errors_that_are_not_the_commits_content(node: Node) -> None:
    slot = await node.writer.commit(Body())
    with pytest.raises(Conflict, match="does not continue"):
        await node.read(state.validate, replace(slot, prev=b"\1" * 32), Body())
    with pytest.raises(Conflict, match="does not continue"):
        await node.read(state.validate, replace(slot, number=9), Body())
    with pytest.raises(Refused, match="teleport"):
        await node.read(state.validate, replace(slot, features=("teleport",)), Body())
    with pytest.raises(Refused, match="teleport"):
        await node.read(state.validate, slot, Body(features_on=("teleport",)))
    with pytest.raises(Internal, match="without its body"):
        await node.db.write(lambda conn: state.apply(conn, slot, bytes(32), None))


async def test_folders_come_change_and_go_for_good(node: Node) -> None:
    """R12: a second life under the same ID is another incarnation."""
    await node.records(record("a", 1, ((-1, 0, 1),)), packs=(node.writer.pack(3),))
    await node.commit(Body(folders=(replace(PHOTOS, label="Pictures"), DOCS)))
    assert [each.settings.label for each in await node.read(state.folders)] == ["Pictures", ""]
    assert (await node.read(state.folder_by_id, "photos")).fid == FID
    await node.void(Body(folders=(replace(PHOTOS, incarnation="00" * 8, index_id=8),)), "exists already")
    await node.void(Body(folders=(replace(DOCS, folder_id="new", incarnation="00" * 8),)), "index ID")
    again = replace(PHOTOS, incarnation="00" * 8, index_id=8)
    applied = await node.commit(Body(folders_removed=(PHOTOS.fkey,), folders=(again,), packs_condemned=(1,)))
    assert applied.void is None
    assert (await node.read(state.folder_by_id, "photos")).fid == 3
    removed = await node.read(state.folder, FID)
    assert removed.removed
    assert removed.totals == state.Totals(0, 0, 0, 0, 0)
    assert await node.read(state.get_records, FID, ["a"]) == {}
    await node.void(Body(folders=(PHOTOS,)), "is removed")
    await node.void(Body(folders_removed=(PHOTOS.fkey,)), "no folder")
    renewed = replace(again, index_id=99)
    assert (await node.commit(Body(folders=(renewed,)))).settings_changed
    assert (await node.read(state.folder_by_id, "photos")).settings.index_id == 99


async def test_devices_marks_and_objects(node: Node) -> None:
    laptop = DeviceSettings(b"\1" * 32, "laptop")
    await node.commit(Body(devices=(laptop, DeviceSettings(b"\2" * 32, "phone")), packs_added=(node.writer.pack(1),)))
    await node.commit(Body(devices=(replace(laptop, name="desk"),), devices_removed=(b"\2" * 32, b"\3" * 32)))
    assert [each.name for each in await node.read(state.devices)] == ["desk"]
    assert await node.read(state.device, b"\2" * 32) is None
    await node.commit(Body(packs_lost=(1,), objects_condemned=("runs/aa/x", "runs/aa/y")))
    assert (await node.read(state.packs, [1]))[1].lost == node.writer.number
    assert len((await node.read(state.condemned))[1]) == 2
    await node.commit(Body(packs_found=(1,), objects_gone=("runs/aa/x", "other")))
    assert (await node.read(state.packs, [1]))[1].lost == 0
    assert [key for key, _ in (await node.read(state.condemned))[1]] == ["runs/aa/y"]
    known = (await node.read(state.packs, [1]))[1]
    assert await node.read(state.pack_by_id, known.id) == known


async def test_listing_reads(node: Node) -> None:
    names = ["a", "a-b", "a/x", "a/y/z", "a/y/w", "a0", "b/only/deep", "ä", "gone"]
    await node.records(*(record(name, deleted=name == "gone") for name in names))

    async def found(fn: Callable[..., Any], *args: Any, **options: Any) -> list[str]:
        return [each.name for each in await node.read(fn, FID, *args, **options)]

    assert await found(state.walk, "", "", 99) == sorted(set(names) - {"gone"}, key=str.encode)
    assert await found(state.walk, "a/", "a/x", 99) == ["a/y/w", "a/y/z"]
    assert await found(state.walk, "", "", 2, deleted=True) == ["a", "a-b"]
    assert await found(state.children, "") == ["a", "a-b", "a0", "ä"]
    assert await found(state.children, "", deleted=True) == ["a", "a-b", "a0", "gone", "ä"]
    assert await found(state.children, "", after="a-b", limit=1) == ["a0"]
    assert await found(state.children, "a") == ["a/x"]
    assert await found(state.children, "a/y") == ["a/y/w", "a/y/z"]
    assert await found(state.children, "b") == []
    assert await node.read(state.live_children, FID, ["a", "b", "gone", "a/x"]) == {"a", "b"}


async def test_children_of_wide_and_deep_directories(node: Node) -> None:
    await node.records(*(record(f"w/{n:04d}") for n in range(100)), *(record(f"w/0050.d/{n}") for n in range(100)), record("w/0050.d"))
    found = [each.name for each in await node.read(state.children, FID, "w")]
    assert found == sorted([*(f"w/{n:04d}" for n in range(100)), "w/0050.d"])


async def test_a_failing_trial_leaves_nothing(node: Node) -> None:
    await node.records(record("a", 1, ((-1, 0, 1),)), packs=(node.writer.pack(3),))
    before = await node.db.run(dump)
    slot = await node.writer.commit(Body(packs_condemned=(1,)))

    def both(conn: Connection) -> str | None:
        return state.validate(conn, slot, Body(packs_condemned=(1,)))

    assert "still referred" in str(await node.db.write(both))
    assert await node.db.run(dump) == before


def test_sections_name_their_folder() -> None:
    assert section(folder=DOCS) == Section("_44ocs_20_26_20more-ffeeddccbbaa9988")
    assert FolderSettings("x", "1", 1).fkey == "x-1"
