"""The probe against stores that lie in the ways that real ones do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from stnode.clock import Env, InlineThreads, SeededRandomness, SystemClock
from stnode.errors import Corrupt, Refused, UnknownOutcome
from stnode.objectstore.base import Blob, Buffer, IfMatch, Key, Meta, Mode, PutResult
from stnode.objectstore.faulty import FaultPlan, Faulty
from stnode.objectstore.memory import MemoryStore
from stnode.objectstore.probe import PREFIX, probe
from stnode.objectstore.wrappers import Wrapper


@pytest.fixture
def env() -> Env:
    return Env(SystemClock(), SeededRandomness(3), InlineThreads())


class Changed(Wrapper):
    """Puts go through `change(mode)`; reads and listings through their own hooks."""

    def __init__(self, env: Env) -> None:
        super().__init__(MemoryStore(env))

    def change(self, mode: Mode | IfMatch) -> Mode | IfMatch:
        return mode

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        return await self.inner.put(key, data, self.change(mode))


class IgnoresConditions(Changed):
    def change(self, mode: Mode | IfMatch) -> Mode | IfMatch:
        return Mode.OVERWRITE


class IgnoresIfMatch(Changed):
    def change(self, mode: Mode | IfMatch) -> Mode | IfMatch:
        return Mode.OVERWRITE if isinstance(mode, IfMatch) else mode


class RefusesConditions(Changed):
    def change(self, mode: Mode | IfMatch) -> Mode | IfMatch:
        if mode is not Mode.OVERWRITE:
            raise Refused("501 NotImplemented")
        return mode


class LooksThenPuts(Changed):
    """A create that looks first and writes later: right only while nobody else writes."""

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        if mode is Mode.CREATE:
            found = [meta async for meta in self.list(key)]
            await asyncio.sleep(0)
            return await self.inner.put(key, data, mode if found else Mode.OVERWRITE)
        return await self.inner.put(key, data, mode)


class ReadOnly(Changed):
    def change(self, mode: Mode | IfMatch) -> Mode | IfMatch:
        raise Refused("403 AccessDenied", hint="Grant s3:PutObject.")

    async def delete(self, key: Key) -> None:
        raise Refused("403 AccessDenied at delete")


class StoresFraming(Changed):
    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        blob = await self.inner.get(key, start, length)
        return replace(blob, data=b"5;chunk-signature=" + blob.data)


class ListsLate(Changed):
    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        nothing: tuple[Meta, ...] = ()
        for meta in nothing:
            yield meta


class DeletesNothing(Changed):
    async def delete(self, key: Key) -> None:
        pass


class AnswersEverything(Changed):
    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        return Blob(Meta(key, 7, '"e"', 0), b"<html/>")


@pytest.mark.parametrize("kind", [IgnoresConditions, RefusesConditions, LooksThenPuts])
async def test_creates_that_are_not_exclusive_are_refused(env: Env, kind: type[Changed]) -> None:
    store = kind(env)
    with pytest.raises(Refused, match="no conditional writes"):
        await probe(store, env)
    found = await probe(store, env, single_node=True)
    assert not found.create_if_absent
    assert found.warnings
    assert [meta async for meta in store.inner.list("")] == []


async def test_if_match_is_not_needed(env: Env) -> None:
    found = await probe(IgnoresIfMatch(env), env)
    assert (found.create_if_absent, found.if_match, found.warnings) == (True, False, ("it ignores If-Match",))


async def test_missing_rights_go_out_as_they_are(env: Env) -> None:
    with pytest.raises(Refused, match=r"403 AccessDenied$") as raised:
        await probe(ReadOnly(env), env)
    assert "PutObject" in raised.value.hint


@pytest.mark.parametrize("kind", [StoresFraming, ListsLate, DeletesNothing, AnswersEverything])
async def test_a_store_that_does_not_give_what_was_written(env: Env, kind: type[Changed]) -> None:
    with pytest.raises(Corrupt):
        await probe(kind(env), env)


async def test_creates_that_are_undecided_are_looked_up(env: Env) -> None:
    for _ in range(20):
        store = Faulty(MemoryStore(env), env, FaultPlan(undecided=0.5))
        try:
            assert (await probe(store, env)).create_if_absent
        except UnknownOutcome:
            continue  # undecided twice in a row


async def test_what_a_killed_probe_left_is_deleted_later(env: Env) -> None:
    store = MemoryStore(env)
    await store.put(Key(f"{PREFIX}old"), [b"x"])
    await store.put(Key("other"), [b"x"])
    aged = {key: replace(stored, modified_ns=stored.modified_ns - 2 * 3600 * 10**9) for key, stored in store.snapshot().items()}
    store.restore(aged)
    await store.put(Key(f"{PREFIX}of-a-neighbour"), [b"x"])
    await probe(store, env)
    assert sorted(store.snapshot()) == ["other", f"{PREFIX}of-a-neighbour"]
