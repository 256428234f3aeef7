"""Entries of commits that collect garbage. Each is made anew on every state that it is tried on, what the same commit writes included:
nothing that became live again is condemned (R2), nothing is said twice. NothingDue where the state leaves nothing to say.

What is due is a matter of clocks, so callers pass times. That it may be done is a matter of the state alone, and of no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from sqlite3 import Connection
from typing import Final

from stnode.errors import Conflict
from stnode.repo import layout, state
from stnode.repo.addresses import Move, packs_of, relocate
from stnode.repo.codec_body import Body, Relocation, Section, joined
from stnode.repo.collect_marks import runs_of, wanted_places
from stnode.repo.proposal import Entries, PackTable
from stnode.repo.records import decode_extents

PACKS_PER_COMMIT: Final = 2000
"""Condemned or reported gone at once: some tens of milliseconds of the database's thread."""


class NothingDue(Conflict):
    """On this state there is nothing to say."""


def condemn_packs(before_us: int) -> Entries:
    """Condemns packs that nothing refers to and that were minted before a time: younger ones may be named by what is still on its way."""

    def make(conn: Connection, packs: PackTable) -> Body:
        named = packs_of(packs.named)
        query = (
            "SELECT number, id FROM packs p WHERE refs = 0 AND condemned = 0"
            " AND NOT EXISTS (SELECT 1 FROM relocations WHERE to_pack = p.number)"
        )
        found = []
        for number, object_id in conn.execute(query):
            if number not in named and layout.minted_us(object_id) < before_us:
                found.append(number)
                if len(found) == PACKS_PER_COMMIT:
                    break
        if not found:
            raise NothingDue("every pack is referred to")
        for number in found:
            packs.condemn(number)
        return Body(packs_condemned=tuple(found))

    return make


def retire_relocations(conn: Connection, packs: PackTable) -> Body:
    """Drops relocations of packs whose addresses nothing names any more."""
    query = (
        "SELECT DISTINCT pack FROM relocations r WHERE NOT EXISTS (SELECT 1 FROM refs WHERE refs.pack = r.pack)"
        " AND NOT EXISTS (SELECT 1 FROM relocations WHERE to_pack = r.pack)"
    )
    named = packs_of(packs.named)
    for (extents,) in conn.execute("SELECT extents FROM partials"):
        named |= packs_of(decode_extents(extents))
    found = [number for (number,) in conn.execute(query) if number not in named][:PACKS_PER_COMMIT]
    if not found:
        raise NothingDue("every relocation is needed")
    return Body(relocations_dropped=tuple(found))


def report_gone(packs_gone: Mapping[int, str], objects_gone: Sequence[str]) -> Entries:
    """Says that condemned objects have been deleted: packs by number and id, for on another history a number means another pack."""

    def make(conn: Connection, _: PackTable) -> Body:
        condemned, objects = state.condemned(conn)
        known_objects = {key for key, _ in objects}
        there = state.packs(conn, [number for number, _ in condemned if number in packs_gone])
        gone = tuple(number for number, pack in sorted(there.items()) if pack.id == packs_gone[number])
        keys = tuple(key for key in objects_gone if key in known_objects)
        if not gone and not keys:
            raise NothingDue("another node has said it")
        return Body(packs_gone=gone, objects_gone=keys)

    return make


def condemn_objects(keys: Sequence[str]) -> Entries:
    """Condemns other objects: old manifests, and runs that only they list."""

    def make(conn: Connection, _: PackTable) -> Body:
        known = {key for key, _ in state.condemned(conn)[1]}
        fresh = tuple(key for key in keys if key not in known)
        if not fresh:
            raise NothingDue("another node has condemned them")
        return Body(objects_condemned=fresh)

    return make


def raise_horizon(horizon_us: int) -> Entries:
    """Raises the orphan horizon."""

    def make(conn: Connection, _: PackTable) -> Body:
        if state.head(conn).horizon_us >= horizon_us:
            raise NothingDue("the horizon is there already")
        return Body(horizon_us=horizon_us)

    return make


def expire(partials_before_us: int, tombstones_below: int) -> Entries:
    """Ends partial files that were renewed before a time, and deleted records with sequences below a number (which carry store time)."""

    def make(conn: Connection, _: PackTable) -> Body:
        sections = []
        for folder in state.folders(conn):
            section = Section(folder.fkey)
            old = "SELECT 1 FROM partials WHERE fid = ? AND renewed_us < ? LIMIT 1"
            if conn.execute(old, (folder.fid, partials_before_us)).fetchone():
                section = replace(section, partials_dropped_before_us=partials_before_us)
            old = "SELECT 1 FROM records WHERE fid = ? AND deleted = 1 AND seq < ? LIMIT 1"
            if conn.execute(old, (folder.fid, tombstones_below)).fetchone():
                section = replace(section, tombstones_dropped_below=tombstones_below)
            if section != Section(folder.fkey):
                sections.append(section)
        if not sections:
            raise NothingDue("nothing has expired")
        return Body(sections=tuple(sections))

    return make


# ---- repacking -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Copied:
    """Blocks of packs that were copied into durable packs of this process: per pack, sorted by place, to (handle, place). `ids` are the
    packs' own: on another history a number means another pack."""

    moves: Mapping[int, Sequence[Move]]
    ids: Mapping[int, str]

    @property
    def handles(self) -> frozenset[int]:
        """The new packs."""
        return frozenset(move.pack for moves in self.moves.values() for move in moves)


def repack(copied: Copied, told: Callable[[Sequence[int]], None] = lambda _: None) -> Entries:
    """Relocates what is wanted of the packs and condemns them, all that is wanted now having been copied; the others are left alone until
    the next pass. Goes into one commit with the registration of the new packs. `told` hears which ones it will be."""

    def make(conn: Connection, packs: PackTable) -> Body:
        if not all(packs.usable(((handle, 0, 1),)) for handle in copied.handles):
            raise NothingDue("the new packs fell below the orphan horizon, or were condemned: they are copied anew")
        body, condemned = Body(), []
        for pack in copied.moves:
            relocations = _relocations(conn, packs, pack, copied)
            if relocations is not None:
                body = joined(body, Body(relocations=tuple(relocations), packs_condemned=(pack,)))
                condemned.append(pack)
        if not condemned:
            raise NothingDue("none of the packs can go")
        for pack in condemned:
            packs.condemn(pack)
        told(condemned)
        return body

    return make


def _relocations(conn: Connection, packs: PackTable, pack: int, copied: Copied) -> list[Relocation] | None:
    """Where all that is wanted of a pack goes; None when something of it was not copied, or the pack went another way meanwhile."""
    found = state.packs(conn, [pack]).get(pack)
    if found is None or found.condemned or found.id != copied.ids[pack]:
        return None
    relocations = []
    for place, count in runs_of(wanted_places(conn, pack, packs.named)):
        for handle, to_place, length in relocate([(pack, place, count)], {pack: copied.moves[pack]}):
            if handle == pack:
                return None
            relocations.append(Relocation(pack, place, length, packs.register(handle), to_place))
            place += length
    return relocations
