"""A receive-encrypted folder read with its password: plain names and contents over the `SealedFiles` of whoever has the ciphertext.

The password comes here and goes no further: neither to the daemon nor to the store, nor into messages. Names are encrypted whole, so that
listing one directory means decrypting all names: that is done once per moment, in threads, and kept.

Every item's metadata is authenticated by its file's key, every block by that and by its SHA-256. What a store could do unnoticed is to show
an older version of an item, or to leave it out. Items that do not decrypt have no plain name: `broken` tells them.
"""

from __future__ import annotations

import asyncio
import hashlib
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Any, Final, NamedTuple, cast

from stnode.clock import Env
from stnode.errors import Conflict, Corrupt, Invalid, NotFound, ProtocolError, Refused, StnodeError
from stnode.node.service import PAGE, Entry, EntryType, Listing, SealedFiles, SealedItem
from stnode.protocol import encryption, fileinfo
from stnode.protocol.blocks import HASH_BYTES
from stnode.protocol.encryption import LEAST_BLOCK, OVERHEAD, FolderCipher
from stnode.protocol.fileinfo import FileInfo, FileType

MEMORY_BYTES: Final = 96 << 20
"""Ciphertext on its way through the threads, of all files that are read at once; one batch always may be."""
BATCH_BYTES: Final = 1 << 20
"""Small blocks go to a thread by so many bytes."""
BATCHES_AHEAD: Final = 2
NAMES_AT_ONCE: Final = 200
KEPT_INFO_BYTES: Final = 2048
"""Metadata up to this size is kept with the names; that of large files is asked for again when they are read."""

_TYPES: Final[dict[FileType, EntryType]] = {FileType.FILE: "file", FileType.DIRECTORY: "directory", FileType.SYMLINK: "symlink"}


class _Item(NamedTuple):
    """`entry` is plain, `sealed` the item's encrypted path; `info` its FileInfo as it came, None where that is large."""

    entry: Entry
    sealed: str
    info: bytes | None


@dataclass(slots=True)
class _Index:
    """All items of one moment. `names` are sorted by their bytes, so are the full names in each list of `children`, by directory; among
    them directories of which there is no item."""

    names: list[str] = field(default_factory=list)
    items: dict[str, _Item] = field(default_factory=dict)
    children: dict[str, list[str]] = field(default_factory=dict)
    broken: list[tuple[str, StnodeError]] = field(default_factory=list)


