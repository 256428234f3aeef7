"""Key slots of an encrypted store: `keys/<slot id>`, each the master key sealed by one passphrase (docs/format.md, Encryption at rest).

A slot is written once under a random id and never changed: adding a passphrase writes one, removing it deletes one, and no data is written
anew. The slots of one store share their salt, so that a start derives one key and tries it on all. Whoever kept a copy of a slot and
knows its passphrase still has the master key: removing a slot takes no secret back.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import MutableSequence, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from stnode.clock import Env
from stnode.errors import Corrupt, Invalid, NotFound, Refused
from stnode.objectstore import sealing
from stnode.objectstore.base import Key, ObjectStore
from stnode.objectstore.registry import OpenedStore
from stnode.objectstore.sealing import StoreKeys
from stnode.repo import layout
from stnode.telemetry import get_logger

log = get_logger(__name__)

FORMAT: Final = 1
PASSPHRASE_CHARACTERS: Final = 12
"""A new passphrase has at least so many, five of them different. Existing ones open what they open."""
_DIFFERENT_CHARACTERS = 5
_LABEL_BYTES = 64
_SLOT_ID = re.compile(r"[0-9a-f]{32}")
_MEMORY_MAX = 1 << 30
_ID_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Cost:
    """What deriving a key costs: 128 · n · r bytes of memory, and time by n · r · p."""

    n: int = 1 << 16
    r: int = 8
    p: int = 2


@dataclass(frozen=True, slots=True)
class Kdf:
    """How a passphrase becomes a key."""

    cost: Cost
    salt: bytes


@dataclass(frozen=True, slots=True)
class Slot:
    """One key slot as it is stored; `label` is sealed."""

    id: str
    store_id: str
    created_us: int
    kdf: Kdf
    label: bytes
    nonce: bytes
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class Unlocked:
    """An open store: its master key, and the slot that gave it. `repr` does not show the key."""

    master: bytes = field(repr=False)
    keys: StoreKeys
    slot: Slot

    def label(self, slot: Slot) -> str:
        """The label of any slot of this store."""
        return self.keys.open_label(slot.id, slot.label)


def check_passphrase(passphrase: str) -> None:
    """Raises Invalid for a new passphrase that is easily guessed."""
    text = _normal(passphrase).decode()
    if len(text) < PASSPHRASE_CHARACTERS or len(set(text)) < _DIFFERENT_CHARACTERS:
        raise Invalid(
            f"the new passphrase is too weak: it needs {PASSPHRASE_CHARACTERS} characters, {_DIFFERENT_CHARACTERS} of them different",
            hint="take some random words, or the output of `openssl rand -base64 24`; without it nobody can read the store",
        )


class KeySlots:
    """The slots of the store `store_id` in `objects`, which is the object store below the encryption. No passphrase stays here."""

    def __init__(self, objects: ObjectStore, env: Env, store_id: str) -> None:
        self._objects = objects
        self._env = env
        self._store_id = store_id
        where = objects.url if isinstance(objects, OpenedStore) else ""
        self._named = f"the store {store_id[:_ID_SHOWN]}{f' at {where}' if where else ''}"

    async def make_first(self, passphrase: str, cost: Cost | None = None) -> Slot:
        """The first slot, with a new master key: written before stnode.json says that the store is encrypted."""
        check_passphrase(passphrase)
        kdf = Kdf(cost or Cost(), self._env.random.bytes(sealing.SALT_BYTES))
        return await self._write(self._env.random.bytes(sealing.MASTER_BYTES), kdf, passphrase, "first")

    async def list(self) -> Sequence[Slot]:
        """All slots of this store that can be read, oldest first. The others are told to the log: they keep nobody from using theirs."""
        found, unreadable = await self._read()
        for error in unreadable:
            log.warning("key slot passed over", error=error.message, hint=error.hint)
        return found

    async def unlock(self, passphrase: str) -> Unlocked:
        """Opens the store. Raises Refused when the passphrase opens none of the slots, Corrupt when there is none to open; both name the
        slots that cannot be read."""
        slots, unreadable = await self._read()
        derived: dict[Kdf, bytes] = {}
        for slot in slots:
            if slot.kdf not in derived:
                derived[slot.kdf] = await self._derive(passphrase, slot.kdf)
            master = sealing.unwrap_master(derived[slot.kdf], slot.nonce, slot.wrapped, _bound(slot))
            if master is not None:
                for error in unreadable:
                    log.warning("key slot passed over", error=error.message, hint=error.hint)
                return Unlocked(master, StoreKeys(master), slot)
        besides = "".join(f"; {error.message}" for error in unreadable)
        if not slots:
            raise Corrupt(
                f"{self._named} is encrypted and has no key slot that can be read{besides}",
                hint="bring the objects below keys/ back from a backup of the bucket",
            )
        which = "does not open the only key slot" if len(slots) == 1 else f"opens none of the {len(slots)} key slots"
        raise Refused(
            f"wrong passphrase: it {which} of {self._named}{besides}",
            hint="correct store.passphrase or the file it is read from; nobody can read the store without one of its passphrases",
        )

    async def add(self, unlocked: Unlocked, passphrase: str, label: str) -> Slot:
        """One more passphrase for the store; it has been tried when this returns. Raises Invalid for one that is too weak."""
        check_passphrase(passphrase)
        if len(label.encode()) > _LABEL_BYTES:
            raise Invalid(f"the label of a key slot has at most {_LABEL_BYTES} bytes")
        slot = await self._write(unlocked.master, unlocked.slot.kdf, passphrase, label)
        where = layout.key_slot_key(slot.id)
        stored = decode((await self._objects.get(where)).data, where)
        key = await self._derive(passphrase, stored.kdf)
        if sealing.unwrap_master(key, stored.nonce, stored.wrapped, _bound(stored)) != unlocked.master:
            raise Corrupt(f"the new key slot {slot.id} does not open the store", hint="remove it and try again")
        return slot

    async def remove(self, unlocked: Unlocked, slot_id: str) -> None:
        """Ends a passphrase. Raises NotFound, and Refused for the slot that this very command was opened by: one that works always stays."""
        if slot_id == unlocked.slot.id:
            raise Refused(
                f"key slot {slot_id} opened the store for this command: removing it could leave none whose passphrase is known",
                hint="give the passphrase of another slot, or replace this one with `stnode bucket key change`",
            )
        if layout.key_slot_key(slot_id) not in await self._names():
            raise NotFound(f"there is no key slot {slot_id}", hint="`stnode bucket key list` shows them")
        await self._remove(unlocked, slot_id)

    async def replace(self, unlocked: Unlocked, passphrase: str) -> Slot:
        """Another passphrase in place of the one that opened the store; the old slot goes when the new one has been tried."""
        slot = await self.add(unlocked, passphrase, unlocked.label(unlocked.slot))
        await self._remove(replace(unlocked, slot=slot), unlocked.slot.id)
        return slot

    async def _remove(self, unlocked: Unlocked, slot_id: str) -> None:
        """Two commands may remove each other's slot at once: each makes sure that its own is there afterwards."""
        await self._objects.delete(layout.key_slot_key(slot_id))
        if unlocked.slot.id not in {slot.id for slot in await self.list()}:
            await self._objects.put(layout.key_slot_key(unlocked.slot.id), [encode(unlocked.slot)])

    async def _read(self) -> tuple[Sequence[Slot], Sequence[Corrupt | Refused]]:
        """The slots of this store, oldest first, and what is wrong with each that cannot be read."""
        found: MutableSequence[Slot] = []
        unreadable: MutableSequence[Corrupt | Refused] = []
        for key in sorted(await self._names()):
            try:
                slot = decode((await self._objects.get(key)).data, key)
            except NotFound:
                continue  # removed meanwhile
            except (Corrupt, Refused) as exc:
                unreadable.append(exc)
                continue
            if slot.store_id == self._store_id:
                found.append(slot)
        return sorted(found, key=lambda slot: (slot.created_us, slot.id)), unreadable

    async def _names(self) -> set[Key]:
        return {meta.key async for meta in self._objects.list(layout.KEY_SLOTS)}

    async def _write(self, master: bytes, kdf: Kdf, passphrase: str, label: str) -> Slot:
        random = self._env.random
        slot_id = random.bytes(16).hex()
        sealed_label = StoreKeys(master).seal_label(slot_id, label)
        created_us = self._env.clock.now_ns() // 1000
        slot = Slot(slot_id, self._store_id, created_us, kdf, sealed_label, random.bytes(sealing.NONCE_BYTES), b"")
        key = await self._derive(passphrase, kdf)
        slot = replace(slot, wrapped=sealing.wrap_master(key, slot.nonce, master, _bound(slot)))
        await self._objects.put(layout.key_slot_key(slot_id), [encode(slot)])
        return slot

    async def _derive(self, passphrase: str, kdf: Kdf) -> bytes:
        cost = kdf.cost
        return await self._env.threads.run(sealing.scrypt, _normal(passphrase), kdf.salt, cost.n, cost.r, cost.p)


