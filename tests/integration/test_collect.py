"""Must-show 6: nine tenths of a tree are deleted by a peer, and the bucket shrinks by itself to what is live, while a second node and the
peer go on reading. Real Syncthing, SeaweedFS and two nodes; orphan age and grace of 30 s."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stnode.clock import system_env
from stnode.objectstore.registry import open_store
from tests.integration.conftest import FOLDER, StoreChoice
from tests.support.nodes import StnodeProcess
from tests.support.s3servers import S3Server
from tests.support.syncthing import OLD, SyncthingProcess

FILES, SIZE = 300, 200_000
SHRUNK_WITHIN_S = 120.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(280), pytest.mark.blocks_loop("commands of the nodes are waited for")]


async def stored(server: S3Server, url: str) -> tuple[int, int]:
    """(objects, bytes) in the bucket."""
    objects = open_store(url, server.options, system_env())
    try:
        sizes = [meta.size_bytes async for meta in objects.list("")]
    finally:
        await objects.close()
    return len(sizes), sum(sizes)


async def files_are(node: StnodeProcess, count: int) -> None:
    """Waits until the node has committed so many files."""
    deadline = time.monotonic() + 60
    while (found := (await asyncio.to_thread(node.status))["folders"][0]["files"]) != count:
        assert time.monotonic() < deadline, f"{found} files, {count} expected: {node.log()[-3000:]}"
        await asyncio.sleep(0.3)


async def test_the_bucket_shrinks_to_what_is_live(seaweedfs_server: S3Server, tmp_path: Path) -> None:
    url = seaweedfs_server.url("collect-live")
    store = StoreChoice(url, seaweedfs_server.environment, seaweedfs_server.options)
    node = StnodeProcess(tmp_path / "a", store.url, store.environment, ("--orphan-age", "30s", "--grace", "30s"))
    other = StnodeProcess(tmp_path / "b", store.url, store.environment)
    tree = tmp_path / "tree"
    tree.mkdir()
    contents = {f"file {number}": os.urandom(SIZE) for number in range(FILES)}
    for name, content in contents.items():
        (tree / name).write_bytes(content)
    try:
        async with SyncthingProcess(tmp_path / "peer", OLD, name="laptop") as peer:
            node.cli("device", "add", peer.device_id, "--name", "laptop", "--address", peer.address)
            node.cli("folder", "add", FOLDER, "--device", "laptop", "--history", "0", "--history-floor", "0")
            await asyncio.to_thread(node.start)
            await asyncio.to_thread(other.start)
            await peer.add_device(node.device_id, node.address)
            await peer.add_folder(FOLDER, tree, [node.device_id])
            await files_are(node, FILES)
            full = await stored(seaweedfs_server, url)
            kept = sorted(contents)[::10]
            for name in contents.keys() - set(kept):
                (tree / name).unlink()
            started = time.monotonic()
            await peer.scan(FOLDER)
            await files_are(node, len(kept))
            live = len(kept) * SIZE
            reads = 0
            while True:
                objects, size = await stored(seaweedfs_server, url)
                if size <= 1.15 * live:
                    break
                assert time.monotonic() - started < SHRUNK_WITHIN_S, (
                    objects,
                    size,
                    live,
                    [(n.status()["store"]["collection"], n.cli("bucket", "gc", "--dry-run")) for n in (node, other)],
                    "",
                )
                name = kept[reads % len(kept)]
                read = await asyncio.to_thread(_cat, other, f"{FOLDER}/{name}")
                assert read == contents[name], name
                reads += 1
                await asyncio.sleep(1)
            took_s = time.monotonic() - started
            print(
                f"\n{full} objects and bytes full, {(objects, size)} after {took_s:.0f} s, live {live}: +{size / live - 1:.1%}; {reads} reads meanwhile"
            )
            assert reads > 3
            for name in kept[:5]:
                assert await asyncio.to_thread(_cat, other, f"{FOLDER}/{name}") == contents[name]
            await peer.wait_in_sync(FOLDER, node.device_id, 60)
            report = json.loads(await asyncio.to_thread(node.cli, "bucket", "gc", "--dry-run", "--json"))
            assert (report["orphans"], report["dead_bytes"] < 0.15 * live) == (0, True), report
            check = json.loads(await asyncio.to_thread(node.cli, "bucket", "check", "--read-data", "--json"))
            assert check["problems"] == []
    finally:
        node.kill()
        other.kill()


def _cat(node: StnodeProcess, path: str) -> bytes:
    command = [sys.executable, "-m", "stnode", "--home", str(node.home), "cat", path]
    return subprocess.run(command, env=node._env, capture_output=True, check=True).stdout
