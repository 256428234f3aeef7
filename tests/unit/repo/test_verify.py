"""Batches of blocks against their hashes: every answer at its place, whatever the sizes."""

from __future__ import annotations

import pytest

from stnode.repo.packer import verify_blocks
from stnode.repo.verify import verify_batch
from tests.support.packs import blocks_of, quick_env, sha


@pytest.mark.parametrize("sizes", [[], [10], [10] * 500, [100_000] * 50, [10, 1 << 20, 10], [5 << 20], [1 << 20, 0, 3 << 20, 7]])
async def test_answers_are_in_order(sizes: list[int]) -> None:
    blocks = blocks_of(1, *sizes)
    pairs = [(memoryview(block), sha(block) if at % 3 else bytes(32)) for at, block in enumerate(blocks)]
    expected = [bool(at % 3) for at in range(len(sizes))]
    assert await verify_batch(quick_env(), pairs) == expected
    assert verify_blocks(pairs) == expected
