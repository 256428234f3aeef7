"""One real Syncthing that three nodes reach: each of its blocks is pulled and stored once, and every node pulls its part."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from stnode.clock import system_env
from stnode.objectstore.registry import open_store
from stnode.protocol import deviceid
from stnode.repo import layout
from stnode.repo.heartbeat import decode_heartbeat
from tests.integration.conftest import FOLDER, StoreChoice
from tests.support.nodes import StnodeProcess
from tests.support.stored import stored_blocks
from tests.support.syncthing import OLD, SyncthingProcess

SMALL, LARGE, LARGE_BYTES, LARGEST_BYTES = 600, 24, 2 << 20, 48 << 20
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.blocks_loop("commands of the nodes are waited for")]


@pytest.mark.parametrize("store", ["seaweedfs"], indirect=True)
async def test_three_nodes_pull_each_block_once(tmp_path: Path, store: StoreChoice) -> None:
    unique = _fill(tmp_path / "tree")
    nodes = [StnodeProcess(tmp_path / f"node-{number}", store.url, store.environment) for number in range(3)]
    peer = SyncthingProcess(tmp_path / "peer", OLD, name="peer")
    try:
        await peer.start()
        await peer.add_folder(FOLDER, tmp_path / "tree", [])
        await peer.scan(FOLDER)
        nodes[0].cli("device", "add", peer.device_id, "--name", "peer", "--address", peer.address)
        nodes[0].cli("folder", "add", FOLDER, "--device", "peer")
        for node in nodes:
            await peer.add_device(node.device_id, node.address, name="stnode")
        for node in nodes:
            await asyncio.to_thread(node.start)
        for node in nodes:
            await peer.wait_connected(node.device_id)
        await _until_told(store, nodes, peer)

        before = [_received(node) for node in nodes]
        began = time.monotonic()
        await peer.add_folder(FOLDER, tmp_path / "tree", [node.device_id for node in nodes])
        for node in nodes:
            await _until_complete(peer, node, nodes)
        took = time.monotonic() - began
        pulled = [_received(node) - first for node, first in zip(nodes, before, strict=True)]
        found = await stored_blocks(store.url, store.options)
        registered = nodes[0].status()["folders"][0]["store_bytes"]
        print(
            f"{SMALL} small and {LARGE + 1} large files, {unique:,} bytes, {took:.1f} s; received by each node {pulled}; registered packs "
            f"{registered:,} bytes, all packs {found.stored_bytes:,} bytes in {found.packs}, {found.excess:.2%} more than once"
        )
        assert unique <= registered < 1.03 * unique
        assert found.unique_bytes == unique
        assert found.excess < 0.03, found
        assert min(pulled) > (unique - LARGEST_BYTES) / 3 / 2, pulled  # who owns which is a matter of luck: three standard deviations off
    finally:
        await peer.kill()
        for node in nodes:
            node.kill()


def _fill(root: Path) -> int:
    """Random files; bytes of all."""
    rng = random.Random(1)
    total = 0
    for number in range(SMALL + LARGE + 1):
        path = root / f"d{number % 10}" / f"{number:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = rng.randrange(1000, 60_000) if number < SMALL else LARGE_BYTES if number < SMALL + LARGE else LARGEST_BYTES
        path.write_bytes(rng.randbytes(size))
        total += size
    return total


def _received(node: StnodeProcess) -> int:
    """Bytes that it got from the peer."""
    return sum(int(device["in_bytes"]) for device in node.status()["devices"])


async def _until_told(store: StoreChoice, nodes: list[StnodeProcess], peer: SyncthingProcess) -> None:
    """Until the heartbeats of all nodes say that they reach the peer."""
    objects = open_store(store.url, store.options, system_env())
    wanted = deviceid.parse(peer.device_id)
    deadline = time.monotonic() + 60
    try:
        while True:
            blobs = [await objects.get(layout.heartbeat_key(deviceid.parse(node.device_id))) for node in nodes]
            told = [decode_heartbeat(blob.data, blob.meta.key).reached for blob in blobs]
            if all(any(reach.device_id == wanted for reach in reached) for reached in told):
                return
            assert time.monotonic() < deadline, told
            await asyncio.sleep(0.2)
    finally:
        await objects.close()


async def _until_complete(peer: SyncthingProcess, node: StnodeProcess, nodes: list[StnodeProcess]) -> None:
    """Until the peer believes that the node has everything."""
    deadline = time.monotonic() + 120
    while True:
        done = await peer.completion(FOLDER, node.device_id)
        if done["completion"] == 100 and done["needItems"] == 0 and done["globalBytes"]:
            return
        assert time.monotonic() < deadline, "\n".join(f"{each.status()['folders']}\n{each.log()[-2000:]}" for each in nodes)
        await asyncio.sleep(0.2)
