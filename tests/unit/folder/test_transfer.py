"""The transfer engine with a real packer on a memory store and sources that answer as told."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from stnode.folder.planner import Job, plan_file
from stnode.folder.transfer import Answer, Ask, Context, Limits, Transfer
from stnode.objectstore.base import Buffer, IfMatch, Key, Mode, PutResult
from stnode.objectstore.memory import MemoryStore
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.repo.packer import Packer, PackerOptions
from tests.support.packs import FKEY, STORE_TIME_US, quick_env

BLOCK = 128 << 10


def content(name: str, size: int) -> bytes:
    return hashlib.shake_128(name.encode()).digest(size)


def info_of(name: str, size: int) -> FileInfo:
    data = content(name, size)
    hashes = b"".join(hashlib.sha256(data[start : start + BLOCK]).digest() for start in range(0, size, BLOCK))
    return fileinfo.new(name=name, type=FileType.FILE, version=((7, 1),), modified_by=7, size=size, block_hashes=hashes, block_size=BLOCK)


@dataclass(eq=False)
class FakeSource:
    """Answers each batch in a later turn of the loop; `spoil` changes an answer, `silent` never answers."""

    device: int
    spoil: Callable[[Ask], tuple[bytes, int]] | None = None
    silent: bool = False
    reverse: bool = False
    bytes_in_flight: int = 0
    requests_in_flight: int = 0
    most_bytes: int = 0
    asked: list[Ask] = field(default_factory=list)

    def request(self, receiver: Transfer, folder: str, asks: Sequence[Ask]) -> None:
        self.asked += asks
        self.bytes_in_flight += sum(ask[2] for ask in asks)
        self.requests_in_flight += len(asks)
        self.most_bytes = max(self.most_bytes, self.bytes_in_flight)
        if not self.silent:
            asyncio.get_running_loop().call_soon(self._answer, receiver, list(asks))

    def _answer(self, receiver: Transfer, asks: list[Ask]) -> None:
        answers: list[Answer] = []
        for ask in reversed(asks) if self.reverse else asks:
            name, offset, size, _, _, context = ask
            data, code = self.spoil(ask) if self.spoil else (content(name, context[0].info.size)[offset : offset + size], 0)
            self.bytes_in_flight -= size
            self.requests_in_flight -= 1
            answers.append((context, memoryview(data), code))
        receiver.answered(self, answers)

    def lost(self) -> list[Context]:
        return [ask[5] for ask in self.asked]


class World:
    """A transfer and what it reported."""

    def __init__(self, limits: Limits | None = None, pack_bytes: int = 1 << 20) -> None:
        env = quick_env()
        self.objects = MemoryStore(env)
        self.packer = Packer(
            self.objects, env, fkey_of=lambda _: FKEY, store_time_us=lambda: STORE_TIME_US, options=PackerOptions(target_bytes=pack_bytes)
        )
        self.finished: list[Job] = []
        self.failures: list[tuple[Job, str]] = []
        self.partials: list[Job] = []
        self.transfer = Transfer(
            env, "f", 1, self.packer, limits or Limits(linger_s=0.0),
            done=self.finished.extend, failed=lambda job, reason: self.failures.append((job, reason)), saved=self.partials.append,
        )  # fmt: skip

    def jobs(self, *files: tuple[str, int], devices: Sequence[int] = (1,)) -> list[Job]:
        return [
            plan_file(number, info_of(name, size), devices, (), self.packer.options.target_bytes)
            for number, (name, size) in enumerate(files)
        ]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0)

    async def stored(self, job: Job) -> bytes:
        """The job's content as read back from the packs."""
        out = b""
        for pack, place, count in job.extents():
            pending = self.packer.pending(pack)
            whole = (await self.objects.get(pending.key)).data
            blocks = [whole[start : start + BLOCK] for start in range(0, len(whole), BLOCK)]
            out += b"".join(blocks[place : place + count]) if job.info.size > BLOCK else b""
        return out[: job.info.size]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.transfer.close()
    assert made.packer.bytes_held == 0 or made.transfer.jobs == {}


async def test_small_files_share_a_pack_and_finish(world: World) -> None:
    world.transfer.source_up(FakeSource(1))
    world.transfer.add(world.jobs(*((f"f{number}", 1000 + number) for number in range(50))))
    await world.until(lambda: len(world.finished) == 50)
    assert world.transfer.drained
    assert len({job.extents()[0][0] for job in world.finished}) == 1
    assert world.packer.bytes_held == 0


async def test_large_file_fills_its_own_packs_in_order_even_when_answers_are_not(world: World) -> None:
    world.transfer.source_up(FakeSource(1, reverse=True))
    (job,) = world.jobs(("large", 5 * (1 << 20) + 12345))
    world.transfer.add([job])
    await world.until(lambda: bool(world.finished))
    assert await world.stored(job) == content("large", job.info.size)
    assert len(job.extents()) <= 12
    assert world.partials


