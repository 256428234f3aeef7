"""Key slots: passphrases come and go, data stays as it is; wrong ones, changed slots and two commands at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from stnode.clock import Env, InlineThreads, SeededRandomness, SystemClock, system_env
from stnode.errors import Corrupt, Invalid, NotFound, Refused
from stnode.objectstore import sealing
from stnode.objectstore.base import Buffer, Capabilities, IfMatch, Key, Mode, ObjectStore, PutResult
from stnode.objectstore.encrypted import Encrypted
from stnode.objectstore.memory import MemoryStore
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import open_store
from stnode.objectstore.wrappers import Wrapper
from stnode.repo import keyslots, layout
from stnode.repo.keyslots import Cost, KeySlots, check_passphrase
from stnode.repo.parameters import DEFAULT
from stnode.repo.store import Store, describe
from stnode.repo.unlock import make_store, unlock

CHEAP = Cost(n=16, r=1, p=1)
CAPABILITIES = Capabilities(create_if_absent=True, if_match=False)
FIRST, SECOND, THIRD = "correct horse battery", "another good passphrase", "und noch ein drittes"
VECTORS = Path(__file__).parents[2] / "golden" / "sealed-v1" / "vectors.json"


@pytest.fixture
def env() -> Env:
    return Env(SystemClock(), SeededRandomness(5), InlineThreads())


@pytest.fixture
def bucket(env: Env) -> MemoryStore:
    return MemoryStore(env)


async def made(bucket: ObjectStore, env: Env) -> KeySlots:
    assert await make_store(bucket, env, CAPABILITIES, DEFAULT, FIRST, CHEAP)
    return KeySlots(bucket, env, (await describe(bucket)).store_id)


def contents(bucket: MemoryStore) -> dict[str, bytes]:
    return {key: stored.data for key, stored in bucket.snapshot().items()}


def test_the_golden_slot_opens() -> None:
    vectors = json.loads(VECTORS.read_text())
    slot = keyslots.decode(json.dumps(vectors["slot"]).encode(), layout.key_slot_key(vectors["slot"]["id"]))
    key = sealing.scrypt(vectors["passphrase"].encode(), slot.kdf.salt, 1024, 8, 1)
    assert sealing.unwrap_master(key, slot.nonce, slot.wrapped, keyslots._bound(slot)) == bytes.fromhex(vectors["master"])
    assert keyslots.decode(keyslots.encode(slot), layout.key_slot_key(slot.id)) == slot
    assert sealing.StoreKeys(bytes.fromhex(vectors["master"])).open_label(slot.id, slot.label) == "first"


async def test_passphrases_come_and_go_and_nothing_else_changes(bucket: MemoryStore, env: Env) -> None:
    slots = await made(bucket, env)
    await (await unlock(bucket, env, FIRST)).put(layout.slot_key(1), [b"data"])
    before = contents(bucket)
    first = await slots.unlock(FIRST)
    second = await slots.add(first, SECOND, "laptop")
    third = await slots.add(first, THIRD, "")
    opened = await slots.unlock(SECOND)
    assert [opened.label(slot) for slot in await slots.list()] == ["first", "laptop", ""]
    assert {key: data for key, data in contents(bucket).items() if key in before} == before
    await slots.remove(opened, first.slot.id)
    with pytest.raises(Refused, match="none of the 2 key slots"):
        await unlock(bucket, env, FIRST)
    changed = await slots.replace(await slots.unlock(THIRD), FIRST)
    with pytest.raises(Refused, match="wrong passphrase"):
        await unlock(bucket, env, THIRD)
    assert {slot.id for slot in await slots.list()} == {second.id, changed.id}
    for passphrase in (FIRST, SECOND):
        assert (await (await unlock(bucket, env, passphrase)).get(layout.slot_key(1))).data == b"data"
    assert {key: data for key, data in contents(bucket).items() if not key.startswith("keys/")} == {
        key: data for key, data in before.items() if not key.startswith("keys/")
    }
    assert third.id not in {slot.id for slot in await slots.list()}


async def test_the_slot_that_opened_the_store_cannot_be_removed(bucket: MemoryStore, env: Env) -> None:
    slots = await made(bucket, env)
    opened = await slots.unlock(FIRST)
    with pytest.raises(Refused, match="opened the store") as caught:
        await slots.remove(opened, opened.slot.id)
    assert "key change" in caught.value.hint
    with pytest.raises(NotFound, match="no key slot"):
        await slots.remove(opened, "00" * 16)


async def test_two_that_remove_each_others_slot_leave_one(bucket: MemoryStore, env: Env) -> None:
    slots = await made(bucket, env)
    first = await slots.unlock(FIRST)
    await slots.add(first, SECOND, "")
    second = await slots.unlock(SECOND)
    await slots.remove(first, second.slot.id)
    await slots._remove(second, first.slot.id)  # had looked before the other one's removal
    assert [slot.id for slot in await slots.list()] == [second.slot.id]
    assert (await slots.unlock(SECOND)).master == first.master


async def test_one_derivation_opens_any_slot(bucket: MemoryStore, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = await made(bucket, env)
    first = await slots.unlock(FIRST)
    for number in range(5):
        await slots.add(first, f"{SECOND} {number}", "")
    derived: list[bytes] = []
    real = sealing.scrypt

    def counted(passphrase: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
        derived.append(passphrase)
        return real(passphrase, salt, n, r, p)

    monkeypatch.setattr(sealing, "scrypt", counted)
    await slots.unlock(f"{SECOND} 4")
    assert len(derived) == 1
    with pytest.raises(Refused, match="none of the 6 key slots"):
        await slots.unlock("a wrong passphrase")
    assert len(derived) == 2


async def test_the_store_is_named(tmp_path: Path) -> None:
    env = system_env(1)
    objects = open_store(tmp_path.as_uri(), StoreOptions(), env)
    try:
        slots = await made(objects, env)
        with pytest.raises(Refused, match=f"of the store {slots._store_id[:12]} at {tmp_path.as_uri()}"):
            await unlock(objects, env, SECOND)
    finally:
        await objects.close()
        env.close()


@pytest.mark.parametrize("mended", [False, True])
@pytest.mark.parametrize("field", ["id", "store", "created_us", "n", "r", "p", "salt", "label", "nonce", "wrapped"])
async def test_a_changed_slot_opens_nothing(bucket: MemoryStore, env: Env, field: str, mended: bool) -> None:
    """One that is damaged is named; one that somebody has changed, checksum and all, opens nothing either."""
    slots = await made(bucket, env)
    [slot] = await slots.list()
    document = json.loads(keyslots.encode(slot))
    part = document["kdf"] if field in ("n", "r", "p", "salt") else document
    old = part[field]
    part[field] = old * 2 if isinstance(old, int) else ("0" if old[0] != "0" else "1") + old[1:]
    key = layout.key_slot_key(slot.id)
    if mended:
        head = {name: value for name, value in document.items() if name not in ("wrapped", "sha256")}
        bound = b"stnode key slot " + json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
        document["sha256"] = hashlib.sha256(bound + bytes.fromhex(document["wrapped"])).hexdigest()
        await bucket.delete(key)
        key = layout.key_slot_key(document["id"])
    await bucket.put(key, [json.dumps(document).encode()])
    with pytest.raises((Refused, Corrupt)) as caught:
        await slots.unlock(FIRST)
    assert (key in caught.value.message) == (not mended)


@pytest.mark.expects_log("key slot passed over")
@pytest.mark.parametrize("cut", [0, 1, 100, -40, -3])
async def test_a_cut_or_garbled_slot_is_named(bucket: MemoryStore, env: Env, cut: int) -> None:
    slots = await made(bucket, env)
    opened = await slots.unlock(FIRST)
    second = await slots.add(opened, SECOND, "laptop")
    key = layout.key_slot_key(second.id)
    data = contents(bucket)[key]
    for damaged in (data[:cut], data[:cut] + bytes((data[cut] ^ 1,)) + data[cut:][1:]):
        await bucket.put(key, [damaged])
        with pytest.raises(Refused, match=f"the only key slot of the store .*; the key slot {key} is damaged"):
            await slots.unlock(SECOND)
        assert (await slots.unlock(FIRST)).master == opened.master
    await bucket.delete(layout.key_slot_key(opened.slot.id))
    with pytest.raises(Corrupt, match=f"no key slot that can be read; the key slot {key} is damaged"):
        await slots.unlock(SECOND)


@pytest.mark.expects_log("key slot passed over")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b'{"format": 2}',
        b'{"format": 1, "kdf": {"name": "argon2id"}}',
        b'{"format": 1, "kdf": 5}',
    ],
)
async def test_a_damaged_slot_keeps_nobody_out(bucket: MemoryStore, env: Env, data: bytes) -> None:
    slots = await made(bucket, env)
    await bucket.put(layout.key_slot_key("00" * 16), [data])
    opened = await slots.unlock(FIRST)
    await slots.remove(opened, "00" * 16)
    await bucket.put(layout.key_slot_key(opened.slot.id), [data])
    with pytest.raises(Corrupt, match="no key slot that can be read"):
        await slots.unlock(FIRST)


@pytest.mark.parametrize(
    "cost", [Cost(1 << 40, 8, 1), Cost(1024, 1 << 30, 1), Cost(1024, 8, 1000), Cost(1000, 8, 1), Cost(0, 8, 1), Cost(16, 0, 1)]
)
async def test_no_slot_can_ask_for_all_memory(bucket: MemoryStore, env: Env, cost: Cost) -> None:
    [slot] = await (await made(bucket, env)).list()
    with pytest.raises(Corrupt):
        keyslots.decode(keyslots.encode(replace(slot, kdf=replace(slot.kdf, cost=cost))), layout.key_slot_key(slot.id))


@pytest.mark.parametrize("weak", ["", "short", "           x", "aaaaaaaaaaaaaaaa", "abababababababab"])
async def test_weak_passphrases_are_not_taken(bucket: MemoryStore, env: Env, weak: str) -> None:
    with pytest.raises(Invalid, match="too weak") as caught:
        check_passphrase(weak)
    assert not weak.strip() or weak.strip() not in caught.value.message
    with pytest.raises(Invalid):
        await make_store(bucket, env, CAPABILITIES, DEFAULT, weak, CHEAP)
    assert contents(bucket) == {}
    slots = await made(bucket, env)
    with pytest.raises(Invalid):
        await slots.add(await slots.unlock(FIRST), weak, "")
    with pytest.raises(Invalid, match="64 bytes"):
        await slots.add(await slots.unlock(FIRST), SECOND, "x" * 65)


async def test_one_passphrase_however_it_is_typed(bucket: MemoryStore, env: Env) -> None:
    assert await make_store(bucket, env, CAPABILITIES, DEFAULT, "Schlüsselwörter\n", CHEAP)
    assert isinstance(await unlock(bucket, env, "  Schlu\u0308sselwo\u0308rter"), Encrypted)


async def test_what_does_not_go_together_is_refused(bucket: MemoryStore, env: Env) -> None:
    with pytest.raises(NotFound, match="no store here"):
        await unlock(bucket, env, FIRST)
    await made(bucket, env)
    with pytest.raises(Refused, match="no passphrase is given") as missing:
        await unlock(bucket, env, None)
    assert "STNODE_STORE_PASSPHRASE_FILE" in missing.value.hint
    with pytest.raises(Refused, match="wrong passphrase") as wrong:
        await unlock(bucket, env, SECOND)
    assert SECOND not in f"{wrong.value.message} {wrong.value.hint}"
    plain = MemoryStore(env)
    assert await Store.init(plain, env, CAPABILITIES)
    with pytest.raises(Refused, match="not encrypted"):
        await unlock(plain, env, FIRST)
    assert await unlock(plain, env, None) is plain
    document = json.loads(contents(bucket)[layout.STORE])
    document["encryption"]["version"] = 2
    await bucket.put(layout.STORE, [json.dumps(document).encode()])
    with pytest.raises(Refused, match="manner unknown"):
        await unlock(bucket, env, FIRST)


async def test_a_store_that_was_there_keeps_its_slots(bucket: MemoryStore, env: Env) -> None:
    await made(bucket, env)
    before = contents(bucket)
    assert not await make_store(bucket, env, CAPABILITIES, DEFAULT, SECOND, CHEAP)
    assert contents(bucket) == before


async def test_an_init_that_was_killed_between_slot_and_store_is_in_nobodys_way(bucket: MemoryStore, env: Env) -> None:
    class Dies(Wrapper):
        async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
            if key == layout.STORE:
                raise RuntimeError("killed")
            return await self.inner.put(key, data, mode)

    with pytest.raises(RuntimeError):
        await make_store(Dies(bucket), env, CAPABILITIES, DEFAULT, SECOND, CHEAP)
    assert len(contents(bucket)) == 1
    slots = await made(bucket, env)
    assert len(await slots.list()) == 1
    assert isinstance(await unlock(bucket, env, FIRST), Encrypted)
    with pytest.raises(Refused):
        await unlock(bucket, env, SECOND)


async def test_secrets_are_not_shown(bucket: MemoryStore, env: Env) -> None:
    opened = await (await made(bucket, env)).unlock(FIRST)
    assert opened.master.hex() not in repr(opened)
    assert repr(opened.master) not in repr(opened)
    for data in contents(bucket).values():
        assert opened.master not in data
        assert opened.master.hex().encode() not in data
        assert b"horse" not in data
