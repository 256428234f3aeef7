"""FolderView: the one definition through which frontends see and change a folder's content.

Paths are relative with "/", NFC; "" is the folder itself. What a call returns has been committed; what it changes is durable and
announced like any other change. Reading and listing is here, `writer` brings content into packs, `treechanges` changes the tree.

Concurrency: any number of calls at once. A read keeps to the version that it began with. Changes of one name by several callers are
ordered by the journal, the last one stands; `condition` makes a change depend on the version that its client has seen.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from sqlite3 import Connection
from typing import Final

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Conflict, Invalid, NotFound, Refused
from stnode.folder.entries import Entry, Version, deleted_versions, entry_of, versions
from stnode.folder.filler import Filler
from stnode.folder.paths import clean, clean_or_root
from stnode.folder.restorer import Restored, Restorer
from stnode.folder.treechanges import TreeChanges
from stnode.folder.treewriter import Chunks, NewItem, Progress, TreeWriter, Written
from stnode.folder.writer import Writer
from stnode.objectstore.base import Buffer
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.fileinfo import FileType
from stnode.repo import past, state
from stnode.repo.addresses import FileMap
from stnode.repo.records import UNCONDITIONAL, Condition, LocalFlag, Record
from stnode.repo.settings import FolderSettings
from stnode.repo.store import Store

PAGE: Final = 1000

_READ_BYTES: Final = 4 << 20
_ROOT_PERMISSIONS: Final = 0o755
_HISTORY_HINT: Final = "`stnode history` shows which versions there are"
_Read = Callable[[Connection, str, int], list[Record]]


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

    async def stat(self, path: str, at_us: int | None = None) -> Entry:
        """The item at `path`, as it was at a store time if that is given; raises NotFound, Invalid."""
        name = clean_or_root(path)
        if not name:
            return Entry("", FileType.DIRECTORY, 0, 0, _ROOT_PERMISSIONS, "", (), 0)
        return entry_of(await self._record(name, at_us))

    async def list_dir(self, path: str = "", after: str = "", limit: int = PAGE, at_us: int | None = None) -> list[Entry]:
        """The next `limit` items directly in a directory, by full name, that follow the item `after` (full name, "" = from the start);
        fewer means that these were the last. With `at_us` as it was at that store time. Raises NotFound, and Invalid for what is no
        directory."""
        name = await self._directory(path, at_us)
        if at_us is not None:
            return await self._page(lambda conn, last, count: past.children_at(conn, self._fid, name, last, count, at_us), after, limit)
        return await self._page(lambda conn, last, count: state.children(conn, self._fid, name, after=last, limit=count), after, limit)

    async def walk(self, path: str = "", after: str = "", limit: int = PAGE, at_us: int | None = None) -> list[Entry]:
        """The next `limit` items below a directory at any depth, in byte order of full names: parents come before what is in them. With
        `at_us` as it was at that store time."""
        name = await self._directory(path, at_us)
        prefix = name + "/" if name else ""
        if at_us is not None:
            return await self._page(lambda conn, last, count: past.walk_at(conn, self._fid, prefix, last, count, at_us), after, limit)
        return await self._page(lambda conn, last, count: state.walk(conn, self._fid, prefix, last, count), after, limit)

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

    async def restore(self, path: str, at_us: int, *, exact: bool = False, dry_run: bool = False) -> AsyncIterator[Restored]:
        """Brings an item, a directory with all in it ("": the folder), back as it was at a store time, as new versions over the blocks that
        are kept; with `exact` what came since is deleted. Every step is committed; the last one counts everything. See `Restorer`."""
        self._check_writable()
        restorer = Restorer(self._db, self._changes, self._fid, clean_or_root(path), at_us)
        async for step in restorer.steps(exact=exact, dry_run=dry_run):
            yield step

    async def override(self) -> int:
        """Makes a send-only folder's content the newest everywhere; how many items differed."""
        if self.settings.type != "sendonly":
            raise Refused(f"folder {self.settings.folder_id!r} is {self.settings.type}: only a send-only folder overrides others")
        return await self._changes.override()

    async def reject_deletions(self) -> int:
        """Gives a waiting mass deletion up (`Store.pending_deletions`); how many files. What devices deleted is announced anew over their
        deletions, so that they get it back; of a client's deletion nothing is left. Raises NotFound when none waits, Refused in a
        receive-only folder, whose content is announced to nobody."""
        waiting = [draft for each in self._store.held_deletions(self._fid) for draft in each.drafts]
        if not waiting:
            raise NotFound(f"no deletions wait in the folder {self.settings.folder_id}", hint="`stnode status` shows those that do")
        if self.settings.type == "receiveonly" and not all(draft.local for draft in waiting):
            raise Refused(
                f"folder {self.settings.folder_id!r} is receive-only: what is here cannot be announced over the deletions of others",
                hint="put the files back at the device, or stop sharing the folder with it; `stnode restore` brings back what went",
            )
        await self._changes.reject([draft.info for draft in waiting if not draft.local])
        self._store.reject_deletions(self._fid)
        return sum(draft.info.type is FileType.FILE for draft in waiting)

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
        if name and (await self._record(name, at_us)).info.type is not FileType.DIRECTORY:
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
            return await self._store.reader.blocks(pack, place, count)
        except NotFound:
            await self._store.follow_to_head()
            return await self._store.reader.blocks(pack, place, count)
