"""The object store of a configuration: where it is, and its options."""

from __future__ import annotations

from pathlib import Path

from stnode.clock import Env
from stnode.config import Config
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import OpenedStore, open_store


def store_url(home: Path, config: Config) -> str:
    """The configured URL, or that of the embedded store, the directory `store` in the home."""
    return config.store.url or f"file://{home.absolute() / 'store'}"


def open_objects(home: Path, config: Config, env: Env) -> OpenedStore:
    """Opens the object store; nothing is asked of it yet. Raises ConfigError."""
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
