"""Work in the background at a bounded rate: requests and bytes per second, so that those who wait for the store do not notice it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from stnode.clock import Clock
from stnode.objectstore.base import Blob, Buffer, IfMatch, Key, Meta, Mode, ObjectStore, PutResult, size_of
from stnode.objectstore.wrappers import LIST_PAGE, Wrapper

BURST_S: Final = 1.0
"""What was not used in so long may be used at once."""


class Throttle:
    """`requests_per_s` and `bytes_per_s`, 0 for no bound."""

    def __init__(self, clock: Clock, requests_per_s: float, bytes_per_s: float) -> None:
        self._clock = clock
        self._requests = requests_per_s
        self._bytes = bytes_per_s
        self._paid_until_s = 0.0

    async def take(self, requests: int, size_bytes: int = 0) -> None:
        """Waits until so much may be done."""
        cost_s = (requests / self._requests if self._requests else 0.0) + (size_bytes / self._bytes if self._bytes else 0.0)
        now = self._clock.monotonic()
        self._paid_until_s = max(self._paid_until_s, now - BURST_S) + cost_s
        if self._paid_until_s > now:
            await self._clock.sleep(self._paid_until_s - now)


class Throttled(Wrapper):
    """An object store that is asked no faster than a throttle allows."""

    def __init__(self, inner: ObjectStore, throttle: Throttle) -> None:
        super().__init__(inner)
        self._throttle = throttle

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        await self._throttle.take(1, length or 0)
        return await self.inner.get(key, start, length)

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        await self._throttle.take(1, size_of(data))
        return await self.inner.put(key, data, mode)

    async def head(self, key: Key) -> Meta:
        await self._throttle.take(1)
        return await self.inner.head(key)

    async def delete(self, key: Key) -> None:
        await self._throttle.take(1)
        await self.inner.delete(key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        number = 0
        async for meta in self.inner.list(prefix, start_after=start_after):
            if number % LIST_PAGE == 0:
                await self._throttle.take(1)
            number += 1
            yield meta
