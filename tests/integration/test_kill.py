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
from tests.support.editor import Editor

KILLS = int(os.environ.get("STNODE_KILLS", "3"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(360 + 30 * KILLS), pytest.mark.blocks_loop("commands of the node are waited for")]


@pytest.mark.parametrize("store", [pytest.param("file", marks=pytest.mark.soak), "seaweedfs"], indirect=True)
async def test_killed_at_random_moments(tmp_path: Path, store: StoreChoice) -> None:
    rng = random.Random(20261121)

    def fill(root: Path) -> None:
        (root / "start").write_text("start")

    async with cluster(tmp_path, store, fill) as peers:
        editors = [Editor(peer, FOLDER, directory, seed) for seed, (peer, directory) in enumerate(peers.peers)]
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
