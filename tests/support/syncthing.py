"""Real Syncthing processes for tests: loopback only, all services of the outside world off, driven over their REST API.

`async with SyncthingProcess(home, NEW) as peer:` runs one; it is stopped by its own process ID. Versions: `install.OLD`, `install.NEW`.
Timing: rescans are off and the file watcher too unless asked for, so tests say `await peer.scan(folder)`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from tests.support import install
from tests.support.install import NEW, OLD, VERSIONS
from tests.support.ports import free_port

__all__ = ["NEW", "OLD", "VERSIONS", "SyncthingProcess", "wait_same"]

API_KEY = "stnode-tests"
START_S = 60.0
_OPTIONS = {
    "globalAnnounceEnabled": "false",
    "localAnnounceEnabled": "false",
    "relaysEnabled": "false",
    "natEnabled": "false",
    "urAccepted": "-1",
    "crashReportingEnabled": "false",
    "autoUpgradeIntervalH": "0",
    "upgradeToPreReleases": "false",
    "startBrowser": "false",
    "setLowPriority": "false",
    "reconnectionIntervalS": "5",
    "stunKeepaliveStartS": "0",
    "announceLANAddresses": "false",
}


class SyncthingProcess:
    """One Syncthing with a home directory of its own. After `stop` or `kill` it can be started again with the same identity.

    `certificate`: PEM texts (cert, key) instead of the pair that the version generates itself.
    """

    def __init__(
        self,
        home: Path,
        version: str = OLD,
        *,
        name: str = "peer",
        fs_watcher: bool = False,
        certificate: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.home = home
        self.version = version
        self.name = name
        self.port, self.gui_port = free_port(), free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.device_id = ""
        self.log_path = home / "syncthing.log"
        self._fs_watcher = fs_watcher
        self._certificate = certificate
        self._program = install.provide(version)
        self._process: subprocess.Popen[bytes] | None = None

    # ------------------------------------------------------------------------------------------------- the process
    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        await self.kill()

    @property
    def pid(self) -> int:
        """The process that does everything (no monitor process above it)."""
        assert self._process is not None, "not running"
        return self._process.pid

    async def start(self) -> None:
        """Generates identity and configuration at the first call; returns when the API answers."""
        if not (self.home / "config.xml").exists():
            await self._generate()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "serve", "--home", self.home, "--no-browser"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(),
            )  # fmt: skip
        await self._until(self._answers, START_S, "its API does not answer")
        self.device_id = (await self.rest("GET", "system/status"))["myID"]

    async def stop(self) -> None:
        """An orderly shutdown (SIGTERM)."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """kill -9: what was not on disk is lost."""
        await self._end(signal.SIGKILL)

    async def restart(self) -> None:
        """Orderly stop, then start."""
        await self.stop()
        await self.start()

    def log(self) -> str:
        """All that it has written."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # ------------------------------------------------------------------------------------------------- the REST API
    async def rest(self, method: str, path: str, json: object = None, **params: str) -> Any:
        """One call of /rest/<path>; the decoded JSON or None. Raises for error statuses with the server's text."""
        url = f"http://127.0.0.1:{self.gui_port}/rest/{path}"
        async with (
            aiohttp.ClientSession(headers={"X-API-Key": API_KEY}) as session,
            session.request(method, url, json=json, params=params, timeout=aiohttp.ClientTimeout(60)) as answer,
        ):
            text = await answer.text()
            if answer.status >= 400:
                raise RuntimeError(f"{self.name}: {method} {path}: {answer.status} {text.strip()}")
            return await answer.json(content_type=None) if text.strip() else None

    async def add_device(self, device_id: str, address: str = "dynamic", *, name: str = "", **settings: object) -> None:
        """Adds or replaces a device; without an address it waits to be dialed."""
        base = await self.rest("GET", "config/defaults/device")
        device = base | {"deviceID": device_id, "name": name, "addresses": [address], "paused": False} | settings
        await self.rest("PUT", f"config/devices/{device_id}", device)

    async def add_folder(
        self,
        folder: str,
        path: Path,
        devices: Iterable[str],
        kind: str = "sendreceive",
        *,
        passwords: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        """Adds or replaces a folder shared with `devices`, encrypted for those that `passwords` names. `settings` are keys of Syncthing's
        folder configuration."""
        path.mkdir(parents=True, exist_ok=True)
        base = await self.rest("GET", "config/defaults/folder")
        secret = passwords or {}
        shared = [{"deviceID": device, "encryptionPassword": secret.get(device, "")} for device in (self.device_id, *devices)]
        own = {"id": folder, "label": folder, "path": str(path), "type": kind, "devices": shared, "rescanIntervalS": 0}
        watcher = {"fsWatcherEnabled": self._fs_watcher, "fsWatcherDelayS": 0.1 if self.version != OLD else 1}
        await self.rest("PUT", f"config/folders/{folder}", base | own | watcher | settings)

    async def scan(self, folder: str, sub: str = "") -> None:
        """Scans now; returns when done."""
        await self.rest("POST", "db/scan", folder=folder, **({"sub": sub} if sub else {}))

    async def db_status(self, folder: str) -> dict[str, Any]:
        """/rest/db/status: state, needFiles, globalFiles, sequence …"""
        status: dict[str, Any] = await self.rest("GET", "db/status", folder=folder)
        return status

    async def completion(self, folder: str, device: str) -> dict[str, Any]:
        """/rest/db/completion: what this one believes that the device has."""
        done: dict[str, Any] = await self.rest("GET", "db/completion", folder=folder, device=device)
        return done

    async def connected(self, device: str) -> bool:
        """Whether there is a connection to the device now."""
        connections = (await self.rest("GET", "system/connections"))["connections"]
        return bool(connections.get(device, {}).get("connected", False))

    async def pause(self, device: str) -> None:
        """Closes the connection to the device and accepts none."""
        await self.rest("POST", "system/pause", device=device)

    async def resume(self, device: str) -> None:
        """Ends `pause`, and dials at once."""
        await self.rest("POST", "system/resume", device=device)

    # ------------------------------------------------------------------------------------------------- waiting
    async def wait_connected(self, device: str, deadline_s: float = 30.0) -> None:
        """Until there is a connection to the device."""
        await self._until(lambda: self.connected(device), deadline_s, f"no connection to {device[:7]}")

    async def wait_in_sync(self, folder: str, device: str | None = None, deadline_s: float = 60.0) -> None:
        """Until it needs nothing and is idle; with `device` also until it believes that the connected device needs nothing.

        Before indexes are exchanged nobody needs anything: say what is expected by `wait_status`, or compare two by `wait_same`.
        """

        async def done() -> bool:
            status = await self.db_status(folder)
            if status["state"] != "idle" or status["needTotalItems"] != 0:
                return False
            if device is None:
                return True
            theirs = await self.completion(folder, device)
            nothing = theirs["needItems"] == 0 and theirs["needDeletes"] == 0 and theirs["needBytes"] == 0
            return nothing and theirs.get("remoteState", "valid") == "valid" and await self.connected(device)

        await self._until(done, deadline_s, f"folder {folder} is not in sync with {(device or 'all')[:7]}")

    async def wait_status(self, folder: str, expected: Mapping[str, object], deadline_s: float = 60.0) -> dict[str, Any]:
        """Until /rest/db/status shows the expected values, e.g. {"globalFiles": 3, "needTotalItems": 0, "state": "idle"}."""
        status: dict[str, Any] = {}

        async def done() -> bool:
            status.update(await self.db_status(folder))
            return all(status.get(key) == value for key, value in expected.items())

        try:
            await self._until(done, deadline_s, f"folder {folder} does not become {dict(expected)}")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; it is { {key: status.get(key) for key in expected} }") from None
        return status

    async def _until(self, condition: Callable[[], Any], deadline_s: float, otherwise: str) -> None:
        deadline = time.monotonic() + deadline_s
        while not await condition():
            if self._process is not None and self._process.poll() is not None:
                raise AssertionError(f"{self.name} ({self.version}) ended with {self._process.returncode}:\n{self.log()[-3000:]}")
            assert time.monotonic() < deadline, f"{self.name} ({self.version}): {otherwise} within {deadline_s} s"
            await asyncio.sleep(0.05)

    # ------------------------------------------------------------------------------------------------- inside
    async def _answers(self) -> bool:
        try:
            await self.rest("GET", "system/ping")
        except (aiohttp.ClientError, RuntimeError, TimeoutError):
            return False
        return True

    def _environment(self) -> dict[str, str]:
        # STMONITORED: the process believes that a monitor runs it, and so does not start a second one.
        own = {"STNOUPGRADE": "1", "STNODEFAULTFOLDER": "1", "STMONITORED": "yes", "HOME": str(self.home), "LANG": "C.UTF-8"}
        return {key: value for key, value in os.environ.items() if not key.startswith("ST")} | own

    async def _generate(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        if self._certificate is not None:
            (self.home / "cert.pem").write_bytes(self._certificate[0])
            (self.home / "key.pem").write_bytes(self._certificate[1])
        with self.log_path.open("ab") as log:
            done = await asyncio.get_running_loop().run_in_executor(
                None,
                lambda: subprocess.run(
                    [self._program, "generate", "--home", self.home], stdout=log, stderr=log, check=False, env=self._environment()
                ),
            )
        assert done.returncode == 0, self.log()
        path = self.home / "config.xml"
        tree = ET.parse(path)
        options, gui = tree.getroot().find("options"), tree.getroot().find("gui")
        assert options is not None
        assert gui is not None
        for old in options.findall("listenAddress"):
            options.remove(old)
        for key, value in {**_OPTIONS, "listenAddress": self.address}.items():
            _set(options, key, value)
        _set(gui, "address", f"127.0.0.1:{self.gui_port}")
        _set(gui, "apikey", API_KEY)
        for device in tree.getroot().findall("device"):
            device.set("name", self.name)
        tree.write(path)

    async def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        deadline = time.monotonic() + 30
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
            await asyncio.sleep(0.01)
        self._process = None


def _set(parent: ET.Element, key: str, value: str) -> None:
    element = parent.find(key)
    if element is None:
        element = ET.SubElement(parent, key)
    element.text = value


async def wait_same(first: SyncthingProcess, second: SyncthingProcess, folder: str, deadline_s: float = 60.0) -> None:
    """Until both are connected, idle, need nothing and count the same files, directories, links, deletions and bytes."""
    deadline = time.monotonic() + deadline_s
    keys = ("globalFiles", "globalDirectories", "globalSymlinks", "globalDeleted", "globalBytes")
    while True:
        one, two = await first.db_status(folder), await second.db_status(folder)
        idle = all(status["state"] == "idle" and status["needTotalItems"] == 0 for status in (one, two))
        if idle and all(one[key] == two[key] for key in keys) and await first.connected(second.device_id):
            return
        assert time.monotonic() < deadline, f"{first.name} and {second.name} do not agree on {folder}: {one} {two}"
        await asyncio.sleep(0.1)
