"""Stores without conditional writes are for one declared node: the declaration in stnode.json, and waiting for another process to be gone.

What keeps commits apart if two processes overlap all the same is `slots.py`; this only makes that rare.
"""

from __future__ import annotations

from typing import Final

from stnode.clock import Env
from stnode.errors import Corrupt, NotFound, Refused, Unavailable
from stnode.objectstore.base import Key, ObjectStore
from stnode.repo import layout
from stnode.repo.heartbeat import decode_heartbeat
from stnode.telemetry import get_logger

DECLARATION: Final = "single_node"
"""The key in stnode.json; its value is the declared node's device ID, 64 hex digits."""
QUIET_S: Final = 120.0
"""A process whose heartbeat is older than this is taken to be gone."""
HEARTBEAT_S: Final = 40.0
"""How often the node of such a store writes its heartbeat: thrice before it is taken to be gone."""
LOOK_S: Final = 10.0
COMMAND_PATIENCE_S: Final = QUIET_S + LOOK_S
"""A command waits for a daemon that was killed, not for one that runs elsewhere."""

log = get_logger(__name__)


def declared_node(document: dict[str, object]) -> bytes | None:
    """The device ID that stnode.json declares as the store's only node; None where conditional writes order several nodes."""
    found = document.get(DECLARATION)
    return bytes.fromhex(found) if isinstance(found, str) else None


def check_declaration(document: dict[str, object], node: bytes, *, wanted: bool) -> bool:
    """Whether the store is one node's, as declared in stnode.json. Raises Refused where that is another node, or where this one's
    configuration (`wanted`) does not say so."""
    declared = declared_node(document)
    if declared is None:
        return False
    if not wanted:
        raise Refused(
            "this store is for a single node, for it has no conditional writes; this node's configuration does not say that it is the one",
            hint="if no other process uses the store, set `single_node = true` in [store]",
        )
    if declared != node:
        raise Refused(
            f"this store is for a single node, and that is another one ({declared.hex()[:16]}…)",
            hint="use that node's cert.pem and key.pem; or, if it is gone for good, run `stnode init --single-node` here",
        )
    return True


def no_conditional_writes(name: str = "") -> Refused:
    """The error for a store that only one declared node may use."""
    return Refused(
        f"the object store{f' ({name})' if name else ''} has no conditional writes: commits of several nodes would overwrite each other",
        hint="use a server or a version of it that honours If-None-Match; or, if this node will be the only one, run "
        "`stnode init --single-node` (and set `single_node = true` in [store])",
    )


async def youngest_heartbeat_s(objects: ObjectStore, env: Env) -> float | None:
    """How old the youngest heartbeat is, by the store's clock, of processes that have not said that they stop; None without any."""
    youngest: float | None = None
    for meta in [meta async for meta in objects.list(layout.heartbeat_prefix())]:
        age_s = max(0, (meta.date_ns or env.clock.now_ns()) - meta.modified_ns) / 1e9
        if age_s < QUIET_S and not await _stopped(objects, meta.key):
            youngest = age_s if youngest is None else min(youngest, age_s)
    return youngest


async def _stopped(objects: ObjectStore, key: Key) -> bool:
    try:
        return decode_heartbeat((await objects.get(key)).data, key).stopped
    except NotFound:
        return True
    except (Corrupt, Refused):
        return False  # of a newer version perhaps


async def wait_for_silence(objects: ObjectStore, env: Env, *, patience_s: float = float("inf")) -> None:
    """Returns when no process has written a heartbeat for two minutes; one that ends in order says so in its last one. Called before
    this process writes its first. Raises Unavailable when the other one goes on for longer than `patience_s`."""
    started_s, told = env.clock.monotonic(), False
    while True:
        age_s = await youngest_heartbeat_s(objects, env)
        if age_s is None:
            return
        if not told:
            log.warning("another process of this single-node store may still run: waiting until its heartbeat is two minutes old")
            told = True
        if env.clock.monotonic() - started_s > patience_s:
            raise Unavailable(
                f"another process works on this single-node store: its heartbeat is {age_s:.0f} seconds old",
                hint="stop it, or ask it: two processes would get into each other's way",
            )
        await env.clock.sleep(min(LOOK_S, QUIET_S - age_s + 1))
