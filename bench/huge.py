"""One huge file: Syncthing -> stnode -> a fresh Syncthing, the node killed with -9 and its state deleted half way.

Shows that memory is bounded whatever the file's size, and that what was committed of a file is not sent again.

    python -m bench.huge [--gib 20] [--version 1.19.2]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from bench.transfer import FOLDER, scanned_sender, until_complete
from tests.support.nodes import StnodeProcess
from tests.support.processes import usage
from tests.support.syncthing import SyncthingProcess

_PIECE = 64 << 20


def make(path: Path, gib: int) -> bytes:
    """Writes random bytes; their SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(gib * (1 << 30) // _PIECE):
            piece = os.urandom(_PIECE)
            digest.update(piece)
            file.write(piece)
    return digest.digest()


def digest_of(path: Path) -> bytes:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


async def measure(root: Path, gib: int, version: str) -> None:
    """All of it, a line for each step."""
    data = root / "data"
    data.mkdir()
    expected = make(data / "huge.bin", gib)
    size = gib << 30
    sender = await scanned_sender(root, version, data)
    node = StnodeProcess(root / "node", f"file://{root}/store")
    receiver = SyncthingProcess(root / "receiver", version, name="receiver")
    try:
        await receiver.start()
        for peer in (sender, receiver):
            node.cli("device", "add", peer.device_id, "--name", peer.name, "--address", peer.address)
        node.cli("folder", "add", FOLDER, "--device", "sender", "--device", "receiver")
        node.start()
        await sender.add_device(node.device_id, node.address)
        await sender.wait_connected(node.device_id)
        begin = time.monotonic()
        await sender.add_folder(FOLDER, data, [node.device_id])
        while node.status()["folders"][0]["store_bytes"] < size // 2:
            await asyncio.sleep(0.5)
        peak, stored = usage(node.pid).peak_mib, node.status()["folders"][0]["store_bytes"]
        node.kill()
        shutil.rmtree(node.home / "state")
        print(f"killed after {time.monotonic() - begin:.0f} s with {stored / size:.0%} committed, peak {peak:.0f} MiB; state deleted")
        begin = time.monotonic()
        node.start()
        await until_complete(sender, node.device_id)
        seconds = time.monotonic() - begin
        device = next(device for device in node.status()["devices"] if device["name"] == "sender")
        print(f"rest in {seconds:.0f} s: {device['in_bytes'] / size:.1%} of the file was sent, peak {usage(node.pid).peak_mib:.0f} MiB")
        await sender.stop()
        (data / "huge.bin").unlink()  # room for the copy
        begin = time.monotonic()
        await receiver.add_device(node.device_id, node.address)
        await receiver.add_folder(FOLDER, root / "received", [node.device_id])
        while not (root / "received" / "huge.bin").exists():
            await asyncio.sleep(0.5)
        seconds = time.monotonic() - begin
        same = digest_of(root / "received" / "huge.bin") == expected
        print(
            f"served in {seconds:.0f} s, {size / 1e6 / seconds:.0f} MB/s, peak {usage(node.pid).peak_mib:.0f} MiB; content {'equal' if same else 'DIFFERS'}"
        )
        print(node.cli("bucket", "check").strip())
    finally:
        await sender.kill()
        await receiver.kill()
        node.kill()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=int, default=20)
    parser.add_argument("--version", default="1.19.2")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="needs about twice the file's size")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="stnode-huge-", dir=args.scratch))
    try:
        asyncio.run(measure(root, args.gib, args.version))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
