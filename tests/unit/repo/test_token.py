"""The password token of an encrypted folder: the first that is committed counts, on every node, for good (R25)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from stnode.clock import Env, InlineThreads, SeededRandomness, SystemClock
from stnode.db import Database
from stnode.errors import Conflict, NotFound
from stnode.objectstore.memory import MemoryStore
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import wrap
from stnode.protocol.deviceid import DeviceID
from stnode.repo import state
from stnode.repo.settings import FolderSettings
from stnode.repo.store import SettingsChange, Store, new_folder

ONE, TWO = b"1" * 32, b"2" * 32


class Nodes:
    """Two stores on one bucket, with one encrypted folder."""

    def __init__(self, stores: list[Store], dbs: list[Database], env: Env) -> None:
        self.stores, self.dbs, self.env = stores, dbs, env

    async def folder(self, node: int) -> tuple[int, FolderSettings]:
        await self.stores[node].follow_to_head()
        [found] = await self.dbs[node].run(state.folders)
        return found.fid, found.settings

    async def tokens(self) -> list[bytes]:
        return [(await self.folder(node))[1].encryption_password_token for node in range(2)]


@pytest.fixture
async def nodes() -> AsyncIterator[Nodes]:
    env = Env(SystemClock(), SeededRandomness("token"), InlineThreads())
    bucket = MemoryStore(env)
    await Store.init(bucket, env)
    dbs = [Database(None, inline=True) for _ in range(2)]
    stores = [
        await Store.open(wrap(bucket, StoreOptions(), env), db, env, DeviceID(bytes([number]) * 32)) for number, db in enumerate(dbs, 1)
    ]
    await stores[0].submit_settings(SettingsChange(folders=(replace(new_folder(env.random, "f"), type="receiveencrypted"),)))
    yield Nodes(stores, dbs, env)
    for store, db in zip(stores, dbs, strict=True):
        await store.close()
        await db.close()


async def test_of_two_nodes_that_hear_different_ones_at_once_one_is_told_no(nodes: Nodes) -> None:
    fids = [(await nodes.folder(node))[0] for node in range(2)]
    outcomes = await asyncio.gather(
        nodes.stores[0].submit_token(fids[0], ONE), nodes.stores[1].submit_token(fids[1], TWO), return_exceptions=True
    )
    [refused] = [each for each in outcomes if isinstance(each, BaseException)]
    assert isinstance(refused, Conflict)
    kept = TWO if outcomes.index(refused) == 0 else ONE
    assert await nodes.tokens() == [kept, kept]


async def test_of_two_in_one_group_only_one_is_taken(nodes: Nodes) -> None:
    fid, _ = await nodes.folder(0)
    outcomes = await asyncio.gather(nodes.stores[0].submit_token(fid, ONE), nodes.stores[0].submit_token(fid, TWO), return_exceptions=True)
    assert [type(each) for each in outcomes] == [int, Conflict]
    assert await nodes.tokens() == [ONE, ONE]


async def test_the_same_one_again_is_no_conflict(nodes: Nodes) -> None:
    for node in range(2):
        fid, _ = await nodes.folder(node)
        await nodes.stores[node].submit_token(fid, ONE)
    assert await nodes.tokens() == [ONE, ONE]


async def test_who_changes_something_else_cannot_take_it_away(nodes: Nodes) -> None:
    _, before = await nodes.folder(1)
    fid, _ = await nodes.folder(0)
    await nodes.stores[0].submit_token(fid, ONE)
    await nodes.stores[1].submit_settings(SettingsChange(folders=(replace(before, label="seen before the token"),)))
    assert (await nodes.folder(0))[1] == replace(before, label="seen before the token", encryption_password_token=ONE)


async def test_a_folder_that_is_added_again_has_none(nodes: Nodes) -> None:
    fid, _ = await nodes.folder(0)
    await nodes.stores[0].submit_token(fid, ONE)
    await nodes.stores[0].submit_settings(SettingsChange(folders_removed=("f",)))
    with pytest.raises(NotFound):
        await nodes.stores[0].submit_token(fid, ONE)
    await nodes.stores[0].submit_settings(SettingsChange(folders=(replace(new_folder(nodes.env.random, "f"), type="receiveencrypted"),)))
    assert await nodes.tokens() == [b"", b""]
