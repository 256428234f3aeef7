"""Compiled patterns against a plain recursive matcher of the same rules, for globs of stars and literals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stnode.folder import ignore

names = st.lists(st.text("ab.", min_size=1, max_size=3).filter(lambda part: part not in {".", ".."}), min_size=1, max_size=4).map("/".join)
pieces = st.sampled_from(["a", "b", ".", "/", "*", "?", "**"])
globs = (
    st.lists(pieces, min_size=1, max_size=6)
    .map("".join)
    .filter(lambda glob: "***" not in glob and "//" not in glob and not glob.endswith("/"))
)


def matches(glob: str, name: str) -> bool:
    if not glob:
        return not name
    if glob.startswith("**"):
        return any(matches(glob[2:], name[at:]) for at in range(len(name) + 1))
    if glob[0] == "*":
        stop = name.find("/") if "/" in name else len(name)
        return any(matches(glob[1:], name[at:]) for at in range(stop + 1))
    return bool(name) and (glob[0] == name[0] or (glob[0] == "?" and name[0] != "/")) and matches(glob[1:], name[1:])


def covers(pattern: str, name: str) -> bool:
    """Anchored or at any depth, itself or all below; both ends of a single "**" may overlap."""
    below = [pattern] if pattern.endswith("/**") else [pattern, pattern + "/**"]
    spread = (
        [glob[1:] for glob in below]
        if pattern.startswith("/")
        else [*below, *["**/" + glob for glob in below], *[glob.removeprefix("**/") for glob in below]]
    )
    for glob in spread:
        first, deep, last = glob.partition("**")
        overlaps = deep and not set("*?") & set(first + last) and name.startswith(first) and name.endswith(last)
        if overlaps or matches(glob, name):
            return True
    return False


@given(st.lists(st.tuples(st.booleans(), globs), min_size=1, max_size=4), names)
def test_the_first_line_that_covers_a_name_decides(lines: list[tuple[bool, str]], name: str) -> None:
    matcher = ignore.parse([("!" if negated else "") + pattern for negated, pattern in lines])
    expected = next((not negated for negated, pattern in lines if covers(pattern, name)), False)
    assert matcher.ignores(name) == expected
