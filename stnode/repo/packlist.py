"""What packs hold: block lists in memory, in SQLite, and, where neither has them, from the packs' footers.

A list is known by its pack's id, which never means another pack; numbers lead to ids through the state alone. So the
cache outlives a state that was dropped and rebuilt. It holds a bounded part of all lists and may be deleted at any time.

On the event loop: `hashes`, `lengths` and `get` answer at once for packs that `ensure` was awaited for; what was ensured
in the last minute is never dropped from memory, beyond that the longest unused goes first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from sqlite3 import Connection
from typing import Final, NamedTuple, Protocol

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Corrupt, Internal, Invalid, NotFound
from stnode.objectstore.base import Key, ObjectStore
from stnode.repo import layout
from stnode.repo.addresses import Move, packs_of, relocate
from stnode.repo.blockindex import SCHEMA as INDEX_SCHEMA
from stnode.repo.blockindex import BlockIndex
from stnode.repo.pack import PackList, decode_footer, footer_size
from stnode.repo.packer import PendingPack
from stnode.repo.records import Extents

KEPT_S: Final = 60.0
UNREGISTERED_S: Final = 3600.0
FETCHES: Final = 8
FIRST_READ_BYTES: Final = 64 << 10
"""Read from the end of a pack of which nothing is known: the whole footer of most packs."""

SCHEMA: Final = (
    """
    CREATE TABLE packlists (serial INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, fkey TEXT NOT NULL,
                            bytes INTEGER NOT NULL, footer BLOB NOT NULL);
    CREATE TABLE packlists_size (bytes INTEGER NOT NULL);
    INSERT INTO packlists_size VALUES (0)
    """,
)


class PackGone(NotFound):
    """A pack is not where the state that this node knows says: follow to the head, then look again (R15)."""


class PackEntry(NamedTuple):
    """A registered pack. `usable`: new records may refer to it (it is neither condemned nor lost)."""

    number: int
    fkey: str
    id: str
    size: int
    footer_size: int
    usable: bool


class PackRegistry(Protocol):
    """What the state knows of packs; called in the database's thread."""

    def by_number(self, conn: Connection, numbers: Collection[int]) -> Mapping[int, PackEntry]: ...

    def by_id(self, conn: Connection, ids: Collection[str]) -> Mapping[str, PackEntry]: ...

    def moves(self, conn: Connection, pack: int) -> Sequence[Move]:
        """Where blocks of the pack are now, sorted by place, moves of moves followed."""
        ...

    def extents(self, conn: Connection, fid: int, names: Sequence[str]) -> Mapping[str, Extents]:
        """Extents of the current versions of those names that are files with blocks."""
        ...


@dataclass(slots=True, eq=False)
class Listed:
    """A list in memory. `serial` is the pack's number in this node's cache, the same for its handle and its number."""

    serial: int
    key: Key
    id: str
    blocks: PackList
    used_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ListOptions:
    """Bounds: `memory_bytes` of lists in memory, `disk_bytes` of lists in the database."""

    memory_bytes: int = 64 << 20
    disk_bytes: int = 1 << 30


