"""Search of writer, repacker and collector on one folder (R2, R3): no committed record without its block.

`mended=False` is the first draft: record-wise re-validation, orphans condemned by name and forgotten. `mended=True` is the
design: condemnations computed anew, an orphan horizon below which nothing unregistered may ever be named.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple


class State(NamedTuple):
    version: int
    packs: frozenset[tuple[str, frozenset[str]]]
    condemned: frozenset[str]
    refs: frozenset[tuple[str, str]]
    places: frozenset[tuple[str, str]]
    objects: frozenset[str]
    horizon: int
    writer: tuple[str, Any]
    repacker: tuple[str, Any]
    collector: tuple[str, Any]


# Pack p holds x (dead) and y (live, of f0). Times of minting: p 0, r 1, later ones above.
START = State(
    0,
    frozenset({("p", frozenset("xy"))}),
    frozenset(),
    frozenset({("f0", "y")}),
    frozenset({("x", "p"), ("y", "p")}),
    frozenset("p"),
    0,
    ("start", None),
    ("start", None),
    ("start", None),
)


def _writer(s: State, mended: bool) -> list[State]:
    packs, places = dict(s.packs), dict(s.places)
    if s.writer[0] == "start":
        found = places.get("x")
        if found and found not in s.condemned:
            return [s._replace(writer=("up", found), objects=s.objects | {"r"})]
    if s.writer[0] == "up":
        found = s.writer[1]
        valid = found not in s.condemned and found in packs and "r" not in s.condemned and not (mended and s.horizon > 1)
        refs = s.refs | {("f1", "x"), ("f1", "z")}
        if valid:
            done = s._replace(packs=s.packs | {("r", frozenset("z"))}, places=s.places | {("z", "r")})
        else:
            kept = frozenset((block, pack) for block, pack in s.places if block not in "xz")
            done = s._replace(packs=s.packs | {("s", frozenset("xz"))}, places=kept | {("x", "s"), ("z", "s")}, objects=s.objects | {"s"})
        return [done._replace(writer=("done", None), version=s.version + 1, refs=refs)]
    return []


def _repacker(s: State, mended: bool) -> list[State]:
    referred = {block for _, block in s.refs}
    places = dict(s.places)
    live = frozenset(block for block in dict(s.packs)["p"] if block in referred and places.get(block) == "p")
    if s.repacker[0] == "start":
        return [s._replace(repacker=("up", live), objects=s.objects | {"q"})]
    if s.repacker[0] == "up":
        planned = s.repacker[1]
        if mended and not live <= planned:
            return [s._replace(repacker=("start", None))]
        moved = frozenset((block, pack) for block, pack in s.places if block not in planned) | {(block, "q") for block in planned}
        packs = s.packs | {("q", planned)}
        return [s._replace(repacker=("cond", None), version=s.version + 1, packs=packs, condemned=s.condemned | {"p"}, places=moved)]
    if s.repacker[0] == "cond" and "p" in s.objects:
        return [s._replace(repacker=("done", None), objects=s.objects - {"p"})]
    return []


def _collector(s: State, mended: bool) -> list[State]:
    orphan = "r" in s.objects and "r" not in dict(s.packs)
    if s.collector[0] == "start" and orphan:
        rule = {"horizon": 2} if mended else {"condemned": s.condemned | {"r"}}
        return [s._replace(collector=("cond", None), version=s.version + 1, **rule)]
    if s.collector[0] == "cond" and orphan:
        return [s._replace(collector=("del", None), objects=s.objects - {"r"})]
    if s.collector[0] == "del":
        return [s._replace(collector=("done", None), version=s.version + 1, condemned=s.condemned - {"r"})]
    return []


def search(*, mended: bool) -> tuple[int, set[frozenset[tuple[str, str]]]]:
    """(states, sets of records whose block is nowhere)."""
    seen, queue = {START}, deque([START])
    missing: set[frozenset[tuple[str, str]]] = set()
    while queue:
        state = queue.popleft()
        for after in (*_writer(state, mended), *_repacker(state, mended), *_collector(state, mended)):
            if after in seen:
                continue
            seen.add(after)
            queue.append(after)
            places = dict(after.places)
            if bad := frozenset((file, block) for file, block in after.refs if places.get(block) not in after.objects):
                missing.add(bad)
    return len(seen), missing
