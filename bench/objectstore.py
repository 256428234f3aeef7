"""What object stores cost: CPU seconds per GB of packs written and ranges read, milliseconds per small request.

`python -m bench.objectstore [localdir] [moto] [seaweedfs] [memory] [--directory DIR]`; without names: localdir and seaweedfs. CPU is
this process's, user and system; the server's stands apart. The best of some rounds counts: the machine has other work.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from stnode.clock import system_env
from stnode.objectstore.base import Exists, Key, Mode, ObjectStore
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import open_store
from tests.support import s3servers
from tests.support.processes import usage

PACK_BYTES = 32 << 20
RANGE_BYTES = 8 << 20
BLOCK_BYTES = 128 << 10
ROUNDS = 5
PACKS = 4
SMALL = 200


def cpu_seconds() -> float:
    """User and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def best(label: str, unit: str, per: float, work: Callable[[], Awaitable[object]]) -> None:
    """Runs the work some rounds; prints CPU and wall time divided by `per`."""
    figures = []
    for _ in range(ROUNDS):
        cpu, wall = cpu_seconds(), time.perf_counter()
        await work()
        figures.append(((cpu_seconds() - cpu) / per, (time.perf_counter() - wall) / per))
    print(f"  {label:34} CPU {min(f[0] for f in figures):7.3f} {unit}   wall {min(f[1] for f in figures):7.3f} {unit}")


async def large(store: ObjectStore) -> None:
    """Packs of 128 KiB blocks written as they are, and read by ranges."""
    pack = [memoryview(os.urandom(BLOCK_BYTES)) for _ in range(PACK_BYTES // BLOCK_BYTES)]
    gigabytes = PACKS * PACK_BYTES / 1e9

    async def put() -> None:
        for number in range(PACKS):
            await store.put(Key(f"packs/{number}"), pack)

    async def get() -> None:
        for number in range(PACKS):
            for start in range(0, PACK_BYTES, RANGE_BYTES):
                await store.get(Key(f"packs/{number}"), start, RANGE_BYTES)

    async def both() -> None:
        await asyncio.gather(*(store.put(Key(f"packs/{number}"), pack) for number in range(PACKS)))

    await best("put 32 MiB packs", "s/GB", gigabytes, put)
    await best("put 32 MiB packs, four at once", "s/GB", gigabytes, both)
    await best("get 8 MiB ranges", "s/GB", gigabytes, get)


async def small(store: ObjectStore) -> None:
    """Requests of 3,000 bytes, one after the other."""
    number = 0

    async def create() -> None:
        nonlocal number
        for _ in range(SMALL):
            number += 1
            await store.put(Key(f"journal/{number:08d}"), [bytes(3000)], Mode.CREATE)

    async def lost() -> None:
        for _ in range(SMALL):
            try:
                await store.put(Key("journal/00000001"), [bytes(3000)], Mode.CREATE)
            except Exists:
                continue

    async def overwrite() -> None:
        for _ in range(SMALL):
            await store.put(Key("heartbeat"), [bytes(3000)])

    async def get() -> None:
        for _ in range(SMALL):
            await store.get(Key("heartbeat"))

    async def head() -> None:
        for _ in range(SMALL):
            await store.head(Key("heartbeat"))

    async def listing() -> None:
        async for _ in store.list("journal/"):
            pass

    unit, per = "ms", SMALL / 1000
    for label, work in (("create", create), ("lost create", lost), ("overwrite", overwrite), ("get", get), ("head", head)):
        await best(f"{label} 3 kB", unit, per, work)
    await best("list a page of 1,000", unit, 1 / 1000, listing)


async def measure(url: str, options: StoreOptions) -> None:
    """All figures of one store."""
    env = system_env()
    store = open_store(url, options, env)
    await small(store)
    await large(store)
    await store.close()
    env.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stores", nargs="*", default=["localdir", "seaweedfs"], choices=["memory", "localdir", "moto", "seaweedfs"])
    parser.add_argument("--directory", type=Path, help="where the local directory is made")
    arguments = parser.parse_args()
    for name in arguments.stores:
        print(name, flush=True)
        with ExitStack() as held:
            if name in ("moto", "seaweedfs"):
                server = held.enter_context(getattr(s3servers, name)())
                before = usage(server.pid).cpu_s
                asyncio.run(measure(server.url("bench"), server.options))
                print(f"  the server used {usage(server.pid).cpu_s - before:.1f} CPU s")
            elif name == "localdir":
                directory = held.enter_context(tempfile.TemporaryDirectory(dir=arguments.directory))
                asyncio.run(measure(Path(directory).as_uri(), StoreOptions()))
            else:
                asyncio.run(measure("memory://", StoreOptions()))


if __name__ == "__main__":
    main()
