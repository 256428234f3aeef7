"""Repeating, limiting, counting; what a URL opens; and the faults of the simulation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from stnode.clock import Env, InlineThreads, PoolThreads, SeededRandomness
from stnode.errors import ConfigError, Full, NotFound, Refused, StnodeError, Unavailable, UnknownOutcome
from stnode.objectstore.base import Blob, Buffer, Exists, IfMatch, Key, Meta, Mode, PutResult
from stnode.objectstore.faulty import FaultPlan, Faulty
from stnode.objectstore.memory import MemoryStore
from stnode.objectstore.metrics import Metrics
from stnode.objectstore.options import RetryPolicy, StoreOptions
from stnode.objectstore.registry import open_store, wrap
from stnode.objectstore.wrappers import Limited, Metered, Retrying, Wrapper

KEY = Key("some/key")


class JumpingClock:
    """Sleeping takes no time but moves the clock; `slept` are all waits longer than nothing."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0
        self.slept: list[float] = []

    def now_ns(self) -> int:
        return int(self.seconds * 10**9)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.slept.append(seconds)
            self.seconds += seconds
        await asyncio.sleep(0)


class Failing(Wrapper):
    """Raises the given errors one after the other, then works; counts the calls that came."""

    def __init__(self, env: Env, *errors: StnodeError, works_first: bool = False) -> None:
        super().__init__(MemoryStore(env))
        self.errors = list(errors)
        self.calls = 0
        self.works_first = works_first

    def _fail(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        self._fail()
        return await super().get(key, start, length)

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        if self.works_first and self.errors:
            await super().put(key, data, mode)
        self._fail()
        return await super().put(key, data, mode)

    async def delete(self, key: Key) -> None:
        self._fail()
        await super().delete(key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        number = 0
        async for meta in super().list(prefix, start_after=start_after):
            yield meta
            number += 1
            if number == 2:
                self._fail()


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


@pytest.fixture
def env(clock: JumpingClock) -> Env:
    return Env(clock, SeededRandomness(7), InlineThreads())


def retrying(inner: Wrapper, env: Env, **policy: float) -> tuple[Retrying, Metrics]:
    metrics = Metrics()
    attempts = int(policy.pop("attempts", 6))
    return Retrying(inner, env, RetryPolicy(attempts=attempts, **policy), metrics), metrics


async def test_reads_overwrites_and_deletions_are_repeated(env: Env, clock: JumpingClock) -> None:
    inner = Failing(env, Unavailable("a"), UnknownOutcome("b"), Unavailable("c"))
    store, metrics = retrying(inner, env, first_s=1.0)
    await store.put(KEY, [b"x"])
    assert (inner.calls, metrics.retries) == (4, 3)
    for waited, longest in zip(clock.slept, (1.0, 2.0, 4.0), strict=True):
        assert longest / 2 <= waited <= longest
    inner.errors = [Unavailable("d")]
    assert (await store.get(KEY)).data == b"x"
    inner.errors = [UnknownOutcome("e")]
    await store.delete(KEY)
    with pytest.raises(NotFound):
        await store.get(KEY)


@pytest.mark.parametrize("mode", [Mode.CREATE, IfMatch('"1"')])
async def test_a_conditional_write_of_unknown_outcome_is_never_repeated(env: Env, mode: Mode | IfMatch) -> None:
    inner = Failing(env, UnknownOutcome("who knows"))
    store, metrics = retrying(inner, env)
    with pytest.raises(UnknownOutcome, match="who knows"):
        await store.put(KEY, [b"x"], mode)
    assert (inner.calls, metrics.retries) == (1, 0)


async def test_a_create_that_surely_did_not_happen_is_repeated(env: Env) -> None:
    inner = Failing(env, Unavailable("connection refused"))
    store, _ = retrying(inner, env)
    await store.put(KEY, [b"x"], Mode.CREATE)
    assert inner.calls == 2


async def test_the_last_error_goes_out(env: Env) -> None:
    errors = [Unavailable(str(number)) for number in range(9)]
    store, _ = retrying(Failing(env, *errors), env, attempts=4)
    with pytest.raises(Unavailable, match="3"):
        await store.get(KEY)


@pytest.mark.parametrize("error", [Full("disk"), Refused("no"), NotFound("none"), Exists("there"), Unavailable("x", retry_after_s=3600)])
async def test_what_waiting_does_not_mend_is_not_repeated(env: Env, error: StnodeError) -> None:
    inner = Failing(env, error)
    store, _ = retrying(inner, env)
    with pytest.raises(type(error)):
        await store.put(KEY, [b"x"])
    assert inner.calls == 1


async def test_the_servers_wish_to_wait_is_honoured(env: Env, clock: JumpingClock) -> None:
    store, _ = retrying(Failing(env, Unavailable("503", retry_after_s=17)), env)
    await store.put(KEY, [b"x"])
    assert 17 < sum(clock.slept) < 18


async def test_a_listing_that_breaks_off_goes_on(env: Env) -> None:
    inner = Failing(env)
    store, metrics = retrying(inner, env)
    for number in range(5):
        await store.put(Key(f"l/{number}"), [b"x"])
    inner.errors = [Unavailable("a"), Unavailable("b")]
    assert [meta.key async for meta in store.list("l/")] == [f"l/{number}" for number in range(5)]
    assert metrics.retries == 2


class Slow(Wrapper):
    """Counts how many calls are inside at once, large puts apart; `gate` lets them out."""

    def __init__(self, env: Env) -> None:
        super().__init__(MemoryStore(env))
        self.gate = asyncio.Event()
        self.inside = 0

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        self.inside += 1
        await self.gate.wait()
        self.inside -= 1
        return await super().put(key, data, mode)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_large_transfers_leave_slots_for_small_ones(env: Env) -> None:
    inner = Slow(env)
    store = Limited(inner, env, concurrency=8)
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(store.put(Key(f"large/{number}"), [bytes(1 << 20)]))
        await settle()
        assert inner.inside == 6
        for number in range(20):
            group.create_task(store.put(Key(f"small/{number}"), [b"x"]))
        await settle()
        assert inner.inside == 8
        inner.gate.set()
    assert inner.inside == 0


async def test_a_cancelled_call_gives_its_slot_back(env: Env) -> None:
    inner = Slow(env)
    store = Limited(inner, env, concurrency=1)
    for _ in range(3):
        task = env.spawn(store.put(KEY, [b"x"]), "put")
        await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    inner.gate.set()
    await store.put(KEY, [b"x"])


async def test_a_listing_holds_no_slot_while_its_reader_writes(env: Env) -> None:
    store = Limited(MemoryStore(env), env, concurrency=1)
    await store.put(KEY, [b"x"])
    async with asyncio.timeout(5):
        async for meta in store.list(""):
            await store.delete(meta.key)


async def test_the_daily_budget_refuses_until_tomorrow(env: Env, clock: JumpingClock) -> None:
    store = Limited(MemoryStore(env), env, concurrency=4, daily_budget=3)
    await store.put(KEY, [b"x"])
    _ = [meta async for meta in store.list("")]
    await store.head(KEY)
    for _ in range(2):
        with pytest.raises(Refused, match="budget of 3") as raised:
            await store.get(KEY)
        assert "daily_request_budget" in raised.value.hint
    clock.seconds += 86_400
    assert (await store.get(KEY)).data == b"x"


async def test_requests_are_counted(env: Env) -> None:
    seen: list[tuple[str, str]] = []
    metrics = Metrics(observe=lambda operation, outcome, _seconds, _in, _out: seen.append((operation, outcome)))
    store = Metered(MemoryStore(env), env, metrics)
    await store.put(KEY, [b"123", b"45"])
    await store.put(Key("b"), [b"1"], Mode.CREATE)
    with pytest.raises(Exists):
        await store.put(Key("b"), [b"1"], Mode.CREATE)
    await store.get(KEY, 1, 2)
    with pytest.raises(NotFound):
        await store.head(Key("none"))
    assert len([meta async for meta in store.list("")]) == 2
    await store.delete(KEY)
    counted = metrics.snapshot()
    assert seen == [
        ("put", "ok"), ("create", "ok"), ("create", "Exists"), ("get", "ok"), ("head", "NotFound"), ("list", "ok"), ("delete", "ok")
    ]  # fmt: skip
    assert (counted.bytes_in, counted.bytes_out, counted.in_flight) == (2, 7, 0)
    assert (counted.count("create"), counted.count("create", "ok"), counted.count(None, "ok"), counted.count()) == (2, 1, 5, 7)


async def test_attempts_are_counted_and_waits_hold_no_slot(env: Env) -> None:
    inner = Failing(env, Unavailable("a"), Unavailable("b"))
    store = wrap(inner, StoreOptions(concurrency=1), env)
    await store.put(KEY, [b"x"])
    counted = store.metrics.snapshot()
    assert (counted.count("put", "Unavailable"), counted.count("put", "ok"), counted.retries) == (2, 1, 2)


@pytest.mark.parametrize("url", ["", "ftp://x", "/srv/x", "file://host/x", "file:relative", "s3:///x"])
def test_urls_that_open_nothing(env: Env, url: str) -> None:
    with pytest.raises(ConfigError):
        open_store(url, StoreOptions(), env)


async def test_urls_that_open_something(env: Env, tmp_path: Path) -> None:
    for url in ("memory://", (tmp_path / "a b").as_uri()):
        store = open_store(url, StoreOptions(), env)
        await store.put(KEY, [b"x"])
        assert store.metrics.snapshot().bytes_out == 1
        assert store.url == url
        found = await store.capabilities()
        assert found is not None
        assert found.create_if_absent
        await store.close()
    assert (tmp_path / "a b" / KEY).read_bytes() == b"x"
    with pytest.raises(ConfigError, match="concurrency"):
        open_store("memory://", StoreOptions(concurrency=0), env)


def test_secrets_are_not_shown() -> None:
    shown = repr(StoreOptions(access_key_id="id", secret_access_key="hidden-1", session_token="hidden-2"))
    assert "hidden" not in shown


async def outcomes(env: Env, plan: FaultPlan) -> tuple[list[str], int]:
    """What 400 creates and gets came to, and how many objects there were at the end."""
    inner = MemoryStore(env)
    store = Faulty(inner, env, plan)
    told: list[str] = []
    for number in range(400):
        key = Key(f"k/{number}")
        for call in (store.put(key, [b"data"], Mode.CREATE), store.get(key)):
            try:
                result = await call
                told.append("ok" if not isinstance(result, Blob) or result.data == b"data" else "damaged")
            except StnodeError as error:
                told.append(type(error).__name__)
    await store.close()
    return told, len(inner.snapshot())


MESS = FaultPlan(0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, latency_s=(0.01, 0.5))


async def test_faults_come_in_all_kinds_and_the_same_again() -> None:
    runs = [await outcomes(Env(JumpingClock(), SeededRandomness(seed), InlineThreads()), MESS) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert set(runs[0][0]) == {"ok", "damaged", "Unavailable", "UnknownOutcome", "NotFound"}


@pytest.mark.parametrize(
    ("plan", "told", "happens"),
    [
        (FaultPlan(unreachable=1), Unavailable, 0),
        (FaultPlan(busy=1), Unavailable, 0),
        (FaultPlan(lost_request=1), UnknownOutcome, 0),
        (FaultPlan(late_write=1), UnknownOutcome, 1),
        (FaultPlan(lost_response=1), UnknownOutcome, 1),
    ],
)
async def test_what_each_fault_does_to_a_create(env: Env, plan: FaultPlan, told: type[StnodeError], happens: int) -> None:
    inner = MemoryStore(env)
    store = Faulty(inner, env, plan)
    with pytest.raises(told) as raised:
        await store.put(KEY, [b"x"], Mode.CREATE)
    assert type(raised.value) is told
    await store.settle()
    assert len(inner.snapshot()) == happens


async def test_a_late_write_lands_after_its_callers_next_one(env: Env) -> None:
    store = Faulty(MemoryStore(env), env, FaultPlan(late_write=1))
    changing = bytearray(b"old")
    with pytest.raises(UnknownOutcome):
        await store.put(KEY, [changing])
    changing[:] = b"xxx"
    store.plan = FaultPlan()
    await store.put(KEY, [b"new"])
    await store.settle()
    assert (await store.get(KEY)).data == b"old"


async def test_crash_points(env: Env) -> None:
    class Crash(BaseException):
        pass

    reached: list[tuple[str, str, str]] = []

    def crash(operation: str, key: Key, when: str) -> None:
        reached.append((operation, key, when))
        if (operation, when) == ("put", "after"):
            raise Crash

    inner = MemoryStore(env)
    store = Faulty(inner, env, FaultPlan(), crash)
    with pytest.raises(Crash):
        await store.put(KEY, [b"x"])
    assert reached == [("put", KEY, "before"), ("put", KEY, "after")]
    assert list(inner.snapshot()) == [KEY]


async def test_a_bucket_can_be_restored_from_a_backup(env: Env) -> None:
    store = MemoryStore(env)
    first = await store.put(KEY, [b"1"])
    backup = store.snapshot()
    second = await store.put(KEY, [b"2"])
    await store.put(Key("later"), [b"x"])
    store.restore(backup)
    assert (await store.get(KEY)).meta.etag == first.etag
    assert [meta.key async for meta in store.list("")] == [KEY]
    third = await store.put(KEY, [b"3"])
    assert third.etag not in (first.etag, second.etag)


@pytest.fixture
def threaded() -> Iterator[Env]:
    env = Env(JumpingClock(), SeededRandomness(1), PoolThreads(2))
    yield env
    env.close()


async def test_local_directories_take_time_from_the_clock(threaded: Env, tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri(), StoreOptions(), threaded)
    await store.put(KEY, [b"x"])
    assert (await store.head(KEY)).modified_ns == 1_800_000_000 * 10**9
    await store.close()
