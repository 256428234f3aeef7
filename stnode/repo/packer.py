"""Fills packs and uploads them. Payload is never copied here: the buffers handed in go to the object store as they are.

The concurrency contract: everything runs on the event loop; an `OpenPack` belongs to whoever began it until `seal`, which
freezes it at once and may be awaited by a task of its own. Sealing survives an object store that does not answer: it tries
again, always under a new id, until it succeeds, is refused for good, or is cancelled. A pack whose upload has an unknown
outcome is left to the collector of orphans; nothing is ever cleaned up here (design 5).

Memory: a pack is held from its first block to the end of its upload; `bytes_held` says how much that is, and whoever adds
blocks slows down by it. While the store does not answer, sealed packs wait in the spool instead (`spool.py`), as far as it has room, and are
read back for each try (ADR 0026):

    sealed --a try succeeds--> durable
       |--a try fails, or uploads have been stuck for ten seconds--> spooled --a try succeeds--> durable
       `--the spool is full or refuses--> stays in memory, tried again; `bytes_held` stops the pulling

Handles stay valid as long as the process: a file that is still being pulled, or whose commit waits or is tried again, may name any of them, also after other files have got the pack registered. That is some hundred bytes for each pack; the
lists of packs that a commit has registered leave the memory (packlist.py).
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Container, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

from stnode.clock import Env
from stnode.errors import Internal, Unavailable
from stnode.objectstore.base import Buffer, Exists, Key, Mode, ObjectStore
from stnode.repo import layout
from stnode.repo.checksum import xxh3_64
from stnode.repo.pack import MAX_DATA_BYTES, PLAIN_HASH_BYTES, PackList, encode_footer, plain_list
from stnode.repo.spool import Kept, Spool
from stnode.repo.uploadcheck import UploadCheck
from stnode.repo.verify import verify_blocks

__all__ = ["OpenPack", "PackObserver", "Packer", "PackerOptions", "PendingPack", "SealedPack", "Token", "WriteQueue", "verify_blocks"]

Token = tuple[int, int]
"""(job, block number): where a block belongs; blocks are stored in this order whatever order they came in."""

FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 30.0
STUCK_S: Final = 10.0
"""Uploads that take so long without any that succeeds: the store is not there, though it has not said so."""


@dataclass(frozen=True, slots=True)
class PackerOptions:
    """`target_bytes` and `max_blocks`: when `OpenPack.full` says that a pack is worth sealing; uploads at once. `spool_path` and `spool_bytes`:
    where packs wait for the store, and how many bytes of them; `verify`: whether uploads are read back."""

    target_bytes: int = 32 << 20
    max_blocks: int = 16_384
    uploads: int = 2
    spool_path: Path | None = None
    spool_bytes: int = 0
    verify: bool = False


@dataclass(frozen=True, slots=True)
class WriteQueue:
    """Sealed packs that are not in the store yet: how many, their bytes, how long the oldest has waited; what of them lies in the spool, and
    why its disk refuses ("": it does not). `full`: there is room for no other pack. `checked`, `mended`, `unchecked`: uploads that were read back, put
    again, or not looked at."""

    packs: int
    bytes: int
    age_s: float
    spooled_packs: int
    spooled_bytes: int
    trouble: str
    full: bool
    checked: int
    mended: int
    unchecked: int


@dataclass(frozen=True, slots=True)
class PendingPack:
    """A pack that is durable in the store: all that a commit needs to register it."""

    handle: int
    fid: int
    fkey: str
    id: str
    size: int
    blocks: int
    footer_size: int
    hash_bytes: int

    @property
    def key(self) -> Key:
        """The object's key."""
        return layout.pack_key(self.fkey, self.id)


@dataclass(frozen=True, slots=True)
class SealedPack:
    """What became of an open pack: blocks of `places` lie in pack `handle` (negative) at their place; `size` is the object's."""

    handle: int
    places: Mapping[Token, int]
    size: int


@dataclass(slots=True, eq=False)
class OpenPack:
    """Blocks gathered in memory, in any order. `stream`: holds one large file only. Made by `Packer.begin`. `tokens` stays
    when the pack is sealed, the rest goes once it is uploaded."""

    fid: int
    stream: bool
    hash_bytes: int
    _owner: Packer
    size_bytes: int = 0
    sealed: bool = False
    held: bool = True
    tokens: list[Token] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.tokens)

    @property
    def full(self) -> bool:
        """Whether it has reached the size at which packs are sealed. More can be added: blocks in flight belong somewhere."""
        options = self._owner.options
        return self.size_bytes >= options.target_bytes or len(self.tokens) >= options.max_blocks

    def add(self, token: Token, data: Buffer, hash: bytes) -> None:  # noqa: A002 - the block's name in the protocol
        """Takes a block whose hash was verified. O(1); `data` (a buffer of bytes) is kept and must not change until the
        pack is sealed."""
        if self.sealed or len(hash) != self.hash_bytes:
            raise Internal(f"block {token} (hash of {len(hash)} bytes) does not fit a pack of {self.hash_bytes}, sealed: {self.sealed}")
        self.tokens.append(token)
        self.buffers.append(data)
        self.hashes.append(hash)
        self.size_bytes += len(data)
        self._owner.bytes_held += len(data)

    def keep(self, jobs: Container[int]) -> None:
        """Drops the blocks whose token names another job."""
        if all(token[0] in jobs for token in self.tokens):
            return
        kept = [at for at, token in enumerate(self.tokens) if token[0] in jobs]
        self.tokens, self.buffers, self.hashes = (
            [self.tokens[at] for at in kept],
            [self.buffers[at] for at in kept],
            [self.hashes[at] for at in kept],
        )
        size = sum(map(len, self.buffers))
        self._owner.bytes_held -= self.size_bytes - size
        self.size_bytes = size


