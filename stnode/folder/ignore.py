"""Ignore patterns as in .stignore (bep-facts 13), and the names that are never synced whatever the patterns say (9.2).

Lines become regular expressions: a line covers what its pattern matches and all below; without a leading slash at any depth. The first
matching line decides. `#include` lines are replaced by the files' lines before (`expand`), because they lie in the store while a
matcher is pure; the result is what a folder's settings keep, so that all nodes agree.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from stnode.errors import Invalid, NotFound
from stnode.protocol.fileinfo import normalize
from stnode.repo.settings import FolderSettings

INTERNAL_ROOTS: Final = frozenset({".stfolder", ".stignore", ".stversions"})
TEMPORARY_PREFIXES: Final = (".syncthing.", "~syncthing~")

_INCLUDE: Final = "#include"
_ESCAPE: Final = "#escape"
_CACHED_NAMES: Final = 10_000


def is_internal(name: str) -> bool:
    """True for the marker, ignore file and versions at the folder's root with all below them, and for temporary files anywhere."""
    if name.startswith(".st") and name.partition("/")[0] in INTERNAL_ROOTS:
        return True
    return "syncthing" in name and name.rpartition("/")[2].startswith(TEMPORARY_PREFIXES)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the patterns say of one name. `deletable`: an ignored item that may go when it is all that keeps a directory."""

    ignored: bool = False
    deletable: bool = False


_KEPT = Verdict()
_INTERNAL = Verdict(ignored=True)


class Matcher:
    """Decides for names: clean relative paths, NFC. Pure; results of recent names are kept."""

    def __init__(self, rules: Sequence[tuple[Verdict, bool, re.Pattern[str]]]) -> None:
        self._rules = rules
        self.match = lru_cache(_CACHED_NAMES)(self._match) if rules else _match_internal
        self.ignores: Callable[[str], bool] = self._ignores if rules else is_internal

    def _ignores(self, name: str) -> bool:
        return self.match(name).ignored

    def _match(self, name: str) -> Verdict:
        if is_internal(name):
            return _INTERNAL
        lower = name.lower()
        for verdict, folded, pattern in self._rules:
            if pattern.fullmatch(lower if folded else name):
                return verdict
        return _KEPT


def _match_internal(name: str) -> Verdict:
    return _INTERNAL if is_internal(name) else _KEPT


def matcher_for(settings: FolderSettings) -> Matcher:
    """The matcher of a folder; a receive-encrypted one has no readable names, so nothing is ignored there."""
    return _NO_PATTERNS if settings.encrypted or not settings.ignore_lines else _parsed(settings.ignore_lines)


@lru_cache(maxsize=64)
def _parsed(lines: tuple[str, ...]) -> Matcher:
    return parse(lines)


def parse(lines: Sequence[str]) -> Matcher:
    """A matcher of lines without `#include`. Raises Invalid that names the line."""
    rules: list[tuple[Verdict, bool, list[str]]] = []
    seen: set[str] = set()
    for number, line in _unescaped(lines, ".stignore"):
        if line in seen or not line or line.startswith("//"):
            continue
        seen.add(line)
        if line.startswith(_INCLUDE):
            raise Invalid(f".stignore line {number}: {line!r} names a file that has not been read", hint="set the patterns again")
        try:
            verdict, folded, pattern = _parse_line(line)
            expression = "|".join(map(_translate, _spread(pattern)))
            re.compile(expression)
        except (ValueError, re.error) as exc:
            raise Invalid(f".stignore line {number}: {line!r}: {exc}", hint="correct the pattern") from exc
        # Neighbours that decide alike are one expression: a folder with a thousand plain lines costs one match.
        if rules and rules[-1][:2] == (verdict, folded):
            rules[-1][2].append(expression)
        else:
            rules.append((verdict, folded, [expression]))
    return Matcher([(verdict, folded, re.compile("|".join(parts), re.DOTALL)) for verdict, folded, parts in rules])


async def expand(lines: Sequence[str], load: Callable[[str], Awaitable[bytes]], source: str = ".stignore") -> list[str]:
    """The lines with those of included files in place of `#include`, the escape character made a backslash. `load(path)` gives a file
    of the folder or raises NotFound. Raises Invalid for a missing file, one that is included twice, and what `parse` refuses."""
    expanded = await _expand(lines, load, source, {source})
    parse(expanded)
    return expanded


async def _expand(lines: Sequence[str], load: Callable[[str], Awaitable[bytes]], source: str, files: set[str]) -> list[str]:
    expanded: list[str] = []
    for number, line in _unescaped(lines, source):
        if not line.startswith(_INCLUDE):
            expanded.append(line)
            continue
        path = _included_path(line, source)
        if not path:
            raise Invalid(f"{source} line {number}: {line!r} names no file of the folder")
        if path in files:
            raise Invalid(f"{source} line {number}: {path} is included twice")
        files.add(path)
        try:
            text = (await load(path)).decode()
        except NotFound as exc:
            raise Invalid(f"{source} line {number}: the included file {path} is not there", hint="create it or remove the line") from exc
        except UnicodeDecodeError as exc:
            raise Invalid(f"{source} line {number}: the included file {path} is not UTF-8") from exc
        expanded += await _expand(text.splitlines(), load, path, files)
    return expanded


def _included_path(line: str, source: str) -> str:
    """Relative to the including file; "" if nothing is named or it lies outside of the folder."""
    parts = source.split("/")[:-1]
    named = line[len(_INCLUDE) :]
    if not named[:1].isspace():
        return ""
    for part in named.strip().split("/"):
        if part == ".." and not parts:
            return ""
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return normalize("/".join(parts))


def _unescaped(lines: Sequence[str], source: str) -> list[tuple[int, str]]:
    """Trimmed lines with their numbers; if the file declares another escape character, as if it had been the backslash."""
    found: list[tuple[int, str]] = []
    escape, seen, patterns = "\\", False, False
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if line.startswith(_ESCAPE):
            name, equals, value = line[len(_ESCAPE) :].partition("=")
            if seen or patterns or name.strip() or not equals or len(value.strip()) != 1:
                raise Invalid(f"{source} line {number}: {line!r} must be the only one, before all patterns, with one character")
            escape, seen = value.strip(), True
            continue
        if line and not line.startswith("//"):
            patterns = patterns or not line.startswith(_INCLUDE)
            if escape != "\\":
                line = line.replace(escape, "\\").replace("\\\\", "\\" + escape)
        found.append((number, line))
    return found


def _parse_line(line: str) -> tuple[Verdict, bool, str]:
    """Prefixes in any order, each at most once; what is left is the pattern."""
    line = normalize(line)
    prefixes = ["!", "(?i)", "(?d)"]
    found: set[str] = set()
    while prefix := next((prefix for prefix in prefixes if line.startswith(prefix)), ""):
        prefixes.remove(prefix)
        found.add(prefix)
        line = line[len(prefix) :]
    if not line:
        raise ValueError("there is no pattern")
    ignored, folded = "!" not in found, "(?i)" in found
    return Verdict(ignored, ignored and "(?d)" in found), folded, line.lower() if folded else line


def _spread(pattern: str) -> list[str]:
    """The globs that a pattern stands for: also at any depth, also what is below."""
    if pattern.endswith("/"):
        globs = [pattern + "**"]
    elif pattern.endswith("/**"):
        globs = [pattern]
    else:
        globs = [pattern, pattern + "/**"]
    spread = []
    for glob in globs:
        if glob.startswith("/"):
            spread.append(glob[1:])
        elif glob.startswith("**/"):
            spread += [glob, glob[3:]]
        else:
            spread += [glob, "**/" + glob]
    return spread


def _translate(glob: str) -> str:
    """The regular expression of a glob, as Syncthing's library reads it: a brace that is not closed ends with the pattern, a trailing
    escape is nothing. Raises ValueError for a bad set."""
    if (ends := _LITERAL_ENDS.fullmatch(glob)) is not None:
        # The library lets both ends overlap, so that "a/**/b" covers "a/b" too.
        first, last = (re.escape(re.sub(r"\\(.)", r"\1", end)) for end in ends.groups())
        return f"(?={first}).*(?<={last})"
    out: list[str] = []
    depth = at = 0
    while at < len(glob):
        char = glob[at]
        at += 1
        if char == "\\":
            out.append(re.escape(glob[at : at + 1]))
            at += 1
        elif char == "*":
            deep = glob[at : at + 1] == "*"
            at += deep
            out.append(".*" if deep else "[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "[":
            found, at = _translate_set(glob, at)
            out.append(found)
        elif char == "{":
            depth += 1
            out.append("(?:")
        elif char == "," and depth:
            out.append("|")
        elif char == "}" and depth:
            depth -= 1
            out.append(")")
        else:
            out.append(re.escape(char))
    return "".join(out) + ")" * depth


_LITERAL: Final = r"((?:[^*?\[{\\]|\\.)*)"
_LITERAL_ENDS: Final = re.compile(_LITERAL + r"\*\*" + _LITERAL, re.DOTALL)
"""One "**" between two ends without any other special character."""


def _translate_set(glob: str, at: int) -> tuple[str, int]:
    """A set from behind its "[", and where it ends: one range or a list of characters, negated by a "!"."""
    negated = "^" if glob[at : at + 1] == "!" else ""
    at += len(negated)
    if glob[at + 1 : at + 2] == "-":
        low, high, close = glob[at], glob[at + 2 : at + 3], glob[at + 3 : at + 4]
        if close != "]" or low > high:
            raise ValueError("a range is written [a-z], and stands alone in its set")
        return f"[{negated}{re.escape(low)}-{re.escape(high)}]", at + 4
    members: list[str] = []
    while at < len(glob) and glob[at] != "]":
        at += glob[at] == "\\"
        members.append(glob[at : at + 1])
        at += 1
    if not members or at >= len(glob):
        raise ValueError("a set is empty or not closed")
    return f"[{negated}{''.join(map(re.escape, members))}]", at + 1


_NO_PATTERNS: Final = Matcher(())
