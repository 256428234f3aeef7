"""Requests: every one gets exactly one reply, with the right data or the right code (bep-facts 8.2)."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from stnode.objectstore.faulty import FaultPlan
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileType
from stnode.protocol.messages import FolderID, Request
from tests.support.fakepeer import FakePeer, content
from tests.support.world import World, simulated

BLOCK = 128 << 10
OK, GENERIC, NO_SUCH_FILE, INVALID_FILE = 0, 1, 2, 3


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


async def _filled(world: World, **files: bytes) -> tuple[FakePeer, FakePeer]:
    a = await world.connected("a", "b")
    with a.batch():
        for name, data in files.items():
            a.write(name, data)
    await world.until(lambda: len(world.live()) == len(files))
    b = world.peers["b"]
    await world.until(lambda: len(b.folder().heard) == len(files))
    return a, b


@simulated
async def test_blocks_in_any_order() -> None:
    async with World() as world:
        data = content("x", 20 * BLOCK + 77)
        _, b = await _filled(world, x=data)
        wanted = [("x", at, min(BLOCK, len(data) - at), sha(data[at : at + BLOCK])) for at in range(0, len(data), BLOCK)]
        wanted = wanted[::2] + wanted[1::2][::-1] + wanted[:3]
        replies = await b.ask_many(wanted)
        assert [reply.code for reply in replies] == [OK] * len(wanted)
        assert [bytes(reply.data) for reply in replies] == [data[at : at + size] for _, at, size, _ in wanted]


@simulated
async def test_without_a_hash_the_present_content_is_served() -> None:
    async with World() as world:
        data = content("x", 100)
        _, b = await _filled(world, x=data)
        reply = await b.ask("x", 0, 100)
        assert (reply.code, bytes(reply.data)) == (OK, data)


@simulated
async def test_blocks_of_zeros() -> None:
    async with World() as world:
        data = bytes(3 * BLOCK)
        _, b = await _filled(world, x=data)
        reply = await b.ask("x", 2 * BLOCK, BLOCK, sha(bytes(BLOCK)))
        assert (reply.code, bytes(reply.data)) == (OK, bytes(BLOCK))


@simulated
async def test_the_empty_block_of_an_empty_file() -> None:
    async with World() as world:
        _, b = await _filled(world, empty=b"")
        reply = await b.ask("empty", 0, 0, fileinfo.zero_hash(0))
        assert (reply.code, bytes(reply.data)) == (OK, b"")


@pytest.mark.parametrize(
    ("name", "offset", "size", "code"),
    [
        ("missing", 0, 100, NO_SUCH_FILE),
        ("missing", 0, 0, NO_SUCH_FILE),
        ("x", BLOCK, 1, NO_SUCH_FILE),  # behind the end
        ("x", 1, 99, NO_SUCH_FILE),  # no block begins there
        ("x", 0, 99, NO_SUCH_FILE),  # too short
        ("x", 0, 101, NO_SUCH_FILE),  # too long
        ("x", 1 << 62, 100, NO_SUCH_FILE),
        ("dir", 0, 100, NO_SUCH_FILE),
        ("link", 0, 4, NO_SUCH_FILE),
        ("gone", 0, 100, NO_SUCH_FILE),
        (".stignore", 0, 10, INVALID_FILE),
        (".stfolder/x", 0, 10, INVALID_FILE),
        (".stversions/x", 0, 10, INVALID_FILE),
        (".syncthing.x.tmp", 0, 10, INVALID_FILE),
    ],
)
@pytest.mark.parametrize("digest", [b"", bytes(32)], ids=["no hash", "some hash"])
def test_what_is_not_there(name: str, offset: int, size: int, code: int, digest: bytes) -> None:
    @simulated
    async def scenario() -> None:
        async with World() as world:
            a = await world.connected("a")
            with a.batch():
                a.write("x", content("x", 100))
                a.mkdir("dir")
                a.symlink("link", "x")
                a.write("gone", content("gone", 100))
            await world.until(lambda: len(world.live()) == 4)
            a.delete("gone")
            await world.until(lambda: len(world.live()) == 3)
            for _ in range(2):
                reply = await a.ask(name, offset, size, digest)
                assert (reply.code, bytes(reply.data)) == (code, b"")

    scenario()


@simulated
async def test_of_folders_that_are_unknown_or_not_shared() -> None:
    async with World() as world:
        _, b = await _filled(world, x=content("x", 100))
        await world.share(world.peers["a"], folder="private")
        b.folder("private")
        for folder in ("nonsense", "private"):
            assert (await b.ask("x", 0, 100, sha(content("x", 100)), folder)).code == GENERIC


@pytest.mark.parametrize("after", ["same size", "shorter", "longer", "zeros", "deleted"])
def test_a_version_that_was_replaced_is_served_from_history(after: str) -> None:
    """A peer that is still pulling it asks by its hash; that saves it a failed round."""

    @simulated
    async def scenario() -> None:
        async with World() as world:
            old = content("old", 3 * BLOCK + 50)
            a, b = await _filled(world, x=old)
            match after:
                case "same size":
                    a.write("x", content("new", len(old)))
                case "shorter":
                    a.write("x", content("new", 10))
                case "longer":
                    a.write("x", content("new", 9 * BLOCK))
                case "zeros":
                    a.write("x", bytes(9 * BLOCK))
                case _:
                    a.delete("x")
            version = a.folder().files["x"].info.version
            await world.until(lambda: world.version("x") == version)
            wanted = [("x", at, min(BLOCK, len(old) - at), sha(old[at : at + BLOCK])) for at in range(0, len(old), BLOCK)]
            replies = await b.ask_many(wanted)
            assert [reply.code for reply in replies] == [OK] * 4
            assert b"".join(bytes(reply.data) for reply in replies) == old

    scenario()


@pytest.mark.expects_log("block not served|journal cannot go on")
@simulated
async def test_when_the_store_does_not_answer_the_peer_gets_an_error() -> None:
    async with World() as world:
        data = content("x", 300)
        a, _ = await _filled(world, x=data)
        await world.stop()
        await world.start()
        await a.connect()
        await world.until(lambda: len(a.configs) == 2)
        await world.pause(1)
        world.faulty.plan = FaultPlan(unreachable=1.0)
        assert (await a.ask("x", 0, 300, sha(data))).code == GENERIC
        world.faulty.plan = FaultPlan()
        await world.pause(60)
        assert (await a.ask("x", 0, 300, sha(data))).code == OK


@pytest.mark.expects_log("damaged|block not served")
@simulated
async def test_damaged_data_is_never_served() -> None:
    async with World() as world:
        data = content("x", 300)
        a, _ = await _filled(world, x=data)
        await world.stop()
        (key,) = [key for key in world.bucket.snapshot() if key.startswith("packs/")]
        kept = world.bucket.snapshot()[key]
        damaged = replace(kept, data=bytes([kept.data[0] ^ 1]) + kept.data[1:])
        world.bucket.restore({**world.bucket.snapshot(), key: damaged})
        await world.start()
        await a.connect()
        await world.until(lambda: len(a.configs) == 2)
        await world.pause(1)
        assert (await a.ask("x", 0, 300, sha(data))).code in (GENERIC, NO_SUCH_FILE)
        await world.stop()
        world.bucket.restore({**world.bucket.snapshot(), key: kept})
        await world.start()


# --- back-pressure


@simulated
async def test_ten_thousand_requests_at_once_all_get_their_answer() -> None:
    async with World() as world:
        data = content("x", 50)
        _, b = await _filled(world, x=data)
        replies = await b.ask_many([("x", 0, 50, sha(data))] * 25_000)
        assert {(reply.code, bytes(reply.data)) for reply in replies} == {(OK, data)}


@simulated
async def test_a_peer_that_does_not_read_is_not_served_without_bound() -> None:
    """What is queued for it stays bounded, however much it asks for; what it asks is not kept without bound either."""
    async with World() as world:
        data = content("x", 8 * BLOCK)
        a, b = await _filled(world, x=data)
        assert b.handler is not None
        assert b.handler.link is not None
        link = b.handler.link
        link.pause_reading()
        hashes = [sha(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
        requests = [Request(number, FolderID("f"), "x", number % 8 * BLOCK, BLOCK, hashes[number % 8]) for number in range(1, 15_001)]
        session = world.device_state(b).session
        assert session is not None
        for start in range(0, len(requests), 1000):
            b.handler.connection.send_requests(requests[start : start + 1000])
            b.handler.flush()
            await world.pause(0.1)
            assert len(session._requests) <= 13_000
        assert session.link is not None
        assert session.link.bytes_out < 64 << 20
        a.write("y", content("y", 100))  # others are served and pulled from as before
        await world.until(lambda: world.record("y"))
        link.resume_reading()
        await world.until(lambda: len(b.responses) == 15_000, 600)
        assert {response.code for response in b.responses} == {OK}


@simulated
async def test_a_flood_of_indexes_is_held_back() -> None:
    async with World() as world:
        a = await world.connected("a")
        session = world.device_state(a).session
        assert session is not None
        most = 0
        for number in range(300):
            with a.batch():
                for file in range(100):
                    a.symlink(f"l{number % 7} {file}", f"{number}")
            await world.turns(3)
            most = max(most, len(session._control))
        assert most <= 60
        last = a.folder().files["l5 99"].info.version
        await world.until(lambda: world.version("l5 99") == last, 600)
        assert len(world.live()) == 700
        assert world.record("l0 0").info.type is FileType.SYMLINK  # type: ignore[union-attr]