class PackLists:
    """Observes the packer, so that lists of packs of this process are there from the moment they are durable. `suspect` may be set: it is
    told of each registered pack whose list could not be had from the store."""

    def __init__(
        self,
        objects: ObjectStore,
        db: Database,
        env: Env,
        registry: PackRegistry,
        *,
        options: ListOptions | None = None,
        index: BlockIndex | None = None,
    ) -> None:
        self.memory_bytes = 0
        self.suspect: Callable[[int], None] = lambda _pack: None
        self._options = options or ListOptions()
        self._objects = objects
        self._db = db
        self._env = env
        self._registry = registry
        self._index = index
        self._lists: OrderedDict[int, Listed] = OrderedDict()
        self._pending: dict[int, Listed] = {}
        self._numbers: dict[int, int] = {}
        self._generation = 0
        self._loading: dict[int, asyncio.Future[None]] = {}
        self._fetches = asyncio.Semaphore(FETCHES)

    # --- answers at once

    def get(self, pack: int) -> Listed | None:
        """The list of a pack (number or handle) if it is in memory."""
        if pack < 0:
            pending = self._pending.get(pack)
            if pending is not None:
                return pending
            pack = self._numbers.get(pack, 0)
        listed = self._lists.get(pack)
        if listed is not None:
            self._lists.move_to_end(pack)
        return listed

    def loaded(self, pack: int) -> Listed:
        """The list of a pack that was ensured; Internal if nobody did."""
        listed = self.get(pack)
        if listed is None:
            raise Internal(f"the list of pack {pack} was not asked for before it was used")
        return listed

    def hashes(self, pack: int, place: int, count: int = 1) -> bytes:
        """Hashes of `count` blocks, back to back. The pack must have been ensured."""
        blocks = self._covering(pack, place, count)
        return blocks.hashes_of(place, count)

    def lengths(self, pack: int, place: int, count: int = 1) -> Sequence[int]:
        """Bytes of each of `count` blocks. The pack must have been ensured."""
        return self._covering(pack, place, count).lengths[place : place + count]

    def pending_ids(self) -> dict[str, int]:
        """Ids of packs of this process that no commit has registered, with their handles; for an hour. Then nothing is likely to come of
        them any more (somebody else stored the same), and what they hold is to be found no longer: they will be collected."""
        old = self._env.clock.monotonic() - UNREGISTERED_S
        for handle in list(takewhile(lambda handle: self._pending[handle].used_s < old, self._pending)):
            del self._pending[handle]
        return {listed.id: handle for handle, listed in self._pending.items()}

    def forget_pending(self, handles: Iterable[int]) -> None:
        """No commit may register these packs any more."""
        for handle in handles:
            self._pending.pop(handle, None)

    def _covering(self, pack: int, place: int, count: int) -> PackList:
        listed = self.loaded(pack)
        if not 0 <= place <= place + count <= listed.blocks.count:
            raise Corrupt(f"blocks {place} to {place + count} were asked for of pack {listed.key}, which has {listed.blocks.count}")
        return listed.blocks

    # --- what the packer tells

    async def open(self) -> None:
        """Makes the tables, the index's too. Before anything else."""
        await self._db.migrate("packlists", SCHEMA)
        await self._db.migrate("blockindex", INDEX_SCHEMA)

    async def sealed(self, pack: PendingPack, blocks: PackList, footer: bytes, file_starts: Sequence[int]) -> None:
        """A pack has become durable."""
        found = _Found(pack.id, pack.fkey, footer, blocks)
        serials = await self._db.write(lambda conn: self._store(conn, [found], file_starts))
        self._pending[pack.handle] = Listed(serials[0], pack.key, pack.id, blocks, self._env.clock.monotonic())
        self.pending_ids()

    def registered(self, numbers: Mapping[int, int]) -> None:
        """Packs have got their numbers; their lists may now leave the memory."""
        for handle, number in numbers.items():
            listed = self._pending.pop(handle, None)
            self._numbers[handle] = number
            if listed is not None:
                self._adopt(number, listed)

    def unregistered(self) -> None:
        """Numbers may mean other packs from now on: the state was rebuilt."""
        self._lists.clear()
        self._numbers.clear()
        self.memory_bytes = 0
        self._generation += 1

    async def moves(self, pack: int) -> Sequence[Move]:
        """Where blocks of a registered pack have moved, sorted by place; nothing for handles that no commit knows."""
        number = pack if pack > 0 else self._numbers.get(pack)
        if number is None:
            return ()
        return await self._db.run(lambda conn: self._registry.moves(conn, number))

    async def known(self, number: int) -> PackList | None:
        """The list of a registered pack as this node remembers it, whatever the store has now."""
        listed = self.get(number)
        if listed is not None:
            return listed.blocks

        def read(conn: Connection) -> tuple[PackEntry, bytes] | None:
            entry = self._registry.by_number(conn, (number,)).get(number)
            stored = _stored(conn, [entry.id]) if entry is not None else {}
            return None if entry is None or entry.id not in stored else (entry, stored[entry.id][1])

        found = await self._db.run(read)
        return None if found is None else _decode_all([found])[0]

    async def present(self, extents: Sequence[Extents]) -> list[Extents]:
        """The same blocks by addresses whose lists are loaded: where a pack is gone, those that its blocks have moved to. Raises what
        `ensure` raises for blocks that are nowhere else."""
        try:
            await self.ensure({pack for each in extents for pack in packs_of(each)})
        except (PackGone, Corrupt):
            moves = {pack: await self.moves(pack) for each in extents for pack in packs_of(each)}
            extents = [relocate(each, moves) for each in extents]
            await self.ensure({pack for each in extents for pack in packs_of(each)})
        return list(extents)

    # --- loading

    async def ensure(self, packs: Iterable[int]) -> None:
        """Loads the lists of these packs (numbers or handles; 0 is passed over). Raises PackGone for a pack that is not in the
        state or not in the store, Corrupt for a damaged one, Unavailable."""
        wanted: set[int] = set()
        now = self._env.clock.monotonic()
        for pack in packs:
            listed = self.get(pack) if pack else None
            if listed is not None:
                listed.used_s = now
            elif pack:
                wanted.add(pack if pack > 0 else self._numbers.get(pack, pack))
        if wanted:
            await self._load_all(wanted)

    async def _load_all(self, wanted: set[int]) -> None:
        others = [future for pack in wanted if (future := self._loading.get(pack)) is not None]
        mine = sorted(pack for pack in wanted if pack not in self._loading)
        if mine:
            done = asyncio.get_running_loop().create_future()
            self._loading.update(dict.fromkeys(mine, done))
            try:
                await self._load(mine)
            finally:
                for pack in mine:
                    del self._loading[pack]
                done.set_result(None)
        if others:
            await asyncio.wait(others)
            # Whoever loaded them may have failed for a pack that is not ours, or was cancelled: look again.
            await self.ensure(wanted)

    async def _load(self, numbers: Sequence[int]) -> None:
        def read(conn: Connection) -> tuple[Mapping[int, PackEntry], dict[str, tuple[int, bytes]]]:
            entries = self._registry.by_number(conn, numbers)
            return entries, _stored(conn, [entry.id for entry in entries.values()])

        generation = self._generation
        entries, stored = await self._db.run(read)
        for number in numbers:
            if number not in entries:
                raise PackGone(f"pack {number} is not in the state that this node knows")
        known = [(entry, stored[entry.id][1]) for entry in entries.values() if entry.id in stored]
        lists = dict(zip((entry.id for entry, _ in known), await self._env.threads.run(_decode_all, known), strict=True)) if known else {}
        self._check(generation)
        missing: list[PackEntry] = []
        for number in numbers:
            entry = entries[number]
            blocks = lists.get(entry.id)
            if blocks is None:
                missing.append(entry)
            else:
                self._adopt(number, Listed(stored[entry.id][0], _key(entry), entry.id, blocks))
        if missing:
            await self._fetch_all(missing, generation)

    async def _fetch_all(self, entries: Sequence[PackEntry], generation: int) -> None:
        results = await asyncio.gather(*(self._fetch(entry) for entry in entries), return_exceptions=True)
        found = [result for result in results if isinstance(result, _Found)]
        serials = await self._db.write(lambda conn: self._store(conn, found, None)) if found else []
        self._check(generation)
        by_id = {each.id: (serial, each.blocks) for each, serial in zip(found, serials, strict=True)}
        for entry in entries:
            if entry.id in by_id:
                serial, blocks = by_id[entry.id]
                self._adopt(entry.number, Listed(serial, _key(entry), entry.id, blocks))
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, (PackGone, Corrupt)):
                self.suspect(entry.number)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _check(self, generation: int) -> None:
        """What was looked up before the state was rebuilt on another history says nothing of the numbers of this one."""
        if generation != self._generation:
            raise PackGone("the state was rebuilt while a pack's list was read")

    async def _fetch(self, entry: PackEntry) -> _Found:
        key = _key(entry)
        async with self._fetches:
            footer = await read_range(self._objects, key, entry.size - entry.footer_size, entry.footer_size)
        blocks = await self._env.threads.run(decode_footer, footer, key, entry.size)
        return _Found(entry.id, entry.fkey, footer, blocks)

    def _adopt(self, number: int, listed: Listed) -> None:
        """Takes a list into memory and drops the longest unused ones above the bound."""
        now = listed.used_s = self._env.clock.monotonic()
        old = self._lists.pop(number, None)
        self.memory_bytes += listed.blocks.memory_bytes - (old.blocks.memory_bytes if old is not None else 0)
        self._lists[number] = listed
        while self.memory_bytes > self._options.memory_bytes:
            oldest = next(iter(self._lists))
            if self._lists[oldest].used_s > now - KEPT_S:
                break
            self.memory_bytes -= self._lists.pop(oldest).blocks.memory_bytes

    # --- the database

    def _store(self, conn: Connection, found: Sequence[_Found], file_starts: Sequence[int] | None) -> list[int]:
        """Stores lists, indexes their blocks, makes room; returns the serials in order."""
        serials: list[int] = []
        added = 0
        for each in found:
            old = conn.execute("SELECT serial, bytes FROM packlists WHERE id = ?", (each.id,)).fetchone()
            size = len(each.footer)
            if old is not None:
                conn.execute("UPDATE packlists SET footer = ?, bytes = ? WHERE serial = ?", (each.footer, size, old[0]))
                serials.append(old[0])
                added += size - old[1]
                continue
            row = conn.execute(
                "INSERT INTO packlists (id, fkey, bytes, footer) VALUES (?, ?, ?, ?)", (each.id, each.fkey, size, each.footer)
            )
            serial = row.lastrowid or 0
            serials.append(serial)
            added += size
            if self._index is not None:
                self._index.add(conn, serial, each.fkey, each.blocks, file_starts)
        conn.execute("UPDATE packlists_size SET bytes = bytes + ?", (added,))
        self._make_room(conn, max(serials, default=0))
        return serials

    def _make_room(self, conn: Connection, newest: int) -> None:
        """Deletes the oldest lists above the bound, and what the index has of them."""
        excess = conn.execute("SELECT bytes FROM packlists_size").fetchone()[0] - self._options.disk_bytes
        while excess > 0:
            row = conn.execute("SELECT serial, id, fkey, bytes, footer FROM packlists ORDER BY serial LIMIT 1").fetchone()
            if row is None or row[0] >= newest:
                return
            serial, pack_id, fkey, size, footer = row
            conn.execute("DELETE FROM packlists WHERE serial = ?", (serial,))
            conn.execute("UPDATE packlists_size SET bytes = bytes - ?", (size,))
            excess -= size
            if self._index is not None:
                with suppress(Corrupt):  # a damaged copy: what points into it finds nothing
                    self._index.remove(conn, serial, fkey, decode_footer(footer, pack_id))


