"""The object store's interface and its contract: keys and bytes, nothing of what they mean.

Contract (every backend passes `tests/conformance/test_objectstore.py`):
- `put` is atomic: a reader sees the whole object or none; when it returns the object is durable and every later `get`,
  `head` and `list` shows it. An interrupted put leaves no readable object.
- `put(mode=CREATE)` succeeds for exactly one caller per key; others get `Exists`. A `put` whose fate is not known raises
  `UnknownOutcome`; it may still take effect later.
- `get` of a missing key raises `NotFound`; a range that starts at or after the end gives `Invalid`; a range that passes the end is cut.
- `delete` of a missing key succeeds.
- `list` yields keys that start with `prefix`, each once; no order is promised across prefixes.
- Errors are those of `stnode.errors` only: `NotFound`, `Exists`, `Unavailable` (retry), `UnknownOutcome` (look first), `Refused`
  (rights, bucket), `Archived`, `Full`, `Corrupt`, `Invalid`.
- A backend makes exactly one attempt per call; retrying is a wrapper's work (`wrappers.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NewType, Protocol

from stnode.errors import Conflict

Key = NewType("Key", str)
"""A key below the store's prefix: `[0-9a-z_.-]` and `/`, no empty or dot-only parts, no leading or trailing `/`."""

Buffer = bytes | bytearray | memoryview


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
    """What the backend can do, found by probing, never by a vendor's name."""

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
    async def capabilities(self) -> Capabilities: ...
    async def close(self) -> None: ...
