"""Seeing a folder's content: items, directories, versions, and the bytes of files. Changes nothing, and needs no node: any state of a store
with its packs will do, so that it serves the folder view of a node as well as a store that is only read.

Of folders that others encrypted the encrypted names are seen, and what lies below them as it is stored. Directories in such names, as
`X.syncthing-enc`, are no items: they are shown where something lies below (bep-facts 10.4, 10.9).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from sqlite3 import Connection
from typing import Final

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Conflict, Invalid, NotFound
from stnode.folder.announcing import announced_files
from stnode.folder.entries import Entry, Version, deleted_versions, entry_of, versions
from stnode.folder.paths import clean, clean_or_root
from stnode.protocol.fileinfo import FileType
from stnode.repo import past, state
from stnode.repo.addresses import FileMap
from stnode.repo.packlist import PackLists
from stnode.repo.reader import Reader
from stnode.repo.records import UNCONDITIONAL, Condition, Record
from stnode.repo.settings import FolderSettings

PAGE: Final = 1000

_READ_BYTES: Final = 4 << 20
_SEALED_BYTES: Final = 1 << 20
_SEALED_ROWS: Final = 20
_JUMP_ROWS: Final = 64
_ROOT_PERMISSIONS: Final = 0o755
_HISTORY_HINT: Final = "`stnode history` shows which versions there are"
_BEHIND_ALL: Final = "/\U0010ffff"
_Read = Callable[[Connection, str, int], list[Record]]


class FolderReader:
    """One folder of a state in `db`. `follow` brings the state to the journal's head, where there is a journal that is followed."""

    def __init__(
        self,
        env: Env,
        db: Database,
        reader: Reader,
        packlists: PackLists,
        follow: Callable[[], Awaitable[None]],
        fid: int,
        settings: FolderSettings,
    ) -> None:
        self._env, self._db, self._reader, self._packlists, self._follow = env, db, reader, packlists, follow
        self._fid, self.settings = fid, settings

    async def stat(self, path: str, at_us: int | None = None) -> Entry:
        """The item at `path`, as it was at a store time if that is given; raises NotFound, Invalid."""
        name = clean_or_root(path)
        if not name:
            return Entry("", FileType.DIRECTORY, 0, 0, _ROOT_PERMISSIONS, "", (), 0)
        try:
            return entry_of(await self._record(name, at_us))
        except NotFound:
            if self.settings.encrypted and await self._db.run(lambda conn: bool(self._walk_of(name + "/", at_us)(conn, "", 1))):
                return _virtual(name)
            raise

    async def list_dir(self, path: str = "", after: str = "", limit: int = PAGE, at_us: int | None = None) -> list[Entry]:
        """The next `limit` items directly in a directory, by full name, that follow the item `after` (full name, "" = from the start);
        fewer means that these were the last. With `at_us` as it was at that store time. Raises NotFound, and Invalid for what is no
        directory."""
        name = await self._directory(path, at_us)
        if self.settings.encrypted:
            walk = self._walk_of(name + "/" if name else "", at_us)
            return await self._db.run(partial(_encrypted_children, walk=walk, directory=name, after=after, limit=limit))
        if at_us is not None:
            return await self._page(lambda conn, last, count: past.children_at(conn, self._fid, name, last, count, at_us), after, limit)
        return await self._page(lambda conn, last, count: state.children(conn, self._fid, name, after=last, limit=count), after, limit)

    async def walk(self, path: str = "", after: str = "", limit: int = PAGE, at_us: int | None = None) -> list[Entry]:
        """The next `limit` items below a directory at any depth, in byte order of full names: parents come before what is in them. With
        `at_us` as it was at that store time."""
        name = await self._directory(path, at_us)
        return await self._page(self._walk_of(name + "/" if name else "", at_us), after, limit)

    async def versions(self, path: str) -> list[Version]:
        """All versions of an item that are to be had, the newest first; one that says that it was deleted is among them. Raises
        NotFound."""
        name = clean(path)
        found = await self._db.run(lambda conn: versions(conn, self._fid, name))
        if not found:
            raise NotFound(f"{name} was never in folder {self.settings.folder_id!r}, or nothing of it is kept")
        return found

    async def deleted(self, path: str = "", after: str = "", limit: int = PAGE, *, recursive: bool = False) -> list[Version]:
        """What was deleted in a directory, or with `recursive` anywhere below it, by full name after `after`: of each item the version
        that was deleted, or, where that is not kept, the deletion. Also for a directory that is deleted itself."""
        name = clean_or_root(path)
        return await self._db.run(lambda conn: deleted_versions(conn, self._fid, name, after, limit, recursive=recursive))

    async def read(
        self,
        path: str,
        offset: int = 0,
        length: int | None = None,
        condition: Condition = UNCONDITIONAL,
        at_us: int | None = None,
    ) -> AsyncIterator[memoryview]:
        """A file's bytes from `offset` on, in pieces of up to 4 MiB, verified, with `at_us` as it was at that store time. Cut at the end of
        the file. Raises NotFound, Invalid for what is no file, Conflict when it is not the version of `condition`, and what reading the
        store raises. Nothing is read ahead of the caller but what the store's reader keeps."""
        record = await self._record(clean(path), at_us)
        if record.info.type is not FileType.FILE:
            raise Invalid(f"{path} is a {record.info.type.name.lower()}, not a file")
        if condition is not UNCONDITIONAL and record.info.version != condition:
            raise Conflict(f"{path} has changed", hint="read it again from the start")
        if offset < 0 or (length is not None and length < 0):
            raise Invalid(f"bytes {offset}+{length} of {path} cannot be read")
        end = record.info.size if length is None else min(record.info.size, offset + length)
        async for piece in self._pieces(record, offset, end):
            yield piece

    async def sealed(
        self, path: str, after: str, at_us: int | None = None, *, blocks: bool = False
    ) -> tuple[list[tuple[Record, bytes]], bool]:
        """Of an encrypted folder the next items at or below an encrypted name that follow `after`, at most PAGE, each with its FileInfo as it
        came, encoded; and whether more follow. With `blocks` the tokens of the blocks are in it. Raises Invalid for an ordinary folder."""
        if not self.settings.encrypted:
            raise Invalid(
                f"folder {self.settings.folder_id!r} is not encrypted: there is nothing to decrypt",
                hint="use it as it is, without a password",
            )
        name = clean_or_root(path)
        found: list[Record] = []
        more = True
        if name and not after:
            with suppress(NotFound):
                found.append(await self._record(name, at_us))
        if not found:
            walk = self._walk_of(name + "/" if name else "", at_us)
            found, more = await self._db.run(partial(_sealed_page, walk=walk, after=after))
        if not found and name and not after:
            raise NotFound(f"{name} does not exist in folder {self.settings.folder_id!r}")
        if blocks:
            encoded = await announced_files(self._env, self._packlists, found)
        else:
            encoded = [record.info.wire for record in found]
        return list(zip(found, encoded, strict=True)), more

    # --- inside

    async def _record(self, name: str, at_us: int | None = None) -> Record:
        if at_us is None:
            record = (await self._db.run(lambda conn: state.get_records(conn, self._fid, [name]))).get(name)
        else:
            record = (await self._db.run(lambda conn: past.records_at(conn, self._fid, [name], at_us))).get(name)
        if record is None or record.info.deleted or record.info.invalid:
            when = "does not exist" if at_us is None else "did not exist then"
            raise NotFound(f"{name} {when} in folder {self.settings.folder_id!r}", hint="" if at_us is None else _HISTORY_HINT)
        return record

    async def _directory(self, path: str, at_us: int | None = None) -> str:
        name = clean_or_root(path)
        if name and (await self.stat(name, at_us)).type is not FileType.DIRECTORY:
            raise Invalid(f"{path} is not a directory")
        return name

    def _walk_of(self, prefix: str, at_us: int | None) -> _Read:
        """Reads items below a prefix, now or at a store time: (connection, name that they follow, how many)."""
        if at_us is None:
            return lambda conn, last, count: state.walk(conn, self._fid, prefix, last, count)
        return lambda conn, last, count: past.walk_at(conn, self._fid, prefix, last, count, at_us)

    async def _page(self, read: _Read, after: str, limit: int) -> list[Entry]:
        """A full page of valid entries if there are as many."""

        def collect(conn: Connection) -> list[Record]:
            found: list[Record] = []
            last = after
            while len(found) < limit:
                rows = read(conn, last, limit - len(found))
                if not rows:
                    break
                last = rows[-1].name
                found += [record for record in rows if not record.info.invalid]
            return found

        return [entry_of(record) for record in await self._db.run(collect)]

    async def _pieces(self, record: Record, offset: int, end: int) -> AsyncIterator[memoryview]:
        block_size, size = record.info.block_size, record.info.size
        blocks = FileMap(record.extents)
        while offset < end:
            first = offset // block_size
            pack, place, count = blocks.run_at(first)
            count = min(count, max(1, _READ_BYTES // block_size), -(-end // block_size) - first)
            if pack:
                data = await self._blocks(pack, place, count)
            else:
                data = [memoryview(bytes(min(block_size, size - number * block_size))) for number in range(first, first + count)]
            for block in data:
                start = offset - first * block_size
                piece = block[start : min(len(block), end - first * block_size)]
                offset += len(piece)
                first += 1
                yield piece

    async def _blocks(self, pack: int, place: int, count: int) -> Sequence[memoryview]:
        """A pack that is gone was repacked, or we are behind: follow to the head, then look again (R15)."""
        try:
            return await self._reader.blocks(pack, place, count)
        except NotFound:
            await self._follow()
            return await self._reader.blocks(pack, place, count)


def _virtual(name: str) -> Entry:
    """A directory that is only a part of encrypted names."""
    return Entry(name, FileType.DIRECTORY, 0, 0, _ROOT_PERMISSIONS, "", (), 0)


def _encrypted_children(conn: Connection, walk: _Read, directory: str, after: str, limit: int) -> list[Entry]:
    """What is directly in a directory of encrypted names, by full name: items, and directories that are none, what is in these jumped over."""
    start = len(directory) + 1 if directory else 0
    last = after + _BEHIND_ALL if after else ""
    found: list[Entry] = []
    while len(found) < limit and (rows := walk(conn, last, _JUMP_ROWS)):
        jump = False
        for record in rows:
            child, slash, _ = record.name[start:].partition("/")
            name = record.name[:start] + child
            if slash and not (found and found[-1].name == name):
                found.append(_virtual(name))
            elif not slash and not record.info.invalid:
                found.append(entry_of(record))
            last = name + _BEHIND_ALL if slash else record.name
            if slash:
                jump = True
                break
        if not jump and len(rows) < _JUMP_ROWS:
            break
    return found[:limit]


def _sealed_page(conn: Connection, walk: _Read, after: str) -> tuple[list[Record], bool]:
    """Items that follow `after`, as many as one answer may hold, and whether more may follow."""
    found: list[Record] = []
    size = 0
    while len(found) < PAGE and size < _SEALED_BYTES:
        rows = walk(conn, after, min(_SEALED_ROWS, PAGE - len(found)))
        found += [record for record in rows if not record.info.invalid]
        size += sum(len(record.info.wire) for record in rows)
        if not rows:
            return found, False
        after = rows[-1].name
    return found, True
