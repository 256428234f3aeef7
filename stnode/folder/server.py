"""Answers a peer's Requests from the store: name -> record -> extent -> block of a pack.

Works on batches: one database hop for all names not in the small cache of records, blocks in memory answered at once, the
rest read as runs of neighbouring blocks (the reader fetches ahead). Every request gets exactly one reply, whatever happens:
a missing answer would block the peer's puller for as long as the connection lives (bep-facts 8.3).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from sqlite3 import Connection

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import NotFound, StnodeError
from stnode.folder.ignore import is_internal
from stnode.protocol import fileinfo
from stnode.protocol.blocks import HASH_BYTES
from stnode.protocol.messages import ErrorCode, Request
from stnode.repo import state
from stnode.repo.addresses import FileMap
from stnode.repo.records import Extent, Record
from stnode.repo.state import Served
from stnode.repo.store import Store
from stnode.telemetry import get_logger

Reply = Callable[[int, memoryview | bytes, ErrorCode], None]
"""(request id, data, code): queues one Response; never blocks."""

_Miss = tuple[int, int, int, Request]
"""(pack, place, end): a block that is not in memory, and where the blocks of its file end that lie right behind it."""

_log = get_logger(__name__)
_CACHED_RECORDS = 4096
_OLD_VERSIONS = 8


@dataclass(frozen=True, slots=True)
class _Served:
    """What serving needs of a record."""

    size: int
    block_size: int
    blocks: FileMap

    def has(self, offset: int, size: int, least: int) -> bool:
        """Whether that is exactly one of the file's blocks, or one shorter than `least` of which so much is asked for."""
        length = self.length(offset)
        return offset < self.size and not offset % self.block_size and (size == length or length < size == least)

    def length(self, offset: int) -> int:
        """Bytes of the block at `offset`."""
        return min(self.block_size, self.size - offset)


