"""What expires, on states made of commits with chosen store times; and what the past looked like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from stnode.db import Database
from stnode.protocol.fileinfo import FileType
from stnode.repo import history, past, state
from stnode.repo.codec import Body, BodyRecord, Section
from stnode.repo.history import Due, surplus
from stnode.repo.records import HistoryRule
from stnode.retention import DAY_S, HOUR_S, policy
from tests.support.journal import DAY_US, PHOTOS, JournalWriter, new_journal, record, section, wire

FID = 1
HOUR_US = DAY_US // 24


class Node:
    """A journal's writer with one database; commits happen at the clock's time."""

    def __init__(self, db: Database, writer: JournalWriter) -> None:
        self.db = db
        self.writer = writer

    @property
    def now_us(self) -> int:
        return self.writer.clock.now_us

    async def commit(self, body: Body) -> int:
        """Commits; the sequence of its first record, which is its store time."""
        slot = await self.writer.commit(body)
        applied = await self.db.write(lambda conn: state.apply(conn, slot, self.writer.sha, body))
        assert applied.void is None
        return slot.store_time_us

    async def put(self, *records: BodyRecord, later_us: int = HOUR_US) -> int:
        self.writer.clock.now_us += later_us
        return await self.commit(Body(sections=(section(*records),)))

    async def keep(self, policy: str, floor: str = "") -> None:
        await self.commit(Body(folders=(replace(PHOTOS, history=policy, history_floor=floor),)))

    async def due(self, **options: Any) -> list[Due]:
        found: list[Due] = []
        after: history.Cursor | None = history.START
        while after is not None:
            found.append(await self.db.run(partial(history.due, fid=FID, now_us=self.now_us, after=after)))
            after = found[-1].next
        return [each for each in found if each.section is not None]

    async def expire(self) -> int:
        """Commits what is due, stretch by stretch; how many versions that dropped."""

        async def submit(make: Any) -> int:
            await self.commit(await self.db.run(lambda conn: make(conn, None)))
            return 0

        found = await history.expire(self.db, submit, self.now_us)
        return found["photos"].versions if found else 0

    async def left(self) -> list[tuple[str, int]]:
        """Name and version of what is retained."""
        kept = await self.db.run(lambda conn: state.walk_history(conn, FID, "", ("", 0), 1000))
        return [(each.record.name, each.record.info.version[0][1]) for each in kept]


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    db = Database(None, inline=True)
    await state.prepare(db)
    node = Node(db, new_journal()[0])
    await node.commit(Body(folders=(PHOTOS,)))
    yield node
    await db.close()


async def versions(node: Node, count: int, name: str = "a", apart_us: int = DAY_US) -> None:
    """Versions 1 to `count` of a file, the last one current."""
    for number in range(1, count + 1):
        await node.put(record(name, number, size=10), later_us=apart_us)


async def test_by_age_one_entry_is_enough(node: Node) -> None:
    await node.keep("30d")
    await versions(node, 40)
    [found] = await node.due()
    assert found.section == Section(PHOTOS.fkey, history_dropped_before_us=node.now_us - 30 * DAY_US)
    assert (found.versions, found.bytes) == (9, 90)  # the 40th version replaced the 39th just now
    assert await node.expire() == 9
    assert len(await node.left()) == 30
    assert await node.due() == []


@pytest.mark.parametrize(
    ("policy", "floor", "kept"),
    [
        ("0", "", 7),
        ("3d", "", 7),
        ("0", "0s", 0),
        ("3d", "1h", 3),
        ("all", "0s", 39),
        ("simple:20", "", 20),
        ("simple:3", "", 7),
        ("simple:3", "0", 3),
        ("simple:20,10d", "0", 10),
        ("trashcan:3d", "0", 1),
        ("a newer stnode's", "0", 39),
    ],
)
async def test_policies_keep_the_newest_and_never_less_than_the_floor(node: Node, policy: str, floor: str, kept: int) -> None:
    await node.keep(policy, floor)
    await versions(node, 40)
    node.writer.clock.now_us += HOUR_US - 3_000_000
    before = await node.left()
    await node.expire()
    assert await node.left() == before[len(before) - kept :]
    assert await node.due() == []


async def test_nothing_expires_without_store_time_passing(node: Node) -> None:
    await node.keep("0", "0s")
    await versions(node, 3)
    assert await node.expire() == 1  # not the one that was replaced at this very moment
    await versions(node, 2)
    early = node.now_us - 3 * DAY_US
    assert (await node.db.run(lambda conn: history.due(conn, FID, early))).section is None


async def test_what_lost_against_a_concurrent_version_stays_30_days(node: Node) -> None:
    loser = BodyRecord(wire("a", 1), (), 0)
    await node.keep("0")
    await node.put(loser)
    winner = wire("a", 2).replace(b"\x08\x4d\x10\x02", b"\x08\x4e\x10\x02")  # the counter of another device
    assert winner != wire("a", 2)
    await node.put(BodyRecord(winner), record("b", 1))
    await node.put(record("b", 2), later_us=HOUR_US)
    await node.put(record("x"), later_us=29 * DAY_US)
    assert await node.expire() == 1
    assert await node.left() == [("a", 1)]
    await node.put(record("y"), later_us=2 * DAY_US)
    assert await node.expire() == 1
    assert await node.left() == []


async def test_what_went_to_the_history_itself_stays_30_days_and_an_explicit_floor_says_otherwise(node: Node) -> None:
    await node.keep("simple:1")
    await node.put(record("a", 5))
    await node.put(record("a", 9, history=HistoryRule.ONLY))  # nothing committed contains it
    for number in (6, 7):
        await node.put(record("a", number))
    await node.put(record("x"), later_us=10 * DAY_US)
    await node.expire()
    assert await node.left() == [("a", 9), ("a", 6)]
    await node.keep("simple:1", "7d")
    await node.expire()
    assert await node.left() == [("a", 6)]


async def test_large_histories_expire_in_stretches(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "STRETCH", 4)
    await node.keep("simple:1", "0")
    for number in range(1, 7):
        await node.put(*(record(f"f{name}", number) for name in range(5)))
    found = await node.due()
    assert sum(each.versions for each in found) == 20
    assert max(each.versions for each in found) <= 5  # one name is not divided
    assert await node.expire() == 20
    assert await node.left() == [(f"f{name}", 5) for name in range(5)]
    await node.keep("0", "0")
    await node.put(record("x"))
    assert await node.expire() == 5
    assert await node.left() == []


async def test_one_moment_with_more_than_a_stretch(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "STRETCH", 3)
    for settings in (("0", "0"), ("0", "")):  # by one entry, by single versions
        await node.keep(*settings)
        await node.put(*(record(f"f{name}", 1) for name in range(8)))
        await node.put(*(record(f"f{name}", 2, deleted=True) for name in range(8)))
        await node.put(record(f"x{settings[1]}"), later_us=8 * DAY_US)
        assert await node.expire() == 8
        assert await node.left() == []


async def test_dropping_what_is_gone_already_does_nothing(node: Node) -> None:
    await versions(node, 2)
    [old] = await node.db.run(lambda conn: state.old_versions(conn, FID, "a"))
    dropped = (("a", old.record.sequence), ("a", old.record.sequence), ("a", 7), ("nobody", 1))
    for _ in range(2):
        await node.commit(Body(sections=(section(history_dropped=dropped),)))
        assert await node.left() == []
    [folder] = await node.db.run(state.folders)
    assert (folder.old_versions, folder.old_bytes) == (0, 0)


async def test_a_number_that_none_can_have_is_void(node: Node) -> None:
    body = Body(sections=(section(history_dropped=(("a", 1 << 63),)),))
    slot = await node.writer.commit(body)
    applied = await node.db.write(lambda conn: state.apply(conn, slot, node.writer.sha, body))
    assert applied.void is not None


async def test_the_folder_counts_what_it_retains(node: Node) -> None:
    await versions(node, 4)
    await node.put(record("d", type=FileType.DIRECTORY))
    await node.put(record("d", 2, type=FileType.DIRECTORY, deleted=True))
    [folder] = await node.db.run(state.folders)
    assert (folder.old_versions, folder.old_bytes) == (4, 30)


def test_staggered_as_syncthing_thins_out() -> None:
    rules = policy("staggered:365d")
    ages = [400 * DAY_S, 364 * DAY_S, 360 * DAY_S, 356 * DAY_S, 29.5 * DAY_S, 29 * DAY_S, 28 * DAY_S, 3 * HOUR_S, 2.5 * HOUR_S, 100, 90, 60]
    # beyond the limit; not a week, then a week after the one kept; half a day, then a day; half an hour; ten seconds, then half a minute
    assert [ages[index] for index in surplus(rules, ages)] == [400 * DAY_S, 360 * DAY_S, 29 * DAY_S, 2.5 * HOUR_S, 90]


# ---- the past ------------------------------------------------------------------------------------------------------------------------------


async def names_at(node: Node, at_us: int, prefix: str = "") -> list[tuple[str, int]]:
    """Name and version of what was there, read one by one."""
    found: list[tuple[str, int]] = []
    after = ""
    while rows := await node.db.run(partial(past.walk_at, fid=FID, prefix=prefix, after=after, limit=1, at_us=at_us)):
        found += [(row.name, row.info.version[0][1]) for row in rows]
        after = rows[-1].name
    whole = await node.db.run(lambda conn: past.walk_at(conn, FID, prefix, "", 1000, at_us))
    assert [(row.name, row.info.version[0][1]) for row in whole] == found
    return found


async def test_the_tree_as_it_was(node: Node) -> None:
    directory = record("d", type=FileType.DIRECTORY)
    first = await node.put(directory, record("d/a", 1), record("b", 1))
    second = await node.put(record("d/a", 2), record("c", 1))
    gone = [record("d/a", 3, deleted=True), record("b", 2, deleted=True), record("c", 2, deleted=True)]
    third = await node.put(*gone, record("d", 2, type=FileType.DIRECTORY, deleted=True))
    fourth = await node.put(record("b", 3))
    assert await names_at(node, first - 1) == []
    assert await names_at(node, first + 2) == [("b", 1), ("d", 1), ("d/a", 1)]
    assert await names_at(node, second + 2) == [("b", 1), ("c", 1), ("d", 1), ("d/a", 2)]
    assert await names_at(node, second + 2, "d/") == [("d/a", 2)]
    assert await names_at(node, third) == []
    assert await names_at(node, fourth) == [("b", 3)]
    children = await node.db.run(lambda conn: past.children_at(conn, FID, "", "", 2, second + 2))
    assert [each.name for each in children] == ["b", "c"]
    children = await node.db.run(lambda conn: past.children_at(conn, FID, "", "c", 9, second + 2))
    assert [each.name for each in children] == ["d"]
    [child] = await node.db.run(lambda conn: past.children_at(conn, FID, "d", "", 9, second + 2))
    assert (child.name, child.info.version) == ("d/a", ((77, 2),))
    assert await node.db.run(lambda conn: past.exists_below(conn, FID, "d", second + 2))
    assert not await node.db.run(lambda conn: past.exists_below(conn, FID, "d", third))


async def test_a_version_is_found_by_its_own_number(node: Node) -> None:
    """Also one that never was current, and one that was replaced in the second in which it came."""
    await node.put(record("a", 1))
    lost = await node.put(record("a", 9, history=HistoryRule.ONLY))
    for sequence, version in ((lost, 9), (lost + 1, 1)):
        found = await node.db.run(partial(past.records_at, fid=FID, names=["a"], at_us=sequence))
        assert found["a"].info.version == ((77, version),)


async def test_what_was_deleted(node: Node) -> None:
    await node.put(record("d", type=FileType.DIRECTORY), record("d/a", 1, size=7), record("kept", 1))
    await node.put(record("d/a", 2, deleted=True))
    await node.put(record("d", 2, type=FileType.DIRECTORY, deleted=True))

    async def deleted(directory: str, *, recursive: bool) -> list[tuple[str, int | None]]:
        found = await node.db.run(lambda conn: past.deleted_below(conn, FID, directory, "", 9, recursive=recursive))
        return [(each.record.name, None if each.last is None else each.last.record.info.size) for each in found]

    assert await deleted("", recursive=False) == [("d", 0)]
    assert await deleted("", recursive=True) == [("d", 0), ("d/a", 7)]
    assert await deleted("d", recursive=False) == [("d/a", 7)]
    await node.keep("0", "0")
    await node.put(record("x"))
    await node.expire()
    assert await deleted("d", recursive=False) == [("d/a", None)]
