"""An object store in memory with the strict contract: for the simulation and for tests of what lies above.

Every call is one indivisible step after one turn of the loop; faults, latency and loss are `faulty.Faulty` around it.
Several nodes of a simulation share one MemoryStore: `close` ends nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from stnode.clock import Env
from stnode.errors import NotFound
from stnode.objectstore.base import (
    Blob,
    Buffer,
    Capabilities,
    Exists,
    IfMatch,
    Key,
    Meta,
    Mode,
    PutResult,
    beyond_end,
    check_key,
    check_prefix,
    check_range,
)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as it lies in the store."""

    data: bytes
    etag: str
    modified_ns: int


class MemoryStore:
    """ETags are never used twice in one store; Last-Modified and Date come from the environment's clock."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._objects: dict[str, StoredObject] = {}
        self._versions = 0

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        ranged = check_range(check_key(key), start, length)
        await self._turn()
        stored = self._stored(key)
        data = stored.data
        if ranged:
            if start >= len(data):
                raise beyond_end(key, start, len(data))
            data = data[start : None if length is None else start + length]
        return Blob(self._meta(key, stored), data)

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        check_key(key)
        joined = b"".join(data)
        await self._turn()
        old = self._objects.get(key)
        if mode is Mode.CREATE and old is not None:
            raise Exists(f"{key} exists")
        if isinstance(mode, IfMatch) and (old is None or old.etag != mode.etag):
            raise Exists(f"{key} was changed: it has not the ETag {mode.etag}")
        self._versions += 1
        now_ns = self._env.clock.now_ns()
        self._objects[key] = StoredObject(joined, f'"{self._versions:x}"', now_ns)
        return PutResult(self._objects[key].etag, now_ns)

    async def head(self, key: Key) -> Meta:
        check_key(key)
        await self._turn()
        return self._meta(key, self._stored(key))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        check_prefix(prefix)
        await self._turn()
        for key in sorted(name for name in self._objects if name.startswith(prefix) and name > start_after):
            if (stored := self._objects.get(key)) is not None:
                yield self._meta(key, stored)

    async def delete(self, key: Key) -> None:
        check_key(key)
        await self._turn()
        self._objects.pop(key, None)

    async def capabilities(self) -> Capabilities:
        return Capabilities(create_if_absent=True, if_match=True, name="memory")

    async def close(self) -> None:
        """Nothing to close: the objects stay for the other users of this store."""

    def snapshot(self) -> dict[str, StoredObject]:
        """The whole content now, as a backup of the bucket would hold it."""
        return dict(self._objects)

    def restore(self, content: dict[str, StoredObject]) -> None:
        """Puts a snapshot back, as an operator restores a bucket. Later ETags still differ from all earlier ones."""
        self._objects = dict(content)

    async def _turn(self) -> None:
        await self._env.clock.sleep(0)

    def _stored(self, key: str) -> StoredObject:
        stored = self._objects.get(key)
        if stored is None:
            raise NotFound(f"{key} does not exist")
        return stored

    def _meta(self, key: str, stored: StoredObject) -> Meta:
        return Meta(Key(key), len(stored.data), stored.etag, stored.modified_ns, self._env.clock.now_ns())
