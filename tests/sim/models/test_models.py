"""The state searches behind the design's rules; they must stay true."""

from __future__ import annotations

import pytest

from tests.sim.models import journal_stub, packs


@pytest.mark.parametrize(("nodes", "maxn", "creates"), [(3, 3, 4), (2, 4, 5), (4, 2, 3)])
def test_stubs_keep_the_journal_whole(nodes: int, maxn: int, creates: int) -> None:
    found = journal_stub.search(nodes=nodes, maxn=maxn, creates=creates)
    assert found.exhausted
    assert not found.violations


def test_deleting_slots_forks_the_journal() -> None:
    found = journal_stub.search(delete=True)
    assert {"FORK", "FOREIGN"} <= found.violations.keys()


def test_the_first_draft_loses_blocks() -> None:
    _, missing = packs.search(mended=False)
    assert frozenset({("f1", "x")}) in missing
    assert frozenset({("f1", "z")}) in missing


def test_condemnations_computed_anew_and_the_horizon_lose_none() -> None:
    states, missing = packs.search(mended=True)
    assert states > 20
    assert not missing
