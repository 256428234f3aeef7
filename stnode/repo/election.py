"""Who of several nodes does a thing, found by each of them alone: weighted rendezvous hashing. Pure, no IO.

Each node gets a number from the key, its ID and its weight; the highest does it. A node that comes or goes moves only what falls to it or
was its own, and a node's part of many keys is its part of the weights. Nodes that see other weights for a moment disagree on few keys.
An election is a hint to spare work, never a lock: whatever two nodes do at once has to come out right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import log

from stnode.errors import Internal
from stnode.repo.checksum import xxh3_64


def order(key: bytes, weights: Mapping[bytes, float]) -> list[bytes]:
    """Nodes that weigh anything, the first the one to do what `key` stands for, the next to step in for it, and so on."""
    return sorted((node for node, weight in weights.items() if weight > 0), key=lambda node: (_score(key, node, weights[node]), node))


def first(key: bytes, weights: Mapping[bytes, float]) -> bytes | None:
    """The first of `order`, None if nobody weighs anything."""
    best, least = None, 0.0
    for node, weight in weights.items():
        if weight > 0:
            score = _score(key, node, weight)
            if best is None or (score, node) < (least, best):
                best, least = node, score
    return best


def elected(task: str, nodes: Iterable[bytes]) -> bytes:
    """The node that does a task of the store, all alike. There must be one."""
    chosen = first(task.encode(), dict.fromkeys(nodes, 1.0))
    if chosen is None:
        raise Internal(f"nobody to elect for {task!r}")
    return chosen


def _score(key: bytes, node: bytes, weight: float) -> float:
    """Exponentially distributed with rate `weight`: the least of several is each one's with probability in proportion to its weight."""
    return -log((xxh3_64(node + key) + 1) / 18446744073709551617) / weight
