"""Reads of the state in SQLite. Synchronous functions over a connection, called in batches inside `Database.run`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from stnode.objectstore.base import Key
from stnode.protocol.fileinfo import FileType, from_record
from stnode.protocol.vector import Vector, from_wire
from stnode.repo.addresses import Move
from stnode.repo.codec_body import Partial, Relocation, decode_partial
from stnode.repo.codec_run import Space
from stnode.repo.layout import pack_key
from stnode.repo.records import Extent, Extents, Record, decode_extents
from stnode.repo.settings import DeviceSettings, FolderSettings, decode_device, decode_folder
from stnode.repo.state_schema import META_GROUP, MODULUS_MASK, entry_hash, head_value

_RECORD: Final = "name, seq, flags, info, extents"
_BATCH: Final = 500
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Head:
    """Where the state stands. `complete` is False while (or after) an interrupted restore: the rest means nothing then.
    A fresh state is number 0 with 32 zero bytes."""

    number: int
    slot_sha: bytes
    store_time_us: int
    horizon_us: int
    next_pack: int
    next_folder: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of live items (invalid ones left out) and of deleted records; `bytes` of live files."""

    files: int
    directories: int
    symlinks: int
    deleted: int
    bytes: int


@dataclass(frozen=True, slots=True)
class FolderState:
    """A folder incarnation. `last_sequence` is 0 before its first record; `old_versions` are retained in the history, `old_bytes` what they
    add up to."""

    fid: int
    fkey: str
    settings: FolderSettings
    last_sequence: int
    removed: bool
    totals: Totals
    old_versions: int
    old_bytes: int


@dataclass(frozen=True, slots=True)
class Pack:
    """A registered pack. `condemned` and `lost` are the numbers of the commits that said so, or 0. `refs` counts the references to
    its blocks by address (records, history, partial files; a block used twice counts twice), before relocations."""

    number: int
    fid: int
    fkey: str
    id: str
    size_bytes: int
    blocks: int
    footer_offset: int
    footer_bytes: int
    condemned: int
    lost: int
    refs: int

    @property
    def key(self) -> Key:
        """The object's key."""
        return pack_key(self.fkey, self.id)


class Served(NamedTuple):
    """What serving a file needs. `block_size` is the file's size where it is one block."""

    size: int
    block_size: int
    extents: Extents


@dataclass(frozen=True, slots=True)
class OldVersion:
    """A retained version; it was current from about `record.sequence` (µs) until `superseded_us`, store time."""

    record: Record
    superseded_us: int


def head(conn: sqlite3.Connection) -> Head:
    """Number, hash and counters of the last applied commit."""
    row = conn.execute("SELECT number, slot_sha, store_time_us, horizon_us, next_pack, next_folder, complete FROM state").fetchone()
    return Head(row[0], row[1], row[2], row[3], row[4], row[5], bool(row[6]))


def state_hash(conn: sqlite3.Connection) -> bytes:
    """The 16 bytes that every node has after the same commits; cheap, the parts are kept up to date."""
    at = head(conn)
    value = head_value(at.number, at.slot_sha, at.store_time_us, at.horizon_us, at.next_pack, at.next_folder)
    entries = int.from_bytes(conn.execute("SELECT hash FROM state").fetchone()[0], "little")
    total = entries + entry_hash(Space.HEAD, META_GROUP, b"", value)
    return (total & MODULUS_MASK).to_bytes(16, "little")


def hash_at(conn: sqlite3.Connection, number: int) -> bytes | None:
    """The state hash after an earlier commit; None when it is not kept any more, or not yet."""
    row = conn.execute("SELECT hash FROM hashes WHERE number = ?", (number,)).fetchone()
    return None if row is None else row[0]


def orphan_age_us(conn: sqlite3.Connection) -> int:
    """How far the orphan horizon stays behind store time in this store."""
    age_us: int = conn.execute("SELECT orphan_age_us FROM state").fetchone()[0]
    return age_us


def horizons(conn: sqlite3.Connection) -> list[tuple[int, int]]:
    """(commit, orphan horizon) of the commits that raised it, ascending. Those below a manifest that the state was loaded from are one, with
    the manifest's number: the horizon stands since then at the latest."""
    return conn.execute("SELECT number, horizon_us FROM horizons ORDER BY number").fetchall()


# ---- folders, devices ----------------------------------------------------------------------------------------------

_FOLDER: Final = "fid, fkey, settings, last_sequence, removed, files, directories, symlinks, deleted, bytes, old_versions, old_bytes"


def _folder(row: tuple[int, str, bytes, int, int, int, int, int, int, int, int, int]) -> FolderState:
    return FolderState(row[0], row[1], decode_folder(row[2]), row[3], bool(row[4]), Totals(*row[5:10]), *row[10:])


