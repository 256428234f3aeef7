"""What a process used: CPU seconds and peak memory, read from /proc, for Syncthing, stnode and S3 servers alike."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds (user and system) since the process began; peak resident memory in MiB."""

    cpu_s: float
    peak_mib: float


def usage(pid: int) -> Usage:
    """The present figures of a running process, its threads included, its children not."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return Usage((int(fields[11]) + int(fields[12])) / _TICKS, int(found[1]) / 1024 if found else 0.0)


def reset_peak(pid: int) -> None:
    """Makes the peak count from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
