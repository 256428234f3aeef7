"""What the state says of packs, as the cache of lists and the search for known blocks ask for it. Reads the state's tables only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from sqlite3 import Connection
from typing import Final

from stnode.repo.addresses import Move
from stnode.repo.packlist import PackEntry
from stnode.repo.records import Extents, decode_extents

_PACKS: Final = (
    "SELECT p.number, f.fkey, p.id, p.size, p.footer_bytes, p.condemned = 0 AND p.lost = 0 FROM packs p JOIN folders f ON f.fid = p.fid"
)
_BATCH: Final = 500


class StateRegistry:
    """The registry of packs that commits keep (`packlist.PackRegistry`)."""

    def by_number(self, conn: Connection, numbers: Collection[int]) -> Mapping[int, PackEntry]:
        """Registered packs by number; those not in the state are left out."""
        return {entry.number: entry for entry in _entries(conn, "p.number", list(numbers))}

    def by_id(self, conn: Connection, ids: Collection[str]) -> Mapping[str, PackEntry]:
        """Registered packs by id; those not in the state are left out."""
        return {entry.id: entry for entry in _entries(conn, "p.id", list(ids))}

    def moves(self, conn: Connection, pack: int) -> Sequence[Move]:
        """Where blocks of the pack have moved, sorted by place."""
        query = "SELECT place, count, to_pack, to_place FROM relocations WHERE pack = ? ORDER BY place"
        return [Move(*row) for row in conn.execute(query, (pack,))]

    def extents(self, conn: Connection, fid: int, names: Sequence[str]) -> Mapping[str, Extents]:
        """Extents of the current versions of those names that have any."""
        found: dict[str, Extents] = {}
        for start in range(0, len(names), _BATCH):
            part = names[start : start + _BATCH]
            query = f"SELECT name, extents FROM records WHERE fid = ? AND name IN ({_marks(part)}) AND extents != x''"  # noqa: S608
            found.update((name, decode_extents(extents)) for name, extents in conn.execute(query, (fid, *part)))
        return found


def _entries(conn: Connection, column: str, values: Sequence[int | str]) -> list[PackEntry]:
    entries: list[PackEntry] = []
    for start in range(0, len(values), _BATCH):
        part = values[start : start + _BATCH]
        rows = conn.execute(f"{_PACKS} WHERE {column} IN ({_marks(part)})", part)
        entries += [PackEntry(number, fkey, name, size, footer, bool(usable)) for number, fkey, name, size, footer, usable in rows]
    return entries


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
