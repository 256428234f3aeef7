"""Content of local changes into packs: chunks of any size become blocks, hashed in threads, less what the store has already.

Files of up to 16 MiB are held until their hashes are known, so that a whole file that is stored somewhere costs nothing; they share
packs (`Filler`). Larger ones stream through packs of their own and share what equals their own old version block by block.

Memory for one large file: a group of 4 MiB and three packs.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from sqlite3 import Connection
from typing import Final

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Invalid, Unavailable
from stnode.folder.announcing import block_hashes
from stnode.folder.filler import Block, Filler, Shared
from stnode.folder.planner import Place
from stnode.objectstore.base import Buffer
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.repo import state
from stnode.repo.addresses import join_places, packs_of
from stnode.repo.pack import PLAIN_HASH_BYTES
from stnode.repo.packer import OpenPack, SealedPack
from stnode.repo.records import UNCONDITIONAL, Condition, Draft, Extents, Record
from stnode.repo.settings import FolderSettings
from stnode.repo.store import Store

HELD_BYTES: Final = 16 << 20
"""Larger files are streamed."""
UNKNOWN_SIZE: Final = 2 << 30
"""What a stream of unknown length is taken for when its block size is chosen: 1 MiB blocks."""

_GROUP_BYTES: Final = 4 << 20
_SEALS: Final = 2
_NEW_FILE_PERMISSIONS: Final = 0o644


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What a client says of a file beside its content; None: as the file had it, or now and the default."""

    name: str
    modified_ns: int | None = None
    permissions: int | None = None
    condition: Condition = UNCONDITIONAL


@dataclass(frozen=True, slots=True)
class Held:
    """A small file in memory, cut into blocks of the smallest size."""

    meta: FileMeta
    size: int
    blocks: Sequence[memoryview | bytes]


@dataclass(frozen=True, slots=True)
class Stored:
    """A small file whose blocks are known or on their way in `packs`; `where` misses those of `job`."""

    draft: Draft
    where: list[Place | None]
    job: int
    packs: Sequence[Shared]


