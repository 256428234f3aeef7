"""The table of files in docs/architecture.md, made from the first lines of the modules: `python -m tests.support.architecture --write`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- files: begin (python -m tests.support.architecture --write) -->", "<!-- files: end -->"


def modules() -> list[Path]:
    """All modules of stnode that have code, generated ones excepted."""
    found = [path for path in sorted((ROOT / "stnode").rglob("*.py")) if not path.name.endswith("_pb2.py")]
    return [path for path in found if path.name != "__init__.py" or len(path.read_text().strip().splitlines()) > 1]


def summary(path: Path) -> str:
    """First sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(text.split("\n\n")[0].split())
    stop = first.find(". ")
    return (first if stop < 0 else first[: stop + 1]).replace("|", "\\|").rstrip(".:")


def table() -> str:
    """The table in Markdown."""
    rows = [f"| `{path.relative_to(ROOT)}` | {summary(path)} |" for path in modules()]
    return "\n".join(["| file | what it is responsible for |", "|---|---|", *rows])


def current() -> str:
    """The table as the document has it."""
    text = DOCUMENT.read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def write() -> None:
    """Puts the present table into the document."""
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(f"{text[: text.index(BEGIN) + len(BEGIN)]}\n{table()}\n{text[text.index(END) :]}")


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    elif current() != table():
        sys.exit("docs/architecture.md is not what the tree is: python -m tests.support.architecture --write")
