"""FolderView: the one definition through which frontends see and change a folder's content.

Paths are relative with "/", NFC; "" is the folder itself. What a call returns has been committed; what it changes is durable and
announced like any other change. Reading and listing is in `reading`, `writer` brings content into packs, `treechanges` changes the tree.

Concurrency: any number of calls at once. A read keeps to the version that it began with. Changes of one name by several callers are
ordered by the journal, the last one stands; `condition` makes a change depend on the version that its client has seen.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import NotFound, Refused
from stnode.folder.entries import Entry
from stnode.folder.filler import Filler
from stnode.folder.paths import clean, clean_or_root
from stnode.folder.reading import FolderReader
from stnode.folder.restorer import Restored, Restorer
from stnode.folder.treechanges import TreeChanges
from stnode.folder.treewriter import Chunks, NewItem, Progress, TreeWriter, Written
from stnode.folder.writer import Writer
from stnode.objectstore.base import Buffer
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.fileinfo import FileType
from stnode.repo.records import UNCONDITIONAL, Condition, LocalFlag
from stnode.repo.settings import FolderSettings
from stnode.repo.store import Store


class FolderView(FolderReader):
    """One folder. Made per settings: when these change, another view takes its place; calls under way end by the old ones."""

    def __init__(self, env: Env, db: Database, store: Store, fid: int, settings: FolderSettings, device: DeviceID) -> None:
        super().__init__(env, db, store.reader, store.packlists, store.follow_to_head, fid, settings)
        self._store = store
        me = deviceid.short_id(device)
        flags = int(LocalFlag.RECEIVE_ONLY) if settings.type == "receiveonly" else 0
        self._filler = Filler(env, store.packer, fid)
        self._writer = Writer(env, db, store, self._filler, fid, settings, me, flags)
        self._changes = TreeChanges(env, db, store, self._writer, fid, settings, me, flags)

    async def close(self) -> None:
        """Gives up writes that are under way."""
        await self._filler.close()

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
        if self.settings.encrypted:
            raise Refused(
                f"folder {self.settings.folder_id!r} is encrypted for this node: it cannot announce anything over the deletions of others",
                hint="put the files back at a device that has the password, or stop sharing the folder with the one that deleted them",
            )
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
        if self.settings.encrypted:
            raise Refused(f"folder {self.settings.folder_id!r} is encrypted for this node: it can be stored and served, not changed")
