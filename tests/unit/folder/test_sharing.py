"""Who is there, who is passed over, whom to help: with heartbeats made up and virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from stnode.clock import InlineThreads, SeededRandomness
from stnode.db import Database
from stnode.errors import Unavailable
from stnode.folder import index
from stnode.folder.index import NeedKind, Part
from stnode.folder.sharing import LEADER_S, PASSED_OVER_S, Sharing
from stnode.folder.split import Left, Split
from stnode.repo import state
from stnode.repo.heartbeat import Heartbeat, Reach
from stnode.repo.records import Applied
from stnode.repo.settings import FolderDevice, FolderSettings
from tests.support.world import TrackedEnv, VirtualClock, simulated

ME, OTHER, THIRD = (bytes([number]) * 32 for number in (1, 2, 3))
DEVICE = b"d" * 32
FID = 1
SETTINGS = FolderSettings("f", "0123456789abcdef", 1, devices=(FolderDevice(DEVICE),))
FILES = [Part(f"{number:03}", NeedKind.FILE, bytes([number]) * 32, (1_000_000, number), (1,)) for number in range(90)]


class Beats:
    """Heartbeats as the test says; `reads` counts how often the store was asked."""

    def __init__(self) -> None:
        self.known: Mapping[bytes, Heartbeat] = {}
        self.reads = 0
        self.written_s = 0.0
        self.failing = False

    def say(self, *nodes: bytes, rate: int = 0, **fields: object) -> None:
        self.known = {**self.known, **{node: Heartbeat(node, 1, reached=(Reach(DEVICE, rate),), **fields) for node in nodes}}  # type: ignore[arg-type]

    def fresh(self) -> list[Heartbeat]:
        return list(self.known.values())

    def age_s(self, heartbeat: Heartbeat) -> float:
        return asyncio.get_running_loop().time() - self.written_s

    async def refresh(self, max_age_s: float = 0) -> None:
        self.reads += 1
        if self.failing:
            raise Unavailable("the store is away")

    async def renew(self, max_age_s: float = 0) -> None:
        await self.refresh(max_age_s)


class Bench:
    """A Sharing, and passes over what is needed."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.beats = Beats()
        self.sharing = Sharing(TrackedEnv(VirtualClock(), SeededRandomness(1), InlineThreads()), self.beats, ME, FID)

    async def split(self) -> Split | None:
        return await self.sharing.split(self.db, SETTINGS, {1})

    async def look(self, parts: list[Part], *, idle: bool = True) -> tuple[set[str], list[str]]:
        """One pass: own names, names of others to be helped with."""
        await self.sharing.begin()
        split = await self.split()
        mine, left = split.mine(parts, {}) if split is not None else ({each.name for each in parts}, Left())
        self.sharing.leave(left)
        return mine, self.sharing.end(idle=idle, store_time_us=0)

    def commit(self, node: bytes) -> None:
        self.sharing.applied(Applied(1, node=node, touched=frozenset({FID})))


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    db = Database(None, inline=True)
    await state.prepare(db)
    await index.migrate(db)
    await db.write(lambda conn: index.device_number(conn, DEVICE))
    made = Bench(db)
    yield made
    await made.sharing.close()
    await db.close()


@simulated
async def test_alone_nothing_is_asked_and_nothing_is_left() -> None:
    async with bench() as at:
        at.beats.say(ME)
        assert await at.split() is None
        assert (await at.look(FILES))[0] == {each.name for each in FILES}
        assert at.beats.reads == 0
        assert at.sharing.due(idle=True) is None


@simulated
async def test_nodes_that_cannot_help_do_not_count() -> None:
    async with bench() as at:
        at.beats.say(ME)
        for fields in ({"full": True}, {"not_pulled": (SETTINGS.fkey,)}, {"unshared": (SETTINGS.fkey,)}):
            at.beats.say(OTHER, **fields)
            assert await at.split() is None
        at.beats.say(OTHER)
        assert await at.split() is not None


@simulated
async def test_who_shares_the_folder_with_others_is_taken_to_share_it_with_all_until_they_have_told() -> None:
    async with bench() as at:
        at.beats.say(ME)
        at.beats.say(OTHER, unshared=(SETTINGS.fkey,))
        await asyncio.sleep(1000)
        at.sharing.about_to_pull(1)
        assert await at.split() is not None
        await asyncio.sleep(40)
        at.beats.written_s = asyncio.get_running_loop().time()
        assert await at.split() is None
        at.sharing.about_to_pull(1)  # it comes again: nothing new by that
        assert await at.split() is None


