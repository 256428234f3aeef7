"""Encryption at rest, byte by byte: vectors, a second implementation, and everything that somebody could change in the bucket."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from stnode.errors import Corrupt, Refused, StnodeError
from stnode.objectstore import sealing
from stnode.objectstore.sealing import OVERHEAD_BYTES, SEGMENT_BYTES, STORED_SEGMENT_BYTES, StoreKeys, plain_size, seal, stored_size, unseal
from tests.support import sealed_reference

MASTER = bytes(range(32))
SALT = bytes(range(100, 116))
KEY = "packs/photos-0123456789abcdef/ab/0660c788d76875b611ca645ebaaa1e47ab"
GOLDEN = Path(__file__).parents[2] / "golden" / "sealed-v1"
SIZES = (0, 1, 31, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES, 3 * SEGMENT_BYTES + 77)

keys = StoreKeys(MASTER)


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def sealed(size: int, key: str = KEY, salt: bytes = SALT) -> bytes:
    return b"".join(seal(keys, key, salt, [content(size)]))


def opened(stored: bytes, key: str = KEY) -> bytes:
    """The whole object, read as `Encrypted.get` does."""
    size = plain_size(len(stored))
    if size is None:
        raise Corrupt("size")
    return unseal(keys, key, stored, 0, len(stored), 0, size)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sealed_is_as_documented_and_can_be_opened(size: int) -> None:
    stored = sealed(size)
    assert stored == sealed_reference.seal_object(MASTER, KEY, SALT, content(size))
    assert len(stored) == stored_size(size)
    assert plain_size(len(stored)) == size
    assert opened(stored) == content(size)


def test_the_golden_objects_are_what_this_version_writes_and_reads() -> None:
    vectors = json.loads((GOLDEN / "vectors.json").read_text())
    master = bytes.fromhex(vectors["master"])
    read = StoreKeys(master)
    for vector in vectors["objects"]:
        data, stored = bytes.fromhex(vector["content"]), bytes.fromhex(vector["stored"])
        assert b"".join(seal(read, vector["key"], bytes.fromhex(vector["salt"]), [data])) == stored
        assert unseal(read, vector["key"], stored, 0, len(stored), 0, len(data)) == data
    for vector in vectors["names"]:
        assert read.seal_name(vector["parent"], vector["name"]) == vector["pseudonym"]
        assert read.open_name(vector["parent"], vector["pseudonym"]) == vector["name"]


def test_how_the_buffers_are_cut_makes_no_difference() -> None:
    data, rng = content(300_000), random.Random(1)
    for most in (1, 50, 5000, 100_000, 300_000):
        parts, at = [], 0
        while at < len(data):
            step = rng.randint(0 if most > 1 else 1, most) if at < 2000 or most > 1 else len(data)
            parts.append(memoryview(data)[at : at + step])
            at += step
        assert b"".join(seal(keys, KEY, SALT, parts)) == sealed_reference.seal_object(MASTER, KEY, SALT, data)


def test_any_range_can_be_opened_by_its_segments() -> None:
    size = 3 * SEGMENT_BYTES + 77
    stored, data, rng = sealed(size), content(size), random.Random(2)
    for _ in range(300):
        start = rng.randrange(size)
        length = rng.randint(1, size - start)
        first, last = start // SEGMENT_BYTES, (start + length - 1) // SEGMENT_BYTES
        piece = stored[first * STORED_SEGMENT_BYTES : (last + 1) * STORED_SEGMENT_BYTES]
        assert unseal(keys, KEY, piece, first, len(stored), start - first * SEGMENT_BYTES, length) == data[start : start + length]


def test_sizes_that_no_sealed_object_has() -> None:
    possible = {stored_size(size) for size in range(2 * SEGMENT_BYTES + 50)}
    for stored in range(2 * STORED_SEGMENT_BYTES + 60):
        size = plain_size(stored)
        assert (size is not None) == (stored in possible), stored
        assert size is None or stored_size(size) == stored


def test_every_byte_counts() -> None:
    """Magic, version, reserved bytes, salt, ciphertext and tag of a small object, each bit of each byte."""
    stored = sealed(31)
    for at in range(len(stored)):
        for bit in range(8):
            changed = bytearray(stored)
            changed[at] ^= 1 << bit
            with pytest.raises(StnodeError) as caught:
                opened(bytes(changed))
            assert isinstance(caught.value, Refused if at == 4 else Corrupt), at
            assert KEY in caught.value.message


def test_every_region_of_a_large_object_counts() -> None:
    stored = sealed(3 * SEGMENT_BYTES + 77)
    for segment in range(4):
        for offset in (0, 4, 5, 8, 23, 24, 60, OVERHEAD_BYTES + 76):
            changed = bytearray(stored)
            changed[segment * STORED_SEGMENT_BYTES + offset] ^= 0x40
            with pytest.raises((Corrupt, Refused), match="packs/photos"):
                opened(bytes(changed))


def test_nothing_can_be_cut_off_added_exchanged_or_moved() -> None:
    stored = sealed(3 * SEGMENT_BYTES + 77)
    segments = [stored[at : at + STORED_SEGMENT_BYTES] for at in range(0, len(stored), STORED_SEGMENT_BYTES)]
    other = sealed(3 * SEGMENT_BYTES + 77, salt=bytes(16))
    forged = {
        "shorter by a segment": b"".join(segments[:-1]),
        "only the first": segments[0],
        "the first is gone": b"".join(segments[1:]),
        "shorter by a byte": stored[:-1],
        "longer by a byte": stored + b"\0",
        "longer by a segment": stored[: -len(segments[-1])] + segments[0] + segments[-1],
        "the last twice": stored + segments[-1],
        "two exchanged": segments[1] + segments[0] + segments[2] + segments[3],
        "one from another version": segments[0] + other[STORED_SEGMENT_BYTES : 2 * STORED_SEGMENT_BYTES] + segments[2] + segments[3],
        "nothing": b"",
        "zeros": bytes(len(stored)),
        "plain": content(500),
    }
    for data in forged.values():
        with pytest.raises(Corrupt):
            opened(data)
    with pytest.raises(Corrupt, match="segment 0"):
        opened(stored, KEY.replace("photos", "music"))
    with pytest.raises(Corrupt):
        unseal(StoreKeys(bytes(32)), KEY, stored, 0, len(stored), 0, 5)


def test_the_same_content_never_looks_the_same() -> None:
    one, other = sealed(5000), sealed(5000, salt=bytes(16))
    assert sum(a == b for a, b in zip(one[24:], other[24:], strict=True)) < 60


def test_names() -> None:
    assert keys.seal_name("packs", "photos-0123456789abcdef") == sealed_reference.pseudonym(MASTER, "packs", "photos-0123456789abcdef")
    seen = set()
    for parent in ("packs", "nodes", "a/b"):
        for length in (1, 2, 15, 31, 32, 33, 64, 117):
            name = "x" * length
            pseudonym = keys.seal_name(parent, name)
            assert pseudonym == sealed_reference.pseudonym(MASTER, parent, name)
            assert keys.open_name(parent, pseudonym) == name
            assert keys.open_name(parent + "x", pseudonym) is None
            assert set(pseudonym) <= set(sealed_reference.ALPHABET)
            assert len(pseudonym) <= 255
            seen.add(pseudonym)
    assert len(seen) == 24
    assert {len(keys.seal_name("packs", "x" * length)) for length in range(1, 33)} == {77}
    for foreign in ("", "x", "lost+found", "photos-0123456789abcdef", keys.seal_name("packs", "x")[:-1] + "0", "ü", "0" * 77):
        assert keys.open_name("packs", foreign) is None


def test_labels() -> None:
    stored = keys.seal_label("ab" * 16, "anna's laptop")
    assert keys.open_label("ab" * 16, stored) == "anna's laptop"
    assert len(stored) == len(keys.seal_label("ab" * 16, ""))
    with pytest.raises(Corrupt):
        keys.open_label("ac" * 16, stored)


def test_keys_are_not_shown() -> None:
    assert not hasattr(keys, "__dict__")
    assert MASTER.hex() not in repr(keys)
    assert sealing.unwrap_master(bytes(32), bytes(12), sealing.wrap_master(bytes(32), bytes(12), MASTER, b"x"), b"x") == MASTER
    assert sealing.unwrap_master(bytes(32), bytes(12), sealing.wrap_master(bytes(32), bytes(12), MASTER, b"x"), b"y") is None
