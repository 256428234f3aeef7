"""How a command reaches its node: the daemon if one runs on this home, else the node itself, opened without listeners.

These imports take most of a second, so they are made where they are needed: a command that asks the daemon does without them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from stnode import config
from stnode.clock import Env
from stnode.errors import Refused
from stnode.node.home import Holder, Home, lock_or_daemon
from stnode.node.service import CheckStep, RepairPlan, RepairReport, RepairWish, Service
from stnode.repo.repairreport import A_CHECKPOINT


@asynccontextmanager
async def connect(home: Home, env: Env, environ: Mapping[str, str]) -> AsyncIterator[Service]:
    """The node of `home` as a service, for the length of one command. While it is open without a daemon, the home is locked:
    a daemon that starts meanwhile waits. Raises ConfigError when there is no node, Unavailable when it cannot be reached."""
    home.require(environ)
    found = await lock_or_daemon(home, env, "command")
    if isinstance(found, Holder):
        async with _remote(found) as remote:
            yield remote
        return
    try:
        from stnode.node.node import Node
        from stnode.node.operations import NodeService

        settings = config.load(home.config, environ)
        node = await Node.open(home.path, settings, env)
        try:
            yield NodeService(node, home.state)
        finally:
            await node.stop()
    finally:
        found.release()


async def check_store(
    home: Home, env: Env, environ: Mapping[str, str], read_data: bool, share: float, repair: bool
) -> AsyncIterator[CheckStep]:
    """Checks the store of `home`: by its daemon, else directly, without a node: none may be able to start on a damaged store. Repairing
    takes a node, a running one for what only devices have."""
    home.require(environ)
    if repair:
        async with connect(home, env, environ) as service:
            async for step in service.bucket_check(read_data, share, repair):
                yield step
        return
    found = await lock_or_daemon(home, env, "command")
    if isinstance(found, Holder):
        async with _remote(found) as remote:
            async for step in remote.bucket_check(read_data, share):
                yield step
        return
    try:
        from stnode.node.objects import open_objects
        from stnode.repo.check import check

        objects = await open_objects(home.path, config.load(home.config, environ), env)
        try:
            home.state.mkdir(mode=0o700, exist_ok=True)
            async for step in check(objects, env, home.state, read_data=read_data, share=share):
                yield step
        finally:
            await objects.close()
    finally:
        found.release()


async def repair_store(
    home: Home, env: Env, environ: Mapping[str, str], wish: RepairWish, confirm: Callable[[RepairPlan], bool]
) -> RepairReport:
    """Repairs the journal of the store of `home`: a daemon that runs here writes a checkpoint of its state, if `confirm` agrees;
    else all that `bucket repair` can. Raises Refused for a wish that a daemon stands in the way of, and what the repair raises."""
    home.require(environ)
    found = await lock_or_daemon(home, env, "command")
    if isinstance(found, Holder):
        if wish.void or wish.rebuild:
            raise Refused(
                "a daemon runs here: with it nothing is stepped over and no journal is made anew", hint="stop it first: `stnode shutdown`"
            )
        if not confirm(A_CHECKPOINT):
            return RepairReport(A_CHECKPOINT)
        async with _remote(found) as remote:
            return await remote.bucket_repair()
    try:
        from stnode.node import repairing

        return await repairing.repair_store(home.path, config.load(home.config, environ), env, wish, confirm)
    finally:
        found.release()


@asynccontextmanager
async def _remote(holder: Holder) -> AsyncIterator[Service]:
    from stnode.node.remote import RemoteService

    remote = RemoteService(holder.url, holder.api_key)
    try:
        yield remote
    finally:
        await remote.close()
