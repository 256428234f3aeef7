"""The object store of a configuration: where it is, its options, and its encryption."""

from __future__ import annotations

from pathlib import Path

from stnode.clock import Env
from stnode.config import Config
from stnode.objectstore.metrics import Observer
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import OpenedStore, open_store
from stnode.repo.unlock import unlock


def store_url(home: Path, config: Config) -> str:
    """The configured URL, or that of the embedded store, the directory `store` in the home."""
    return config.store.url or f"file://{home.absolute() / 'store'}"


async def open_objects(home: Path, config: Config, env: Env, observe: Observer | None = None) -> OpenedStore:
    """Opens the object store of a store that exists, and unlocks it if it is encrypted: the way for all who work on a store's objects.
    `observe` hears of each request from the first on. Raises ConfigError, what the store's own description says against it (`unlock`),
    and Unavailable."""
    objects = open_bucket(home, config, env)
    objects.metrics.observe = observe
    try:
        inner = await unlock(objects, env, config.store.passphrase)
    except BaseException:
        await objects.close()
        raise
    return objects if inner is objects else OpenedStore(inner, objects.url, objects.metrics)


def open_bucket(home: Path, config: Config, env: Env) -> OpenedStore:
    """Opens the object store as it is, for making a store and for its key slots; nothing is asked of it yet. Raises ConfigError."""
    store = config.store
    options = StoreOptions(
        endpoint_url=store.endpoint_url,
        region=store.region,
        access_key_id=store.access_key_id,
        secret_access_key=store.secret_access_key,
        session_token=store.session_token,
        addressing_style=store.addressing_style,
        ca_file=store.ca_file,
        concurrency=store.concurrency,
        daily_request_budget=store.daily_request_budget,
    )
    return open_store(store_url(home, config), options, env)
