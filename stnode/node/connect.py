"""How a command reaches its node: the daemon if one runs on this home, else the node itself, opened without listeners."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from stnode import config
from stnode.clock import Env
from stnode.node.home import Holder, Home, lock_or_daemon
from stnode.node.service import Service


@asynccontextmanager
async def connect(home: Home, env: Env, environ: Mapping[str, str]) -> AsyncIterator[Service]:
    """The node of `home` as a service, for the length of one command. While it is open without a daemon, the home is locked:
    a daemon that starts meanwhile waits. Raises ConfigError when there is no node, Unavailable when it cannot be reached."""
    home.require()
    found = await lock_or_daemon(home, env, "command")
    if isinstance(found, Holder):
        from stnode.node.remote import RemoteService

        remote = RemoteService(found.url, found.api_key)
        try:
            yield remote
        finally:
            await remote.close()
        return
    try:
        # These imports take most of a second: a command that asks the daemon does without them.
        from stnode.net import identity
        from stnode.node.node import Node
        from stnode.node.operations import NodeService

        settings = config.load(home.config, environ)
        node = await Node.open(home.path, settings, identity.load(home.path), env, offline=True)
        try:
            yield NodeService(node)
        finally:
            await node.stop()
    finally:
        found.release()
