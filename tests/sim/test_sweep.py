"""Many seeds of random lives. `STNODE_SIM_SEEDS=5000 pytest tests/sim/test_sweep.py` looks further, `STNODE_SIM_SEED=17` at one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.sim.actors import live
from tests.sim.loop import run
from tests.sim.world import World

pytestmark = pytest.mark.expects_log(".")
SEEDS = int(os.environ.get("STNODE_SIM_SEEDS", "240"))
ONE = os.environ.get("STNODE_SIM_SEED")
PARTS = 8


def lived(seed: int) -> World:
    """The world of a seed after its life."""
    world = World(seed)
    try:
        run(live(world, nodes=2 + seed % 2, roll_back=seed % 5 == 0))
    except BaseException:
        print(f"seed {seed}", *world.trace[-60:], sep="\n")
        raise
    finally:
        world.close()
    return world


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(PARTS))
def test_seeds(part: int) -> None:
    for seed in [int(ONE)] if ONE else range(part, SEEDS, PARTS):
        lived(seed)


def test_a_seed_is_one_run() -> None:
    assert lived(10).trace_hash() == lived(10).trace_hash() != lived(11).trace_hash()


def test_a_seed_is_one_run_in_every_process() -> None:
    code = "from tests.sim.test_sweep import lived; print(lived(5).trace_hash())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": salt}, check=True, capture_output=True, text=True
        ).stdout.splitlines()[-1]
        for salt in ("1", "2")
    }
    assert len(found) == 1
