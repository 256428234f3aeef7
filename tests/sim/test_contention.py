"""Many nodes that all write (R17; must show 9): nobody starves, waits stay short, and few creates are lost. The real `Store` with latencies of a
real bucket, PUT 100/195 ms and GET 63/78 ms (p50/p99); `python -m bench.contention` prints the table."""

from __future__ import annotations

import pytest

from stnode.clock import SeededRandomness
from tests.sim.contention import GET, PUT, Latency, Load, simulate

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("seed", [0, 1])
def test_ten_nodes_that_all_write(seed: int) -> None:
    found = simulate(Load(nodes=10, seconds=90, seed=seed))
    assert found.puts_per_commit <= 2
    assert found.wait_s(99) < 15
    assert found.least_share >= 0.7
    assert sum(found.commits) > 200, "they did write"


def test_a_slow_uplink_gets_its_share() -> None:
    """Two seconds more for each body: among busy siblings the node commits at least 70 % of what it manages alone, and of the mean of ten."""
    alone = simulate(Load(nodes=1, slow=1, seconds=60))
    among = simulate(Load(nodes=4, slow=1, seconds=60))
    assert alone.bodies > 18
    assert among.commits[0] >= 0.7 * alone.commits[0]
    assert max(among.slow_waits_s) < 15
    many = simulate(Load(nodes=10, slow=1, seconds=60))
    assert many.least_share >= 0.7
    assert many.puts_per_commit <= 2
    assert many.bodies <= many.commits[0] + 1, "a lost slot costs no second upload"


def test_a_node_that_is_always_full_shuts_nobody_out() -> None:
    found = simulate(Load(nodes=4, greedy=1, seconds=30))
    assert found.least_share >= 0.7
    assert found.wait_s(99) < 15
    assert min(found.commits[1:]) > 10


@pytest.mark.parametrize("latency", [PUT, GET])
def test_latencies_are_those_that_are_named(latency: Latency) -> None:
    random = SeededRandomness(1)
    drawn = sorted(latency.draw(random) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(latency.p50_s, rel=0.02)
    assert drawn[19_800] == pytest.approx(latency.p99_s, rel=0.03)