def folders(conn: sqlite3.Connection, *, removed: bool = False) -> list[FolderState]:
    """Folders by number; with `removed` those too that are gone."""
    query = f"SELECT {_FOLDER} FROM folders {'' if removed else 'WHERE removed = 0'} ORDER BY fid"  # noqa: S608
    return [_folder(row) for row in conn.execute(query)]


def folder_by_id(conn: sqlite3.Connection, folder_id: str) -> FolderState | None:
    """The living incarnation of a folder ID."""
    row = conn.execute(f"SELECT {_FOLDER} FROM folders WHERE folder_id = ? AND removed = 0", (folder_id,)).fetchone()  # noqa: S608
    return None if row is None else _folder(row)


def folder(conn: sqlite3.Connection, fid: int) -> FolderState | None:
    """A folder by its number, removed or not."""
    row = conn.execute(f"SELECT {_FOLDER} FROM folders WHERE fid = ?", (fid,)).fetchone()  # noqa: S608
    return None if row is None else _folder(row)


def totals(conn: sqlite3.Connection, fid: int) -> Totals:
    """A folder's totals, zeros for one that does not exist."""
    row = conn.execute("SELECT files, directories, symlinks, deleted, bytes FROM folders WHERE fid = ?", (fid,)).fetchone()
    return Totals(*(row or (0, 0, 0, 0, 0)))


def devices(conn: sqlite3.Connection) -> list[DeviceSettings]:
    """Settings of all devices, by device ID."""
    return [decode_device(row[0]) for row in conn.execute("SELECT settings FROM devices ORDER BY id")]


def device(conn: sqlite3.Connection, device_id: bytes) -> DeviceSettings | None:
    """Settings of one device."""
    row = conn.execute("SELECT settings FROM devices WHERE id = ?", (device_id,)).fetchone()
    return None if row is None else decode_device(row[0])


def intervals(conn: sqlite3.Connection, fid: int) -> list[tuple[int, int]]:
    """(first, last) of the ranges of sequence numbers that have been assigned, ascending."""
    return conn.execute("SELECT start, last FROM intervals WHERE fid = ? ORDER BY start", (fid,)).fetchall()


def last_sequence(conn: sqlite3.Connection, fid: int) -> int:
    """The highest number assigned in a folder, 0 before its first record."""
    row = conn.execute("SELECT last_sequence FROM folders WHERE fid = ?", (fid,)).fetchone()
    return int(row[0]) if row else 0


def features(conn: sqlite3.Connection) -> tuple[str, ...]:
    """Features that commits have switched on."""
    return tuple(row[0] for row in conn.execute("SELECT name FROM features ORDER BY name"))


# ---- records -------------------------------------------------------------------------------------------------------


def _record(fid: int, row: tuple[str, int, int, bytes, bytes]) -> Record:
    name, seq, flags, info, extents = row
    return Record(fid, name, seq, from_record(info, seq), decode_extents(extents), flags)


def get_records(conn: sqlite3.Connection, fid: int, names: Sequence[str]) -> dict[str, Record]:
    """Current records (deleted ones too) of those names that exist; block hashes are not loaded."""
    found: dict[str, Record] = {}
    for start in range(0, len(names), _BATCH):
        part = names[start : start + _BATCH]
        query = f"SELECT {_RECORD} FROM records WHERE fid = ? AND name IN ({','.join('?' * len(part))})"  # noqa: S608
        found.update((row[0], _record(fid, row)) for row in conn.execute(query, (fid, *part)))
    return found


def served(conn: sqlite3.Connection, fid: int, names: Sequence[str]) -> dict[str, Served]:
    """What of those names is a file that exists. Most are one block: their FileInfo need not be parsed."""
    found: dict[str, Served] = {}
    for start in range(0, len(names), _BATCH):
        part = names[start : start + _BATCH]
        query = (
            f"SELECT name, size, info, extents FROM records WHERE fid = ? AND name IN ({','.join('?' * len(part))})"  # noqa: S608
            f" AND type = {FileType.FILE:d} AND deleted = 0"
        )
        for name, size, info, extents in conn.execute(query, (fid, *part)):
            runs = decode_extents(extents)
            one = len(runs) == 1 and runs[0][2] == 1
            found[name] = Served(size, size if one else from_record(info).block_size, runs)
    return found


def records_since(conn: sqlite3.Connection, fid: int, after_seq: int, limit: int) -> list[Record]:
    """Records with a greater sequence, ascending, at most `limit`."""
    query = f"SELECT {_RECORD} FROM records WHERE fid = ? AND seq > ? ORDER BY seq LIMIT ?"  # noqa: S608
    return [_record(fid, row) for row in conn.execute(query, (fid, after_seq, limit))]


