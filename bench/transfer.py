"""Syncthing and stnode side by side, in one run, interleaved: who moves a tree how fast and at what cost.

(a) Syncthing -> Syncthing on local disk; (b) Syncthing -> stnode -> store; (c) stnode -> a fresh Syncthing, after (b).
Stores: `file://` and SeaweedFS. Every process is real and on loopback. Time runs from the moment at which connected devices
begin to share the folder until the sender says that the receiver has everything (a, b) or the receiver that it needs nothing (c).

    python -m bench.transfer [--tree 1x1GiB ...] [--version 1.19.2 ...] [--rounds 3] [--store file weed] [--out docs/performance.md]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.trees import TREES, Tree
from tests.support.nodes import StnodeProcess
from tests.support.processes import reset_peak, usage
from tests.support.s3servers import S3Server, seaweedfs
from tests.support.syncthing import SyncthingProcess

FOLDER = "bench"
DEADLINE_S = 900.0


@dataclass(slots=True)
class Result:
    """One transfer. CPU seconds and MiB per process; requests by kind of the stnode process."""

    case: str
    version: str
    tree: str
    seconds: float
    cpu: dict[str, float] = field(default_factory=dict)
    peak_mib: dict[str, float] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)


class Meter:
    """Differences of CPU time between construction and `stop`, peaks since construction."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        for pid in pids.values():
            reset_peak(pid)
        self._before = {name: usage(pid).cpu_s for name, pid in pids.items()}
        self._start = time.monotonic()

    def stop(self, case: str, version: str, tree: Tree) -> Result:
        """The result so far."""
        seconds = time.monotonic() - self._start
        now = {name: usage(pid) for name, pid in self._pids.items()}
        cpu = {name: now[name].cpu_s - before for name, before in self._before.items()}
        return Result(case, version, tree.name, seconds, cpu, {name: used.peak_mib for name, used in now.items()})


async def scanned_sender(root: Path, version: str, data: Path) -> SyncthingProcess:
    """A Syncthing that has the tree, scanned, shared with nobody yet."""
    sender = SyncthingProcess(root / "sender", version, name="sender")
    await sender.start()
    await sender.add_folder(FOLDER, data, [])
    await sender.scan(FOLDER)
    return sender


async def until_complete(sender: SyncthingProcess, receiver: str) -> None:
    """Until the sender believes that the receiver has the whole tree."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        done = await sender.completion(FOLDER, receiver)
        if done["completion"] == 100 and done["needItems"] == 0 and done["globalBytes"] and done.get("remoteState", "valid") == "valid":
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"not complete: {done}")
        await asyncio.sleep(0.1)


async def until_received(receiver: SyncthingProcess, tree: Tree) -> None:
    """Until a fresh Syncthing has every file."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        status = await receiver.db_status(FOLDER)
        if status["needTotalItems"] == 0 and status["localFiles"] == tree.files and status["state"] == "idle":
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"not received: {status}")
        await asyncio.sleep(0.1)


async def syncthing_to_syncthing(root: Path, version: str, tree: Tree, data: Path) -> Result:
    """Case (a)."""
    sender = await scanned_sender(root, version, data)
    receiver = SyncthingProcess(root / "receiver", version, name="receiver")
    try:
        await receiver.start()
        await sender.add_device(receiver.device_id, receiver.address)
        await receiver.add_device(sender.device_id, sender.address)
        await receiver.add_folder(FOLDER, root / "received", [sender.device_id])
        await sender.wait_connected(receiver.device_id)
        meter = Meter(sender=sender.pid, receiver=receiver.pid)
        await sender.add_folder(FOLDER, data, [receiver.device_id])
        await until_complete(sender, receiver.device_id)
        return meter.stop("a: syncthing -> syncthing", version, tree)
    finally:
        await sender.kill()
        await receiver.kill()


async def through_stnode(
    root: Path, version: str, tree: Tree, data: Path, store: str, server: S3Server | None, environment: dict[str, str] | None = None
) -> list[Result]:
    """Cases (b) and (c) on one store; `environment` is the node's besides."""
    url = f"file://{root}/store" if server is None else server.url(root.name.lower())
    node = StnodeProcess(root / "node", url, {**({} if server is None else credentials(server)), **(environment or {})})
    pids = {} if server is None else {"s3": server.pid}
    sender = await scanned_sender(root, version, data)
    receiver = SyncthingProcess(root / "receiver", version, name="receiver")
    results: list[Result] = []
    try:
        await receiver.start()
        for peer in (sender, receiver):
            node.cli("device", "add", peer.device_id, "--name", peer.name, "--address", peer.address)
        node.cli("folder", "add", FOLDER, "--device", sender.device_id, "--device", receiver.device_id)
        node.start()
        await sender.add_device(node.device_id, node.address)
        await sender.wait_connected(node.device_id)
        requests = node.status()["store"]["requests"]
        meter = Meter(sender=sender.pid, stnode=node.pid, **pids)
        await sender.add_folder(FOLDER, data, [node.device_id])
        await until_complete(sender, node.device_id)
        results.append(meter.stop(f"b: syncthing -> stnode ({store})", version, tree))
        results[-1].requests = _difference(node.status()["store"]["requests"], requests)
        await sender.stop()

        requests = node.status()["store"]["requests"]
        await receiver.add_device(node.device_id, node.address)
        await receiver.wait_connected(node.device_id)
        meter = Meter(stnode=node.pid, receiver=receiver.pid, **pids)
        await receiver.add_folder(FOLDER, root / "received", [node.device_id])
        await until_received(receiver, tree)
        results.append(meter.stop(f"c: stnode ({store}) -> syncthing", version, tree))
        results[-1].requests = _difference(node.status()["store"]["requests"], requests)
    finally:
        await sender.kill()
        await receiver.kill()
        node.kill()
    return results


