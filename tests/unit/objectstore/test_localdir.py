"""The directory backend where the conformance suite cannot look: crashes, full disks, lost mounts, leftovers."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from stnode.clock import Env, system_env
from stnode.errors import Full, NotFound, Refused, Unavailable, UnknownOutcome
from stnode.objectstore.base import Exists, Key, Mode
from stnode.objectstore.localdir import LocalDirStore

WRITER = """
import asyncio, sys
from stnode.clock import system_env
from stnode.objectstore.base import Key, Mode
from stnode.objectstore.localdir import LocalDirStore

async def main():
    store = LocalDirStore(sys.argv[1], system_env())
    number = 0
    while True:
        mode = Mode.CREATE if number % 2 else Mode.OVERWRITE
        key = f"j/{number}" if number % 2 else "j/head"
        await store.put(Key(key), [b"%08d" % number * 10] * int(sys.argv[2]), mode)
        print(key, number, flush=True)
        number += 1

asyncio.run(main())
"""


@pytest.fixture
def env() -> Iterator[Env]:
    env = system_env()
    yield env
    env.close()


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != "~lock")


def write_and_kill(root: Path, lines: int, repeats: int) -> list[list[str]]:
    """Lets a process write until it has told of so many objects, kills it, and gives all that it told: key and number."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(root), str(repeats)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline().split() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    told += [line.split() for line in process.stdout.read().splitlines() if len(line.split()) == 2]
    process.wait()
    process.stdout.close()
    return told


@pytest.mark.parametrize(("lines", "repeats"), [(1, 2000), (7, 2000), (40, 2000), (1, 50_001), (5, 50_001), (12, 50_001)])
async def test_killed_while_writing(tmp_path: Path, env: Env, lines: int, repeats: int) -> None:
    """What was told is there and whole; nothing else is in part; the next writer clears what was left. Small and large (direct) objects."""
    told = await env.threads.run(write_and_kill, tmp_path, lines, repeats)
    store = LocalDirStore(tmp_path, env)
    for key, number in told:
        if key != "j/head":
            assert (await store.get(Key(key))).data == b"%08d" % int(number) * 10 * repeats
    async for meta in store.list(""):
        data = (await store.get(meta.key)).data
        assert data == data[:8] * 10 * repeats
    await store.put(Key("after"), [b"x"])
    assert not [name for name in files_below(tmp_path) if name.startswith("~tmp") and not name.endswith(".lock")]
    await store.close()
    assert [name for name in files_below(tmp_path) if name.startswith("~tmp")] == []


async def test_a_living_neighbours_temporary_files_stay(tmp_path: Path, env: Env) -> None:
    first, second = LocalDirStore(tmp_path, env), LocalDirStore(tmp_path, env)
    await first.put(Key("a"), [b"x"])
    (lock,) = (tmp_path / "~tmp").iterdir()
    busy = lock.with_name(lock.name.removesuffix(".lock") + "-ff")
    stale = lock.with_name("dead-1")
    busy.write_bytes(b"being written")
    stale.write_bytes(b"left")
    await second.put(Key("b"), [b"x"])
    assert (busy.exists(), stale.exists()) == (True, False)
    await first.close()
    await second.close()


def failing(number: int) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("call", "number", "kind"),
    [
        ("writev", errno.ENOSPC, Full),
        ("fsync", errno.EDQUOT, Full),
        ("fsync", errno.EIO, Unavailable),
        ("open", errno.EACCES, Refused),
        ("open", errno.EROFS, Refused),
        ("link", errno.EPERM, Refused),
        ("link", errno.EOPNOTSUPP, Refused),
    ],
)
async def test_errors_of_the_disk(
    tmp_path: Path, env: Env, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[Exception]
) -> None:
    store = LocalDirStore(tmp_path, env)
    await store.put(Key("before"), [b"x"])
    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing(number))
        with pytest.raises(kind, match=str(tmp_path)) as raised:
            await store.put(Key("d/new"), [b"y"], Mode.CREATE)
        assert type(raised.value) is kind
        assert kind is Unavailable or raised.value.hint  # type: ignore[attr-defined]
    assert [name for name in files_below(tmp_path) if not name.endswith(".lock")] == ["before"]
    await store.put(Key("d/new"), [b"y"], Mode.CREATE)
    await store.close()


