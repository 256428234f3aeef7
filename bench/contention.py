"""Nodes that all write to one journal, in virtual time with the real classes (`tests/sim/contention.py`): `python -m bench.contention`."""

from __future__ import annotations

import sys
from dataclasses import replace

from tests.sim.contention import Figures, Load, simulate

CASES = (
    ("1 node", Load(nodes=1)),
    ("2 nodes", Load(nodes=2)),
    ("5 nodes", Load(nodes=5)),
    ("10 nodes", Load(nodes=10)),
    ("20 nodes", Load(nodes=20)),
    ("slow uplink, alone", Load(nodes=1, slow=1)),
    ("slow uplink, 1 sibling", Load(nodes=2, slow=1)),
    ("slow uplink, 3 siblings", Load(nodes=4, slow=1)),
    ("slow uplink, 9 siblings", Load(nodes=10, slow=1)),
    ("always full, 3 siblings", Load(nodes=4, greedy=1)),
)


def row(name: str, figures: Figures) -> str:
    """One line of the table."""
    load = figures.load
    waits = figures.waits_s or figures.slow_waits_s
    waits = sorted(waits)
    middle, late = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
    rate = sum(figures.commits) / load.seconds
    return (
        f"| {name} | {rate:.2f} | {figures.puts_per_commit:.2f} | {figures.gets_per_commit:.1f} | {middle:.2f} | {late:.2f} | {waits[-1]:.2f} "
        f"| {figures.least_share:.0%} | {figures.commits[0] if load.slow or load.greedy else '-'} | {figures.dollars_a_day:.2f} |"
    )


def main() -> None:
    """Prints the table; an argument is the number of virtual seconds (default 120)."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
    print(
        "| case | commits/s | slot PUTs per commit | GETs per commit | wait p50 s | p99 | worst | least share of the mean | first node's commits | $/day, all |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, load in CASES:
        print(row(name, simulate(replace(load, seconds=seconds))), flush=True)


if __name__ == "__main__":
    main()