@simulated
async def test_work_is_left_to_others_though_their_heartbeats_cannot_be_read_now() -> None:
    async with bench() as at:
        at.beats.say(ME, OTHER)
        at.beats.failing = True
        mine, helped = await at.look(FILES, idle=False)
        assert 20 < len(mine) < 70
        assert not helped
        assert at.sharing.items == len(FILES) - len(mine)
        at.sharing.satisfied(at.sharing.items)
        assert at.sharing.due(idle=True) is None


@simulated
async def test_a_node_without_a_commit_is_passed_over_until_it_commits_again() -> None:
    async with bench() as at:
        at.beats.say(ME, OTHER)
        mine, _ = await at.look(FILES, idle=False)
        for _ in range(4):  # it works: it is waited for
            await asyncio.sleep(PASSED_OVER_S - 1)
            at.commit(OTHER)
            assert (await at.look(FILES, idle=False))[0] == mine
        due = at.sharing.due(idle=False)
        assert due is not None
        await asyncio.sleep(due - asyncio.get_running_loop().time())
        assert (await at.look(FILES, idle=False))[0] == {each.name for each in FILES}
        await asyncio.sleep(1000)
        assert (await at.look(FILES, idle=False))[0] == {each.name for each in FILES}
        at.commit(OTHER)
        assert (await at.look(FILES, idle=False))[0] == mine


@simulated
async def test_what_was_left_to_a_node_that_is_gone_comes_back() -> None:
    async with bench() as at:
        at.beats.say(ME, OTHER)
        assert len((await at.look(FILES))[0]) < len(FILES)
        at.beats.known = {ME: at.beats.known[ME]}
        await at.split()
        assert at.sharing.due(idle=True) is not None
        assert len((await at.look(FILES))[0]) == len(FILES)
        assert at.sharing.due(idle=True) is None


@simulated
async def test_a_node_that_was_started_anew_counts_again() -> None:
    async with bench() as at:
        at.beats.say(ME, OTHER)
        mine, _ = await at.look(FILES, idle=False)
        await asyncio.sleep(PASSED_OVER_S)
        assert len((await at.look(FILES, idle=False))[0]) == len(FILES)
        at.beats.known = {**at.beats.known, OTHER: Heartbeat(OTHER, 2, reached=(Reach(DEVICE),))}
        assert (await at.look(FILES, idle=False))[0] == mine


@simulated
async def test_what_fetches_nothing_goes_to_the_next_after_ten_seconds() -> None:
    async with bench() as at:
        at.beats.say(ME, OTHER)
        gone = [Part("gone", NeedKind.DELETE, b"", (0, 0), (1,))]
        if (await at.look(gone))[0]:
            at.sharing = Sharing(TrackedEnv(VirtualClock(), SeededRandomness(1), InlineThreads()), at.beats, OTHER, FID)
            assert not (await at.look(gone))[0]
        await asyncio.sleep(LEADER_S - 1)
        assert not (await at.look(gone))[0]
        await asyncio.sleep(1)
        assert (await at.look(gone))[0] == {"gone"}


@simulated
async def test_a_node_that_moves_fast_enough_is_not_helped() -> None:
    async with bench() as at:
        at.beats.say(ME, OTHER)
        parts = list(FILES)
        while parts:
            mine, helped = await at.look(parts)
            assert not helped
            parts = [each for each in parts if each.name not in mine][5:]
            at.commit(OTHER)
            await asyncio.sleep(1)


@simulated
async def test_a_slow_node_is_helped_from_the_end_of_the_names() -> None:
    async with bench() as at:
        at.beats.say(ME, OTHER, rate=1_000_000)
        mine, _ = await at.look(FILES)
        parts = [each for each in FILES if each.name not in mine]
        taken: list[str] = []
        while not taken:
            await asyncio.sleep(5)
            at.commit(OTHER)
            parts = parts[1:]
            taken = (await at.look(parts))[1]
        names = [each.name for each in parts]
        assert taken == names[: -len(taken) - 1 : -1]
        assert 1 < len(taken) < len(names)


@simulated
async def test_two_idle_nodes_do_not_take_the_same() -> None:
    async with bench() as at:
        at.beats.say(ME, OTHER, THIRD, rate=50_000_000)
        second = Bench(at.db)
        second.beats, second.sharing = at.beats, Sharing(at.sharing._env, at.beats, OTHER, FID)
        own = {*(await at.look(FILES))[0], *(await second.look(FILES))[0]}
        parts = [each for each in FILES if each.name not in own]
        for who in (at, second):
            await who.look(parts)
        await asyncio.sleep(20)
        taken = [*(await at.look(parts))[1], *(await second.look(parts))[1]]
        assert sorted(taken) == [each.name for each in parts]


@simulated
async def test_a_writer_that_no_heartbeat_tells_of_has_them_read() -> None:
    async with bench() as at:
        at.beats.say(ME)
        at.commit(OTHER)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert at.beats.reads == 1
