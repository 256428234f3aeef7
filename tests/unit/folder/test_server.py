"""Answering Requests: every one gets one reply, the right one, whatever is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import cast

import pytest

from stnode.folder.server import BlockServer
from stnode.objectstore.base import Key
from stnode.protocol.messages import ErrorCode, FolderID, Request
from stnode.repo import pacing
from tests.unit.folder.test_view import Bench, bench, noise

KIB = 1 << 10
BLOCK = 128 * KIB


@pytest.fixture(autouse=True)
def quick_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal's pauses between commits are not what is tested here."""
    monkeypatch.setattr(pacing, "GROUP_S", 0.02)
    monkeypatch.setattr(pacing, "FIRST_WAIT_S", 0.01)


def request(number: int, name: str, offset: int, size: int, digest: bytes = b"") -> Request:
    return Request(number, FolderID("f"), name, offset, size, digest, False, 0)


async def answers(server: BlockServer, requests: Sequence[Request]) -> dict[int, bytes | ErrorCode]:
    """Data or error of each; fails when one is answered twice or not at all."""
    given: dict[int, bytes | ErrorCode] = {}

    def reply(number: int, data: memoryview | bytes, code: ErrorCode) -> None:
        assert number not in given
        given[number] = bytes(data) if code is ErrorCode.NO_ERROR else code

    await server.answer(requests, reply)
    assert set(given) == {each.id for each in requests}
    return given


def server_of(b: Bench) -> BlockServer:
    return BlockServer(b.env, b.db, b.store, b.fid)


async def test_blocks_of_small_and_large_files_and_of_zeros() -> None:
    small, large = noise(10 * KIB), noise(5 * BLOCK + 7, 2)
    async with bench() as b:
        await b.put("small", small)
        await b.put("large", large)
        await b.put("zeros", bytes(3 * BLOCK))
        server = server_of(b)
        asked = [request(at, "large", at * BLOCK, min(BLOCK, len(large) - at * BLOCK)) for at in (5, 0, 3, 1)]
        asked += [request(10, "small", 0, len(small), hashlib.sha256(small).digest()), request(11, "zeros", BLOCK, BLOCK)]
        for _ in range(2):  # from the store, then from memory
            given = await answers(server, asked)
            assert all(given[at] == large[at * BLOCK : (at + 1) * BLOCK] for at in (5, 0, 3, 1))
            assert (given[10], given[11]) == (small, bytes(BLOCK))


async def test_what_is_no_block_of_the_file_is_refused() -> None:
    async with bench() as b:
        await b.put("d/file", noise(BLOCK + 10))
        await b.put("gone", noise(10))
        await b.view.remove("gone")
        await b.put("empty", b"")
        wrong = [("d", 0, 10), ("gone", 0, 10), ("never", 0, 10), ("d/file", 1, BLOCK), ("d/file", 0, 10), ("d/file", BLOCK, 11)]
        given = await answers(server_of(b), [request(at, *each) for at, each in enumerate([*wrong, ("d/file", 2 * BLOCK, 1)])])
        assert set(given.values()) == {ErrorCode.NO_SUCH_FILE}
        given = await answers(server_of(b), [request(1, ".stfolder/x", 0, 5), request(2, "empty", 0, 0)])
        assert given == {1: ErrorCode.INVALID_FILE, 2: b""}


async def test_a_replaced_version_is_served_from_history_by_its_hash() -> None:
    old, new = noise(1000), noise(1000, 2)
    async with bench() as b:
        await b.put("file", old)
        server = server_of(b)
        assert (await answers(server, [request(1, "file", 0, 1000)]))[1] == old
        await b.put("file", new)
        server.forget(["file"])
        ids = {1: old, 2: new, 3: b"other"}
        given = await answers(server, [request(number, "file", 0, 1000, hashlib.sha256(data).digest()) for number, data in ids.items()])
        assert given == {1: old, 2: new, 3: ErrorCode.NO_SUCH_FILE}


@pytest.mark.expects_log("block not served")
async def test_damage_is_an_error_for_its_block_only() -> None:
    async with bench() as b:
        data = {f"f{at}": noise(1000, at) for at in range(5)}
        for name, content in data.items():
            await b.put(name, content)
        pack = next(key for key in b.packs() if noise(1000, 3) in b.objects.snapshot()[key].data)
        stored = bytearray(b.objects.snapshot()[pack].data)
        stored[stored.index(data["f3"]) + 9] ^= 1
        await b.objects.put(cast("Key", pack), [stored])
        given = await answers(server_of(b), [request(at, f"f{at}", 0, 1000) for at in range(5)])
        assert given == {at: data[f"f{at}"] if at != 3 else ErrorCode.GENERIC for at in range(5)}


async def test_asking_for_one_block_brings_the_rest_of_the_file() -> None:
    content = noise(8 * BLOCK)
    async with bench() as b:
        await b.put("file", content)
        server = server_of(b)
        for at in range(8):
            assert (await answers(server, [request(1, "file", at * BLOCK, BLOCK)]))[1] == content[at * BLOCK : (at + 1) * BLOCK]
        assert b.store.reader.counts.reads == 1
