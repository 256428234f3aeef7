"""Search of the truncation rule: slots are overwritten with a stub, never deleted; whoever meets a stub restores (R1).

A node is (chain of commits applied, phase: i idle, r restoring, x stopped); the bucket is (slots, manifests). All
interleavings are searched breadth first. `delete=True` is the rule that does not work.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

Chain = tuple[str, ...]
SlotState = tuple[int, str, Chain]
NodeState = tuple[Chain, str]
State = tuple[tuple[NodeState, ...], tuple[tuple[SlotState, ...], frozenset[Chain]], frozenset[str], int]
STUB = "STUB"


@dataclass(frozen=True)
class Found:
    violations: dict[str, list[str]]
    states: int
    exhausted: bool


def _next(state: State, maxn: int, creates: int, delete: bool) -> list[tuple[State, str]]:
    nodes, (slots, manifests), acked, created = state
    out: list[tuple[State, str]] = []
    by_number = {slot[0]: slot for slot in slots}
    newest = max(manifests, key=len)
    for i, (chain, phase) in enumerate(nodes):
        n, slot = len(chain), by_number.get(len(chain) + 1)

        def put(
            node: NodeState,
            label: str,
            bucket: tuple[tuple[SlotState, ...], frozenset[Chain]] | None = None,
            ack: str | None = None,
            i: int = i,
        ) -> None:
            now = (*nodes[:i], node, *nodes[i + 1 :])
            out.append(((now, bucket or (slots, manifests), acked | {ack} if ack else acked, created + (ack is not None)), label))

        if slot and slot[1] == STUB:
            put((newest, "r"), f"N{i} meets stub {n + 1}, restores")
        elif slot:
            fits = slot[2] == chain
            put(((*chain, slot[1]), phase) if fits else (chain, "x"), f"N{i} applies {n + 1}" if fits else f"N{i} foreign at {n + 1}")
        elif phase == "r":
            put((chain, "i"), f"N{i} restore done at {n}")
        elif phase == "i" and n < maxn and created < creates:
            name = f"{'abcdef'[i]}{created}"
            put(((*chain, name), "i"), f"N{i} creates {n + 1}={name}", (tuple(sorted((*slots, (n + 1, name, chain)))), manifests), name)
        if phase == "i" and n and chain not in manifests and len(manifests) < 4:
            put((chain, phase), f"N{i} writes manifest {n}", (slots, manifests | {chain}))
    lengths = sorted({len(chain) for chain in manifests})
    cut = lengths[-2] if len(lengths) > 1 else 0
    for slot in slots:
        if slot[0] <= cut and slot[1] != STUB:
            rest = tuple(other for other in slots if other != slot)
            kept = rest if delete else tuple(sorted((*rest, (slot[0], STUB, ()))))
            out.append(((nodes, (kept, manifests), acked, created), f"T cuts {slot[0]}"))
    old = [chain for chain in manifests if len(chain) < cut]
    if old:
        out.append(((nodes, (slots, manifests - {old[0]}), acked, created), f"T deletes manifest {len(old[0])}"))
    return out


def _violation(state: State, label: str) -> str | None:
    nodes, (slots, manifests), acked, _ = state
    chains = [chain for chain, phase in nodes if phase != "x"]
    if any(a[: min(len(a), len(b))] != b[: min(len(a), len(b))] for a in chains for b in chains):
        return "FORK"
    if len(chains) < len(nodes):
        return "FOREIGN"
    best = max([*chains, *manifests], key=len)
    if any(name not in best for name in acked) and not any(slot[1] in acked for slot in slots):
        return "LOST"
    if "restore done" in label and int(label.rsplit(maxsplit=1)[-1]) < max((slot[0] for slot in slots), default=0):
        return "STALE RESTORE"
    return None


def search(*, nodes: int = 3, maxn: int = 3, creates: int = 4, delete: bool = False, limit: int = 500_000) -> Found:
    """All states reachable within the bounds, and the shortest trace to each kind of violation."""
    start: State = (tuple(((), "i") for _ in range(nodes)), ((), frozenset([()])), frozenset(), 0)
    seen: dict[State, tuple[State, str] | None] = {start: None}
    queue, found = deque([start]), dict[str, list[str]]()
    while queue and len(seen) <= limit:
        state = queue.popleft()
        for after, label in _next(state, maxn, creates, delete):
            if after in seen:
                continue
            seen[after] = (state, label)
            queue.append(after)
            bad = _violation(after, label)
            if bad is not None and bad not in found:
                found[bad] = _trace(seen, after)
    return Found(found, len(seen), not queue)


def _trace(seen: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    trace: list[str] = []
    while (step := seen[state]) is not None:
        state, label = step
        trace.append(label)
    return trace[::-1]
