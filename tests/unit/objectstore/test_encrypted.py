"""The encrypted object store: what its owner sees, what a range costs, where listings are read, and what changed objects look like."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from stnode.clock import Env, InlineThreads, SeededRandomness, SystemClock
from stnode.errors import Corrupt, Invalid, NotFound, StnodeError
from stnode.objectstore.base import Blob, Buffer, Exists, IfMatch, Key, Meta, Mode, PutResult
from stnode.objectstore.encrypted import Encrypted
from stnode.objectstore.memory import MemoryStore
from stnode.objectstore.sealing import OVERHEAD_BYTES, SEGMENT_BYTES, STORED_SEGMENT_BYTES, StoreKeys
from stnode.objectstore.wrappers import Wrapper
from stnode.repo import layout

PACK = Key("packs/holiday-photos-0123456789abcdef/ab/0660c788d76875b611ca645ebaaa1e47ab")
NODE = Key(f"nodes/{'5a' * 32}")
SLOT = layout.slot_key(7)


class Watched(Wrapper):
    """Notes what is asked of the store below."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.gets: list[tuple[str, int, int | None]] = []
        self.listings: list[tuple[str, str]] = []

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        self.gets.append((key, start, length))
        return await self.inner.get(key, start, length)

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        self.listings.append((prefix, start_after))
        return self.inner.list(prefix, start_after=start_after)


class Failing(Wrapper):
    """Answers every put with what a store says that names the key."""

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        raise Exists(f"{key} exists")


@pytest.fixture
def env() -> Env:
    return Env(SystemClock(), SeededRandomness(1), InlineThreads())


@pytest.fixture
def bucket(env: Env) -> MemoryStore:
    return MemoryStore(env)


@pytest.fixture
def watched(bucket: MemoryStore) -> Watched:
    return Watched(bucket)


@pytest.fixture
def store(watched: Watched, env: Env) -> Encrypted:
    return Encrypted(watched, env, StoreKeys(b"k" * 32), layout.SECRECY)


async def listed(store: Encrypted, prefix: str, start_after: str = "") -> list[str]:
    return [meta.key async for meta in store.list(prefix, start_after=start_after)]


async def test_the_bucket_shows_neither_names_nor_contents(store: Encrypted, bucket: MemoryStore) -> None:
    for key in (PACK, NODE, SLOT, layout.identity_key("box"), Key("objects/site/index.html")):
        await store.put(key, [b"a secret " * 1000])
    for name, stored in bucket.snapshot().items():
        for secret in (b"secret", b"photos", b"holiday", b"0123456789abcdef", b"5a5a", b"site", b"index", b"html"):
            assert secret not in stored.data
            assert secret.decode() not in name
    assert {key.split("/")[0] for key in bucket.snapshot()} == {"packs", "nodes", "journal", "identities", "objects"}
    assert SLOT in bucket.snapshot()
    packs = [key for key in bucket.snapshot() if key.startswith("packs/")]
    assert packs[0].split("/")[2:] == PACK.split("/")[2:]


async def test_what_says_how_to_open_the_store_is_readable(store: Encrypted, bucket: MemoryStore) -> None:
    for key in (layout.STORE, layout.key_slot_key("ab" * 16)):
        await store.put(key, [b"{}"])
        assert bucket.snapshot()[key].data == b"{}"
        assert (await store.get(key)).data == b"{}"
        assert (await store.head(key)).size_bytes == 2
    assert await listed(store, layout.KEY_SLOTS) == [layout.key_slot_key("ab" * 16)]


async def test_a_range_costs_one_request_for_its_segments(store: Encrypted, watched: Watched) -> None:
    data = random.Random(3).randbytes(5 * SEGMENT_BYTES + 100)
    await store.put(PACK, [data])
    for start, length, segments in (
        (0, 10, (0, 1)),
        (65_530, 10, (0, 2)),
        (2 * SEGMENT_BYTES, SEGMENT_BYTES, (2, 1)),
        (5 * SEGMENT_BYTES, 9, (5, 1)),
    ):
        watched.gets.clear()
        blob = await store.get(PACK, start, length)
        assert (blob.data, blob.meta.size_bytes, blob.meta.key) == (data[start : start + length], len(data), PACK)
        [(_, at, count)] = watched.gets
        assert (at, count) == (segments[0] * STORED_SEGMENT_BYTES, segments[1] * STORED_SEGMENT_BYTES)
    with pytest.raises(Invalid, match="holiday"):
        await store.get(PACK, 40 * SEGMENT_BYTES, 1)


