"""The times that a store is made with."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from stnode.clock import Env, InlineThreads, SeededRandomness, SystemClock
from stnode.db import Database
from stnode.errors import Corrupt, Invalid, StnodeError
from stnode.objectstore.memory import MemoryStore
from stnode.protocol.deviceid import DeviceID
from stnode.repo import layout, state
from stnode.repo.parameters import DEFAULT, Collection, from_json, read, span_s
from stnode.repo.store import Store

NODE = DeviceID(bytes(range(32)))


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    db = Database(None, inline=True)
    yield db
    await db.close()


async def test_a_store_keeps_the_times_that_it_was_made_with(db: Database) -> None:
    env = Env(SystemClock(), SeededRandomness("parameters"), InlineThreads())
    objects = MemoryStore(env)
    assert await Store.init(objects, env, collection=Collection(30, 45))
    assert not await Store.init(objects, env, collection=Collection(60, 60))
    assert await read(objects) == Collection(30, 45)
    store = await Store.open(objects, db, env, NODE)
    assert store.collection == Collection(30, 45)
    assert await db.run(state.orphan_age_us) == 30_000_000
    await store.close()


async def test_a_store_that_says_nothing_has_the_defaults_and_nonsense_is_damage() -> None:
    env = Env(SystemClock(), SeededRandomness("parameters"), InlineThreads())
    objects = MemoryStore(env)
    await Store.init(objects, env)
    document = json.loads((await objects.get(layout.STORE)).data)
    assert from_json(document) == DEFAULT == Collection(86_400, 86_400)
    del document["collection"]
    assert from_json(document) == DEFAULT
    for wrong in ({"orphan_age_s": 60}, {"orphan_age_s": 5, "grace_s": 60}, {"orphan_age_s": "x", "grace_s": 60}, None, 7):
        with pytest.raises(Corrupt, match="malformed"):
            from_json(document | {"collection": wrong})


@pytest.mark.parametrize("times", [(29, 60), (60, 0)])
async def test_times_that_nobody_could_keep_are_refused(times: tuple[int, int]) -> None:
    env = Env(SystemClock(), SeededRandomness("parameters"), InlineThreads())
    with pytest.raises(Invalid, match=r"--orphan-age|--grace"):
        await Store.init(MemoryStore(env), env, collection=Collection(*times))


def test_spans() -> None:
    assert [span_s(text) for text in ("0", "30s", "15m", "12h", "1d", "2w", "1y")] == [0, 30, 900, 43_200, 86_400, 1_209_600, 31_536_000]
    for text in ("", "d", "1", "-1d", "1.5h", "1 d", "1mo"):
        with pytest.raises(StnodeError, match="no time span"):
            span_s(text)
