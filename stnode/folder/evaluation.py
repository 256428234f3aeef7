"""For a batch of names: which version is global, do we need it, who has it (bep-facts 7.2, 12.3, 12.4; winner rule of v2).

One pass reads everything that is known of the names with three joins, decides in Python, and writes the differences: entries of
the device whose index is taken in, marks and content of the others' entries, needs, sums. The rules are in `decision`.

The content of an entry (wire and hashes) is kept only while our own record does not cover its version; devices with one version
share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from sqlite3 import Connection
from typing import Final

from stnode.folder.decision import KIND, Entry, Item, Need, Own, is_same
from stnode.folder.tables import DELETED, HAS, INVALID, LACKS_DELETE, MARKS, TYPE_SHIFT
from stnode.folder.types import IndexEffect, NeedKind
from stnode.protocol import fileinfo, vector
from stnode.protocol.fileinfo import FileInfo, FileType

BATCH: Final = 1000
"""Names per pass: one join each, and lists of bounded size."""

_MOST_BYTES: Final = 1 << 53
_MOST_SECONDS: Final = 1 << 33
_MOST_SUM: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Rules:
    """What the folder's settings say about need. `ignored` is asked for each name that may be needed; `sums`: vectors are sums of
    counters that we do not see, so equal ones say little (encrypted folders)."""

    ignored: Callable[[str], bool]
    takes_nothing: bool = False
    sums: bool = False


def evaluate(conn: Connection, fid: int, names: Sequence[str], rules: Rules) -> IndexEffect:
    """Evaluates at most `BATCH` distinct names inside the caller's transaction: our records of them have changed, or the rules."""
    return _Pass(conn, fid, names, rules).run()


def take_in(conn: Connection, fid: int, dev: int, files: Mapping[str, FileInfo], rules: Rules) -> IndexEffect:
    """Makes at most `BATCH` items (by name) the entries of device `dev`, and evaluates their names."""
    return _Pass(conn, fid, list(files), rules, dev, files).run()


def remove(conn: Connection, fid: int, dev: int, names: Sequence[str], rules: Rules) -> IndexEffect:
    """Removes the device's entries of at most `BATCH` names, and evaluates them."""
    return _Pass(conn, fid, names, rules, dev).run()


def fill_batch(conn: Connection, names: Iterable[str]) -> None:
    """Puts names into `temp.batch (at, name)` for a join. A table, not JSON: names may contain any character."""
    conn.execute("CREATE TEMP TABLE IF NOT EXISTS batch (at INTEGER PRIMARY KEY, name TEXT NOT NULL)")
    conn.execute("DELETE FROM temp.batch")
    conn.executemany("INSERT INTO temp.batch VALUES (?, ?)", enumerate(names))


@dataclass(slots=True)
class _Writes:
    """Rows that a pass writes, and the sums that change by it: `have` per device (items, bytes, lacked deletions)."""

    entries: list[tuple[object, ...]] = field(default_factory=list)
    changed_entries: list[tuple[object, ...]] = field(default_factory=list)
    dropped_entries: list[tuple[object, ...]] = field(default_factory=list)
    contents: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    dropped_contents: list[tuple[int]] = field(default_factory=list)
    needs: list[tuple[object, ...]] = field(default_factory=list)
    dropped_needs: list[tuple[object, ...]] = field(default_factory=list)
    have: dict[int, list[int]] = field(default_factory=dict)
    sums: list[int] = field(default_factory=lambda: [0] * 9)


