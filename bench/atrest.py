"""What encryption at rest costs: the same object store plain and encrypted, and the same node, side by side in one run.

    python -m bench.atrest [--rounds 5] [--node] [--tree 1x1GiB] [--directory DIR]

First the wrapper alone: packs written and ranges read, in memory and in a directory, GB/s and CPU s/GB of this process, plain and encrypted in
turns. With --node: Syncthing -> stnode -> fresh Syncthing on `file://` as `bench.transfer` does it, plain and encrypted in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.objectstore import BLOCK_BYTES, PACK_BYTES, RANGE_BYTES, cpu_seconds
from bench.transfer import Result, line, scratch, through_stnode
from bench.trees import TREES
from stnode.clock import Env, system_env
from stnode.memory import keep_freed_memory
from stnode.objectstore.base import Key, ObjectStore
from stnode.objectstore.encrypted import Encrypted
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import open_store
from stnode.objectstore.sealing import StoreKeys, scrypt
from stnode.repo import layout
from stnode.repo.keyslots import Cost
from tests.support.syncthing import NEW

PACKS = 8
SMALL = 1000
PASSPHRASE = {"STNODE_STORE_PASSPHRASE": "only for this measurement"}


class LongestHold:
    """The longest time for which the loop could not run."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.seconds = max(self.seconds, time.perf_counter() - before - 0.001)

    def stop(self) -> float:
        """Ends the watch; seconds."""
        self._task.cancel()
        return self.seconds


async def measured(work: Callable[[], Awaitable[object]], gigabytes: float) -> tuple[float, float, float]:
    """(GB/s, CPU s/GB, longest hold of the loop in ms) of one round."""
    hold, cpu, wall = LongestHold(), cpu_seconds(), time.perf_counter()
    await work()
    seconds = time.perf_counter() - wall
    return gigabytes / seconds, (cpu_seconds() - cpu) / gigabytes, hold.stop() * 1000


async def wrapper(url: str, env: Env, rounds: int) -> None:
    """All figures of one backend."""
    bare = open_store(url, StoreOptions(), env)
    stores: dict[str, ObjectStore] = {"plain": bare, "encrypted": Encrypted(bare, env, StoreKeys(os.urandom(32)), layout.SECRECY)}
    pack = [memoryview(os.urandom(BLOCK_BYTES)) for _ in range(PACK_BYTES // BLOCK_BYTES)]
    figures: dict[tuple[str, str], list[tuple[float, float, float]]] = {}

    for _ in range(rounds):
        for name, store in stores.items():
            keys = [Key(f"packs/bench-{name}/{number:02x}/{number:034x}") for number in range(PACKS)]

            async def put(store: ObjectStore = store, keys: list[Key] = keys) -> None:
                for key in keys:
                    await store.put(key, pack)

            async def at_once(store: ObjectStore = store, keys: list[Key] = keys) -> None:
                await asyncio.gather(*(store.put(key, pack) for key in keys))

            async def get(store: ObjectStore = store, keys: list[Key] = keys, length: int = RANGE_BYTES) -> None:
                for key in keys:
                    for start in range(0, PACK_BYTES, length):
                        await store.get(key, start, length)

            async def blocks(read: Callable[..., Awaitable[None]] = get) -> None:
                await read(length=BLOCK_BYTES)

            async def small(store: ObjectStore = store, name: str = name) -> None:
                for number in range(SMALL):
                    await store.put(Key(f"journal/{name}/{number:020d}"), [bytes(3000)])
                    await store.get(Key(f"journal/{name}/{number:020d}"))

            gigabytes = PACKS * PACK_BYTES / 1e9
            for case, work, size in (
                ("put 32 MiB packs", put, gigabytes),
                ("put 32 MiB packs, eight at once", at_once, gigabytes),
                ("get 8 MiB ranges", get, gigabytes),
                ("get 128 KiB ranges", blocks, gigabytes),
                ("put and get 3 kB", small, SMALL * 6000 / 1e9),
            ):
                figures.setdefault((case, name), []).append(await measured(work, size))
    for (case, name), found in figures.items():
        rate, cpu, hold = statistics.median(f[0] for f in found), min(f[1] for f in found), max(f[2] for f in found)
        print(f"  {case:32} {name:9} {rate:6.2f} GB/s   CPU {cpu:7.3f} s/GB   loop held at most {hold:5.1f} ms", flush=True)
    await bare.close()


async def nodes(directory: Path, tree_name: str, rounds: int) -> None:
    """A whole node, plain and encrypted in turns."""
    tree = TREES[tree_name]
    data = tree.make(directory / "trees")
    results: dict[tuple[str, str], list[Result]] = {}
    for number in range(rounds):
        for name, environment in (("plain", {}), ("encrypted", PASSPHRASE)):
            with scratch(directory) as root:
                for result in await through_stnode(root, NEW, tree, data, "file", None, environment):
                    print(f"round {number + 1}  {name:9}  {line(result, tree)}", flush=True)
                    results.setdefault((result.case, name), []).append(result)
    for (case, name), found in results.items():
        seconds = statistics.median(r.seconds for r in found)
        cpu = statistics.median(r.cpu["stnode"] for r in found)
        peak = statistics.median(r.peak_mib["stnode"] for r in found)
        gigabytes = tree.megabytes / 1000
        print(f"  {case:32} {name:9} {tree.megabytes / seconds:7.1f} MB/s   CPU {cpu / gigabytes:6.2f} s/GB   peak {peak:.0f} MiB")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--node", action="store_true", help="also a whole node")
    parser.add_argument("--tree", default="1x1GiB", choices=sorted(TREES))
    parser.add_argument("--directory", type=Path, help="where stores and trees are made")
    arguments = parser.parse_args()
    keep_freed_memory()
    env = system_env()
    started, cost = time.perf_counter(), Cost()
    scrypt(b"passphrase", bytes(16), cost.n, cost.r, cost.p)
    print(f"scrypt once: {time.perf_counter() - started:.2f} s")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        for name, url in (("memory", "memory://"), ("directory", Path(directory, "store").as_uri())):
            print(name, flush=True)
            asyncio.run(wrapper(url, env, arguments.rounds))
        env.close()
        if arguments.node:
            print("node", flush=True)
            asyncio.run(nodes(Path(directory), arguments.tree, arguments.rounds))


if __name__ == "__main__":
    main()