def _difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {kind: count - before.get(kind, 0) for kind, count in after.items() if count - before.get(kind, 0)}


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A directory for one transfer, removed afterwards, so that no run pays for the page cache of the one before."""
    root = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


async def run(args: argparse.Namespace, base: Path) -> list[Result]:
    """All cases, round by round, so that a noisy minute hits all of them alike."""
    results: list[Result] = []
    with seaweedfs() if "weed" in args.store else nullcontext() as server:
        for tree in (TREES[name] for name in args.tree):
            data = tree.make(base / "trees")
            for number in range(args.rounds):
                for version in args.version:
                    with scratch(base) as root:
                        found = [await syncthing_to_syncthing(root, version, tree, data)]
                    for store in args.store:
                        with scratch(base) as root:
                            found += await through_stnode(root, version, tree, data, store, server if store == "weed" else None)
                    for result in found:
                        print(f"round {number + 1}  {line(result, tree)}", flush=True)
                    results += found
    return results


def credentials(server: S3Server) -> dict[str, str]:
    """The environment by which a node reaches the server."""
    options = server.options
    return {
        "STNODE_STORE_ENDPOINT_URL": options.endpoint_url or "",
        "STNODE_STORE_REGION": options.region or "",
        "STNODE_STORE_ACCESS_KEY_ID": options.access_key_id or "",
        "STNODE_STORE_SECRET_ACCESS_KEY": options.secret_access_key or "",
    }


def line(result: Result, tree: Tree) -> str:
    """One transfer for the terminal."""
    cpu = "  ".join(f"{name} {used:.2f}s/{result.peak_mib[name]:.0f}MiB" for name, used in result.cpu.items())
    rate = f"{tree.megabytes / result.seconds:7.1f} MB/s {tree.files / result.seconds:8.1f} files/s"
    asked = " ".join(f"{kind}={count}" for kind, count in sorted(result.requests.items()))
    return f"{result.tree:12} {result.version:7} {result.case:32} {result.seconds:7.2f} s {rate}  CPU {cpu}  {asked}"


def table(results: list[Result]) -> str:
    """Medians as Markdown, with the ratio to case (a) of the same version and tree."""
    rows = [
        "| tree | Syncthing | case | s | MB/s | files/s | rate : (a) | CPU s (per GB / ms per file) | peak MiB | S3 requests |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = list(dict.fromkeys((r.tree, r.version, r.case) for r in results))
    for name, version, case in keys:
        tree = TREES[name]
        same = [r for r in results if (r.tree, r.version, r.case) == (name, version, case)]
        yardstick = statistics.median(r.seconds for r in results if (r.tree, r.version, r.case[0]) == (name, version, "a"))
        seconds = statistics.median(r.seconds for r in same)
        cpu = {process: statistics.median(r.cpu[process] for r in same) for process in same[0].cpu}
        spent = ", ".join(
            f"{p} {used:.2f} ({used / tree.megabytes * 1000:.2f} / {used / tree.files * 1000:.3f})" for p, used in cpu.items()
        )
        peak = ", ".join(f"{p} {max(r.peak_mib[p] for r in same):.0f}" for p in cpu)
        asked = ", ".join(f"{kind} {count}" for kind, count in sorted(same[-1].requests.items()))
        rows.append(
            f"| {name} | {version} | {case} | {seconds:.2f} | {tree.megabytes / seconds:.1f} | {tree.files / seconds:.1f} "
            f"| {yardstick / seconds:.2f} | {spent} | {peak} | {asked} |"
        )
    return "\n".join(rows)


def write_table(path: Path, text: str) -> None:
    """Replaces what stands between the two comments."""
    begin, end = "<!-- bench.transfer -->", "<!-- /bench.transfer -->"
    before, _, rest = path.read_text().partition(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", nargs="+", choices=list(TREES), default=list(TREES))
    parser.add_argument("--version", nargs="+", default=["1.19.2"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", nargs="+", choices=["file", "weed"], default=["file", "weed"])
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, help="put the table into this Markdown file, between its two `bench.transfer` comments")
    parser.add_argument("--json", type=Path, help="also write every single measurement here")
    args = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="stnode-bench-", dir=args.scratch))
    try:
        results = asyncio.run(run(args, base))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(table(results))
    if args.out:
        write_table(args.out, table(results))
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
