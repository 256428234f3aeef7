"""Must show 1 to 3: real Syncthings of both versions sync through stnode alone, both ways, on every store, and over a lost node."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.integration.conftest import FOLDER, Cluster, StoreChoice, cluster
from tests.support.trees import mixed_tree, snapshot, touch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.blocks_loop("commands of the node are waited for")]


@pytest.mark.parametrize("store", [pytest.param("file", marks=pytest.mark.soak), "moto", "seaweedfs"], indirect=True)
async def test_mixed_tree_arrives_and_changes_go_both_ways(tmp_path: Path, store: StoreChoice) -> None:
    async with cluster(tmp_path, store, mixed_tree) as peers:
        await peers.until_equal()
        assert len(snapshot(peers.new_dir)) > 90

        _change(peers.old_dir, peers.new_dir)
        await peers.until_equal()
        assert (peers.new_dir / "renamed" / "one.bin").read_bytes() == b"same" * 100_000
        assert not (peers.old_dir / "odd" / "UPPER").exists()
        assert not (peers.new_dir / "many" / "d3").exists()
        assert "0 problems" in peers.node.cli("bucket", "check")


def _change(old: Path, new: Path) -> None:
    """Edits, renames, deletes, mode and time changes on both sides, of different items."""
    (old / "renamed").mkdir()
    (old / "same" / "one.bin").rename(old / "renamed" / "one.bin")
    with (old / "sizes" / "9-41943040.bin").open("r+b") as file:
        file.seek(20 << 20)
        file.write(os.urandom(200_000))
    (old / "odd" / "~tilde").chmod(0o640)
    touch(old / "odd" / "with space.txt", 1_400_000_000, 123_456_789)
    (new / "odd" / "UPPER").unlink()
    shutil.rmtree(new / "many" / "d3")
    (new / "many" / "new directory").mkdir()
    (new / "many" / "new directory" / "from new.txt").write_text("written at the new peer")
    (new / "links" / "relative").unlink()
    (new / "links" / "relative").symlink_to("../elsewhere")
    (new / "empty" / "nested").rmdir()
    (new / "sizes" / "3-131071.bin").write_bytes(b"shorter")


@pytest.mark.parametrize("store", ["file"], indirect=True)
async def test_conflicting_edits_leave_both_versions(tmp_path: Path, store: StoreChoice) -> None:
    def fill(root: Path) -> None:
        (root / "note.txt").write_text("base")

    async with cluster(tmp_path, store, fill) as peers:
        await peers.until_equal()
        for peer, _ in peers.peers:
            await peer.pause(peers.node.device_id)
        (peers.old_dir / "note.txt").write_text("from old")
        touch(peers.old_dir / "note.txt", 1_700_000_000, 0)
        (peers.new_dir / "note.txt").write_text("from new, later")
        touch(peers.new_dir / "note.txt", 1_700_000_100, 0)
        for peer, _ in peers.peers:
            await peer.scan(FOLDER)
        for peer, _ in peers.peers:
            await peer.resume(peers.node.device_id)
        await _until_conflict_copy(peers)
        await peers.until_equal()
        assert (peers.old_dir / "note.txt").read_text() == "from new, later"
        copies = [path for path in peers.old_dir.iterdir() if "sync-conflict" in path.name]
        assert [copy.read_text() for copy in copies] == ["from old"]


async def _until_conflict_copy(peers: Cluster) -> None:
    deadline = time.monotonic() + 60
    while not all(any("sync-conflict" in path.name for path in directory.iterdir()) for _, directory in peers.peers):
        assert time.monotonic() < deadline, f"no conflict copy: {peers.node.log()[-3000:]}"
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("store", [pytest.param("file", marks=pytest.mark.soak), "seaweedfs"], indirect=True)
async def test_node_comes_back_from_the_bucket_alone(tmp_path: Path, store: StoreChoice) -> None:
    def fill(root: Path) -> None:
        mixed_tree(root, large_bytes=1 << 20)
        (root / "big.bin").write_bytes(os.urandom(300 << 20))

    async with cluster(tmp_path, store, fill) as peers:
        await _until_half_there(peers)
        peers.node.kill()
        shutil.rmtree(peers.node.home / "state")
        before = snapshot(peers.old_dir)
        head = await peers.old.db_status(FOLDER)
        peers.node.start()
        await peers.until_equal(180)
        assert snapshot(peers.old_dir) == before, "a peer saw a deletion or a change"
        assert (await peers.old.db_status(FOLDER))["globalDeleted"] == head["globalDeleted"] == 0

        peers.node.kill()
        shutil.rmtree(peers.node.home / "state")
        peers.node.start()
        await peers.old.wait_connected(peers.node.device_id)
        (peers.new_dir / "after.txt").write_text("after the second loss")
        await peers.until_equal()
        status = peers.node.status()
        device = next(device for device in status["devices"] if device["name"] == "old")
        assert device["in_bytes"] < 10 << 20, "committed data was sent again"


async def _until_half_there(peers: Cluster) -> None:
    deadline = time.monotonic() + 60
    while True:
        folder = peers.node.status()["folders"][0]
        if folder["files"] > 20 or folder["store_bytes"] > 50 << 20:
            return
        assert time.monotonic() < deadline, folder
        await asyncio.sleep(0.05)
