"""Questions to the index: what is needed, what it looks like, who has it, how complete everybody is. Reads only, batches of names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from sqlite3 import Connection
from typing import NamedTuple

from stnode.folder.decision import Entry, Item
from stnode.folder.evaluation import fill_batch
from stnode.folder.tables import DELETED, HAS, INVALID
from stnode.folder.types import Completion, Needed, NeedKind, NeedTotals
from stnode.protocol import fileinfo, vector
from stnode.protocol.fileinfo import FileInfo
from stnode.protocol.vector import Vector
from stnode.repo import state


class Part(NamedTuple):
    """A needed name, as sharing work between nodes looks at it. `key` stands for the content, b"" where nothing is fetched; `stamp` is
    (size, modification time in ns), which a rename keeps; `devices` announce the version that is needed, a deletion too."""

    name: str
    kind: NeedKind
    key: bytes
    stamp: tuple[int, int]
    devices: tuple[int, ...]


def next_needed(conn: Connection, fid: int, after: str, limit: int, *, deletes: bool, held: bool = False) -> list[Needed]:
    """The next window of needed names greater than `after`, in name order, so parents come before children: either only deletions or
    everything else. `held` asks for what a send-only folder does not take instead."""
    rows = conn.execute(
        f"SELECT name, kind, size, blocks, held, content IS NOT NULL FROM need WHERE fid = ? AND name > ? "  # noqa: S608 - a constant operator
        f"AND kind {'>=' if deletes else '<'} ? AND held = ? ORDER BY name LIMIT ?",
        (fid, after, int(NeedKind.DELETE), int(held), limit),
    )
    return [Needed(name, NeedKind(kind), size, blocks, bool(is_held), bool(known)) for name, kind, size, blocks, is_held, known in rows]


def needed_named(conn: Connection, fid: int, names: Sequence[str]) -> list[Needed]:
    """Those of the names that are needed and no deletions, in name order."""
    fill_batch(conn, names)
    rows = conn.execute(
        "SELECT n.name, n.kind, n.size, n.blocks, n.held, n.content IS NOT NULL FROM temp.batch b CROSS JOIN need n ON n.fid = ? "
        "AND n.name = b.name WHERE n.kind < ? AND n.held = 0 ORDER BY n.name",
        (fid, int(NeedKind.DELETE)),
    )
    return [Needed(name, NeedKind(kind), size, blocks, bool(is_held), bool(known)) for name, kind, size, blocks, is_held, known in rows]


def needless(conn: Connection, fid: int, names: Sequence[str]) -> list[str]:
    """Those of the names that are not needed, in no way."""
    fill_batch(conn, names)
    query = "SELECT b.name FROM temp.batch b LEFT JOIN need n ON n.fid = ? AND n.name = b.name WHERE n.name IS NULL"
    return [name for (name,) in conn.execute(query, (fid,))]


def needed_info(conn: Connection, fid: int, names: Sequence[str]) -> dict[str, FileInfo]:
    """The global versions of needed names, hashes loaded. A name that is not needed, or whose content no entry has (see
    `missing_content`), is left out."""
    fill_batch(conn, names)
    rows = conn.execute(
        "SELECT n.name, c.info, c.blocks FROM temp.batch b CROSS JOIN need n ON n.fid = ? AND n.name = b.name "
        "CROSS JOIN remote_content c ON c.id = n.content ORDER BY b.at",
        (fid,),
    )
    return {name: fileinfo.from_record(info, 0, blocks) for name, info, blocks in rows}


def replacing(conn: Connection, fid: int, first: str, last: str) -> list[str]:
    """Files and symlinks, needed names from `first` to `last`, that take the place of a live item of ours."""
    rows = conn.execute(
        "SELECT name FROM need WHERE fid = ? AND name >= ? AND name <= ? AND replaces AND kind IN (?, ?)",
        (fid, first, last, int(NeedKind.FILE), int(NeedKind.SYMLINK)),
    )
    return [name for (name,) in rows]


def sources(conn: Connection, fid: int, names: Sequence[str]) -> dict[str, list[int]]:
    """Devices that have the global version of each name, valid and live: those that can be asked for its blocks."""
    fill_batch(conn, names)
    found: dict[str, list[int]] = {}
    for name, dev in conn.execute(
        "SELECT r.name, r.dev FROM temp.batch b CROSS JOIN remote r ON r.fid = ? AND r.name = b.name WHERE r.flags & ?", (fid, HAS)
    ):
        found.setdefault(name, []).append(dev)
    return found


def parts(conn: Connection, fid: int, names: Sequence[str]) -> list[Part]:
    """Those of the names that are needed, in their order."""
    fill_batch(conn, names)
    found: dict[int, tuple[list[int], list[int]]] = {}
    for at, dev, modified in conn.execute(
        "SELECT b.at, r.dev, r.modified FROM temp.batch b CROSS JOIN need n ON n.fid = ?1 AND n.name = b.name "
        "CROSS JOIN remote r ON r.fid = ?1 AND r.name = b.name WHERE r.version = n.version AND NOT r.flags & ?2 "
        "AND r.flags & ?3 = (n.kind >= ?4) ORDER BY b.at, r.dev",
        (fid, INVALID, DELETED, int(NeedKind.DELETE)),
    ):
        devices, times = found.setdefault(at, ([], []))
        devices.append(dev)
        times.append(modified)
    needed = conn.execute(
        "SELECT b.at, b.name, n.kind, n.size, c.blocks FROM temp.batch b CROSS JOIN need n ON n.fid = ? AND n.name = b.name "
        "LEFT JOIN remote_content c ON c.id = n.content ORDER BY b.at",
        (fid,),
    )
    made: list[Part] = []
    for at, name, kind, size, blocks in needed:
        devices, times = found.get(at, ([], []))
        fetched = kind == NeedKind.FILE and size and blocks
        stamp = (size, min(times, default=0))
        made.append(Part(name, NeedKind(kind), fileinfo.blocks_hash(blocks) if fetched else b"", stamp, tuple(devices)))
    return made


def going(conn: Connection, fid: int, limit: int) -> set[tuple[int, int]]:
    """(size, modification time in ns) of files with content that are to be deleted, of `limit` deletions at most: a needed file of the
    same may be one of them under its new name."""
    names = [needed.name for needed in next_needed(conn, fid, "", limit, deletes=True) if needed.kind is NeedKind.DELETE]
    found = state.get_records(conn, fid, names).values()
    return {(record.info.size, record.info.modified_s * 1_000_000_000 + record.info.modified_ns) for record in found if record.info.size}


def device_ids(conn: Connection) -> dict[int, bytes]:
    """Device IDs by their small numbers."""
    return dict(conn.execute("SELECT dev, device FROM remote_devices").fetchall())


def announced_by(conn: Connection, fid: int, name: str, version: Vector) -> list[int]:
    """Devices whose index has exactly this version of the name, valid: they make the conflict copy if it loses (R28)."""
    rows = conn.execute("SELECT dev, version FROM remote WHERE fid = ? AND name = ? AND NOT flags & ?", (fid, name, INVALID))
    return [dev for dev, wire in rows if vector.from_wire(wire) == version]


def best_versions(conn: Connection, fid: int, names: Sequence[str]) -> dict[str, Vector]:
    """The version that would be global if we had nothing, deletions too; names that no device announces as valid are left out."""
    fill_batch(conn, names)
    entries: dict[str, list[Entry]] = {}
    for name, *entry in conn.execute(
        "SELECT r.name, r.dev, r.seq, r.flags, r.size, r.modified, r.version, r.content FROM temp.batch b CROSS JOIN remote r "
        "ON r.fid = ? AND r.name = b.name",
        (fid,),
    ):
        entries.setdefault(name, []).append(Entry._make(entry))
    winners = ((name, Item(conn, fid, name, None, None, None).winner(found)) for name, found in entries.items())
    return {name: vector.from_wire(winner.version) for name, winner in winners if winner is not None}


def missing_content(conn: Connection, fid: int, names: Sequence[str] | None = None) -> list[int]:
    """Devices whose index must be sent again (`index.forget`), because they have a needed version (of these names) whose content was
    dropped as equal to our record, which then went back (restored bucket, damage). Empty in all normal life."""
    among = "need n CROSS JOIN remote r"
    if names is not None:
        fill_batch(conn, names)
        among = "temp.batch b CROSS JOIN need n ON n.name = b.name CROSS JOIN remote r"
    rows = conn.execute(
        f"SELECT DISTINCT r.dev FROM {among} ON r.fid = n.fid AND r.name = n.name AND r.version = n.version "  # noqa: S608 - constants
        "WHERE n.fid = ? AND n.content IS NULL",
        (fid,),
    )
    return [dev for (dev,) in rows]


def need_totals(conn: Connection, fid: int) -> NeedTotals:
    """Sums over what the folder needs."""
    row = conn.execute(
        "SELECT files, directories, symlinks, bytes, deletes, held_items, held_bytes FROM need_state WHERE fid = ?", (fid,)
    ).fetchone()
    return NeedTotals() if row is None else NeedTotals(*row)


def completion(conn: Connection, fid: int, devices: Iterable[int]) -> dict[int, Completion]:
    """How much each device has of the folder's global state; one that announced nothing has nothing."""
    own = conn.execute("SELECT files + directories + symlinks, bytes FROM folders WHERE fid = ?", (fid,)).fetchone() or (0, 0)
    added = conn.execute("SELECT added_items, added_bytes FROM need_state WHERE fid = ?", (fid,)).fetchone() or (0, 0)
    items, size = max(0, own[0] + added[0]), max(0, own[1] + added[1])
    found: dict[int, Completion] = {}
    for dev in devices:
        have = conn.execute(
            "SELECT have_items, have_bytes, lacks_deletes FROM remote_state WHERE fid = ? AND dev = ?", (fid, dev)
        ).fetchone() or (0, 0, 0)
        found[dev] = Completion(max(0, items - have[0]), max(0, size - have[1]), have[2], items, size)
    return found
