"""A collector that is right and in a hurry: it condemns, repacks, raises the horizon, drops history and deletes at the worst moments.

Its order of things is not the product's (`stnode/repo/collect*.py` runs in every node anyway): what the format allows anybody to do must
be survived by every other node. It goes through its node's store, so it meets the node's faults and clocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from random import Random
from sqlite3 import Connection

from stnode.errors import Conflict, NotFound, StnodeError
from stnode.repo import layout, state
from stnode.repo.codec import Body, Relocation, Section
from stnode.repo.proposal import PackTable
from stnode.repo.records import decode_extents
from tests.sim.witness import DAY_S
from tests.sim.world import SimNode

ORPHAN_AGE_US = DAY_S * 1_000_000
GRACE_NS = DAY_S * 10**9


def live_blocks(conn: Connection, tables: Sequence[str] = ("records", "history", "partials")) -> dict[int, set[int]]:
    """Per pack the places that records, history and partial files resolve to."""
    found: dict[int, set[int]] = defaultdict(set)
    for table in tables:
        for (extents,) in conn.execute(f"SELECT extents FROM {table} WHERE extents <> x''"):
            for pack, place, count in decode_extents(extents):
                for now, at, length in state.resolve(conn, pack, place, count):
                    found[now].update(range(at, at + length))
    return found


class Collector:
    """One step of collecting at a time, on one node."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._horizons: list[tuple[int, int]] = []

    async def step(self, random: Random) -> None:
        """Does one thing. What the store or the state refuse is given up."""
        step = random.choice(
            (self.condemn, self.condemn, self.repack, self.repack, self.raise_horizon, self.drop_history, self.sweep, self.sweep)
        )
        try:
            await step(random)
        except StnodeError as exc:
            self._node.world.note(f"n{self._node.number} collector: {exc.kind} {exc.message}")

    async def condemn(self, _random: Random) -> None:
        """Ends all history and condemns every pack without a live block, in one commit."""

        def make(conn: Connection, packs: PackTable) -> Body:
            live = _with_named(live_blocks(conn, ("records", "partials")), conn, packs)
            rows = conn.execute("SELECT number FROM packs WHERE condemned = 0 ORDER BY number").fetchall()
            dead = tuple(number for (number,) in rows if not live[number])
            if not dead:
                raise Conflict("nothing is dead")
            before_us = state.head(conn).store_time_us + 1
            self._node.world.history_ends(before_us)
            for number in dead:
                packs.condemn(number)
            return Body(
                sections=tuple(Section(folder.fkey, history_dropped_before_us=before_us) for folder in state.folders(conn)),
                packs_condemned=dead,
            )

        await self._node.store.submit_entries(make)

    async def repack(self, random: Random) -> None:
        """Moves the live blocks of a few packs into a new one, computed anew on every state, and condemns them."""
        conn = self._node.db._connect()
        live = live_blocks(conn)
        rows = conn.execute("SELECT number FROM packs WHERE condemned = 0 AND fid = 1 ORDER BY number").fetchall()
        candidates = [number for (number,) in rows if live[number]]
        chosen = sorted(random.sample(candidates, min(len(candidates), random.choice((1, 2, 3)))))
        if not chosen:
            return
        order = [(pack, place) for pack in chosen for place in sorted(live[pack])]
        blocks = [bytes((await self._node.store.reader.blocks(pack, place, 1))[0]) for pack, place in order]
        handle = await self._node.pack(*blocks)
        moved = {address: at for at, address in enumerate(order)}

        def make(conn: Connection, packs: PackTable) -> Body:
            now = _with_named(live_blocks(conn), conn, packs)
            [(target, _, _)] = packs.place(((handle, 0, 1),)) if packs.usable(((handle, 0, 1),)) else [(0, 0, 0)]
            wanted = [(pack, place) for pack in chosen for place in sorted(now[pack])]
            gone = conn.execute(f"SELECT 1 FROM packs WHERE condemned > 0 AND number IN ({','.join(map(str, chosen))})").fetchone()
            if not target or gone or any(address not in moved for address in wanted):
                raise Conflict("the packs are not what they were")
            for number in chosen:
                packs.condemn(number)
            return Body(relocations=tuple(Relocation(*each, 1, target, moved[each]) for each in wanted), packs_condemned=tuple(chosen))

        await self._node.store.submit_entries(make, frozenset({handle}))

    async def raise_horizon(self, _random: Random) -> None:
        """To a day before store time."""
        raised: list[int] = []

        def make(conn: Connection, _packs: PackTable) -> Body:
            raised.append(state.head(conn).store_time_us - ORPHAN_AGE_US)
            return Body(horizon_us=raised[-1])

        number = await self._node.store.submit_entries(make)
        self._horizons.append((raised[-1], number))

    async def drop_history(self, random: Random) -> None:
        """Ends history, or partial files, older than some hours."""

        def make(conn: Connection, _packs: PackTable) -> Body:
            before_us = state.head(conn).store_time_us - random.choice((1, 24, 48)) * 3600 * 1_000_000
            self._node.world.history_ends(before_us)
            [fkey] = {folder.fkey for folder in state.folders(conn) if folder.fid == 1}
            if random.random() < 0.3:
                return Body(sections=(Section(fkey, partials_dropped_before_us=before_us),))
            return Body(sections=(Section(fkey, history_dropped_before_us=before_us),))

        await self._node.store.submit_entries(make)

    async def sweep(self, _random: Random) -> None:
        """Deletes what was condemned a day ago, or lies below a horizon that is a day old, and says what is gone."""
        node = self._node
        await node.store.follow_to_head()
        conn = node.db._connect()
        gone: list[int] = []
        for pack, number in state.condemned(conn)[0]:
            if await self._age_ns(number) >= GRACE_NS:
                row = state.packs(conn, [pack])[pack]
                await node.gate.delete(layout.pack_key(row.fkey, row.id))
                gone.append(pack)
        if gone:

            def make(conn: Connection, _packs: PackTable) -> Body:
                known = state.packs(conn, gone)
                live = live_blocks(conn)
                there = tuple(pack for pack in gone if pack in known and not live[pack])
                if not there:
                    raise Conflict("all of it is reported")
                return Body(packs_gone=there)

            await node.store.submit_entries(make)
        await self._sweep_orphans()

    async def _sweep_orphans(self) -> None:
        node, conn = self._node, self._node.db._connect()
        over = [horizon_us for horizon_us, number in self._horizons if await self._age_ns(number) >= GRACE_NS]
        [folder] = [folder for folder in state.folders(conn) if folder.fid == 1]
        keys = [meta.key async for meta in node.gate.list(layout.pack_prefix(folder.fkey))] if over else []
        for key in keys:
            object_id = layout.object_id(key) or ""
            if layout.minted_us(object_id) < max(over) and state.pack_by_id(conn, object_id) is None:
                await node.gate.delete(key)

    async def _age_ns(self, number: int) -> int:
        """Since the Last-Modified of a commit's slot; one that was truncated looks younger."""
        try:
            meta = await self._node.gate.head(layout.slot_key(number))
        except NotFound:
            return 0
        return (meta.date_ns or 0) - meta.modified_ns


def _with_named(live: dict[int, set[int]], conn: Connection, packs: PackTable) -> dict[int, set[int]]:
    """What the records of the same commit name is live, too."""
    for pack, place, count in packs.named:
        for now, at, length in state.resolve(conn, pack, place, count):
            live[now].update(range(at, at + length))
    return live
