"""Provides the real Syncthing programs that the integration tests need: `python -m tests.support.install`.

A version is taken from the system if it is there, else from a cache directory, else it is downloaded from Debian with sources,
lists and cache of its own (no root needed, nothing of the system changes) and unpacked there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
OLD, NEW = "1.19.2", "1.29.5"
SUITES = {OLD: ("bookworm",), NEW: ("trixie", "sid")}
VERSIONS = tuple(SUITES)


class Missing(Exception):
    """A program that a test needs cannot be provided; the message says what to do."""


def cache_dir() -> Path:
    """Where unpacked programs are kept between runs."""
    return Path(os.environ.get("STNODE_TEST_CACHE") or Path.home() / ".cache" / "stnode-tests")


def _is_version(program: Path, version: str) -> bool:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\bv(\d+\.\d+\.\d+)", done.stdout)
    return found is not None and found.group(1) == version


def find(version: str) -> Path | None:
    """The program of that version if it is on this machine."""
    system = shutil.which("syncthing")
    if system is not None and _is_version(Path(system), version):
        return Path(system)
    cached = cache_dir() / f"syncthing-{version}" / "usr" / "bin" / "syncthing"
    return cached if cached.exists() and _is_version(cached, version) else None


def provide(version: str) -> Path:
    """The program of that version, downloaded if need be; raises Missing with advice."""
    if (program := find(version)) is not None:
        return program
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Missing(
            f"syncthing {version} is not here and this is no Debian-like system: unpack it to {cache_dir()}/syncthing-{version}/usr/bin"
        )
    reasons = []
    for suite in SUITES[version]:
        try:
            _download(version, suite)
        except subprocess.CalledProcessError as exc:
            reasons.append(f"{suite}: {(exc.stderr or exc.stdout or str(exc)).strip()}")
            continue
        if (program := find(version)) is not None:
            return program
        reasons.append(f"{suite}: has another version")
    raise Missing(f"syncthing {version} cannot be had from {MIRROR}: " + "; ".join(reasons))


def _download(version: str, suite: str) -> None:
    target = cache_dir() / f"syncthing-{version}"
    with tempfile.TemporaryDirectory(prefix="stnode-apt-") as name:
        base = Path(name)
        for part in ("lists/partial", "archives/partial", "unpacked"):
            (base / part).mkdir(parents=True)
        (base / "status").touch()
        signed = f" [signed-by={KEYRING}]" if Path(KEYRING).exists() else ""
        (base / "sources.list").write_text(f"deb{signed} {MIRROR} {suite} main\n")
        settings = {
            "Dir::Etc::SourceList": base / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": base / "lists",
            "Dir::State::Status": base / "status",
            "Dir::Cache": base,
            "Dir::Cache::Archives": base / "archives",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "",
        }
        apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in settings.items())]
        subprocess.run([*apt, "update"], check=True, capture_output=True, text=True)
        subprocess.run([*apt, "download", "syncthing"], check=True, capture_output=True, text=True, cwd=base)
        [package] = base.glob("syncthing_*.deb")
        subprocess.run(["dpkg", "-x", package, base / "unpacked"], check=True, capture_output=True, text=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(base / "unpacked", target, symlinks=True)


def main() -> None:
    """Provides all versions and says where they are."""
    for version in VERSIONS:
        try:
            print(f"syncthing {version}: {provide(version)}")
        except Missing as exc:
            sys.exit(str(exc))


if __name__ == "__main__":
    main()
