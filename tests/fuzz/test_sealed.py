"""Mutated sealed objects and key slots: whatever lies in the bucket, the outcome is the content or one of our errors.

The seed of a round is in its message. `SOAK_S` (make soak) lets the last test go on for that long.
"""

from __future__ import annotations

import json
import os
import random
import time

import pytest

from stnode.errors import Corrupt, Refused
from stnode.objectstore.sealing import SEGMENT_BYTES, STORED_SEGMENT_BYTES, StoreKeys, plain_size, seal, unseal
from stnode.repo import keyslots
from stnode.repo.keyslots import Cost, Kdf, Slot

KEY = "journal/main/00000000000000000001"
KEYS = StoreKeys(b"m" * 32)
INTERESTING = (
    b"",
    b"\0",
    b"\xff",
    b"stnE",
    b"stnE\x01\0\0\0",
    b"stnE\x02\0\0\0",
    bytes(24),
    bytes(40),
    b'"',
    b"{",
    b"1e999",
    b"-1",
    b"null",
)
SLOT = Slot("0f" * 16, "33" * 16, 5, Kdf(Cost(16, 1, 1), b"salt"), b"label", bytes(12), bytes(48))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled or put in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, end = sorted((rng.randint(0, len(changed)), rng.randint(0, len(changed))))
        end = rng.choice((end, min(len(changed), at + rng.randint(0, 30))))
        piece = rng.choice((rng.choice(INTERESTING), rng.randbytes(rng.randint(0, 30)), bytes(changed[at:end]) * 2))
        changed[at:end] = piece
    return bytes(changed)


def objects(count: int, seed: int) -> None:
    """Reads mutated objects whole, as `Encrypted.get` does."""
    rng = random.Random(seed)
    contents = {size: rng.randbytes(size) for size in (0, 1, 1000, SEGMENT_BYTES + 100, 2 * SEGMENT_BYTES)}
    stored = {size: b"".join(seal(KEYS, KEY, rng.randbytes(16), [data])) for size, data in contents.items()}
    for number in range(count):
        size = rng.choice(list(contents))
        forged = mutated(stored[size], rng)
        found = plain_size(len(forged))
        if found is None:
            continue
        try:
            read = unseal(KEYS, KEY, forged, 0, len(forged), 0, found)
        except (Corrupt, Refused):
            continue
        assert (read, forged) == (contents[size], stored[size]), f"round {number} of seed {seed}"


def ranges(count: int, seed: int) -> None:
    """Reads ranges of mutated objects: what is read is what was sealed there."""
    rng = random.Random(seed)
    data = rng.randbytes(3 * SEGMENT_BYTES + 5)
    stored = b"".join(seal(KEYS, KEY, rng.randbytes(16), [data]))
    for number in range(count):
        forged = mutated(stored, rng)
        total = plain_size(len(forged))
        if not total:
            continue
        start = rng.randrange(total)
        length = rng.randint(1, total - start)
        first, last = start // SEGMENT_BYTES, (start + length - 1) // SEGMENT_BYTES
        piece = forged[first * STORED_SEGMENT_BYTES : (last + 1) * STORED_SEGMENT_BYTES]
        try:
            read = unseal(KEYS, KEY, piece, first, len(forged), start - first * SEGMENT_BYTES, length)
        except (Corrupt, Refused):
            continue
        assert read == data[start : start + length], f"round {number} of seed {seed}"


def slots(count: int, seed: int) -> None:
    """Decodes mutated key slots, as text and as JSON with other values."""
    rng = random.Random(seed)
    text = keyslots.encode(SLOT)
    for _ in range(count):
        document = json.loads(text)
        part = rng.choice((document, document["kdf"]))
        part[rng.choice(list(part))] = rng.choice((None, -1, 1 << 80, 1e300, "x", "00", [], {}, True, "ü" * 40))
        for data in (mutated(text, rng), json.dumps(document).encode()):
            try:
                slot = keyslots.decode(data, "keys/x")
            except (Corrupt, Refused):
                continue
            assert keyslots.decode(keyslots.encode(slot), "keys/x") == slot
            assert 128 * slot.kdf.cost.n * slot.kdf.cost.r <= 1 << 30


@pytest.mark.parametrize("seed", range(3))
def test_mutations(seed: int) -> None:
    objects(400, seed)
    ranges(200, seed)
    slots(1500, seed)


@pytest.mark.soak
def test_for_long() -> None:
    until, seed = time.monotonic() + float(os.environ.get("SOAK_S", "60")), 1000
    while time.monotonic() < until:
        objects(400, seed)
        ranges(200, seed)
        slots(1500, seed)
        seed += 1
