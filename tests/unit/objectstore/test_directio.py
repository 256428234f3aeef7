"""Reads and writes past the page cache: sizes around the borders, file systems that refuse, full disks."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stnode.clock import Env, system_env
from stnode.errors import Full, Unavailable
from stnode.objectstore.base import Key
from stnode.objectstore.directio import BLOCK_BYTES, STAGING_BYTES, DirectIO
from stnode.objectstore.localdir import LocalDirStore
from stnode.objectstore.localfiles import DIRECT_OBJECT_BYTES, DIRECT_RANGE_BYTES, read_range

SECTOR = 512
STAGING = 2 * BLOCK_BYTES
BORDERS = [SECTOR, 2 * SECTOR, 3 * SECTOR, BLOCK_BYTES, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES, 8 * BLOCK_BYTES]
SIZES = [1, *(border + more for border in BORDERS for more in (-1, 0, 1))]
LARGE_SIZES = [border + more for border in (DIRECT_OBJECT_BYTES, STAGING_BYTES, 2 * STAGING_BYTES) for more in (-1, 0, 1)]
LARGE = DIRECT_OBJECT_BYTES + 12345


@pytest.fixture
def env() -> Iterator[Env]:
    env = system_env()
    yield env
    env.close()


@pytest.fixture
def direct(tmp_path: Path) -> DirectIO:
    """Small staging, so that small data takes many pieces."""
    probed = DirectIO(STAGING)
    with (tmp_path / "probe").open("wb", buffering=0) as file:
        if not probed.write(file.fileno(), [memoryview(b"x")], 1):
            pytest.skip("no direct I/O on this file system")
    return probed


def views_of(data: bytes, step: int) -> list[memoryview]:
    return [memoryview(data)[start : start + step] for start in range(0, len(data), step)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [100, BLOCK_BYTES, 1 << 20])
def test_every_size_is_written_as_it_is(tmp_path: Path, direct: DirectIO, size: int, step: int) -> None:
    data = os.urandom(size)
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        assert direct.write(file.fileno(), views_of(data, step), size)
        assert (tmp_path / "file").read_bytes() == data
        assert direct.read(file.fileno(), 0, size) == data
    assert direct.usable


def test_every_range_is_read_as_it_is(tmp_path: Path, direct: DirectIO) -> None:
    data = os.urandom(5 * BLOCK_BYTES + 77)
    (tmp_path / "file").write_bytes(data)
    borders = sorted({0, 1, len(data), len(data) - 1, *(b + more for b in BORDERS[:-1] for more in (-1, 0, 1))})
    with (tmp_path / "file").open("rb", buffering=0) as file:
        for start in borders:
            for end in borders:
                if start < end:
                    assert direct.read(file.fileno(), start, end - start) == data[start:end], (start, end)
        assert direct.read(file.fileno(), len(data) - 5, 6) is None
        assert direct.read(file.fileno(), len(data) + BLOCK_BYTES, 6) is None
        assert file.read() == data, "the descriptor is left in its own mode, at its own position"
    assert direct.usable


@pytest.mark.parametrize("size", LARGE_SIZES)
async def test_large_objects(tmp_path: Path, env: Env, size: int) -> None:
    store = LocalDirStore(tmp_path, env)
    data = os.urandom(size)
    await store.put(Key("pack"), views_of(data, 131_072 + 40))
    assert (tmp_path / "pack").read_bytes() == data
    assert (await store.get(Key("pack"))).data == data
    at_end = size - DIRECT_RANGE_BYTES
    for start, length in ((0, DIRECT_RANGE_BYTES), (1, DIRECT_RANGE_BYTES), (4095, size), (at_end, DIRECT_RANGE_BYTES + 9)):
        assert (await store.get(Key("pack"), start, length)).data == data[start : start + length]
    blob = await store.get(Key("pack"), size - 1, 1)
    assert (blob.data, blob.meta.size_bytes) == (data[-1:], size)
    await store.close()


def test_staging_is_used_again(tmp_path: Path, direct: DirectIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer of the fixture's write serves all: no memory is made."""
    monkeypatch.setattr(mmap, "mmap", failing(errno.ENOMEM))
    data = os.urandom(9 * STAGING)
    for number in range(5):
        with (tmp_path / f"file{number}").open("w+b", buffering=0) as file:
            assert direct.write(file.fileno(), [memoryview(data)], len(data))
            assert direct.read(file.fileno(), 0, len(data)) == data


def failing(number: int) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    return fail


