"""An object store that stops answering in the middle of a pull: packs wait on disk, nothing is announced, and all arrives when it is back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import FOLDER, Cluster, StoreChoice, cluster
from tests.support.s3servers import S3Server
from tests.support.trees import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.blocks_loop("commands of the node are waited for")]

LIMITS = {"STNODE_LIMITS_PULL_MEMORY": "64 MiB", "STNODE_LIMITS_SPOOL": "96 MiB"}
LARGE = 50 << 20


def fill(root: Path) -> None:
    for number in range(6):
        (root / f"large {number}.bin").write_bytes(os.urandom(LARGE))
    for number in range(200):
        (root / f"small {number}").write_text(f"content of {number}")


@pytest.mark.parametrize("killed", [pytest.param(False, marks=pytest.mark.soak), True])
@pytest.mark.parametrize("store", ["seaweedfs"], indirect=True)
async def test_a_store_that_stops_in_the_middle_of_a_pull(
    tmp_path: Path, store: StoreChoice, seaweedfs_server: S3Server, killed: bool
) -> None:
    limited = StoreChoice(store.url, {**store.environment, **LIMITS}, store.options)
    async with cluster(tmp_path, limited, fill) as peers:
        spool = peers.node.home / "state" / "spool"
        await _started(peers)
        os.kill(seaweedfs_server.pid, signal.SIGSTOP)
        try:
            before = peers.node.status()
            waiting = await _spooled(peers)
            assert waiting["store"]["spool_bytes"] <= 96 << 20
            assert waiting["store"]["queued_packs"] >= waiting["store"]["spool_packs"]
            assert waiting["store"]["head"] == before["store"]["head"]
            assert (await peers.new.db_status(FOLDER))["globalFiles"] <= before["folders"][0]["files"]
            if killed:
                peers.node.kill()
        finally:
            os.kill(seaweedfs_server.pid, signal.SIGCONT)
        if killed:
            assert list(spool.iterdir()), "there was something to clean"
            peers.node.start()
        await peers.until_equal(180)
        assert snapshot(peers.new_dir) == snapshot(peers.old_dir)
        assert peers.node.status()["store"]["queued_packs"] == 0
        assert list(spool.iterdir()) == []


async def _started(peers: Cluster) -> None:
    """Something has been stored, and much is still to come."""
    deadline = time.monotonic() + 60
    while True:
        folder = peers.node.status()["folders"][0]
        if folder["store_bytes"] and folder["need_bytes"] > 2 * LARGE:
            return
        assert time.monotonic() < deadline, folder
        await asyncio.sleep(0.05)


async def _spooled(peers: Cluster) -> dict[str, Any]:
    """The status once packs lie in the spool."""
    deadline = time.monotonic() + 90
    while True:
        status = peers.node.status()
        if status["store"]["spool_packs"]:
            return status
        assert time.monotonic() < deadline, f"{status['store']}\n{peers.node.log()[-3000:]}"
        await asyncio.sleep(0.2)
