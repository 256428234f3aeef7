"""A second node on a store with many files: how long `init --join`, the start and "in sync" take, how many requests, how many bytes of files.

The store is filled by one node's `put`. Then a node joins from nothing, runs, and once more with its state directory deleted.

    python -m bench.join [files] [--seaweedfs]
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.nodes import StnodeProcess
from tests.support.s3servers import seaweedfs

FOLDER = "bench"
SIZE = 200
PER_DIRECTORY = 500


def fill(root: Path, store: str, options: dict[str, str], files: int) -> None:
    """A node of its own puts the files, and writes its checkpoints while it runs."""
    tree = root / "tree"
    for number in range(files):
        directory = tree / f"d{number // PER_DIRECTORY:05}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number}").write_bytes(number.to_bytes(8, "big") * (SIZE // 8))
    node = StnodeProcess(root / "filler", store, options)
    node.cli("folder", "add", FOLDER)
    node.start()
    began = time.monotonic()
    node.cli("put", str(tree), FOLDER)
    print(f"filled with {files:,} files in {time.monotonic() - began:.1f} s, head {node.status()['store']['head']}")
    deadline = time.monotonic() + 60
    while node.status()["store"]["warnings"] and time.monotonic() < deadline:
        time.sleep(1)
    node.stop()


def show(what: str, seconds: float, status: dict[str, Any]) -> None:
    """One line of the result; fails when the node is not in sync or has moved files."""
    requests = status["store"]["requests"]
    assert status["in_sync"], json.dumps(status, indent=1)
    assert status["received_bytes"] == 0
    count = sum(requests.values())
    print(f"{what}: {seconds:.1f} s, {count} requests {requests}, {status['received_bytes']} bytes of files received, in sync")


def join(root: Path, store: str, options: dict[str, str], files: int) -> None:
    """Joins, starts, starts again without a cache."""
    began = time.monotonic()
    node = StnodeProcess(root / "joined", store, options, init=("--join", store))
    print(
        f"init --join (and id): {time.monotonic() - began:.1f} s\n"
        + "".join(f"  {line}\n" for line in node.said.splitlines() if "found" in line)
    )
    assert f"{files:,} files" in node.said
    try:
        began = time.monotonic()
        node.start()
        show("run after init --join, to status", time.monotonic() - began, node.status())
        node.stop()
        shutil.rmtree(node.home / "state")
        began = time.monotonic()
        node.start()
        show("run without a cache, to status", time.monotonic() - began, node.status())
    finally:
        node.kill()


def main(arguments: list[str]) -> None:
    """See the module."""
    counts = [int(argument) for argument in arguments if argument.isdigit()]
    files = counts[0] if counts else 100_000
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        if "--seaweedfs" not in arguments:
            fill(root, f"file://{root}/store", {}, files)
            join(root, f"file://{root}/store", {}, files)
            return
        with seaweedfs() as server:
            fill(root, server.url("join"), server.environment, files)
            join(root, server.url("join"), server.environment, files)


if __name__ == "__main__":
    main(sys.argv[1:])
