"""Who the node is: by the certificate in its home, or by the one that an encrypted store keeps for the node's name.

With the identity in the store a container needs nothing but the store's URL and passphrase to come back as the same device. Two nodes of
one name are then one device; that only one of them talks to peers is not seen to here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stnode.clock import Env
from stnode.config import Config
from stnode.errors import ConfigError, Corrupt, NotFound, Refused, UnknownOutcome
from stnode.net import identity
from stnode.net.identity import Identity
from stnode.objectstore.base import Exists, Key, Mode, ObjectStore
from stnode.repo import layout
from stnode.repo.slots import arranged
from stnode.telemetry import get_logger

_FORMAT = 1
_TRIES = 3
_API_KEY_BYTES = 24

_log = get_logger(__name__)


def in_store(config: Config) -> bool:
    """Whether the store keeps the identity."""
    wanted = config.node.identity
    return wanted == "store" or (wanted == "auto" and config.source is None and config.store.passphrase is not None)


async def resolve(home: Path, config: Config, objects: ObjectStore, env: Env, *, create: bool = False) -> tuple[Identity, Config]:
    """The node's identity, and its configuration with the name and the API key that it did not say. `objects` is the unlocked store.
    With `create` a missing identity is made, where it belongs. Raises NotFound when there is none, Refused for a plain store,
    ConfigError when home and store hold two identities or the name is open."""
    if not in_store(config):
        load = identity.load if not create else lambda path: identity.load_or_generate(path, env.clock)
        return await env.threads.run(load, home), config
    _require_encryption(config)
    config = _with_api_key(config, env)
    if config.source is None and "name" not in config.node.model_fields_set:
        name, found = await _the_only_one(objects)
        return found, config.model_copy(update={"node": config.node.model_copy(update={"name": name})})
    return await _of_name(home, config.node.name, objects, env, create=create or config.source is None), config


def new_api_key(env: Env) -> str:
    """A key for a node's API."""
    return env.random.bytes(_API_KEY_BYTES).hex()


async def draft(home: Path, config: Config, env: Env) -> Identity:
    """The identity for a store that is still to be made: the home's, or a new one that is nowhere yet. Raises Refused as `resolve`."""
    _require_encryption(config)
    return await env.threads.run(_of_home, home) or identity.generate(env.clock)


async def keep(objects: ObjectStore, name: str, new: Identity) -> Identity:
    """Keeps a new identity in the store; of several that are made at once, all get the first. Raises UnknownOutcome where no try was
    answered, and none has arrived."""
    objects = await arranged(objects)
    key = layout.identity_key(name)
    document = {"format": _FORMAT, "name": name, "certificate": new.certificate_pem().decode(), "key": new.key_pem().decode()}
    data = json.dumps(document).encode()
    for tries_left in reversed(range(_TRIES)):
        try:
            await objects.put(key, [data], Mode.CREATE)
        except (UnknownOutcome, Exists) as exc:
            found = await _read(objects, key)
            if found is not None:
                return found[1]
            if not tries_left:
                raise
            _log.info("the identity is written again", error=exc.message)
        else:
            break
    return new


def _require_encryption(config: Config) -> None:
    if config.store.passphrase is None:
        raise Refused(
            "the identity cannot be kept in this store: it is not encrypted, so whoever reads the bucket could pose as this node",
            hint='set [node] identity = "home"; or make an encrypted store, `stnode init` with store.passphrase_file',
        )


async def _of_name(home: Path, name: str, objects: ObjectStore, env: Env, *, create: bool) -> Identity:
    own = await env.threads.run(_of_home, home)
    found = await _read(objects, layout.identity_key(name))
    if found is not None:
        if own is not None and own.device_id != found[1].device_id:
            raise ConfigError(
                f"{home} holds another identity than the store keeps for the node {name!r}",
                hint='set [node] identity = "home" or another name; or move cert.pem and key.pem away',
            )
        return found[1]
    if own is None and not create:
        raise NotFound(
            f"the store keeps no identity for the node {name!r}", hint="check [node] name; `stnode init --identity-in-store` makes one"
        )
    return await keep(objects, name, own or identity.generate(env.clock))


def _of_home(home: Path) -> Identity | None:
    return identity.load(home) if (home / "cert.pem").exists() else None


async def _the_only_one(objects: ObjectStore) -> tuple[str, Identity]:
    """Name and identity, when the store keeps just one."""
    keys = [meta.key async for meta in objects.list(layout.identity_prefix())]
    found = await _read(objects, keys[0]) if len(keys) == 1 else None
    if found is None:
        raise ConfigError(
            f"which node is this? The store keeps {len(keys)} identities, by the names of their nodes",
            hint="set STNODE_NODE_NAME, to a new name for a new node",
        )
    return found


async def _read(objects: ObjectStore, key: Key) -> tuple[str, Identity] | None:
    try:
        data = (await objects.get(key)).data
    except NotFound:
        return None
    try:
        document: dict[str, Any] = json.loads(data)
        if document["format"] != _FORMAT:
            raise Refused(f"the identity at {key} has format {document['format']}, this stnode knows {_FORMAT}", hint="update stnode")
        name, texts = str(document["name"]), (document["certificate"].encode(), document["key"].encode())
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise Corrupt(f"the identity at {key} cannot be read", hint="put it back from a backup of the bucket") from exc
    return name, identity.from_pem(*texts, f"the store's {key}")


def _with_api_key(config: Config, env: Env) -> Config:
    """Without a config.toml the API's key is that of this process; commands in the same home find it by the lock."""
    if config.source is not None or config.api.api_key:
        return config
    api = config.api.model_copy(update={"api_key": new_api_key(env)})
    return config.model_copy(update={"api": api})
