"""The drawing of the code matches the code."""

from __future__ import annotations

import re
import tomllib

from tests.support import architecture


def test_table_of_files_matches_the_tree() -> None:
    assert architecture.current() == architecture.table(), "run: python -m tests.support.architecture --write"


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path) for path in architecture.modules() if not architecture.summary(path)]
    assert not silent


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((architecture.ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.split(r"[\[<>=]", one)[0] for one in wanted} - {"stnode"}
    reasons = (architecture.ROOT / "docs" / "dependencies.md").read_text()
    assert not [name for name in names if name not in reasons]