class Writer:
    """Makes drafts of content for one folder. `me` is the node's short ID, `local_flags` what local changes are flagged with."""

    def __init__(
        self, env: Env, db: Database, store: Store, filler: Filler, fid: int, settings: FolderSettings, me: int, local_flags: int
    ) -> None:
        self._env, self._db, self._store, self._filler, self._fid, self._settings = env, db, store, filler, fid, settings
        self._me, self._local_flags = me, local_flags

    async def hold(self, batch: Sequence[Held]) -> list[Stored]:
        """Small files on their way into packs; `finish` makes drafts of them. Names must differ."""
        blocks = [block for file in batch for block in file.blocks]
        digests = await self._hash(blocks)
        made_on = self._store.histories
        olds = await self._olds([file.meta.name for file in batch])
        infos: list[FileInfo] = []
        at = 0
        for file in batch:
            hashes = b"".join(digests[at : at + len(file.blocks)]) or fileinfo.zero_hash(0)
            at += len(file.blocks)
            infos.append(self._info(file.meta, olds.get(file.meta.name), file.size, fileinfo.block_size_for(file.size), hashes))
        found = await self._store.dedupe.find(self._fid, [info for info in infos if info.size])
        runs = iter(found)
        stored: list[Stored] = []
        for file, info in zip(batch, infos, strict=True):
            where: list[Place | None] = [None] * len(file.blocks)
            for start, (pack, place, count) in next(runs) if info.size else ():
                where[start : start + count] = [(pack, place + offset if pack else 0) for offset in range(count)]
            missing: list[Block] = [
                (number, file.blocks[number], info.block_hashes[number * PLAIN_HASH_BYTES : (number + 1) * PLAIN_HASH_BYTES])
                for number, place in enumerate(where)
                if place is None
            ]
            job = self._filler.new_job()
            await self._filler.room()
            draft = self._draft(file.meta, info, olds.get(file.meta.name), (), made_on)
            stored.append(Stored(draft, where, job, self._filler.add(job, missing)))
        return stored

    async def finish(self, stored: Sequence[Stored]) -> list[Draft]:
        """Waits until all blocks are in the store; the drafts, in the same order."""
        packs = list(dict.fromkeys(pack for file in stored for pack in file.packs))
        sealed = dict(zip(packs, await self._filler.durable(packs), strict=True))
        drafts: list[Draft] = []
        for file in stored:
            where = list(file.where)
            for number, place in enumerate(where):
                if place is None:
                    where[number] = _placed((sealed[pack] for pack in file.packs), file.job, number)
            drafts.append(replace(file.draft, extents=join_places(_all(where))))
        return drafts

    async def stream(self, meta: FileMeta, chunks: AsyncIterable[Buffer], size: int | None) -> Draft:
        """A large file, durable when this returns. Raises Invalid, nothing kept, when it is not `size` bytes long."""
        made_on = self._store.histories
        old = (await self._olds([meta.name])).get(meta.name)
        old_info = old.info if old is not None and _is_file(old) else None
        block_size = fileinfo.block_size_for(UNKNOWN_SIZE if size is None else size, old_info.block_size if old_info else 0)
        old_hashes, old_places = b"", list[Place]()
        if old is not None and old_info is not None and old_info.block_size == block_size:
            old_hashes = await self._hashes(old)
            old_places = [(pack, place + offset if pack else 0) for pack, place, count in old.extents for offset in range(count)]
        sink = _Stream(self._env, self._store, self._fid, self._filler.new_job())
        hashes = bytearray()
        length = 0
        try:
            async for group in _groups(cut(chunks, block_size), _GROUP_BYTES):
                digests = await self._hash(group)
                for block, digest in zip(group, digests, strict=True):
                    number, start = len(sink.where), len(hashes)
                    hashes += digest
                    length += len(block)
                    if old_hashes[start : start + PLAIN_HASH_BYTES] == digest and number < len(old_places):
                        sink.where.append(old_places[number])
                    elif len(block) == block_size and digest == fileinfo.zero_hash(block_size):
                        sink.where.append((0, 0))
                    else:
                        await sink.add(block, digest)
            if size is not None and length != size:
                raise Invalid(
                    f"{meta.name}: {length} bytes came, {size} were announced", hint="the file changed while it was read; try again"
                )
            await sink.finish()
        finally:
            await sink.close()
        info = self._info(meta, old, length, block_size, bytes(hashes) or fileinfo.zero_hash(0))
        return self._draft(meta, info, old, join_places(_all(sink.where)), made_on)

    async def copied(self, draft: Draft) -> Draft:
        """The same draft with its blocks uploaded once more: those of the store may not be named any more (RETRY_UPLOAD)."""
        sink = _Stream(self._env, self._store, self._fid, self._filler.new_job())
        number = 0
        try:
            for pack, place, count in draft.extents:
                if not pack:
                    sink.where += [(0, 0)] * count
                    number += count
                    continue
                for at in range(count):
                    (block,) = await self._store.reader.blocks(pack, place + at, 1)
                    digest = draft.info.block_hashes[number * PLAIN_HASH_BYTES : (number + 1) * PLAIN_HASH_BYTES]
                    if await self._hash([block]) != [digest]:  # the pack's number means another one since the bucket was put back
                        raise Unavailable(f"{draft.info.name}: the bucket was put back meanwhile", hint="try again")
                    await sink.add(block, digest)
                    number += 1
            await sink.finish()
        finally:
            await sink.close()
        return replace(draft, extents=join_places(_all(sink.where)), made_on=None)

    async def previous_hash(self, record: Record | None) -> bytes:
        """`previous_blocks_hash` for a change of this record."""
        if record is None or not _is_file(record):
            return b""
        return fileinfo.blocks_hash(await self._hashes(record))

    async def loaded(self, record: Record) -> FileInfo:
        """The record's FileInfo with block hashes."""
        info = record.info
        return fileinfo.from_record(info.wire, record.sequence, await self._hashes(record))

    async def _hashes(self, record: Record) -> bytes:
        await self._store.packlists.ensure(packs_of(record.extents))
        return block_hashes(self._store.packlists, record.info, record.extents)

    async def _hash(self, blocks: Sequence[memoryview | bytes]) -> list[bytes]:
        return await self._env.threads.run(_hash_all, blocks) if blocks else []

    async def _olds(self, names: Sequence[str]) -> dict[str, Record]:
        """Current records of the names, deleted ones too; of files with their block hashes, for `previous_blocks_hash`."""

        def read(conn: Connection) -> dict[str, Record]:
            return state.get_records(conn, self._fid, names)

        olds = await self._db.run(read)
        for name, record in olds.items():
            if _is_file(record):
                olds[name] = Record(record.fid, name, record.sequence, await self.loaded(record), record.extents, record.local_flags)
        return olds

    def _info(self, meta: FileMeta, old: Record | None, size: int, block_size: int, hashes: bytes) -> FileInfo:
        modified_ns = self._env.clock.now_ns() if meta.modified_ns is None else meta.modified_ns
        was_file = old is not None and _is_file(old)
        permissions = meta.permissions
        if permissions is None:
            permissions = (
                old.info.permissions & 0o777 if old is not None and was_file and not old.info.no_permissions else _NEW_FILE_PERMISSIONS
            )
        return fileinfo.new(
            name=meta.name,
            type=FileType.FILE,
            version=() if old is None else old.info.version,
            modified_by=self._me,
            size=size,
            permissions=permissions & 0o777,
            modified_s=modified_ns // 1_000_000_000,
            modified_ns=modified_ns % 1_000_000_000,
            no_permissions=self._settings.ignore_permissions,
            block_size=block_size,
            block_hashes=hashes,
            previous_blocks_hash=fileinfo.blocks_hash(old.info.block_hashes) if old is not None and was_file else b"",
        )

    def _draft(self, meta: FileMeta, info: FileInfo, old: Record | None, extents: Extents, made_on: int) -> Draft:
        base = None if old is None else old.info.version
        flags = self._local_flags
        return Draft(self._fid, info, extents, local=True, base=base, condition=meta.condition, local_flags=flags, made_on=made_on)