def walk(conn: sqlite3.Connection, fid: int, prefix: str, after_name: str, limit: int, *, deleted: bool = False) -> list[Record]:
    """Records whose names begin with `prefix` and are greater than `after_name`, in byte order of names, at most `limit`."""
    query = (
        f"SELECT {_RECORD} FROM records WHERE fid = ?1 AND name > ?2 AND name >= ?3 AND (?4 = '' OR name < ?4)"  # noqa: S608
        f" AND (?5 OR deleted = 0) ORDER BY name LIMIT ?6"
    )
    return [_record(fid, row) for row in conn.execute(query, (fid, after_name, prefix, after_prefix(prefix), deleted, limit))]


def after_prefix(prefix: str) -> str:
    """The least string greater than all that begin with `prefix`; "" if there is none."""
    for end in range(len(prefix), 0, -1):
        code = ord(prefix[end - 1]) + 1
        code = 0xE000 if code == 0xD800 else code
        if code <= 0x10FFFF:
            return prefix[: end - 1] + chr(code)
    return ""


def children(
    conn: sqlite3.Connection, fid: int, directory: str, *, after: str = "", limit: int = 1 << 30, deleted: bool = False
) -> list[Record]:
    """Records directly in a directory ("" = the folder's root) with full names greater than `after`, in byte order, at most `limit`.
    What lies deeper is jumped over, not read."""
    prefix = directory + "/" if directory else ""
    query = (
        f"SELECT {_RECORD} FROM records WHERE fid = ?1 AND name >= ?2 AND (?3 = '' OR name < ?3)"  # noqa: S608
        " AND (?4 OR deleted = 0) ORDER BY name LIMIT ?5"
    )
    end, start, page = after_prefix(prefix), max(prefix, after + "\0" if after else prefix), 16
    found: list[Record] = []
    while len(found) < limit:
        rows = conn.execute(query, (fid, start, end, deleted, page)).fetchall()
        full = len(rows) == page
        for row in rows:
            slash = row[0].find("/", len(prefix))
            if slash >= 0:
                # "0" follows "/": the next name that is not below this directory
                start, page, full = row[0][:slash] + "0", 16, True
                break
            found.append(_record(fid, row))
            start = row[0] + "\0"
        else:
            page = _PAGE
        if not full:
            break
    return found[:limit]


def live_children(conn: sqlite3.Connection, fid: int, names: Sequence[str]) -> set[str]:
    """Those of the names below which a record lives that is not deleted."""
    query = "SELECT 1 FROM records WHERE fid = ? AND name > ? AND name < ? AND deleted = 0 LIMIT 1"
    return {name for name in names if conn.execute(query, (fid, name + "/", name + "0")).fetchone()}


# ---- history, partial files ----------------------------------------------------------------------------------------


def old_versions(conn: sqlite3.Connection, fid: int, name: str, *, limit: int = 1 << 30) -> list[OldVersion]:
    """Retained versions of a name, newest first, at most `limit`."""
    query = f"SELECT {_RECORD}, superseded_us FROM history WHERE fid = ? AND name = ? ORDER BY seq DESC LIMIT ?"  # noqa: S608
    return [OldVersion(_record(fid, row[:5]), row[5]) for row in conn.execute(query, (fid, name, limit))]


def walk_history(conn: sqlite3.Connection, fid: int, prefix: str, after: tuple[str, int], limit: int) -> list[OldVersion]:
    """Retained versions below a prefix after (name, sequence), in that order, at most `limit`."""
    query = (
        f"SELECT {_RECORD}, superseded_us FROM history WHERE fid = ?1 AND (name, seq) > (?2, ?3) AND name >= ?4"  # noqa: S608
        " AND (?5 = '' OR name < ?5) ORDER BY name, seq LIMIT ?6"
    )
    rows = conn.execute(query, (fid, after[0], after[1], prefix, after_prefix(prefix), limit))
    return [OldVersion(_record(fid, row[:5]), row[5]) for row in rows]


def partials(conn: sqlite3.Connection, fid: int) -> list[tuple[Partial, int]]:
    """Partial files of a folder with the store time (µs) at which each was last renewed."""
    query = "SELECT partial, extents, renewed_us FROM partials WHERE fid = ? ORDER BY name, version"
    return [(decode_partial(wire, extents), renewed_us) for wire, extents, renewed_us in conn.execute(query, (fid,))]


