"""A store around a store that fails as real ones do, by the environment's randomness: for the simulation and tests.

What each fault means to the caller follows the contract in `base.py`: a lost request and a lost response look the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from stnode.clock import Env
from stnode.errors import StnodeError, Unavailable, UnknownOutcome
from stnode.objectstore.base import Blob, Buffer, IfMatch, Key, Meta, Mode, ObjectStore, PutResult
from stnode.objectstore.wrappers import Wrapper

T = TypeVar("T")

CrashPoint = Callable[[str, Key, str], None]
"""Called with the operation (`get`, `put`, `head`, `delete`), its key, and `before` or `after`; raises to crash the node there."""


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Probabilities from 0 to 1, each drawn for itself in the order of the fields; times in seconds (from, to)."""

    unreachable: float = 0.0
    """Connection refused: surely nothing happened."""
    busy: float = 0.0
    """503 with Retry-After: surely nothing happened."""
    lost_request: float = 0.0
    """Timeout; nothing happened."""
    late_write: float = 0.0
    """Timeout of a write, which happens later, perhaps after the caller is dead."""
    lost_response: float = 0.0
    """Timeout; it happened."""
    undecided: float = 0.0
    """409 to a conditional write, which happens or not with even chance."""
    truncated: float = 0.0
    """A get's body ends early."""
    bit_flip: float = 0.0
    """A get's data has one wrong bit."""
    latency_s: tuple[float, float] = (0.0, 0.0)
    late_s: tuple[float, float] = (1.0, 60.0)
    retry_after_s: tuple[float, float] = (0.1, 5.0)


class Faulty(Wrapper):
    """`plan` may be replaced at any time: `Faulty.plan = FaultPlan()` heals the store. Late writes are this object's tasks; `settle`
    waits for them, `close` too."""

    def __init__(self, inner: ObjectStore, env: Env, plan: FaultPlan, crash: CrashPoint | None = None) -> None:
        super().__init__(inner)
        self.plan = plan
        self._env = env
        self._crash = crash
        self._late: set[asyncio.Task[None]] = set()

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        blob = await self._read("get", key, lambda: self.inner.get(key, start, length))
        if self._happens(self.plan.truncated):
            raise Unavailable(f"the body of {key} ended early")
        if blob.data and self._happens(self.plan.bit_flip):
            damaged = bytearray(blob.data)
            bit = self._env.random.uint64() % (8 * len(damaged))
            damaged[bit // 8] ^= 1 << bit % 8
            blob = replace(blob, data=bytes(damaged))
        return blob

    async def head(self, key: Key) -> Meta:
        return await self._read("head", key, lambda: self.inner.head(key))

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        frozen = [bytes(part) for part in data]
        return await self._write("put", key, lambda: self.inner.put(key, frozen, mode), mode is not Mode.OVERWRITE)

    async def delete(self, key: Key) -> None:
        await self._write("delete", key, lambda: self.inner.delete(key), conditional=False)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        await self._arrive(prefix)
        if self._happens(self.plan.lost_request):
            raise Unavailable(f"no answer to the listing of {prefix}")
        async for meta in self.inner.list(prefix, start_after=start_after):
            yield meta
            if self._happens(self.plan.truncated / 100):
                raise Unavailable(f"the listing of {prefix} ended early")

    async def settle(self) -> None:
        """Waits until every late write has happened."""
        while self._late:
            await asyncio.wait(self._late)

    async def close(self) -> None:
        await self.settle()
        await self.inner.close()

    async def _read(self, operation: str, key: Key, call: Callable[[], Awaitable[T]]) -> T:
        self._reach(operation, key, "before")
        await self._arrive(key)
        if self._happens(self.plan.lost_request) or self._happens(self.plan.lost_response):
            raise Unavailable(f"no answer to {operation} {key}")
        result = await call()
        self._reach(operation, key, "after")
        return result

    async def _write(self, operation: str, key: Key, call: Callable[[], Awaitable[T]], conditional: bool) -> T:
        self._reach(operation, key, "before")
        await self._arrive(key)
        if self._happens(self.plan.lost_request):
            raise UnknownOutcome(f"no answer to {operation} {key}")
        if self._happens(self.plan.late_write):
            self._do_later(operation, key, call)
            raise UnknownOutcome(f"no answer to {operation} {key}")
        if conditional and self._happens(self.plan.undecided):
            if self._happens(0.5):
                await call()
            raise UnknownOutcome(f"409 to {operation} {key}")
        result = await call()
        self._reach(operation, key, "after")
        if self._happens(self.plan.lost_response):
            raise UnknownOutcome(f"no answer to {operation} {key}")
        return result

    async def _arrive(self, what: str) -> None:
        if self.plan.latency_s[1] > 0:
            await self._env.clock.sleep(self._env.random.uniform(*self.plan.latency_s))
        if self._happens(self.plan.unreachable):
            raise Unavailable(f"connection refused for {what}")
        if self._happens(self.plan.busy):
            raise Unavailable(f"503 to {what}", retry_after_s=self._env.random.uniform(*self.plan.retry_after_s))

    def _do_later(self, operation: str, key: Key, call: Callable[[], Awaitable[T]]) -> None:
        delay_s = self._env.random.uniform(*self.plan.late_s)

        async def happen() -> None:
            await self._env.clock.sleep(delay_s)
            with suppress(StnodeError):  # nobody is left to hear that the late write was refused
                await call()

        task = self._env.spawn(happen(), f"late {operation} {key}")
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    def _reach(self, operation: str, key: Key, when: str) -> None:
        if self._crash is not None:
            self._crash(operation, key, when)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._env.random.uniform(0, 1) < probability
