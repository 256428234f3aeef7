"""What errors, help and documents tell the user to run can be run."""

from __future__ import annotations

import re
from pathlib import Path

import click

from stnode import daemon
from stnode.frontends.cli.main import make_cli

ROOT = Path(__file__).resolve().parents[3]
TEXTS = [*(ROOT / "stnode").rglob("*.py"), ROOT / "README.md", ROOT / "docs" / "operations.md", ROOT / "docs" / "guarantees.md"]
CLI = make_cli([daemon.run])


def exists(words: list[str]) -> bool:
    command = CLI.commands.get(words[0])
    if not isinstance(command, click.Group) or len(words) == 1:
        return command is not None
    return words[1] in command.commands


def test_every_command_that_is_named_exists() -> None:
    named = [(path, match[1]) for path in TEXTS for match in re.finditer(r"`stnode ([a-z][a-z-]*(?: [a-z][a-z-]*)?)", path.read_text())]
    assert len(named) > 50
    assert not [(path, command) for path, command in named if not exists(command.split())]