def encode(slot: Slot) -> bytes:
    """The slot's object."""
    document = {**_head(slot), "wrapped": slot.wrapped.hex(), "sha256": _checksum(slot)}
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def decode(data: bytes, key: str) -> Slot:
    """Raises Corrupt, and Refused for a newer format."""
    try:
        read: dict[str, Any] = json.loads(data)
        if read["format"] != FORMAT:
            raise Refused(f"{key} has format {read['format']}, this stnode knows {FORMAT}", hint="update stnode on this node")
        if read["kdf"]["name"] != "scrypt":
            raise Refused(
                f"{key} derives its key by {read['kdf']['name']}, which this stnode does not know", hint="update stnode on this node"
            )
        cost = Cost(*(int(read["kdf"][name]) for name in ("n", "r", "p")))
        hexed = {name: bytes.fromhex(read[name]) for name in ("label", "nonce", "wrapped")}
        slot = Slot(read["id"], read["store"], int(read["created_us"]), Kdf(cost, bytes.fromhex(read["kdf"]["salt"])), **hexed)
        _check(slot)
        if layout.key_slot_key(slot.id) != key or read["sha256"] != _checksum(slot):
            raise ValueError("checksum or name")
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as exc:
        raise Corrupt(f"the key slot {key} is damaged", hint="bring it back from a backup of the bucket, or delete the object") from exc
    return slot


