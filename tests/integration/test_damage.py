"""Damage in the bucket of a real node between real Syncthings: a peer that has the files makes it whole again, and nobody ever sees a deletion
or a wrong byte."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from stnode.clock import system_env
from stnode.objectstore.base import Key, ObjectStore
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import open_store
from tests.integration.conftest import FOLDER, Cluster, StoreChoice, cluster
from tests.support.syncthing import NEW, SyncthingProcess
from tests.support.trees import difference

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.blocks_loop("commands of the node are waited for")]
BOTH = pytest.mark.parametrize("store", ["file", pytest.param("seaweedfs", marks=pytest.mark.soak)], indirect=True)


def fill(root: Path) -> None:
    """A large file in a pack of its own, and small ones."""
    rng = random.Random(7)
    (root / "large.bin").write_bytes(rng.randbytes(5 << 20))
    for number in range(40):
        directory = root / f"d{number % 4}"
        directory.mkdir(exist_ok=True)
        (directory / f"small-{number}.bin").write_bytes(rng.randbytes(20_000 + number))


@asynccontextmanager
async def bucket_of(store: StoreChoice) -> AsyncIterator[ObjectStore]:
    """The store's objects, behind the node's back."""
    given, env = store.environment, system_env(2)
    options = StoreOptions(
        endpoint_url=given.get("STNODE_STORE_ENDPOINT_URL", ""),
        region=given.get("STNODE_STORE_REGION", ""),
        access_key_id=given.get("STNODE_STORE_ACCESS_KEY_ID", ""),
        secret_access_key=given.get("STNODE_STORE_SECRET_ACCESS_KEY", ""),
    )
    objects = open_store(store.url, options, env)
    try:
        yield objects
    finally:
        await objects.close()
        env.close()


async def delete(bucket: ObjectStore, key: Key) -> None:
    await bucket.delete(key)


async def flip(bucket: ObjectStore, key: Key) -> None:
    """A byte in every tenth of a megabyte of the blocks."""
    data = bytearray((await bucket.get(key)).data)
    for at in range(0, len(data) - 100_000, 100_000):
        data[at] ^= 0xFF
    await bucket.put(key, [bytes(data)])


async def cut(bucket: ObjectStore, key: Key) -> None:
    data = (await bucket.get(key)).data
    await bucket.put(key, [data[: len(data) // 3]])


Damage = Callable[[ObjectStore, Key], object]
DAMAGES = pytest.mark.parametrize(
    ("store", "damage"),
    [pytest.param("file", delete, marks=pytest.mark.soak), ("seaweedfs", flip), pytest.param("file", cut, marks=pytest.mark.soak)],
    indirect=["store"],
    ids=["deleted", "flipped", "truncated"],
)


async def hurt(store: StoreChoice, damage: Damage) -> list[Key]:
    """Damages all packs; their keys."""
    async with bucket_of(store) as bucket:
        keys = sorted([meta.key async for meta in bucket.list("packs/")])
        for key in keys:
            await damage(bucket, key)  # type: ignore[misc]
    return keys


class Witness:
    """Looks at a peer all the time: whatever it has of the folder is right, and nothing is deleted for it."""

    def __init__(self, peer: SyncthingProcess, directory: Path, right: Path) -> None:
        self._peer, self._directory, self._right = peer, directory, right
        self.looks = 0

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(0.3)

    async def look(self) -> None:
        for path in self._directory.rglob("*.bin"):
            if ".syncthing." not in path.name:
                right = (self._right / path.relative_to(self._directory)).read_bytes()
                try:
                    assert path.read_bytes() == right, path
                except FileNotFoundError:
                    continue  # the peer is just replacing it
        state = await self._peer.db_status(FOLDER)
        assert (state["globalDeleted"], state["localDeleted"]) == (0, 0), state
        self.looks += 1


@asynccontextmanager
async def watched(*witnesses: Witness) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(witness.run()) for witness in witnesses]
    try:
        yield
        for task in tasks:
            assert not task.done(), task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for witness in witnesses:
        await witness.look()
        assert witness.looks


async def until(holds: Callable[[], object], what: str, peers: Cluster, deadline_s: float = 60.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline, f"{what}\nstatus: {peers.node.status()}\n{peers.node.log()[-6000:]}"
        await asyncio.sleep(0.3)


@DAMAGES
async def test_what_a_peer_has_is_made_whole_while_another_one_pulls(tmp_path: Path, store: StoreChoice, damage: Damage) -> None:
    third = SyncthingProcess(tmp_path / "third", NEW, name="third")
    directory = tmp_path / "third-tree"
    async with cluster(tmp_path, store, fill) as peers:
        await peers.until_equal()
        await peers.new.stop()
        peers.node.stop()  # what it has in memory would hide the damage
        shutil.rmtree(peers.node.home / "state")
        keys = await hurt(store, damage)
        await asyncio.to_thread(peers.node.start)
        try:
            await third.start()
            peers.node.cli("device", "add", third.device_id, "--name", "third", "--address", third.address)
            peers.node.cli("folder", "set", FOLDER, "--add-device", "third")
            await third.add_device(peers.node.device_id, peers.node.address, name="stnode")
            await third.add_folder(FOLDER, directory, [peers.node.device_id])
            async with watched(Witness(peers.old, peers.old_dir, peers.old_dir), Witness(third, directory, peers.old_dir)):
                deadline = time.monotonic() + 90
                while found := difference(peers.old_dir, directory):
                    assert time.monotonic() < deadline, f"{found[:9]}\n{peers.node.status()}\n{peers.node.log()[-6000:]}"
                    await asyncio.sleep(0.5)
                await until(lambda: not peers.node.status()["folders"][0]["lost_count"], "files are still lost", peers)
            assert "0 problems" in await asyncio.to_thread(peers.node.cli, "bucket", "check", "--read-data", "--repair")
            assert any(key in peers.node.log() for key in keys)
        finally:
            await third.kill()


@pytest.mark.parametrize("store", ["seaweedfs"], indirect=True)
async def test_check_repairs_a_running_node(tmp_path: Path, store: StoreChoice) -> None:
    async with cluster(tmp_path, store, fill) as peers:
        await peers.until_equal()
        keys = await hurt(store, flip)
        async with watched(*(Witness(peer, directory, peers.old_dir) for peer, directory in peers.peers)):
            report = await asyncio.to_thread(peers.node.cli, "bucket", "check", "--read-data", "--repair")
        assert "0 problems" in report
        assert all(f"repaired: {key}" in report for key in keys)
        assert "0 problems" in await asyncio.to_thread(peers.node.cli, "bucket", "check", "--read-data")


@BOTH
async def test_a_wiped_journal_is_made_of_packs_alone(tmp_path: Path, store: StoreChoice) -> None:
    async with cluster(tmp_path, store, fill) as peers:
        await peers.until_equal()
        files = peers.node.status()["folders"][0]["files"]
        peers.node.stop()
        shutil.rmtree(peers.node.home / "state")
        async with bucket_of(store) as bucket:
            for prefix in ("journal/", "checkpoint/", "runs/", "bodies/"):
                for key in [meta.key async for meta in bucket.list(prefix)]:
                    await bucket.delete(key)
        async with watched(*(Witness(peer, directory, peers.old_dir) for peer, directory in peers.peers)):
            with pytest.raises(RuntimeError, match="--rebuild"):
                peers.node.cli("bucket", "repair", "--yes")
            told = await asyncio.to_thread(peers.node.cli, "bucket", "repair", "--rebuild", "--yes")
            assert "registered" in told
            for peer, _ in peers.peers:
                peers.node.cli("device", "add", peer.device_id, "--name", peer.name, "--address", peer.address)
            peers.node.cli("folder", "set", FOLDER, "--add-device", "old", "--add-device", "new")
            await asyncio.to_thread(peers.node.start)
            await until(lambda: peers.node.status()["folders"][0]["files"] == files, "not all files are back", peers, 90)
        for peer, _ in peers.peers:
            await peer.wait_in_sync(FOLDER, peers.node.device_id)
        moved = await pulled_bytes(peers)
        assert moved < 100_000, f"{moved} bytes were pulled"
        assert "0 problems" in await asyncio.to_thread(peers.node.cli, "bucket", "check", "--read-data")
        (peers.new_dir / "after.bin").write_bytes(b"after")
        await peers.until_equal()


async def pulled_bytes(peers: Cluster) -> float:
    """What the node has pulled since its start, by its own count."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{peers.node.api_port}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("stnode_pulled_bytes_total{"))
