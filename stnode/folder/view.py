"""FolderView: the one definition through which frontends see and change a folder's content.

Paths are relative with "/", NFC; "" is the folder itself. What a call returns has been committed; what it changes is durable and
announced like any other change. Reading and listing is here, `writer` brings content into packs, `treechanges` changes the tree.

Concurrency: any number of calls at once. A read keeps to the version that it began with. Changes of one name by several callers are
ordered by the journal, the last one stands; `condition` makes a change depend on the version that its client has seen.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Final

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Conflict, Invalid, NotFound, Refused
from stnode.folder.filler import Filler
from stnode.folder.paths import clean, clean_or_root
from stnode.folder.treechanges import TreeChanges
from stnode.folder.treewriter import Chunks, NewItem, Progress, TreeWriter, Written
from stnode.folder.writer import Writer
from stnode.objectstore.base import Buffer
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.fileinfo import FileType
from stnode.protocol.vector import Vector
from stnode.repo import state
from stnode.repo.addresses import FileMap
from stnode.repo.records import UNCONDITIONAL, Condition, LocalFlag, Record
from stnode.repo.settings import FolderSettings
from stnode.repo.store import Store

PAGE: Final = 1000

_READ_BYTES: Final = 4 << 20
_ROOT_PERMISSIONS: Final = 0o755
_Read = Callable[[Connection, str, int], list[Record]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A live item. `permissions` is None where the folder keeps none for it; `version` changes with every change and serves as
    `condition`; `local_only`: a change in a receive-only folder that is not announced."""

    name: str
    type: FileType
    size: int
    modified_ns: int
    permissions: int | None
    target: str
    version: Vector
    sequence: int
    local_only: bool = False


