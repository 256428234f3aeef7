"""That the simulation finds planted bugs (`mutants.py`), by the invariant that each of them breaks, and not by something else."""

from __future__ import annotations

import pytest

from tests.sim.actors import lived
from tests.sim.mutants import MUTANTS, Mutant, hunt

pytestmark = [pytest.mark.expects_log("."), pytest.mark.timeout(300)]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_planted_bug_is_found(mutant: Mutant) -> None:
    found = hunt(mutant)
    assert found is not None, f"{mutant.seeds} seeds did not find that {mutant.breaks}"
    lived(found[0])  # without the bug the same seed breaks nothing
