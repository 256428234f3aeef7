"""`stnode init`: makes a home, an identity, a configuration and, where it is new, the store; or joins a store that is there. Every step may
have been done before."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from stnode import config
from stnode.clock import Env
from stnode.errors import ConfigError, Conflict, Full, NotFound, Refused
from stnode.net.identity import Identity
from stnode.node import identities
from stnode.node.home import Holder, Home, lock_or_daemon
from stnode.node.objects import open_bucket, store_url
from stnode.protocol import deviceid
from stnode.repo import parameters, state
from stnode.repo.parameters import DEFAULT, Collection
from stnode.repo.store import Store
from stnode.repo.unlock import is_there, make_store, unlock


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user wants to differ from the defaults; "", () and 0 = the default. The last two only matter to a store that is made now."""

    store_url: str = ""
    endpoint_url: str = ""
    region: str = ""
    name: str = ""
    listen: tuple[str, ...] = ()
    api_listen: str = ""
    orphan_age_s: int = 0
    grace_s: int = 0
    single_node: bool = False
    passphrase_file: str = ""
    identity_in_store: bool = False
    join: bool = False
    """The store has to be there: this becomes one more of its nodes."""


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in a store that was joined; `siblings` are the names of its other nodes, without those that have stopped."""

    folders: int
    files: int
    bytes: int
    devices: int
    siblings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """What `initialise` found and made; `found` of a store that was joined."""

    device_id: str
    store_url: str
    new_home: bool
    new_store: bool
    encrypted: bool
    warnings: tuple[str, ...]
    found: Found | None = None


async def initialise(home: Home, asked: Asked, env: Env, environ: Mapping[str, str]) -> Done:
    """Does what is missing. config.toml is written last, when the store has answered: a home with a configuration is whole.
    Raises Refused when the home has another configuration than asked for, and what the store gets wrong."""
    home.create()
    lock = await lock_or_daemon(home, env, "command")
    if isinstance(lock, Holder):
        raise Conflict(f"a daemon (process {lock.pid}) runs on {home.path}: it is initialised", hint="nothing has to be done")
    try:
        new_home = not home.config.exists()
        text = _template(asked, env) if new_home else await env.threads.run(home.config.read_text)
        settings = config.parse(text, environ, home.config)
        if not new_home:
            await env.threads.run(_require_same, asked, settings)
        own, new_store, warnings = await _make_store(home, settings, env, asked)
        if new_home:
            await env.threads.run(_write, home.config, text)
        encrypted = settings.store.passphrase is not None
        found = await _look_around(home, settings, env) if asked.join else None
        return Done(deviceid.format(own.device_id), store_url(home.path, settings), new_home, new_store, encrypted, warnings, found)
    finally:
        lock.release()


async def _check_join(settings: config.Config, env: Env, asked: Asked) -> None:
    """Raises NotFound for a directory that is not there, before opening it would make it; ConfigError when the environment names another
    store."""
    if settings.store.url != asked.store_url:
        raise ConfigError(
            f"STNODE_STORE_URL names {settings.store.url}, which is not the store to join", hint="unset it, or join the store that it names"
        )
    where = urlsplit(asked.store_url)
    if where.scheme == "file" and not await env.threads.run(Path(unquote(where.path)).is_dir):
        raise _nothing_to_join(asked)


def _nothing_to_join(asked: Asked) -> NotFound:
    return NotFound(f"there is no store at {asked.store_url} to join", hint="check the URL; `stnode init --store` makes a new store")


async def _look_around(home: Home, settings: config.Config, env: Env) -> Found:
    """Takes the store's state over and counts what is in it."""
    from stnode.node.node import Node  # takes half a second to import, and most commands come by here without needing it

    node = await Node.open(home.path, settings, env)
    try:
        await node.store.heartbeats.refresh()
        folders = await node.db.run(state.folders)
        return Found(
            folders=len(folders),
            files=sum(folder.totals.files for folder in folders),
            bytes=sum(folder.totals.bytes for folder in folders),
            devices=len(node.devices),
            siblings=tuple(heartbeat.name for heartbeat in node.siblings.others.values() if not heartbeat.stopped),
        )
    finally:
        await node.stop()


