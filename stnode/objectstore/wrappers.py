"""Object stores around object stores: repeating, limiting and counting requests. `registry.open_store` stacks them:
`Retrying(Limited(Metered(backend)))`, so that each attempt is counted and limited, and no slot is held while waiting to retry.

Faults for tests are `faulty.Faulty`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Self, TypeVar

from stnode.clock import Clock, Env
from stnode.errors import Full, Refused, StnodeError, Unavailable, UnknownOutcome
from stnode.objectstore.base import Blob, Buffer, Capabilities, IfMatch, Key, Meta, Mode, ObjectStore, PutResult, size_of
from stnode.objectstore.metrics import Metrics
from stnode.objectstore.options import RetryPolicy

T = TypeVar("T")

LIST_PAGE = 1000
"""Keys that one request of a listing brings, as S3 counts them."""

_LARGE_BYTES = 1 << 20
_DAY_NS = 86_400 * 10**9


class Wrapper:
    """Passes everything on; the base of the wrappers. `inner` is the wrapped store."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        return await self.inner.get(key, start, length)

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        return await self.inner.put(key, data, mode)

    async def head(self, key: Key) -> Meta:
        return await self.inner.head(key)

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        return self.inner.list(prefix, start_after=start_after)

    async def delete(self, key: Key) -> None:
        await self.inner.delete(key)

    async def capabilities(self) -> Capabilities | None:
        return await self.inner.capabilities()

    async def bucket_rules(self) -> tuple[str, ...]:
        """What the bucket's own rules would do to the store, as warnings; nothing for backends without any."""
        ask = getattr(self.inner, "bucket_rules", None)
        return await ask() if ask is not None else ()

    async def close(self) -> None:
        await self.inner.close()


class Retrying(Wrapper):
    """Repeats what failed for now and may be repeated: reads, deletions, overwrites, and creates that surely did not happen.

    A create or IfMatch whose outcome is unknown is never repeated here: `UnknownOutcome` goes to the caller, who reads first.
    `Full` is not repeated either. The last error goes out unchanged when the policy is exhausted."""

    def __init__(self, inner: ObjectStore, env: Env, policy: RetryPolicy, metrics: Metrics) -> None:
        super().__init__(inner)
        self._env = env
        self._policy = policy
        self._metrics = metrics

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        return await self._tried(lambda: self.inner.get(key, start, length))

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        return await self._tried(lambda: self.inner.put(key, data, mode), unknown_too=mode is Mode.OVERWRITE)

    async def head(self, key: Key) -> Meta:
        return await self._tried(lambda: self.inner.head(key))

    async def delete(self, key: Key) -> None:
        await self._tried(lambda: self.inner.delete(key))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        """A listing that broke off starts again and leaves out what it has yielded: no order is promised that it could go on from."""
        yielded: set[str] = set()
        failures = 0
        while True:
            try:
                async for meta in self.inner.list(prefix, start_after=start_after):
                    if meta.key not in yielded:
                        yielded.add(meta.key)
                        failures = 0
                        yield meta
                return
            except Unavailable as error:
                failures += 1
                await self._wait_or_raise(failures, error)

    async def _tried(self, call: Callable[[], Awaitable[T]], *, unknown_too: bool = True) -> T:
        failures = 0
        while True:
            try:
                return await call()
            except Unavailable as error:
                if isinstance(error, UnknownOutcome) and not unknown_too:
                    raise
                failures += 1
                await self._wait_or_raise(failures, error)

    async def _wait_or_raise(self, failures: int, error: Unavailable) -> None:
        policy = self._policy
        asked_s = error.retry_after_s or 0.0
        if isinstance(error, Full) or failures >= policy.attempts or asked_s > policy.retry_after_max_s:
            raise error
        backoff_s = min(policy.cap_s, policy.first_s * 2.0 ** (failures - 1))
        self._metrics.retries += 1
        await self._env.clock.sleep(asked_s + self._env.random.uniform(backoff_s / 2, backoff_s))


