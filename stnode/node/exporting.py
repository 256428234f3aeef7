"""A receive-encrypted folder in the form in which Syncthing stores one on disk (bep-facts 10.8), which `syncthing decrypt` reads. No password
is needed, nothing is decrypted.

A file is its encrypted blocks, one after another, then the FileInfo as it came, and its length. Everything else is a directory of the
encrypted name; what it is was never on disk. Deleted items are left out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final, cast

from stnode.errors import Conflict
from stnode.node.service import Entry, Listing, SealedFiles, SealedItem
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileType

TOKEN_FILE: Final = ".stfolder/syncthing-encryption_password_token"  # noqa: S105 - a path
_PERMISSIONS: Final = 0o644


class SyncthingForm:
    """`Files` of one folder. Times are those of the commits, so that a file of another version has another time: what encrypted items say
    of their times is the same for all."""

    def __init__(self, files: SealedFiles, folder: str, token: bytes) -> None:
        self.folder = folder
        self.token_file = json.dumps({"FolderID": folder, "Token": base64.b64encode(token).decode()}, separators=(",", ":")) + "\n"
        self._files = files

    async def time_of(self, at: str) -> int:
        return await self._files.time_of(at)

    async def stat(self, path: str, at: str = "") -> Entry:
        if "/" not in path.rstrip("/"):
            return Entry(self.folder, "directory")
        return _entry(*await self._item(path, at))

    async def ls(self, path: str, recursive: bool = False, after: str | None = None, at: str = "") -> Listing:
        """Everything at or below a path, whatever `recursive` says: directories in encrypted names mean nothing."""
        page = await self._files.sealed(path, after, at, blocks=True)
        return Listing(tuple(_entry(item, _trailer(item)) for item in page.items), page.next)

    async def read(self, path: str, offset: int = 0, length: int | None = None, revision: str = "", at: str = "") -> AsyncIterator[bytes]:
        """A file with what stands behind its blocks; `length` is not for this form."""
        item, trailer = await self._item(path, at)
        if revision and item.revision != revision:
            raise Conflict(f"{path} has changed meanwhile", hint="run the command again")
        size = _entry(item, trailer).size - len(trailer)
        async with aclosing(cast("Any", self._files.read(path, min(offset, size), None, item.revision, at))) as pieces:
            async for piece in pieces:
                yield piece
        yield trailer[max(offset - size, 0) :]

    async def _item(self, path: str, at: str) -> tuple[SealedItem, bytes]:
        item = (await self._files.sealed(path, None, at, blocks=True)).items[0]
        return item, _trailer(item)


async def syncthing_form(files: SealedFiles, path: str) -> SyncthingForm:
    """The folder of FOLDER. Raises Invalid for an ordinary one."""
    page = await files.sealed(path.partition("/")[0])
    return SyncthingForm(files, page.folder, page.token)


def _trailer(item: SealedItem) -> bytes:
    return item.info + len(item.info).to_bytes(4, "big")


def _entry(item: SealedItem, trailer: bytes) -> Entry:
    info = fileinfo.from_record(item.info)
    if info.type is not FileType.FILE:
        return Entry(item.path, "directory", modified_ns=item.committed_us * 1000, revision=item.revision)
    size = info.size + len(trailer)
    return Entry(item.path, "file", size, item.committed_us * 1000, _PERMISSIONS, revision=item.revision)
