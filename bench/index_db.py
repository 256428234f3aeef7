"""Speed of the remote index in the database's thread: files per second of CPU (other work on the machine disturbs less) and memory, for a new folder, one that is equal to ours,
and committing what was pulled. Run: python -m bench.index_db [files] [--random]"""

from __future__ import annotations

import asyncio
import random
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from stnode.db import Database
from stnode.folder import index
from stnode.protocol import fileinfo, vector
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.repo.settings import FolderSettings
from stnode.repo.state_schema import LAYER, STEPS

SETTINGS = FolderSettings("bench", "aaaaaaaa", 1)
BATCH = 1000


def names(count: int, order: str) -> list[str]:
    found = [f"dir{i // 1000:04d}/sub{i // 50 % 20:02d}/file-{i:07d}.dat" for i in range(count)]
    if order == "random":
        random.Random(1).shuffle(found)
    return found


def batches(all_names: list[str]) -> Iterator[list[FileInfo]]:
    for start in range(0, len(all_names), BATCH):
        yield [
            fileinfo.new(
                name=name,
                type=FileType.FILE,
                version=((1 << 60, 1_700_000_000 + start),),
                modified_by=1 << 60,
                size=1000,
                permissions=0o644,
                modified_s=1_700_000_000,
                block_hashes=start.to_bytes(32, "big"),
                sequence=start + at + 1,
            )
            for at, name in enumerate(all_names[start : start + BATCH])
        ]


def memory_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


def insert_records(conn: sqlite3.Connection, rows: Sequence[tuple[object, ...]]) -> None:
    conn.executemany("INSERT OR REPLACE INTO records VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)


async def main(count: int, order: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "db"
        db = Database(path)
        await db.migrate(LAYER, STEPS)
        await index.migrate(db)
        all_names = names(count, order)
        dev, other, third = await db.write(lambda conn: [index.device_number(conn, bytes([number]) * 32) for number in range(3)])

        async def load(what: str, dev: int) -> None:
            spent = most = 0.0
            full = True
            for files in batches(all_names):
                began = time.process_time()
                await db.write(partial(index.apply_index, fid=1, dev=dev, files=files, full=full, settings=SETTINGS))
                took = time.process_time() - began
                spent, most, full = spent + took, max(most, took), False
            report(what, spent, most)

        def report(what: str, spent: float, most: float) -> None:
            size = (path.stat().st_size + path.with_name("db-wal").stat().st_size) / count
            print(
                f"{what:34} {count / spent:10.0f} files/s  longest {most * 1000:5.0f} ms  RSS {memory_mib():5.0f} MiB  {size:4.0f} B/file",
                flush=True,
            )

        print(f"{count} files, {order} order, RSS {memory_mib():.0f} MiB before")
        await load("first index, empty folder", dev)
        await load("second device, same files", other)

        spent = most = 0.0
        for start in range(0, count, BATCH):
            part = all_names[start : start + BATCH]
            infos = await db.run(partial(index.needed_info, fid=1, names=part))
            rows = [
                (1, name, start + at + 1, 0, 0, 0, 0, 1000, vector.to_wire(infos[name].version), infos[name].wire, b"\x02\x00\x01")
                for at, name in enumerate(part)
            ]
            await db.write(partial(insert_records, rows=rows))
            began = time.process_time()
            await db.write(partial(index.recheck, fid=1, names=part, settings=SETTINGS))
            took = time.process_time() - began
            spent, most = spent + took, max(most, took)
        report("recheck after commits", spent, most)
        await load("third device, equal to ours", third)
        began = time.process_time()
        await db.write(lambda conn: index.evaluate_all(conn, 1, SETTINGS))
        report("evaluate all (new patterns)", time.process_time() - began, 0)
        began = time.process_time()
        await db.write(lambda conn: index.drop_device(conn, other))
        report("drop device", time.process_time() - began, 0)
        await db.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, "random" if "--random" in sys.argv else "sorted"))
