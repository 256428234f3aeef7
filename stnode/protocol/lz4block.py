"""Raw LZ4 blocks: no frame, no stored size (bep-facts 3). The protocol's only door to the lz4 library."""

from __future__ import annotations

import lz4.block

from stnode.errors import ProtocolError

_MOST_EXPANSION = 255
_SLACK = 64


def compress(data: bytes | bytearray | memoryview) -> bytes:
    """The block without any size before it."""
    packed: bytes = lz4.block.compress(data, store_size=False)
    return packed


def decompress(block: bytes | bytearray | memoryview, size_bytes: int) -> bytes:
    """Back, into exactly `size_bytes`. ProtocolError when the block is damaged, another size comes out, or the size is one that no
    block of this length can have (LZ4 expands at most 255 times), so nothing much larger than the block is ever allocated."""
    if size_bytes > len(block) * _MOST_EXPANSION + _SLACK:
        raise ProtocolError(f"a compressed message of {len(block)} bytes claims {size_bytes} bytes")
    try:
        plain: bytes = lz4.block.decompress(block, uncompressed_size=size_bytes)
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise ProtocolError("a compressed message is damaged") from error
    if len(plain) != size_bytes:
        raise ProtocolError(f"a compressed message claims {size_bytes} bytes and has {len(plain)}")
    return plain
