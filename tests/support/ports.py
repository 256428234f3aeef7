"""Ports for the servers that tests start."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_FIRST = 10_000
_given: set[int] = set()


def free_port(second: int = 0) -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago, that this process has not asked for before, and that the system gives to
    nobody who connects: a process that is started, or started again later, finds it free. So it finds the port that is `second` higher
    (SeaweedFS takes the one at 10,000 for gRPC)."""
    for_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    last = max(for_clients, 2 * _FIRST + second) - second
    while True:
        port = random.SystemRandom().randrange(_FIRST, last)
        wanted = {port, port + second}
        if wanted & _given:
            continue
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for each in wanted:
                probes.enter_context(socket.socket()).bind(("127.0.0.1", each))
            _given.update(wanted)
            return port