class Unsealed:
    """`Files` of one folder, for one command: what there is at a moment is looked up once, "" is the moment of the first question."""

    def __init__(self, files: SealedFiles, env: Env, folder: str, cipher: FolderCipher) -> None:
        self.folder = folder
        self._files = files
        self._env = env
        self._cipher = cipher
        self._indexes: dict[str, _Index] = {}
        self._budget = _Budget(MEMORY_BYTES)

    async def broken(self, at: str = "") -> Sequence[tuple[str, StnodeError]]:
        """Encrypted paths of the items whose metadata does not decrypt, and why."""
        return (await self._index(at)).broken

    async def time_of(self, at: str) -> int:
        return await self._files.time_of(at)

    async def stat(self, path: str, at: str = "") -> Entry:
        name, index = _inside(path), await self._index(at)
        if name in index.items:
            return index.items[name].entry
        if name and name not in index.children:
            raise NotFound(f"{name} does not exist in folder {self.folder!r}")
        return self._directory(name)

    def _directory(self, name: str) -> Entry:
        """The folder itself, or a directory of which there is no item."""
        return Entry(f"{self.folder}/{name}" if name else self.folder, "directory")

    async def ls(self, path: str, recursive: bool = False, after: str | None = None, at: str = "") -> Listing:
        top = await self.stat(path, at)
        if top.type != "directory":
            return Listing((top,))
        name, index = _inside(top.path), await self._index(at)
        names, begin, end = index.names, 0, len(index.names)
        if not recursive:
            names = index.children.get(name, [])
            end = len(names)
        elif name:
            begin, end = bisect_left(names, f"{name}/"), bisect_left(names, f"{name}0")  # "0" follows "/"
        if after:
            begin = max(begin, bisect_right(names, _inside(after)))
        page = names[begin : min(end, begin + PAGE)]
        found = tuple(index.items[each].entry if each in index.items else self._directory(each) for each in page)
        return Listing(found, found[-1].path if len(found) == PAGE else None)

    async def read(self, path: str, offset: int = 0, length: int | None = None, revision: str = "", at: str = "") -> AsyncIterator[bytes]:
        """As `Files.read`. Raises Corrupt, naming file and block, for what is not what the file's metadata says."""
        entry = await self.stat(path, at)
        if entry.type != "file":
            raise Invalid(f"{path} is a {entry.type}, not a file")
        if offset < 0 or (length is not None and length < 0):
            raise Invalid(f"bytes {offset}+{length} of {path} cannot be read")
        item = (await self._index(at)).items[_inside(entry.path)]
        info = await self._info(item, at)
        file = await self._env.threads.run(_File, item.sealed, info, self._cipher)
        end = file.size if length is None else min(file.size, offset + length)
        if offset >= end and file.size:
            return
        blocks = file.blocks(offset, end)
        place = blocks.start * file.block_size
        async with self._budget.held(file.memory_bytes(blocks)):
            sealed = self._files.read(
                item.sealed, blocks.start * (file.block_size + OVERHEAD), file.sealed_bytes(blocks), item.entry.revision, at
            )
            async with aclosing(cast("Any", sealed)) as pieces, aclosing(cast("Any", self._opened(file, blocks, pieces))) as opened:
                async for block in opened:
                    piece = block[max(offset - place, 0) : max(end - place, 0)]
                    place += len(block)
                    if piece:
                        yield bytes(piece)

    async def _opened(self, file: _File, blocks: range, pieces: AsyncIterator[bytes]) -> AsyncIterator[memoryview]:
        """The plain blocks in order; batches that follow are in the threads while one is taken."""
        under_way: deque[asyncio.Task[list[memoryview]]] = deque()
        try:
            async with aclosing(cast("Any", _gathered(file, blocks, pieces))) as batches:
                async for batch, data in batches:
                    if len(under_way) > BATCHES_AHEAD:
                        for block in await under_way.popleft():
                            yield block
                    under_way.append(self._env.spawn(self._env.threads.run(file.open, batch, data), f"decryption of {file.sealed}"))
            while under_way:
                for block in await under_way.popleft():
                    yield block
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    # --- names

    async def _index(self, at: str) -> _Index:
        if at not in self._indexes:
            self._indexes[at] = await self._read_index(at)
        return self._indexes[at]

    async def _read_index(self, at: str) -> _Index:
        index = _Index()
        after: str | None = None
        while True:
            page = await self._files.sealed(self.folder, after, at)
            for start in range(0, len(page.items), NAMES_AT_ONCE):
                await self._env.threads.run(self._add, index, page.items[start : start + NAMES_AT_ONCE])
            if page.next is None:
                break
            after = page.next
        await self._env.threads.run(_sort, index)
        return index

    def _add(self, index: _Index, items: Sequence[SealedItem]) -> None:
        """Decrypts names and metadata. For a thread; one at a time."""
        for item in items:
            try:
                real = _real(item.path, item.info, self._cipher)
            except StnodeError as exc:
                index.broken.append((item.path, exc))
                continue
            entry = Entry(
                f"{self.folder}/{real.name}",
                _TYPES[real.type],
                real.size,
                real.modified_s * 1_000_000_000 + real.modified_ns,
                None if real.no_permissions else real.permissions & 0o777,
                real.symlink_target.decode(errors="replace"),
                item.revision,
            )
            index.items[real.name] = _Item(entry, item.path, item.info if len(item.info) <= KEPT_INFO_BYTES else None)

    async def _info(self, item: _Item, at: str) -> bytes:
        """The item's metadata as it came."""
        if item.info is not None:
            return item.info
        found = (await self._files.sealed(item.sealed, None, at)).items[0]
        if found.path != item.sealed or found.revision != item.entry.revision:
            raise Conflict(f"{item.entry.path} has changed meanwhile", hint="run the command again")
        return found.info


async def unseal(files: SealedFiles, env: Env, path: str, password: str) -> Unsealed:
    """The folder of FOLDER/PATH. Raises Invalid for an ordinary one, Refused for a password that is not the one it was encrypted with."""
    encryption.check_library()
    page = await files.sealed(path.partition("/")[0])
    key = await env.threads.run(encryption.folder_key, page.folder, password)
    cipher = FolderCipher(page.folder, key, env.random.bytes)
    if page.token:
        right = compare_digest(cipher.token, page.token)
    else:  # nobody has said one yet, so that only the items themselves tell
        right = not page.items or any(_opens(cipher, item) for item in page.items[:NAMES_AT_ONCE])
    if not right:
        raise Refused(
            f"this is not the password that folder {page.folder!r} was encrypted with",
            hint="take the one that the folder's trusted devices have for the device which stores it; the folder's ID is a part of the key too",
        )
    return Unsealed(files, env, page.folder, cipher)


