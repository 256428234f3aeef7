"""The reading part of `Service` on folders of this process: a node's, or those of a store that is only read (`offline.py`)."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar, cast

from stnode.errors import Conflict, Invalid
from stnode.folder import entries
from stnode.folder.reading import FolderReader
from stnode.node import moments
from stnode.node.service import PAGE, Entry, EntryType, FolderSettings, Listing, SealedItem, SealedPage
from stnode.protocol.fileinfo import FileType

R = TypeVar("R", bound=FolderReader)
_TYPES: dict[FileType, EntryType] = {FileType.FILE: "file", FileType.DIRECTORY: "directory", FileType.SYMLINK: "symlink"}


class FileReading(ABC):
    """See `SealedFiles`; who extends this knows the folders and the time."""

    @abstractmethod
    def _at(self, path: str) -> tuple[FolderReader, str, str]:
        """(folder, its ID, path inside) of FOLDER/PATH; raises NotFound."""

    @abstractmethod
    async def _present_us(self) -> int:
        """The store's present time."""

    @abstractmethod
    async def folder_list(self) -> tuple[FolderSettings, ...]: ...

    async def time_of(self, at: str) -> int:
        return moments.parse(at, await self._present_us())

    async def _moment(self, at: str) -> int | None:
        return await self.time_of(at) if at else None

    async def ls(self, path: str, recursive: bool = False, after: str | None = None, at: str = "") -> Listing:
        if not path:
            return Listing(tuple(Entry(folder.id, "directory") for folder in await self.folder_list()))
        found, folder, inside = self._at(path)
        at_us = await self._moment(at)
        top = await found.stat(inside, at_us)
        if top.type is not FileType.DIRECTORY:
            return Listing((entry_of(folder, top),))
        behind = (after or "").partition("/")[2]
        page = await (found.walk if recursive else found.list_dir)(inside, behind, PAGE, at_us)
        listed = tuple(entry_of(folder, entry) for entry in page)
        return Listing(listed, listed[-1].path if len(listed) == PAGE else None)

    async def stat(self, path: str, at: str = "") -> Entry:
        found, folder, inside = self._at(path)
        return entry_of(folder, await found.stat(inside, await self._moment(at)))

    async def read(self, path: str, offset: int = 0, length: int | None = None, revision: str = "", at: str = "") -> AsyncIterator[bytes]:
        found, folder, inside = checked_inside(self._at(path), path)
        at_us = await self._moment(at)
        top = await found.stat(inside, at_us)
        if revision and entry_of(folder, top).revision != revision:
            raise Conflict(f"{path} has changed meanwhile", hint="run the command again")
        async with aclosing(cast("Any", found.read(inside, offset, length, top.version, at_us))) as pieces:
            async for piece in pieces:
                yield bytes(piece)

    async def sealed(self, path: str, after: str | None = None, at: str = "", blocks: bool = False) -> SealedPage:
        found, folder, inside = self._at(path)
        behind = (after or "").partition("/")[2]
        page, more = await found.sealed(inside, behind, await self._moment(at), blocks=blocks)
        items = [
            SealedItem(f"{folder}/{record.name}", info, entry_of(folder, entries.entry_of(record)).revision, record.sequence)
            for record, info in page
        ]
        return SealedPage(folder, found.settings.encryption_password_token, tuple(items), items[-1].path if items and more else None)


def checked_inside(at: tuple[R, str, str], path: str) -> tuple[R, str, str]:
    """`at` itself; raises Invalid for the folder itself."""
    if not at[2]:
        raise Invalid(f"{path} is a folder, not something in one", hint="write FOLDER/PATH; folders are changed with `stnode folder`")
    return at


def entry_of(folder: str, entry: entries.Entry) -> Entry:
    """An item of the folder with that ID, in plain values."""
    return Entry(
        path=f"{folder}/{entry.name}" if entry.name else folder,
        type=_TYPES[entry.type],
        size=entry.size,
        modified_ns=entry.modified_ns,
        permissions=entry.permissions,
        target=entry.target,
        revision=hashlib.sha256(repr((entry.version, entry.sequence)).encode()).hexdigest()[:16] if entry.name else "",
    )
