"""Blocks, packs and a small world around them for tests of the repository's data path."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from stnode.clock import Env, InlineThreads, SeededRandomness, SystemClock
from stnode.objectstore.base import Blob, Buffer, Key, Mode, ObjectStore, PutResult
from stnode.objectstore.memory import MemoryStore
from stnode.repo.packer import OpenPack, Packer, Token

FKEY = "photos-0011223344556677"
STORE_TIME_US = 1_760_000_000_000_000


class Hurried(SystemClock):
    """A clock whose waits are over at once; `slept` keeps what was asked for."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        if seconds:
            self.slept.append(seconds)
        await super().sleep(0)


def quick_env(seed: int = 1) -> Env:
    """No threads, no waiting, the same ids for the same seed."""
    return Env(Hurried(), SeededRandomness(seed), InlineThreads())


def sha(data: Buffer) -> bytes:
    return hashlib.sha256(data).digest()


def blocks_of(seed: int | str, *sizes: int) -> list[bytes]:
    """Random blocks of the given sizes."""
    random = SeededRandomness(seed)
    return [random.bytes(size) for size in sizes]


def fill(pack: OpenPack, blocks: Sequence[bytes], *, job: int = 1, first: int = 0) -> list[Token]:
    """Adds the blocks as consecutive ones of a job."""
    tokens = [(job, first + number) for number in range(len(blocks))]
    for token, block in zip(tokens, blocks, strict=True):
        pack.add(token, memoryview(block), sha(block))
    return tokens


@dataclass
class Watched:
    """An object store that counts, and fails as told: `fail` is taken one error per put, raised after `applied` puts took effect."""

    inner: ObjectStore
    gets: list[tuple[str, int, int | None]] = field(default_factory=list)
    puts: list[str] = field(default_factory=list)
    fail_puts: list[tuple[Exception, bool]] = field(default_factory=list)

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        self.gets.append((key, start, length))
        return await self.inner.get(key, start, length)

    async def put(self, key: Key, data: Sequence[Buffer], mode: object = Mode.OVERWRITE) -> PutResult:
        self.puts.append(key)
        error, applied = self.fail_puts.pop(0) if self.fail_puts else (None, True)
        result = await self.inner.put(key, data, Mode.CREATE) if applied else PutResult("")
        if error is not None:
            raise error
        return result

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def watched_store(env: Env) -> Watched:
    return Watched(MemoryStore(env))


def make_packer(objects: object, env: Env, **more: object) -> Packer:
    return Packer(objects, env, fkey_of=lambda _: FKEY, store_time_us=lambda: STORE_TIME_US, **more)  # type: ignore[arg-type]
