"""Writes many items: small files in batches that share packs, large ones streamed, drafts committed by the hundred.

Uploading, committing and reading the source go on at the same time; memory is bounded by a batch (4 MiB of small files, or one file of
16 MiB), the filler's packs and the drafts of 64 batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from stnode.clock import Env
from stnode.errors import Invalid
from stnode.folder.filler import Filler
from stnode.folder.paths import clean
from stnode.folder.treechanges import TreeChanges
from stnode.folder.writer import HELD_BYTES, FileMeta, Held, Stored, Writer, cut
from stnode.objectstore.base import Buffer
from stnode.protocol import fileinfo
from stnode.repo.records import UNCONDITIONAL, Condition, Draft, DraftSet, SetKind

_BATCH_BYTES: Final = 4 << 20
_BATCH_FILES: Final = 256
_COMMITS: Final = 64
"""Batches that wait for their pack and commit: these are drafts only, the data is the filler's to bound. Fewer would leave packs small."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """A file to be written. `chunks` must not be changed after they are given out; `size` is checked if it is said."""

    name: str
    chunks: AsyncIterable[Buffer]
    size: int | None = None
    modified_ns: int | None = None
    permissions: int | None = None
    condition: Condition = UNCONDITIONAL


@dataclass(frozen=True, slots=True)
class NewDirectory:
    """A directory; one that exists only gets the permissions."""

    name: str
    modified_ns: int | None = None
    permissions: int | None = None


@dataclass(frozen=True, slots=True)
class NewSymlink:
    """A symbolic link."""

    name: str
    target: str
    modified_ns: int | None = None


NewItem = Chunks | NewDirectory | NewSymlink


@dataclass(frozen=True, slots=True)
class Written:
    """What has been committed so far; `bytes` are those of the files."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    bytes: int = 0


Progress = Callable[[Written], None]


class _Batch:
    """Items that are committed together."""

    def __init__(self) -> None:
        self.held: list[Held] = []
        self.streamed: list[Draft] = []
        self.others: list[NewDirectory | NewSymlink] = []
        self.names: set[str] = set()
        self.size = 0

    @property
    def full(self) -> bool:
        return self.size >= _BATCH_BYTES or len(self.names) >= _BATCH_FILES


class TreeWriter:
    """One use: `async with` it, `add` items, then `finish`. Leaving without `finish` gives up what is not committed."""

    def __init__(self, env: Env, filler: Filler, writer: Writer, changes: TreeChanges, progress: Progress | None) -> None:
        self._env, self._filler, self._writer, self._changes, self._progress = env, filler, writer, changes, progress
        self._batch = _Batch()
        self._commits: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()
        self.written = Written()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._filler.writer())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._commits:
            task.cancel()
        await asyncio.gather(*self._commits, return_exceptions=True)
        await self._stack.aclose()

    async def add(self, item: NewItem) -> None:
        """Takes an item, its content whole; waits while too much is on its way. Raises what earlier items failed with, too."""
        name = clean(item.name)
        if name in self._batch.names:
            await self._flush()
        self._batch.names.add(name)
        if isinstance(item, Chunks):
            await self._add_file(FileMeta(name, item.modified_ns, item.permissions, item.condition), item)
        else:
            self._batch.others.append(item)
        if self._batch.full:
            await self._flush()

    async def finish(self) -> Written:
        """Returns when everything is committed."""
        await self._flush()
        async with self._filler.finishing():
            await self._settle(0)
        return self.written

    async def _add_file(self, meta: FileMeta, item: Chunks) -> None:
        chunks = aiter(item.chunks)
        held: list[Buffer] = []
        length = 0
        while length <= HELD_BYTES and (chunk := await anext(chunks, None)) is not None:
            held.append(chunk)
            length += len(chunk)
        if length > HELD_BYTES:
            draft = await self._writer.stream(meta, _chain(held, chunks), item.size)
            self._batch.streamed.append(draft)
            return
        if item.size is not None and length != item.size:
            raise Invalid(
                f"{meta.name}: {length} bytes came, {item.size} were announced", hint="the file changed while it was read; try again"
            )
        self._batch.held.append(Held(meta, length, [block async for block in cut(_chain(held), fileinfo.block_size_for(length))]))
        self._batch.size += length

    async def _flush(self) -> None:
        batch, self._batch = self._batch, _Batch()
        if not batch.names:
            return
        stored = await self._writer.hold(batch.held) if batch.held else []
        await self._settle(_COMMITS - 1)
        self._commits.append(self._env.spawn(self._commit(batch, stored), "commit of a written batch"))

    async def _settle(self, left: int) -> None:
        while len(self._commits) > left:
            await self._commits[0]
            del self._commits[0]

    async def _commit(self, batch: _Batch, stored: list[Stored]) -> None:
        """Directories first, then the rest, in one commit where it fits."""
        drafts = await self._writer.finish(stored)
        given = [item for item in batch.others if isinstance(item, NewDirectory)]
        links = [item for item in batch.others if isinstance(item, NewSymlink)]
        own = await self._changes.records([item.name for item in batch.others])
        made = [self._changes.directory_draft(item.name, own.get(item.name), item.modified_ns, item.permissions) for item in given]
        directories = [draft for draft in made if draft is not None]
        named = {draft.info.name for draft in directories}
        above = [each for each in await self._changes.missing_parents(batch.names) if each.drafts[0].info.name not in named]
        rest = [self._changes.symlink_draft(item.name, item.target, own.get(item.name), item.modified_ns, UNCONDITIONAL) for item in links]
        wanted = [DraftSet(SetKind.SINGLE, (draft,)) for draft in (*directories, *rest, *drafts, *batch.streamed)]
        # Parents made for others may be there by now; those given here come between them by name, before what is in them.
        first = sorted([*above, *wanted[: len(directories)]], key=lambda each: each.drafts[0].info.name)
        await self._changes.commit_sets([*first, *wanted[len(directories) :]], may_fail={each.drafts[0].info.name for each in above})
        files = [*drafts, *batch.streamed]
        before = self.written
        self.written = Written(
            before.files + len(files),
            before.directories + len(given),
            before.symlinks + len(links),
            before.bytes + sum(draft.info.size for draft in files),
        )
        if self._progress is not None:
            self._progress(self.written)


async def _chain(first: list[Buffer], rest: AsyncIterator[Buffer] | None = None) -> AsyncIterator[Buffer]:
    while first:
        yield first.pop(0)
    if rest is not None:
        async for chunk in rest:
            yield chunk
