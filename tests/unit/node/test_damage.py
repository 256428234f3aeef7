"""Damage in the store under a running node: never served, never a deletion, pulled again, named where nobody has it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from stnode.errors import Archived, Corrupt, NotFound
from stnode.node.operations import NodeService
from stnode.objectstore.base import Key
from stnode.objectstore.sealing import STORED_SEGMENT_BYTES
from stnode.repo import layout, state, state_damage
from stnode.repo.checkreport import CheckReport
from stnode.repo.codec import Body
from stnode.repo.records import LocalFlag
from tests.support.fakepeer import FOLDER, FakePeer, content
from tests.support.world import World, simulated

BLOCK = 128 << 10
pytestmark = pytest.mark.expects_log("damaged|not served|lost content|cannot be read|cannot be looked at|pull stopped")


async def packs(world: World) -> list[Key]:
    return sorted([meta.key async for meta in world.bucket.list("packs/")])


async def wipe(world: World, key: Key) -> None:
    await world.bucket.delete(key)


async def flip(world: World, key: Key) -> None:
    """One byte in the first block."""
    data = bytearray((await world.bucket.get(key)).data)
    data[5] ^= 1
    await world.bucket.put(key, [bytes(data)])


async def cut(world: World, key: Key) -> None:
    """The second half is gone, the list with it."""
    data = (await world.bucket.get(key)).data
    await world.bucket.put(key, [data[: len(data) // 2]])


DAMAGES = pytest.mark.parametrize("damage", [wipe, flip, cut], ids=["missing", "flipped", "truncated"])


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


async def filled(world: World, **files: bytes) -> tuple[FakePeer, FakePeer]:
    """Peer a has written the files, b has heard of them; the node knows nothing but what its database has."""
    a = await world.connected("a", "b")
    with a.batch():
        for name, data in files.items():
            a.write(name, data)
    b = world.peers["b"]
    await world.until(lambda: len(b.folder().heard) == len(files))
    return a, b


async def ask_all(b: FakePeer, name: str, data: bytes) -> list[bytes | None]:
    """What the node serves of the file, block by block; None for a refusal. A wrong byte is an error."""
    served: list[bytes | None] = []
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        reply = await b.ask(name, at, len(block), sha(block))
        assert reply.code or bytes(reply.data) == block
        served.append(None if reply.code else bytes(reply.data))
    return served


def flags(world: World, name: str) -> int:
    record = world.record(name)
    assert record is not None
    return record.local_flags


@DAMAGES
@pytest.mark.parametrize("forgets", [False, True], ids=["lists known", "lists forgotten"])
def test_what_is_damaged_is_pulled_again(damage: Callable[..., object], forgets: bool) -> None:
    @simulated
    async def scenario() -> None:
        async with World() as world:
            files = {name: content(name, size) for name, size in (("x", 3 * BLOCK + 5), ("y", 2 * BLOCK), ("z", 700))}
            a, b = await filled(world, **files)
            [key] = await packs(world)
            if forgets:
                await world.crash()
                await world.start()
                before = len(b.configs)
                for peer in (a, b):
                    await peer.connect()
                await world.until(lambda: len(b.configs) > before)
            else:
                world.node.store.reader._cache._chunks.clear()
                world.node.store.reader._cache._cells.clear()
            await damage(world, key)  # type: ignore[misc]
            for name, data in files.items():
                await ask_all(b, name, data)
            await world.until(lambda: not any(flags(world, name) for name in files))
            await world.node.store.damage.settle()
            await world.until(lambda: not any(flags(world, name) for name in files))
            for name, data in files.items():
                assert await world.content(name) == data
                assert None not in await ask_all(b, name, data)
            assert not [info for peer in (a, b) for info in peer.folder().heard.values() if info.deleted or info.invalid]

    scenario()


@simulated
async def test_a_damaged_segment_of_an_encrypted_store_costs_its_blocks_alone() -> None:
    async with World(encrypted=True) as world:
        files = {name: content(name, 5 * BLOCK) for name in ("x", "y")}
        a, b = await filled(world, **files)
        [key] = await packs(world)
        a.answers = b.answers = lambda _request: (b"", 2)
        world.node.store.reader._cache._chunks.clear()
        world.node.store.reader._cache._cells.clear()
        assert world.sealed is not None
        world.sealed.flipped[key] = 6 * STORED_SEGMENT_BYTES + 1000
        for name, data in files.items():
            await ask_all(b, name, data)
        await world.until(lambda: any(flags(world, name) for name in files))
        await world.node.store.damage.settle()
        served = {name: await ask_all(b, name, data) for name, data in files.items()}
        [hurt] = [name for name in files if flags(world, name)]
        assert sum(block is None for blocks in served.values() for block in blocks) == 1
        assert None not in served["y" if hurt == "x" else "x"]
        a.answers = a.answer
        await world.until(lambda: not flags(world, hurt))
        assert await world.content(hurt) == files[hurt]


@DAMAGES
def test_what_nobody_has_is_named_and_comes_back_with_its_pack(damage: Callable[..., object]) -> None:
    @simulated
    async def scenario() -> None:
        async with World() as world:
            data, other = content("x", 3 * BLOCK + 5), content("y", 2 * BLOCK)
            a, b = await filled(world, x=data, y=other)
            [key] = await packs(world)
            whole = (await world.bucket.get(key)).data
            a.answers = b.answers = lambda _request: (b"", 2)
            await world.crash()
            await world.start()
            before = len(b.configs)
            await b.connect()
            await world.until(lambda: len(b.configs) > before)
            await damage(world, key)  # type: ignore[misc]
            await ask_all(b, "x", data)
            await world.until(lambda: flags(world, "x") == LocalFlag.MUST_FETCH)
            heard = b.folder().heard
            await world.until(lambda: heard["x"].invalid)
            version = world.version("x")
            assert heard["x"].version == version
            assert not heard["x"].deleted
            fid = world.node.folders[FOLDER].fid
            count, names = await world.db.run(lambda conn: state_damage.lost_names(conn, fid, 10))
            assert count == len(names) >= 1
            with pytest.raises((Corrupt, NotFound)):
                await world.content("x")
            await world.bucket.put(key, [whole])
            await world.node.store.damage.settle(look_again=True)
            await world.until(lambda: not flags(world, "x") and not flags(world, "y"))
            assert not b.requests, "nothing was pulled"
            assert await world.content("x") == data
            assert await world.content("y") == other
            await world.until(lambda: not heard["x"].invalid)
            assert heard["x"].version == version
            assert world.node.store.damage.found == 1

    scenario()


@simulated
async def test_what_is_missing_is_neither_deleted_nor_set_back_by_who_knew_it_not() -> None:
    async with World() as world:
        first, second = content("1", 2 * BLOCK), content("2", 2 * BLOCK)
        a = await world.connected("a", "b")
        b = world.peers["b"]
        held = a.write("x", first)
        await world.until(lambda: world.record("x"))
        before = held.info.version
        a.write("x", second)
        await world.until(lambda: world.version("x") != before)
        version = world.version("x")
        a.disconnect()
        b.announce(held.info, first)  # an older version, then its deletion
        for key in await packs(world):
            await wipe(world, key)
        world.node.store.reader.forget(1)
        world.node.store.reader.forget(2)
        await ask_all(b, "x", second)
        await world.until(lambda: flags(world, "x") == LocalFlag.MUST_FETCH)
        await world.pause(30)
        assert world.version("x") == version
        assert world.live() == ["x"]
        await a.connect()
        await world.until(lambda: not flags(world, "x"))
        assert world.version("x") == version
        assert await world.content("x") == second


@simulated
async def test_refused_and_archived_are_no_damage() -> None:
    async with World() as world:
        data = content("x", 2 * BLOCK)
        _, b = await filled(world, x=data)
        [key] = await packs(world)
        get = world.bucket.get

        async def archived(key: Key, start: int = 0, length: int | None = None) -> object:
            if key.startswith("packs/"):
                raise Archived(f"{key} is archived")
            return await get(key, start, length)

        world.bucket.get = archived  # type: ignore[method-assign, assignment]
        world.node.store.reader.forget(1)
        assert (await b.ask("x", 0, BLOCK, sha(data[:BLOCK]))).code
        world.node.store.damage.suspect(1)
        await world.node.store.damage.settle()
        pack = (await world.db.run(lambda conn: state.packs(conn, [1])))[1]
        assert (pack.lost, flags(world, "x")) == (0, 0)
        assert layout.pack_key(pack.fkey, pack.id) == key
        world.bucket.get = get  # type: ignore[method-assign]


@simulated
async def test_a_mistaken_suspicion_changes_nothing() -> None:
    async with World() as world:
        data = content("x", 2 * BLOCK)
        await filled(world, x=data)
        head = world.node.store.status().journal.number
        await world.node.store.damage.settle([1])
        assert world.node.store.status().journal.number == head


async def checked(world: World, scratch: Path, *, read_data: bool = True, share: float = 1.0, repair: bool = False) -> CheckReport:
    """`stnode bucket check` on the world's node."""
    service = NodeService(world.node, scratch)
    steps = [step async for step in service.bucket_check(read_data, share, repair)]
    assert steps[-1].report is not None
    return steps[-1].report


