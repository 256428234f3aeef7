"""LZ4 blocks, the one compression of format version 1. The store's only door to the lz4 library."""

from __future__ import annotations

import lz4.block

from stnode.errors import Corrupt

Bytes = bytes | bytearray | memoryview


def compress(data: Bytes) -> bytes:
    """One LZ4 block without a size in front; the size is kept by whoever stores it."""
    compressed: bytes = lz4.block.compress(data, store_size=False)
    return compressed


def decompress(data: Bytes, size_bytes: int) -> bytes:
    """The `size_bytes` bytes that `data` holds, never more memory than that; Corrupt when it holds anything else."""
    try:
        plain: bytes = lz4.block.decompress(data, uncompressed_size=size_bytes)
    except (lz4.block.LZ4BlockError, ValueError) as exc:
        raise Corrupt(f"compressed data of {len(data)} bytes cannot be unpacked: {exc}") from exc
    if len(plain) != size_bytes:
        raise Corrupt(f"compressed data unpacks to {len(plain)} bytes instead of {size_bytes}")
    return plain
