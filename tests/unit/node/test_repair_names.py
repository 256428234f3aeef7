"""`bucket repair` of a single-node store in which two processes wrote one commit's number: one of them counts, what the other one holds is
committed again by the ordinary rules, and both objects stay."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from stnode.clock import Env, SystemClock, system_env
from stnode.config import Config, StoreSection
from stnode.net.identity import load_or_generate
from stnode.node import node as node_module
from stnode.node import repairing
from stnode.node.objects import open_objects
from stnode.node.service import FolderSettings
from stnode.objectstore.base import Buffer, Capabilities, IfMatch, Key, Mode, PutResult
from stnode.objectstore.localdir import LocalDirStore
from stnode.objectstore.metrics import Observer
from stnode.objectstore.registry import OpenedStore
from stnode.objectstore.wrappers import Wrapper
from stnode.repo.slots import TwoNames
from stnode.repo.store import Store
from tests.unit.node.test_repair import Place, _one, every_file

pytestmark = pytest.mark.expects_log("restored from the store|journal cannot go on|another process of this single-node store")


class Careless(Wrapper):
    """Ignores the conditions of writes."""

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        return await self.inner.put(key, data)

    async def capabilities(self) -> Capabilities:
        return Capabilities(create_if_absent=False, if_match=False, name="careless")


class Ahead(SystemClock):
    """A minute later than the machine's: what its node changes is, by the node's counter, later than what the other process changes."""

    def now_ns(self) -> int:
        return super().now_ns() + 60 * 10**9


class Twin(Place):
    """A home and a store of a single node."""

    def __init__(self, path: Path, env: Env) -> None:
        super().__init__(path, env)
        self.config = Config().model_copy(update={"store": StoreSection(url=f"file://{self.path}", single_node=True)})

    def names_of(self, number: int) -> list[str]:
        return sorted(path.name for path in (self.path / "journal" / "main").glob(f"{number:020d}*"))

    async def contents(self) -> set[bytes]:
        return {await self.read(name) for name in await self.names()}


@pytest.fixture
async def twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Twin, Twin]]:
    """Two processes of one node on two copies of one store, with a file `same` of their common past."""

    async def careless(home: Path, config: Config, env: Env, observe: Observer | None = None) -> OpenedStore:
        opened = await open_objects(home, config, env, observe)
        return OpenedStore(Careless(opened), opened.url, opened.metrics)

    for module in (node_module, repairing):
        monkeypatch.setattr(module, "open_objects", careless)
    env = system_env(2)
    first = Twin(tmp_path / "first", env)
    first.home.mkdir(parents=True)
    identity = load_or_generate(first.home, env.clock)
    objects = Careless(LocalDirStore(first.path, env))
    await Store.init(objects, env, single_node=identity.device_id)
    await objects.close()
    async with first.node() as service:
        await service.folder_add(FolderSettings("docs"))
    await first.write("same")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    yield first, Twin(tmp_path / "second", replace(env, clock=Ahead()))
    env.close()


def meet(first: Twin, second: Twin) -> None:
    """What the second one has written arrives in the first one's store too."""
    for path in sorted(every_file(second.path) - every_file(first.path)):
        (first.path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(second.path / path, first.path / path)


async def change(twin: Twin, name: str, content: bytes) -> int:
    """One commit of a file; the head then."""
    async with twin.node() as service:
        await service.write(f"docs/{name}", _one(content))
        return (await service.status()).store.head


@pytest.mark.parametrize("cached", [True, False], ids=["with its cache", "without"])
async def test_both_versions_of_a_file_stay(twins: tuple[Twin, Twin], cached: bool) -> None:
    first, second = twins
    head = await change(first, "same", b"first" * 100)
    assert await change(second, "same", b"second" * 100) == head
    meet(first, second)
    if not cached:
        first.forget()
    assert len(first.names_of(head)) == 2
    with pytest.raises(TwoNames) as stopped:
        await first.names()
    assert "bucket repair" in stopped.value.hint
    before = every_file(first.path)
    assert not (await first.repair(confirm=False)).done
    assert every_file(first.path) == before
    report = await first.repair()
    assert (report.done, report.commit, report.lost, report.unreadable) == (True, head, (), ())
    assert [name.partition("/")[2] for name in report.plan.files] == ["same"]
    assert before <= every_file(first.path)
    assert len(first.names_of(head)) == 2
    assert await first.contents() == {b"first" * 100, b"second" * 100}
    assert await first.problems() == []
    first.forget()
    assert await first.contents() == {b"first" * 100, b"second" * 100}
    assert not (await first.repair()).plan.fault


async def test_a_file_that_only_the_other_one_wrote_comes_back(twins: tuple[Twin, Twin]) -> None:
    first, second = twins
    head = await change(first, "one", b"1" * 100)
    assert await change(second, "two", b"2" * 100) == head
    meet(first, second)
    report = await first.repair()
    assert (report.packs, report.records, report.lost) == (1, 1, ())
    assert await first.names() == ["one", "same", "two"]
    assert await first.read("two") == b"2" * 100
    assert await first.problems() == []


async def test_what_the_repairing_node_has_applied_counts(twins: tuple[Twin, Twin]) -> None:
    """The younger object, for its writer's cache has it: devices may have been told. The other process, whose commit did not count, takes
    the repaired history, by the predecessor that the next commit names."""
    first, second = twins
    head = await change(first, "same", b"first" * 100)
    await change(second, "same", b"second" * 100)
    [counts] = second.names_of(head)
    meet(second, first)
    report = await second.repair()
    assert counts in report.plan.steps[0]
    assert await second.contents() == {b"first" * 100, b"second" * 100}
    shutil.rmtree(first.path)
    shutil.copytree(second.path, first.path)
    assert await first.names() == await second.names()
    assert await first.problems() == []


async def test_a_damaged_second_object_is_named(twins: tuple[Twin, Twin]) -> None:
    first, second = twins
    head = await change(first, "one", b"1" * 100)
    await change(second, "two", b"2" * 100)
    meet(first, second)
    [other] = second.names_of(head)
    damaged = first.path / "journal" / "main" / other
    damaged.write_bytes(damaged.read_bytes()[:-1])
    first.forget()
    report = await first.repair()
    assert (report.done, report.unreadable) == (True, (head,))
    assert await first.names() == ["one", "same"]
