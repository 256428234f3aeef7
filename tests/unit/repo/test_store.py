"""Opening a store: when the object store is tried out, what is trusted, and what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence

import pytest

from stnode.clock import Env, InlineThreads, SeededRandomness, SystemClock
from stnode.db import Database
from stnode.errors import Refused
from stnode.objectstore.base import Buffer, IfMatch, Key, Mode, PutResult
from stnode.objectstore.memory import MemoryStore
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import OpenedStore, wrap
from stnode.protocol.deviceid import DeviceID
from stnode.repo import layout
from stnode.repo.store import Store

NODE = DeviceID(bytes(range(32)))


class Unknown(MemoryStore):
    """As a bucket: only trying tells what it can do. `obeys` is whether it honours conditions."""

    obeys = True

    async def capabilities(self) -> None:  # type: ignore[override]
        """Not known."""

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        return await super().put(key, data, mode if self.obeys else Mode.OVERWRITE)


@pytest.fixture
def env() -> Env:
    return Env(SystemClock(), SeededRandomness("store"), InlineThreads())


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    db = Database(None, inline=True)
    yield db
    await db.close()


def opened(backend: MemoryStore, env: Env) -> OpenedStore:
    return wrap(backend, StoreOptions(), env)


async def test_a_daemon_tries_out_and_is_counted_while_a_command_trusts(env: Env, db: Database) -> None:
    backend = Unknown(env)
    assert await Store.init(backend, env)
    for try_out, deletions in ((False, 0), (True, 3)):
        objects = opened(backend, env)
        await (await Store.open(objects, db, env, NODE, try_out=try_out)).close()
        counted = objects.metrics.snapshot()
        assert counted.count("delete") == deletions
        assert (counted.count("replace") > 0) is try_out


async def test_a_store_that_overwrites_is_refused_by_who_tries(env: Env, db: Database) -> None:
    backend = Unknown(env)
    assert await Store.init(backend, env)
    backend.obeys = False
    with pytest.raises(Refused, match="no conditional writes"):
        await Store.init(backend, env)
    with pytest.raises(Refused, match="no conditional writes"):
        await Store.open(backend, db, env, NODE, try_out=True)
    await (await Store.open(backend, db, env, NODE)).close()


async def test_what_the_document_says_is_trusted(env: Env, db: Database) -> None:
    backend = MemoryStore(env)
    await Store.init(backend, env)
    document = json.loads((await backend.get(layout.STORE)).data)
    assert document["capabilities"]["create_if_absent"] is True
    for capabilities in ({"create_if_absent": False}, {}, None):
        await backend.put(layout.STORE, [json.dumps(document | {"capabilities": capabilities}).encode()])
        with pytest.raises(Refused, match="no conditional writes"):
            await Store.open(backend, db, env, NODE)


async def test_a_store_that_has_lost_its_description_is_not_made_anew(env: Env) -> None:
    backend = MemoryStore(env)
    await backend.put(layout.slot_key(1), [b"slot"])
    with pytest.raises(Refused, match=r"journal/main/0+1.*lost"):
        await Store.init(backend, env)
    assert [meta.key async for meta in backend.list("")] == [layout.slot_key(1)]
    await backend.put(layout.STORE, [b'{"store": "somebody\'s", "format": 1}'])
    assert not await Store.init(backend, env)
