"""One suite for every object store: the contract of `stnode/objectstore/base.py`, in memory, on disk, at real servers and through the
wrappers. A new backend adds one entry to `STORES`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stnode.clock import Env, system_env
from stnode.errors import Invalid, NotFound, Refused, StnodeError
from stnode.objectstore.base import Buffer, Exists, IfMatch, Key, Meta, Mode, ObjectStore
from stnode.objectstore.encrypted import Encrypted
from stnode.objectstore.faulty import FaultPlan, Faulty
from stnode.objectstore.localdir import LocalDirStore
from stnode.objectstore.memory import MemoryStore
from stnode.objectstore.options import RetryPolicy, StoreOptions
from stnode.objectstore.probe import probe
from stnode.objectstore.registry import open_store, wrap
from stnode.objectstore.s3 import S3Store
from stnode.objectstore.sealing import StoreKeys
from stnode.repo import layout
from tests.support.s3servers import ACCESS_KEY, SECRET_KEY, S3Server, moto_server, rclone_server, seaweedfs_server

__all__ = ["moto_server", "rclone_server", "seaweedfs_server"]

STORES = [
    *("memory", "localdir", "localdir-wrapped", "memory-flaky", "moto", "seaweedfs", "seaweedfs-wrapped"),
    *("memory-encrypted", "localdir-encrypted", "memory-flaky-encrypted", "seaweedfs-encrypted"),
]
FLAKY = FaultPlan(unreachable=0.1, busy=0.1, truncated=0.1, retry_after_s=(0.0, 0.001))


@pytest.fixture
def env() -> Iterator[Env]:
    env = system_env()
    yield env
    env.close()


@pytest.fixture
async def store(made_store: ObjectStore) -> AsyncIterator[ObjectStore]:
    yield made_store
    await made_store.close()


@pytest.fixture(params=STORES)
def made_store(request: pytest.FixtureRequest, env: Env, tmp_path: Path) -> ObjectStore:
    """Not on the loop: a server takes seconds to start."""
    kind: str = request.param
    if kind.endswith("-encrypted"):
        inner = make_store(kind.removesuffix("-encrypted"), request, env, tmp_path)
        return Encrypted(inner, env, StoreKeys(bytes(range(32))), layout.SECRECY)
    return make_store(kind, request, env, tmp_path)


def make_store(kind: str, request: pytest.FixtureRequest, env: Env, tmp_path: Path) -> ObjectStore:
    prefix = f"suite/{env.random.bytes(6).hex()}"
    match kind:
        case "memory":
            return MemoryStore(env)
        case "localdir":
            return LocalDirStore(tmp_path / "store", env)
        case "localdir-wrapped":
            return open_store((tmp_path / "store").as_uri(), StoreOptions(), env)
        case "memory-flaky":
            options = StoreOptions(retry=RetryPolicy(attempts=30, first_s=0.0001, cap_s=0.001))
            return wrap(Faulty(MemoryStore(env), env, FLAKY), options, env)
        case _:
            server: S3Server = request.getfixturevalue(f"{kind.partition('-')[0]}_server")
            if kind.endswith("wrapped"):
                return open_store(server.url(prefix), server.options, env)
            return S3Store(server.url(prefix), server.options, env)


async def keys_of(store: ObjectStore, prefix: str, start_after: str = "") -> list[str]:
    return [meta.key async for meta in store.list(prefix, start_after=start_after)]


async def test_written_is_read_back(store: ObjectStore) -> None:
    data = os.urandom(300_000)
    result = await store.put(Key("a/b_c/d-1.x"), [data])
    blob = await store.get(Key("a/b_c/d-1.x"))
    assert blob.data == data
    assert blob.meta.key == "a/b_c/d-1.x"
    assert blob.meta.size_bytes == len(data)
    assert blob.meta.etag == result.etag
    head = await store.head(Key("a/b_c/d-1.x"))
    assert replace(head, date_ns=None) == replace(blob.meta, date_ns=None)


async def test_buffers_of_all_kinds_are_stored_back_to_back(store: ObjectStore) -> None:
    block = os.urandom(131_072)
    buffers: list[Buffer] = [
        b"head",
        bytearray(b"er"),
        memoryview(block),
        b"",
        memoryview(block)[5:9],
        *([b"tiny"] * 3000),
        memoryview(block * 5),
    ]
    await store.put(Key("buffers"), buffers)
    assert (await store.get(Key("buffers"))).data == b"".join(buffers)


async def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    await store.put(Key("empty"), [])
    blob = await store.get(Key("empty"))
    assert (blob.data, blob.meta.size_bytes) == (b"", 0)
    with pytest.raises(Invalid):
        await store.get(Key("empty"), 0, 1)


async def test_ranges(store: ObjectStore) -> None:
    await store.put(Key("range"), [b"0123456789"])
    for start, length, expected in [
        (0, 1, b"0"),
        (3, 4, b"3456"),
        (9, 1, b"9"),
        (7, None, b"789"),
        (5, 100, b"56789"),
        (0, 10, b"0123456789"),
    ]:
        blob = await store.get(Key("range"), start, length)
        assert (blob.data, blob.meta.size_bytes) == (expected, 10)
    for start, length in [(10, 1), (10, None), (11, 5), (-1, 5), (0, 0), (3, -2)]:
        with pytest.raises(Invalid):
            await store.get(Key("range"), start, length)


async def test_what_is_missing_is_not_found(store: ObjectStore) -> None:
    with pytest.raises(NotFound):
        await store.get(Key("none/at/all"))
    with pytest.raises(NotFound):
        await store.get(Key("none/at/all"), 5, 5)
    with pytest.raises(NotFound):
        await store.head(Key("none/at/all"))


@pytest.mark.parametrize(
    "key",
    ["", "/", "/a", "a/", "a//b", "../a", "a/../b", "a/.", "./a", "a/...", "A", "ä", "a b", "a\\b", "~tmp/x", "a\n", "a\x00", "k" * 1000],
)
async def test_keys_of_other_shapes_are_invalid(store: ObjectStore, key: str) -> None:
    for call in (store.get(Key(key)), store.head(Key(key)), store.delete(Key(key)), store.put(Key(key), [b"x"])):
        with pytest.raises(Invalid):
            await call
    if key:
        with pytest.raises(Invalid):
            await keys_of(store, f"/{key}")


async def test_overwriting_replaces_and_changes_the_etag(store: ObjectStore) -> None:
    etags = [(await store.put(Key("over"), [b"value %d" % number])).etag for number in range(5)]
    assert len(set(etags)) == 5
    blob = await store.get(Key("over"))
    assert (blob.data, blob.meta.etag) == (b"value 4", etags[-1])


async def test_create_is_refused_when_the_object_exists(store: ObjectStore) -> None:
    await store.put(Key("create/one"), [b"first"], Mode.CREATE)
    with pytest.raises(Exists):
        await store.put(Key("create/one"), [b"second"], Mode.CREATE)
    assert (await store.get(Key("create/one"))).data == b"first"
    await store.delete(Key("create/one"))
    await store.put(Key("create/one"), [b"third"], Mode.CREATE)
    await store.put(Key("create/one"), [b"stub"])
    with pytest.raises(Exists):
        await store.put(Key("create/one"), [b"fourth"], Mode.CREATE)


async def test_one_of_twenty_creates_wins(store: ObjectStore) -> None:
    async def attempt(number: int) -> int | None:
        try:
            await store.put(Key("race/slot"), [b"%d" % number], Mode.CREATE)
        except Exists:
            return None
        return number

    results = await asyncio.gather(*(attempt(number) for number in range(20)))
    winners = [number for number in results if number is not None]
    assert len(winners) == 1
    assert (await store.get(Key("race/slot"))).data == b"%d" % winners[0]


async def test_if_match_replaces_only_that_version(store: ObjectStore) -> None:
    first = await store.put(Key("match"), [b"first"])
    second = await store.put(Key("match"), [b"second"], IfMatch(first.etag))
    with pytest.raises(Exists):
        await store.put(Key("match"), [b"third"], IfMatch(first.etag))
    assert (await store.get(Key("match"))).data == b"second"
    await store.delete(Key("match"))
    with pytest.raises(Exists):
        await store.put(Key("match"), [b"fourth"], IfMatch(second.etag))
    assert await keys_of(store, "match") == []


async def test_one_of_ten_replacements_wins(store: ObjectStore) -> None:
    before = await store.put(Key("replace"), [b"before"])

    async def attempt(number: int) -> bool:
        try:
            await store.put(Key("replace"), [b"%d" % number], IfMatch(before.etag))
        except StnodeError:
            return False
        return True

    assert sum(await asyncio.gather(*(attempt(number) for number in range(10)))) == 1


async def test_deleting_twice_succeeds(store: ObjectStore) -> None:
    await store.put(Key("dir/gone"), [b"x"])
    await store.delete(Key("dir/gone"))
    await store.delete(Key("dir/gone"))
    await store.delete(Key("never/was"))
    with pytest.raises(NotFound):
        await store.get(Key("dir/gone"))
    assert await keys_of(store, "dir/") == []


async def test_listing(store: ObjectStore) -> None:
    names = ["journal/j/001", "journal/j/002", "journal/j/010", "journal/k/001", "journal-2/x", "packs/0a/aa", "packs/0b/aa", "top"]
    for name in names:
        await store.put(Key(name), [name.encode()])
    for prefix in ["", "journal", "journal/", "journal/j/", "journal/j/00", "packs/0a/aa", "packs/0", "none/", "top"]:
        assert sorted(await keys_of(store, prefix)) == sorted(name for name in names if name.startswith(prefix)), prefix
    assert await keys_of(store, "journal/j/") == ["journal/j/001", "journal/j/002", "journal/j/010"]
    assert await keys_of(store, "journal/j/", "journal/j/001") == ["journal/j/002", "journal/j/010"]
    assert await keys_of(store, "journal/j/", "journal/j/005") == ["journal/j/010"]
    assert await keys_of(store, "journal/j/", "journal/j/010") == []


async def test_a_listing_tells_what_head_tells(store: ObjectStore) -> None:
    await store.put(Key("told/a"), [b"12345"])
    (listed,) = [meta async for meta in store.list("told/")]
    head = await store.head(Key("told/a"))
    assert (listed.key, listed.size_bytes, listed.etag) == (head.key, head.size_bytes, head.etag)
    assert abs(listed.modified_ns - head.modified_ns) < 10**9  # headers have whole seconds


async def test_a_listing_of_many_pages(store: ObjectStore, request: pytest.FixtureRequest) -> None:
    names = [f"many/{number:05d}" for number in range(2300)]
    for start in range(0, len(names), 100):
        await asyncio.gather(*(store.put(Key(name), [b"x"]) for name in names[start : start + 100]))
    assert await keys_of(store, "many/") == names
    assert await keys_of(store, "many/", "many/01999") == names[2000:]


async def test_writing_while_listing_does_not_block(store: ObjectStore) -> None:
    for number in range(3):
        await store.put(Key(f"walk/{number}"), [b"x"])
    async with asyncio.timeout(30):
        async for meta in store.list("walk/"):
            await store.delete(meta.key)
    assert await keys_of(store, "walk/") == []


async def test_times_are_the_stores(store: ObjectStore, env: Env) -> None:
    before = env.clock.now_ns()
    result = await store.put(Key("time"), [b"x"])
    meta: Meta = await store.head(Key("time"))
    for time_ns in (meta.modified_ns, meta.date_ns, result.date_ns):
        assert time_ns is not None
        assert before - 2 * 10**9 <= time_ns <= env.clock.now_ns() + 2 * 10**9


async def test_many_at_once(store: ObjectStore) -> None:
    data = [os.urandom(1000 + number) for number in range(40)]
    await asyncio.gather(*(store.put(Key(f"at-once/{number}"), [one]) for number, one in enumerate(data)))
    blobs = await asyncio.gather(*(store.get(Key(f"at-once/{number}")) for number in range(40)))
    assert [blob.data for blob in blobs] == data


async def test_a_large_object(store: ObjectStore) -> None:
    block = os.urandom(131_072)
    await store.put(Key("large"), [memoryview(block)] * 160)
    blob = await store.get(Key("large"), 131_072 * 100 - 5, 131_072 + 10)
    assert blob.data == block[-5:] + block + block[:5]
    assert blob.meta.size_bytes == 160 * 131_072


async def test_the_probe_is_content_and_leaves_nothing(store: ObjectStore, env: Env) -> None:
    found = await probe(store, env)
    assert (found.create_if_absent, found.if_match, found.warnings) == (True, True, ())
    assert await keys_of(store, "probe/") == []


async def test_the_probe_finds_a_server_that_ignores_conditions(rclone_server: S3Server, env: Env) -> None:
    store = open_store(rclone_server.url("probed"), rclone_server.options, env)
    with pytest.raises(Refused, match="no conditional writes") as refused:
        await probe(store, env)
    assert "If-None-Match" in refused.value.hint
    found = await probe(store, env, single_node=True)
    assert (found.create_if_absent, found.if_match) == (False, False)
    assert await keys_of(store, "probe/") == []
    await store.close()


@pytest.mark.parametrize(
    ("access_key", "secret", "said"),
    [("nobody", SECRET_KEY, "InvalidAccessKeyId"), (ACCESS_KEY, "wrong", "SignatureDoesNotMatch")],
)
async def test_wrong_credentials_are_refused_with_advice(
    seaweedfs_server: S3Server, env: Env, access_key: str, secret: str, said: str
) -> None:
    store = open_store(seaweedfs_server.url(), replace(seaweedfs_server.options, access_key_id=access_key, secret_access_key=secret), env)
    with pytest.raises(Refused, match=said) as refused:
        await probe(store, env)
    assert "store." in refused.value.hint
    await store.close()


async def test_a_missing_bucket_is_refused_by_name(seaweedfs_server: S3Server, env: Env) -> None:
    store = open_store("s3://no-such-bucket/x", seaweedfs_server.options, env)
    with pytest.raises(Refused, match=f"no bucket 'no-such-bucket' at {seaweedfs_server.endpoint_url}"):
        await probe(store, env)
    await store.close()


async def test_the_server_verifies_small_bodies(seaweedfs_server: S3Server, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that is damaged on the way is not stored (R14)."""
    store = S3Store(seaweedfs_server.url("damaged"), seaweedfs_server.options, env)
    monkeypatch.setattr("stnode.objectstore.s3.base64.b64encode", lambda digest: b"AAAAAAAAAAAAAAAAAAAAAA==")
    with pytest.raises(StnodeError, match="Digest"):
        await store.put(Key("body"), [b"damaged"])
    with pytest.raises(NotFound):
        await store.get(Key("body"))
    await store.close()
