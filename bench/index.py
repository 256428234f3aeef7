"""An index of 1,000,000 files through a real BEP connection into a real node, its commit, and its restore from the store alone.

The files are synthetic: 128 KiB of zeros each, with block hashes, vectors, modes and times as real ones have. Blocks of zeros are
never requested, so that what is measured is the index: received (all of it in the node's database), committed (all of it in the
store, announced back), restored (state directory deleted, node started again).

    python -m bench.index [--files 1000000] [--store-url s3://...]
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import stnode.net.tcp  # noqa: F401 - registers tcp://
from stnode.clock import Env, system_env
from stnode.net import base as net
from stnode.net import identity
from stnode.net.base import Link
from stnode.net.identity import Identity
from stnode.protocol import deviceid, fileinfo
from stnode.protocol.connection import BEPConnection
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.fileinfo import FileType
from stnode.protocol.messages import ClusterConfig, ClusterDevice, ClusterFolder, FolderID, Hello, Index
from tests.support.nodes import StnodeProcess
from tests.support.processes import reset_peak, usage

FOLDER = FolderID("million")
BATCH = 1000
SIZE = 128 << 10
DEADLINE_S = 1800.0


def encoded_files(count: int) -> list[bytes]:
    """FileInfos as they stand in Index messages, ascending by sequence."""
    encoded = []
    short = 0x1234567890ABCDEF
    zeros = fileinfo.zero_hash(SIZE)
    for number in range(count):
        info = fileinfo.new(
            name=f"archive-{number // 50_000:03}/year {2000 + number // 1000 % 25}/{number * 2654435761 % 2**32:08x} document {number}.dat",
            type=FileType.FILE, version=((short, 1_700_000_000 + number),), modified_by=short, size=SIZE, permissions=0o644,
            modified_s=1_600_000_000 + number, modified_ns=number * 7919 % 1_000_000_000, block_size=SIZE, block_hashes=zeros,
        )  # fmt: skip
        encoded.append(fileinfo.encode(info.wire, number + 1, SIZE, SIZE, zeros))
    return encoded


class FakePeer:
    """A peer that sends its index as fast as the node takes it, and counts what the node announces back."""

    def __init__(self, own: Identity, node: DeviceID, files: list[bytes]) -> None:
        self._own, self._node, self._files = own, node, files
        self._connection = BEPConnection(time.monotonic())
        self._link: Link | None = None
        self._sending: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self.announced = 0
        self.gone: str | None = None

    def link_made(self, link: Link, peer_id: DeviceID) -> None:
        self._link = link
        self._writable.set()
        self._connection.send_hello(Hello("fake", "bench", "v0.1.0"))
        devices = (
            ClusterDevice(self._own.device_id, max_sequence=len(self._files), index_id=42),
            ClusterDevice(self._node),
        )
        self._connection.send_cluster_config(ClusterConfig((ClusterFolder(FOLDER, "", False, devices),)))
        self._flush()

    def _flush(self) -> None:
        assert self._link is not None
        self._link.write(self._connection.data_to_send())

    def get_buffer(self) -> memoryview:
        return self._connection.get_buffer()

    def buffer_updated(self, count: int) -> None:
        for event in self._connection.buffer_updated(count):
            if isinstance(event, ClusterConfig) and self._sending is None:
                self._sending = asyncio.get_running_loop().create_task(self._send())
            elif isinstance(event, Index):
                self.announced += len(event.files)

    async def _send(self) -> None:
        for start in range(0, len(self._files), BATCH):
            batch = self._files[start : start + BATCH]
            self._connection.send_index(FOLDER, batch, start + len(batch), start, start > 0)
            self._flush()
            await self._writable.wait()
            await asyncio.sleep(0)

    def link_lost(self, reason: Exception | None) -> None:
        self.gone = str(reason)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()


async def wait_for(node: StnodeProcess, files: int, committed: bool, since: float) -> float:
    """Seconds from `since` until the node's folder knows that many files: all committed, or committed and needed together."""
    while True:
        folder = (await asyncio.to_thread(node.status))["folders"][0]
        known = folder["files"] + (0 if committed else folder["need_files"])
        if known >= files:
            return time.monotonic() - since
        if time.monotonic() - since > DEADLINE_S:
            raise RuntimeError(f"stuck: {folder}")
        await asyncio.sleep(0.3)


async def measure(env: Env, root: Path, count: int, store: str) -> None:
    """All phases, printed as they end."""
    own = identity.generate(env.clock)
    node = StnodeProcess(root / "node", store or f"file://{root}/store")
    node.cli("device", "add", deviceid.format(own.device_id), "--name", "fake")
    node.cli("folder", "add", FOLDER, "--device", "fake")
    files = encoded_files(count)
    print(f"{count} files, {sum(map(len, files)) / 1e6:.0f} MB of index")
    node.start()
    try:
        device = deviceid.parse(node.device_id)
        peer = FakePeer(own, device, files)
        reset_peak(node.pid)
        begin, cpu = time.monotonic(), usage(node.pid).cpu_s
        link = await net.dial(env, node.address, own, device, lambda *_: peer)
        report("received", count, await wait_for(node, count, False, begin), node, cpu)
        report("committed", count, await wait_for(node, count, True, begin), node, cpu)
        while peer.announced < count:
            await asyncio.sleep(0.2)
        report("announced back", count, time.monotonic() - begin, node, cpu)
        link.close()
        await asyncio.sleep(2)
        print("store:", node.status()["store"]["requests"])
        node.stop()
        shutil.rmtree(node.home / "state")
        begin = time.monotonic()
        node.start(300)
        report("restored", count, await wait_for(node, count, True, begin), node, 0.0)
    finally:
        node.kill()


def report(phase: str, count: int, seconds: float, node: StnodeProcess, cpu_before: float) -> None:
    """One line."""
    used = usage(node.pid)
    print(
        f"{phase:15} {seconds:7.1f} s {count / seconds:9.0f} files/s  CPU {used.cpu_s - cpu_before:6.1f} s  peak {used.peak_mib:5.0f} MiB",
        flush=True,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--store-url", default="", help="default: a file:// store in a temporary directory")
    args = parser.parse_args()
    env = system_env()
    root = Path(tempfile.mkdtemp(prefix="stnode-bench-"))
    try:
        asyncio.run(measure(env, root, args.files, args.store_url))
    finally:
        env.close()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
