"""`stnode decrypt`, `stnode export`, and `--password-file`, on real stores in directories that nobody else has opened."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from stnode.clock import system_env
from stnode.frontends.cli.app import App
from stnode.frontends.cli.main import run_cli
from stnode.node.connect import check_store, connect, repair_store
from stnode.node.home import Home
from stnode.protocol.encryption import OVERHEAD
from stnode.protocol.fileinfo import FileType
from stnode.protocol.pb import bep_pb2 as pb
from tests.support.vault import FOLDER, MODIFIED_NS, MODIFIED_S, PASSWORD, Content, Vault, vault

Run = Callable[..., tuple[int, str, str]]
BLOCK = 128 << 10
SIZES = (0, 1, 1023, 1024, 1025, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 1023, 10 * BLOCK + 17)
TREE: dict[str, Content] = {
    "dir": None,
    "dir/empty directory": None,
    "dir/ä long näme " + "日" * 60: b"content of a long name",
    "dir/" + "/".join(["deep"] * 12) + "/file": b"deep",
    "link": "dir/nowhere",
    "dir.txt": b"sorts between dir and what is in it",
    **{f"sizes/{size}": os.urandom(size) for size in SIZES},
}


@pytest.fixture
def run(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one command without a home; (exit code, output, errors). Whatever it needs in between it puts into `tmp`, and takes away."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    (tmp_path / "wrong").write_text("wrong\n")

    def run(*arguments: object, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
        capfdbinary.readouterr()
        app = App(connect, check_store, repair_store, system_env, environ or {}, Home(tmp_path / "no home"))
        code = run_cli(app, [str(argument) for argument in arguments])
        shown = capfdbinary.readouterr()
        assert list(scratch.iterdir()) == []
        return code, shown.out.decode(), shown.err.decode()

    return run


def filled(directory: Path, fill: Callable[[Vault], Awaitable[object]], **options: object) -> tuple[str, ...]:
    """Makes a store in `directory`; the options by which commands find it."""

    async def make() -> str:
        async with vault(directory, **options) as made:  # type: ignore[arg-type]
            await fill(made)
            return made.url

    return ("--store", asyncio.run(make()))


@pytest.fixture
def tree(tmp_path: Path) -> tuple[str, ...]:
    async def fill(made: Vault) -> None:
        await made.put(TREE)
        await made.put({"gone": b"gone"})
        await made.delete("gone")

    return filled(tmp_path / "store", fill)


def everything(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that lies in a directory: mode, time and content."""
    found = {}
    for path in sorted(directory.rglob("*")):
        meta = path.lstat()
        data = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(directory))] = (meta.st_mode, meta.st_mtime_ns, data)
    return found


def expected(items: Mapping[str, Content]) -> dict[str, tuple[int, bytes]]:
    """Type and content of what a restored tree has, directories that are implied too."""
    found: dict[str, tuple[int, bytes]] = {}
    for name, content in items.items():
        for place in range(name.count("/")):
            found.setdefault("/".join(name.split("/")[: place + 1]), (stat.S_IFDIR, b""))
        kind = stat.S_IFREG if isinstance(content, bytes) else stat.S_IFLNK if isinstance(content, str) else stat.S_IFDIR
        found[name] = (kind, content.encode() if isinstance(content, str) else content or b"")
    return found


def password(tmp_path: Path, which: str = "password") -> tuple[str, str]:
    return ("--password-file", str(tmp_path / which))


def test_everything_is_restored_and_the_bucket_stays_as_it_is(run: Run, tree: tuple[str, ...], tmp_path: Path) -> None:
    before = everything(tmp_path / "store")
    code, out, err = run("decrypt", *tree, FOLDER, *password(tmp_path), "--to", tmp_path / "out", "--json")
    assert (code, err) == (0, "")
    size = sum(len(content) for content in TREE.values() if isinstance(content, bytes))
    files = sum(content is not None for content in TREE.values())
    assert json.loads(out) == {"files": files, "bytes": size, "skipped": 0, "failed": 0}
    found = everything(tmp_path / "out")
    assert {name: (stat.S_IFMT(mode), data) for name, (mode, _, data) in found.items()} == expected(TREE)
    for name, content in TREE.items():
        mode, time_ns, _ = found[name]
        assert time_ns == MODIFIED_S * 10**9 + MODIFIED_NS, name
        if not isinstance(content, str):
            assert stat.S_IMODE(mode) == (0o755 if content is None else 0o640), name
    assert everything(tmp_path / "store") == before
    assert not (tmp_path / "no home").exists()

    (tmp_path / "out" / "link").unlink()
    (tmp_path / "out" / "sizes" / "1025").write_bytes(b"changed here")
    code, out, _ = run("decrypt", *tree, FOLDER, *password(tmp_path), "--to", tmp_path / "out", "--json")
    assert (code, json.loads(out)) == (0, {"files": 2, "bytes": 1025, "skipped": files - 2, "failed": 0})
    again = everything(tmp_path / "out")
    again["sizes"] = found["sizes"]  # there is no item of this directory, and so no time
    assert again == found


