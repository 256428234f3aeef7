"""Heartbeats of the store's nodes: what each says of itself under `nodes/`, overwritten again and again (design 4, 5; R21, R23).

A heartbeat is a hint, never a lock: nothing that must be right depends on one. How old it is says the store (Last-Modified against its
Date), never a node's clock. This module reads and writes them; when that is due decides `node/siblings.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.message import DecodeError

from stnode.clock import Env
from stnode.errors import Corrupt, NotFound, Refused
from stnode.objectstore.base import Blob, Meta, ObjectStore
from stnode.repo import layout
from stnode.repo.container import Kind, damaged, open_one, seal
from stnode.repo.pb import store_pb2 as pb
from stnode.telemetry import get_logger

FRESH_S: Final = 660.0
"""A node that wrote within this time is taken to be there: two heartbeats of five minutes, and a little."""
IGNORED_AFTER_S: Final = 86_400.0
DELETED_AFTER_S: Final = 30 * 86_400.0
REFRESH_S: Final = 30.0
"""Unless asked otherwise, reading again sooner than this shows what was read before."""
RENEWED_SINGLY: Final = 9
MAX_BYTES: Final = 1 << 20
"""Larger objects are no heartbeats."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reach:
    """A peer that a node is connected to, and the rate that it measured while pulling from it; 0: nothing measured yet."""

    device_id: bytes
    bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a node says of itself. `written_us` is the store's time of the object (0 before it is written). `addresses` take BEP connections; `page` is
    "" where only the node's own machine reaches it. `not_pulled`: fkeys of folders that it does not pull, `unshared`: of those that it pulls and
    that no peer which it reaches shares with it. `full`: no room for another pack, `working`: it
    pulls or commits. `head` is the last commit that it has applied, `started_us` the store's time at the start of the process `instance`. `stopped`: the last word of a
    process that ended in order."""

    node: bytes
    instance: int
    name: str = ""
    version: str = ""
    started_us: int = 0
    written_us: int = 0
    addresses: tuple[str, ...] = ()
    page: str = ""
    reached: tuple[Reach, ...] = ()
    not_pulled: tuple[str, ...] = ()
    unshared: tuple[str, ...] = ()
    full: bool = False
    working: bool = False
    head: int = 0
    features: tuple[str, ...] = ()
    stopped: bool = False

    def newer_process_than(self, other: Heartbeat) -> bool:
        """Whether both are of one node and this one's process was started later."""
        return self.node == other.node and (self.started_us, self.instance) > (other.started_us, other.instance)


def encode_heartbeat(heartbeat: Heartbeat) -> bytes:
    """The object under `nodes/`."""
    message = pb.Heartbeat(
        node=heartbeat.node,
        instance=heartbeat.instance,
        name=heartbeat.name,
        version=heartbeat.version,
        started_us=heartbeat.started_us,
        addresses=heartbeat.addresses,
        page=heartbeat.page,
        reached=[pb.Reach(device_id=reach.device_id, bytes_per_s=reach.bytes_per_s) for reach in heartbeat.reached],
        not_pulled=heartbeat.not_pulled,
        unshared=heartbeat.unshared,
        full=heartbeat.full,
        working=heartbeat.working,
        head=heartbeat.head,
        features=heartbeat.features,
        stopped=heartbeat.stopped,
    )
    return seal(Kind.HEARTBEAT, message.SerializeToString(deterministic=True))


def decode_heartbeat(data: bytes, name: str) -> Heartbeat:
    """Heartbeat of the object `name`, without its time; raises Corrupt, or Refused for a newer format."""
    payload = open_one(Kind.HEARTBEAT, data, name)
    try:
        message = pb.Heartbeat.FromString(payload)
    except DecodeError as exc:
        raise damaged(name, "no heartbeat can be read from it") from exc
    if len(message.node) != 32 or any(len(reach.device_id) != 32 for reach in message.reached):
        raise damaged(name, "its device IDs are malformed")
    return Heartbeat(
        node=message.node,
        instance=message.instance,
        name=message.name,
        version=message.version,
        started_us=message.started_us,
        addresses=tuple(message.addresses),
        page=message.page,
        reached=tuple(Reach(reach.device_id, reach.bytes_per_s) for reach in message.reached),
        not_pulled=tuple(message.not_pulled),
        unshared=tuple(message.unshared),
        full=message.full,
        working=message.working,
        head=message.head,
        features=tuple(message.features),
        stopped=message.stopped,
    )


