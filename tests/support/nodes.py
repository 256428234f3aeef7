"""A real `stnode run` process, set up and asked by its own command line, for integration tests and the comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.ports import free_port
from tests.support.syncthing import API_KEY

STNODE = [sys.executable, "-m", "stnode"]


class StnodeProcess:
    """One node with a home of its own on a given store. `init` are more words of `stnode init`; `said` is what it printed."""

    def __init__(self, home: Path, store: str, options: dict[str, str] | None = None, init: Sequence[str] = ()) -> None:
        self.home = home
        self.port, self.api_port = free_port(), free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._env = {
            **os.environ,
            "STNODE_NODE_LISTEN": f"tcp://127.0.0.1:{self.port}",
            "STNODE_API_LISTEN": f"127.0.0.1:{self.api_port}",
            "STNODE_API_API_KEY": API_KEY,
            "STNODE_STORE_URL": store,
            "STNODE_NODE_NAME": home.name,
            "STNODE_LOG_LEVEL": "info",
            **(options or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.said = self.cli("init", *init)
        self.device_id = self.cli("id").strip()

    def cli(self, *args: str) -> str:
        """One command; its standard output. Raises with what it said when it fails."""
        done = subprocess.run([*STNODE, "--home", str(self.home), *args], env=self._env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"stnode {' '.join(args)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    @property
    def pid(self) -> int:
        """The daemon's process ID."""
        assert self._process is not None
        return self._process.pid

    def start(self, wait_s: float = 60.0) -> None:
        """Runs the daemon; returns when it takes connections: a Syncthing that finds nobody there tries again after a minute."""
        with (self.home / "run.log").open("ab") as log:
            self._process = subprocess.Popen([*STNODE, "--home", str(self.home), "run"], env=self._env, stdout=log, stderr=log)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                if self.status()["listen"]:
                    return
            except RuntimeError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"stnode did not start:\n{(self.home / 'run.log').read_text()[-4000:]}")
            time.sleep(0.1)

    def status(self) -> dict[str, Any]:
        """What `stnode status --json` says. While the daemon runs it is asked as that command does, without a process for each question:
        tests ask until something holds. Raises RuntimeError when it does not answer."""
        if self._process is None:
            return dict(json.loads(self.cli("status", "--json")))
        question = urllib.request.Request(f"http://127.0.0.1:{self.api_port}/api/status", headers={"X-API-Key": API_KEY})
        try:
            with urllib.request.urlopen(question, timeout=30) as answer:
                return dict(json.load(answer))
        except OSError as exc:
            raise RuntimeError(f"{self.home.name} does not answer: {exc}") from exc

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self, wait_s: float = 30.0) -> None:
        """SIGTERM, as a service manager would."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(wait_s)
            self._process = None

    def log(self) -> str:
        """All that the daemon has written."""
        path = self.home / "run.log"
        return path.read_text(errors="replace") if path.exists() else ""