class _Stream:
    """Packs of one large file, filled in order, two of them on their way at most."""

    def __init__(self, env: Env, store: Store, fid: int, job: int) -> None:
        self.where: list[Place | None] = []
        self._env, self._packer, self._fid, self._job = env, store.packer, fid, job
        self._pack: OpenPack | None = None
        self._seals: list[asyncio.Task[SealedPack]] = []

    async def add(self, data: memoryview | bytes, digest: bytes) -> None:
        if self._pack is None:
            self._pack = self._packer.begin(self._fid, stream=True)
        self._pack.add((self._job, len(self.where)), data, digest)
        self.where.append(None)
        if self._pack.full:
            await self._settle(_SEALS - 1)
            self._seal()

    async def finish(self) -> None:
        """All blocks are durable when this returns."""
        if self._pack is not None:
            self._seal()
        await self._settle(0)

    async def close(self) -> None:
        """Gives up what is not durable; nothing after `finish`."""
        if self._pack is not None:
            self._packer.discard(self._pack)
        for task in self._seals:
            task.cancel()
        await asyncio.gather(*self._seals, return_exceptions=True)

    def _seal(self) -> None:
        assert self._pack is not None
        self._seals.append(self._env.spawn(self._packer.seal(self._pack), "seal of a large file"))
        self._pack = None

    async def _settle(self, left: int) -> None:
        while len(self._seals) > left:
            sealed = await asyncio.shield(self._seals[0])
            del self._seals[0]
            for (_, number), place in sealed.places.items():
                self.where[number] = (sealed.handle, place)


async def cut(chunks: AsyncIterable[Buffer], block_size: int) -> AsyncIterator[memoryview | bytes]:
    """Blocks of a stream of chunks, the last one shorter. Chunks are kept, not copied, where a block lies within one: whoever makes
    them must not change them afterwards."""
    rest = bytearray()
    async for chunk in chunks:
        view = memoryview(chunk).cast("B")
        at = min(block_size - len(rest), len(view)) if rest else 0
        rest += view[:at]
        if len(rest) == block_size:
            yield memoryview(rest)
            rest = bytearray()
        while len(view) - at >= block_size:
            yield view[at : at + block_size]
            at += block_size
        rest += view[at:]
    if rest:
        yield memoryview(rest)


async def _groups(blocks: AsyncIterator[memoryview | bytes], most_bytes: int) -> AsyncIterator[list[memoryview | bytes]]:
    group: list[memoryview | bytes] = []
    size = 0
    async for block in blocks:
        group.append(block)
        size += len(block)
        if size >= most_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def _hash_all(blocks: Sequence[memoryview | bytes]) -> list[bytes]:
    return [hashlib.sha256(block).digest() for block in blocks]


def _placed(packs: Iterable[SealedPack], job: int, number: int) -> Place:
    return next((pack.handle, pack.places[job, number]) for pack in packs if (job, number) in pack.places)


def _all(where: Iterable[Place | None]) -> Iterator[Place]:
    """The places of blocks, of which none may be missing any more."""
    for place in where:
        assert place is not None
        yield place


def _is_file(record: Record) -> bool:
    return record.info.type is FileType.FILE and not record.info.deleted
