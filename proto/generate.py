# ruff: noqa: INP001 - a script beside its sources, not a package
"""Generates the Python code of all `proto/*.proto`; the result is committed. `--check` exits 1 when it is not up to date.

Run as `.venv/bin/python proto/generate.py [--check]`, needs grpcio-tools (a development dependency).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PACKAGES = {
    "bep": HERE.parent / "stnode" / "protocol" / "pb",
    "store": HERE.parent / "stnode" / "repo" / "pb",
}
"""Which package holds the code of `<name>.proto`; each .proto stands alone (no imports between them)."""


def main(arguments: list[str]) -> int:
    """Writes (or with --check compares) the code of every .proto that exists; 0 when all is well."""
    check = arguments == ["--check"]
    if arguments and not check:
        sys.stderr.write(str(__doc__))
        return 64
    stale: list[str] = []
    for source in sorted(HERE.glob("*.proto")):
        package = PACKAGES.get(source.stem)
        if package is None:
            sys.stderr.write(f"{source.name}: no package is named for it in PACKAGES\n")
            return 1
        for name, text in generate(source).items():
            target = package / name
            if target.exists() and target.read_text() == text:
                continue
            if check:
                stale.append(str(target.relative_to(HERE.parent)))
            else:
                package.mkdir(exist_ok=True)
                target.write_text(text)
    for path in stale:
        sys.stderr.write(f"{path} is out of date: run proto/generate.py\n")
    return 1 if stale else 0


def generate(source: Path) -> dict[str, str]:
    """File name to content of the code and the type stub that protoc makes of one .proto."""
    with tempfile.TemporaryDirectory() as out:
        status = protoc.main(["protoc", f"-I{source.parent}", f"--python_out={out}", f"--pyi_out={out}", source.name])
        if status != 0:
            raise SystemExit(f"protoc failed on {source.name}")
        return {path.name: path.read_text() for path in sorted(Path(out).iterdir())}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
