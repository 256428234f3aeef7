"""The C library's memory setting: freed memory is used again, and its absence is no error."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from stnode.memory import keep_freed_memory

PROGRAM = """
import resource, sys
from stnode.memory import keep_freed_memory
if len(sys.argv) > 1 and not keep_freed_memory():
    print("unable")
    sys.exit()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    frames = [bytearray(1 << 20) for _ in range(16)]
    del frames
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True).stdout.strip()


def test_freed_memory_is_touched_no_second_time() -> None:
    """320 MiB in 20 rounds: the first round's pages serve all."""
    told = faults("keep")
    if told == "unable":
        pytest.skip("no glibc")
    round_pages = (16 << 20) // 4096
    assert int(told) < 2 * round_pages
    assert int(faults()) > 10 * round_pages, "glibc does it by itself now: stnode/memory.py is not needed any more"


@pytest.mark.parametrize("library", [SimpleNamespace(), SimpleNamespace(mallopt=lambda *_: 0)])
def test_other_c_libraries_are_left_alone(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: library)
    assert not keep_freed_memory()
