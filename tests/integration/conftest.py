"""Pieces of the end-to-end tests: real Syncthing processes around a real stnode process on every kind of store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stnode.objectstore.options import StoreOptions
from tests.support.nodes import StnodeProcess
from tests.support.s3servers import S3Server, moto_server, seaweedfs_server
from tests.support.syncthing import NEW, OLD, SyncthingProcess
from tests.support.trees import difference

__all__ = ["moto_server", "seaweedfs_server"]

FOLDER = "shared"
_RESCAN_S = 5.0


@dataclass(frozen=True, slots=True)
class StoreChoice:
    """Where a node of a test keeps its store, and the environment by which it reaches it. `options` open it without a node."""

    url: str
    environment: dict[str, str]
    options: StoreOptions = field(default_factory=StoreOptions)


@pytest.fixture(params=["file", "moto", "seaweedfs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreChoice:
    """The same tests on every kind of store."""
    if request.param == "file":
        return StoreChoice(f"file://{tmp_path}/store", {})
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return StoreChoice(server.url(tmp_path.name.lower().replace("_", "-")), server.environment, server.options)


@dataclass(slots=True)
class Cluster:
    """Two Syncthings of both versions that know only stnode, and stnode."""

    node: StnodeProcess
    old: SyncthingProcess
    new: SyncthingProcess
    old_dir: Path
    new_dir: Path

    @property
    def peers(self) -> tuple[tuple[SyncthingProcess, Path], ...]:
        """(process, directory of the folder) of both."""
        return ((self.old, self.old_dir), (self.new, self.new_dir))

    async def until_equal(self, deadline_s: float = 90.0) -> None:
        """Scans both and waits until both trees are the same and both peers are content. A peer that finds a file changed on disk when it is
        to delete it keeps it, marks it, and says that it needs nothing until the next scan: so they scan again and again."""
        deadline = time.monotonic() + deadline_s
        scanned = float("-inf")
        while True:
            if time.monotonic() - scanned > _RESCAN_S:
                await asyncio.gather(*(peer.scan(FOLDER) for peer, _ in self.peers))
                scanned = time.monotonic()
            states = [await peer.db_status(FOLDER) for peer, _ in self.peers]
            if all(state["state"] == "idle" and state["needTotalItems"] == 0 for state in states):
                found = difference(self.old_dir, self.new_dir)
                if not found:
                    return
            else:
                found = [str({key: state[key] for key in ("state", "needTotalItems", "globalFiles")}) for state in states]
            assert time.monotonic() < deadline, f"not equal: {found[:20]}\nstatus: {self.node.status()}\n{self.node.log()[-4000:]}"
            await asyncio.sleep(0.3)


@asynccontextmanager
async def cluster(tmp_path: Path, store: StoreChoice, fill: Callable[[Path], None]) -> AsyncIterator[Cluster]:
    """Old peer with the tree that `fill` writes -> stnode -> empty new peer."""
    node = StnodeProcess(tmp_path / "node", store.url, store.environment)
    old, new = SyncthingProcess(tmp_path / "old", OLD, name="old"), SyncthingProcess(tmp_path / "new", NEW, name="new")
    made = Cluster(node, old, new, tmp_path / "old-tree", tmp_path / "new-tree")
    made.old_dir.mkdir()
    fill(made.old_dir)
    try:
        await old.start()
        await new.start()
        for peer in (old, new):
            node.cli("device", "add", peer.device_id, "--name", peer.name, "--address", peer.address)
        node.cli("folder", "add", FOLDER, "--device", "old", "--device", "new")
        node.start()
        for peer, directory in made.peers:
            await peer.add_device(node.device_id, node.address, name="stnode")
            await peer.add_folder(FOLDER, directory, [node.device_id])
            await peer.wait_connected(node.device_id)
        yield made
    finally:
        await old.kill()
        await new.kill()
        node.kill()


@dataclass(slots=True)
class Trio:
    """Three nodes on one store, each with a Syncthing of its own that knows only it."""

    nodes: list[StnodeProcess]
    peers: list[SyncthingProcess]
    trees: list[Path]

    async def until_equal(self, deadline_s: float = 120.0) -> None:
        """Scans all and waits until all trees are the same and all peers are content; see `Cluster.until_equal`."""
        deadline = time.monotonic() + deadline_s
        scanned = float("-inf")
        while True:
            if time.monotonic() - scanned > _RESCAN_S:
                await asyncio.gather(*(peer.scan(FOLDER) for peer in self.peers))
                scanned = time.monotonic()
            states = [await peer.db_status(FOLDER) for peer in self.peers]
            if all(state["state"] == "idle" and state["needTotalItems"] == 0 for state in states):
                found = [f"{tree.name}: {line}" for tree in self.trees[1:] for line in difference(self.trees[0], tree)]
                if not found:
                    return
            else:
                found = [str({key: state[key] for key in ("state", "needTotalItems", "globalFiles")}) for state in states]
            assert time.monotonic() < deadline, f"not equal: {found[:20]}\n" + "\n".join(
                f"{node.status()}\n{node.log()[-3000:]}" for node in self.nodes
            )
            await asyncio.sleep(0.3)


@asynccontextmanager
async def trio(tmp_path: Path, store: StoreChoice, *init: str) -> AsyncIterator[Trio]:
    """Three nodes that were told nothing of each other; `init` are options of `stnode init` for the first, which makes the store.
    The devices are the store's and have no addresses, so each peer dials the one node that it knows."""
    nodes = [StnodeProcess(tmp_path / "node-0", store.url, store.environment, init=init)]
    nodes += [StnodeProcess(tmp_path / f"node-{number}", store.url, store.environment) for number in (1, 2)]
    peers = [SyncthingProcess(tmp_path / f"peer-{n}", version, name=f"peer-{n}") for n, version in enumerate((OLD, NEW, OLD))]
    made = Trio(nodes, peers, [tmp_path / f"tree-{number}" for number in range(3)])
    try:
        for peer in peers:
            await peer.start()
            nodes[0].cli("device", "add", peer.device_id, "--name", peer.name)
        nodes[0].cli("folder", "add", FOLDER, *(word for peer in peers for word in ("--device", peer.name)))
        for node, peer, tree in zip(nodes, peers, made.trees, strict=True):
            await asyncio.to_thread(node.start)
            await peer.add_device(node.device_id, node.address, name="stnode")
            await peer.add_folder(FOLDER, tree, [node.device_id])
            await peer.wait_connected(node.device_id)
        yield made
    finally:
        for peer in peers:
            await peer.kill()
        for node in nodes:
            node.kill()
