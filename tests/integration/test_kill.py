"""Must show 4: kill -9 at random moments of a mixed workload. Nothing announced is ever missing, the store checks clean every time, and
at the end all trees are equal. `STNODE_KILLS` says how often (`make soak`: 100)."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.integration.conftest import FOLDER, Cluster, StoreChoice, cluster
from tests.support.syncthing import SyncthingProcess

KILLS = int(os.environ.get("STNODE_KILLS", "6"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 30 * KILLS), pytest.mark.blocks_loop("commands of the node are waited for")]


class Editor:
    """Changes a peer's tree for as long as it runs: small files in bursts, large ones, edits in place, renames, deletions, modes."""

    def __init__(self, peer: SyncthingProcess, root: Path, seed: int) -> None:
        self._peer, self._root, self._rng = peer, root, random.Random(seed)
        self.changes = 0

    async def run(self) -> None:
        while True:
            for _ in range(self._rng.randrange(1, 12)):
                self._change()
                self.changes += 1
            await self._peer.scan(FOLDER)
            await asyncio.sleep(self._rng.uniform(0.05, 0.4))

    def _change(self) -> None:
        rng, root = self._rng, self._root
        files = [path for path in root.rglob("*") if path.is_file() and ".stfolder" not in path.parts and ".syncthing." not in path.name]
        kind = rng.random()
        try:
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


@pytest.mark.parametrize("store", ["file", "seaweedfs"], indirect=True)
async def test_killed_at_random_moments(tmp_path: Path, store: StoreChoice) -> None:
    rng = random.Random(20261121)

    def fill(root: Path) -> None:
        (root / "start").write_text("start")

    async with cluster(tmp_path, store, fill) as peers:
        editors = [Editor(peer, directory, seed) for seed, (peer, directory) in enumerate(peers.peers)]
        tasks = [asyncio.create_task(editor.run()) for editor in editors]
        try:
            for number in range(KILLS):
                await asyncio.sleep(rng.uniform(0.05, 2.5))
                for task in tasks:
                    assert not task.done(), task
                await _kill_and_check(peers, rng, number)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await peers.until_equal(240)
        print(
            f"{KILLS} kills, {sum(editor.changes for editor in editors)} changes: {peers.node.cli('bucket', 'check', '--read-data').strip()}"
        )


async def _kill_and_check(peers: Cluster, rng: random.Random, number: int) -> None:
    """What a peer was told before the kill must be in the store; the store must check clean; then the node comes back."""
    peers.node.kill()
    announced = [(await peer.completion(FOLDER, peers.node.device_id))["sequence"] for peer, _ in peers.peers]
    if rng.random() < 0.3:
        shutil.rmtree(peers.node.home / "state")
    report = await asyncio.to_thread(peers.node.cli, "bucket", "check")
    assert "0 problems" in report, f"after kill {number}: {report}"
    status = await asyncio.to_thread(peers.node.status)
    assert status["folders"][0]["sequence"] >= max(announced), f"after kill {number}: announced {announced}, stored {status['folders'][0]}"
    started = time.monotonic()
    await asyncio.to_thread(peers.node.start)
    assert time.monotonic() - started < 60
