"""XXH3, the checksum of everything the store's format defines itself. The only module that imports xxhash.

It finds damage, not malice: blocks are named by SHA-256, bodies and slots are chained by SHA-256.
"""

from __future__ import annotations

import xxhash

Bytes = bytes | bytearray | memoryview


def xxh3_64(data: Bytes) -> int:
    """XXH3-64, seed 0, as an unsigned number; stored little-endian."""
    return xxhash.xxh3_64_intdigest(data)


def xxh3_128(data: Bytes) -> int:
    """XXH3-128, seed 0, as an unsigned number; stored little-endian."""
    return xxhash.xxh3_128_intdigest(data)
