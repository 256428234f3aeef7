"""Names of the store's objects (docs/format.md, Keys). Pure; the only module that builds or parses keys.

An `<id>` is 34 lowercase hex digits: 14 of the store's time in microseconds at the upload's start, then 20 random ones.
Fixed width makes ids of one prefix sort by age, and lets the orphan horizon judge an object by its name alone.
"""

from __future__ import annotations

import hashlib
import re

from stnode.clock import Randomness
from stnode.errors import Internal, Invalid
from stnode.objectstore.base import Key
from stnode.objectstore.encrypted import Secrecy

STORE = Key("stnode.json")
MAIN_JOURNAL = "main"
INCARNATION_DIGITS = 16
KEY_SLOTS = "keys/"

SECRECY = Secrecy(
    readable=frozenset({"stnode.json", "keys"}),
    sealed_parts={
        "packs": frozenset({1}),
        **dict.fromkeys(("journal", "checkpoint", "bodies", "runs", "probe"), frozenset[int]()),
    },
)
"""Of an encrypted store: numbers and ids say nothing and sort as they must; folders, nodes and whatever is not named here are secret."""

_TIME_DIGITS = 14
_RANDOM_BYTES = 10
_ID = re.compile(r"[0-9a-f]{34}")
_SLOT = re.compile(r"[0-9]{20}")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_LONGEST_FOLDER = 100


def mint(store_time_us: int, random: Randomness) -> str:
    """A new object id; `store_time_us` is the store's time (Unix microseconds) now, when the upload starts."""
    if not 0 <= store_time_us < 16**_TIME_DIGITS:
        raise Internal(f"no object id can carry the time {store_time_us}")
    return f"{store_time_us:0{_TIME_DIGITS}x}{random.bytes(_RANDOM_BYTES).hex()}"


def is_id(text: str) -> bool:
    """Whether `text` has the shape of an id."""
    return _ID.fullmatch(text) is not None


def minted_us(object_id: str) -> int:
    """Store time (Unix microseconds) at the upload's start."""
    if not is_id(object_id):
        raise Invalid(f"not an object id: {object_id!r}")
    return int(object_id[:_TIME_DIGITS], 16)


def new_incarnation(random: Randomness) -> str:
    """A folder's random incarnation."""
    return random.bytes(INCARNATION_DIGITS // 2).hex()


def folder_key(folder_id: str, incarnation: str) -> str:
    """`fkey`: the folder ID with everything outside [0-9a-z-] as _xx per UTF-8 byte, long ones cut and hashed, then the incarnation.

    It need not be reversible: the journal's folder settings hold both parts.
    """
    encoded = "".join(char if char in _PLAIN else "".join(f"_{byte:02x}" for byte in char.encode()) for char in folder_id)
    if len(encoded) > _LONGEST_FOLDER:
        encoded = f"{encoded[: _LONGEST_FOLDER - 34]}__{hashlib.sha256(folder_id.encode()).hexdigest()[:32]}"
    return f"{encoded}-{incarnation}"


def folder_id(fkey: str) -> str | None:
    """The folder ID in an `fkey`; None for one that was cut, or that is none."""
    encoded, _, incarnation = fkey.rpartition("-")
    if len(incarnation) != INCARNATION_DIGITS or not encoded or "__" in encoded:
        return None
    try:
        raw = b"".join(
            bytes.fromhex(part[1:]) if part.startswith("_") else part.encode() for part in re.findall(r"_[0-9a-f]{2}|[a-z0-9-]+|.", encoded)
        )
        found = raw.decode()
    except ValueError:
        return None
    return found if folder_key(found, incarnation) == fkey else None


def journal_prefix(journal: str = MAIN_JOURNAL) -> str:
    return f"journal/{journal}/"


def slot_key(number: int, journal: str = MAIN_JOURNAL) -> Key:
    """Slot of commit `number`."""
    return Key(f"journal/{journal}/{number:020d}")


def slot_number(key: str) -> int | None:
    """Number in a slot's or manifest's key, None for a foreign name."""
    name = key.rpartition("/")[2]
    return int(name) if _SLOT.fullmatch(name) else None


def checkpoint_prefix(journal: str = MAIN_JOURNAL) -> str:
    return f"checkpoint/{journal}/"


def manifest_key(number: int, journal: str = MAIN_JOURNAL) -> Key:
    """Manifest of the state after commit `number`."""
    return Key(f"checkpoint/{journal}/{number:020d}")


def heartbeat_prefix() -> str:
    return "nodes/"


def heartbeat_key(node: bytes) -> Key:
    """Heartbeat of the node with this device ID."""
    return Key(f"nodes/{node.hex()}")


def _fan(object_id: str) -> str:
    # The last digits are random: the time in front would put all new objects under one prefix.
    return f"{object_id[-2:]}/{object_id}"


def body_key(object_id: str) -> Key:
    return Key(f"bodies/{_fan(object_id)}")


def run_key(object_id: str) -> Key:
    return Key(f"runs/{_fan(object_id)}")


def pack_prefix(fkey: str) -> str:
    return f"packs/{fkey}/"


def pack_key(fkey: str, object_id: str) -> Key:
    return Key(f"packs/{fkey}/{_fan(object_id)}")


def key_slot_key(slot_id: str) -> Key:
    """A key slot of an encrypted store."""
    return Key(f"{KEY_SLOTS}{slot_id}")


def identity_prefix() -> str:
    return "identities/"


def identity_key(node_name: str) -> Key:
    """The identity of the nodes of this name, in an encrypted store."""
    return Key(f"identities/{hashlib.sha256(node_name.encode()).hexdigest()}")


def object_id(key: str) -> str | None:
    """Id at the end of a pack's, body's or run's key, None for other names."""
    name = key.rpartition("/")[2]
    return name if is_id(name) else None
