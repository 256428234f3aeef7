"""The object store's interface and its contract: keys and bytes, nothing of what they mean.

Contract (every backend passes `tests/conformance/test_objectstore.py`):
- `put` is atomic: a reader sees the whole object or none; when it returns the object is durable and every later `get`,
  `head` and `list` shows it. An interrupted put leaves no readable object.
- `put(mode=CREATE)` succeeds for exactly one caller per key; others get `Exists`. A `put` whose fate is not known raises
  `UnknownOutcome`; it may still take effect later.
- `put(mode=IfMatch)` replaces exactly the version that has this ETag; a changed or missing object gives `Exists`.
- `get` of a missing key raises `NotFound`; a range that starts at or after the end gives `Invalid`; a range that passes the end is cut.
  Without `start` and `length` the whole object is read, also an empty one.
- `delete` of a missing key succeeds. A deletion is durable when it returns.
- `list` yields keys that start with `prefix` and are greater than `start_after`, each once, while nothing writes there. Keys of one
  directory (all up to the last `/` equal) come in ascending order; no order is promised across directories, so `start_after` is
  useful within one. A key and a key below it (`a` and `a/b`) must not both be used: file systems cannot hold them.
- A key of a wrong shape gives `Invalid` before anything is asked of the store.
- `Unavailable` from a write says that it did not happen; `UnknownOutcome` says that nobody knows.
- Errors are those of `stnode.errors` only: `NotFound`, `Exists`, `Unavailable` (retry), `UnknownOutcome` (look first), `Refused`
  (rights, bucket), `Archived`, `Full`, `Corrupt`, `Invalid`.
- `capabilities` answers without asking the store: None where only trying tells what it can do (`probe.py`).
- A backend makes exactly one attempt per call; retrying is a wrapper's work (`wrappers.py`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NewType, Protocol

from stnode.errors import Conflict, Invalid

Key = NewType("Key", str)
"""A key below the store's prefix: `[0-9a-z_.-]` and `/`, no empty or dot-only parts, no leading or trailing `/`."""

Buffer = bytes | bytearray | memoryview

_PART = r"(?!\.+(?:/|$))[0-9a-z_.-]+"
_KEY = re.compile(rf"{_PART}(?:/{_PART})*")
_PREFIX = re.compile(rf"(?:{_PART}/)*(?:[0-9a-z_.-]*)")
_KEY_CHARACTERS_MAX = 900


class Exists(Conflict):
    """A create found the key taken, or an IfMatch found another ETag."""


class Mode(Enum):
    """What `put` does when the key exists: replace it, or fail with `Exists`."""

    OVERWRITE = "overwrite"
    CREATE = "create"


@dataclass(frozen=True, slots=True)
class IfMatch:
    """Replace only if the stored object has this ETag, else `Exists`."""

    etag: str


@dataclass(frozen=True, slots=True)
class Meta:
    """What the store says of an object. Times are Unix nanoseconds; `date_ns` is the store's own clock at its answer."""

    key: Key
    size_bytes: int
    etag: str
    modified_ns: int
    date_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Blob:
    """An object's bytes, or the range of them that was asked for; `meta.size_bytes` is the whole object's size."""

    meta: Meta
    data: bytes


@dataclass(frozen=True, slots=True)
class PutResult:
    """`etag` of the stored object and the store's clock at its answer (Unix ns), None where it sends none."""

    etag: str
    date_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the backend can do, by its construction or found by probing, never by a vendor's name."""

    create_if_absent: bool
    if_match: bool
    name: str = ""
    warnings: tuple[str, ...] = ()


class ObjectStore(Protocol):
    """Seven methods. `data` is a sequence of buffers, stored back to back (a single buffer is a sequence of one)."""

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob: ...
    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult: ...
    async def head(self, key: Key) -> Meta: ...
    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]: ...
    async def delete(self, key: Key) -> None: ...
    async def capabilities(self) -> Capabilities | None: ...
    async def close(self) -> None: ...


def check_key(key: str) -> Key:
    """The key itself if it has the one allowed shape, else `Invalid`. Path escapes and store quirks end here.

    900 characters leave room for the store's own prefix within the 1,024 bytes that S3 allows."""
    if not is_key(key):
        raise Invalid(f"not a key of the object store: {key[:200]!r}")
    return Key(key)


def is_key(text: str) -> bool:
    """Whether this is a key."""
    return len(text) <= _KEY_CHARACTERS_MAX and _KEY.fullmatch(text) is not None


def check_prefix(prefix: str) -> str:
    """The prefix itself if keys can start with it ('' for all, may end with '/' or within a part), else `Invalid`."""
    if len(prefix) > _KEY_CHARACTERS_MAX or _PREFIX.fullmatch(prefix) is None:
        raise Invalid(f"not a prefix of keys: {prefix[:200]!r}")
    return prefix


def check_range(key: str, start: int, length: int | None) -> bool:
    """True when a range is asked for, False for the whole object; a range that no object can have gives `Invalid`."""
    if start < 0 or (length is not None and length <= 0):
        raise Invalid(f"no such range of {key}: start {start}, length {length}")
    return start > 0 or length is not None


def beyond_end(key: str, start: int, size_bytes: int) -> Invalid:
    """The error for a range that starts at or after the object's end."""
    return Invalid(f"range of {key} starts at {start}, the object has {size_bytes} bytes")


def size_of(data: Sequence[Buffer]) -> int:
    """Bytes in all buffers together."""
    return sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in data)
