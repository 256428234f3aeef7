"""A node's home directory: where its files are, and the lock that says who works with them.

    config.toml      the configuration; its presence makes the directory a home, unless the environment says all that is needed
    cert.pem key.pem the identity, unless the store keeps it
    state/           caches, may be deleted while nothing runs
    store/           the embedded store, where [store] url is ""
    lock             held (flock) by the one process that has the node open; its text says which and how to reach it

The daemon and a command that opens the node by itself exclude each other by the lock; nobody trusts a port or a PID alone.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from stnode import config
from stnode.clock import Env
from stnode.errors import ConfigError, Conflict, Refused, Unavailable

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below one directory."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    def require(self, environ: Mapping[str, str]) -> None:
        """Raises ConfigError unless `stnode init` has been here, or the environment says enough: then the directory is made if absent."""
        if self.config.is_file():
            return
        if not config.stands_alone(environ):
            raise ConfigError(
                f"{self.path} is no home of a node: it has no config.toml",
                hint=f"run `stnode --home {self.path} init`, or name another home with --home or STNODE_HOME; "
                "a node on an encrypted store can do with STNODE_STORE_URL and STNODE_STORE_PASSPHRASE_FILE alone",
            )
        self.create()

    def create(self) -> None:
        """Makes the directory, for its owner only."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise Refused(f"the home directory {self.path} cannot be made: {exc.strerror}", hint="choose another --home") from exc


def default_home(environ: Mapping[str, str]) -> Path:
    """$STNODE_HOME, else $XDG_DATA_HOME/stnode, else ~/.local/share/stnode."""
    if environ.get("STNODE_HOME"):
        return Path(environ["STNODE_HOME"])
    if environ.get("XDG_DATA_HOME"):
        return Path(environ["XDG_DATA_HOME"]) / "stnode"
    return Path.home() / ".local" / "share" / "stnode"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock. A daemon that answers has `url` and `api_key`; before that both are ''."""

    pid: int
    role: Literal["daemon", "command"]
    url: str = ""
    api_key: str = ""


class HomeLock:
    """The lock, held. It ends with the process, however that ends, so it never has to be cleaned up."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def announce(self, holder: Holder) -> None:
        """Writes who holds the lock. The file is readable by its owner only: it carries the API key."""
        text = json.dumps(asdict(holder)).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text, 0)

    def release(self) -> None:
        """Lets the next one in."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def try_lock(home: Home, role: Literal["daemon", "command"]) -> HomeLock | Holder | None:
    """The lock, or who has it; None when the holder has not written its name yet. Never waits."""
    try:
        descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise Refused(f"{home.lock} cannot be opened: {exc.strerror}", hint="run as the owner of the home directory") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read_holder(descriptor)
        os.close(descriptor)
        return holder
    except OSError as exc:
        os.close(descriptor)
        raise Refused(f"{home.lock} cannot be locked: {exc.strerror}", hint="put the home on a file system that has locks") from exc
    lock = HomeLock(descriptor)
    lock.announce(Holder(os.getpid(), role))
    return lock


def _read_holder(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 65536, 0)))
    except (ValueError, TypeError):
        return None


async def lock_or_daemon(home: Home, env: Env, role: Literal["daemon", "command"], wait_s: float = 30.0) -> HomeLock | Holder:
    """The lock, or the daemon that has it and answers. Waits for other commands to end and for a daemon to come up.
    Raises Unavailable when that takes longer than `wait_s`; for the role "daemon", Conflict at once when another daemon runs."""
    deadline = env.clock.monotonic() + wait_s
    while True:
        found = try_lock(home, role)
        if isinstance(found, HomeLock):
            return found
        if found is not None and found.role == "daemon":
            if role == "daemon":
                raise Conflict(
                    f"a daemon (process {found.pid}) already runs on {home.path}",
                    hint="use it as it is, stop it with `stnode shutdown`, or give this one another --home",
                )
            if found.url:
                return found
        if env.clock.monotonic() > deadline:
            who = "another process" if found is None else f"the {found.role} of process {found.pid}"
            raise Unavailable(f"{who} holds {home.lock} and does not let go", hint="wait for it, or end that process")
        await env.clock.sleep(_POLL_S)
