"""The pack format, version 1: blocks back to back, then a footer that lists them. Pure; docs/format.md has every byte.

    pack   = data footer
    footer = hashes spans [checks] tail

The footer is read with one range GET of its size, which the commit that registers the pack names; with nothing known,
the tail at the object's end names it. The data has no header, so a block's place in the data is its place in the object.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, repeat
from operator import mul
from typing import Final

from stnode.errors import Corrupt, Internal, Refused
from stnode.protocol.blocks import HASH_BYTES
from stnode.protocol.blocks import TOKEN_BYTES as _TOKEN_BYTES
from stnode.repo.checksum import xxh3_64

FORMAT_VERSION: Final = 1
PLAIN_HASH_BYTES: Final = HASH_BYTES
"""SHA-256 of the block. The data is verified by it, so that plain packs carry no further checksum per block."""
TOKEN_BYTES: Final = _TOKEN_BYTES
"""Token of an encrypted folder's block. It says nothing of the ciphertext, so each block has an XXH3-64 beside it."""
MAX_BLOCK_BYTES: Final = (16 << 20) + 40
MAX_DATA_BYTES: Final = (1 << 32) - 1
COMPRESSED: Final = 1 << 31

_MAGIC: Final = b"stnpack1"
_TAIL: Final = struct.Struct("<HHIIIQQQ8s")
_TAIL_HEAD: Final = struct.Struct("<HHIIIQQ")
_SPAN: Final = struct.Struct("<III")
TAIL_BYTES: Final = _TAIL.size


@dataclass(frozen=True, slots=True)
class PackList:
    """What a pack holds, in order of place: `hashes` has `hash_bytes` bytes per block, `lengths` the bytes of each block,
    `offsets` where each begins in the object, and at its end the size of the data. `compressed` holds the places stored as
    LZ4 blocks. `checks` is the XXH3-64 of each block as stored, in packs of encrypted folders only."""

    hash_bytes: int
    hashes: bytes
    lengths: array[int]
    offsets: array[int]
    compressed: frozenset[int]
    checks: array[int] | None

    @property
    def count(self) -> int:
        """Number of blocks."""
        return len(self.lengths)

    @property
    def data_bytes(self) -> int:
        """Bytes of all blocks as stored; the footer begins here."""
        return self.offsets[-1]

    @property
    def memory_bytes(self) -> int:
        """What keeping this list costs, about."""
        return 200 + len(self.hashes) + 8 * self.count + (8 * self.count if self.checks is not None else 0)

    def hashes_of(self, place: int, count: int = 1) -> bytes:
        """The hashes of `count` blocks from `place` on, back to back."""
        return self.hashes[place * self.hash_bytes : (place + count) * self.hash_bytes]


def encode_footer(blocks: PackList) -> bytes:
    """The footer of a pack that holds `blocks`."""
    spans = [
        _SPAN.pack(sum(1 for _ in group), length, stored)
        for (length, stored), group in groupby(zip(blocks.lengths, _stored(blocks), strict=True))
    ]
    checks = b"" if blocks.checks is None else _little(blocks.checks)
    body = b"".join((blocks.hashes, *spans, checks))
    size = len(body) + TAIL_BYTES
    head = _TAIL_HEAD.pack(FORMAT_VERSION, blocks.hash_bytes, blocks.count, len(spans), size, blocks.data_bytes, xxh3_64(body))
    return b"".join((body, head, xxh3_64(head).to_bytes(8, "little"), _MAGIC))


def plain_list(hash_bytes: int, hashes: Sequence[bytes], lengths: Iterable[int], checks: array[int] | None = None) -> PackList:
    """The list of a pack whose blocks are stored as they are: one hash and one length each, in order of place."""
    sizes = array("I", lengths)
    joined = b"".join(hashes)
    if len(joined) != len(sizes) * hash_bytes or (checks is None) != (hash_bytes == PLAIN_HASH_BYTES):
        raise Internal(f"{len(joined)} bytes of hashes for {len(sizes)} blocks")
    if sum(sizes) > MAX_DATA_BYTES:
        raise Internal(f"a pack of {sum(sizes)} bytes cannot be described")
    return PackList(hash_bytes, joined, sizes, array("I", accumulate(sizes, initial=0)), frozenset(), checks)


def footer_size(end: bytes, name: str) -> int:
    """Bytes of the footer whose last bytes, TAIL_BYTES of them at least, are `end`; Corrupt if it is no pack's end."""
    return _tail(end, name)[4]