class _File:
    """A file's metadata, decrypted, and what follows from it for its ciphertext."""

    def __init__(self, sealed: str, info: bytes, cipher: FolderCipher) -> None:
        real = _real(sealed, info, cipher)
        self.sealed = sealed
        self.size, self.block_size = real.size, real.block_size
        self._lengths = fileinfo.block_lengths(real.size, real.block_size)
        self._hashes = real.block_hashes
        self._name = real.name
        self._cipher = cipher.file(real.name)
        if len(self._hashes) != len(self._lengths) * HASH_BYTES:
            raise Corrupt(f"{real.name} has a list of blocks that does not fit its size")

    def blocks(self, offset: int, end: int) -> range:
        """Those that hold the bytes from `offset` to before `end`; of an empty file its one, empty block."""
        first = offset // self.block_size
        return range(first, max(-(-end // self.block_size), first + 1))

    def sealed_bytes(self, blocks: range) -> int:
        """How much ciphertext these blocks are; only a file's last block is ever filled up."""
        return sum(max(self._lengths[number], LEAST_BLOCK) + OVERHEAD for number in blocks)

    def batches(self, blocks: range) -> Iterator[range]:
        """The blocks in parts that a thread takes at once."""
        step = max(1, BATCH_BYTES // self.block_size)
        for first in range(blocks.start, blocks.stop, step):
            yield range(first, min(first + step, blocks.stop))

    def memory_bytes(self, blocks: range) -> int:
        """What reading them takes at most, about."""
        batch = max(BATCH_BYTES, self.block_size)
        return min(self.sealed_bytes(blocks), batch * (BATCHES_AHEAD + 2)) * 2

    def open(self, blocks: range, data: bytes) -> list[memoryview]:
        """The blocks, plain and verified; raises Corrupt. For a thread."""
        found: list[memoryview] = []
        view, place = memoryview(data), 0
        for number in blocks:
            sealed = view[place : place + max(self._lengths[number], LEAST_BLOCK) + OVERHEAD]
            place += len(sealed)
            plain = self._cipher.unseal_block(sealed, self._lengths[number])
            if plain is None:
                raise Corrupt(f"block {number} of {self._name} does not decrypt: {len(sealed)} bytes of {self.sealed}", hint=_HINT)
            if not compare_digest(hashlib.sha256(plain).digest(), self._hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES]):
                raise Corrupt(f"block {number} of {self._name} is not what the file's metadata says, stored in {self.sealed}", hint=_HINT)
            found.append(plain)
        return found


_HINT: Final = (
    "the file was damaged, or changed while it was encrypted; a trusted device that has it can send it again, `--at` shows older versions"
)


async def _gathered(file: _File, blocks: range, pieces: AsyncIterator[bytes]) -> AsyncIterator[tuple[range, bytes]]:
    """Ciphertext that comes in pieces of any size, in batches of whole blocks. Raises Corrupt when it ends too early."""
    kept: list[bytes] = []
    size = 0
    for batch in file.batches(blocks):
        wanted = file.sealed_bytes(batch)
        while size < wanted:
            piece = await anext(pieces, b"")
            if not piece:
                raise Corrupt(f"{file.sealed} is shorter than its metadata says", hint=_HINT)
            kept.append(piece)
            size += len(piece)
        data = b"".join(kept)
        yield batch, data[:wanted]
        kept, size = [data[wanted:]], size - wanted


class _Budget:
    """Bytes that several readers share. Whoever waits has none yet, so nobody waits for ever; one that wants more than all gets all."""

    def __init__(self, size_bytes: int) -> None:
        self._size = self._free = size_bytes
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def held(self, wanted: int) -> AsyncIterator[None]:
        wanted = min(wanted, self._size)
        while self._free < wanted:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        self._free -= wanted
        try:
            yield
        finally:
            self._free += wanted
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiting.clear()


def _real(sealed: str, info: bytes, cipher: FolderCipher) -> FileInfo:
    """The plain item of an encrypted one. Raises Corrupt."""
    try:
        real = cipher.decrypt_item(fileinfo.from_record(info))
    except ProtocolError as exc:
        raise Corrupt(f"{sealed}: {exc.message}", hint="the item was damaged, or did not come from a device that has the password") from exc
    if cipher.file(real.name).encrypted_name != _inside(sealed):
        raise Corrupt(f"{sealed} lies under a name that is not its own")
    return real


def _opens(cipher: FolderCipher, item: SealedItem) -> bool:
    try:
        _real(item.path, item.info, cipher)
    except StnodeError:
        return False
    return True


def _sort(index: _Index) -> None:
    """Puts names in order and finds what is in which directory. For a thread."""
    index.names = sorted(index.items)
    for name in index.names:
        directory = name.rpartition("/")[0]
        known = directory in index.children
        index.children.setdefault(directory, []).append(name)
        while directory and not known and directory not in index.items:
            name, directory = directory, directory.rpartition("/")[0]
            known = directory in index.children
            index.children.setdefault(directory, []).append(name)
    for each in index.children.values():
        each.sort()


def _inside(path: str) -> str:
    return path.partition("/")[2].rstrip("/")