async def _make_store(home: Home, settings: config.Config, env: Env, asked: Asked) -> tuple[Identity, bool, tuple[str, ...]]:
    """Tries the store out and makes it unless it is there, and the node's identity; (it, whether the store is new, what to warn about)."""
    if asked.join:
        await _check_join(settings, env, asked)
    bucket = open_bucket(home.path, settings, env)
    passphrase, name = settings.store.passphrase, settings.node.name
    try:
        there = await is_there(bucket)
        if asked.join and not there:
            raise _nothing_to_join(asked)
        objects = await unlock(bucket, env, passphrase) if there else bucket
        if there or not identities.in_store(settings):
            own = (await identities.resolve(home.path, settings, objects, env, create=True))[0]
        else:
            own = await identities.draft(home.path, settings, env)
        single = own.device_id if settings.store.single_node else None
        capabilities = await Store.try_out(bucket, env, single_node=single is not None)
        wanted = Collection(asked.orphan_age_s or DEFAULT.orphan_age_s, asked.grace_s or DEFAULT.grace_s)
        if there:
            new = await Store.init(objects, env, capabilities, wanted, single_node=single)
        else:
            new = await make_store(bucket, env, capabilities, wanted, passphrase, single_node=single)
        if not new and (asked.orphan_age_s or asked.grace_s) and await parameters.read(bucket) != wanted:
            raise ConfigError(
                "the store is there already, with other times than --orphan-age and --grace ask for",
                hint="leave the options out: a store keeps the times that it was made with",
            )
        if not there and identities.in_store(settings):
            own = await identities.keep(await unlock(bucket, env, passphrase), name, own)
        return own, new, capabilities.warnings
    finally:
        await bucket.close()


def _require_same(asked: Asked, settings: config.Config) -> None:
    there = {
        "--store": (asked.store_url, settings.store.url),
        "--endpoint-url": (asked.endpoint_url, settings.store.endpoint_url),
        "--region": (asked.region, settings.store.region),
        "--name": (asked.name, settings.node.name),
        "--listen": (asked.listen, settings.node.listen),
        "--api-listen": (asked.api_listen, settings.api.listen),
        "--single-node": (asked.single_node, settings.store.single_node),
        "--identity-in-store": ("store" if asked.identity_in_store else "", settings.node.identity),
        "--passphrase-file": (asked.passphrase_file and config.read_secret(asked.passphrase_file), settings.store.passphrase),
    }
    for option, (wanted, found) in there.items():
        if wanted and wanted != found:
            raise ConfigError(
                f"{settings.source} is there already, and is not what {option} asks for",
                hint="change config.toml itself, or name another --home",
            )


def _template(asked: Asked, env: Env) -> str:
    """A commented config.toml. Values that were not asked for stand as comments, so that later defaults apply."""
    # The host of a container is called otherwise each time: an identity needs a name that stays.
    name = asked.name or (config.NodeSection().name if asked.identity_in_store else "")

    def line(key: str, value: str | tuple[str, ...], default: str) -> str:
        return f"{key} = {_toml(value)}" if value else f"# {key} = {default}"

    return f"""# Configuration of this stnode; config.example.toml of the project explains every key.
# Each value can come from the environment as STNODE_<SECTION>_<KEY>, which wins.

[node]
{line("name", name, '"…"          # by default the name of the host')}
{line("listen", asked.listen, '["tcp://0.0.0.0:22000"]')}
{line("identity", "store" if asked.identity_in_store else "", '"home"      # or "store": kept in an encrypted store by the name above')}

[store]
{line("url", asked.store_url, '"s3://bucket/prefix"    # by default the directory `store` beside this file')}
{line("endpoint_url", asked.endpoint_url, '"https://s3.example.org"')}
{line("region", asked.region, '"us-east-1"')}
{"single_node = true" if asked.single_node else "# single_node = false"}           # true: no other node uses this store, which has no conditional writes
# access_key_id = "…"            # by default the usual AWS chain: variables AWS_*, ~/.aws, instance roles
# secret_access_key = "…"        # or secret_access_key_file = "/run/secrets/…"
{line("passphrase_file", asked.passphrase_file, '"/run/secrets/…"    # of an encrypted store')}

[api]
{line("listen", asked.api_listen, '"127.0.0.1:8384"')}
api_key = "{identities.new_api_key(env)}"

# Devices and folders are settings of the store: `stnode device add`, `stnode folder add`. Or ask for them here and run
# `stnode apply`:
#
# [[device]]
# id = "…"
# name = "laptop"
#
# [[folder]]
# id = "photos"
# devices = ["laptop"]
"""


def _toml(value: str | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    escaped = re.sub(r'[\x00-\x1f\x7f"\\]', lambda match: f"\\u{ord(match[0]):04x}", value)
    return f'"{escaped}"'


def _write(path: Path, text: str) -> None:
    """Writes the file whole or not at all, for its owner only."""
    part = path.with_name(f"{path.name}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as exc:
        kind = Full if exc.errno in (28, 122) else Refused
        raise kind(f"{path} cannot be written: {exc.strerror}", hint="free some space or choose another --home") from exc