class _Found(NamedTuple):
    """A list on its way into the cache."""

    id: str
    fkey: str
    footer: bytes
    blocks: PackList


def stored_lists(conn: Connection, serials: Collection[int]) -> dict[int, tuple[str, str, bytes]]:
    """serial → (id, fkey, footer) of the lists that the database still has."""
    rows: dict[int, tuple[str, str, bytes]] = {}
    for serial in serials:
        row = conn.execute("SELECT id, fkey, footer FROM packlists WHERE serial = ?", (serial,)).fetchone()
        if row is not None:
            rows[serial] = row
    return rows


def _stored(conn: Connection, ids: Iterable[str]) -> dict[str, tuple[int, bytes]]:
    rows: dict[str, tuple[int, bytes]] = {}
    for each in ids:
        row = conn.execute("SELECT serial, footer FROM packlists WHERE id = ?", (each,)).fetchone()
        if row is not None:
            rows[each] = row
    return rows


def _decode_all(known: Sequence[tuple[PackEntry, bytes]]) -> list[PackList | None]:
    """The lists, None where the copy in the database is damaged: it is fetched again then."""
    lists: list[PackList | None] = []
    for entry, footer in known:
        try:
            lists.append(decode_footer(footer, _key(entry), entry.size))
        except Corrupt:
            lists.append(None)
    return lists


