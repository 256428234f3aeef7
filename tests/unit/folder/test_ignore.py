"""Ignore patterns: what the format says beyond single patterns, which `tests/integration/test_ignore_live.py` compares with real peers."""

from __future__ import annotations

import pytest

from stnode.errors import Invalid, NotFound
from stnode.folder import ignore
from stnode.repo.settings import FolderSettings


def ignored(lines: str, *names: str) -> list[str]:
    matcher = ignore.parse(lines.splitlines())
    return [name for name in names if matcher.ignores(name)]


def test_first_matching_line_decides() -> None:
    lines = "!iex2\n!ign1/ex\nign1\ni*2\n!ign2"
    assert ignored(lines, "ign1", "ibla2", "ign1/ign", "foo/bar/ign1", "ign2") == ["ign1", "ibla2", "ign1/ign", "foo/bar/ign1", "ign2"]
    assert ignored(lines, "iex2", "ign1/ex", "ign1/iex2", "iex2/ign", "other") == []


def test_prefixes_come_in_any_order_and_once() -> None:
    matcher = ignore.parse(["(?d)(?i)!ign1", "(?i)(?d)Ign2", "ign3", "!!ign4"])
    assert matcher.match("IGN1") == ignore.Verdict(False)
    assert matcher.match("x/ign2/y") == ignore.Verdict(True, True)
    assert matcher.match("ign3") == ignore.Verdict(True, False)
    assert matcher.match("!ign4") == ignore.Verdict(False)
    assert matcher.match("ign4") == ignore.Verdict(False)


def test_internal_names_are_ignored_whatever_the_patterns_say() -> None:
    names = [".stfolder", ".stfolder/x", ".stignore", ".stversions/a/b", "a/.syncthing.b.tmp", "~syncthing~b.tmp", ".syncthing.b"]
    assert [name for name in names if ignore.is_internal(name)] == names
    assert ignored("!*", *names) == names
    assert not any(map(ignore.is_internal, ["a/.stfolder", ".stfolders", "x.syncthing.b.tmp", "syncthing", ".syncthing.d/x"]))


def test_names_and_patterns_are_compared_in_nfc() -> None:
    assert ignored("a\u0308*", "\u00e4b") == ["\u00e4b"]


def test_comments_blank_and_double_lines_do_nothing() -> None:
    assert ignored("\n  // foo\n//bar\n   \n", "foo", "bar", "// foo") == []
    assert ignored("!/a\n/*\n!/a", "a", "b") == ["b"]


@pytest.mark.parametrize("escape", ["|", "\u241b"])
def test_another_escape_character(escape: str) -> None:
    assert ignored(f"#escape={escape}\na{escape}*b\nc{escape}{escape}d", "a*b", "axb", f"c{escape}d") == ["a*b", f"c{escape}d"]


@pytest.mark.parametrize("lines", ["#escape=||\na", "a\n#escape=|", "#escape=|\n#escape=|", "#escape\na", "#escape="])
def test_escape_line_out_of_place_is_an_error(lines: str) -> None:
    with pytest.raises(Invalid, match="line"):
        ignore.parse(lines.splitlines())


@pytest.mark.parametrize("bad", ["[", "/[", "[]", "[a-", "[c-a]", "[a-zA-Z]", "!", "(?i)", "(?d)"])
def test_a_bad_pattern_names_its_line(bad: str) -> None:
    with pytest.raises(Invalid, match=r"\.stignore line 3"):
        ignore.parse(["a", "// b", bad])


FILES = {
    "excludes": b"dir2/dfile\n#include sub/further\n",
    "sub/further": b"#escape=|\ndir3\nx|*\n#include ../last",
    "last": "\u00e4\n".encode(),
    "loop": b"#include loop",
    "binary": b"\xff",
}


async def load(path: str) -> bytes:
    try:
        return FILES[path]
    except KeyError:
        raise NotFound(path) from None


async def test_included_files_take_the_place_of_their_line() -> None:
    lines = await ignore.expand(["#include excludes", "bfile", "!dir3", "a\\*"], load)
    assert lines == ["dir2/dfile", "dir3", "x\\*", "\u00e4", "bfile", "!dir3", "a\\*"]
    matcher = ignore.parse(lines)
    assert [name for name in ("dir2/dfile", "dfile", "dir3/x", "x*", "xy", "a*", "x/bfile") if matcher.ignores(name)] == [
        "dir2/dfile", "dir3/x", "x*", "a*", "x/bfile"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a", "#include nowhere"], r"\.stignore line 2: the included file nowhere is not there"),
        (["#include"], "names no file"),
        (["#include ../outside"], "names no file"),
        (["#include loop"], "loop line 1: loop is included twice"),
        (["#include last", "#include last"], "included twice"),
        (["#include binary"], "not UTF-8"),
        (["["], "line 1"),
    ],
)
async def test_what_cannot_be_included(lines: list[str], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        await ignore.expand(lines, load)


def test_encrypted_folders_ignore_nothing_and_includes_must_be_expanded() -> None:
    folder = FolderSettings("f", "aaaaaaaa", 1, ignore_lines=("*",))
    assert ignore.matcher_for(folder).ignores("a")
    assert not ignore.matcher_for(FolderSettings("f", "aaaaaaaa", 1, type="receiveencrypted", ignore_lines=("*",))).ignores("a")
    with pytest.raises(Invalid, match="has not been read"):
        ignore.parse(["#include x"])
