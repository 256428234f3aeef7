"""Writes golden files of the store's format that do not exist yet; those that exist are never changed.

Run as `python -m tests.golden.record_store`. A changed format gets a new version and a new directory (docs/format.md, Changes).
"""

from __future__ import annotations

from pathlib import Path

from tests.support.store_samples import SAMPLES

TARGET = Path(__file__).parent / "format-v1"

if __name__ == "__main__":
    for name, encode in SAMPLES.items():
        path = TARGET / name
        if not path.exists():
            path.write_bytes(encode())
            print(f"wrote {path}")
