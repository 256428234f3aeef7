"""The three trees of the comparison, of random bytes, made once per run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tree:
    """`files` files of `size` bytes each, spread over directories of at most 200."""

    name: str
    files: int
    size: int

    @property
    def megabytes(self) -> float:
        """Content in units of 10**6 bytes."""
        return self.files * self.size / 1e6

    def make(self, root: Path) -> Path:
        """Writes the tree below `root` unless it is there; its directory."""
        path = root / self.name
        if not (path / ".complete").exists():
            for number in range(self.files):
                directory = path / "data" / f"d{number // 200:03}"
                directory.mkdir(parents=True, exist_ok=True)
                with (directory / f"f{number:05}.bin").open("wb") as file:
                    left = self.size
                    while left:
                        left -= file.write(os.urandom(min(left, 8 << 20)))
            (path / ".complete").touch()
        return path / "data"


LARGE = Tree("1x1GiB", 1, 1 << 30)
MEDIUM = Tree("1000x1MiB", 1000, 1 << 20)
SMALL = Tree("20000x10KiB", 20_000, 10 << 10)
TREES = {tree.name: tree for tree in (LARGE, MEDIUM, SMALL)}
