"""Directory trees for integration tests: a mixed one with all that is odd, and snapshots to compare two of them."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import time
import unicodedata
from pathlib import Path

ODD_NAMES = (
    "with space.txt",
    "trailing dot.",
    "quote'\"double",
    "newline-free;semi&amp",
    "#hash%percent",
    "back\\slash",
    "ünïcödé-NFC",
    "日本語.txt",
    "emoji-🙂",
    "-leading-dash",
    "~tilde",
    ".hidden",
    "UPPER",
    "colon:pipe|star*question?",
    "x" * 120,
    "no-extension",
    "tar.gz.like.name.tar.gz",
)
"""Names that Linux and Syncthing take; all NFC."""


def mixed_tree(root: Path, seed: int = 1, large_bytes: int = 40 << 20) -> None:
    """Writes files of sizes around every border, odd names, empty directories, symlinks, several modes and mtimes to the nanosecond."""
    rng = random.Random(seed)
    block = 128 << 10
    sizes = (0, 1, 10_240, block - 1, block, block + 1, 2 * block, 3 * block + 17, 1 << 20, large_bytes)
    for number, size in enumerate(sizes):
        _file(root / "sizes" / f"{number}-{size}.bin", rng.randbytes(size), rng)
    for name in ODD_NAMES:
        _file(root / "odd" / unicodedata.normalize("NFC", name), name.encode(), rng)
    for number in range(60):
        _file(root / "many" / f"d{number % 7}" / "deeper" / f"file {number}.txt", rng.randbytes(rng.randrange(1, 30_000)), rng)
    _file(root / "zeros" / "sparse.bin", bytes(3 * block) + b"end", rng)
    _file(root / "zeros" / "all.bin", bytes(4 * block), rng)
    _file(root / "same" / "one.bin", b"same" * 100_000, rng)
    _file(root / "same" / "two.bin", b"same" * 100_000, rng)
    (root / "empty" / "nested").mkdir(parents=True)
    (root / "links").mkdir()
    (root / "links" / "relative").symlink_to("../odd/UPPER")
    (root / "links" / "dangling").symlink_to("no/such/target-é")
    (root / "links" / "directory").symlink_to("../many")
    (root / "sizes" / "2-10240.bin").chmod(0o755)
    (root / "odd" / ".hidden").chmod(0o600)
    (root / "empty").chmod(0o700)


def _file(path: Path, data: bytes, rng: random.Random) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o644)
    touch(path, 1_500_000_000 + rng.randrange(200_000_000), rng.randrange(1_000_000_000))


def touch(path: Path, seconds: int, nanoseconds: int) -> None:
    """Sets the modification time."""
    when = seconds * 10**9 + nanoseconds
    os.utime(path, ns=(when, when))


_hashes: dict[tuple[int, int, int, int, int], str] = {}
_SETTLED_NS = 10**9


def snapshot(root: Path) -> dict[str, tuple[str, int, int, str]]:
    """Path -> (kind, mode, mtime ns, content hash or link target) of everything below `root` that is synced. Directories have no mtime
    and links neither mode nor mtime here, as in the protocol."""
    found: dict[str, tuple[str, int, int, str]] = {}
    for directory, names, files in os.walk(root):
        if Path(directory) == root:
            names[:] = [name for name in names if name not in {".stfolder", ".stversions"}]
        for name in [*names, *files]:
            path = os.path.join(directory, name)  # noqa: PTH118 -- a quarter of the time of Path, and tests look at trees again and again
            relative = path[len(str(root)) + 1 :]
            info = os.lstat(path)
            mode = stat.S_IMODE(info.st_mode) & 0o777
            if stat.S_ISLNK(info.st_mode):
                found[relative] = ("link", 0, 0, os.readlink(path))  # noqa: PTH115
            elif stat.S_ISDIR(info.st_mode):
                found[relative] = ("directory", mode, 0, "")
            elif relative != ".stignore" and not name.startswith(".syncthing."):
                found[relative] = ("file", mode, info.st_mtime_ns, _hash(path, info))
    return found


def _hash(path: str, info: os.stat_result) -> str:
    """SHA-256 of the file; known already if nothing has touched it since, nor just before."""
    key = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    known = _hashes.get(key)
    if known is None:
        with open(path, "rb") as file:  # noqa: PTH123
            known = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time_ns() - info.st_ctime_ns > _SETTLED_NS:
            _hashes[key] = known
    return known


def difference(one: Path, two: Path) -> list[str]:
    """What differs between two trees, in words; [] when they are equal."""
    try:
        first, second = snapshot(one), snapshot(two)
    except FileNotFoundError as exc:
        return [f"{exc.filename} went away meanwhile"]
    return [
        f"{name}: {first.get(name)} != {second.get(name)}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]