class FolderView:
    """One folder. Made per settings: when these change, another view takes its place; calls under way end by the old ones."""

    def __init__(self, env: Env, db: Database, store: Store, fid: int, settings: FolderSettings, device: DeviceID) -> None:
        self._env, self._db, self._store, self._fid, self.settings = env, db, store, fid, settings
        me = deviceid.short_id(device)
        flags = int(LocalFlag.RECEIVE_ONLY) if settings.type == "receiveonly" else 0
        self._filler = Filler(env, store.packer, fid)
        self._writer = Writer(env, db, store, self._filler, fid, settings, me, flags)
        self._changes = TreeChanges(env, db, store, self._writer, fid, settings, me, flags)

    async def close(self) -> None:
        """Gives up writes that are under way."""
        await self._filler.close()

    # --- seeing

    async def stat(self, path: str) -> Entry:
        """The item at `path`; raises NotFound, Invalid."""
        name = clean_or_root(path)
        if not name:
            return Entry("", FileType.DIRECTORY, 0, 0, _ROOT_PERMISSIONS, "", (), 0)
        return _entry(await self._record(name))

    async def list_dir(self, path: str = "", after: str = "", limit: int = PAGE) -> list[Entry]:
        """The next `limit` items directly in a directory, by full name, that follow the item `after` (full name, "" = from the start);
        fewer means that these were the last. Raises NotFound, and Invalid for what is no directory."""
        name = await self._directory(path)
        return await self._page(lambda conn, last, count: state.children(conn, self._fid, name, after=last, limit=count), after, limit)

    async def walk(self, path: str = "", after: str = "", limit: int = PAGE) -> list[Entry]:
        """The next `limit` items below a directory at any depth, in byte order of full names: parents come before what is in them."""
        name = await self._directory(path)
        prefix = name + "/" if name else ""
        return await self._page(lambda conn, last, count: state.walk(conn, self._fid, prefix, last, count), after, limit)

    async def read(
        self, path: str, offset: int = 0, length: int | None = None, condition: Condition = UNCONDITIONAL
    ) -> AsyncIterator[memoryview]:
        """A file's bytes from `offset` on, in pieces of up to 4 MiB, verified. Cut at the end of the file. Raises NotFound, Invalid for
        what is no file, Conflict when it is not the version of `condition`, and what reading the store raises. Nothing is read ahead
        of the caller but what the store's reader keeps."""
        record = await self._record(clean(path))
        if record.info.type is not FileType.FILE:
            raise Invalid(f"{path} is a {record.info.type.name.lower()}, not a file")
        if condition is not UNCONDITIONAL and record.info.version != condition:
            raise Conflict(f"{path} has changed", hint="read it again from the start")
        if offset < 0 or (length is not None and length < 0):
            raise Invalid(f"bytes {offset}+{length} of {path} cannot be read")
        end = record.info.size if length is None else min(record.info.size, offset + length)
        async for piece in self._pieces(record, offset, end):
            yield piece

    # --- changing

    async def write_file(
        self,
        path: str,
        chunks: AsyncIterable[Buffer],
        *,
        size: int | None = None,
        modified_ns: int | None = None,
        permissions: int | None = None,
        condition: Condition = UNCONDITIONAL,
    ) -> Entry:
        """Stores a file, replacing what is there; missing parents are made. An error of `chunks`, or another length than `size`,
        changes nothing. `condition`: the version that must be there (None: nothing), else Conflict. Raises Conflict for a directory
        that is not empty or a parent that is none."""
        async with self._tree_writer(None) as writer:
            await writer.add(Chunks(clean(path), chunks, size, modified_ns, permissions, condition))
            await writer.finish()
        return await self.stat(path)

    async def write_many(self, items: AsyncIterable[NewItem], progress: Progress | None = None) -> Written:
        """Stores a tree: files, directories, symlinks in any order, in batches that share packs and commits. `progress` hears of what has
        been committed. The first error ends it; what was committed by then stays."""
        async with self._tree_writer(progress) as writer:
            async for item in items:
                await writer.add(item)
            return await writer.finish()

    async def mkdir(self, path: str, *, parents: bool = False, modified_ns: int | None = None, permissions: int | None = None) -> Entry:
        """Makes a directory. With `parents` those that miss too, and no error if it is there already."""
        self._check_writable()
        await self._changes.mkdir(clean(path), parents, modified_ns, permissions)
        return await self.stat(path)

    async def symlink(self, path: str, target: str, *, modified_ns: int | None = None, condition: Condition = UNCONDITIONAL) -> Entry:
        """Makes a symbolic link, replacing a file or link; missing parents are made. The target is kept as it is."""
        self._check_writable()
        await self._changes.symlink(clean(path), target, modified_ns, condition)
        return await self.stat(path)

    async def remove(self, path: str, *, recursive: bool = False, condition: Condition = UNCONDITIONAL) -> int:
        """Deletes an item, with `recursive` all that is below it too; how many items. Raises NotFound; Conflict for a directory that is not
        empty. A mass deletion waits for its confirmation (`Store.pending_deletions`)."""
        self._check_writable()
        return await self._changes.remove(clean(path), recursive, condition)

    async def rename(self, source: str, target: str, *, replace: bool = True) -> Entry:
        """Moves an item, a directory with all in it, by metadata alone. A file or link at `target` is replaced unless `replace` is
        False (Conflict); a directory there is a Conflict. Each file's two names change together; a tree is moved in several commits."""
        self._check_writable()
        await self._changes.rename(clean(source), clean(target), replace)
        return await self.stat(target)

    async def set_meta(
        self, path: str, *, modified_ns: int | None = None, permissions: int | None = None, condition: Condition = UNCONDITIONAL
    ) -> Entry:
        """Changes modification time or permissions (low nine bits) of an item."""
        self._check_writable()
        await self._changes.set_meta(clean(path), modified_ns, permissions, condition)
        return await self.stat(path)

    async def override(self) -> int:
        """Makes a send-only folder's content the newest everywhere; how many items differed."""
        if self.settings.type != "sendonly":
            raise Refused(f"folder {self.settings.folder_id!r} is {self.settings.type}: only a send-only folder overrides others")
        return await self._changes.override()

    async def revert(self) -> int:
        """Undoes the local changes of a receive-only folder; how many items. Old content comes from the history at once, else from a
        device as soon as one has it."""
        if self.settings.type != "receiveonly":
            raise Refused(f"folder {self.settings.folder_id!r} is {self.settings.type}: only a receive-only folder has changes to revert")
        return await self._changes.revert()

    # --- inside

    def _tree_writer(self, progress: Progress | None) -> TreeWriter:
        self._check_writable()
        return TreeWriter(self._env, self._filler, self._writer, self._changes, progress)

    def _check_writable(self) -> None:
        if self.settings.type == "receiveencrypted":
            raise Refused(f"folder {self.settings.folder_id!r} is encrypted for this node: it can be stored and served, not changed")

    async def _record(self, name: str) -> Record:
        record = (await self._db.run(lambda conn: state.get_records(conn, self._fid, [name]))).get(name)
        if record is None or record.info.deleted or record.info.invalid:
            raise NotFound(f"{name} does not exist in folder {self.settings.folder_id!r}")
        return record

    async def _directory(self, path: str) -> str:
        name = clean_or_root(path)
        if name and (await self._record(name)).info.type is not FileType.DIRECTORY:
            raise Invalid(f"{path} is not a directory")
        return name

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

        return [_entry(record) for record in await self._db.run(collect)]

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
            return await self._store.reader.blocks(pack, place, count)
        except NotFound:
            await self._store.follow_to_head()
            return await self._store.reader.blocks(pack, place, count)


def _entry(record: Record) -> Entry:
    info = record.info
    return Entry(
        record.name,
        info.type,
        info.size,
        info.modified_s * 1_000_000_000 + info.modified_ns,
        None if info.no_permissions else info.permissions & 0o777,
        info.symlink_target.decode(errors="replace"),
        info.version,
        record.sequence,
        bool(record.local_flags & LocalFlag.RECEIVE_ONLY),
    )
