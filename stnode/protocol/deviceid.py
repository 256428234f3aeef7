"""Device IDs: 32 raw bytes on the wire and in the code, 63 characters for people (bep-facts 1.3). Pure functions."""

from __future__ import annotations

import base64
import hashlib
from typing import NewType

from stnode.errors import Invalid

DeviceID = NewType("DeviceID", bytes)
"""SHA-256 of a device's complete DER certificate; always 32 bytes."""

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_CODEPOINTS = {letter: place for place, letter in enumerate(_ALPHABET)}
_TYPOS = str.maketrans("018", "OIB", "- \t\r\n")
_HINT = "A device ID is eight groups of seven letters and digits; `stnode id` or Syncthing's 'Show ID' shows it."


def from_certificate(der: bytes) -> DeviceID:
    """The ID of the device that holds this certificate (DER, whole)."""
    return DeviceID(hashlib.sha256(der).digest())


def from_bytes(raw: bytes) -> DeviceID:
    """The ID with these 32 raw bytes; Invalid for any other length."""
    if len(raw) != 32:
        raise Invalid(f"a device ID has 32 bytes, not {len(raw)}")
    return DeviceID(bytes(raw))


def parse(text: str) -> DeviceID:
    """The ID that a person typed: with check characters (56) or without (52), any case, dashes and blanks anywhere, 0, 1 and 8
    read as O, I and B. Raises Invalid when it is not an ID or a check character is wrong."""
    letters = text.strip().rstrip("=").upper().translate(_TYPOS)
    if len(letters) == 56:
        letters = _without_checks(letters, text)
    if len(letters) != 52 or not _CODEPOINTS.keys() >= set(letters):
        raise Invalid(f"{text!r} is not a device ID", hint=_HINT)
    return DeviceID(base64.b32decode(letters + "===="))


def format(device: DeviceID) -> str:  # noqa: A001 - the contract's name; always used as deviceid.format
    """The 63 characters that people see: eight groups of seven, joined by dashes."""
    letters = base64.b32encode(device).decode().rstrip("=")
    groups = [letters[start : start + 13] for start in range(0, 52, 13)]
    checked = "".join(group + _check_letter(group) for group in groups)
    return "-".join(checked[start : start + 7] for start in range(0, 56, 7))


def short_id(device: DeviceID) -> int:
    """The first 8 bytes as an unsigned number: the id of version counters and of modified_by."""
    return int.from_bytes(device[:8], "big")


def format_short(short: int) -> str:
    """The seven characters that stand for a short ID in conflict names and logs."""
    return base64.b32encode(short.to_bytes(8, "big")).decode()[:7]


def _without_checks(letters: str, typed: str) -> str:
    groups = [letters[start : start + 14] for start in range(0, 56, 14)]
    for group in groups:
        if not _CODEPOINTS.keys() >= set(group) or _check_letter(group[:13]) != group[13]:
            raise Invalid(f"{typed!r} is not a device ID: a check character does not fit, so something is mistyped", hint=_HINT)
    return "".join(group[:13] for group in groups)


def _check_letter(group: str) -> str:
    """Syncthing's own Luhn variant: left to right, the first factor is 1, digits summed in base 32."""
    total = 0
    for place, letter in enumerate(group):
        addend = _CODEPOINTS[letter] * (1 + place % 2)
        total += addend // 32 + addend % 32
    return _ALPHABET[-total % 32]