class _Pass:
    """One batch. `dev` alone: its entries go; with `files`: these become its entries."""

    def __init__(
        self,
        conn: Connection,
        fid: int,
        names: Sequence[str],
        rules: Rules,
        dev: int | None = None,
        files: Mapping[str, FileInfo] | None = None,
    ) -> None:
        self._conn, self._fid, self._names, self._rules, self._dev, self._files = conn, fid, names, rules, dev, files
        self._writes = _Writes()
        self._effect = IndexEffect()
        self._next_content = 0

    def run(self) -> IndexEffect:
        own, entries, needs = self._read()
        removes = self._dev is not None and self._files is None
        given: FileInfo | None = None
        marked: Sequence[Entry]
        for at, name in enumerate(self._names):
            before = entries.get(at, ())
            if self._files is not None:
                given = self._files[name]
                if not before and at not in needs and self._note_first(name, given, own.get(at)):
                    continue
            item = Item(self._conn, self._fid, name, own.get(at), given, self._dev, sums=self._rules.sums)
            need_before = needs.get(at)
            after = [entry for entry in before if entry.dev != self._dev] if removes else self._with_contents(item, before)
            winner = item.winner(after)
            if self._rules.ignored(name):
                need, marked = None, [entry._replace(flags=entry.flags & ~MARKS) for entry in after]
            else:
                need = item.need(winner, after, self._rules.takes_nothing, need_before) if winner is not None else None
                marked = item.marked(winner, after)
            self._note_entries(name, before, marked)
            if need != need_before:
                self._note_need(name, need_before, need)
        self._flush()
        return self._effect

    # --- reading

    def _read(self) -> tuple[dict[int, Own], dict[int, tuple[Entry, ...]], dict[int, Need]]:
        """What the database has of the names, by their place in the batch."""
        conn, fid = self._conn, self._fid
        fill_batch(conn, self._names)
        make = tuple.__new__  # what _make does, without its call
        # CROSS JOIN keeps SQLite from making the large table the outer one.
        own = {
            row[0]: make(Own, row[1:])
            for row in conn.execute(
                "SELECT b.at, r.type, r.deleted, r.invalid, r.flags, r.size, r.version FROM temp.batch b CROSS JOIN records r "
                "ON r.fid = ? AND r.name = b.name",
                (fid,),
            )
        }
        entries: dict[int, tuple[Entry, ...]] = {}
        for row in conn.execute(
            "SELECT b.at, r.dev, r.seq, r.flags, r.size, r.modified, r.version, r.content FROM temp.batch b CROSS JOIN remote r "
            "ON r.fid = ? AND r.name = b.name",
            (fid,),
        ):
            entries[row[0]] = (*entries.get(row[0], ()), make(Entry, row[1:]))
        needs = {
            row[0]: make(Need, row[1:])
            for row in conn.execute(
                "SELECT b.at, n.kind, n.held, n.size, n.blocks, n.replaces, n.replaced_bytes, n.version, n.content FROM temp.batch b "
                "CROSS JOIN need n ON n.fid = ? AND n.name = b.name",
                (fid,),
            )
        }
        if self._files is not None:
            self._next_content = (conn.execute("SELECT max(id) FROM remote_content").fetchone()[0] or 0) + 1
        return own, entries, needs

    # --- entries

    def _note_first(self, name: str, info: FileInfo, own: Own | None) -> bool:
        """The two cases of which a first index consists: nobody else and we know nothing of the name, or we have this very version. The
        same as the general way, a third of the work; False if the name is neither."""
        if info.invalid or (own is not None and (own.flags or own.invalid)) or self._rules.ignored(name) or self._dev is None:
            return False
        entry = _entry_of(self._dev, info)
        if own is not None:
            if own.version != entry.version or own.deleted != info.deleted:
                return False
            if not info.deleted:
                entry = entry._replace(flags=entry.flags | HAS)
                self._count(entry, 1)
            self._writes.entries.append((self._fid, name, *entry))
            return True
        content = self._new_content(info)
        if info.deleted:
            self._writes.entries.append((self._fid, name, *entry[:-1], content))
            return True
        entry = entry._replace(flags=entry.flags | HAS, content=content)
        self._count(entry, 1)
        self._writes.entries.append((self._fid, name, *entry))
        blocks = fileinfo.block_count(info.size, info.block_size) if info.type is FileType.FILE else 0
        self._note_need(name, None, Need(KIND[info.type], int(self._rules.takes_nothing), entry.size, blocks, 0, 0, entry.version, content))
        return True

    def _with_contents(self, item: Item, before: Sequence[Entry]) -> list[Entry]:
        """The entries as they will be: the given one among them, content only where it may be needed."""
        after = []
        for entry in before:
            if entry.dev != self._dev:
                keeps = entry.content is None or item.may_be_needed(entry)
                after.append(entry if keeps else entry._replace(content=None))
        if item.given is not None and self._dev is not None:
            after.append(self._given_entry(item, item.given, self._dev, after))
        return after

    def _given_entry(self, item: Item, info: FileInfo, dev: int, others: Iterable[Entry]) -> Entry:
        entry = _entry_of(dev, info)
        if not item.may_be_needed(entry):
            return entry
        for other in others:
            if other.content is not None and is_same(other, entry) and not other.flags & INVALID:
                return entry._replace(content=other.content)
        return entry._replace(content=self._new_content(info))

    def _new_content(self, info: FileInfo) -> int:
        content = self._next_content
        self._next_content += 1
        self._writes.contents.append((content, info.wire, info.block_hashes))
        return content

    def _note_entries(self, name: str, before: Sequence[Entry], after: Sequence[Entry]) -> None:
        """The rows that differ, contents that nobody refers to any more, and what changes in the devices' sums."""
        writes, fid, dev = self._writes, self._fid, self._dev
        old = {entry.dev: entry for entry in before}
        for entry in after:
            was = old.pop(entry.dev, None)
            if entry == was:
                continue
            if entry.dev == dev:
                writes.entries.append((fid, name, *entry))
            else:
                writes.changed_entries.append((entry.flags, entry.content, fid, name, entry.dev))
            if entry.flags & MARKS:
                self._count(entry, 1)
            if was is not None and was.flags & MARKS:
                self._count(was, -1)
        for gone in old.values():
            writes.dropped_entries.append((fid, name, gone.dev))
            if gone.flags & MARKS:
                self._count(gone, -1)
        if before:
            kept = {entry.content for entry in after}
            writes.dropped_contents += [
                (content,) for content in {entry.content for entry in before} if content is not None and content not in kept
            ]

    def _count(self, entry: Entry, sign: int) -> None:
        sums = self._writes.have.setdefault(entry.dev, [0, 0, 0])
        if entry.flags & HAS:
            sums[0] += sign
            sums[1] += sign * entry.size
        if entry.flags & LACKS_DELETE:
            sums[2] += sign

    # --- needs

    def _note_need(self, name: str, before: Need | None, need: Need | None) -> None:
        sums = self._writes.sums
        if before is not None:
            _add(sums, before, -1)
        if need is None:
            self._writes.dropped_needs.append((self._fid, name))
            self._effect.satisfied.append(name)
            return
        _add(sums, need, 1)
        self._writes.needs.append((self._fid, name, *need))
        if before is None or before.version != need.version or before.held != need.held:
            self._effect.needed.append(name)

    # --- writing

    def _flush(self) -> None:
        conn, fid, writes = self._conn, self._fid, self._writes
        conn.executemany("DELETE FROM remote_content WHERE id = ?", writes.dropped_contents)
        conn.executemany("INSERT INTO remote_content VALUES (?, ?, ?)", writes.contents)
        conn.executemany("DELETE FROM remote WHERE fid = ? AND name = ? AND dev = ?", writes.dropped_entries)
        conn.executemany("INSERT OR REPLACE INTO remote VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", writes.entries)
        conn.executemany("UPDATE remote SET flags = ?, content = ? WHERE fid = ? AND name = ? AND dev = ?", writes.changed_entries)
        conn.executemany("DELETE FROM need WHERE fid = ? AND name = ?", writes.dropped_needs)
        conn.executemany("INSERT OR REPLACE INTO need VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", writes.needs)
        for dev, (items, size, deletes) in writes.have.items():
            conn.execute(
                "UPDATE remote_state SET have_items = have_items + ?, have_bytes = have_bytes + ?, lacks_deletes = lacks_deletes + ? "
                "WHERE fid = ? AND dev = ?",
                (items, _bounded(size), deletes, fid, dev),
            )
        if any(writes.sums):
            conn.execute("INSERT OR IGNORE INTO need_state (fid) VALUES (?)", (fid,))
            conn.execute(
                "UPDATE need_state SET files = files + ?, directories = directories + ?, symlinks = symlinks + ?, bytes = bytes + ?, "
                "deletes = deletes + ?, held_items = held_items + ?, held_bytes = held_bytes + ?, added_items = added_items + ?, "
                "added_bytes = added_bytes + ? WHERE fid = ?",
                (*map(_bounded, writes.sums), fid),
            )


