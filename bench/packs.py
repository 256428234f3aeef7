"""What packs cost: CPU of sealing beyond the write itself, CPU of reading from memory, CPU of looking for known blocks.

python -m bench.packs [directory]
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from stnode.clock import Env, system_env
from stnode.db import Database
from stnode.objectstore.base import Key, Mode
from stnode.objectstore.localdir import LocalDirStore
from tests.support.packs import World, a_file

TARGET = 32 << 20
ROUNDS = 8


def process_cpu_s() -> float:
    """CPU of all threads so far."""
    return time.process_time()


async def sealing(env: Env, root: Path, block_size: int) -> None:
    """A 32 MiB pack against a plain put of the same bytes in the same pieces."""
    count = TARGET // block_size
    world = World(env, store=LocalDirStore(root / "store", env), db=Database(root / f"db{block_size}"))
    async with world:
        blocks = [memoryview(bytearray(os.urandom(block_size))) for _ in range(count)]
        hashes = [hashlib.sha256(block).digest() for block in blocks]
        best = {"seal": (9.9, 9.9), "put": (9.9, 9.9), "add": (9.9, 9.9)}
        for number in range(ROUNDS):
            wall, cpu = time.perf_counter(), process_cpu_s()
            pack = world.packer.begin(1, stream=True)
            for at, (block, name) in enumerate(zip(blocks, hashes, strict=True)):
                pack.add((1 if block_size > 1 << 18 else at, at), block, name)
            best["add"] = min(best["add"], (process_cpu_s() - cpu, time.perf_counter() - wall))
            wall, cpu = time.perf_counter(), process_cpu_s()
            await world.packer.seal(pack)
            best["seal"] = min(best["seal"], (process_cpu_s() - cpu, time.perf_counter() - wall))
            wall, cpu = time.perf_counter(), process_cpu_s()
            await world.store.inner.put(Key(f"plain/{block_size}/{number}"), blocks, Mode.CREATE)
            best["put"] = min(best["put"], (process_cpu_s() - cpu, time.perf_counter() - wall))
        print(
            f"32 MiB of {block_size >> 10} KiB blocks ({count}):",
            *(f"{what} {c * 1e3:.1f} ms CPU {w * 1e3:.1f} ms wall;" for what, (c, w) in best.items()),
        )
        await world.store.inner.close()


async def reading(env: Env, root: Path, block_size: int, total: int) -> None:
    """Sequential requests of single blocks, as a peer's."""
    world = World(env, store=LocalDirStore(root / "read", env), db=Database(root / f"dbr{block_size}"))
    async with world:
        count = TARGET // block_size
        handles = [await world.sealed([os.urandom(block_size) for _ in range(count)]) for _ in range(0, total, TARGET)]
        world.store.gets.clear()
        wall, cpu, hits, requests = time.perf_counter(), process_cpu_s(), 0, 0
        for handle in handles:
            for place in range(count):
                requests += 1
                if world.reader.cached(handle, place) is None:
                    await world.reader.blocks(handle, place, 1)
                else:
                    hits += 1
        cold = process_cpu_s() - cpu, time.perf_counter() - wall
        handle = handles[-1]
        places = [place for place in range(count) if world.reader.cached(handle, place) is not None]
        wall = time.perf_counter()
        for place in places:
            world.reader.cached(handle, place)
        hot = (time.perf_counter() - wall) / len(places)
        print(
            f"{requests} requests of {block_size >> 10} KiB: {len(world.store.gets)} GETs, {hits} hits, "
            f"{cold[0] / requests * 1e6:.1f} µs CPU each with reading and SHA-256, {cold[0] / total * 1e9:.2f} s/GB; from memory {hot * 1e6:.2f} µs"
        )
        await world.store.inner.close()


async def finding(env: Env, root: Path) -> None:
    """10,000 small files against an index of 200,000."""
    async with World(env, db=Database(root / "dbd")) as world:
        for first in range(0, 200_000, 10_000):
            await world.sealed(*([f"{first + at}".encode()] for at in range(10_000)))
        missing = [a_file(f"new{at}", [f"new {at}".encode()]) for at in range(10_000)]
        present = [a_file(f"copy{at}", [f"{at * 20}".encode()]) for at in range(10_000)]
        for what, infos in (("missing", missing), ("present", present)):
            cpu, wall = process_cpu_s(), time.perf_counter()
            found = await world.dedupe.find(1, infos)
            print(
                f"find 10,000 small files, {what}: {sum(map(bool, found))} found, "
                f"{(process_cpu_s() - cpu) * 100:.1f} µs CPU, {(time.perf_counter() - wall) * 100:.1f} µs wall each"
            )


async def main() -> None:
    root = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    env = system_env()
    try:
        for block_size in (1 << 20, 128 << 10, 10 << 10):
            await sealing(env, root, block_size)
        await reading(env, root, 10 << 10, 200 << 20)
        await reading(env, root, 128 << 10, 512 << 20)
        await finding(env, root)
    finally:
        env.close()
        shutil.rmtree(root)


asyncio.run(main())
