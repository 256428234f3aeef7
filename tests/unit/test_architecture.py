"""The drawing of the code matches the code."""

from __future__ import annotations

from tests.support import architecture


def test_table_of_files_matches_the_tree() -> None:
    assert architecture.current() == architecture.table(), "run: python -m tests.support.architecture --write"


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path) for path in architecture.modules() if not architecture.summary(path)]
    assert not silent