class Limited(Wrapper):
    """At most `concurrency` requests at once and `daily_budget` in a UTC day (0 = no limit).

    A quarter of the slots is kept from large transfers (1 MiB and more), so that a commit does not queue behind packs.
    A used up budget gives `Refused` until the day ends: a runaway loop costs a known sum."""

    def __init__(self, inner: ObjectStore, env: Env, concurrency: int, daily_budget: int = 0) -> None:
        super().__init__(inner)
        self._env = env
        self._slots = asyncio.Semaphore(concurrency)
        self._large_slots = asyncio.Semaphore(max(1, concurrency - max(1, concurrency // 4)))
        self._budget = daily_budget
        self._day = 0
        self._used = 0

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        async with await self._slot(large=length is not None and length >= _LARGE_BYTES):
            return await self.inner.get(key, start, length)

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        async with await self._slot(large=size_of(data) >= _LARGE_BYTES):
            return await self.inner.put(key, data, mode)

    async def head(self, key: Key) -> Meta:
        async with await self._slot():
            return await self.inner.head(key)

    async def delete(self, key: Key) -> None:
        async with await self._slot():
            await self.inner.delete(key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        """The slot is held only while the backend works, never while the caller does: it may write between two keys."""
        found = self.inner.list(prefix, start_after=start_after)
        number = 0
        while True:
            async with AsyncExitStack() as held:
                if number % LIST_PAGE == 0:
                    self._spend()
                await held.enter_async_context(self._slots)
                meta = await anext(found, None)
            if meta is None:
                return
            number += 1
            yield meta

    async def _slot(self, *, large: bool = False) -> AsyncExitStack:
        self._spend()
        async with AsyncExitStack() as held:
            if large:
                await held.enter_async_context(self._large_slots)
            await held.enter_async_context(self._slots)
            return held.pop_all()

    def _spend(self) -> None:
        if not self._budget:
            return
        today = self._env.clock.now_ns() // _DAY_NS
        if today != self._day:
            self._day, self._used = today, 0
        if self._used >= self._budget:
            raise Refused(
                f"the store's budget of {self._budget} requests a day is used up until midnight UTC",
                hint="Raise store.daily_request_budget, or find out what asks so often: `stnode bucket stats`.",
            )
        self._used += 1


class Metered(Wrapper):
    """Counts each request with its outcome, seconds and bytes in a `Metrics`."""

    def __init__(self, inner: ObjectStore, env: Env, metrics: Metrics) -> None:
        super().__init__(inner)
        self._clock = env.clock
        self._metrics = metrics

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        with self._measured("get") as measured:
            blob = await self.inner.get(key, start, length)
            measured.bytes_in = len(blob.data)
            return blob

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        operation = "replace" if isinstance(mode, IfMatch) else "create" if mode is Mode.CREATE else "put"
        with self._measured(operation) as measured:
            measured.bytes_out = size_of(data)
            return await self.inner.put(key, data, mode)

    async def head(self, key: Key) -> Meta:
        with self._measured("head"):
            return await self.inner.head(key)

    async def delete(self, key: Key) -> None:
        with self._measured("delete"):
            await self.inner.delete(key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        """One request for each started thousand keys; seconds are those until its first key."""
        found = self.inner.list(prefix, start_after=start_after)
        number = 0
        while True:
            if number % LIST_PAGE == 0:
                with self._measured("list"):
                    meta = await anext(found, None)
            else:
                meta = await anext(found, None)
            if meta is None:
                return
            number += 1
            yield meta

    def _measured(self, operation: str) -> _Measured:
        return _Measured(self._metrics, self._clock, operation)


class _Measured:
    """One request being measured."""

    def __init__(self, metrics: Metrics, clock: Clock, operation: str) -> None:
        self._metrics = metrics
        self._clock = clock
        self._operation = operation
        self.bytes_in = 0
        self.bytes_out = 0

    def __enter__(self) -> Self:
        self._metrics.in_flight += 1
        self._started = self._clock.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._metrics.in_flight -= 1
        outcome = "ok" if error is None else type(error).__name__ if isinstance(error, StnodeError) else "broken-off"
        seconds = self._clock.monotonic() - self._started
        self._metrics.add(self._operation, outcome, seconds, self.bytes_in, self.bytes_out)