def failing_later(number: int, real: Callable[..., object]) -> Callable[..., object]:
    """Fails from the second call on."""
    calls = 0

    def call(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    return call


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("place", ["the mode", "fallocate", "the first write", "a later write"])
async def test_a_refusal_is_remembered(tmp_path: Path, env: Env, monkeypatch: pytest.MonkeyPatch, place: str, number: int) -> None:
    """Also one in the middle: the object is then written anew through the page cache."""
    store = LocalDirStore(tmp_path, env)
    used = store._files._direct
    data = os.urandom(2 * STAGING_BYTES + 99)
    with monkeypatch.context() as patched:
        if place == "the mode":
            patched.setattr(fcntl, "fcntl", failing(number))
        elif place == "fallocate":
            patched.setattr(DirectIO, "_reserve", failing(number))
        else:
            patched.setattr(os, "write", failing(number) if place == "the first write" else failing_later(number, os.write))
        await store.put(Key("pack"), [data])
    assert (tmp_path / "pack").read_bytes() == data
    assert not used.usable
    with monkeypatch.context() as patched:
        patched.setattr(DirectIO, "_reserve", failing(errno.EIO))
        patched.setattr(os, "preadv", failing(errno.EIO))
        await store.put(Key("pack"), [data[::-1]])
        assert (await store.get(Key("pack"))).data == data[::-1]
    await store.close()


async def test_reads_that_are_refused(tmp_path: Path, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalDirStore(tmp_path, env)
    data = os.urandom(LARGE)
    await store.put(Key("pack"), [data])
    monkeypatch.setattr(os, "preadv", failing(errno.EINVAL))
    for _ in range(2):
        assert (await store.get(Key("pack"), 7)).data == data[7:]
    assert not store._files._direct.usable
    await store.close()


@pytest.mark.parametrize("root", ["/dev/shm", "/proc/self"])
def test_other_file_systems(root: str, env: Env) -> None:
    """tmpfs takes direct I/O or refuses it, by its version; both are right. proc refuses."""
    if not os.access(root, os.R_OK):
        pytest.skip(f"no {root}")
    direct = DirectIO()
    if root == "/proc/self":
        with open("/proc/self/maps", "rb", buffering=0) as file:  # noqa: PTH123
            assert direct.read(file.fileno(), 0, 10) is None
        assert not direct.usable
        return
    path = f"{root}/stnode-test-{os.getpid()}"
    data = os.urandom(LARGE)
    try:
        with open(path, "w+b", buffering=0) as file:  # noqa: PTH123
            if direct.write(file.fileno(), [memoryview(data)], len(data)):
                assert direct.read(file.fileno(), 0, LARGE) == data
            assert os.path.getsize(path) == (LARGE if direct.usable else 0)  # noqa: PTH202
    finally:
        os.unlink(path)  # noqa: PTH108


async def test_a_full_disk_shows_before_a_byte_is_written(tmp_path: Path, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalDirStore(tmp_path, env)
    await store.put(Key("before"), [b"x"])
    with monkeypatch.context() as patched:
        patched.setattr(DirectIO, "_reserve", failing(errno.ENOSPC))
        patched.setattr(os, "write", failing(errno.EIO))
        patched.setattr(os, "writev", failing(errno.EIO))
        with pytest.raises(Full, match=str(tmp_path)):
            await store.put(Key("pack"), [bytes(LARGE)])
    assert [path.name for path in tmp_path.glob("~tmp/*") if path.suffix != ".lock"] == []
    assert store._files._direct.usable
    await store.put(Key("pack"), [bytes(LARGE)])
    await store.close()


def test_the_kernels_own_refusal_to_reserve_is_an_error(tmp_path: Path) -> None:
    """A limit on file sizes, told by the real fallocate: EFBIG, no refusal of direct I/O."""
    program = f"""
import resource, signal
from stnode.objectstore.directio import DirectIO
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
direct = DirectIO()
with open({str(tmp_path / "file")!r}, "wb", buffering=0) as file:
    try:
        direct.write(file.fileno(), [memoryview(bytes(2 << 20))], 2 << 20)
    except OSError as error:
        print(error.errno, direct.usable)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert told in ([str(errno.EFBIG), "True"], []), "empty where direct I/O is not to be had"


async def test_other_errors_are_told(tmp_path: Path, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalDirStore(tmp_path, env)
    await store.put(Key("pack"), [bytes(LARGE)])
    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", failing(errno.EIO))
        with pytest.raises(Unavailable, match="cannot read"):
            await store.get(Key("pack"))
    assert (await store.get(Key("pack"))).data == bytes(LARGE)
    await store.close()


def test_a_file_that_ends_early_is_told(tmp_path: Path, direct: DirectIO) -> None:
    (tmp_path / "file").write_bytes(bytes(LARGE))
    with (tmp_path / "file").open("rb", buffering=0) as file, pytest.raises(Unavailable, match="file ended 5 bytes early"):
        read_range(file.fileno(), 3, LARGE + 2, LARGE + 5, str(tmp_path / "file"), direct)


async def test_short_transfers_are_continued(tmp_path: Path, env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    write, preadv = os.write, os.preadv
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: max(BLOCK_BYTES, len(data) // 3 // BLOCK_BYTES * BLOCK_BYTES)]))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][: max(BLOCK_BYTES, len(views[0]) // 3)]], at))
    store = LocalDirStore(tmp_path, env)
    data = os.urandom(STAGING_BYTES + LARGE)
    await store.put(Key("pack"), [data])
    assert (tmp_path / "pack").read_bytes() == data
    assert (await store.get(Key("pack"), 5)).data == data[5:]
    await store.close()