async def test_a_name_that_may_not_be_durable_is_unknown(tmp_path: Path, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalDirStore(tmp_path, env)
    await store.put(Key("before"), [b"x"])
    real = os.fsync

    def only_files(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112 a descriptor's path
            raise OSError(errno.EIO, "I/O error")
        real(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", only_files)
        with pytest.raises(UnknownOutcome):
            await store.put(Key("new"), [b"y"], Mode.CREATE)
    with pytest.raises(Exists):
        await store.put(Key("new"), [b"y"], Mode.CREATE)
    await store.close()


async def test_short_writes_are_continued(tmp_path: Path, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev

    def short(fd: int, buffers: Sequence[memoryview]) -> int:
        first = memoryview(buffers[0])
        return real(fd, [first[: max(1, len(first) // 3)]]) if len(buffers) % 2 else real(fd, buffers)

    monkeypatch.setattr(os, "writev", short)
    store = LocalDirStore(tmp_path, env)
    parts = [os.urandom(size) for size in (1, 0, 1000, 7, 40_000)] * 600
    await store.put(Key("short"), parts)
    assert (await store.get(Key("short"))).data == b"".join(parts)
    await store.close()


async def test_a_lost_mount_is_not_an_empty_store(tmp_path: Path, env: Env) -> None:
    root = tmp_path / "mounted"
    store = LocalDirStore(root, env)
    await store.put(Key("a"), [b"x"])
    root.rename(tmp_path / "away")
    for again in range(2):
        with pytest.raises(Unavailable, match="is gone") as raised:
            await store.get(Key("a"))
        assert "Mount" in raised.value.hint
        with pytest.raises(Unavailable):
            await store.put(Key("b"), [b"x"])
        with pytest.raises(Unavailable):
            _ = [meta async for meta in store.list("")]
        if not again:
            root.mkdir()
    assert list(root.iterdir()) == []
    root.rmdir()
    (tmp_path / "away").rename(root)
    assert (await store.get(Key("a"))).data == b"x"
    await store.close()


async def test_reading_a_store_that_is_not_there_makes_it(tmp_path: Path, env: Env) -> None:
    store = LocalDirStore(tmp_path / "a" / "b", env)
    with pytest.raises(NotFound):
        await store.get(Key("x"))
    assert [meta async for meta in store.list("")] == []
    await store.close()


async def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path: Path, env: Env) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = LocalDirStore(tmp_path / "file", env)
    with pytest.raises(Refused, match="file"):
        await store.put(Key("a"), [b"x"])
    await store.close()


async def test_etags_differ_though_size_and_moment_are_equal(tmp_path: Path, env: Env) -> None:
    store = LocalDirStore(tmp_path, env)
    etags = {(await store.put(Key("a"), [b"%d" % (number % 10)])).etag for number in range(200)}
    assert len(etags) == 200
    await store.close()


async def test_two_stores_on_one_directory_share_it(tmp_path: Path, env: Env) -> None:
    stores = [LocalDirStore(tmp_path, env) for _ in range(4)]

    async def create(store: LocalDirStore, number: int) -> bool:
        try:
            await store.put(Key(f"deep/{number}/x"), [b"x"], Mode.CREATE)
        except Exists:
            return False
        return True

    for number in range(20):
        assert sum(await asyncio.gather(*(create(store, number) for store in stores))) == 1
    for store in stores:
        await store.close()


async def test_foreign_files_are_not_listed(tmp_path: Path, env: Env) -> None:
    store = LocalDirStore(tmp_path, env)
    await store.put(Key("dir/a"), [b"x"])
    for name in ("lost+found", "README.txt", ".DS_Store", "dir/B", "dir/~x"):
        (tmp_path / name).write_bytes(b"foreign")
    assert [meta.key async for meta in store.list("")] == ["dir/a"]
    await store.close()
