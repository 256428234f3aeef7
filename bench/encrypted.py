"""Untrusted devices side by side, in one run, in turns: who takes an encrypted folder from a trusted Syncthing how fast and at what cost.

(s) Syncthing, folder of the type receiveencrypted, on local disk; (n) stnode, the same type, on the embedded store `file://`. The sender is in both
cases a trusted Syncthing that has the tree, scanned. Time runs from the moment at which connected devices begin to share the folder until the sender
says that the receiver has everything. The order changes from round to round.

    python -m bench.encrypted [--quick] [--tree 1x1GiB ...] [--version 1.19.2] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench.transfer import FOLDER, Meter, Result, line, scanned_sender, scratch, until_complete
from bench.trees import LARGE, MEDIUM, Tree
from tests.support.nodes import StnodeProcess
from tests.support.syncthing import OLD, SyncthingProcess

PASSWORD = "only for this measurement"
SYNCTHING, STNODE = "s: -> syncthing", "n: -> stnode"
FULL = (LARGE, MEDIUM, Tree("10000x10KiB", 10_000, 10 << 10))
QUICK = (Tree("1x256MiB", 1, 256 << 20), Tree("200x1MiB", 200, 1 << 20), Tree("2000x10KiB", 2000, 10 << 10))
TREES = {tree.name: tree for tree in (*FULL, *QUICK)}


async def to_syncthing(root: Path, version: str, tree: Tree, data: Path) -> Result:
    """Case (s)."""
    sender = await scanned_sender(root, version, data)
    receiver = SyncthingProcess(root / "receiver", version, name="receiver")
    try:
        await receiver.start()
        await sender.add_device(receiver.device_id, receiver.address)
        await receiver.add_device(sender.device_id, sender.address)
        await receiver.add_folder(FOLDER, root / "received", [sender.device_id], "receiveencrypted")
        await sender.wait_connected(receiver.device_id)
        meter = Meter(sender=sender.pid, receiver=receiver.pid)
        await sender.add_folder(FOLDER, data, [receiver.device_id], passwords={receiver.device_id: PASSWORD})
        await until_complete(sender, receiver.device_id)
        return meter.stop(SYNCTHING, version, tree)
    finally:
        await sender.kill()
        await receiver.kill()


async def to_stnode(root: Path, version: str, tree: Tree, data: Path) -> Result:
    """Case (n)."""
    node = StnodeProcess(root / "node", f"file://{root}/store")
    sender = await scanned_sender(root, version, data)
    try:
        node.cli("device", "add", sender.device_id, "--name", sender.name, "--address", sender.address)
        node.cli("folder", "add", FOLDER, "--type", "receiveencrypted", "--device", sender.device_id)
        node.start()
        await sender.add_device(node.device_id, node.address)
        await sender.wait_connected(node.device_id)
        meter = Meter(sender=sender.pid, receiver=node.pid)
        await sender.add_folder(FOLDER, data, [node.device_id], passwords={node.device_id: PASSWORD})
        await until_complete(sender, node.device_id)
        return meter.stop(STNODE, version, tree)
    finally:
        await sender.kill()
        node.kill()


async def run(args: argparse.Namespace, base: Path) -> list[Result]:
    """All trees, round by round."""
    results: list[Result] = []
    for tree in (TREES[name] for name in args.tree):
        data = tree.make(base / "trees")
        for number in range(args.rounds):
            for case in (to_syncthing, to_stnode) if number % 2 == 0 else (to_stnode, to_syncthing):
                with scratch(base) as root:
                    results.append(await case(root, args.version, tree, data))
                print(f"round {number + 1}  {line(results[-1], tree)}", flush=True)
        shutil.rmtree(data)
    return results


def table(results: list[Result]) -> str:
    """Medians as Markdown; the rate as a share of Syncthing's in the same rounds, CPU per GB of the receiver and of the sender."""
    rows = [
        "| tree | receiver | s | MB/s | files/s | rate : Syncthing's | receiver CPU s/GB | sender CPU s/GB | receiver peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in dict.fromkeys((r.tree, r.case) for r in results):
        tree = TREES[name]
        same = [r for r in results if (r.tree, r.case) == (name, case)]
        seconds = statistics.median(r.seconds for r in same)
        yardstick = statistics.median(r.seconds for r in results if (r.tree, r.case) == (name, SYNCTHING))
        cpu = {process: statistics.median(r.cpu[process] for r in same) / tree.megabytes * 1000 for process in ("receiver", "sender")}
        rows.append(
            f"| {name} | {case.removeprefix('s: -> ').removeprefix('n: -> ')} | {seconds:.2f} | {tree.megabytes / seconds:.1f} "
            f"| {tree.files / seconds:.1f} | {yardstick / seconds:.2f} | {cpu['receiver']:.2f} | {cpu['sender']:.2f} "
            f"| {max(r.peak_mib['receiver'] for r in same):.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the size, a fifth of the files")
    parser.add_argument("--tree", nargs="+", choices=list(TREES))
    parser.add_argument("--version", default=OLD)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, help="also write every single measurement here")
    args = parser.parse_args()
    args.tree = args.tree or [tree.name for tree in (QUICK if args.quick else FULL)]
    base = Path(tempfile.mkdtemp(prefix="stnode-bench-", dir=args.scratch))
    try:
        results = asyncio.run(run(args, base))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1))


if __name__ == "__main__":
    main()