class Heartbeats:
    """Those of a store. `store_time_us` gives the store's time now. Errors of the store go to the caller; a heartbeat that cannot be read is
    passed over, with a line in the log."""

    def __init__(self, objects: ObjectStore, env: Env, store_time_us: Callable[[], int]) -> None:
        self._objects = objects
        self._env = env
        self._store_time_us = store_time_us
        self._known: dict[bytes, Heartbeat] = {}
        self._etags: dict[str, str] = {}
        self._refreshed_s = self._renewed_s = float("-inf")
        self._refreshing = asyncio.Lock()

    @property
    def known(self) -> Mapping[bytes, Heartbeat]:
        """By device ID, own included, as read or written last: those that were unchanged for less than a day then."""
        return self._known

    def now_us(self) -> int:
        """The store's time."""
        return self._store_time_us()

    def age_s(self, heartbeat: Heartbeat) -> float:
        """How long ago it was written, by the store's clock."""
        return max(0.0, (self._store_time_us() - heartbeat.written_us) / 1e6)

    def fresh(self) -> list[Heartbeat]:
        """Those of the last eleven minutes whose node has not stopped, own included, ordered by device ID."""
        return [heartbeat for _, heartbeat in sorted(self._known.items()) if self.is_fresh(heartbeat)]

    def is_fresh(self, heartbeat: Heartbeat) -> bool:
        """Whether its node is taken to be there."""
        return not heartbeat.stopped and self.age_s(heartbeat) <= FRESH_S

    async def refresh(self, max_age_s: float = REFRESH_S) -> None:
        """Reads what changed, unless that was done within `max_age_s`: one listing and a GET for each heartbeat that is new. Calls at the
        same time share one."""
        async with self._refreshing:
            if self._env.clock.monotonic() - self._refreshed_s < max_age_s:
                return
            listed = [meta async for meta in self._objects.list(layout.heartbeat_prefix())]
            self._refreshed_s = self._env.clock.monotonic()
            await self._take_listed(listed)

    async def renew(self, max_age_s: float = REFRESH_S) -> None:
        """Reads those anew that are fresh, unless that was done within `max_age_s`; one by one where they are few, which costs a twelfth of a
        listing each. Does not find new nodes, unless by a listing."""
        if len(nodes := [heartbeat.node for heartbeat in self.fresh()]) > RENEWED_SINGLY:
            await self.refresh(max_age_s)
            return
        async with self._refreshing:
            if self._env.clock.monotonic() - max(self._refreshed_s, self._renewed_s) >= max_age_s:
                self._renewed_s = self._env.clock.monotonic()
                await asyncio.gather(*map(self.look, nodes))

    async def look(self, node: bytes) -> Heartbeat | None:
        """Reads one node's heartbeat, None if there is none that can be read and is not ignored for its age."""
        key = layout.heartbeat_key(node)
        try:
            blob = await self._objects.get(key)
        except NotFound:
            self._forget(key)
            return None
        return self._take(blob)

    async def write(self, heartbeat: Heartbeat) -> None:
        """Overwrites the heartbeat of its node."""
        key = layout.heartbeat_key(heartbeat.node)
        result = await self._objects.put(key, [encode_heartbeat(heartbeat)])
        written_us = self._store_time_us() if result.date_ns is None else result.date_ns // 1000
        self._known[heartbeat.node] = replace(heartbeat, written_us=written_us)
        self._etags[key] = result.etag

    async def remove(self, node: bytes) -> None:
        """Deletes a node's heartbeat: it is no sibling any more, unless it writes another."""
        key = layout.heartbeat_key(node)
        await self._objects.delete(key)
        self._forget(key)

    async def _take_listed(self, listed: list[Meta]) -> None:
        """Makes `known` what the listing says."""
        present: set[str] = set()
        changed: list[Meta] = []
        for meta in listed:
            age_s = (self._store_time_us() - meta.modified_ns // 1000) / 1e6
            if age_s > DELETED_AFTER_S:
                with suppress(Refused):  # whose credentials may delete does it; it is ignored meanwhile
                    await self._objects.delete(meta.key)
            elif age_s <= IGNORED_AFTER_S:
                present.add(meta.key)
                if self._etags.get(meta.key) != meta.etag and meta.size_bytes <= MAX_BYTES:
                    changed.append(meta)
        for key in [key for key in self._etags if key not in present]:
            self._forget(key)
        for meta in changed:
            try:
                self._take(await self._objects.get(meta.key))
            except NotFound:
                self._forget(meta.key)

    def _take(self, blob: Blob) -> Heartbeat | None:
        key = blob.meta.key
        self._etags[key] = blob.meta.etag
        try:
            heartbeat = decode_heartbeat(blob.data, key)
            if layout.heartbeat_key(heartbeat.node) != key:
                raise damaged(key, "it is of another node")
        except (Corrupt, Refused) as exc:
            log.warning("a heartbeat is passed over", error=exc.message)
            self._drop(key)
            return None
        heartbeat = replace(heartbeat, written_us=blob.meta.modified_ns // 1000)
        if self.age_s(heartbeat) > IGNORED_AFTER_S:
            self._drop(key)
            return None
        self._known[heartbeat.node] = heartbeat
        return heartbeat

    def _forget(self, key: str) -> None:
        self._etags.pop(key, None)
        self._drop(key)

    def _drop(self, key: str) -> None:
        for node in [node for node in self._known if layout.heartbeat_key(node) == key]:
            del self._known[node]
