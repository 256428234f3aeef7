"""From a URL to a working object store: picks the backend by scheme and stacks the wrappers around it.

A new backend is one module, one line in `_BACKENDS` and one fixture of the conformance suite.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from stnode.clock import Env
from stnode.errors import ConfigError
from stnode.objectstore.base import ObjectStore
from stnode.objectstore.localdir import LocalDirStore
from stnode.objectstore.memory import MemoryStore
from stnode.objectstore.metrics import Metrics
from stnode.objectstore.options import RetryPolicy, StoreOptions
from stnode.objectstore.wrappers import Limited, Metered, Retrying, Wrapper

__all__ = ["OpenedStore", "RetryPolicy", "StoreOptions", "open_store", "wrap"]


class OpenedStore(Wrapper):
    """The stack as one store. `url` names it in messages (it holds no secret); `metrics` are its counters."""

    def __init__(self, inner: ObjectStore, url: str, metrics: Metrics) -> None:
        super().__init__(inner)
        self.url = url
        self.metrics = metrics


def open_store(url: str, options: StoreOptions, env: Env) -> OpenedStore:
    """Opens `file:///path`, `s3://bucket/prefix` or `memory://`. Nothing is asked of the store yet: errors of rights or reach come
    with the first request, best that of `probe.probe`. `ConfigError` when the URL or an option is wrong."""
    scheme = urlsplit(url).scheme
    backend = _BACKENDS.get(scheme)
    if backend is None:
        raise ConfigError(f"no object store for {url!r}", hint=f"store.url starts with one of: {', '.join(f'{s}://' for s in _BACKENDS)}.")
    if options.concurrency < 1:
        raise ConfigError(f"store.concurrency is {options.concurrency}, it must be at least 1")
    return wrap(backend(url, options, env), options, env, url)


def wrap(backend: ObjectStore, options: StoreOptions, env: Env, url: str = "") -> OpenedStore:
    """The wrappers of `open_store` around a backend made elsewhere, such as a simulation's `Faulty(MemoryStore)`."""
    metrics = Metrics()
    limited = Limited(Metered(backend, env, metrics), env, options.concurrency, options.daily_request_budget)
    return OpenedStore(Retrying(limited, env, options.retry, metrics), url, metrics)


def _open_file(url: str, _options: StoreOptions, env: Env) -> ObjectStore:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or parts.query or parts.fragment:
        raise ConfigError(f"not a local directory: {url!r}", hint="Write file:///absolute/path.")
    return LocalDirStore(path, env)


def _open_memory(_url: str, _options: StoreOptions, env: Env) -> ObjectStore:
    return MemoryStore(env)


def _open_s3(url: str, options: StoreOptions, env: Env) -> ObjectStore:
    from stnode.objectstore.s3 import S3Store  # the SDK takes half a second to import: only who uses S3 pays

    return S3Store(url, options, env)


_BACKENDS: dict[str, Callable[[str, StoreOptions, Env], ObjectStore]] = {
    "file": _open_file,
    "s3": _open_s3,
    "memory": _open_memory,
}
