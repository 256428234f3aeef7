"""The packer: order, no copies, retries under new ids, memory accounting, handles."""

from __future__ import annotations

import asyncio

import pytest

from stnode.errors import Internal, NotFound, Refused, Unavailable, UnknownOutcome
from stnode.objectstore.base import Exists, Key
from stnode.repo import layout
from stnode.repo.pack import decode_footer
from stnode.repo.packer import PackerOptions
from tests.support.packs import STORE_TIME_US, Hurried, blocks_of, fill, make_packer, quick_env, sha, watched_store


async def test_blocks_are_stored_in_order_of_token() -> None:
    env = quick_env()
    store = watched_store(env)
    packer = make_packer(store, env)
    pack = packer.begin(7, stream=False)
    blocks = blocks_of(1, 10, 20, 30, 40)
    for token, block in (((2, 1), blocks[3]), ((1, 0), blocks[0]), ((2, 0), blocks[2]), ((1, 5), blocks[1])):
        pack.add(token, memoryview(block), sha(block))
    assert (pack.size_bytes, packer.bytes_held, len(pack)) == (100, 100, 4)
    sealed = await packer.seal(pack)
    assert sealed.places == {(1, 0): 0, (1, 5): 1, (2, 0): 2, (2, 1): 3}
    assert packer.bytes_held == 0
    pending = packer.pending(sealed.handle)
    blob = await store.get(pending.key)
    assert blob.data[:100] == b"".join(blocks)
    assert (len(blob.data), pending.blocks, pending.fid) == (pending.size, 4, 7)
    listed = decode_footer(blob.data[-pending.footer_size :], pending.key, pending.size)
    assert listed.hashes == b"".join(map(sha, blocks))
    assert layout.minted_us(pending.id) == STORE_TIME_US


async def test_the_received_buffers_go_to_the_store_as_they_are() -> None:
    env = quick_env()
    store = watched_store(env)
    seen: list[object] = []
    inner_put = store.inner.put

    async def put(key: Key, data: list[object], mode: object) -> object:
        seen.extend(data)
        return await inner_put(key, data, mode)  # type: ignore[arg-type]

    store.inner.put = put  # type: ignore[assignment,method-assign]
    packer = make_packer(store, env)
    pack = packer.begin(1, stream=True)
    view = memoryview(bytearray(b"payload"))
    pack.add((1, 0), view, sha(view))
    await packer.seal(pack)
    assert seen[0] is view


async def test_an_unknown_outcome_is_tried_again_under_another_id() -> None:
    env = quick_env()
    store = watched_store(env)
    store.fail_puts = [(UnknownOutcome("reset"), True), (Exists("taken"), False), (Unavailable("503", retry_after_s=90), False)]
    packer = make_packer(store, env)
    pack = packer.begin(1, stream=False)
    fill(pack, blocks_of(1, 10))
    sealed = await packer.seal(pack)
    assert len(set(store.puts)) == 4
    assert store.puts[-1] == packer.pending(sealed.handle).key
    assert (await store.head(Key(store.puts[0]))).size_bytes > 0  # type: ignore[operator]
    assert isinstance(env.clock, Hurried)
    assert len(env.clock.slept) == 2
    assert env.clock.slept[1] == 90
    assert packer.failing == ""


async def test_a_refusal_gives_the_pack_up() -> None:
    env = quick_env()
    store = watched_store(env)
    store.fail_puts = [(Refused("read-only"), False)]
    packer = make_packer(store, env)
    pack = packer.begin(1, stream=False)
    fill(pack, blocks_of(1, 10))
    with pytest.raises(Refused):
        await packer.seal(pack)
    assert packer.bytes_held == 0
    with pytest.raises(NotFound):
        await store.head(Key(store.puts[0]))  # type: ignore[operator]


