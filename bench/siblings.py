"""How soon a commit of one node is announced by its siblings to their peers: three real nodes on one store, loopback.

A file is written through one node's API; peers that are connected with the two others, and with no other node, note when the announcement comes. Prints
median, 90 % and worst of the time from the acknowledged commit, and from the call's begin, to each announcement.

    python -m bench.siblings [commits] [--seaweedfs]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import stnode.net.tcp  # noqa: F401 - registers tcp:// with net.base
from stnode.clock import Env, system_env
from stnode.errors import StnodeError
from stnode.net import base as net
from stnode.net import identity
from stnode.net.identity import Identity
from stnode.node.connect import connect
from stnode.node.home import Home
from stnode.protocol import deviceid
from stnode.protocol.connection import BEPConnection
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.messages import ClusterConfig, ClusterDevice, ClusterFolder, FolderID, Hello, Index
from tests.support.nodes import StnodeProcess
from tests.support.s3servers import seaweedfs

FOLDER = FolderID("bench")
PAUSE_S = 3.0
"""Between two commits, so that each is one of its own after a pause."""


class Peer:
    """A device that shares the folder with one node and notes when names are announced."""

    def __init__(self, env: Env, own: Identity, node: DeviceID) -> None:
        self.heard: dict[str, float] = {}
        self._own, self._node = own, node
        self._env = env
        self._conn = BEPConnection(env.clock.monotonic())
        self._link: net.Link | None = None

    def link_made(self, link: net.Link, peer_id: DeviceID) -> None:
        self._link = link
        self._conn.send_hello(Hello("peer", "bench", "v1"))
        devices = (ClusterDevice(self._own.device_id, index_id=1), ClusterDevice(self._node))
        self._conn.send_cluster_config(ClusterConfig((ClusterFolder(FOLDER, devices=devices),)))
        link.write(self._conn.data_to_send())

    def get_buffer(self) -> memoryview:
        return self._conn.get_buffer()

    def buffer_updated(self, count: int) -> None:
        now = time.monotonic()
        for event in self._conn.buffer_updated(count):
            if isinstance(event, Index):
                for info in event.files:
                    self.heard.setdefault(info.name, now)

    def link_lost(self, reason: Exception | None) -> None:
        self._link = None

    def pause_writing(self) -> None:
        """Nothing is written after the start."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    async def connect(self, address: str) -> None:
        for _try in range(20):
            try:
                await net.dial(self._env, address, self._own, self._node, lambda _device, _address: self)
                return
            except StnodeError:
                await asyncio.sleep(0.5)
        raise SystemExit(f"no connection to {address}")

    def close(self) -> None:
        if self._link is not None:
            self._link.abort()


async def measure(root: Path, store: str, options: dict[str, str], commits: int) -> None:
    """Sets everything up, writes `commits` files, prints."""
    env = system_env(2)
    nodes = [StnodeProcess(root / "a", store, options)]
    nodes += [StnodeProcess(root / name, store, options, init=("--join", store)) for name in ("b", "c")]
    owns = [identity.generate(env.clock) for _ in range(2)]
    for number, own in enumerate(owns):
        nodes[0].cli("device", "add", deviceid.format(own.device_id), "--name", f"peer {number}")
    nodes[0].cli("folder", "add", FOLDER, "--device", "peer 0", "--device", "peer 1")
    try:
        for node in nodes:
            await asyncio.to_thread(node.start)
        peers = [Peer(env, own, deviceid.parse(node.device_id)) for own, node in zip(owns, nodes[1:], strict=True)]
        for peer, node in zip(peers, nodes[1:], strict=True):
            await peer.connect(node.address)
        while sum(sibling["connected"] for sibling in (await asyncio.to_thread(nodes[0].status))["siblings"]) < 2:
            await asyncio.sleep(0.5)
        from_call, from_commit = await _commits(env, nodes[0].home, peers, commits)
        for peer in peers:
            peer.close()
    finally:
        for node in nodes:
            node.kill()
        env.close()
    for what, times in (("acknowledged commit", from_commit), ("begin of the call", from_call)):
        times.sort()
        tenth = times[int(len(times) * 0.9)]
        print(f"{what} to announcement, {len(times)}: median {statistics.median(times):.3f} s, 90 % {tenth:.3f} s, worst {times[-1]:.3f} s")


async def _commits(env: Env, home: Path, peers: list[Peer], commits: int) -> tuple[list[float], list[float]]:
    """Writes one file after the other; seconds from the call's begin and from its end to each announcement."""

    async def content() -> AsyncIterator[bytes]:
        yield b"x" * 1000

    from_call: list[float] = []
    from_commit: list[float] = []
    async with connect(Home(home), env, {}) as service:
        for number in range(commits):
            began = time.monotonic()
            await service.write(f"{FOLDER}/{number}", content(), 1000)
            ended = time.monotonic()
            while not all(str(number) in peer.heard for peer in peers):
                await asyncio.sleep(0.005)
            from_call += [peer.heard[str(number)] - began for peer in peers]
            from_commit += [max(0.0, peer.heard[str(number)] - ended) for peer in peers]
            await asyncio.sleep(PAUSE_S)
    return from_call, from_commit


def main(arguments: list[str]) -> None:
    """See the module."""
    counts = [int(argument) for argument in arguments if argument.isdigit()]
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        if "--seaweedfs" not in arguments:
            asyncio.run(measure(root, f"file://{root}/store", {}, counts[0] if counts else 30))
            return
        with seaweedfs() as server:
            asyncio.run(measure(root, server.url("bench"), server.environment, counts[0] if counts else 30))


if __name__ == "__main__":
    main(sys.argv[1:])