class BlockServer:
    """Serves one folder's blocks to any number of peers. `served_bytes` counts them."""

    def __init__(self, env: Env, db: Database, store: Store, fid: int) -> None:
        self._env = env
        self._db = db
        self._store = store
        self._fid = fid
        self._records: OrderedDict[str, _Served | None] = OrderedDict()
        self.served_bytes = 0

    def forget(self, names: Iterable[str]) -> None:
        """These records changed: read them again."""
        for name in names:
            self._records.pop(name, None)

    def forget_all(self) -> None:
        """The state was rebuilt."""
        self._records.clear()

    async def answer(self, requests: Sequence[Request], reply: Reply, *, least: int = 0) -> None:
        """Replies to all of `requests`, in any order. Never raises for what a peer or the store does. Who does not know how long short
        blocks are may ask for `least` bytes of them, and gets less."""

        def counted(request_id: int, data: memoryview | bytes, code: ErrorCode) -> None:
            self.served_bytes += len(data)
            reply(request_id, data, code)

        await self._answer(requests, counted, least)

    async def _answer(self, requests: Sequence[Request], reply: Reply, least: int) -> None:
        unknown = {request.name for request in requests if request.name not in self._records}
        if unknown:
            await self._load(sorted(unknown))
        misses: list[_Miss] = []
        others: list[Request] = []
        cached = self._store.reader.cached
        for request in requests:
            run = self._run_of(request, reply, others, least)
            if run is None:
                continue
            pack, place, blocks = run
            data = cached(pack, place)
            if data is not None and self._matches(request, pack, place, data):
                reply(request.id, data, ErrorCode.NO_ERROR)
            else:
                misses.append((pack, place, place + blocks, request))
        runs = _runs(misses)
        if len(runs) == 1:
            await self._read_run(runs[0], reply)
        elif runs:
            await asyncio.gather(*(self._read_run(run, reply) for run in runs))
        if others:
            await self._answer_old(others, reply)

    def _run_of(self, request: Request, reply: Reply, others: list[Request], least: int) -> Extent | None:
        """The block asked for with those of the file that lie right behind it; None when the reply is given already, or the request
        was put among the `others`, which are not for the present content."""
        served = self._records.get(request.name)
        if served is not None and (request.size == 0 or (served.size == 0 and request.size == least)):
            reply(request.id, b"", ErrorCode.NO_ERROR)  # peers up to 2.1.0 ask for the empty block of an empty file
        elif is_internal(request.name):
            reply(request.id, b"", ErrorCode.INVALID_FILE)
        elif served is not None and served.has(request.offset, request.size, least):
            run = served.blocks.run_at(request.offset // served.block_size)
            if run[0]:
                return run
            length = served.length(request.offset)
            if not request.hash or request.hash == fileinfo.zero_hash(length):
                reply(request.id, bytes(length), ErrorCode.NO_ERROR)
            else:
                others.append(request)
        elif request.hash and request.size:
            others.append(request)
        else:
            reply(request.id, b"", ErrorCode.NO_SUCH_FILE)
        return None

    async def _load(self, names: Sequence[str]) -> None:
        def read(conn: Connection) -> dict[str, Served]:
            return state.served(conn, self._fid, names)

        found = await self._db.run(read)
        for name in names:
            record = found.get(name)
            self._records[name] = None if record is None else _Served(record.size, record.block_size, FileMap(record.extents))
        while len(self._records) > _CACHED_RECORDS + len(names):
            self._records.popitem(last=False)

    def _matches(self, request: Request, pack: int, place: int, data: memoryview) -> bool:
        """The peer wants this very content. Without a hash (v1 may leave it out) the record's content is what it gets. Of a pack whose
        blocks have moved the list may be gone; a token is then looked up where they are now (`_answer_old`)."""
        if not request.hash:
            return True
        if self._store.packlists.get(pack) is None:
            return len(request.hash) == HASH_BYTES and hashlib.sha256(data).digest() == request.hash
        return self._store.packlists.hashes(pack, place, 1) == request.hash

    async def _read_run(self, run: Sequence[_Miss], reply: Reply) -> None:
        pack, first, _, request = run[0]
        try:
            blocks = await self._read(pack, first, run[-1][1] - first + 1, run[-1][2] - first)
        except StnodeError as exc:
            _log.warning("block not served", pack=pack, place=first, file=request.name, error=exc.message)
            code = ErrorCode.NO_SUCH_FILE if isinstance(exc, NotFound) else ErrorCode.GENERIC
            for *_, request in run:
                reply(request.id, b"", code)
            return
        others: list[Request] = []
        for _, place, _, request in run:
            if self._matches(request, pack, place, blocks[place - first]):
                reply(request.id, blocks[place - first], ErrorCode.NO_ERROR)
            else:
                others.append(request)
        if others:
            await self._answer_old(others, reply)

    async def _read(self, pack: int, place: int, count: int, likely: int) -> Sequence[memoryview]:
        """A pack that is gone was repacked or we are behind: follow to the head, then look again (R15)."""
        try:
            return await self._store.reader.blocks(pack, place, count, likely)
        except NotFound:
            await self._store.follow_to_head()
            return await self._store.reader.blocks(pack, place, count, likely)

    async def _answer_old(self, requests: Sequence[Request], reply: Reply) -> None:
        """The peer still pulls a version that was replaced or deleted: history may hold it (fewer failed rounds)."""
        names = {request.name for request in requests}

        def read(conn: Connection) -> dict[str, list[Record]]:
            present = state.get_records(conn, self._fid, sorted(names))
            return {
                name: [
                    *((present[name],) if name in present else ()),
                    *(old.record for old in state.old_versions(conn, self._fid, name, limit=_OLD_VERSIONS)),
                ]
                for name in names
            }

        versions = await self._db.run(read)
        for request in requests:
            data: memoryview | None = None
            try:
                data = await self._old_block(request, versions[request.name])
            except StnodeError as exc:
                _log.warning("old version not served", file=request.name, error=exc.message)
            reply(request.id, b"" if data is None else data, ErrorCode.NO_SUCH_FILE if data is None else ErrorCode.NO_ERROR)

    async def _old_block(self, request: Request, versions: Sequence[Record]) -> memoryview | None:
        for record in versions:
            index, offset = divmod(request.offset, record.info.block_size or 1)
            if offset or request.offset >= record.info.size or not record.extents:
                continue
            pack, place = FileMap(record.extents).at(index)
            if not pack:
                continue
            [[(pack, place, _)]] = await self._store.packlists.present([((pack, place, 1),)])
            if self._store.packlists.hashes(pack, place, 1) == request.hash:
                return (await self._read(pack, place, 1, 1))[0]
        return None


def _runs(misses: list[_Miss]) -> list[list[_Miss]]:
    """Groups of requests for neighbouring blocks of one pack."""
    misses.sort(key=lambda miss: miss[:2])
    runs: list[list[_Miss]] = []
    for miss in misses:
        if runs and runs[-1][-1][0] == miss[0] and miss[1] - runs[-1][-1][1] <= 1:
            runs[-1].append(miss)
        else:
            runs.append([miss])
    return runs
