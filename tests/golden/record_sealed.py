"""Writes the vectors of encryption at rest, by the second implementation, if they do not exist yet; those that exist are never changed.

Run as `python -m tests.golden.record_sealed`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.support import sealed_reference as reference

TARGET = Path(__file__).parent / "sealed-v1"
MASTER = bytes(range(32))
NAMES = (
    ("packs", "photos-0123456789abcdef"),
    ("nodes", "5a" * 32),
    ("identities", "c3" * 32),
    ("packs", "f" * 66 + "__" + "0" * 32 + "-0123456789abcdef"),
)
OBJECTS = (
    ("journal/main/00000000000000000001", b""),
    ("nodes/" + "5a" * 32, b"a heartbeat"),
    ("bodies/ab/" + "0" * 32 + "ab", bytes(1000)),
)


def vectors() -> dict[str, object]:
    """All vectors as JSON shows them, binary as hex."""
    slot_head = {
        "created_us": 1_800_000_000_000_000,
        "format": 1,
        "id": "0f" * 16,
        "kdf": {"n": 1024, "name": "scrypt", "p": 1, "r": 8, "salt": "11" * 16},
        "label": reference.siv(reference.hkdf(MASTER, b"", b"stnode 1 labels", 64), b"0f" * 16, b"first".ljust(64, b"\0")).hex(),
        "nonce": "22" * 12,
        "store": "33" * 16,
    }
    bound = json.dumps(slot_head, sort_keys=True, separators=(",", ":")).encode()
    wrapped = reference.wrap_master("correct horse battery", bound, b"\x11" * 16, (1024, 8, 1), b"\x22" * 12, MASTER)
    checksum = hashlib.sha256(b"stnode key slot " + bound + wrapped).hexdigest()
    return {
        "master": MASTER.hex(),
        "objects": [
            {
                "key": key,
                "salt": f"{number:032x}",
                "content": data.hex(),
                "stored": reference.seal_object(MASTER, key, number.to_bytes(16, "big"), data).hex(),
            }
            for number, (key, data) in enumerate(OBJECTS, 1)
        ],
        "names": [{"parent": parent, "name": name, "pseudonym": reference.pseudonym(MASTER, parent, name)} for parent, name in NAMES],
        "passphrase": "correct horse battery",
        "slot": {**slot_head, "wrapped": wrapped.hex(), "sha256": checksum},
    }


if __name__ == "__main__":
    path = TARGET / "vectors.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(vectors(), indent=1, sort_keys=True) + "\n")
        print(f"wrote {path}")
