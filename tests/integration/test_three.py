"""Three nodes on one bucket, three Syncthings, each connected to one node only: what one changes, all have; each block is stored once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.integration.conftest import FOLDER, StoreChoice, Trio, trio
from tests.support.editor import Editor
from tests.support.live import until
from tests.support.stored import stored_blocks

KILLS = int(os.environ.get("STNODE_KILLS", "3"))
CHANGES = int(os.environ.get("STNODE_CHANGES", "600"))
"""2000 is what has to be shown at least once (docs/testing.md)."""
pytestmark = [pytest.mark.slow, pytest.mark.blocks_loop("commands of the nodes are waited for")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", ["seaweedfs"], indirect=True)
async def test_all_change_at_once(tmp_path: Path, store: StoreChoice) -> None:
    async with trio(tmp_path, store) as three:
        editors = _editors(three)
        await asyncio.gather(*(editor.run(CHANGES // 3 + 1) for editor in editors))
        started = time.monotonic()
        await three.until_equal(300)
        settled_s = time.monotonic() - started
        found = await stored_blocks(store.url, store.options)
        received = [sum(device["in_bytes"] for device in node.status()["devices"]) for node in three.nodes]
    print(
        f"{sum(editor.changes for editor in editors)} changes, equal {settled_s:.1f} s after the last; {found.packs} packs, "
        f"{found.stored_bytes:,} bytes of blocks, {found.excess:.2%} more than once; received by each node: {received}"
    )
    assert found.excess < 0.03, found
    if CHANGES >= 2000:  # of fewer, one peer may by chance have most of the large ones
        assert min(received) > sum(received) / 3 / 2, received


@pytest.mark.soak
@pytest.mark.timeout(480 + 60 * KILLS)
@pytest.mark.parametrize("store", ["seaweedfs"], indirect=True)
async def test_any_node_killed(tmp_path: Path, store: StoreChoice) -> None:
    rng = random.Random(20261122)
    async with trio(tmp_path, store, "--orphan-age", "30s", "--grace", "30s") as three:
        editors = _editors(three)
        tasks = [asyncio.create_task(editor.run()) for editor in editors]
        try:
            for number in range(KILLS):
                await asyncio.sleep(rng.uniform(0.05, 2.5))
                for task in tasks:
                    assert not task.done(), task
                await _kill_and_check(three, rng, number)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await three.until_equal(240)
        await until(
            lambda: all(node.status()["in_sync"] for node in three.nodes), 60, lambda: [node.status()["folders"] for node in three.nodes]
        )
        await _until_collected(three)
        checked = (await asyncio.to_thread(three.nodes[0].cli, "bucket", "check", "--read-data")).strip()
        print(f"{KILLS} kills, {sum(editor.changes for editor in editors)} changes: {checked}")


def _editors(three: Trio) -> list[Editor]:
    return [Editor(peer, FOLDER, tree, seed) for seed, (peer, tree) in enumerate(zip(three.peers, three.trees, strict=True))]


async def _kill_and_check(three: Trio, rng: random.Random, number: int) -> None:
    """What the peer of the killed node was told before must be in the store; it must check clean while the others go on."""
    victim = rng.randrange(3)
    node, peer = three.nodes[victim], three.peers[victim]
    node.kill()
    announced = (await peer.completion(FOLDER, node.device_id))["sequence"]
    if rng.random() < 0.3:
        shutil.rmtree(node.home / "state")
    report = await asyncio.to_thread(node.cli, "bucket", "check")
    assert "0 problems" in report, f"after kill {number}: {report}"
    status = await asyncio.to_thread(node.status)
    assert status["folders"][0]["sequence"] >= announced, f"after kill {number}: announced {announced}, stored {status['folders'][0]}"
    await asyncio.to_thread(node.start)


async def _until_collected(three: Trio, deadline_s: float = 150.0) -> None:
    """Until nothing lies in the bucket that no commit refers to, with the nodes idle and no command but this question."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = json.loads(await asyncio.to_thread(three.nodes[0].cli, "bucket", "gc", "--dry-run", "--json"))
        if not found["orphans"] and not found["condemned_packs"] and not found["unwanted_packs"]:
            return
        assert time.monotonic() < deadline, found
        await asyncio.sleep(3)