@DAMAGES
def test_check_repairs_with_what_devices_have(damage: Callable[..., object], tmp_path: Path) -> None:
    @simulated
    async def scenario() -> None:
        async with World() as world:
            files = {name: content(name, size) for name, size in (("x", 3 * BLOCK + 5), ("y", 2 * BLOCK))}
            a, _ = await filled(world, **files)
            old = content("older", 5 * BLOCK)
            a.write("z", old)
            await world.until(lambda: world.record("z"))
            before = world.version("z")
            a.write("z", content("newer", BLOCK))
            await world.until(lambda: world.version("z") != before)
            keys = await packs(world)
            assert (await checked(world, tmp_path)).problems == ()
            for key in keys:
                await damage(world, key)  # type: ignore[misc]
            found = await checked(world, tmp_path)
            assert sorted(problem.key for problem in found.problems) == keys
            assert {path for problem in found.problems for path in problem.lost} >= {f"{FOLDER}/x", f"{FOLDER}/z"}
            assert {path for problem in found.problems for path in problem.lost_versions} == {f"{FOLDER}/z"}
            report = await checked(world, tmp_path, repair=True)
            assert {problem.key for problem in report.repaired} == set(keys)
            assert [problem.key for problem in report.problems] == [f"{FOLDER}/z (history)"]
            assert "device" in report.advice
            for name, data in files.items():
                assert await world.content(name) == data
            assert await world.content("z") == content("newer", BLOCK)

    scenario()


