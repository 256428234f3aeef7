"""What tests of untrusted devices share: trusted Syncthings around an untrusted device that is either stnode or, to show that a scenario is
right, a Syncthing; a tree whose names and contents can be searched for; and the search through a bucket and a home."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import subprocess
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from stnode.clock import system_env
from stnode.errors import Corrupt
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import open_store
from stnode.protocol.blocks import block_size_for
from stnode.repo.compression import decompress
from stnode.repo.container import kind_of, open_next
from stnode.repo.pack import decode_footer, footer_size
from tests.support.syncthing import SyncthingProcess
from tests.support.trees import difference, touch

Peer = tuple[SyncthingProcess, Path]
"""A trusted Syncthing and the directory of its folder."""

PASSWORD = "zwölf graue Esel trinken Wein"
OTHER_PASSWORD = "elf graue Esel trinken Wein"
FOLDER = "shared"
BLOCK = 128 << 10
BORDER_SIZES = (0, 1, 1023, 1024, 1025, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 1023, BLOCK + 1024, BLOCK + 1025, 3 * BLOCK + 17)
"""Around what encryption pads to, and around a block, so that the last block of a file is on either side of it too."""
_WORDS = ("rechnung", "Überweisung", "日本語の手紙", "naïve-Gründe", "postcard", "кириллица", "smile-🙂", "x-ray", "Ærø", "tab\ttab")
_RESCAN_S = 5.0


# ----------------------------------------------------------------------------------------------------------------- the tree
def secret_tree(root: Path, files: int = 5000, large: Sequence[int] = (40 << 20, 300 << 20), seed: int = 1) -> None:
    """`files` files with long, deep and non-ASCII names, sizes around every border, empty files and directories, symlinks, several modes.

    The largest are mostly zeros, and have a block size of their own. Everything is NFC, no path is longer than 1,400 bytes."""
    rng = random.Random(seed)
    left = files
    for number, size in enumerate(large):
        left -= 1
        path = root / "large" / f"film-of-the-wedding-{number}.bin"
        _file(path, b"", rng)
        with path.open("r+b") as file:
            file.truncate(size)
            for place in range(0, size, 8 << 20):
                file.seek(place)
                file.write(rng.randbytes(1 << 20) if size < 100 << 20 else rng.randbytes(70_000))
            file.truncate(size)
        touch(path, 1_600_000_000 + number, 987_654_321)
    for number, size in enumerate(BORDER_SIZES):
        left -= 1
        _file(root / "sizes" / f"border-of-the-garden-{number}.bin", rng.randbytes(size), rng)
    for number in range(min(60, left)):
        left -= 1
        _file(root / "vacant" / f"blank-diary-{number:03d}", b"", rng)
    for number in range(min(300, left)):
        left -= 1
        _file(_deep(root, number) / f"buried-treasure-{number:03d}.txt", _letter(number, rng), rng)
    for number in range(min(500, left)):
        left -= 1
        word = _WORDS[number % len(_WORDS)]
        name = f"endless-title-{number:03d}-{word * 20}"
        _file(root / "long" / f"shelf-{number % 5}" / (_cut(name, 196) + ".txt"), _letter(number, rng), rng)
    for number in range(left):
        _file(directory_of(root, number) / f"family-letter-{number:04d}-{_WORDS[number % len(_WORDS)]}.txt", _letter(number, rng), rng)
    for number in range(20):
        (root / "hollow" / f"unused-drawer-{number:02d}" / "inner").mkdir(parents=True)
    (root / "hollow").chmod(0o700)
    (root / "links").mkdir()
    for number in range(20):
        (root / "links" / f"pointer-{number:02d}-é").symlink_to(f"../nowhere/hidden-target-{number:02d}-ü")
    (root / "links" / "to-a-directory").symlink_to("../vacant")
    (root / "sizes" / "border-of-the-garden-3.bin").chmod(0o755)
    (root / "sizes" / "border-of-the-garden-4.bin").chmod(0o600)


def directory_of(root: Path, number: int) -> Path:
    """Where `secret_tree` puts the family letter of that number."""
    return root / f"drawer-of-aunt-{number % 37:02d}" / _nfc(f"Jahr-{_WORDS[number % 3]}-{number % 5}")


def secrets(count: int = 200) -> list[bytes]:
    """At least `count` fragments of names, contents and link targets of `secret_tree`."""
    texts = [f"family-letter-{number:04d}" for number in range(60)]
    texts += [f"drawer-of-aunt-{number:02d}" for number in range(30)] + [f"cellar-{number}-of-the-house" for number in range(12)]
    texts += [f"aunt number {number:04d}, this stays between us" for number in range(20)]
    texts += [f"buried-treasure-{number:03d}" for number in range(15)] + [f"endless-title-{number:03d}" for number in range(15)]
    texts += [f"blank-diary-{number:03d}" for number in range(10)] + [f"unused-drawer-{number:02d}" for number in range(10)]
    texts += [f"hidden-target-{number:02d}" for number in range(10)] + [f"film-of-the-wedding-{number}" for number in range(2)]
    texts += [f"border-of-the-garden-{number}" for number in range(12)] + list(_WORDS[:3]) + ["naïve-Gründe"]
    assert len(texts) >= count
    return [text.encode() for text in dict.fromkeys(texts)]


def password_forms(password: str) -> list[bytes]:
    """The password as it is and as something might write it down."""
    raw = password.encode()
    return [raw, raw.hex().encode(), base64.b64encode(raw).rstrip(b"="), password.encode("unicode_escape")]


def encrypted_bytes(root: Path) -> int:
    """Bytes of all encrypted blocks of the files below `root` (bep-facts 10.5)."""
    return sum(
        _encrypted_size(path.stat().st_size)
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and not {".stfolder", ".stversions"} & set(path.parts)
    )


def _encrypted_size(size: int) -> int:
    block = block_size_for(size)
    whole, rest = divmod(size, block)
    return whole * (block + 40) + (max(rest, 1024) + 40 if rest or not size else 0)


def _letter(number: int, rng: random.Random) -> bytes:
    return (f"Dear aunt number {number:04d}, this stays between us.\n" * rng.randrange(1, 60)).encode()


def _deep(root: Path, number: int) -> Path:
    """Twelve directories down; a part of the way is long."""
    path = root / "deep" / f"corridor-{number % 7}"
    for level in range(9):
        path /= _nfc(f"cellar-{level}-of-the-house" + ("-und-ein-sehr-langer-gäng" * 3 if level % 2 else ""))
    return path / f"cellar-{9 + number % 3}-of-the-house"


def _cut(name: str, size: int) -> str:
    return _nfc(name).encode()[:size].decode(errors="ignore")


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _file(path: Path, data: bytes, rng: random.Random) -> None:
    path = path.with_name(_nfc(path.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o644)
    touch(path, 1_500_000_000 + rng.randrange(200_000_000), rng.randrange(1_000_000_000))


# ------------------------------------------------------------------------------------------------------------------ waiting
async def until_equal(peers: Sequence[Peer], deadline_s: float, story: Callable[[], str] = str) -> float:
    """Scans the peers and waits until all their trees are the same and all are content; the seconds that took.

    They scan again and again: a peer that finds a file changed on disk when it is to delete it tells so by a scan only."""
    began = time.monotonic()
    scanned = float("-inf")
    keys = ("globalFiles", "globalDirectories", "globalSymlinks", "globalBytes")
    while True:
        if time.monotonic() - scanned > _RESCAN_S:
            await asyncio.gather(*(peer.scan(FOLDER) for peer, _ in peers))
            scanned = time.monotonic()
        states = [await peer.db_status(FOLDER) for peer, _ in peers]
        content = all(state["state"] == "idle" and state["needTotalItems"] == 0 for state in states)
        if content and len({tuple(state[key] for key in keys) for state in states}) == 1:
            found = [line for _, tree in peers[1:] for line in await asyncio.to_thread(difference, peers[0][1], tree)]
            if not found:
                return time.monotonic() - began
        else:
            found = [str({key: state[key] for key in ("state", "needTotalItems", "errors", *keys)}) for state in states]
        if time.monotonic() - began > deadline_s:
            raise AssertionError(f"not equal after {deadline_s} s: {found[:12]}\n{story()}")
        await asyncio.sleep(0.3)


# --------------------------------------------------------------------------------------------------------------- the search
def grep(patterns: Iterable[bytes], *places: Path) -> set[bytes]:
    """Which of the patterns, byte for byte, are in a file below the places, or in a name or a link's target there."""
    wanted = set(patterns)
    assert all(pattern and b"\n" not in pattern for pattern in wanted)
    command = ["grep", "-r", "-h", "-a", "-o", "-F", "-f", "-", "--", *map(str, places)]
    done = subprocess.run(
        command, input=b"\n".join(sorted(wanted)), capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"}, timeout=200
    )
    assert done.returncode in {0, 1}, done.stderr.decode()
    found = {line for line in done.stdout.splitlines() if line in wanted}
    paths = [(place, path) for place in places for path in place.rglob("*")]
    names = [os.fsencode(path.relative_to(place)) for place, path in paths]
    names += [os.fsencode(path.readlink()) for _, path in paths if path.is_symlink()]
    return found | {pattern for pattern in wanted if any(pattern in name for name in names)}


async def dump(url: str, options: StoreOptions, into: Path) -> int:
    """Every object of a bucket as a file below `into`, named by its key, and beside it what is packed inside, unpacked. How many objects."""
    env = system_env()
    objects = open_store(url, options, env)
    count = 0
    try:
        async for meta in objects.list(""):
            data = bytes((await objects.get(meta.key)).data)
            path = into / meta.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            for number, part in enumerate(_unpacked(str(meta.key), data)):
                path.with_name(f"{path.name}.part-{number}").write_bytes(part)
            count += 1
    finally:
        await objects.close()
        env.close()
    return count


def _unpacked(key: str, data: bytes) -> Iterator[bytes]:
    """Payloads of the containers that an object is, and compressed blocks of a pack; they lie in the object as LZ4, where no search finds them."""
    if key.startswith("packs/"):
        blocks = decode_footer(data[-footer_size(data, key) :], key, len(data))
        for place in blocks.compressed:
            yield decompress(data[blocks.offsets[place] : blocks.offsets[place + 1]], blocks.lengths[place])
        return
    offset = 0
    while offset < len(data) and (kind := kind_of(data[offset:])) is not None:
        try:
            payload, offset = open_next(kind, data, offset, key)
        except Corrupt:
            return
        yield payload