def _key(entry: PackEntry) -> Key:
    return layout.pack_key(entry.fkey, entry.id)


async def read_range(objects: ObjectStore, key: Key, start: int, length: int) -> bytes:
    """Exactly `length` bytes of a pack; PackGone when it is not there, Corrupt when it is shorter than that."""
    if length <= 0:
        return b""
    try:
        data = (await objects.get(key, start, length)).data
    except NotFound as exc:
        raise PackGone(f"pack {key} is not in the store") from exc
    except Invalid as exc:
        raise Corrupt(f"pack {key} is damaged: it ends before byte {start}", hint="run `stnode bucket check`") from exc
    if len(data) != length:
        raise Corrupt(f"pack {key} is damaged: it ends at byte {start + len(data)}", hint="run `stnode bucket check`")
    return data


async def read_list(objects: ObjectStore, key: Key) -> PackList:
    """The list of a pack of which only the key is known (repair, orphans): at most three requests."""
    try:
        size = (await objects.head(key)).size_bytes
    except NotFound as exc:
        raise PackGone(f"pack {key} is not in the store") from exc
    end = await read_range(objects, key, max(0, size - FIRST_READ_BYTES), min(size, FIRST_READ_BYTES))
    wanted = min(footer_size(end, key), size)
    footer = end[-wanted:] if wanted <= len(end) else await read_range(objects, key, size - wanted, wanted)
    return decode_footer(footer, key, size)
