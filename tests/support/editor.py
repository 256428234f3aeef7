"""An actor that works in a real Syncthing's directory, for tests that kill and race."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

from tests.support.syncthing import SyncthingProcess


class Editor:
    """Changes a peer's tree: small files in bursts, large ones, edits in place, renames, deletions, modes."""

    def __init__(self, peer: SyncthingProcess, folder: str, root: Path, seed: int) -> None:
        self._peer, self._folder, self._root, self._rng = peer, folder, root, random.Random(seed)
        self.changes = 0

    async def run(self, changes: int | None = None) -> None:
        """Goes on until so many changes are made, or for ever; each burst is scanned."""
        while changes is None or self.changes < changes:
            for _ in range(self._rng.randrange(1, 12)):
                self._change()
                self.changes += 1
            await self._peer.scan(self._folder)
            await asyncio.sleep(self._rng.uniform(0.05, 0.4))

    def _change(self) -> None:
        rng, root = self._rng, self._root
        kind = rng.random()
        try:
            files = [
                path for path in root.rglob("*") if path.is_file() and ".stfolder" not in path.parts and ".syncthing." not in path.name
            ]
            if kind < 0.5 or len(files) < 20:
                directory = root / f"d{rng.randrange(12)}" / f"e{rng.randrange(4)}"
                directory.mkdir(parents=True, exist_ok=True)
                size = rng.randrange(3 << 20, 9 << 20) if rng.random() < 0.05 else rng.randrange(0, 40_000)
                (directory / f"{self._peer.name}-{rng.randrange(400)}.bin").write_bytes(rng.randbytes(size))
            elif kind < 0.65:
                with rng.choice(files).open("r+b") as file:
                    file.seek(rng.randrange(0, 100_000))
                    file.write(rng.randbytes(rng.randrange(1, 5000)))
            elif kind < 0.8:
                rng.choice(files).rename(root / f"d{rng.randrange(12)}" / f"{self._peer.name}-moved-{rng.randrange(1000)}.bin")
            elif kind < 0.85:
                shutil.rmtree(root / f"d{rng.randrange(12)}" / f"e{rng.randrange(4)}", ignore_errors=True)
            elif kind < 0.95:
                rng.choice(files).unlink()
            else:
                rng.choice(files).chmod(rng.choice((0o600, 0o644, 0o755)))
        except (FileNotFoundError, NotADirectoryError):
            pass  # the peer itself changed the tree meanwhile
