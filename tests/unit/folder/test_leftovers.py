"""Blocks that given up downloads left behind: inherited while they are on their way, forgotten afterwards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from stnode.folder.leftovers import Leftovers
from stnode.folder.planner import Job, plan_file
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileType
from stnode.repo.packer import Token

BLOCK = 128 << 10


@dataclass(eq=False)
class Pack:
    """A pack that is being sealed."""

    tokens: list[Token]


def job(number: int, *blocks: str) -> Job:
    hashes = b"".join(hashlib.sha256(block.encode()).digest() for block in blocks)
    info = fileinfo.new(
        name=f"f{number}", type=FileType.FILE, version=((1, number),), modified_by=1, size=len(blocks) * BLOCK, block_hashes=hashes
    )
    return plan_file(number, info, [1], (), 1 << 30)


def test_what_is_on_its_way_is_inherited_and_asked_for_no_more() -> None:
    leftovers, old, new = Leftovers(), job(1, "a", "b"), job(2, "b", "c")
    leftovers.left(old)
    leftovers.inherit([new], [Pack([(1, 0), (1, 1)])])  # type: ignore[list-item]
    assert list(new.todo) == [1]
    assert leftovers.settled([(1, 0), (1, 1)]) == {(1, 1): [(new, 0)]}
    assert leftovers.settled([(1, 1)]) == {}


def test_downloads_that_left_nothing_on_its_way_are_forgotten_while_others_are_sealed() -> None:
    leftovers = Leftovers()
    for number in range(1, 100):
        leftovers.left(job(number, "a"))
    leftovers.inherit([job(100, "z")], [Pack([(1, 0), (500, 0)])])  # type: ignore[list-item]
    assert list(leftovers._jobs) == [1]