def _entry_of(dev: int, info: FileInfo) -> Entry:
    """The row of an announced item, content left out; numbers that a peer made up are cut to what SQLite can hold and add."""
    flags = (DELETED if info.deleted else 0) | (INVALID if info.invalid else 0) | info.type << TYPE_SHIFT
    seconds = info.modified_s if -_MOST_SECONDS < info.modified_s < _MOST_SECONDS else _MOST_SECONDS
    size = min(info.size, _MOST_BYTES)
    return Entry(dev, info.sequence, flags, size, seconds * 1_000_000_000 + info.modified_ns, _wire_of(info.version), None)


_wire_of = lru_cache(4096)(vector.to_wire)
"""Most items of an index were changed in a few seconds by few devices."""


def _bounded(value: int) -> int:
    """Sums of sizes that a peer made up must not leave SQLite's integers."""
    return max(-_MOST_SUM, min(_MOST_SUM, value))


_FILES, _DIRECTORIES, _SYMLINKS, _BYTES, _DELETES, _HELD_ITEMS, _HELD_BYTES, _ADDED_ITEMS, _ADDED_BYTES = range(9)
_COUNTER = {NeedKind.FILE: _FILES, NeedKind.METADATA: _FILES, NeedKind.DIRECTORY: _DIRECTORIES, NeedKind.SYMLINK: _SYMLINKS}


def _add(sums: list[int], need: Need, sign: int) -> None:
    """Counts one need. `added_*` is what the global state has beyond our records because of it."""
    kind = NeedKind(need.kind)
    size = need.size if kind is NeedKind.FILE else 0
    if need.held:
        sums[_HELD_ITEMS] += sign
        sums[_HELD_BYTES] += sign * size
    elif kind.deletes:
        sums[_DELETES] += sign
    else:
        sums[_COUNTER[kind]] += sign
        sums[_BYTES] += sign * size
    sums[_ADDED_ITEMS] += sign * ((0 if kind.deletes else 1) - need.replaces)
    sums[_ADDED_BYTES] += sign * ((0 if kind.deletes else need.size) - need.replaced_bytes)
