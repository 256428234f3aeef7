"""Blocks, packs and a small world around them for tests of the repository's data path."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import Self, cast

from stnode.clock import Env, InlineThreads, SeededRandomness, SystemClock
from stnode.db import Database
from stnode.objectstore.base import Blob, Buffer, Key, Mode, ObjectStore, PutResult
from stnode.objectstore.memory import MemoryStore
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.repo.addresses import Move
from stnode.repo.blockindex import BlockIndex
from stnode.repo.dedupe import Dedupe
from stnode.repo.packer import OpenPack, Packer, PendingPack, Token
from stnode.repo.packlist import ListOptions, PackEntry, PackLists
from stnode.repo.reader import Reader, ReaderOptions
from stnode.repo.records import Extents

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


class TableRegistry:
    """A registry of packs that a test writes by hand (`packlist.PackRegistry`)."""

    def __init__(self) -> None:
        self.entries: dict[int, PackEntry] = {}
        self.moved: dict[int, list[Move]] = {}
        self.versions: dict[str, Extents] = {}

    def by_number(self, conn: Connection, numbers: Collection[int]) -> dict[int, PackEntry]:
        return {number: self.entries[number] for number in numbers if number in self.entries}

    def by_id(self, conn: Connection, ids: Collection[str]) -> dict[str, PackEntry]:
        return {entry.id: entry for entry in self.entries.values() if entry.id in ids}

    def moves(self, conn: Connection, pack: int) -> list[Move]:
        return self.moved.get(pack, [])

    def extents(self, conn: Connection, fid: int, names: Sequence[str]) -> dict[str, Extents]:
        return {name: self.versions[name] for name in names if name in self.versions}

    def register(self, pending: PendingPack, number: int) -> None:
        """As a commit would."""
        self.entries[number] = PackEntry(number, pending.fkey, pending.id, pending.size, pending.footer_size, True)


class World:
    """Packer, lists, reader and search over one store in memory."""

    def __init__(self, env: Env | None = None, *, store: ObjectStore | None = None, db: Database | None = None, **options: object) -> None:
        self.env = env or quick_env()
        self.store = Watched(store or MemoryStore(self.env))
        self.db = db or Database(None, inline=True)
        self.registry = TableRegistry()
        self.index = BlockIndex()
        objects = cast("ObjectStore", self.store)
        self.lists = PackLists(
            objects, self.db, self.env, self.registry, index=self.index, options=cast("ListOptions | None", options.get("lists"))
        )
        self.packer = make_packer(objects, self.env, observer=self.lists)
        self.reader = Reader(objects, self.lists, self.env, cast("ReaderOptions | None", options.get("reader")))
        self.dedupe = Dedupe(self.db, self.env, self.lists, self.registry, self.index, lambda _: FKEY)

    async def __aenter__(self) -> Self:
        await self.lists.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.reader.close()
        await self.db.close()

    async def sealed(self, *files: Sequence[bytes], hash_bytes: int = 32, tokens: Sequence[bytes] = ()) -> int:
        """A sealed pack of these files, in order; its handle."""
        pack = self.packer.begin(1, stream=False, hash_bytes=hash_bytes)
        names = iter(tokens)
        for job, blocks in enumerate(files):
            for number, block in enumerate(blocks):
                pack.add((job, number), memoryview(block), next(names) if tokens else sha(block))
        return (await self.packer.seal(pack)).handle

    def register(self, handle: int, number: int) -> int:
        """Gives the pack its number, as a commit would."""
        self.registry.register(self.packer.pending(handle), number)
        self.packer.registered({handle: number})
        return number

    def stored(self, handle: int) -> bytearray:
        """The object's bytes; put them back with `damage`."""
        return bytearray(cast("MemoryStore", self.store.inner).snapshot()[self.packer.pending(handle).key].data)

    async def replace(self, handle: int, data: Buffer | None) -> None:
        """Overwrites the pack in the store, or deletes it."""
        key = self.packer.pending(handle).key
        if data is None:
            await self.store.inner.delete(key)
        else:
            await self.store.inner.put(key, [data])


def a_file(name: str, blocks: Sequence[bytes], block_size: int = 131072) -> FileInfo:
    """A FileInfo of these blocks."""
    return fileinfo.new(
        name=name,
        type=FileType.FILE,
        version=((1, 1),),
        modified_by=1,
        size=sum(map(len, blocks)),
        block_size=block_size,
        block_hashes=b"".join(map(sha, blocks)),
    )
