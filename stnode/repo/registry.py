"""What the state says of packs, as the cache of lists and the search for known blocks ask for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from sqlite3 import Connection

from stnode.repo import state
from stnode.repo.addresses import Move
from stnode.repo.packlist import PackEntry
from stnode.repo.records import Extents


class StateRegistry:
    """The registry of packs that commits keep (`packlist.PackRegistry`)."""

    def by_number(self, conn: Connection, numbers: Collection[int]) -> Mapping[int, PackEntry]:
        """Registered packs by number; those not in the state are left out."""
        return {number: _entry(pack) for number, pack in state.packs(conn, list(numbers)).items()}

    def by_id(self, conn: Connection, ids: Collection[str]) -> Mapping[str, PackEntry]:
        """Registered packs by id; those not in the state are left out."""
        return {name: _entry(pack) for name in ids if (pack := state.pack_by_id(conn, name)) is not None}

    def moves(self, conn: Connection, pack: int) -> Sequence[Move]:
        """Where blocks of the pack are now, sorted by place, moves of moves followed."""
        moves: list[Move] = []
        for step in state.relocations(conn, pack):
            place = step.place
            for to_pack, to_place, count in state.resolve(conn, step.to_pack, step.to_place, step.count):
                moves.append(Move(place, count, to_pack, to_place))
                place += count
        return moves

    def extents(self, conn: Connection, fid: int, names: Sequence[str]) -> Mapping[str, Extents]:
        """Extents of the current versions of those names that have any."""
        return {name: record.extents for name, record in state.get_records(conn, fid, names).items() if record.extents}


def _entry(pack: state.Pack) -> PackEntry:
    return PackEntry(pack.number, pack.fkey, pack.id, pack.size_bytes, pack.footer_bytes, not pack.condemned and not pack.lost)