async def test_uploads_at_once_are_bounded_and_memory_is_counted_until_they_end() -> None:
    env = quick_env()
    store = watched_store(env)
    running, most, gate = 0, 0, asyncio.Event()
    inner_put = store.inner.put

    async def put(key: Key, data: list[bytes], mode: object) -> object:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return await inner_put(key, data, mode)  # type: ignore[arg-type]

    store.inner.put = put  # type: ignore[assignment,method-assign]
    packer = make_packer(store, env, options=PackerOptions(target_bytes=100, uploads=2))
    seals = []
    for job in range(5):
        pack = packer.begin(1, stream=False)
        fill(pack, blocks_of(job, 60, 60), job=job)
        assert pack.full
        seals.append(asyncio.ensure_future(packer.seal(pack)))
    while running < 2:
        await asyncio.sleep(0)
    assert packer.bytes_held == 600
    seals[-1].cancel()
    gate.set()
    done = await asyncio.gather(*seals, return_exceptions=True)
    assert most == 2
    assert packer.bytes_held == 0
    assert len({sealed.handle for sealed in done[:4] if not isinstance(sealed, BaseException)}) == 4
    assert isinstance(done[4], asyncio.CancelledError)


async def test_handles() -> None:
    env = quick_env()
    packer = make_packer(watched_store(env), env)
    pack = packer.begin(1, stream=False)
    fill(pack, blocks_of(1, 1))
    handle = (await packer.seal(pack)).handle
    assert handle < 0
    assert packer.resolve(handle) is None
    packer.registered({handle: 12})
    assert packer.resolve(handle) == 12
    packer.unregister()
    assert packer.resolve(handle) is None
    assert packer.pending(handle).blocks == 1
    with pytest.raises(Internal):
        packer.pending(handle - 1)


async def test_misuse_is_refused() -> None:
    env = quick_env()
    packer = make_packer(watched_store(env), env)
    empty = packer.begin(1, stream=False)
    with pytest.raises(Internal):
        await packer.seal(empty)
    with pytest.raises(Internal):
        empty.add((1, 0), b"x", b"short")
    twice = packer.begin(1, stream=False)
    for _ in range(2):
        twice.add((1, 0), b"x", sha(b"x"))
    with pytest.raises(Internal, match="twice"):
        await packer.seal(twice)
    with pytest.raises(Internal):
        twice.add((1, 1), b"x", sha(b"x"))
    given_up = packer.begin(1, stream=False)
    fill(given_up, blocks_of(1, 5))
    packer.discard(given_up)
    packer.discard(given_up)
    assert packer.bytes_held == 0


async def test_packs_of_encrypted_folders_carry_checksums() -> None:
    env = quick_env()
    store = watched_store(env)
    packer = make_packer(store, env)
    pack = packer.begin(1, stream=False, hash_bytes=48)
    pack.add((1, 0), b"ciphertext", bytes(48))
    pending = packer.pending((await packer.seal(pack)).handle)
    blob = await store.get(pending.key)
    listed = decode_footer(blob.data[-pending.footer_size :], pending.key)
    assert (listed.hash_bytes, listed.checks is not None) == (48, True)


async def test_blocks_of_given_up_jobs_are_dropped_before_the_pack_is_stored() -> None:
    env = quick_env()
    store = watched_store(env)
    packer = make_packer(store, env)
    pack = packer.begin(7, stream=False)
    blocks = blocks_of(1, 10, 20, 30)
    for token, block in (((1, 0), blocks[0]), ((2, 0), blocks[1]), ((1, 1), blocks[2])):
        pack.add(token, memoryview(block), sha(block))
    pack.keep({1})
    assert (pack.size_bytes, packer.bytes_held, len(pack)) == (40, 40, 2)
    sealed = await packer.seal(pack)
    assert sealed.places == {(1, 0): 0, (1, 1): 1}
    assert (await store.get(packer.pending(sealed.handle).key)).data[:40] == blocks[0] + blocks[2]
    assert packer.bytes_held == 0
