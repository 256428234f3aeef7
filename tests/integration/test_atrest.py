"""Encryption at rest with real devices: what the bucket's owner can find, and a node that comes back from URL and passphrase alone."""

from __future__ import annotations

import asyncio
import re
import shutil
import urllib.request
from pathlib import Path

import pytest

from stnode.clock import system_env
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import open_store
from tests.integration.conftest import FOLDER, Cluster, StoreChoice, cluster
from tests.support.nodes import StnodeProcess

PASSPHRASE = "seven horses walk under the bridge"
NODE_NAME = "attic-server-of-the-family"
LABEL = "Letters to the tax office"
DEVICE_NAME = "grandmothers-tablet"
DEVICE = "P56IOI7-MZJNU2Y-IQGDREY-DM2MGTI-MGL3BXN-PQ6W5BM-TBBZ4TJ-XZWICQ2"
FILES = 100

pytestmark = [pytest.mark.slow, pytest.mark.blocks_loop("commands of the node are waited for")]


def fill(root: Path) -> None:
    """Files whose names and contents can be searched for; one of several blocks."""
    for number in range(FILES):
        path = root / f"directory-{number % 7}" / f"family-letter-{number:03d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"Dear aunt number {number:03d}, this stays between us.\n" * (1 if number else 20_000))


def fragments(cluster: Cluster) -> list[bytes]:
    """What nobody may find in the bucket."""
    texts = [f"family-letter-{number:03d}" for number in range(FILES)] + [f"aunt number {number:03d}" for number in range(FILES)]
    texts += [f"directory-{number}" for number in range(7)] + [
        FOLDER,
        LABEL,
        DEVICE_NAME,
        NODE_NAME,
        PASSPHRASE,
        DEVICE,
        DEVICE[:15],
        "BEGIN CERT",
        "PRIVATE",
    ]
    texts += [device[:15] for device in (cluster.node.device_id, *(peer.device_id for peer, _ in cluster.peers))]
    return [text.encode() for text in texts]


async def everything(store: StoreChoice) -> dict[str, bytes]:
    """All objects of the bucket as its owner sees them."""
    environment = store.environment
    options = StoreOptions(
        endpoint_url=environment.get("STNODE_STORE_ENDPOINT_URL", ""),
        region=environment.get("STNODE_STORE_REGION", ""),
        access_key_id=environment.get("STNODE_STORE_ACCESS_KEY_ID", ""),
        secret_access_key=environment.get("STNODE_STORE_SECRET_ACCESS_KEY", ""),
    )
    env = system_env()
    objects = open_store(store.url, options, env)
    try:
        return {key: (await objects.get(key)).data for key in [meta.key async for meta in objects.list("")]}
    finally:
        await objects.close()
        env.close()


def metric(node: StnodeProcess, name: str) -> float:
    """The sum of a metric of the running node."""
    with urllib.request.urlopen(f"http://127.0.0.1:{node.api_port}/metrics") as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("store", [pytest.param("file", marks=pytest.mark.soak), "seaweedfs"], indirect=True)
async def test_a_lost_node_comes_back_from_url_and_passphrase(tmp_path: Path, store: StoreChoice) -> None:
    secret = {"STNODE_STORE_PASSPHRASE": PASSPHRASE, "STNODE_NODE_NAME": NODE_NAME, "STNODE_NODE_IDENTITY": "store"}
    async with cluster(tmp_path, StoreChoice(store.url, {**store.environment, **secret}), fill) as peers:
        node = peers.node
        node.cli("folder", "set", FOLDER, "--label", LABEL)
        node.cli("device", "add", DEVICE, "--name", DEVICE_NAME)
        await peers.until_equal()
        (peers.new_dir / "family-letter-000.txt").write_text("Dear aunt number 000")
        await peers.until_equal()
        assert not (node.home / "key.pem").exists()

        node.kill()
        shutil.rmtree(node.home)
        node.home.mkdir()
        for variable in ("STNODE_NODE_NAME", "STNODE_NODE_IDENTITY"):
            del node._env[variable]
        await asyncio.to_thread(node.start)
        status = await asyncio.to_thread(node.status)
        assert (status["device_id"], status["name"]) == (node.device_id, NODE_NAME)
        for peer, _ in peers.peers:
            await peer.wait_connected(node.device_id)
            await peer.wait_in_sync(FOLDER, node.device_id)
        assert metric(node, "stnode_pulled_bytes_total") == metric(node, "stnode_served_bytes_total") == 0
        (peers.old_dir / "directory-1" / "family-letter-100.txt").write_text("Dear aunt, the node is back.")
        await peers.until_equal()

        found = await everything(store)
        assert {key.partition("/")[0] for key in found} >= {"stnode.json", "keys", "identities", "journal", "packs", "nodes"}
        wanted = fragments(peers)
        assert len(wanted) > 200
        for key, data in found.items():
            seen = [fragment for fragment in wanted if fragment in data or fragment.decode().lower() in key.lower()]
            assert not seen, f"{key}: {seen}"
        assert PASSPHRASE not in node.log() + str(status)
        assert "0 problems" in await asyncio.to_thread(node.cli, "bucket", "check", "--read-data")
        _passphrases(tmp_path, node)


def _passphrases(tmp_path: Path, node: StnodeProcess) -> None:
    """A second passphrase beside the running node, and what one is told without the right one."""
    (tmp_path / "second-passphrase").write_text("another passphrase for the laptop\n")
    node.cli("bucket", "key", "add", "--label", "laptop", "--new-passphrase-file", str(tmp_path / "second-passphrase"))
    node.stop()
    for passphrase, told in (("guessed", "wrong passphrase"), (None, "no config.toml")):
        node._env.pop("STNODE_STORE_PASSPHRASE")
        if passphrase is not None:
            node._env["STNODE_STORE_PASSPHRASE"] = passphrase
        with pytest.raises(RuntimeError, match=told) as caught:
            node.cli("status")
        assert "hint: " in str(caught.value)
    node._env["STNODE_STORE_PASSPHRASE_FILE"] = str(tmp_path / "second-passphrase")
    assert node.cli("id").strip() == node.device_id
    first = re.search(r"^(\w+)  first", node.cli("bucket", "key", "list"), re.MULTILINE)
    assert first is not None
    node.cli("bucket", "key", "remove", first[1])
    with pytest.raises(RuntimeError, match="could leave none"):
        node.cli("bucket", "key", "remove", "laptop")
    assert node.status()["folders"][0]["files"] == FILES + 2