async def test_wrong_content_is_never_stored_and_asked_of_another_device(world: World) -> None:
    liar = FakeSource(1, spoil=lambda ask: (bytes(ask[2]), 0))
    honest = FakeSource(2)
    world.transfer.source_up(liar)
    world.transfer.source_up(honest)
    world.transfer.add(world.jobs(("a", 300_000), ("b", 10), devices=(1, 2)))
    await world.until(lambda: len(world.finished) == 2)
    assert not world.failures
    stored = [blob async for blob in world.objects.list("packs/")]
    assert stored


@pytest.mark.parametrize("answer", [(b"", 2), (b"short", 0), (b"x" * 300_000, 0)])
async def test_a_job_that_nobody_can_deliver_fails_once(world: World, answer: tuple[bytes, int]) -> None:
    world.transfer.source_up(FakeSource(1, spoil=lambda _: answer))
    world.transfer.add(world.jobs(("a", 200_000)))
    await world.until(lambda: bool(world.failures))
    assert [job.info.name for job, _ in world.failures] == ["a"]
    assert world.transfer.drained
    assert world.transfer.bytes_in_flight == 0


async def test_a_device_that_vanishes_hands_its_requests_to_another(world: World) -> None:
    gone, other = FakeSource(1, silent=True), FakeSource(2)
    world.transfer.source_up(gone)
    world.transfer.add(world.jobs(("a", 700_000), ("b", 5000), devices=(1, 2)))
    assert gone.asked
    world.transfer.source_up(other)
    world.transfer.source_down(gone, gone.lost())
    await world.until(lambda: len(world.finished) == 2)
    assert world.transfer.bytes_in_flight == 0


async def test_when_the_only_device_vanishes_what_came_is_kept_as_a_partial_file(world: World) -> None:
    class Half(FakeSource):
        """Answers the first half of the first batch, then nothing."""

        def request(self, receiver: Transfer, folder: str, asks: Sequence[Ask]) -> None:
            half = 0 if self.asked else len(asks) // 2
            super().request(receiver, folder, asks[:half])
            self.asked = [*self.asked, *asks[half:]]
            self.unanswered += [ask[5] for ask in asks[half:]]

        unanswered: list[Context] = []  # noqa: RUF012 - one instance only

    source = Half(1)
    world.transfer.source_up(source)
    (job,) = world.jobs(("large", 4 << 20))
    world.transfer.add([job])
    await world.until(lambda: len(world.partials) >= 1)
    world.transfer.source_down(source, source.unanswered)
    await world.until(lambda: bool(world.failures))
    assert world.transfer.bytes_in_flight == 0
    assert sum(extent[2] for _, extent in job.known_runs()) >= 8


async def test_an_aborted_job_takes_nothing_more(world: World) -> None:
    source = FakeSource(1)
    world.transfer.source_up(source)
    world.transfer.add(world.jobs(("a", 200_000)))
    world.transfer.abort("a")
    await world.until(lambda: source.bytes_in_flight == 0)
    assert not world.finished
    assert world.transfer.drained
    assert world.packer.bytes_held == 0


async def test_windows_and_memory_are_kept() -> None:
    world = World(Limits(window=1 << 20, window_requests=4, memory=2 << 20, linger_s=0.0))
    source = FakeSource(1)
    world.transfer.source_up(source)
    world.transfer.add(world.jobs(("a", 6 << 20), *((f"s{number}", 50_000) for number in range(30))))
    most = 0
    async with asyncio.timeout(20):
        while len(world.finished) < 31:
            most = max(most, world.packer.bytes_held + world.transfer.bytes_in_flight)
            assert source.requests_in_flight <= 4
            await asyncio.sleep(0)
    assert source.most_bytes <= (1 << 20) + BLOCK
    assert most <= (2 << 20) + (1 << 20)
    await world.transfer.close()


async def test_what_a_given_up_job_has_on_its_way_goes_to_the_next_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()
    put = world.objects.put

    async def held(key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        began.set()
        await may_end.wait()
        return await put(key, data, mode)

    monkeypatch.setattr(world.objects, "put", held)
    source = FakeSource(1)
    world.transfer.source_up(source)
    given_up, other = world.jobs(("a", 3 * BLOCK), ("other", 2 * BLOCK))
    world.transfer.add([given_up, other])
    await began.wait()
    world.transfer.abort("a")
    renamed = plan_file(7, replace(given_up.info, name="b"), (1,), (), world.packer.options.target_bytes)
    world.transfer.add([renamed])
    may_end.set()
    await world.until(lambda: len(world.finished) == 2)
    assert len(source.asked) == 5
    assert await world.stored(renamed) == content("a", 3 * BLOCK)
