"""Paths of the folder view: relative, clean, NFC, and none of the names that Syncthing keeps for itself."""

from __future__ import annotations

from typing import Final

from stnode.errors import Invalid
from stnode.folder.ignore import is_internal
from stnode.protocol.fileinfo import name_fault, normalize

_LONGEST_PART: Final = 255


def clean(path: str) -> str:
    """The name of an item for a path that a user gave; raises Invalid that says what is wrong with it. "" is the folder itself and
    not a name."""
    name = normalize(path)
    if fault := name_fault(name):
        raise Invalid(f"path {path!r} cannot be used: {fault}", hint="write it relative to the folder, as in photos/2024/a.jpg")
    if "\0" in name or any(0xD800 <= ord(char) < 0xE000 for char in name):
        raise Invalid(f"path {path!r} cannot be used: it has a character that no file system takes")
    if any(len(part.encode()) > _LONGEST_PART for part in name.split("/")):
        raise Invalid(f"path {path!r} cannot be used: a part of it is longer than {_LONGEST_PART} bytes, which devices cannot store")
    if is_internal(name):
        raise Invalid(f"path {path!r} cannot be used: Syncthing keeps this name for itself and never syncs it", hint="choose another name")
    return name


def clean_or_root(path: str) -> str:
    """As `clean`, but "" is allowed."""
    return clean(path) if path else ""


def parents(name: str) -> list[str]:
    """The directories above a name, outermost first."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[: at + 1]) for at in range(len(parts))]
