"""`bucket repair`: a journal that nobody can follow goes on from what can be read, nothing is deleted, and what is lost is named."""

from __future__ import annotations

import os
import shutil
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stnode.clock import Env, InlineThreads, SeededRandomness, SystemClock, system_env
from stnode.config import Config, StoreSection
from stnode.errors import Corrupt, Refused
from stnode.net.identity import load_or_generate
from stnode.node import repairing
from stnode.node.node import Node
from stnode.node.operations import NodeService
from stnode.node.repairing import repair_store
from stnode.node.service import FolderSettings, RepairPlan, RepairReport, RepairWish
from stnode.objectstore.base import Key
from stnode.objectstore.localdir import LocalDirStore
from stnode.objectstore.memory import MemoryStore
from stnode.repo import layout, state
from stnode.repo.heartbeat import Heartbeat, Heartbeats
from stnode.repo.pack import encode_footer, plain_list
from stnode.repo.salvage import folders_of_packs
from stnode.repo.store import Store

pytestmark = pytest.mark.expects_log("restored from the store|manifest is not whole|journal cannot go on|previous manifest")


class Place:
    """A store in a directory, and a home of a node on it."""

    def __init__(self, path: Path, env: Env) -> None:
        self.env = env
        self.path = path / "store"
        self.home = path / "home"
        self.config = Config().model_copy(update={"store": StoreSection(url=f"file://{self.path}")})

    @asynccontextmanager
    async def node(self, home: Path | None = None) -> AsyncIterator[NodeService]:
        home = home or self.home
        (home / "state").mkdir(parents=True, exist_ok=True)
        load_or_generate(home, self.env.clock)
        node = await Node.open(home, self.config, self.env)
        try:
            yield NodeService(node, home / "state")
        finally:
            await node.stop()

    async def write(self, *names: str) -> None:
        """One commit each."""
        async with self.node() as service:
            for name in names:
                await service.write(f"docs/{name}", _one(name.encode() * 1000))

    async def read(self, name: str) -> bytes:
        async with self.node() as service:
            return b"".join([piece async for piece in service.read(f"docs/{name}")])

    async def names(self) -> list[str]:
        async with self.node() as service:
            return [entry.name for entry in (await service.ls("docs")).entries]

    async def head(self) -> int:
        async with self.node() as service:
            return (await service.status()).store.head

    async def problems(self) -> list[str]:
        async with self.node() as service:
            steps = [step async for step in service.bucket_check(True)]
            assert steps[-1].report is not None
            return [f"{problem.key}: {problem.message}" for problem in steps[-1].report.problems]

    async def repair(self, *, confirm: bool = True, void: int | None = None, rebuild: bool = False) -> RepairReport:
        self.plans: list[RepairPlan] = []

        def ask(plan: RepairPlan) -> bool:
            self.plans.append(plan)
            return confirm

        return await repair_store(self.home, self.config, self.env, RepairWish(void, rebuild), ask)

    def slot(self, number: int) -> Path:
        return self.path / layout.slot_key(number)

    def forget(self) -> None:
        """The node's cache is gone."""
        shutil.rmtree(self.home / "state")


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """Files a to e, each in its own commit; the state directory is there."""
    env = system_env(2)
    made = Place(tmp_path, env)
    objects = LocalDirStore(made.path, env)
    await Store.init(objects, env)
    await objects.close()
    async with made.node() as service:
        await service.folder_add(FolderSettings("docs"))
    await made.write("a", "b", "c", "d", "e")
    yield made
    env.close()


def every_file(path: Path) -> set[Path]:
    return {found.relative_to(path) for found in path.rglob("*") if found.is_file()}


async def test_a_whole_store_needs_nothing(place: Place) -> None:
    head = await place.head()
    report = await place.repair()
    assert (report.done, report.plan.fault, place.plans) == (False, "", [])
    assert await place.head() == head


async def test_damage_below_a_state_that_this_node_has(place: Place) -> None:
    head = await place.head()
    place.slot(3).write_bytes(b"damaged")
    before = every_file(place.path)
    looked = await place.repair(confirm=False)
    assert not looked.done
    assert every_file(place.path) == before
    report = await place.repair()
    assert report.done
    assert "own state" in report.plan.steps[0]
    assert before <= every_file(place.path)
    place.forget()
    assert await place.names() == ["a", "b", "c", "d", "e"]
    assert await place.problems() == []
    assert await place.head() >= head


