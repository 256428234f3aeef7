"""ls, cat, get, put, rm, mv, mkdir against a fake node."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from stnode.frontends.cli import download, files
from stnode.node.service import Entry
from tests.support.fake_service import FakeService
from tests.unit.cli.conftest import Cli

WHEN = 1_600_000_000_987_654_321


def store(fake: FakeService, path: str, data: bytes = b"x", permissions: int | None = 0o640) -> None:
    parent = path.rpartition("/")[0]
    while "/" in parent:
        fake.entries.setdefault(parent, Entry(parent, "directory", modified_ns=WHEN, permissions=0o750, revision="d"))
        parent = parent.rpartition("/")[0]
    fake.entries[path] = Entry(path, "file", len(data), WHEN, permissions, revision=f"r{len(data)}")
    fake.contents[path] = data


def tree(path: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for item in sorted(path.rglob("*")):
        name, status = str(item.relative_to(path)), item.lstat()
        if item.is_symlink():
            found[name] = ("symlink", str(item.readlink()))
        elif item.is_dir():
            found[name] = ("directory", stat.S_IMODE(status.st_mode), status.st_mtime_ns)
        else:
            found[name] = (item.read_bytes(), stat.S_IMODE(status.st_mode), status.st_mtime_ns)
    return found


def test_ls(cli: Cli, fake: FakeService) -> None:
    store(fake, "docs/a/b.txt", b"abc")
    fake.entries["docs/link"] = Entry("docs/link", "symlink", modified_ns=WHEN, target="a/b.txt")
    assert cli("ls").out == "docs/\n"
    assert cli("ls", "docs").out == "a/\nlink\n"
    assert cli("ls", "-R", "My docs").out == "a/\na/b.txt\nlink\n"
    assert cli("ls", "-R", "docs/a/").out == "b.txt\n"
    long = cli("ls", "-l", "docs/a/b.txt").out
    assert long.startswith("-rw-r-----")
    assert "  3  2020-09-" in long
    assert "link -> a/b.txt" in cli("ls", "-l", "docs").out
    listed = json.loads(cli("ls", "--json", "-R", "docs").out)
    assert [entry["path"] for entry in listed] == ["docs/a", "docs/a/b.txt", "docs/link"]
    assert listed[1]["modified_ns"] == WHEN
    assert json.loads(cli("ls", "--json", "docs/link").out)[0]["target"] == "a/b.txt"


def test_ls_does_not_let_names_steer_the_terminal(cli: Cli, fake: FakeService) -> None:
    store(fake, "docs/\x1b[31mred\n")
    assert cli("ls", "docs").out == "?[31mred?\n"


def test_ls_of_many_pages(cli: Cli, fake: FakeService) -> None:
    for number in range(2500):
        store(fake, f"docs/{number:05}")
    assert cli("ls", "docs").out.count("\n") == 2500
    assert len(json.loads(cli("ls", "--json", "docs").out)) == 2500


def test_cat(cli: Cli, fake: FakeService) -> None:
    store(fake, "docs/a", b"one\n")
    store(fake, "docs/b", b"two\n")
    assert cli("cat", "docs/a", "docs/b").out == "one\ntwo\n"
    missing = cli("cat", "docs/none")
    assert (missing.code, missing.out) == (66, "")
    assert "docs/none" in missing.err


def test_get_a_tree_restores_times_and_modes(cli: Cli, fake: FakeService, tmp_path: Path) -> None:
    store(fake, "docs/sub/deep/f", b"content")
    store(fake, "docs/g", b"", permissions=0o600)
    fake.entries["docs/sub/ro"] = Entry("docs/sub/ro", "directory", modified_ns=WHEN, permissions=0o555)
    fake.entries["docs/sub/ro/x"] = Entry("docs/sub/ro/x", "file", 1, WHEN, 0o444)
    fake.contents["docs/sub/ro/x"] = b"x"
    fake.entries["docs/link"] = Entry("docs/link", "symlink", modified_ns=WHEN, target="../out/side")
    out = tmp_path / "out"
    result = cli("get", "docs", out)
    assert result.code == 0, result.err
    assert tree(out) == {
        "g": (b"", 0o600, WHEN),
        "link": ("symlink", "../out/side"),
        "sub": ("directory", 0o750, WHEN),
        "sub/deep": ("directory", 0o750, WHEN),
        "sub/deep/f": (b"content", 0o640, WHEN),
        "sub/ro": ("directory", 0o555, WHEN),
        "sub/ro/x": (b"x", 0o444, WHEN),
    }
    again = cli("get", "docs", out)
    assert again.code == 0, again.err
    assert "got 0 files" in again.err
    assert "4 were there already" in again.err


def test_get_again_fetches_what_differs_and_sets_a_changed_mode(cli: Cli, fake: FakeService, tmp_path: Path) -> None:
    store(fake, "docs/a", b"aaa")
    store(fake, "docs/b", b"bbb")
    cli("get", "docs", tmp_path / "out")
    (tmp_path / "out" / "a").write_bytes(b"changed here")
    store(fake, "docs/b", b"bbb", permissions=0o600)
    assert "got 1 file," in cli("get", "docs", tmp_path / "out").err
    assert tree(tmp_path / "out") == {"a": (b"aaa", 0o640, WHEN), "b": (b"bbb", 0o600, WHEN)}


def test_get_one_file(cli: Cli, fake: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(fake, "docs/a/f", b"abc")
    monkeypatch.chdir(tmp_path)
    assert cli("get", "docs/a/f").code == 0
    assert cli("get", "docs/a/f", "new/name").code == 0
    (tmp_path / "dir").mkdir()
    assert cli("get", "docs/a/f", "dir").code == 0
    assert [(tmp_path / name).read_bytes() for name in ("f", "new/name", "dir/f")] == [b"abc"] * 3


def test_get_tells_each_path_that_failed(cli: Cli, fake: FakeService, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        store(fake, f"docs/{name}", b"x")
    store(fake, "docs/d/e", b"x")
    out = tmp_path / "out"
    (out / "a" / "inside").mkdir(parents=True)
    (out / "d").write_text("in the way")
    del fake.contents["docs/b"]
    fake.entries["docs/b"] = Entry("docs/b", "file", 5, WHEN)
    fake.contents["docs/b"] = b"short"[:3]
    result = cli("get", "docs", out)
    assert result.code == 65
    assert f"{out}/a is a directory here" in result.err
    assert "docs/b: 3 bytes came instead of 5" in result.err
    assert f"{out}/d is no directory here" in result.err
    assert (out / "c").read_bytes() == b"x"
    assert sorted(path.name for path in out.iterdir()) == ["a", "c", "d"]


def test_get_never_leaves_its_target(cli: Cli, fake: FakeService, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "way").symlink_to(outside)
    store(fake, "docs/way/f", b"x")
    fake.entries["docs/../../outside/g"] = Entry("docs/../../outside/g", "file", 1, WHEN)
    fake.contents["docs/../../outside/g"] = b"x"
    result = cli("get", "docs", out)
    assert result.code != 0
    assert "no name for a local file" in result.err
    assert list(outside.iterdir()) == []


def test_get_goes_on_with_a_large_file(cli: Cli, fake: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FLUSH", 200_000)
    data = os.urandom(1_050_000)
    store(fake, "docs/big", data)
    fake.fail_read_after = 7
    assert cli("get", "docs/big", tmp_path / "big").code == 66
    [part] = tmp_path.glob(".big.*")
    assert part.stat().st_size == 700_000
    part.write_bytes(part.read_bytes() + b"torn tail")
    fake.fail_read_after = None
    result = cli("get", "docs/big", tmp_path / "big")
    assert result.code == 0
    assert (tmp_path / "big").read_bytes() == data
    assert "439.5 KiB" in result.err  # only what was not there
    assert not list(tmp_path.glob(".big.*"))


def test_put_a_tree_and_get_it_back(cli: Cli, fake: FakeService, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "sub" / "f").write_bytes(os.urandom(600_000))
    (source / "ünïcode").write_text("x")
    (source / "link").symlink_to("sub/f")
    for path in (source / "sub" / "f", source / "sub" / "empty", source / "sub"):
        os.utime(path, ns=(WHEN, WHEN))
        path.chmod(0o700)
    result = cli("put", source, "docs/copy")
    assert result.code == 0, result.err
    assert "put 3 files" in result.err
    assert cli("get", "docs/copy", tmp_path / "back").code == 0
    assert tree(tmp_path / "back") == tree(source)
    again = cli("put", source, "docs/copy/")
    assert "put 0 files, 0 B, 3 were there already" in again.err
    (source / "sub" / "f").write_bytes(b"new")
    assert "put 1 file, 3 B" in cli("put", source, "docs/copy").err
    assert fake.contents["docs/copy/sub/f"] == b"new"


def test_put_files(cli: Cli, fake: FakeService, tmp_path: Path) -> None:
    local = tmp_path / "f"
    local.write_bytes(b"abc")
    (tmp_path / "link").symlink_to("f")
    assert cli("put", local, "docs").code == 0
    assert cli("put", local, "docs/new/").code == 0
    assert cli("put", local, "docs/new/name").code == 0
    assert cli("put", tmp_path / "link", "docs/new").code == 0
    assert fake.contents == dict.fromkeys(["docs/f", "docs/new/f", "docs/new/name", "docs/new/link"], b"abc")
    assert cli("put", local, "none").code == 66
    assert cli("put", tmp_path / "none", "docs").code == 64


def test_put_standard_input(cli: Cli, fake: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").write_bytes(b"y" * 300_000)
    with (tmp_path / "in").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert cli("put", "-", "docs/piped").code == 0
    assert fake.contents["docs/piped"] == b"y" * 300_000


def test_put_tells_what_cannot_be_put(cli: Cli, fake: FakeService, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "pipe")
    (source / "good").write_text("x")
    (source / "dir").mkdir()
    store(fake, "docs/dir", b"a file there")
    Path(os.fsdecode(os.fsencode(source) + b"/bad\xff")).write_text("x")
    result = cli("put", source, "docs")
    assert result.code == 64
    assert "pipe is neither file" in result.err
    assert "no UTF-8" in result.err
    assert "docs/dir is no directory" in result.err
    assert "docs/good" in fake.contents


def test_rm_mv_mkdir(cli: Cli, fake: FakeService) -> None:
    assert cli("mkdir", "docs/a/b").code == 66
    assert cli("mkdir", "-p", "docs/a/b").code == 0
    store(fake, "docs/f")
    assert cli("mv", "docs/f", "docs/a").code == 0
    assert cli("mv", "docs/a/f", "docs/a/g").code == 0
    assert "docs/a/g" in fake.contents
    assert cli("mv", "docs", "docs/a").code == 64
    failed = cli("rm", "docs/a", "docs/none")
    assert failed.code == 65
    assert "docs/a" in failed.err
    assert "docs/none" in failed.err
    assert cli("rm", "-r", "docs/a").code == 0
    assert fake.entries == {}


def test_rm_that_is_held_back(cli: Cli, fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_HELD_BACK_S", 0.01)
    fake.hold_deletions = True
    store(fake, "docs/a/f")
    assert cli("rm", "-r", "--yes", "docs/a").code == 0
    assert fake.entries == {}
    fake.confirmed = asyncio.Event()
    store(fake, "docs/a/f")
    monkeypatch.setattr(fake, "stat", confirm_later(fake, fake.stat))
    waited = cli("rm", "-r", "docs/a")
    assert waited.code == 0
    assert waited.err.count("confirm-deletions docs") == 1


def confirm_later(fake: FakeService, stat: Callable[[str], Awaitable[Entry]]) -> Callable[[str], Awaitable[Entry]]:
    """Somebody else confirms at the third look."""
    looks = 0

    async def looked(path: str) -> Entry:
        nonlocal looks
        looks += 1
        if looks == 3:
            fake.confirmed.set()
        return await stat(path)

    return looked