class PackObserver(Protocol):
    """Told what becomes of packs: the cache of their lists. `sealed` comes once the pack is durable, before its blocks are
    used; `file_starts` are the places where another job's blocks begin."""

    async def sealed(self, pack: PendingPack, blocks: PackList, footer: bytes, file_starts: Sequence[int]) -> None: ...

    def registered(self, numbers: Mapping[int, int]) -> None: ...

    def unregistered(self) -> None: ...


class Packer:
    """`store_time_us` is the latest time of the store that anybody has seen, or the clock's (Unix microseconds); `fkey_of`
    names the packs' folder. `bytes_held` counts open and uploading packs in memory; `failing` is why uploads do not succeed, "" when they do; `on_room`
    are called when a pack has left the memory without being durable yet."""

    def __init__(
        self,
        objects: ObjectStore,
        env: Env,
        *,
        fkey_of: Callable[[int], str],
        store_time_us: Callable[[], int],
        options: PackerOptions | None = None,
        observer: PackObserver | None = None,
    ) -> None:
        self.options = options or PackerOptions()
        self.on_room: list[Callable[[], None]] = []
        self.bytes_held = 0
        self.failing = ""
        self._objects = objects
        self._env = env
        self._fkey_of = fkey_of
        self._store_time_us = store_time_us
        self._observer = observer
        self._uploads = asyncio.Semaphore(self.options.uploads)
        self._pending: dict[int, PendingPack] = {}
        self._numbers: dict[int, int] = {}
        self._last_handle = 0
        self._spool = Spool(self.options.spool_path, self.options.spool_bytes, env)
        self._check = UploadCheck(objects, env)
        self._waiting: dict[int, tuple[int, float]] = {}
        self._began: list[float] = []
        self._succeeded_s = env.clock.monotonic()

    @property
    def target_bytes(self) -> int:
        """The size at which packs are sealed."""
        return self.options.target_bytes

    def begin(self, fid: int, *, stream: bool, hash_bytes: int = PLAIN_HASH_BYTES) -> OpenPack:
        """A new, empty pack of folder `fid`; `hash_bytes` is 48 in encrypted folders."""
        return OpenPack(fid, stream, hash_bytes, self)

    def seal(self, pack: OpenPack) -> Coroutine[Any, Any, SealedPack]:
        """Freezes the pack now; the result, once awaited, is durable in the object store. Raises what the store refuses for
        good (Refused, Invalid); the blocks are then given up and have to be got again. Cancelling gives them up too."""
        if pack.sealed or not pack.tokens or pack.size_bytes > MAX_DATA_BYTES:
            raise Internal(f"a pack of {len(pack)} blocks, {pack.size_bytes} bytes cannot be sealed (sealed: {pack.sealed})")
        pack.sealed = True
        return self._seal(pack)

    def discard(self, pack: OpenPack) -> None:
        """Gives an open pack up."""
        if not pack.sealed:
            pack.sealed = True
            self._release(pack)

    def pending(self, handle: int) -> PendingPack:
        """A sealed pack by its handle, registered or not."""
        pack = self._pending.get(handle)
        if pack is None:
            raise Internal(f"pack {handle} is not one of this process")
        return pack

    def registered(self, numbers: Mapping[int, int]) -> None:
        """A commit has given packs their numbers (handle → number). Handles stay valid beside them."""
        self._numbers.update(numbers)
        if self._observer is not None:
            self._observer.registered(numbers)

    def unregister(self) -> None:
        """Forgets all numbers: the state was rebuilt on another history, so that they may mean other packs. A handle stays
        good for `pending`, so that what was not committed there can be registered anew."""
        self._numbers.clear()
        if self._observer is not None:
            self._observer.unregistered()

    def resolve(self, handle: int) -> int | None:
        """The number of a pack by its handle, None while no commit has registered it."""
        return self._numbers.get(handle)

    async def open(self) -> None:
        """Once, before anything is sealed: cleans the spool."""
        await self._spool.open()

    async def close(self) -> None:
        """Ends what goes on in the background."""
        await self._check.close()

    def queue(self) -> WriteQueue:
        """What waits for the store."""
        now, spool, check = self._env.clock.monotonic(), self._spool, self._check
        sizes = [size for size, _ in self._waiting.values()]
        since = min((since for _, since in self._waiting.values()), default=now)
        full = bool(self.failing) and not spool.has_room(self.options.target_bytes)
        return WriteQueue(
            len(sizes), sum(sizes), now - since, spool.packs, spool.bytes, spool.trouble, full, check.checked, check.mended, check.unchecked
        )

    async def _seal(self, pack: OpenPack) -> SealedPack:
        fkey = self._fkey_of(pack.fid)
        self._waiting[id(pack)] = (pack.size_bytes, self._env.clock.monotonic())
        try:
            tokens, blocks, buffers = await self._env.threads.run(_build, pack)
            footer = bytes(buffers[-1])
            object_id = await self._store(fkey, pack, buffers)
        finally:
            del self._waiting[id(pack)]
            self._release(pack)
        self._last_handle -= 1
        handle = self._last_handle
        size = blocks.data_bytes + len(footer)
        pending = PendingPack(handle, pack.fid, fkey, object_id, size, blocks.count, len(footer), blocks.hash_bytes)
        self._pending[handle] = pending
        if self._observer is not None:
            await self._observer.sealed(pending, blocks, footer, _file_starts(tokens))
        return SealedPack(handle, dict(zip(tokens, range(len(tokens)), strict=True)), size)

    async def _store(self, fkey: str, pack: OpenPack, buffers: list[Buffer]) -> str:
        """Stores the pack under an id that is minted when a try begins; returns the id of the try that succeeded. `buffers` are emptied once
        the spool has them."""
        wait_s, kept = FIRST_RETRY_S, None
        try:
            while True:
                if kept is None and (self._stuck() or self.options.verify):
                    kept = await self._keep(pack, buffers)
                if not await self._slot():
                    continue
                try:
                    object_id = await self._try(fkey, buffers or await self._read(kept))
                except Unavailable as exc:
                    self.failing = exc.message
                    after_s = exc.retry_after_s or 0.0
                else:
                    self.failing, self._succeeded_s = "", self._env.clock.monotonic()
                    if self.options.verify:
                        self._check.add(layout.pack_key(fkey, object_id), kept)
                        kept = None
                    return object_id
                finally:
                    self._uploads.release()
                if kept is None:
                    kept = await self._keep(pack, buffers)
                await self._env.clock.sleep(max(after_s, self._env.random.uniform(wait_s / 2, wait_s)))
                wait_s = min(2 * wait_s, LONGEST_RETRY_S)
        finally:
            if kept is not None:
                kept.drop()

    async def _slot(self) -> bool:
        """Waits for its turn; False when that takes so long that it is worth looking whether the store is there at all."""
        try:
            async with asyncio.timeout(STUCK_S):
                await self._uploads.acquire()
        except TimeoutError:
            return False
        return True

    async def _try(self, fkey: str, data: list[Buffer]) -> str:
        began = self._env.clock.monotonic()
        self._began.append(began)
        try:
            while True:
                object_id = layout.mint(self._store_time_us(), self._env.random)
                try:
                    await self._objects.put(layout.pack_key(fkey, object_id), data, Mode.CREATE)
                except Exists:
                    continue
                return object_id
        finally:
            self._began.remove(began)

    def _stuck(self) -> bool:
        """Whether the store does not take packs now, as far as is known."""
        since = self._env.clock.monotonic() - STUCK_S
        return bool(self.failing) or (self._succeeded_s < since and any(began < since for began in self._began))

    async def _keep(self, pack: OpenPack, buffers: list[Buffer]) -> Kept | None:
        """Moves a pack from memory to the spool, if that has room."""
        kept = await self._spool.keep(buffers)
        if kept is not None:
            buffers.clear()
            self._release(pack)
            for tell in tuple(self.on_room):
                tell()
        return kept

    async def _read(self, kept: Kept | None) -> list[Buffer]:
        if kept is None:
            raise Internal("a pack is neither in memory nor in the spool")
        return await kept.read()

    def _release(self, pack: OpenPack) -> None:
        if pack.held:
            pack.held = False
            self.bytes_held -= pack.size_bytes
            pack.buffers, pack.hashes = [], []


def _build(pack: OpenPack) -> tuple[list[Token], PackList, list[Buffer]]:
    """Tokens in order, the list, and the object as buffers, the footer last. Runs in a thread."""
    tokens, buffers, hashes = pack.tokens, list(pack.buffers), pack.hashes
    order = sorted(range(len(tokens)), key=tokens.__getitem__)
    if order != list(range(len(tokens))):
        tokens, buffers, hashes = [tokens[i] for i in order], [buffers[i] for i in order], [hashes[i] for i in order]
    if any(before == after for before, after in pairwise(tokens)):
        raise Internal("a block was added twice to a pack")
    checks = None if pack.hash_bytes == PLAIN_HASH_BYTES else array("Q", map(xxh3_64, buffers))
    blocks = plain_list(pack.hash_bytes, hashes, map(len, buffers), checks)
    buffers.append(encode_footer(blocks))
    return tokens, blocks, buffers


def _file_starts(tokens: Sequence[Token]) -> list[int]:
    """The places at which another job's blocks begin."""
    jobs = [token[0] for token in tokens]
    return [0, *(place for place, (before, job) in enumerate(pairwise(jobs), 1) if before != job)]
