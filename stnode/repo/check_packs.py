"""Checks packs against the state, and every record against the packs. Reads lists of packs, and their data if asked to.

A pack is right when it is there with the registered size and its list says what the commit said of it. A record, a version in the
history or a partial file is right when each of its extents lies in a pack that is there, and, for whole files, the blocks there
have the lengths that the file's blocks must have. With data: every block unpacks and has the hash by which the list names it.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from sqlite3 import Connection

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Archived, Corrupt, NotFound, Refused
from stnode.objectstore.base import ObjectStore
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.repo import state, state_damage
from stnode.repo.addresses import ZEROS, Move, packs_of, relocate
from stnode.repo.check_journal import in_order
from stnode.repo.checkreport import CheckProblem, CheckStep
from stnode.repo.pack import PLAIN_HASH_BYTES, PackList
from stnode.repo.packlist import PackGone
from stnode.repo.packstate import damaged_blocks, read_footer, read_verified
from stnode.repo.records import Extents, decode_extents
from stnode.repo.state import Pack

_BATCH = 250
_LISTS_BYTES = 64 << 20
_PACKS_AT_ONCE = 4
_NAMED = 100
_DAY_NS = 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class _Item:
    """A thing with extents: `info` is None for partial files. `shown` names it in messages."""

    shown: str
    info: FileInfo | None
    extents: Extents


class PackCheck:
    """One check of the state in `db`, which must be at the head, against the store."""

    def __init__(self, objects: ObjectStore, db: Database, env: Env) -> None:
        self._objects = objects
        self._db = db
        self._env = env
        self.problems: list[CheckProblem] = []
        self.packs = 0
        self.records = 0
        self.blocks_read = 0
        self.bytes_read = 0
        self._packs: dict[int, Pack] = {}
        self._bad: dict[int, str] = {}
        self._bad_places: dict[int, set[int]] = {}
        self._unread: dict[int, str] = {}
        self._looked_at: set[int] = set()
        self._lists: OrderedDict[int, PackList] = OrderedDict()
        self._moves: Mapping[int, list[Move]] = {}

    async def steps(self, read_share: float) -> AsyncIterator[CheckStep]:
        """Runs the check, reading this share of the data; each step is some progress."""
        self._packs, self._moves = await self._db.run(_registered)
        await self._compare_listing()
        for table in ("records", "history", "partials"):
            async for step in self._check_items(table):
                yield step
        async for step in self._check_rest():
            yield step
        if read_share:
            async for step in self._read_all(read_share):
                yield step
        for number, fault in sorted(self._unread.items()):
            self.problems.append(CheckProblem(self._packs[number].key, fault))
        for number, fault in sorted(self._bad.items()):
            files, versions = await self._db.run(partial(_files_in, pack=number, places=self._bad_places.get(number)))
            self.problems.append(CheckProblem(self._packs[number].key, fault, files, versions, number))

    async def _compare_listing(self) -> None:
        sizes = {meta.key: meta.size_bytes async for meta in self._objects.list("packs/")}
        for pack in self._packs.values():
            if pack.lost or pack.condemned:
                continue
            self.packs += 1
            if pack.key not in sizes:
                self._bad[pack.number] = "it is missing"
            elif sizes[pack.key] != pack.size_bytes:
                self._bad[pack.number] = f"it has {sizes[pack.key]} bytes instead of {pack.size_bytes}"

    # --- lists

    async def _load(self, number: int) -> None:
        """Reads a pack's list from the store, unless it is here or known to be bad or lost, and compares it with what is registered."""
        if number in self._lists:
            self._lists.move_to_end(number)
        if number in self._lists or number in self._bad or number in self._unread or self._packs[number].lost:
            return
        pack = self._packs[number]
        try:
            blocks = await read_footer(self._objects, self._env, pack.key, pack)
        except Archived as exc:  # no damage, and nothing that reading it from somewhere else would mend
            self._unread[number] = exc.message
            return
        except (Corrupt, Refused, PackGone, NotFound) as exc:
            self._bad[number] = exc.message
            return
        self._looked_at.add(number)
        self._lists[number] = blocks

    def _forget_lists(self) -> None:
        while len(self._lists) > 1 and sum(blocks.memory_bytes for blocks in self._lists.values()) > _LISTS_BYTES:
            self._lists.popitem(last=False)

    # --- records, history, partial files

    async def _check_items(self, table: str) -> AsyncIterator[CheckStep]:
        total = await self._db.run(lambda conn: conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608
        after: tuple[object, ...] | None = None
        done = 0
        while True:
            rows, after = await self._db.run(partial(_rows, table=table, after=after))
            if not rows:
                return
            items = [(item, relocate(item.extents, self._moves)) for item in rows]
            wanted = sorted({pack for _, extents in items for pack in packs_of(extents)} & self._packs.keys())
            async for _ in in_order(self._load, wanted):
                pass
            for item, extents in items:
                if fault := self._fault(item, extents):
                    self.problems.append(CheckProblem(item.shown, fault))
            self._forget_lists()
            done += len(rows)
            self.records += len(rows)
            yield CheckStep(table, done, total)

    def _fault(self, item: _Item, extents: Extents) -> str:
        """What is wrong with one item; "" also where only its pack is to blame, which is told of the pack."""
        for pack, place, count in extents:
            if pack == ZEROS:
                continue
            known = self._packs.get(pack)
            if known is None:
                return f"it refers to pack {pack}, which is not registered"
            if known.lost:
                return f"its data was in the pack {known.key}, which is lost"
            if not 0 <= place <= place + count <= known.blocks:
                return f"it refers to blocks {place} to {place + count} of the pack {known.key}, which has {known.blocks}"
        return self._lengths_fault(item.info, extents) if item.info is not None else ""

    def _lengths_fault(self, info: FileInfo, extents: Extents) -> str:
        if info.type is not FileType.FILE or info.deleted or info.invalid or not info.size:
            return "it has extents, but no data" if extents else ""
        wanted = fileinfo.block_lengths(info.size, info.block_size)
        if sum(extent[2] for extent in extents) != len(wanted):
            return f"its extents have {sum(extent[2] for extent in extents)} blocks instead of {len(wanted)}"
        at = 0
        for pack, place, count in extents:
            blocks = self._lists.get(pack)
            if (
                blocks is not None
                and blocks.hash_bytes == PLAIN_HASH_BYTES
                and list(blocks.lengths[place : place + count]) != wanted[at : at + count]
            ):
                return f"its blocks {at} to {at + count} in the pack {self._packs[pack].key} have other lengths than the file's"
            at += count
        return ""

    # --- the rest of the packs, and data

    async def _check_rest(self) -> AsyncIterator[CheckStep]:
        """Packs that no record led to."""
        rest = [p.number for p in self._packs.values() if not p.lost and not p.condemned and p.number not in self._looked_at]
        done = 0
        async for _ in in_order(self._load, rest):
            done += 1
            self._forget_lists()
            if done % 100 == 0:
                yield CheckStep("packs", done, len(rest))

    async def _read_all(self, share: float) -> AsyncIterator[CheckStep]:
        parts = max(1, round(1 / share))
        today = self._env.clock.now_ns() // _DAY_NS % parts
        packs = [
            p
            for p in self._packs.values()
            if not p.lost and not p.condemned and p.number not in self._bad and zlib.crc32(p.id.encode()) % parts == today
        ]
        total = sum(pack.footer_offset for pack in packs)
        for start in range(0, len(packs), _PACKS_AT_ONCE):
            yield CheckStep("data", self.bytes_read, total)
            await asyncio.gather(*(self._read_pack(pack) for pack in packs[start : start + _PACKS_AT_ONCE]))
            self._forget_lists()

    async def _read_pack(self, pack: Pack) -> None:
        """Reads all blocks of a pack, some megabytes at a time."""
        await self._load(pack.number)
        blocks = self._lists.get(pack.number)
        if blocks is None:
            return
        bad: list[int] = []
        try:
            async for first, views in read_verified(self._objects, self._env, pack.key, blocks, pack.size_bytes):
                bad += [place for place, view in enumerate(views, first) if view is None]
                self.blocks_read += len(views)
                self.bytes_read += blocks.offsets[first + len(views)] - blocks.offsets[first]
        except Archived as exc:
            self._unread[pack.number] = exc.message
        if bad:
            self._bad[pack.number] = damaged_blocks(bad, blocks.count)
            self._bad_places[pack.number] = set(bad)


def _registered(conn: Connection) -> tuple[dict[int, Pack], Mapping[int, list[Move]]]:
    return {pack.number: pack for pack in state.all_packs(conn)}, state.all_moves(conn)


_TABLES = {
    "records": ("fid, name", "(fid, name) > (?, ?)", "info"),
    "history": ("fid, name, seq", "(fid, name, seq) > (?, ?, ?)", "info"),
    "partials": ("fid, name, version", "(fid, name, version) > (?, ?, ?)", "NULL"),
}


def _rows(conn: Connection, table: str, after: tuple[object, ...] | None) -> tuple[list[_Item], tuple[object, ...] | None]:
    """The next rows of a table with extents, and the key of the last of them."""
    key, behind, info = _TABLES[table]
    where, values = (f"WHERE {behind}", after) if after else ("", ())
    query = f"SELECT {info}, extents, (SELECT folder_id FROM folders f WHERE f.fid = t.fid), {key} FROM {table} t {where} ORDER BY {key} LIMIT ?"  # noqa: S608
    found = conn.execute(query, (*values, _BATCH)).fetchall()
    kind = "" if table == "records" else f" ({'history' if table == 'history' else 'partial file'})"
    items = [
        _Item(f"{folder}/{rest[1]}{kind}", fileinfo.from_record(wire) if wire is not None else None, decode_extents(extents))
        for wire, extents, folder, *rest in found
    ]
    return items, tuple(found[-1][3:]) if found else None


def _files_in(conn: Connection, pack: int, places: set[int] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Files with blocks in this pack (at these places), moved there or not, as FOLDER/PATH: current ones, then old versions."""
    found: list[tuple[str, ...]] = []
    for table in ("records", "history"):
        names: dict[str, None] = {}
        query = (
            f"SELECT f.folder_id, r.name, r.extents FROM refs x JOIN {table} r ON r.fid = x.fid AND r.seq = x.seq"  # noqa: S608
            " JOIN folders f ON f.fid = r.fid WHERE x.pack = ?"
        )
        for source in sorted(state_damage.sources_of(conn, pack)):
            for folder, name, extents in conn.execute(query, (source,)):
                if len(names) < _NAMED and _touches(conn, decode_extents(extents), pack, places):
                    names[f"{folder}/{name}"] = None
        found.append(tuple(names))
    return found[0], found[1]


def _touches(conn: Connection, extents: Extents, pack: int, places: set[int] | None) -> bool:
    return any(
        at == pack and (places is None or not places.isdisjoint(range(first, first + count)))
        for extent in extents
        for at, first, count in state.resolve(conn, *extent)
    )