def _check(slot: Slot) -> None:
    """Raises ValueError for what no slot can be; limits keep a foreign one from taking all memory and hours."""
    cost = slot.kdf.cost
    if not _SLOT_ID.fullmatch(slot.id) or len(slot.nonce) != sealing.NONCE_BYTES:
        raise ValueError("id or nonce")
    if cost.n < 2 or cost.n & (cost.n - 1) or cost.r < 1 or not 1 <= cost.p <= 16 or 128 * cost.n * cost.r > _MEMORY_MAX:
        raise ValueError("cost")


def _head(slot: Slot) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "id": slot.id,
        "store": slot.store_id,
        "created_us": slot.created_us,
        "kdf": {"name": "scrypt", **asdict(slot.kdf.cost), "salt": slot.kdf.salt.hex()},
        "label": slot.label.hex(),
        "nonce": slot.nonce.hex(),
    }


def _bound(slot: Slot) -> bytes:
    """What the wrapped master key is bound to: everything else in the slot."""
    return b"stnode key slot " + json.dumps(_head(slot), sort_keys=True, separators=(",", ":")).encode()


def _checksum(slot: Slot) -> str:
    """Tells a damaged slot from a wrong passphrase; against malice there is the seal of the master key."""
    return hashlib.sha256(_bound(slot) + slot.wrapped).hexdigest()


def _normal(passphrase: str) -> bytes:
    """The same bytes for the same passphrase, however it was typed."""
    return unicodedata.normalize("NFC", passphrase).strip().encode("utf-8", "surrogateescape")