def test_a_part_of_it(run: Run, tree: tuple[str, ...], tmp_path: Path) -> None:
    code, _, err = run("decrypt", *tree, "The vault/sizes", *password(tmp_path), "--to", tmp_path / "sizes")
    assert (code, "decrypted 10 files" in err) == (0, True)
    assert sorted(int(path.name) for path in (tmp_path / "sizes").iterdir()) == sorted(SIZES)
    name = f"sizes/{SIZES[-1]}"
    assert run("decrypt", *tree, f"{FOLDER}/{name}", *password(tmp_path), "--to", tmp_path / "single")[0] == 0
    assert (tmp_path / "single").read_bytes() == TREE[name]
    code, _, err = run("decrypt", *tree, f"{FOLDER}/nothing", *password(tmp_path), "--to", tmp_path / "x")
    assert (code, "nothing does not exist" in err) == (66, True)
    assert run("decrypt", *tree, FOLDER, *password(tmp_path))[0] == 64


def test_lists(run: Run, tree: tuple[str, ...], tmp_path: Path) -> None:
    code, out, _ = run("decrypt", *tree, FOLDER, *password(tmp_path), "--list")
    assert code == 0
    names = [name + ("/" if content is None else "") for name, content in TREE.items()]
    assert out.splitlines() == sorted(names, key=lambda name: name.rstrip("/").encode())
    code, out, _ = run("decrypt", *tree, f"{FOLDER}/dir", *password(tmp_path), "--list", "--json")
    assert {entry["path"] for entry in json.loads(out)} == {f"{FOLDER}/{name}" for name in TREE if name.startswith("dir/")}
    code, out, _ = run("decrypt", *tree, FOLDER, *password(tmp_path), "--list", "-l")
    assert "-rw-r-----" in out
    assert "link -> dir/nowhere" in out


def test_what_is_asked_wrongly_is_said_at_once(run: Run, tree: tuple[str, ...], tmp_path: Path) -> None:
    for mode in (("--to", tmp_path / "out"), ("--list",), ("--verify",)):
        code, out, err = run("decrypt", *tree, FOLDER, *password(tmp_path, "wrong"), *mode)
        assert (code, out, "not the password" in err, "hint: " in err) == (77, "", True, True)
        assert "wrong" not in err.replace(str(tmp_path), "")
    assert not (tmp_path / "out").exists()
    code, _, err = run("decrypt", *tree, "plain", *password(tmp_path), "--list")
    assert (code, "not encrypted" in err) == (64, True)
    code, _, err = run("decrypt", *tree, "other", *password(tmp_path), "--list")
    assert (code, "its folders are: vault, plain" in err) == (66, True)
    code, _, err = run("decrypt", FOLDER, *password(tmp_path), "--list")
    assert (code, "which store" in err) == (78, True)
    code, _, err = run("decrypt", "--store", f"file://{tmp_path}/absent", FOLDER, *password(tmp_path), "--list")
    assert (code, (tmp_path / "absent").exists()) == (66, False)
    code, _, err = run("export", *tree, "plain", "--format", "syncthing", "--to", tmp_path / "out")
    assert (code, "not encrypted" in err) == (64, True)


def test_the_store_of_the_environment(run: Run, tree: tuple[str, ...], tmp_path: Path) -> None:
    code, out, _ = run("decrypt", FOLDER, *password(tmp_path), "--verify", "--json", environ={"STNODE_STORE_URL": tree[1]})
    assert (code, json.loads(out)["files"]) == (0, sum(isinstance(content, bytes) for content in TREE.values()))


def test_without_a_token_the_items_tell(run: Run, tmp_path: Path) -> None:
    store = filled(tmp_path / "store", lambda made: made.put({"a": b"a"}), token=False)
    assert run("decrypt", *store, FOLDER, *password(tmp_path, "wrong"), "--list")[0] == 77
    assert run("decrypt", *store, FOLDER, *password(tmp_path), "--list")[:2] == (0, "a\n")


