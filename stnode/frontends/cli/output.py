"""Text for people: aligned tables, entries as `ls -l` shows them, progress on a terminal. And JSON for programs."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TextIO

import click

from stnode.clock import Clock
from stnode.node import wire
from stnode.node.present import size_text
from stnode.node.service import Entry

_REDRAW_S = 0.2
_TYPE_BITS = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK}
_DEFAULT_MODE = {"file": 0o644, "directory": 0o755, "symlink": 0o777}


def printable(text: str) -> str:
    """`text` without control characters: names come from other devices and must not steer a terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def table(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """Aligned columns, two spaces apart; the columns of `right` stand flush right. No trailing spaces."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        cells = [cell.rjust(width) if n in right else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def show_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(wire.to_json(value), indent=2, ensure_ascii=False))


def long_line(entry: Entry, shown: str) -> str:
    """One line of `ls -l`; times are local."""
    mode = stat.filemode(_TYPE_BITS[entry.type] | (entry.permissions if entry.permissions is not None else _DEFAULT_MODE[entry.type]))
    when = datetime.fromtimestamp(entry.modified_ns // 10**9, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    target = f" -> {printable(entry.target)}" if entry.type == "symlink" else ""
    return f"{mode}  {entry.size:>15,}  {when}  {short_line(entry, shown)}{target}"


def short_line(entry: Entry, shown: str) -> str:
    """A name, with a slash behind directories."""
    return printable(shown) + ("/" if entry.type == "directory" else "")


class JsonArray:
    """A JSON array printed item by item, so that a listing of any length needs no memory."""

    def __init__(self) -> None:
        self._any = False

    def add(self, items: Iterable[object]) -> None:
        for item in items:
            click.echo(("," if self._any else "[") + "\n  " + json.dumps(wire.to_json(item), ensure_ascii=False), nl=False)
            self._any = True

    def end(self) -> None:
        click.echo("\n]" if self._any else "[]")


class Progress:
    """One line on a terminal, redrawn a few times a second; nothing anywhere else."""

    def __init__(self, clock: Clock, verb: str, stream: TextIO | None = None) -> None:
        self._clock = clock
        self._verb = verb
        self._stream = stream or sys.stderr
        self._on = self._stream.isatty()
        self._started_s = clock.monotonic()
        self._drawn_s = 0.0
        self.files = 0
        self.skipped = 0
        self.bytes = 0

    def moved(self, size_bytes: int) -> None:
        """Some bytes more."""
        self.bytes += size_bytes
        self._draw()

    def note(self, text: str) -> None:
        """Shows another text in place of the counts."""
        if self._on and self._clock.monotonic() - self._drawn_s > _REDRAW_S:
            self._drawn_s = self._clock.monotonic()
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()

    def _draw(self) -> None:
        elapsed = max(self._clock.monotonic() - self._started_s, 0.001)
        self.note(f"{self._verb} {self.files:,} files, {size_text(self.bytes)}, {size_text(self.bytes / elapsed)}/s")

    def end(self) -> None:
        """Takes the line away."""
        if self._on:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