def partial_runs(conn: sqlite3.Connection, fid: int, wanted: Sequence[tuple[str, Vector]]) -> dict[str, tuple[tuple[int, Extent], ...]]:
    """Blocks already stored of versions that are still being pulled: per name, (block number, extent) ascending. Names without any
    are left out."""
    query = "SELECT version, partial, extents FROM partials WHERE fid = ? AND name = ?"
    found: dict[str, tuple[tuple[int, Extent], ...]] = {}
    if conn.execute("SELECT 1 FROM partials WHERE fid = ? LIMIT 1", (fid,)).fetchone() is None:
        return found
    for name, version in wanted:
        for wire, partial, extents in conn.execute(query, (fid, name)):
            if from_wire(wire) == version:
                decoded = decode_partial(partial, extents)
                found[name] = tuple(sorted(zip(decoded.starts, decoded.extents, strict=True)))
    return found


# ---- packs ---------------------------------------------------------------------------------------------------------

_PACK: Final = (
    "SELECT p.number, p.fid, f.fkey, p.id, p.size, p.blocks, p.footer_offset, p.footer_bytes, p.condemned, p.lost, p.refs "
    "FROM packs p JOIN folders f ON f.fid = p.fid"
)


def packs(conn: sqlite3.Connection, numbers: Sequence[int]) -> dict[int, Pack]:
    """Registered packs among these numbers."""
    found: dict[int, Pack] = {}
    for start in range(0, len(numbers), _BATCH):
        part = numbers[start : start + _BATCH]
        found.update((row[0], Pack(*row)) for row in conn.execute(f"{_PACK} WHERE p.number IN ({','.join('?' * len(part))})", part))
    return found


def packs_after(conn: sqlite3.Connection, number: int, limit: int) -> list[Pack]:
    """Packs with a greater number, ascending, at most `limit`."""
    return [Pack(*row) for row in conn.execute(f"{_PACK} WHERE p.number > ? ORDER BY p.number LIMIT ?", (number, limit))]


def pack_by_id(conn: sqlite3.Connection, pack_id: str) -> Pack | None:
    """The registered pack with this id."""
    row = conn.execute(f"{_PACK} WHERE p.id = ?", (pack_id,)).fetchone()
    return None if row is None else Pack(*row)


def all_packs(conn: sqlite3.Connection) -> list[Pack]:
    """All registered packs, by number."""
    return [Pack(*row) for row in conn.execute(f"{_PACK} ORDER BY p.number")]


def all_moves(conn: sqlite3.Connection) -> dict[int, list[Move]]:
    """Where blocks of packs have gone, per pack by place; one step only (see `resolve`)."""
    moves: dict[int, list[Move]] = {}
    for pack, *move in conn.execute("SELECT pack, place, count, to_pack, to_place FROM relocations ORDER BY pack, place"):
        moves.setdefault(pack, []).append(Move(*move))
    return moves


def relocations(conn: sqlite3.Connection, pack: int) -> list[Relocation]:
    """Where blocks of a pack have gone, ascending by place; one step only (see `resolve`)."""
    query = "SELECT pack, place, count, to_pack, to_place FROM relocations WHERE pack = ? ORDER BY place"
    return [Relocation(*row) for row in conn.execute(query, (pack,))]


def resolve(conn: sqlite3.Connection, pack: int, place: int, count: int) -> list[Extent]:
    """Where `count` blocks from address (pack, place) on are now: runs in order, each with its final pack and place."""
    if pack <= 0:
        return [(pack, place, count)]
    query = "SELECT place, count, to_pack, to_place FROM relocations WHERE pack = ? AND place < ? AND place + count > ? ORDER BY place"
    end = place + count
    runs: list[Extent] = []
    for start, length, to_pack, to_place in conn.execute(query, (pack, end, place)).fetchall():
        if start > place:
            runs.append((pack, place, start - place))
            place = start
        upto = min(end, start + length)
        runs.extend(resolve(conn, to_pack, to_place + place - start, upto - place))
        place = upto
    if place < end:
        runs.append((pack, place, end - place))
    return runs


def may_be_named(conn: sqlite3.Connection, extents: Extents) -> bool:
    """Whether new records may name these blocks: each lies, relocations followed, in a pack that is neither condemned nor lost."""
    query = "SELECT 1 FROM packs WHERE number = ? AND condemned = 0 AND lost = 0"
    return all(
        not pack or conn.execute(query, (pack,)).fetchone() is not None for extent in extents for pack, _, _ in resolve(conn, *extent)
    )


def condemned(conn: sqlite3.Connection) -> tuple[list[tuple[int, int]], list[tuple[str, int]]]:
    """What commits have condemned and nobody reported gone: (pack number, commit) and (key of another object, commit)."""
    packs_ = conn.execute("SELECT number, condemned FROM packs WHERE condemned > 0 ORDER BY number").fetchall()
    return packs_, conn.execute("SELECT key, number FROM condemned ORDER BY key").fetchall()