@simulated
async def test_a_device_that_comes_later_brings_what_was_lost() -> None:
    async with World() as world:
        data = content("x", 3 * BLOCK + 5)
        a, b = await filled(world, x=data)
        a.disconnect()
        for key in await packs(world):
            await wipe(world, key)
        world.node.store.reader.forget(1)
        await ask_all(b, "x", data)
        await world.until(lambda: flags(world, "x"))
        status = await NodeService(world.node, Path("/nowhere")).status()
        assert (status.folders[0].lost_count, status.folders[0].lost) == (1, ("x",))
        assert any("lost content" in warning for warning in status.store.warnings)
        await a.connect()
        await world.until(lambda: not flags(world, "x"))
        assert await world.content("x") == data


@simulated
async def test_a_change_of_metadata_pulls_what_is_lost_and_a_damaged_folder_goes_on() -> None:
    async with World() as world:
        data = content("x", 2 * BLOCK)
        a, b = await filled(world, x=data)
        a.answers = lambda _request: (b"", 2)
        for key in await packs(world):
            await wipe(world, key)
        world.node.store.reader.forget(1)
        await ask_all(b, "x", data)
        await world.until(lambda: flags(world, "x"))
        a.answers = a.answer
        a.write("x", data, permissions=0o600)
        a.write("new", content("new", BLOCK))
        await world.until(lambda: world.record("new") and not flags(world, "x"))
        assert await world.content("x") == data


@simulated
async def test_the_state_goes_on_where_a_crash_ended_it() -> None:
    async with World() as world:
        data = content("x", 2 * BLOCK)
        a, _ = await filled(world, x=data)
        for key in await packs(world):
            await wipe(world, key)
        await world.node.store.submit_entries(lambda _conn, _packs: Body(packs_lost=(1,)))
        await world.crash()
        await world.start(keep_cache=True)
        await world.until(lambda: flags(world, "x"))
        await a.connect()
        await world.until(lambda: not flags(world, "x"))
        assert await world.content("x") == data
