"""Which node does what of a folder's needed names, of one moment. Pure, no IO; `sharing.py` makes it and says when another is due.

Content belongs to a node by rendezvous over its blocks' hash, weighted by the rates at which nodes reach the devices that have it; so the
same content under two names has one owner. All that fetches nothing (directories, links, deletions, flags, renames) belongs to one node,
so that it comes in one commit and costs one. What no node's heartbeat reaches is everybody's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from stnode.folder.index import NeedKind, Part
from stnode.repo.election import first

ITEM_BYTES: Final = 64 << 10
"""What an item costs beside its bytes, in bytes: how much work is left is told in one number."""
_TAIL: Final = 500

Weights = Mapping[int, Mapping[bytes, float]]
"""Number of a device in the index -> nodes that reach it -> what they weigh."""


class Saved(NamedTuple):
    """What a node has stored of a file that it is still pulling."""

    node: bytes
    size_bytes: int
    renewed_us: int


class Waiting(NamedTuple):
    """A file left to `node`. `work` is what is left of it, in bytes; `saved` what that node says of it."""

    name: str
    node: bytes
    key: bytes
    devices: tuple[int, ...]
    work: int
    saved: Saved | None


@dataclass(slots=True)
class Tally:
    """What is left to one node: `items` in all, `others` of them fetch nothing, `work` is that of the files with content."""

    items: int = 0
    others: int = 0
    work: int = 0


@dataclass(slots=True)
class Left:
    """What a pass leaves to other nodes: sums by node, and the last of the files, in the order of the names. Helpers begin there."""

    tallies: dict[bytes, Tally] = field(default_factory=dict)
    tail: deque[Waiting] = field(default_factory=lambda: deque(maxlen=_TAIL))

    def add(self, other: Left) -> None:
        """What a later window leaves."""
        self.tail.extend(other.tail)
        for node, tally in other.tallies.items():
            mine = self.tallies.setdefault(node, Tally())
            mine.items += tally.items
            mine.others += tally.others
            mine.work += tally.work

    @property
    def items(self) -> int:
        """Names left to others."""
        return sum(tally.items for tally in self.tallies.values())


class Split:
    """Answers for one pass over what is needed. `task` names the folder in the election of who does what fetches nothing; `weights` are
    without nodes that are passed over, `late` are those passed over for what fetches nothing; `renamed` are stamps of files that are to be
    deleted."""

    def __init__(
        self, me: bytes, task: bytes, weights: Weights, late: Collection[bytes] = (), renamed: Collection[tuple[int, int]] = ()
    ) -> None:
        self.me = me
        self.weights = weights
        self._task = task
        self._late = late
        self._renamed = renamed
        self._reach: dict[tuple[int, ...], dict[bytes, float]] = {}
        self._leaders: dict[tuple[int, ...], bytes] = {}

    def reach(self, devices: tuple[int, ...]) -> Mapping[bytes, float]:
        """Nodes that reach any of the devices, with the weight of their best way."""
        found = self._reach.get(devices)
        if found is None:
            found = self._reach[devices] = {}
            for device in devices:
                for node, weight in self.weights.get(device, {}).items():
                    found[node] = max(weight, found.get(node, 0.0))
        return found

    def owner(self, part: Part) -> bytes:
        """Who does it; self where nobody is known to be able to."""
        if part.key and part.stamp not in self._renamed:
            return first(part.key, self.reach(part.devices)) or self.me
        leader = self._leaders.get(part.devices)
        if leader is None:
            able = dict.fromkeys((node for node in self.reach(part.devices) if node not in self._late), 1.0)
            leader = self._leaders[part.devices] = first(self._task, able) or self.me
        return leader

    def mine(self, parts: Sequence[Part], saved: Mapping[str, Saved], held: Collection[str] = ()) -> tuple[set[str], Left]:
        """Names that this node does, and what it leaves. Names of `held` (they take the place of a directory that has to be emptied first)
        go with what fetches nothing. Needed directories above own files are own too, whoever does the rest: they come in one commit."""
        mine: set[str] = set()
        above: set[str] = set()
        others: list[tuple[Part, bytes]] = []
        for part in parts:
            owner = self.owner(part._replace(key=b"") if part.name in held else part)
            if owner == self.me:
                mine.add(part.name)
                if part.key:
                    above.update(_parents(part.name))
            else:
                others.append((part, owner))
        left = Left()
        for part, owner in others:
            if part.kind is NeedKind.DIRECTORY and part.name in above:
                mine.add(part.name)
            else:
                leave(left, part, owner, saved.get(part.name))
        return mine, left


def leave(left: Left, part: Part, owner: bytes, saved: Saved | None) -> None:
    """Notes that the owner does this part; `saved` is what it has of it in the store."""
    tally = left.tallies.setdefault(owner, Tally())
    tally.items += 1
    if not part.key:
        tally.others += 1
        return
    work = ITEM_BYTES + max(0, part.stamp[0] - (saved.size_bytes if saved is not None else 0))
    tally.work += work
    left.tail.append(Waiting(part.name, owner, part.key, part.devices, work, saved))


def _parents(name: str) -> Iterable[str]:
    at = name.rfind("/")
    while at > 0:
        yield name[:at]
        at = name.rfind("/", 0, at)
