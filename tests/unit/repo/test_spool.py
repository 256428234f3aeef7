"""The write queue: packs wait on disk while the store does not answer, within bounds, and nothing is lost; uploads read back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stnode.clock import Env
from stnode.errors import Refused, Unavailable
from stnode.objectstore.base import Blob, Buffer, Key, Mode, PutResult
from stnode.objectstore.memory import MemoryStore
from stnode.repo.packer import OpenPack, Packer, PackerOptions, SealedPack
from stnode.repo.spool import Spool
from tests.support.packs import Watched, blocks_of, fill, make_packer, quick_env, watched_store

SIZE = 1000


class Outage(Watched):
    """An object store that does not answer while it is `down`."""

    def __init__(self, env: Env) -> None:
        super().__init__(MemoryStore(env))
        self.down = True

    async def put(self, key: Key, data: Sequence[Buffer], mode: object = Mode.OVERWRITE) -> PutResult:
        if self.down:
            raise Unavailable("no answer")
        return await super().put(key, data, mode)


def made(store: Watched, env: Env, path: Path, spool: int = 10 * SIZE, *, verify: bool = False) -> Packer:
    return make_packer(store, env, options=PackerOptions(target_bytes=SIZE, spool_path=path, spool_bytes=spool, verify=verify))


def pack_of(packer: Packer, seed: int) -> tuple[OpenPack, list[bytes]]:
    pack = packer.begin(1, stream=False)
    blocks = blocks_of(seed, SIZE // 2, SIZE // 4)
    fill(pack, blocks)
    return pack, blocks


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def stored(store: Watched, packer: Packer, sealed: SealedPack) -> bytes:
    return bytes((await store.inner.get(packer.pending(sealed.handle).key)).data)


async def test_packs_wait_on_disk_and_arrive_whole(tmp_path: Path) -> None:
    env = quick_env()
    store = Outage(env)
    packer = made(store, env, tmp_path / "spool")
    await packer.open()
    room: list[int] = []
    packer.on_room.append(lambda: room.append(packer.bytes_held))
    packs = [pack_of(packer, seed) for seed in range(4)]
    tasks = [asyncio.create_task(packer.seal(pack)) for pack, _ in packs]
    await until(lambda: len(room) == 4)
    queue = packer.queue()
    assert (packer.bytes_held, queue.packs, queue.bytes, queue.full) == (0, 4, 3 * SIZE, False)
    assert queue.spooled_bytes == sum(file.stat().st_size for file in (tmp_path / "spool").iterdir())
    assert packer.failing == "no answer"
    assert not any(task.done() for task in tasks), "nothing may go on before it is durable"
    store.down = False
    for task, (_, blocks) in zip(tasks, packs, strict=True):
        assert (await stored(store, packer, await task)).startswith(b"".join(blocks))
    assert (packer.queue().packs, packer.queue().spooled_bytes, packer.failing) == (0, 0, "")
    assert list((tmp_path / "spool").iterdir()) == []


async def test_a_full_spool_leaves_packs_in_memory(tmp_path: Path) -> None:
    env = quick_env()
    store = Outage(env)
    packer = made(store, env, tmp_path / "spool", spool=2 * SIZE)
    tasks = [asyncio.create_task(packer.seal(pack_of(packer, seed)[0])) for seed in range(4)]
    await until(lambda: packer.bytes_held == 2 * (SIZE // 2 + SIZE // 4) and packer.queue().full)
    assert packer.queue().spooled_packs == 2
    store.down = False
    assert len({(await task).handle for task in tasks}) == 4
    assert packer.bytes_held == 0


@pytest.mark.expects_log("the spool refuses")
async def test_a_disk_that_refuses_is_told_and_memory_takes_over(tmp_path: Path) -> None:
    env = quick_env()
    store = Outage(env)
    (tmp_path / "file").write_text("")
    packer = made(store, env, tmp_path / "file" / "spool")
    await packer.open()
    task = asyncio.create_task(packer.seal(pack_of(packer, 1)[0]))
    await until(lambda: packer.queue().trouble)
    assert "stay in memory" in packer.queue().trouble
    assert packer.bytes_held
    store.down = False
    await task
    assert packer.bytes_held == 0


async def test_what_a_crash_left_is_deleted(tmp_path: Path) -> None:
    env = quick_env()
    (tmp_path / "ab.pack").write_bytes(b"old")
    (tmp_path / "other").write_bytes(b"not ours")
    await Spool(tmp_path, 1000, env).open()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


async def test_a_spool_file_that_was_taken_away_gives_the_pack_up(tmp_path: Path) -> None:
    env = quick_env()
    store = Outage(env)
    packer = made(store, env, tmp_path / "spool")
    task = asyncio.create_task(packer.seal(pack_of(packer, 1)[0]))
    await until(lambda: packer.bytes_held == 0)
    for path in (tmp_path / "spool").iterdir():
        path.unlink()
    with pytest.raises(Refused, match="not there any more"):
        await task
    assert (packer.bytes_held, packer.queue().spooled_bytes) == (0, 0)


async def test_cancelling_leaves_nothing_behind(tmp_path: Path) -> None:
    env = quick_env()
    packer = made(Outage(env), env, tmp_path / "spool")
    task = asyncio.create_task(packer.seal(pack_of(packer, 1)[0]))
    await until(lambda: packer.bytes_held == 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (packer.queue().packs, packer.queue().spooled_bytes, list((tmp_path / "spool").iterdir())) == (0, 0, [])


@pytest.mark.parametrize("harm", ["lost", "changed", "fine"])
@pytest.mark.expects_log("the store lost a pack")
async def test_uploads_are_read_back_and_mended(tmp_path: Path, harm: str) -> None:
    class Harmful(Watched):
        """Does its harm once, after it has said yes."""

        done = False

        async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
            if not self.done:
                self.done = True
                if harm == "lost":
                    await self.inner.delete(key)
                elif harm == "changed":
                    await self.inner.put(key, [b"something else"])
            return await super().get(key, start, length)

        async def put(self, key: Key, data: Sequence[Buffer], mode: object = Mode.OVERWRITE) -> PutResult:
            return await self.inner.put(key, data, mode)  # type: ignore[arg-type]

    env = quick_env()
    store = Harmful(MemoryStore(env))
    packer = made(store, env, tmp_path / "spool", verify=True)
    pack, blocks = pack_of(packer, 1)
    sealed = await packer.seal(pack)
    await until(lambda: packer.queue().checked == 1)
    assert packer.queue().mended == (harm != "fine")
    assert (await stored(store, packer, sealed)).startswith(b"".join(blocks))
    await until(lambda: packer.queue().spooled_packs == 0)
    await packer.close()


@pytest.mark.expects_log("the store lost a pack|could not be checked")
async def test_a_store_that_keeps_nothing_as_it_was_is_not_given_it_for_ever(tmp_path: Path) -> None:
    class Mangling(Watched):
        asked = 0

        async def put(self, key: Key, data: Sequence[Buffer], mode: object = Mode.OVERWRITE) -> PutResult:
            self.asked += 1
            return await self.inner.put(key, [b"something else"])

    env = quick_env()
    store = Mangling(MemoryStore(env))
    packer = made(store, env, tmp_path / "spool", verify=True)
    await packer.seal(pack_of(packer, 1)[0])
    await until(lambda: packer.queue().unchecked == 1 and packer.queue().spooled_packs == 0)
    assert store.asked == 5
    assert (packer.queue().checked, packer.queue().mended) == (0, 0)
    await packer.close()


async def test_without_room_uploads_are_counted_as_unchecked(tmp_path: Path) -> None:
    env = quick_env()
    packer = made(watched_store(env), env, tmp_path / "spool", spool=10, verify=True)
    await packer.seal(pack_of(packer, 1)[0])
    assert (packer.queue().unchecked, packer.queue().checked) == (1, 0)
