"""Block lists: sizes, hashes of zeros, taking the list from a parsed FileInfo, and writing it back (bep-facts 8.1).

A block list is one bytes object of hashes, 32 bytes each, or of the 48-byte tokens that stand for them in encrypted folders (bep-facts
10.5). Offsets and sizes follow from file size and block size: all blocks are full but the last, an empty file has one block of size 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from stnode.errors import ProtocolError
from stnode.protocol.pb import bep_pb2 as pb
from stnode.protocol.varint import varint

SMALLEST: Final = 128 << 10
LARGEST: Final = 16 << 20
LARGEST_ON_WIRE: Final = LARGEST + 40
"""In encrypted folders a block has 40 bytes more (nonce and tag)."""

HASH_BYTES: Final = 32
TOKEN_BYTES: Final = 48
"""What stands for a block's hash in an encrypted folder."""

_WANTED_BLOCKS = 2000
_PREFIXES_KEPT = 4096


def block_size_for(size: int, previous: int = 0) -> int:
    """The block size of a file of `size` bytes; a file that changes keeps its `previous` one while that is within a factor of 2."""
    ideal = SMALLEST
    while ideal < LARGEST and size >= _WANTED_BLOCKS * ideal:
        ideal *= 2
    return previous if previous in (ideal // 2, ideal * 2) and SMALLEST <= previous <= LARGEST else ideal


def block_count(size: int, block_size: int) -> int:
    """How many blocks a file has; the empty file has one."""
    return -(-size // block_size) or 1


def hash_bytes(block_hashes: bytes, size: int, block_size: int) -> int:
    """Bytes of each hash in a block list: HASH_BYTES or TOKEN_BYTES, 0 without blocks."""
    return len(block_hashes) // block_count(size, block_size) if block_hashes else 0


def block_lengths(size: int, block_size: int) -> list[int]:
    """The length of each block of a file, in bytes."""
    full, rest = divmod(size, block_size)
    lengths = [block_size] * full
    if rest or not full:
        lengths.append(rest)
    return lengths


def blocks_hash(block_hashes: bytes) -> bytes:
    """FileInfo.blocks_hash as v2 computes it. v1 mixes weak hashes in, so never compare with a received one: compute both."""
    return hashlib.sha256(block_hashes).digest()


@lru_cache(maxsize=64)
def zero_hash(size: int) -> bytes:
    """SHA-256 of `size` zero bytes, cached: meant for the eight full block sizes and the empty block."""
    return hashlib.sha256(bytes(size)).digest()


def take(name: str, listed: Sequence[pb.BlockInfo], size: int, block_size: int) -> bytes:
    """The joined hashes, or tokens, of a received block list (not empty). ProtocolError unless it covers 0 .. `size` in `block_size` pieces
    with hashes of one length: everything above divides by that."""
    count = len(listed)
    if count == 1:
        block = listed[0]
        digest = block.hash
        if block.offset == 0 and block.size == size <= block_size and len(digest) in _LENGTHS:
            return digest
    elif block_size and count == -(-size // block_size):
        digests = [block.hash for block in listed]
        lengths = [block.size for block in listed]
        width = len(digests[0])
        if (
            lengths[-1] == size - (count - 1) * block_size
            and lengths.count(block_size) >= count - 1
            and width in _LENGTHS
            and len(joined := b"".join(digests)) == count * width == count * max(map(len, digests))
            and [block.offset for block in listed] == list(range(0, size, block_size))
        ):
            return joined
    raise ProtocolError(f"the blocks of {name!r} do not cover its {size} bytes in pieces of {block_size} with SHA-256 hashes")


def encode(wire: bytes, sequence: int, size: int, block_size: int, block_hashes: bytes) -> bytes:
    """A complete FileInfo for the wire: `wire` (kept fields), sequence, and the block list, written by hand because a million of
    them are sent. `block_hashes` b"" means no blocks."""
    if not block_hashes:
        return b"%b\x50%b" % (wire, varint(sequence))
    if len(block_hashes) == HASH_BYTES:
        body = (b"\x10%b" % varint(size) if size else b"") + b"\x1a\x20%b" % block_hashes
        return b"%b\x50%b\x82\x01%b%b" % (wire, varint(sequence), varint(len(body)), body)
    pieces = [wire, b"\x50" + varint(sequence)]
    width = hash_bytes(block_hashes, size, block_size)
    last = len(block_hashes) // width - 1
    prefixes = _prefixes(block_size, last, width)
    for place in range(last):
        pieces.append(prefixes[place])
        pieces.append(block_hashes[place * width : place * width + width])
    pieces.append(_prefix(last * block_size, size - last * block_size, width))
    pieces.append(block_hashes[last * width :])
    return b"".join(pieces)


def _prefix(offset: int, length: int, width: int) -> bytes:
    """What stands before the hash of a block in the list: tag and length of the BlockInfo, offset, size, tag and length of the hash."""
    body = (b"\x08%b" % varint(offset) if offset else b"") + b"\x10%b\x1a%c" % (varint(length), width)
    return b"\x82\x01%b%b" % (varint(len(body) + width), body)


_LENGTHS: Final = (HASH_BYTES, TOKEN_BYTES)
_kept: dict[int, list[bytes]] = {}


def _prefixes(block_size: int, count: int, width: int) -> list[bytes]:
    """The prefixes of the first `count` full blocks. Lists for the regular block sizes are kept, up to a length."""
    regular = block_size & (block_size - 1) == 0 and width == HASH_BYTES
    known = _kept.setdefault(block_size, []) if regular and count <= _PREFIXES_KEPT else []
    for place in range(len(known), count):
        known.append(_prefix(place * block_size, block_size, width))
    return known
