"""The command line as processes: a node's whole life, and what users are told when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.conftest import StoreChoice
from tests.support.s3servers import S3Server, rclone_server
from tests.support.trees import difference

__all__ = ["rclone_server"]

PEER = "P56IOI7-MZJNU2Y-IQGDREY-DM2MGTI-MGL3BXN-PQ6W5BM-TBBZ4TJ-XZWICQ2"


@dataclass
class Stnode:
    """`stnode` with one home; kills what it started."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    daemon: subprocess.Popen[str] | None = None

    def _command(self, arguments: tuple[object, ...]) -> list[str]:
        return [sys.executable, "-m", "stnode", "--home", str(self.home), *map(str, arguments)]

    def run(self, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "STNODE_API_LISTEN": "127.0.0.1:0", "STNODE_NODE_LISTEN": "tcp://127.0.0.1:0", **self.environment}
        return subprocess.run(self._command(arguments), env=environment, input=stdin, capture_output=True, check=False, timeout=100)

    def good(self, *arguments: object, stdin: bytes = b"") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def bad(self, code: int, *arguments: object) -> str:
        """The error output of a command that must fail with this code, cleanly."""
        done = self.run(*arguments)
        text = done.stderr.decode()
        assert done.returncode == code, f"{done.returncode}: {text}"
        assert arguments == ("run",) or text.startswith("stnode: error: ")
        assert "stnode: error: " in text
        assert "\nhint: " in text
        assert "Traceback" not in text
        return text

    def start(self) -> None:
        environment = {**os.environ, "STNODE_API_LISTEN": "127.0.0.1:0", "STNODE_NODE_LISTEN": "tcp://127.0.0.1:0", **self.environment}
        with (self.home / "run.log").open("w") as log:
            self.daemon = subprocess.Popen(self._command(("run",)), env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.daemon.stdout is not None
        assert "device ID" in self.daemon.stdout.readline(), self.log()
        assert "http://" in self.daemon.stdout.readline()

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Ends the daemon; the seconds that took."""
        assert self.daemon is not None
        began = time.monotonic()
        self.daemon.send_signal(number)
        self.daemon.communicate(timeout=20)
        return time.monotonic() - began

    def log(self) -> str:
        return (self.home / "run.log").read_text()


@pytest.fixture
def stnode(tmp_path: Path) -> Iterator[Stnode]:
    made = Stnode(tmp_path / "home")
    yield made
    if made.daemon is not None and made.daemon.poll() is None:
        made.daemon.kill()
        made.daemon.communicate()


def tree(path: Path) -> Path:
    (path / "sub" / "deep").mkdir(parents=True)
    (path / "sub" / "deep" / "a.bin").write_bytes(os.urandom(3_000_000))
    (path / "sub" / "script").write_text("#!/bin/sh\n")
    (path / "sub" / "script").chmod(0o755)
    (path / "empty").touch()
    (path / "ünïcödé name").write_text("x")
    (path / "link").symlink_to("sub/script")
    os.utime(path / "sub", ns=(1_600_000_000_123_456_789,) * 2)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("store", ["file", "seaweedfs"], indirect=True)
def test_a_life(stnode: Stnode, store: StoreChoice, tmp_path: Path) -> None:
    """init, settings, files; the same without a daemon, with one, and in another home that has nothing but the store."""
    stnode.environment = store.environment
    source = tree(tmp_path / "source")
    shown = stnode.good("init", "--store", store.url, "--name", "n")
    own_id = stnode.good("id").strip()
    assert own_id in shown
    assert "(was there)" in stnode.good("init")
    stnode.good("device", "add", PEER, "--name", "laptop")
    stnode.good("folder", "add", "docs", "--label", "My docs", "--device", "laptop")
    stnode.good("put", source, "docs/copy")
    stnode.good("get", "docs/copy", tmp_path / "back1")
    assert not difference(source, tmp_path / "back1")

    stnode.start()
    status = json.loads(stnode.good("status", "--json"))
    assert (status["running"], status["device_id"], status["folders"][0]["files"]) == (True, own_id, 4)
    assert "already runs" in stnode.bad(65, "run")
    assert stnode.good("ls", "-R", "docs").splitlines()[:2] == ["copy/", "copy/empty"]
    stnode.good("put", "-", "docs/piped", stdin=b"from a pipe")
    assert stnode.good("cat", "My docs/piped") == "from a pipe"
    stnode.good("mv", "docs/copy", "docs/moved")
    stnode.good("get", "docs/moved", tmp_path / "back2")
    assert not difference(source, tmp_path / "back2")
    stnode.good("mkdir", "-p", "docs/x/y")
    stnode.good("rm", "-r", "docs/x")
    gone = stnode.run("cat", "docs/x")
    assert (gone.returncode, gone.stdout) == (66, b"")
    assert b"x does not exist" in gone.stderr
    assert stnode.stop() < 8
    assert stnode.daemon is not None
    assert stnode.daemon.returncode == 0

    report = json.loads(stnode.good("bucket", "check", "--read-data", "--json"))
    assert report["problems"] == []
    assert report["bytes_read"] >= 3_000_000
    assert "packs" in stnode.good("bucket", "stats")

    other = Stnode(tmp_path / "other", store.environment)
    assert "(was there)" in other.good("init", "--store", store.url)
    assert other.good("id").strip() != own_id
    other.good("get", "docs/moved", tmp_path / "back3")
    assert not difference(source, tmp_path / "back3")
    assert "laptop" in other.good("device", "list")


def test_kill_9_leaves_nothing_in_the_way(stnode: Stnode) -> None:
    stnode.good("init")
    stnode.good("folder", "add", "docs")
    stnode.start()
    stnode.good("put", "-", "docs/f", stdin=b"x")
    stnode.stop(signal.SIGKILL)
    assert stnode.good("cat", "docs/f") == "x"
    stnode.start()
    assert stnode.good("cat", "docs/f") == "x"
    stnode.good("shutdown")
    assert stnode.daemon is not None
    stnode.daemon.communicate(timeout=20)
    assert stnode.daemon.returncode == 0
    assert "no daemon" in stnode.run("shutdown").stderr.decode()


def test_apply(stnode: Stnode) -> None:
    stnode.good("init")
    with (stnode.home / "config.toml").open("a") as file:
        file.write(f'\n[[device]]\nid = "{PEER}"\nname = "laptop"\n[[folder]]\nid = "pics"\ntype = "receiveonly"\ndevices = ["laptop"]\n')
    assert stnode.good("apply", "--dry-run").splitlines() == [f"+ device {PEER}: laptop", "+ folder pics"]
    stnode.start()
    stnode.good("status")
    assert "stnode apply" in stnode.log()
    stnode.good("apply")
    assert json.loads(stnode.good("folder", "list", "--json"))[0]["type"] == "receiveonly"
    assert "as config.toml asks" in stnode.good("apply")
    stnode.good("folder", "set", "pics", "--type", "sendreceive")
    assert "type 'sendreceive' → 'receiveonly'" in stnode.good("apply", "--dry-run")


def test_homes_and_configurations_that_are_wrong(stnode: Stnode) -> None:
    assert "init" in stnode.bad(78, "status")
    assert "config.toml" in stnode.bad(78, "run")
    stnode.good("init")
    config = stnode.home / "config.toml"
    config.write_text(config.read_text() + "\n[store]\nurl = 1\n")
    assert "config.toml" in stnode.bad(78, "ls")
    config.write_text('[log]\nlevel = "loud"\n')
    text = stnode.bad(78, "run")
    assert "config.toml line 2" in text
    assert "[log] level" in text
    config.write_text("")
    assert "api_key" in stnode.bad(78, "run")


@pytest.mark.parametrize(("variable", "value"), [("STNODE_API_LISTEN", "127.0.0.1:{}"), ("STNODE_NODE_LISTEN", "tcp://127.0.0.1:{}")])
def test_a_taken_port_is_named_with_its_option(stnode: Stnode, variable: str, value: str) -> None:
    stnode.good("init")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stnode.environment[variable] = value.format(port)
        text = stnode.bad(77, "run")
    assert str(port) in text
    assert "listen" in text


def test_store_of_a_newer_version_and_damaged_ones(stnode: Stnode) -> None:
    stnode.good("init")
    stnode.good("folder", "add", "docs")
    stnode.good("put", "-", "docs/f", stdin=os.urandom(300_000))
    [pack] = [path for path in (stnode.home / "store" / "packs").rglob("*") if path.is_file()]
    whole = pack.read_bytes()
    pack.write_bytes(whole[:1000] + b"damage" + whole[1006:])
    assert pack.name in stnode.bad(74, "cat", "docs/f")
    found = stnode.run("bucket", "check", "--read-data")
    assert found.returncode == 74
    assert pack.name in found.stderr.decode()
    assert "lost: docs/f" in found.stderr.decode()
    pack.write_bytes(whole)

    [slot] = [path for path in (stnode.home / "store" / "journal").rglob("*2") if path.is_file()]
    slot_whole = slot.read_bytes()
    slot.write_bytes(slot_whole[:50] + b"damage" + slot_whole[56:])
    found = stnode.run("bucket", "check")
    assert found.returncode == 74
    assert slot.name in found.stderr.decode()
    for path in (stnode.home / "state").rglob("*"):
        path.unlink()
    assert slot.name in stnode.bad(74, "ls", "docs")
    slot.write_bytes(slot_whole)
    stnode.good("ls", "docs")

    identity = stnode.home / "store" / "stnode.json"
    document = json.loads(identity.read_text())
    identity.write_text(json.dumps({**document, "format": 99}))
    text = stnode.bad(77, "ls", "docs")
    assert "99" in text
    assert "update stnode" in text
    identity.unlink()
    assert "stnode.json" in stnode.bad(66, "ls", "docs")


def test_s3_mistakes(stnode: Stnode, seaweedfs_server: S3Server) -> None:
    options = seaweedfs_server.options
    stnode.environment = {
        "STNODE_STORE_ENDPOINT_URL": options.endpoint_url,
        "STNODE_STORE_REGION": options.region,
        "STNODE_STORE_ACCESS_KEY_ID": options.access_key_id,
        "STNODE_STORE_SECRET_ACCESS_KEY": options.secret_access_key,
    }
    assert "no-such-bucket" in stnode.bad(77, "init", "--store", "s3://no-such-bucket/x")
    assert not (stnode.home / "config.toml").exists()
    stnode.environment["STNODE_STORE_SECRET_ACCESS_KEY"] = "wrong"
    assert "secret_access_key" in stnode.bad(77, "init", "--store", seaweedfs_server.url("cli"))
    stnode.environment["STNODE_STORE_ENDPOINT_URL"] = "http://127.0.0.1:1"
    assert "127.0.0.1:1" in stnode.bad(75, "init", "--store", seaweedfs_server.url("cli"))


def test_a_store_without_conditional_writes_is_refused(stnode: Stnode, rclone_server: S3Server) -> None:
    options = rclone_server.options
    stnode.environment = {
        "STNODE_STORE_ENDPOINT_URL": options.endpoint_url,
        "STNODE_STORE_REGION": options.region,
        "STNODE_STORE_ACCESS_KEY_ID": options.access_key_id,
        "STNODE_STORE_SECRET_ACCESS_KEY": options.secret_access_key,
    }
    assert "conditional writes" in stnode.bad(77, "init", "--store", rclone_server.url("cli"))
