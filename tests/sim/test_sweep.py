"""Many seeds of random lives of stores (`actors.py`). How to run one, and more of them: docs/testing.md."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.sim.actors import lived

pytestmark = pytest.mark.expects_log(".")
SEEDS = int(os.environ.get("SIM_SEEDS", "500"))
ONE = os.environ.get("SIM_SEED")
PARTS = 10
ENCRYPTED_EACH = 7
"""Of so many seeds one lives on an encrypted store."""


@pytest.mark.timeout(0)
@pytest.mark.parametrize("part", range(PARTS))
def test_seeds(part: int) -> None:
    for seed in [int(ONE)] if ONE else range(part, SEEDS, PARTS):
        lived(seed, encrypted=seed % ENCRYPTED_EACH == ENCRYPTED_EACH - 1)


def test_a_seed_is_one_run() -> None:
    assert lived(10).trace_hash() == lived(10).trace_hash() != lived(11).trace_hash()


def test_a_seed_is_one_run_in_every_process() -> None:
    code = "from tests.sim.actors import lived; print(lived(5).trace_hash())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": salt}, check=True, capture_output=True, text=True
        ).stdout.splitlines()[-1]
        for salt in ("1", "2")
    }
    assert len(found) == 1
