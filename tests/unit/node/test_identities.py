"""Where a node's identity is kept, and which one a node gets: home or store, by name, by being the only one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stnode import config
from stnode.clock import Env, system_env
from stnode.errors import ConfigError, Corrupt, NotFound, Refused, UnknownOutcome
from stnode.net import identity
from stnode.node import identities
from stnode.objectstore.encrypted import Encrypted
from stnode.objectstore.memory import MemoryStore
from stnode.objectstore.sealing import StoreKeys
from stnode.repo import layout

SECRET = {"STNODE_STORE_URL": "memory://", "STNODE_STORE_PASSPHRASE": "correct horse battery"}
TEXT = '[node]\nname = "box"\nidentity = "store"\n[store]\npassphrase = "correct horse battery"\n'


@pytest.fixture
def env() -> Iterator[Env]:
    env = system_env()
    yield env
    env.close()


@pytest.fixture
def store(env: Env) -> Encrypted:
    return Encrypted(MemoryStore(env), env, StoreKeys(b"k" * 32), layout.SECRECY)


def configured(text: str = TEXT) -> config.Config:
    return config.parse(text, {}, Path("config.toml"))


def alone(**more: str) -> config.Config:
    """A configuration of the environment alone."""
    return config.load(Path("/nowhere/config.toml"), {**SECRET, "STNODE_STORE_URL": "file:///x", **more})


async def test_the_home_has_it_by_default(tmp_path: Path, env: Env, store: Encrypted) -> None:
    plain = config.parse('[store]\npassphrase = "correct horse battery"\n', {}, Path("config.toml"))
    with pytest.raises(NotFound, match=r"cert\.pem is missing"):
        await identities.resolve(tmp_path, plain, store, env)
    made, same = await identities.resolve(tmp_path, plain, store, env, create=True)
    assert same is plain
    assert identity.load(tmp_path).device_id == made.device_id
    assert [meta async for meta in store.list("")] == []


async def test_the_store_keeps_it_by_the_nodes_name(tmp_path: Path, env: Env, store: Encrypted) -> None:
    with pytest.raises(NotFound, match="'box'"):
        await identities.resolve(tmp_path, configured(), store, env)
    made, _ = await identities.resolve(tmp_path, configured(), store, env, create=True)
    again, _ = await identities.resolve(tmp_path / "elsewhere", configured(), store, env)
    assert (again.device_id, again.key_pem()) == (made.device_id, made.key_pem())
    other, _ = await identities.resolve(tmp_path, configured(TEXT.replace("box", "cellar")), store, env, create=True)
    assert other.device_id != made.device_id
    assert not list(tmp_path.iterdir())


async def test_a_plain_store_never_gets_it(tmp_path: Path, env: Env) -> None:
    plain = MemoryStore(env)
    with pytest.raises(Refused, match="not encrypted") as caught:
        await identities.resolve(tmp_path, configured('[node]\nidentity = "store"\n'), plain, env, create=True)
    assert caught.value.hint
    with pytest.raises(Refused, match="not encrypted"):
        await identities.draft(tmp_path, configured('[node]\nidentity = "store"\n'), env)
    assert plain.snapshot() == {}


async def test_the_homes_own_moves_into_the_store(tmp_path: Path, env: Env, store: Encrypted) -> None:
    own = identity.load_or_generate(tmp_path, env.clock)
    kept, _ = await identities.resolve(tmp_path, configured(), store, env)
    assert kept.device_id == own.device_id
    elsewhere, _ = await identities.resolve(tmp_path / "elsewhere", configured(), store, env)
    assert elsewhere.device_id == own.device_id
    identity.save(tmp_path / "other", identity.generate(env.clock))
    with pytest.raises(ConfigError, match="another identity"):
        await identities.resolve(tmp_path / "other", configured(), store, env)


async def test_the_environment_alone(tmp_path: Path, env: Env, store: Encrypted) -> None:
    """Without a name there must be just one; a new name makes a new node; the API has a key of its own."""
    with pytest.raises(ConfigError, match="keeps 0 identities"):
        await identities.resolve(tmp_path, alone(), store, env)
    made, named = await identities.resolve(tmp_path, alone(STNODE_NODE_NAME="box"), store, env)
    assert named.node.name == "box"
    assert len(named.api.api_key) == 48
    found, settings = await identities.resolve(tmp_path, alone(), store, env)
    assert (found.device_id, settings.node.name) == (made.device_id, "box")
    await identities.resolve(tmp_path, alone(STNODE_NODE_NAME="cellar"), store, env)
    with pytest.raises(ConfigError, match="keeps 2 identities") as caught:
        await identities.resolve(tmp_path, alone(), store, env)
    assert "STNODE_NODE_NAME" in caught.value.hint


async def test_all_that_start_at_once_are_one_device(tmp_path: Path, env: Env, store: Encrypted) -> None:
    first = await identities.keep(store, "box", identity.generate(env.clock))
    second = await identities.keep(store, "box", identity.generate(env.clock))
    assert first.device_id == second.device_id


async def test_a_store_that_answers_no_write_is_not_asked_for_ever(env: Env, store: Encrypted, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[object] = []

    async def put(key: object, *_: object) -> None:
        tries.append(key)
        assert len(tries) < 10
        raise UnknownOutcome("503")

    monkeypatch.setattr(store, "put", put)
    with pytest.raises(UnknownOutcome):
        await identities.keep(store, "box", identity.generate(env.clock))
    assert len(tries) > 1


async def test_a_write_whose_answer_was_lost_counts(env: Env, store: Encrypted, monkeypatch: pytest.MonkeyPatch) -> None:
    real = store.put

    async def put(*arguments: Any) -> None:
        await real(*arguments)
        raise UnknownOutcome("reset")

    monkeypatch.setattr(store, "put", put)
    new = identity.generate(env.clock)
    assert (await identities.keep(store, "box", new)).device_id == new.device_id


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"format": 1, "name": "x", "certificate": 5, "key": ""}'])
async def test_a_damaged_one_is_never_replaced(tmp_path: Path, env: Env, store: Encrypted, data: bytes) -> None:
    await store.put(layout.identity_key("box"), [data])
    with pytest.raises(Corrupt, match="identities/"):
        await identities.resolve(tmp_path, configured(), store, env, create=True)
    await store.put(layout.identity_key("box"), [json.dumps({"format": 2}).encode()])
    with pytest.raises(Refused, match="format 2"):
        await identities.resolve(tmp_path, configured(), store, env, create=True)


def test_the_environment_must_say_enough(tmp_path: Path) -> None:
    for environ in ({}, {"STNODE_STORE_URL": "file:///x"}, {"STNODE_STORE_PASSPHRASE": "y"}):
        assert not config.stands_alone(environ)
        with pytest.raises(ConfigError, match="no configuration file"):
            config.load(tmp_path / "config.toml", environ)
    assert config.stands_alone({"STNODE_STORE_URL": "file:///x", "STNODE_STORE_PASSPHRASE_FILE": "/run/secrets/p"})


def test_a_passphrase_is_read_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("correct horse battery\n")
    read = config.parse(f'[store]\npassphrase_file = "{tmp_path}/p"\n', {})
    assert read.store.passphrase == "correct horse battery"
    assert "horse" not in repr(read)
    assert config.parse("", {"STNODE_STORE_PASSPHRASE_FILE": f"{tmp_path}/p"}).store.passphrase == "correct horse battery"
    (tmp_path / "p").write_text(" \n")
    for text, environ in ((f'[store]\npassphrase_file = "{tmp_path}/p"\n', {}), ("", {"STNODE_STORE_PASSPHRASE": ""})):
        with pytest.raises(ConfigError, match="it is empty"):
            config.parse(text, environ)
    with pytest.raises(ConfigError) as caught:
        config.parse('[store]\npassphrase = ["horse"]\n', {})
    assert "horse" not in caught.value.message
