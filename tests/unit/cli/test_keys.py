"""`stnode bucket key` on a real store in a directory: what is said, and where passphrases may come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stnode.clock import system_env
from stnode.frontends.cli.app import App
from stnode.frontends.cli.main import run_cli
from stnode.node.connect import check_store, connect, repair_store
from stnode.node.home import Home
from stnode.repo import keyslots
from stnode.repo.keyslots import Cost

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command in a home on an encrypted store; (exit code, output, errors)."""
    monkeypatch.setattr(keyslots, "Cost", lambda *arguments: Cost(*arguments) if arguments else Cost(16, 1, 1))
    for name, text in (("first", "correct horse battery"), ("second", "another good passphrase"), ("weak", "weak")):
        (tmp_path / name).write_text(text + "\n")

    def run(*arguments: str) -> tuple[int, str, str]:
        app = App(connect, check_store, repair_store, system_env, {}, Home(tmp_path / "home"))
        code = run_cli(app, ["--home", str(tmp_path / "home"), *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    assert run("init", "--passphrase-file", str(tmp_path / "first"))[0] == 0
    return run


def test_a_life_of_passphrases(run: Run, tmp_path: Path) -> None:
    first, second, weak = (str(tmp_path / name) for name in ("first", "second", "weak"))
    assert run("bucket", "key", "add", "--label", "safe", "--new-passphrase-file", second)[0] == 0
    code, out, _ = run("bucket", "key", "list", "--json")
    assert (code, [(slot["label"], slot["opened"]) for slot in json.loads(out)]) == (0, [("first", True), ("safe", False)])
    code, _, err = run("bucket", "key", "add", "--new-passphrase-file", weak)
    assert (code, "too weak" in err, "hint: " in err) == (64, True, True)
    code, _, err = run("bucket", "key", "remove", "first")
    assert (code, "could leave none" in err) == (77, True)
    assert run("bucket", "key", "remove", "none")[0] == 66
    assert run("bucket", "key", "remove", "first", "--passphrase-file", second)[0] == 0
    code, _, err = run("status")
    assert (code, "wrong passphrase" in err) == (77, True)
    assert run("bucket", "key", "change", "--passphrase-file", second, "--new-passphrase-file", first)[0] == 0
    assert run("bucket", "key", "list")[1].count("safe") == 1
    assert run("status")[0] == 0


def test_joining_takes_the_passphrase(run: Run, tmp_path: Path) -> None:
    url = (tmp_path / "home" / "store").as_uri()
    assert run("bucket", "stats")[0] == 0
    other = ("--home", str(tmp_path / "other"))
    code, _, err = run(*other, "init", "--join", url)
    assert (code, "encrypted and no passphrase is given" in err, "STNODE_STORE_PASSPHRASE_FILE" in err) == (77, True, True)
    code, _, err = run(*other, "init", "--join", url, "--passphrase-file", str(tmp_path / "second"))
    assert (code, "wrong passphrase" in err, url in err, "another good" in err) == (77, True, True, False)
    assert not (tmp_path / "other" / "config.toml").exists()
    code, out, _ = run(*other, "init", "--join", url, "--passphrase-file", str(tmp_path / "first"))
    assert (code, "0 folders, 0 files" in out) == (0, True)
    assert run(*other, "bucket", "gc")[0] == 0
    assert run(*other, "bucket", "check", "--read-data")[0] == 0
    code, out, _ = run(*other, "bucket", "key", "list", "--json")
    assert (code, len(json.loads(out))) == (0, 1)


def test_without_a_terminal_nobody_is_asked(run: Run, tmp_path: Path) -> None:
    code, _, err = run("bucket", "key", "add")
    assert (code, "no terminal" in err, "--new-passphrase-file" in err) == (77, True, True)
    for file in (str(tmp_path / "none"), "/dev/null"):
        assert run("bucket", "key", "list", "--passphrase-file", file)[0] == 78


def test_a_plain_store_has_no_passphrases(run: Run, tmp_path: Path) -> None:
    plain = str(tmp_path / "plain")
    assert run("--home", plain, "init")[0] == 0
    code, _, err = run("--home", plain, "bucket", "key", "list", "--passphrase-file", str(tmp_path / "first"))
    assert (code, "not encrypted" in err) == (77, True)
    code, _, err = run("--home", str(tmp_path / "x"), "init", "--identity-in-store")
    assert (code, "not encrypted" in err) == (77, True)


def test_a_home_that_is_there_keeps_its_passphrase(run: Run, tmp_path: Path) -> None:
    """What is asked for and cannot be had is said: nobody may take a plain store for an encrypted one."""
    assert run("init", "--passphrase-file", str(tmp_path / "first"))[0] == 0
    code, _, err = run("init", "--passphrase-file", str(tmp_path / "second"))
    assert (code, "not what --passphrase-file asks for" in err) == (78, True)
    plain = ("--home", str(tmp_path / "plain"))
    assert run(*plain, "init")[0] == 0
    code, _, err = run(*plain, "init", "--passphrase-file", str(tmp_path / "first"))
    assert (code, "not what --passphrase-file asks for" in err) == (78, True)
