"""Every seed that ever failed (`regressions.toml`), run again."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.sim.actors import lived

CASES = tomllib.loads((Path(__file__).parent / "regressions.toml").read_text())


@pytest.mark.expects_log(".")
@pytest.mark.parametrize("name", CASES)
def test_seed_that_failed_once(name: str) -> None:
    lived(CASES[name]["seed"])