async def test_listings_agree_with_a_plain_store(store: Encrypted, env: Env, bucket: MemoryStore) -> None:
    """The same keys in the same order within directories, for every prefix and start_after that a caller could use."""
    plain, rng = MemoryStore(env), random.Random(4)
    folders = ["a-0000", "ab-0000", "z-0000"]
    keys = [f"packs/{rng.choice(folders)}/{rng.randrange(256):02x}/{rng.randrange(10**9):034x}" for _ in range(60)]
    keys += [f"nodes/{rng.randrange(10**9):064x}" for _ in range(20)] + [f"journal/main/{n:020d}" for n in range(30)] + ["stnode.json"]
    for key in keys:
        await plain.put(Key(key), [bytes(rng.randrange(100))])
        await store.put(Key(key), [(await plain.get(Key(key))).data])
    await bucket.put(Key("packs/lost"), [b"x"])
    await bucket.put(Key("nodes/foreign"), [b"x"])
    prefixes = {
        "",
        *(key[:end] for key in rng.sample(keys, 20) for end in range(1, len(key), 5)),
        *(f"{key.rpartition('/')[0]}/" for key in keys[:-1]),
    }
    for prefix in sorted(prefixes):
        for after in ("", rng.choice(keys), next((key for key in keys if key.startswith(prefix)), "")):
            expected = [(meta.key, meta.size_bytes) async for meta in plain.list(prefix, start_after=after)]
            found = [(meta.key, meta.size_bytes) async for meta in store.list(prefix, start_after=after)]
            assert sorted(found) == expected, (prefix, after)
            directories: dict[str, list[str]] = {}
            for key, _ in found:
                directories.setdefault(key.rpartition("/")[0], []).append(key)
            assert all(names == sorted(names) for names in directories.values()), (prefix, after)


async def test_a_listing_of_the_journal_goes_on_where_the_caller_says(store: Encrypted, watched: Watched) -> None:
    """Following a journal of a million slots must not list it from its beginning."""
    await listed(store, "journal/main/", SLOT)
    folder = PACK.rpartition("/")[0]
    await listed(store, f"{folder}/", PACK)
    assert watched.listings[0] == ("journal/main/", SLOT)
    prefix, after = watched.listings[1]
    assert prefix.startswith("packs/")
    assert after == prefix + PACK.rpartition("/")[2]


async def test_changed_objects_are_damage_by_name(store: Encrypted, bucket: MemoryStore, env: Env) -> None:
    """Of a range only the segments that it lies in are looked at: it is right, or damage."""
    data = random.Random(5).randbytes(200_000)
    for key in (PACK, NODE):
        await store.put(key, [data])
    before = bucket.snapshot()
    pack, node = sorted(before, reverse=True)
    stored = before[pack].data
    for forged in (
        stored[:-1],
        stored[:STORED_SEGMENT_BYTES],
        stored[: 2 * STORED_SEGMENT_BYTES],
        b"",
        before[node].data,
        bytes(len(stored)),
    ):
        await bucket.put(Key(pack), [forged])
        with pytest.raises(Corrupt, match="packs/holiday-photos") as caught:
            await store.get(PACK)
        assert caught.value.hint
        for start, length in ((0, 10), (1000, 180_000), (199_990, 10)):
            with suppress(Corrupt, Invalid):
                assert (await store.get(PACK, start, length)).data == data[start : start + length]
    await bucket.put(Key(pack), [bytes(OVERHEAD_BYTES - 1)])
    assert (await store.head(PACK)).size_bytes == 0
    assert [meta.size_bytes async for meta in store.list("packs/")] == [0]
    await store.put(SLOT, [b"slot"])
    with pytest.raises(Corrupt, match=SLOT):
        await Encrypted(bucket, env, StoreKeys(b"K" * 32), layout.SECRECY).get(SLOT)


async def test_errors_speak_of_the_callers_key(env: Env, store: Encrypted, bucket: MemoryStore) -> None:
    with pytest.raises(NotFound, match=PACK):
        await store.get(PACK)
    with pytest.raises(NotFound, match=PACK):
        await store.head(PACK)
    failing = Encrypted(Failing(bucket), env, StoreKeys(b"k" * 32), layout.SECRECY)
    with pytest.raises(Exists, match=PACK) as caught:
        await failing.put(PACK, [b"x"], Mode.CREATE)
    assert str(caught.value) == caught.value.message


async def test_a_short_answer_is_never_taken_for_the_object(env: Env, bucket: MemoryStore) -> None:
    class Short(Wrapper):
        async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
            blob = await self.inner.get(key, start, length)
            return Blob(blob.meta, blob.data[:-1])

    store = Encrypted(Short(bucket), env, StoreKeys(b"k" * 32), layout.SECRECY)
    await store.put(NODE, [b"x" * 100])
    with pytest.raises(StnodeError, match="nodes/5a"):
        await store.get(NODE)


async def test_what_is_damaged_on_its_way_is_read_again(env: Env, bucket: MemoryStore) -> None:
    class Noisy(Watched):
        wrong = 0

        async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
            blob = await super().get(key, start, length)
            self.wrong -= 1
            return replace(blob, data=bytes((blob.data[0], blob.data[1] ^ 1)) + blob.data[2:]) if self.wrong >= 0 else blob

    noisy = Noisy(bucket)
    store = Encrypted(noisy, env, StoreKeys(bytes(32)), layout.SECRECY)
    await store.put(PACK, [bytes(300_000)])
    noisy.wrong = 1
    assert (await store.get(PACK, 100_000, 5)).data == bytes(5)
    assert len(noisy.gets) == 2
    noisy.wrong = 9
    with pytest.raises(Corrupt):
        await store.get(PACK)
    assert len(noisy.gets) == 4, "no more than twice"


async def test_what_head_tells(store: Encrypted, bucket: MemoryStore) -> None:
    result = await store.put(PACK, [bytes(SEGMENT_BYTES), b"x"])
    meta = await store.head(PACK)
    [stored] = bucket.snapshot().values()
    assert meta == Meta(PACK, SEGMENT_BYTES + 1, result.etag, stored.modified_ns, meta.date_ns)
    assert len(stored.data) == SEGMENT_BYTES + 1 + 2 * OVERHEAD_BYTES
