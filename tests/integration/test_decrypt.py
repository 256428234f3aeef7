"""What real Syncthings have encrypted into a bucket is read from the bucket alone: by `stnode decrypt`, by a node's commands with the password,
and, exported, by the real `syncthing decrypt` of both versions."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.conftest import StoreChoice
from tests.integration.test_encrypted import trust, untrusted_node
from tests.support import install
from tests.support.encrypted import FOLDER, OTHER_PASSWORD, PASSWORD, secret_tree
from tests.support.live import until
from tests.support.nodes import STNODE
from tests.support.syncthing import NEW, OLD, VERSIONS, SyncthingProcess
from tests.support.trees import difference
from tests.support.vault import FOLDER as VAULT
from tests.support.vault import PASSWORD as SECRET
from tests.support.vault import vault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.blocks_loop("commands are waited for")]
FILES = 900
LARGE = (40 << 20,)


def away(tmp_path: Path, store: StoreChoice, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command on a machine that knows the bucket only: no home, no configuration; what it makes for itself is gone afterwards."""
    home, scratch = tmp_path / "away", tmp_path / "scratch"
    home.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True)
    environment = {**os.environ, **store.environment, "HOME": str(home), "TMPDIR": str(scratch)}
    words = [*STNODE, str(arguments[0]), "--store", store.url, *map(str, arguments[1:])]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert list(home.iterdir()) == list(scratch.iterdir()) == []
    return done


def change(tree: Path) -> None:
    """Deletions, renames, an edit in a large file."""
    (tree / "moved").mkdir()
    letters = sorted(tree.glob("drawer-of-*/*/family-letter-*"))
    for letter in letters[:20]:
        letter.rename(tree / "moved" / letter.name)
    for letter in letters[20:30]:
        letter.unlink()
    with (tree / "large" / "film-of-the-wedding-0.bin").open("r+b") as file:
        file.seek(20 << 20)
        file.write(b"other" * 50_000)


def files_of(tree: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, whole seconds of the time, and content of the regular files."""
    paths = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink() and ".stfolder" not in path.parts]
    return {
        str(path.relative_to(tree)): (stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime_ns // 10**9, path.read_bytes())
        for path in paths
    }


@pytest.mark.parametrize(("version", "store"), [pytest.param(OLD, "file", marks=pytest.mark.soak), (NEW, "seaweedfs")], indirect=["store"])
async def test_what_syncthing_encrypted_is_read_from_the_bucket_alone(tmp_path: Path, store: StoreChoice, version: str) -> None:
    tree = tmp_path / "tree"
    secret_tree(tree, FILES, LARGE)
    for name, text in (("password", PASSWORD), ("wrong", OTHER_PASSWORD)):
        (tmp_path / name).write_text(text)
    given = ("--password-file", str(tmp_path / "password"))
    peer = SyncthingProcess(tmp_path / "peer", version, name="peer")
    try:
        await peer.start()
        node = untrusted_node(tmp_path / "node", store, [peer])
        try:
            await asyncio.to_thread(node.start)
            await trust((peer, tree), node)
            await _settled(peer, node.device_id)
            change(tree)
            await peer.scan(FOLDER)
            await _settled(peer, node.device_id)

            listed = await asyncio.to_thread(node.cli, "ls", "-R", "--json", FOLDER, *given)
            assert {entry["path"] for entry in json.loads(listed)} == {f"{FOLDER}/{path.relative_to(tree)}" for path in _items(tree)}
            assert await asyncio.to_thread(node.cli, "get", FOLDER, str(tmp_path / "got"), *given) == ""
            assert difference(tree, tmp_path / "got") == []
            assert "0 problems" in await asyncio.to_thread(node.cli, "bucket", "check", "--read-data")
        finally:
            node.kill()
    finally:
        await peer.kill()

    done = away(tmp_path, store, "decrypt", FOLDER, "--password-file", tmp_path / "wrong", "--to", tmp_path / "never")
    assert (done.returncode, (tmp_path / "never").exists()) == (77, False), done.stderr
    began = time.monotonic()
    done = away(tmp_path, store, "decrypt", FOLDER, *given, "--to", tmp_path / "restored", "--json")
    print(f"{version}: {done.stdout.split()} in {time.monotonic() - began:.1f} s")
    assert (done.returncode, done.stderr) == (0, "")
    assert difference(tree, tmp_path / "restored") == []
    done = away(tmp_path, store, "decrypt", FOLDER, *given, "--verify", "--json")
    assert (done.returncode, json.loads(done.stdout)["files"]) == (0, len(files_of(tree)))

    done = away(tmp_path, store, "export", FOLDER, "--format", "syncthing", "--to", tmp_path / "export")
    assert done.returncode == 0, done.stderr
    wanted = await asyncio.to_thread(files_of, tree)
    for tool in VERSIONS:
        program, out = install.provide(tool), tmp_path / f"by-{tool}"
        out.mkdir()
        read = subprocess.run(
            [program, "decrypt", "--to", out, "--password", PASSWORD, tmp_path / "export"], capture_output=True, text=True, check=False
        )
        assert read.returncode == 0, read.stdout + read.stderr
        found = await asyncio.to_thread(files_of, out)
        keeps = slice(None) if tool == NEW else slice(2, None)  # the old tool restores neither modes nor times
        assert {name: each[keeps] for name, each in found.items()} == {name: each[keeps] for name, each in wanted.items()}
        verified = subprocess.run(
            [program, "decrypt", "--verify-only", "--password", PASSWORD, tmp_path / "export"], capture_output=True, text=True, check=False
        )
        assert verified.returncode == 0, verified.stdout + verified.stderr


def _items(tree: Path) -> list[Path]:
    return [path for path in tree.rglob("*") if ".stfolder" not in path.parts]


async def _settled(peer: SyncthingProcess, device: str) -> None:
    """Until the peer believes that the device has everything, deletions too."""

    async def done() -> bool:
        theirs = await peer.completion(FOLDER, device)
        return (theirs["needBytes"], theirs["needItems"], theirs["needDeletes"]) == (0, 0, 0) and theirs["globalBytes"] > 0

    deadline = time.monotonic() + 90
    while not (await peer.connected(device) and await done()):
        assert time.monotonic() < deadline, f"{await peer.completion(FOLDER, device)}\n{peer.log()[-2000:]}"
        await asyncio.sleep(0.3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_run_leaves_no_state_and_is_gone_on_with(tmp_path: Path, number: signal.Signals) -> None:
    items = {f"{each:03d}": os.urandom(3 << 20) for each in range(60)}
    async with vault(tmp_path / "store") as made:
        await made.put(items)
    (tmp_path / "password").write_text(SECRET)
    (tmp_path / "scratch").mkdir()
    words = [*STNODE, "decrypt", "--store", made.url, VAULT, "--password-file", f"{tmp_path}/password", "--to", f"{tmp_path}/out"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch"), "HOME": str(tmp_path / "away")}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)
    await until(lambda: list((tmp_path / "out").glob("[0-9]*")), 30)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, list((tmp_path / "scratch").iterdir())) == (130, []), said
    there = len(list((tmp_path / "out").glob("[0-9]*")))
    done = subprocess.run([*words, "--json"], env=environment, capture_output=True, text=True, check=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == items
    assert json.loads(done.stdout)["skipped"] >= there
