"""What really lies in a store's bucket, seen from outside of any node: each pack read by its own footer."""

from __future__ import annotations

from dataclasses import dataclass

from stnode.clock import system_env
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import open_store
from stnode.repo.pack import decode_footer, footer_size


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """Bytes of blocks in all pack objects, registered or not, and of the different ones among them."""

    packs: int
    stored_bytes: int
    unique_bytes: int

    @property
    def excess(self) -> float:
        """Share of bytes stored more than once: 0.03 are 3 %."""
        return self.stored_bytes / self.unique_bytes - 1 if self.unique_bytes else 0.0


async def stored_blocks(url: str, options: StoreOptions) -> StoredBlocks:
    """Reads every object below packs/."""
    env = system_env()
    objects = open_store(url, options, env)
    lengths: dict[bytes, int] = {}
    packs = stored = 0
    try:
        async for meta in objects.list("packs/"):
            blob = await objects.get(meta.key)
            data = bytes(blob.data)
            blocks = decode_footer(data[-footer_size(data, meta.key) :], meta.key, len(data))
            packs += 1
            stored += blocks.data_bytes
            for place, length in enumerate(blocks.lengths):
                lengths[blocks.hashes_of(place)] = length
    finally:
        await objects.close()
    return StoredBlocks(packs, stored, sum(lengths.values()))
