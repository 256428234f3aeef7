"""Must show 7 and 10: a mass deletion at a real Syncthing goes nowhere before somebody has said so, and a tree comes back byte for byte."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import FOLDER, Cluster, StoreChoice, cluster
from tests.support.nodes import StnodeProcess
from tests.support.syncthing import NEW, OLD, SyncthingProcess
from tests.support.trees import difference, mixed_tree, snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.blocks_loop("commands of the node are waited for")]

Snapshot = dict[str, tuple[str, int, int, str]]
LOOKS = 4
"""How often it is looked whether what must not happen has happened."""


def small_files(count: int) -> Callable[[Path], None]:
    def fill(root: Path) -> None:
        for number in range(count):
            path = root / f"d{number % 50}" / f"file {number}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"content of {number}")

    return fill


def vanish(directory: Path) -> None:
    """The disk dropped out, but for the marker by which Syncthing would notice."""
    for entry in directory.iterdir():
        if entry.name == ".stfolder":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


async def held(node: StnodeProcess, files: int, deadline_s: float = 60.0) -> dict[str, Any]:
    """The folder's status once the deletion of so many files waits."""
    deadline = time.monotonic() + deadline_s
    while True:
        folder: dict[str, Any] = node.status()["folders"][0]
        waiting = folder["pending_deletions"]
        if waiting is not None and waiting["files"] == files:
            return folder
        assert time.monotonic() < deadline, f"{folder}\n{node.log()[-3000:]}"
        await asyncio.sleep(0.2)


async def keeps(peer: SyncthingProcess, directory: Path, before: Snapshot, nodes: list[StnodeProcess], files: int) -> None:
    """Nothing is deleted: not at the other peer, not in what the nodes announce."""
    for _ in range(LOOKS):
        status = await peer.db_status(FOLDER)
        assert (status["globalDeleted"], status["needDeletes"], status["globalFiles"]) == (0, 0, files)
        for node in nodes:
            assert node.status()["folders"][0]["files"] == files
        await asyncio.sleep(0.25)
    assert snapshot(directory) == before


@pytest.mark.parametrize("store", ["file"], indirect=True)
@pytest.mark.parametrize("deleter", [OLD, pytest.param(NEW, marks=pytest.mark.soak)])
async def test_a_vanished_disk_deletes_nothing_anywhere(tmp_path: Path, store: StoreChoice, deleter: str) -> None:
    """5,000 files deleted at one peer: held, held again after a restart, then rejected, and the peer gets them back."""
    files = 5000
    async with cluster(tmp_path, store, small_files(files)) as peers:
        await peers.until_equal(120)
        before = snapshot(peers.old_dir)
        (lost, lost_dir), (kept, kept_dir) = peers.peers if deleter == OLD else reversed(peers.peers)
        vanish(lost_dir)
        await lost.scan(FOLDER)
        await held(peers.node, files)
        await keeps(kept, kept_dir, before, [peers.node], files)

        peers.node.kill()
        peers.node.start()
        await held(peers.node, files)
        await kept.wait_connected(peers.node.device_id)
        await keeps(kept, kept_dir, before, [peers.node], files)

        assert peers.node.cli("folder", "reject-deletions", FOLDER) == "kept 5,000 files\n"
        await peers.until_equal(120)
        assert snapshot(lost_dir) == before
        assert peers.node.status()["folders"][0]["pending_deletions"] is None


@pytest.mark.parametrize("store", ["seaweedfs"], indirect=True)
async def test_a_tree_comes_back_as_it_was_before_everything_was_deleted(tmp_path: Path, store: StoreChoice) -> None:
    """A confirmed deletion of everything is undone by `restore --at`, at all peers, byte for byte; also to a local directory."""

    def fill(root: Path) -> None:
        mixed_tree(root, large_bytes=5 << 20)
        small_files(1500)(root)

    async with cluster(tmp_path, store, fill) as peers:
        await peers.until_equal(120)
        before = snapshot(peers.old_dir)
        node, files = peers.node, peers.node.status()["folders"][0]["files"]
        at = await a_moment()
        vanish(peers.old_dir)
        await peers.old.scan(FOLDER)
        await held(node, files)
        assert snapshot(peers.new_dir) == before
        node.cli("folder", "confirm-deletions", FOLDER)
        await peers.new.wait_status(FOLDER, {"globalFiles": 0, "needTotalItems": 0, "state": "idle"}, 120)
        assert snapshot(peers.new_dir) == {}
        assert node.status()["folders"][0]["history_versions"] >= files

        node.cli("restore", FOLDER, "--at", at, "--to", str(tmp_path / "copy"))
        assert snapshot(tmp_path / "copy") == before
        packs = node.status()["folders"][0]["store_objects"]
        node.cli("restore", FOLDER, "--at", at)
        await peers.until_equal(120)
        assert snapshot(peers.old_dir) == before, difference(peers.old_dir, peers.new_dir)[:10]
        folder = node.status()["folders"][0]
        assert folder["files"] == files
        assert folder["store_objects"] == packs, "restoring moved data"
        assert "0 problems" in node.cli("bucket", "check")


async def a_moment() -> str:
    """A time between what has happened and what is going to, by the second, as stores date."""
    moment = int(time.time()) + 1
    while time.time() < moment + 1:
        await asyncio.sleep(0.1)
    return f"@{moment}"


@pytest.mark.parametrize("store", ["seaweedfs"], indirect=True)
async def test_two_nodes_hold_each_by_itself(tmp_path: Path, store: StoreChoice) -> None:
    """The peer whose disk vanished is connected to both nodes of a store, the other peer to one of them; one answer is enough."""
    files = 2000
    async with cluster(tmp_path, store, small_files(files)) as peers:
        await peers.until_equal(120)
        before = snapshot(peers.new_dir)
        second = StnodeProcess(tmp_path / "second", store.url, store.environment)
        try:
            second.start()
            await peers.old.add_device(second.device_id, second.address, name="second")
            await peers.old.add_folder(FOLDER, peers.old_dir, [peers.node.device_id, second.device_id])
            await peers.old.wait_connected(second.device_id)
            await peers.old.wait_in_sync(FOLDER, second.device_id)
            vanish(peers.old_dir)
            await peers.old.scan(FOLDER)
            for node in (peers.node, second):
                await held(node, files)
            await keeps(peers.new, peers.new_dir, before, [peers.node, second], files)
            second.cli("folder", "confirm-deletions", FOLDER)
            await peers.new.wait_status(FOLDER, {"globalFiles": 0, "needTotalItems": 0, "state": "idle"}, 120)
            await answered(peers)
        finally:
            second.kill()


async def answered(peers: Cluster) -> None:
    """The node that was not asked does not wait any longer either."""
    deadline = time.monotonic() + 60
    while peers.node.status()["folders"][0]["pending_deletions"] is not None:
        assert time.monotonic() < deadline, peers.node.log()[-3000:]
        await asyncio.sleep(0.2)
