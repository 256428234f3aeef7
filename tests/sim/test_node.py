"""Many seeds of whole nodes between devices (`cluster.py`): one, two or three nodes on a bucket."""

from __future__ import annotations

import os

import pytest

from tests.sim.cluster import clustered

SEEDS = max(1, int(os.environ.get("SIM_SEEDS", "500")) // 10)
ONE = os.environ.get("SIM_NODE_SEED")


@pytest.mark.timeout(0)
@pytest.mark.expects_log(".")
@pytest.mark.parametrize("seed", [int(ONE)] if ONE else range(SEEDS))
def test_everybody_ends_with_the_same(seed: int) -> None:
    clustered(seed)


@pytest.mark.expects_log(".")
def test_a_seed_is_one_run() -> None:
    assert clustered(8).trace == clustered(8).trace