async def test_a_node_that_knows_more_is_heeded_by_the_stores_clock(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own clock is an hour ahead of the store's: the heartbeat is fresh all the same."""
    objects = LocalDirStore(place.path, place.env)
    await Heartbeats(objects, place.env, lambda: 0).write(Heartbeat(b"\x22" * 32, 1, "other", head=99))
    await objects.close()
    hour_ago_s = place.env.clock.now_ns() / 1e9 - 3600
    os.utime(place.path / layout.heartbeat_key(b"\x22" * 32), (hour_ago_s, hour_ago_s))

    async def store_time_us(*_: object) -> int:
        return int(hour_ago_s * 1_000_000)

    monkeypatch.setattr(repairing, "_store_time_us", store_time_us)
    place.slot(3).write_bytes(b"damaged")
    with pytest.raises(Refused, match="the node other has applied commit 99"):
        await place.repair()


async def test_a_journal_that_is_gone_is_written_again_from_the_cache(place: Place) -> None:
    head = await place.head()
    for directory in ("journal", "checkpoint", "runs", "bodies"):
        shutil.rmtree(place.path / directory, ignore_errors=True)
    with pytest.raises(Corrupt, match="gone"):
        await place.head()
    report = await place.repair()
    assert report.done
    place.forget()
    assert await place.names() == ["a", "b", "c", "d", "e"]
    assert await place.read("c") == b"c" * 1000
    assert await place.head() > head
    assert await place.problems() == []


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


@pytest.mark.parametrize("hurt", [damage, Path.unlink], ids=["damaged", "missing"])
async def test_a_commit_that_nobody_has_is_stepped_over(place: Place, hurt: Callable[[Path], None]) -> None:
    head = await place.head()
    place.forget()
    bad = head - 2
    hurt(place.slot(bad))
    before = every_file(place.path)
    with pytest.raises(Corrupt):
        await place.head()
    with pytest.raises(Refused, match=f"commit {bad}"):
        await place.repair()
    with pytest.raises(Refused):
        await place.repair(void=bad + 1)
    report = await place.repair(void=bad)
    assert report.done
    assert before <= every_file(place.path)
    assert report.plan.set_aside == (3 if hurt is damage else 2)
    # c's commit cannot be read; d and e were committed with packs of their own, which can be told.
    assert {name.partition("/")[2] for name in report.plan.files} == {"d", "e"}
    assert await place.names() == ["a", "b", "d", "e"]
    assert await place.read("e") == b"e" * 1000
    assert report.unreadable == ((bad,) if hurt is damage else ())
    assert report.packs == 3
    assert await place.problems() == []
    place.forget()
    assert await place.names() == ["a", "b", "d", "e"]
    await place.write("f")
    assert "f" in await place.names()


async def test_a_node_that_slept_before_the_gap_takes_the_repaired_history(place: Place, tmp_path: Path) -> None:
    sleeper = tmp_path / "sleeper"
    async with place.node(sleeper) as service:
        head = (await service.status()).store.head
    await place.write("x", "y")
    place.forget()
    place.slot(head + 1).unlink()
    await place.repair(void=head + 1)
    async with place.node(sleeper) as service:
        names = [entry.name for entry in (await service.ls("docs")).entries]
        await service.write("docs/z", _one(b"z"))
    assert names == ["a", "b", "c", "d", "e", "y"]
    assert "z" in await place.names()
    assert await place.problems() == []


async def test_a_journal_is_made_of_packs_alone(place: Place) -> None:
    async with place.node() as service:
        ids = await service._node.db.run(lambda conn: [folder.settings.index_id for folder in state.folders(conn)])
    for directory in ("journal", "checkpoint", "runs", "bodies"):
        shutil.rmtree(place.path / directory, ignore_errors=True)
    place.forget()
    with pytest.raises(Refused, match="nothing of the journal"):
        await place.repair()
    report = await place.repair(rebuild=True)
    assert (report.packs, report.skipped) == (5, ())
    async with place.node() as service:
        assert [folder.id for folder in await service.folder_list()] == ["docs"]
        now = await service._node.db.run(lambda conn: [folder.settings.index_id for folder in state.folders(conn)])
        assert set(now).isdisjoint(ids)
        unwanted = await service._node.db.run(lambda conn: conn.execute("SELECT COUNT(*) FROM packs WHERE refs = 0").fetchone()[0])
        assert unwanted == 0, "it would be collected before peers have come back"
        # What is written again is found in the packs that are there.
        before = await service.bucket_stats()
        await service.write("docs/c", _one(b"c" * 1000))
        after = await service.bucket_stats()
    assert (before.kinds[0].kind, before.kinds[0].objects) == ("packs", after.kinds[0].objects)
    assert await place.read("c") == b"c" * 1000
    assert await place.problems() == []


async def test_all_of_the_journal_damaged(place: Place) -> None:
    for slot in (place.path / "journal" / "main").iterdir():
        slot.write_bytes(b"x")
    place.forget()
    report = await place.repair(rebuild=True)
    assert report.packs == 5
    assert len(report.unreadable) == report.plan.set_aside
    await place.write("a")
    assert await place.names() == ["a"]
    assert await place.problems() == []


async def test_a_damaged_pack_is_left_where_it_is(place: Place) -> None:
    for directory in ("journal", "checkpoint", "runs", "bodies"):
        shutil.rmtree(place.path / directory, ignore_errors=True)
    place.forget()
    pack = next(path for path in sorted((place.path / "packs").rglob("*")) if path.is_file())
    pack.write_bytes(pack.read_bytes()[:-1])
    report = await place.repair(rebuild=True)
    assert report.packs == 4
    assert len(report.skipped) == 1
    assert str(Key(pack.relative_to(place.path).as_posix())) in report.skipped[0]
    assert pack.exists()


def test_folder_ids_are_read_from_keys() -> None:
    for folder_id in ("docs", "a-b-c", "Größe/1", "_x_", "UPPER", "ab cd", "日本"):
        assert layout.folder_id(layout.folder_key(folder_id, "0123456789abcdef")) == folder_id
    assert layout.folder_id(layout.folder_key("x" * 200, "0123456789abcdef")) is None
    assert layout.folder_id("docs") is None


async def test_packs_tell_whether_a_forgotten_folder_is_an_encrypted_one() -> None:
    env = Env(SystemClock(), SeededRandomness("packs"), InlineThreads())
    bucket = MemoryStore(env)
    for folder_id, width, checks in (("plain", 32, None), ("sealed", 48, array("Q", [1]))):
        footer = encode_footer(plain_list(width, [bytes(width)], [5], checks))
        key = layout.pack_key(layout.folder_key(folder_id, "0123456789abcdef"), layout.mint(1_700_000_000_000_000, env.random))
        await bucket.put(key, [b"12345", footer])
    found = await folders_of_packs(bucket, {}, env.random)
    assert {folder.folder_id: folder.type for folder in found} == {"plain": "sendreceive", "sealed": "receiveencrypted"}
