"""An object store that stops answering in the middle of a pull: packs wait on disk, nothing is announced, and all arrives when it is back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests.integration.conftest import FOLDER, StoreChoice, cluster
from tests.support.s3servers import S3Server
from tests.support.trees import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.blocks_loop("commands of the node are waited for")]

LIMITS = {"STNODE_LIMITS_PULL_MEMORY": "64 MiB", "STNODE_LIMITS_SPOOL": "96 MiB"}
LARGE = 300 << 20


@pytest.mark.parametrize("store", ["seaweedfs"], indirect=True)
async def test_a_store_that_is_stopped_in_the_middle_of_a_pull(tmp_path: Path, store: StoreChoice, seaweedfs_server: S3Server) -> None:
    def fill(root: Path) -> None:
        for number in range(6):
            (root / f"large {number}.bin").write_bytes(os.urandom(LARGE // 6))
        for number in range(200):
            (root / f"small {number}").write_text(f"content of {number}")

    limited = StoreChoice(store.url, {**store.environment, **LIMITS}, store.options)
    async with cluster(tmp_path, limited, fill) as peers:
        spool = peers.node.home / "state" / "spool"
        await started(peers.node.home / "state", peers)
        os.kill(seaweedfs_server.pid, signal.SIGSTOP)
        try:
            files = peers.node.status()["folders"][0]["files"]
            status = await until_spooled(peers, spool)
            assert status["spool_bytes"] <= 96 << 20
            assert status["queued_packs"] >= status["spool_packs"] > 0
            announced = (await peers.new.db_status(FOLDER))["globalFiles"]
            assert announced <= files
            peers.node.kill()  # what it leaves in the spool is nobody's
        finally:
            os.kill(seaweedfs_server.pid, signal.SIGCONT)
        assert list(spool.iterdir())
        peers.node.start()
        await peers.until_equal(180)
        assert snapshot(peers.new_dir) == snapshot(peers.old_dir)
        assert peers.node.status()["store"]["queued_packs"] == 0
        assert list(spool.iterdir()) == []
        assert "0 problems" in peers.node.cli("bucket", "check")


async def started(_: Path, peers: object) -> None:
    """Something has been stored, and much is still to come."""
    deadline = time.monotonic() + 60
    while True:
        folder = peers.node.status()["folders"][0]  # type: ignore[attr-defined]
        if folder["store_bytes"] and folder["need_bytes"] > LARGE // 3:
            return
        assert time.monotonic() < deadline, folder
        await asyncio.sleep(0.05)
