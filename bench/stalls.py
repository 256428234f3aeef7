"""How long a real node's event loop is held while an index of many files is committed in full groups, and by what.

The node is the real daemon; it is started through this module, which times each callback of its loop from outside and writes the longest
of them when it ends. Wall time is what a peer would notice; CPU time, that of the loop's own thread, is what the callback would take on a
quiet core. The rest is waiting for the interpreter, while other threads hold it, or for a processor. A garbage collection stops all
threads and counts to whoever caused it; the longest ones are listed by generation.

    python -m bench.stalls [--files 100000] [--over-ms 20]
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from asyncio.events import Handle
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import stnode.net.tcp  # noqa: F401 - registers tcp://
from bench.index import FOLDER, FakePeer, encoded_files, report, wait_for
from stnode.clock import Env, system_env
from stnode.net import base as net
from stnode.net import identity
from stnode.protocol import deviceid
from tests.support import nodes

REPORT = "STNODE_BENCH_STALLS"


@dataclass(slots=True)
class Held:
    """How often a kind of callback held the loop for longer than 5 ms; the longest times in ms, `collecting` within the longest CPU time."""

    count: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    collecting: float = 0.0


@dataclass(slots=True)
class Watch:
    """Times every callback of this process's loops, and every garbage collection."""

    kinds: dict[str, Held] = field(default_factory=lambda: defaultdict(Held))
    collecting_s: float = 0.0
    collections: dict[int, list[float]] = field(default_factory=lambda: {0: [], 1: [], 2: []})
    _began: float = 0.0

    def begin(self) -> None:
        run = Handle._run  # noqa: SLF001 - the one place through which every callback goes

        def timed(handle: Handle) -> None:
            wall, cpu, collecting = time.perf_counter(), time.thread_time(), self.collecting_s
            run(handle)
            wall = time.perf_counter() - wall
            if wall > 0.005:
                cpu = (time.thread_time() - cpu) * 1000
                held = self.kinds[_name(handle)]
                held.count += 1
                held.wall = max(held.wall, wall * 1000)
                if cpu > held.cpu:
                    held.cpu, held.collecting = cpu, (self.collecting_s - collecting) * 1000

        Handle._run = timed  # type: ignore[assignment]  # noqa: SLF001
        gc.callbacks.append(self._collected)

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            took = time.thread_time() - self._began
            self.collecting_s += took
            self.collections[info["generation"]].append(took * 1000)

    def write(self, path: Path) -> None:
        """What was seen, for the process that started this one."""
        rows = {name: (held.count, held.wall, held.cpu, held.collecting) for name, held in self.kinds.items()}
        path.write_text(json.dumps({"callbacks": rows, "collections": self.collections}))


def _name(handle: Handle) -> str:
    """The coroutine of the task whose step this is, else the callback."""
    callback = handle._callback  # type: ignore[attr-defined]  # noqa: SLF001
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        return task.get_name().rstrip("0123456789-") + " " + getattr(task.get_coro(), "__qualname__", "?")
    return getattr(callback, "__qualname__", None) or type(callback).__name__


def node() -> None:
    """The daemon, watched."""
    from stnode.daemon import main as stnode

    watch = Watch()
    watch.begin()
    atexit.register(watch.write, Path(os.environ[REPORT]))
    stnode()


async def measure(env: Env, root: Path, count: int, over_ms: float) -> None:
    """One run: the index in, all of it committed and announced back, the node stopped in order."""
    own = identity.generate(env.clock)
    path = root / "stalls.json"
    process = nodes.StnodeProcess(root / "node", f"file://{root}/store", {REPORT: str(path)})
    process.cli("device", "add", deviceid.format(own.device_id), "--name", "fake")
    process.cli("folder", "add", FOLDER, "--device", "fake")
    files = encoded_files(count)
    usual, nodes.STNODE = nodes.STNODE, [sys.executable, "-m", "bench.stalls", "--node"]
    process.start()
    nodes.STNODE = usual
    device = deviceid.parse(process.device_id)
    peer = FakePeer(own, device, files)
    begin = time.monotonic()
    link = await net.dial(env, process.address, own, device, lambda *_: peer)
    report("committed", count, await wait_for(process, count, True, begin), process, 0.0)
    while peer.announced < count:
        await asyncio.sleep(0.2)
    link.close()
    process.stop()
    found = json.loads(path.read_text())
    print(f"{'callback':50} over 5 ms  longest   by CPU  collecting in it")
    for name, (held, wall, cpu, collecting) in sorted(found["callbacks"].items(), key=lambda row: -row[1][2]):
        if cpu >= over_ms:
            print(f"{name[:50]:50} {held:9} {wall:5.0f} ms {cpu:5.0f} ms {collecting:14.0f} ms")
    for generation, took in found["collections"].items():
        print(f"garbage collections of generation {generation}: {len(took)}, the longest {max(took, default=0):.0f} ms of CPU")


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["--node"]:
        del sys.argv[1]
        node()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--over-ms", type=float, default=10.0)
    args = parser.parse_args()
    env = system_env()
    root = Path(tempfile.mkdtemp(prefix="stnode-bench-"))
    try:
        asyncio.run(measure(env, root, args.files, args.over_ms))
    finally:
        env.close()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
