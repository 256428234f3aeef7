"""Several real nodes on one store: they find each other by the bucket alone, a joined one is in sync without moving a byte of a file, what one
commits reaches the peers of another, and of two processes with one identity the older leaves the devices to the newer."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.integration.conftest import FOLDER, StoreChoice
from tests.support.live import running, until
from tests.support.nodes import StnodeProcess
from tests.support.syncthing import NEW, OLD, SyncthingProcess

FILES = 30
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.blocks_loop("commands of the nodes are waited for")]


def connected_siblings(node: StnodeProcess) -> set[str]:
    return {sibling["id"] for sibling in node.status()["siblings"] if sibling["connected"]}


async def until_connected(node: StnodeProcess, others: set[str]) -> None:
    """Until exactly these siblings are connected with the node."""
    await until(lambda: connected_siblings(node) == others, 30, lambda: node.log()[-3000:])


@pytest.mark.parametrize("store", ["seaweedfs"], indirect=True)
async def test_three_nodes_find_each_other_and_serve_each_others_peers(store: StoreChoice, tmp_path: Path) -> None:
    first = StnodeProcess(tmp_path / "a", store.url, store.environment)
    old, new = SyncthingProcess(tmp_path / "old", OLD, name="old"), SyncthingProcess(tmp_path / "new", NEW, name="new")
    old_dir, new_dir = tmp_path / "old-tree", tmp_path / "new-tree"
    old_dir.mkdir()
    for number in range(FILES):
        (old_dir / f"file {number}").write_bytes(bytes([number]) * 20_000)
    others: list[StnodeProcess] = []
    async with running(old, new):
        for peer in (old, new):
            first.cli("device", "add", peer.device_id, "--name", peer.name, "--address", peer.address)
        first.cli("folder", "add", FOLDER, "--device", "old", "--device", "new")
        async with running(first):
            await old.add_device(first.device_id, first.address, name="a")
            await old.add_folder(FOLDER, old_dir, [first.device_id])
            await until(lambda: first.status()["folders"][0]["files"] == FILES, 60, lambda: first.log()[-3000:])
            others += [StnodeProcess(tmp_path / name, store.url, store.environment, init=("--join", store.url)) for name in ("b", "c")]
            for other in others:
                assert f"1 folder, {FILES} files" in other.said
                assert "2 devices" in other.said
                assert "other node" in other.said
                assert other.cli("apply") == "the store is as config.toml asks\n"
            async with running(*others):
                everybody = {node.device_id: node for node in (first, *others)}
                for node in everybody.values():
                    await until_connected(node, set(everybody) - {node.device_id})
                await _joined_one_is_in_sync(others[0])
                await _a_commit_reaches_the_peers_of_another(others[1], old, old_dir, new, new_dir)
                with pytest.raises(RuntimeError, match="a node of this store"):
                    first.cli("device", "add", others[0].device_id)
                heads = {sibling["name"]: sibling["version"] for sibling in first.status()["siblings"]}
                assert set(heads) == {"b", "c"}
                assert {device["name"] for device in first.status()["devices"]} == {"old", "new"}


async def _joined_one_is_in_sync(node: StnodeProcess) -> None:
    """It moved no byte of a file, and says so."""
    status = node.status()
    assert status["in_sync"]
    assert status["received_bytes"] == 0
    assert status["folders"][0]["files"] == FILES
    assert "in sync, 0 B of files received" in node.cli("status")


async def _a_commit_reaches_the_peers_of_another(
    node: StnodeProcess, old: SyncthingProcess, old_dir: Path, new: SyncthingProcess, new_dir: Path
) -> None:
    """`new` knows only `node`, `old` only the first node."""
    await new.add_device(node.device_id, node.address, name="c")
    await new.add_folder(FOLDER, new_dir, [node.device_id])
    await until(lambda: len(list(new_dir.glob("file *"))) == FILES, 60, lambda: node.log()[-3000:])
    (old_dir / "late").write_bytes(b"late")
    await old.scan(FOLDER)
    await until(lambda: (new_dir / "late").exists() and (new_dir / "late").read_bytes() == b"late", 30, lambda: node.log()[-3000:])


async def test_peers_take_siblings_in_the_configuration(tmp_path: Path) -> None:
    """Siblings stand in ClusterConfigs without an index (R16); a peer for which the node is an introducer adds them and connects with them."""
    store = f"file://{tmp_path}/store"
    a = StnodeProcess(tmp_path / "a", store)
    b = StnodeProcess(tmp_path / "b", store, init=("--join", store))
    peers = (SyncthingProcess(tmp_path / "old", OLD, name="old"), SyncthingProcess(tmp_path / "new", NEW, name="new"))
    async with running(*peers):
        for peer in peers:
            a.cli("device", "add", peer.device_id, "--name", peer.name, "--address", peer.address)
        a.cli("folder", "add", FOLDER, "--device", "old", "--device", "new")
        async with running(a, b):
            await until_connected(a, {b.device_id})
            for peer in peers:
                directory = tmp_path / f"{peer.name}-tree"
                directory.mkdir()
                (directory / f"of {peer.name}").write_bytes(b"x" * 1000)
                await peer.add_device(a.device_id, a.address, name="a", introducer=True)
                await peer.add_folder(FOLDER, directory, [a.device_id])
            for peer in peers:
                await peer.wait_connected(b.device_id, 100)  # refused until it is introduced, each side waits longer and longer
            trees = (tmp_path / "old-tree", tmp_path / "new-tree")
            await until(lambda: all({path.name for path in tree.glob("of *")} == {"of old", "of new"} for tree in trees), 60)
            for peer in peers:
                status = await peer.db_status(FOLDER)
                assert (status["globalFiles"], status["needTotalItems"], status["errors"]) == (2, 0, 0)


async def test_the_older_of_two_processes_with_one_identity_stops_serving(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    old = StnodeProcess(tmp_path / "a", store)
    async with running(old):
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("cert.pem", "key.pem", "config.toml"):
            shutil.copy(tmp_path / "a" / name, copy)
        new = StnodeProcess(copy, store)
        assert new.device_id == old.device_id
        async with running(new):
            status = await until(lambda: (s := old.status())["given_way"] and s, 30, lambda: old.log()[-3000:])
            assert status["listen"] == []
            assert "another process with this identity" in old.cli("status")
            assert "another process with this node's identity was started later" in old.log()
            assert not new.status()["given_way"]
            await asyncio.to_thread(new.stop)
            status = await until(lambda: not (s := old.status())["given_way"] and s, 40, lambda: old.log()[-3000:])
            assert status["listen"] == [old.address]


def test_joining_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exit 66: .*there is no store at file://.* to join"):
        StnodeProcess(tmp_path / "a", f"file://{tmp_path}/nothing", init=("--join", f"file://{tmp_path}/nothing"))
    assert not (tmp_path / "a" / "config.toml").exists()
    assert not (tmp_path / "nothing").exists()
    made = StnodeProcess(tmp_path / "b", f"file://{tmp_path}/store")
    assert "joined" not in made.said
    again = StnodeProcess(tmp_path / "b", f"file://{tmp_path}/store", init=("--join", f"file://{tmp_path}/store"))
    assert "0 folders, 0 files" in again.said
    assert json.loads(again.cli("status", "--json"))["siblings"] == []
