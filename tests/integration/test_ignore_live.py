"""Our ignore patterns against those of a real Syncthing: one folder with awkward names, many pattern lists."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from stnode.errors import Invalid
from stnode.folder import ignore
from tests.support.syncthing import NEW, OLD, SyncthingProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FILES = (
    "a", "b", "ab", "acb", "aab", "abc", "a-b", "a!b", "a^b", "a b", "foo", "Foo", "FOO.TXT", "foo.txt", "foo,bar.txt", "baz.txt", "quux.txt", "bar", "bara",
    "x.part", "x.PART", "d/a", "d/b", "d/ab", "d/e/a", "d/e/foo", "d/e/f/a", "d/foo.txt", "D/a", "ab2/x", "foo.d/x", "foo.d/foo/y", "a]b", "a}b", "a{b", "a[b",
    "a*b", "a?b", "a,b", "a|b", "#hash", "!bang", "(?d)x", "ä", "Äx", "x/y/z/deep", "x/y/z/a", "x/y/foo.txt", "x/keep/this", "x/keep2/that", "back\\slash", "a\\b",
    "-", "a-", "1000春", "200春", "abdir/.syncthing.q.tmp", ".syncthing.x", "~syncthing~y.tmp", ".stversions/v", "d/.stignore", "d/.stfolder/x", "~tilde", "x.y.z",
)  # fmt: skip

# Left out: what is a bug of its library in some versions. Alternatives with wildcards that miss names below ("{a*,b}"), empty braces
# ("a{}b"), "a***b", sets before characters of several bytes.
PATTERNS = (
    (), ("a",), ("/a",), ("a/",), ("d/",), ("/d",), ("d/a",), ("/d/a",), ("**/a",), ("a*",), ("a*b",), ("a**b",), ("a?b",), ("?",), ("*",), ("**",), ("/*",), ("/**",),
    ("/*/",), ("*/",), ("**/",), ("!**/", "*"), ("/",), ("foo",), ("(?i)foo",), ("(?i)FOO.TXT",), ("FOO*",), ("(?i)d",), ("(?i)ä*",), ("foo.txt", "!foo.txt"), ("!foo.txt", "foo*"),
    ("!/x/keep", "/x"), ("!/x/keep", "*"), ("!keep", "/x/*"), ("{foo,bar}",), ("{foo,bar}.txt",), ("foo,bar.txt",), ("{a,b}{a,b,c}",), ("{d/a,x/**}",), ("{a,{b,ab}}",),
    ("[ab]",), ("[a-c]",), ("a[!-]b",), ("[!a]",), ("a[bc]",), ("a[^b]b",), ("a[*?]b",), ("a[-]b",), ("a]b",), ("a}b",), ("a\\*b",), ("a\\?b",), ("a\\{b",), ("a\\[b",),
    ("\\!bang",), ("\\#hash",), ("#hash",), ("back\\\\slash",), ("\\a\\b",), ("a,b",), ("a|b",), ("// a", "b"), ("  b  ",), ("*.part",), ("(?d)*.part",), ("(?d)(?i)*.PART",),
    ("(?i)!foo*", "*"), ("!(?i)foo*", "*"), ("!!foo", "*"), ("(?d)(?d)x",), ("1000?",), ("*春",), ("d/*/a",), ("d/**/a",), ("x/**/a",), ("x/y",), ("y/z",),
    ("*/z/*",), ("~*",), (".*",), ("*.*",), ("*.y.*",), ("d/e/**",), ("**/foo/**",), ("/**/foo",), ("[a-]",), ("-",), ("a-*",), ("/d/?",), ("/d/??",), ("foo.d/foo",),
    ("!a", "!b", "/*"), ("{,a}b",), ("{a}",), ("a**a",), ("d/**/foo",), ("\\*/**/a",), ("a{,c}b",), ("[]a]",), ("a[]]b",), ("(?i)[A-C]",), ("(?i)A*B",), ("//", "a"), ("/a", "/b", "/d/a"), ("*a", "!d/a"),
    ("[a-c]b",), ("[abd-]",), ("a[a\\-c]b",), ("{a\\,b,foo}",), ("a[", ), ("a{b",), ("{a,b",), ("!",), ("(?i)",), ("(?d)",), ("[a-",), ("a\\",), ("[]",), ("[!]",), ("[c-a]",), ("[a-zA-Z]",),
    ("#include",), ("#include missing",), ("x[", "a"), ("{{a}",), ("{}",), ("{a,}",), ("**a",), ("*/a",), ("?/a",), ("[!x]/a",), ("a[!x]b",), ("d?a",), ("d[!x]a",), ("d[/]a",),
)  # fmt: skip


async def _kept(peer: SyncthingProcess) -> set[str]:
    """The files that it has in its index and does not ignore."""
    kept = set()
    for name in FILES:
        with contextlib.suppress(RuntimeError):
            if not (await peer.rest("GET", "db/file", folder="f", file=name))["local"]["invalid"]:
                kept.add(name)
    return kept


@pytest.mark.parametrize("version", [OLD, NEW])
async def test_real_peer_ignores_the_same(tmp_path: Path, version: str) -> None:
    root = tmp_path / "tree"
    for name in FILES:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    differing: list[str] = []
    async with SyncthingProcess(tmp_path / "home", version) as peer:
        await peer.add_folder("f", root, [])
        for lines in PATTERNS:
            (root / ".stignore").write_text("\n".join(lines))
            theirs: set[str] | str
            try:
                await peer.scan("f")
                theirs = await _kept(peer)
            except RuntimeError as exc:
                theirs = f"error {str(exc)[:120]}"
            try:
                matcher = ignore.parse(lines)
                ours: set[str] | str = {name for name in FILES if not matcher.ignores(name)}
            except Invalid as exc:
                ours = f"error {exc.message}"
            if isinstance(ours, str) != isinstance(theirs, str) or (isinstance(ours, set) and ours != theirs):
                more = (
                    f"only we ignore {sorted(theirs - ours)}, only they {sorted(ours - theirs)}"
                    if isinstance(ours, set) and isinstance(theirs, set)
                    else f"{str(ours)[:150]} / {str(theirs)[:200]}"
                )
                differing.append(f"{lines}: {more}")
    assert not differing, "\n".join(differing)