def decode_footer(footer: bytes, name: str, object_size: int | None = None) -> PackList:
    """Reads a footer. Everything is checked, so that the list can be trusted to fit the object: `object_size` is its size
    where known. Corrupt names `name`, the pack's key."""
    _, hash_bytes, count, span_count, size, data_bytes, body_check, _, _ = _tail(footer, name)
    body = memoryview(footer)[:-TAIL_BYTES]
    check_bytes = 0 if hash_bytes == PLAIN_HASH_BYTES else 8 * count
    spans_at = hash_bytes * count
    checks_at = spans_at + span_count * _SPAN.size
    if size != len(footer) or len(body) != checks_at + check_bytes:
        raise _damaged(name, "its footer has the wrong length")
    if xxh3_64(body) != body_check:
        raise _damaged(name, "the checksum of its list does not match")
    if object_size is not None and object_size != data_bytes + size:
        raise _damaged(name, f"it has {object_size} bytes instead of {data_bytes + size}")
    lengths, offsets, compressed = _read_spans(body[spans_at:checks_at], count, data_bytes, name)
    checks = None if not check_bytes else _from_little("Q", body[checks_at:])
    return PackList(hash_bytes, bytes(body[:spans_at]), lengths, offsets, compressed, checks)


def _read_spans(spans: memoryview, count: int, data_bytes: int, name: str) -> tuple[array[int], array[int], frozenset[int]]:
    """Lengths, offsets and compressed places; refuses spans that do not add up before it allocates for them. A pack of small
    files has a span per block, so nothing here is a loop over spans unless blocks are compressed."""
    numbers = struct.unpack(f"<{len(spans) // 4}I", spans)
    runs, lengths, flagged = numbers[0::3], numbers[1::3], numbers[2::3]
    stored = flagged if lengths == flagged else tuple(size & ~COMPRESSED for size in flagged)
    if sum(runs) != count or sum(map(mul, runs, stored)) != data_bytes or data_bytes > MAX_DATA_BYTES:
        raise _damaged(name, "its list does not add up to its size")
    if max(lengths, default=0) > MAX_BLOCK_BYTES:
        raise _damaged(name, "its list has a block of impossible length")
    compressed: set[int] = set()
    if stored is not flagged:
        place = 0
        for run, length, flags, kept in zip(runs, lengths, flagged, stored, strict=True):
            if kept >= length if flags & COMPRESSED else kept != length:
                raise _damaged(name, "its list has a block of impossible length")
            if flags & COMPRESSED:
                compressed.update(range(place, place + run))
            place += run
    offsets = array("I", accumulate(chain.from_iterable(map(repeat, stored, runs)), initial=0))
    return array("I", chain.from_iterable(map(repeat, lengths, runs))), offsets, frozenset(compressed)


def _stored(blocks: PackList) -> Iterable[int]:
    """The stored length of each block, flagged where it is compressed."""
    if not blocks.compressed:
        return blocks.lengths
    sizes = (end - start for start, end in zip(blocks.offsets, blocks.offsets[1:], strict=False))
    return [size | COMPRESSED if place in blocks.compressed else size for place, size in enumerate(sizes)]


def _tail(end: bytes, name: str) -> tuple[int, int, int, int, int, int, int, int, bytes]:
    """The fields of the tail in order of the format, checked one by one."""
    if len(end) < TAIL_BYTES:
        raise _damaged(name, "it is too short")
    tail = end[-TAIL_BYTES:]
    fields: tuple[int, int, int, int, int, int, int, int, bytes] = _TAIL.unpack(tail)
    version, hash_bytes, check, magic = fields[0], fields[1], fields[7], fields[8]
    if magic != _MAGIC:
        raise _damaged(name, "it does not end like a pack")
    if xxh3_64(tail[: _TAIL_HEAD.size]) != check:
        raise _damaged(name, "the checksum of its tail does not match")
    if version != FORMAT_VERSION:
        raise Refused(f"pack {name} has format version {version}, this stnode knows {FORMAT_VERSION}", hint="update stnode on this node")
    if hash_bytes not in {PLAIN_HASH_BYTES, TOKEN_BYTES}:
        raise _damaged(name, f"its hashes have {hash_bytes} bytes")
    return fields


def _little(numbers: array[int]) -> bytes:
    """The array's bytes in the format's order."""
    return struct.pack(f"<{len(numbers)}{numbers.typecode}", *numbers)


def _from_little(typecode: str, data: memoryview) -> array[int]:
    """The numbers that `_little` wrote."""
    return array(typecode, struct.unpack(f"<{len(data) // struct.calcsize('<' + typecode)}{typecode}", data))


def _damaged(name: str, what: str) -> Corrupt:
    return Corrupt(
        f"pack {name} is damaged: {what}",
        hint="put the pack back from a backup of the bucket; `stnode bucket check --read-data` names the files in it",
    )