def test_a_store_that_is_encrypted_itself(run: Run, tmp_path: Path) -> None:
    store = filled(tmp_path / "store", lambda made: made.put({"a": b"a"}), passphrase="correct horse battery")
    (tmp_path / "passphrase").write_text("correct horse battery\n")
    assert run("decrypt", *store, FOLDER, *password(tmp_path), "--list")[0] == 77
    given = ("--passphrase-file", tmp_path / "passphrase")
    assert run("decrypt", *store, *given, FOLDER, *password(tmp_path), "--list")[:2] == (0, "a\n")


def test_what_is_damaged_is_named_and_the_rest_goes_on(run: Run, tmp_path: Path) -> None:
    async def fill(made: Vault) -> None:
        await made.put({"good": b"good", "fine": os.urandom(3 * BLOCK)})
        large, other = made.plain("wrong content", os.urandom(3 * BLOCK)), made.plain("other", b"x" * 2000)
        sealed = made.encrypted(other)
        info = pb.FileInfo.FromString(sealed.wire)
        info.encrypted = info.encrypted[:-1] + bytes([info.encrypted[-1] ^ 1])
        damaged = replace(sealed, wire=info.SerializeToString())
        await made.commit([(large, os.urandom(3 * BLOCK), made.encrypted(large)), (other, b"x" * 2000, damaged)])

    store = filled(tmp_path / "store", fill)
    for mode, verb in ((("--to", tmp_path / "out"), "decrypted"), (("--verify",), "verified")):
        code, _, err = run("decrypt", *store, FOLDER, *password(tmp_path), *mode)
        assert code == 74
        assert f"{verb} 2 files" in err
        assert "failed: 2" in err
        assert "block 0 of wrong content is not what the file's metadata says" in err
        assert "the metadata of 'other' was not encrypted with the password" in err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good", "fine"}
    code, out, err = run("decrypt", *store, FOLDER, *password(tmp_path), "--list")
    assert (code, out.split()) == (74, ["fine", "good", "wrong", "content"])


