"""The home directory and its lock."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stnode.clock import system_env
from stnode.errors import ConfigError, Conflict, Unavailable
from stnode.node.home import Holder, Home, HomeLock, default_home, lock_or_daemon, try_lock

HOLD = """
import sys
from pathlib import Path
from stnode.node.home import Holder, Home, try_lock
lock = try_lock(Home(Path(sys.argv[1])), sys.argv[2])
if len(sys.argv) > 3:
    lock.announce(Holder(1234, "daemon", sys.argv[3], "key"))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def hold(home: Home, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home.path), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_where_the_home_is() -> None:
    assert default_home({"STNODE_HOME": "/a", "XDG_DATA_HOME": "/b"}) == Path("/a")
    assert default_home({"XDG_DATA_HOME": "/b"}) == Path("/b/stnode")
    assert default_home({}) == Path.home() / ".local/share/stnode"


def test_a_home_without_configuration_is_none(home: Home) -> None:
    with pytest.raises(ConfigError) as caught:
        home.require({})
    assert "init" in caught.value.hint


def test_a_new_home_is_for_its_owner_only(tmp_path: Path) -> None:
    home = Home(tmp_path / "a" / "b")
    home.create()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


async def test_the_lock_is_held_by_one(home: Home) -> None:
    first = try_lock(home, "command")
    assert isinstance(first, HomeLock)
    assert stat.S_IMODE(home.lock.stat().st_mode) == 0o600
    assert try_lock(home, "daemon") == Holder(os.getpid(), "command")
    first.release()
    second = await lock_or_daemon(home, system_env(), "daemon")
    assert isinstance(second, HomeLock)
    second.release()
    second.release()


async def test_a_daemon_that_answers_is_found_and_excludes_another(home: Home) -> None:
    process = hold(home, "daemon", "http://127.0.0.1:1")
    try:
        env = system_env()
        assert await lock_or_daemon(home, env, "command") == Holder(1234, "daemon", "http://127.0.0.1:1", "key")
        with pytest.raises(Conflict, match="already runs"):
            await lock_or_daemon(home, env, "daemon")
    finally:
        end(process)
    lock = await lock_or_daemon(home, system_env(), "command")  # a killed daemon leaves nothing behind
    assert isinstance(lock, HomeLock)
    lock.release()


async def test_who_holds_too_long_is_named(home: Home) -> None:
    process = hold(home, "command")
    try:
        with pytest.raises(Unavailable, match=f"the command of process {process.pid}"):
            await lock_or_daemon(home, system_env(), "daemon", wait_s=0.2)
    finally:
        end(process)
