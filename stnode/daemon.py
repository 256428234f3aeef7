"""The process: the entry point of `stnode`, and the life of the daemon: lock, log, signals, start and an orderly end.

SIGTERM and SIGINT stop it within seconds, whatever the store does; a second one, or an end that takes too long, ends the process
at once. That is safe at any moment: what was acknowledged is in the store.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stnode import config
from stnode.clock import Env, system_env
from stnode.errors import StnodeError
from stnode.frontends.cli.app import App, pass_app
from stnode.frontends.cli.main import run_cli
from stnode.frontends.cli.settings import change_line, wishes
from stnode.memory import keep_freed_memory, spare_collections
from stnode.node.connect import check_store, connect, repair_store
from stnode.node.home import Holder, Home, HomeLock, default_home, lock_or_daemon
from stnode.node.service import Service
from stnode.telemetry import configure_logging, get_logger

if TYPE_CHECKING:
    from stnode.frontends.api import ApiServer
    from stnode.node.node import Node

T = TypeVar("T")
log = get_logger(__name__)

_STOP_S = 8.0
_MANY_FILES = 65536


def main() -> None:
    """The `stnode` command."""
    app = App(connect, check_store, repair_store, system_env, os.environ, Home(default_home(os.environ)))
    sys.exit(run_cli(app, sys.argv[1:], [run]))


@click.command()
@click.option(
    "--apply", "apply", is_flag=True, help="First make the store's devices and folders what config.toml asks for (never removing any)."
)
@pass_app
def run(app: App, apply: bool) -> None:
    """Run the node until it is stopped."""
    app.home.require(app.environ)
    settings = config.load(app.home.config, app.environ)
    json = settings.log.format == "json" or (settings.log.format == "auto" and not sys.stderr.isatty())
    configure_logging(settings.log.level, json=json)
    _allow_many_files()
    keep_freed_memory()
    env = system_env(settings.limits.threads)
    try:
        asyncio.run(serve(app.home, settings, env, apply=apply))
    finally:
        env.close()


async def serve(home: Home, settings: config.Config, env: Env, *, apply: bool = False) -> None:
    """Runs a node on `home` until a signal or `stnode shutdown` ends it. Raises what keeps it from starting."""
    lock = await lock_or_daemon(home, env, "daemon")
    assert isinstance(lock, HomeLock)
    stop = asyncio.Event()
    try:
        with _signals(stop):
            await _serve_locked(home, settings, env, lock, stop, apply)
    finally:
        lock.release()


async def _serve_locked(home: Home, settings: config.Config, env: Env, lock: HomeLock, stop: asyncio.Event, apply: bool) -> None:
    from stnode.frontends.api import ApiServer
    from stnode.net.interfaces import interface_addresses, page_url
    from stnode.node.node import Node
    from stnode.node.operations import NodeService

    node = await _unless(stop, env, Node.open(home.path, settings, env, try_out=True))
    if node is None:
        return
    settings = node.config
    service = NodeService(node, home.state, stop.set)
    api = ApiServer(service, settings.api, service.metrics)
    try:
        url = await api.start()
        if apply:
            for change in await service.settings_apply(*wishes(settings), False):
                log.info("applied", change=change_line(change))
        node.page = page_url(settings.api.address[0], url, interface_addresses())
        spare_collections()
        await node.start()
        lock.announce(Holder(os.getpid(), "daemon", url, settings.api.api_key))
        click.echo(f"device ID  {await service.id()}\npage       {url}/")
        log.info("ready", device_id=await service.id(), listening=list(node.listening), page=f"{url}/")
        await _tell_differences(service, settings)
        if (ended := await _unless(stop, env, node.store.stopped())) is not None:
            raise ended
        log.info("stopping")
    finally:
        await _stop(api, node)


async def _tell_differences(service: Service, settings: config.Config) -> None:
    """A line for each wish of config.toml that the store does not fulfil."""
    try:
        for change in await service.settings_plan(*wishes(settings), False):
            log.warning("config.toml differs from the store: `stnode apply`", change=change_line(change))
    except StnodeError as exc:
        log.warning("config.toml cannot be compared with the store", error=exc.message, hint=exc.hint)


async def _stop(api: ApiServer, node: Node) -> None:
    try:
        async with asyncio.timeout(_STOP_S):
            await api.stop()
            await node.stop()
    except TimeoutError:
        log.warning("the node did not stop in time: ending the process", seconds=_STOP_S)
        _end_now()


def _end_now() -> None:
    sys.stderr.flush()
    os._exit(0)


async def _unless(stop: asyncio.Event, env: Env, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None, the work cancelled, when `stop` came first."""
    task, stopped = env.spawn(work, "work"), env.spawn(stop.wait(), "stop")
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task}, timeout=_STOP_S)
        if not task.done():
            _end_now()
        return None
    finally:
        stopped.cancel()


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT sets `stop`, the second ends the process."""

    def on_signal() -> None:
        if stop.is_set():
            _end_now()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _allow_many_files() -> None:
    """Raises the limit of open files as far as the system lets us: each device and each request to the store takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, _MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