def test_damaged_packs(run: Run, tmp_path: Path) -> None:
    store = filled(tmp_path / "store", lambda made: made.put({"bad": os.urandom(2000), "good": b"good"}))
    largest = max((path for path in (tmp_path / "store" / "packs").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(500)
        file.write(b"damage")
    code, _, err = run("decrypt", *store, FOLDER, *password(tmp_path), "--to", tmp_path / "out")
    assert (code, "out/bad: " in err, (tmp_path / "out" / "good").exists()) == (74, True, True)


@pytest.mark.parametrize("name", ["../escape", "/escape", "a/../../escape", "."])
def test_names_stay_inside(run: Run, tmp_path: Path, name: str) -> None:
    async def fill(made: Vault) -> None:
        real = made.plain("harmless", b"data")
        info = pb.FileInfo.FromString(real.wire)
        info.name = name
        info.blocks.add(size=4, hash=real.block_hashes)
        await made.commit([(replace(real, name=name), b"data", made.received(made.cipher.encrypt_item(info.SerializeToString())))])
        await made.put({"good": b"good"})

    store = filled(tmp_path / "store", fill)
    code, _, err = run("decrypt", *store, FOLDER, *password(tmp_path), "--to", tmp_path / "deep" / "out")
    assert (code, "a file name is refused" in err) == (74, True)
    assert list((tmp_path / "deep").rglob("*")) == [tmp_path / "deep" / "out", tmp_path / "deep" / "out" / "good"]
    assert not Path("/escape").exists()


def test_nothing_is_written_through_a_symlink(run: Run, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    store = filled(tmp_path / "store", lambda made: made.put({"link": str(tmp_path / "outside"), "link/file": b"data", "good": b"good"}))
    code, _, _ = run("decrypt", *store, FOLDER, *password(tmp_path), "--to", tmp_path / "out")
    assert list((tmp_path / "outside").iterdir()) == []
    assert (tmp_path / "out" / "good").read_bytes() == b"good"
    assert code != 0 or not (tmp_path / "out" / "link").is_symlink()


def test_as_it_was(run: Run, tmp_path: Path) -> None:
    times: list[int] = []

    async def fill(made: Vault) -> None:
        times.append(await made.put({"a": b"first", "b": b"b"}))
        await made.put({"a": b"second"})
        await made.delete("b")

    store = filled(tmp_path / "store", fill)
    for more, content in ((("--at", times[0]), {"a": b"first", "b": b"b"}), ((), {"a": b"second"})):
        out = tmp_path / f"out {len(content)}"
        assert run("decrypt", *store, FOLDER, *password(tmp_path), "--to", out, *more)[0] == 0
        assert {path.name: path.read_bytes() for path in out.iterdir()} == content


def test_commands_of_a_node(run: Run, tree: tuple[str, ...], tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    assert run(*home, "init", *tree)[0] == 0
    given = password(tmp_path)
    code, out, _ = run(*home, "ls", FOLDER, *given)
    assert (code, out.splitlines()) == (0, ["dir/", "dir.txt", "link", "sizes/"])
    code, out, _ = run(*home, "ls", "-R", f"{FOLDER}/sizes", *given)
    assert (code, len(out.splitlines())) == (0, len(SIZES))
    assert run(*home, "cat", f"{FOLDER}/dir.txt", f"{FOLDER}/sizes/0", *given)[:2] == (0, "sorts between dir and what is in it")
    code, _, err = run(*home, "get", FOLDER, tmp_path / "out", *given)
    assert (code, "got 14 files" in err) == (0, True)
    assert run(*home, "ls", FOLDER, *password(tmp_path, "wrong"))[0] == 77
    for command in (("ls", "plain"), ("cat", "plain/a"), ("get", "plain", tmp_path / "plain")):
        code, _, err = run(*home, *command, *given)
        assert (code, "not encrypted" in err) == (64, True)
    assert run(*home, "ls", *given)[0] == 64

    code, out, _ = run(*home, "ls", FOLDER)
    assert code == 0
    assert all(line.endswith(".syncthing-enc/") for line in out.splitlines())
    top = out.splitlines()[0]
    code, out, _ = run(*home, "ls", "-l", f"{FOLDER}/{top}")
    assert (code, all(len(line.split()[-1]) == 3 for line in out.splitlines())) == (0, True)
    code, out, _ = run(*home, "ls", "-R", "--json", FOLDER)
    encrypted = [entry for entry in json.loads(out) if entry["type"] == "file"]
    assert len(json.loads(out)) == len(TREE)
    code, out, _ = run(*home, "ls", encrypted[0]["path"])
    assert (code, out.strip()) == (0, encrypted[0]["path"].rpartition("/")[2])
    code, _, err = run(*home, "get", FOLDER, tmp_path / "sealed")
    assert (code, "--password-file" in err, (tmp_path / "sealed").exists()) == (77, True, False)
    assert run(*home, "restore", FOLDER, "--at", "1s", "--to", tmp_path / "sealed")[0] == 77
    assert run(*home, "get", encrypted[0]["path"], tmp_path / "sealed")[0] == 0
    assert (tmp_path / "sealed").stat().st_size == encrypted[0]["size"]


def test_an_export_has_what_syncthing_keeps(run: Run, tmp_path: Path) -> None:
    made: list[Vault] = []

    async def fill(opened: Vault) -> None:
        made.append(opened)
        await opened.put(TREE)
        await opened.put({"gone": b"gone"})
        await opened.delete("gone")

    store = filled(tmp_path / "store", fill)
    cipher = made[0].cipher
    code, out, err = run("export", *store, FOLDER, "--format", "syncthing", "--to", tmp_path / "out", "--json")
    assert (code, err) == (0, "")
    files = {name: content for name, content in TREE.items() if isinstance(content, bytes)}
    assert json.loads(out)["files"] == len(files)
    token = json.loads((tmp_path / "out" / ".stfolder" / "syncthing-encryption_password_token").read_text())
    assert list(token) == ["FolderID", "Token"]
    for name, content in TREE.items():
        path = tmp_path / "out" / cipher.encrypt_name(name)
        if not isinstance(content, bytes):
            assert path.is_dir()
            continue
        data = path.read_bytes()
        size = int.from_bytes(data[-4:], "big")
        info = made[0].received(data[-4 - size : -4])
        message = pb.FileInfo.FromString(data[-4 - size : -4])
        assert (info.name, info.type, info.size) == (cipher.encrypt_name(name), FileType.FILE, len(data) - 4 - size)
        assert [block.size for block in message.blocks][-1] == max(len(content) % BLOCK or min(len(content), BLOCK), 1024) + OVERHEAD
        real = cipher.decrypt_item(info)
        assert (real.name, real.size) == (name, len(content))
        plain = cipher.file(name).unseal_block(data[: message.blocks[0].size], min(len(content), BLOCK))
        assert plain is not None
        assert bytes(plain) == content[:BLOCK]
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == len(files) + 1
    code, out, _ = run("export", *store, FOLDER, "--format", "syncthing", "--to", tmp_path / "out", "--json")
    assert json.loads(out) == {"files": 0, "bytes": 0, "skipped": len(files), "failed": 0}
