"""Shares the work of a folder among the nodes of a store: who is there, who is passed over, whom to help (design 6, Siblings; R21).

    alone: no fresh heartbeat of another node reaches a device of the folder -> nothing is asked, nothing is waited for
    shared: each pass over what is needed leaves the others' part to them (`split.py`)
        somebody has let two minutes go by without a commit in this folder -> passed over until it commits again
        what fetches nothing is not committed within ten seconds           -> the next node does it
        idle, and a sibling would need long for the rest of its part       -> helped from the end of the names, while it works up from
                                                                              their beginning; what it commits is dropped here, and the
                                                                              other way round

All of it rests on hints: two nodes that do one thing cost bytes, never correctness, since a commit drops what is there already.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from sqlite3 import Connection
from typing import Final, Protocol

from stnode.clock import Env, Tasks
from stnode.db import Database
from stnode.errors import StnodeError
from stnode.folder import index
from stnode.folder.split import Left, Split, Waiting
from stnode.repo.election import first
from stnode.repo.heartbeat import Heartbeat
from stnode.repo.records import Applied
from stnode.repo.settings import FolderSettings
from stnode.telemetry import get_logger

PASSED_OVER_S: Final = 120.0
LEADER_S: Final = 10.0
"""What fetches nothing is one commit: no reason to wait longer for it."""
HELP_S: Final = 15.0
"""Whoever will be done within this needs no help: it would cost more twice pulled than it saves."""
HELP_SPAN_S: Final = 30.0
"""Not more is taken from another node at once than is pulled in this time."""
RANKED_S: Final = 60.0
"""So long an idle node leaves others their part of the help, whether they are idle too or not: heartbeats say so late. Then only those that
are."""
PACE_S: Final = 10.0
LOOK_S: Final = 5.0
LONGEST_LOOK_S: Final = 15.0
_LISTED_S: Final = 300.0
_RENEWED_S: Final = 60.0
_NEWS_S: Final = 600.0
"""So long after a device has connected siblings are likely to have come to it too: what they say is waited for, and read more often."""
_RENEWED_EARLY_S: Final = 10.0
_TOLD_S: Final = 15.0
_FIRST_READ_S: Final = 2.0
_SPLIT_S: Final = 30.0
_DEFAULT_RATE: Final = 4e6
_GOING: Final = 10_000
_REST: Final = 4
"""A pass is followed by a pause of so many times its length, unless this node has all the work itself."""
_LONGEST_REST_S: Final = 10.0

_log = get_logger(__name__)


class HeartbeatSource(Protocol):
    """What is wanted of `repo.heartbeat.Heartbeats`."""

    @property
    def known(self) -> Mapping[bytes, Heartbeat]: ...
    def fresh(self) -> list[Heartbeat]: ...
    def age_s(self, heartbeat: Heartbeat) -> float: ...
    async def refresh(self, max_age_s: float = ...) -> None: ...
    async def renew(self, max_age_s: float = ...) -> None: ...


@dataclass(slots=True)
class _Sibling:
    """What was seen of a node that work is left to. `since`: when that began, `others_since` for what fetches nothing; `paces`: (time, work
    left) at the passes of the present idle time; `instance`: the process that was passed over."""

    since: float
    others_since: float | None = None
    committed: float = float("-inf")
    passed: bool = False
    late: bool = False
    instance: int = 0
    paces: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=16))

    @property
    def heard(self) -> float:
        """When it last showed that it works, or began to have something to do."""
        return max(self.since, self.committed)


class Sharing:
    """One per folder runner, on the event loop. `items`: names that the last pass left to other nodes and that are still needed."""

    def __init__(self, env: Env, heartbeats: HeartbeatSource, me: bytes, fid: int) -> None:
        self.items = 0
        self._env = env
        self._heartbeats = heartbeats
        self._me = me
        self._fid = fid
        self._shared: set[int] = set()
        self._siblings: dict[bytes, _Sibling] = {}
        self._left = Left()
        self._split: Split | None = None
        self._made = self._device_up = self._shared_at = float("-inf")
        self._began = self._ended = float("-inf")
        self._idle_since: float | None = None
        self._interval = LOOK_S
        self._reading = self._helping = False
        self._tasks = Tasks(env, self._crashed)

    # --- who is there

    def about_to_pull(self, device: int) -> None:
        """A device has connected: what siblings say is read in the background, if that was not done within minutes."""
        self._made = float("-inf")
        self._device_up = self._env.clock.monotonic()
        if device not in self._shared:
            self._shared.add(device)
            self._shared_at = self._device_up
        self._soon(self._heartbeats.refresh, _LISTED_S)

    def device_lost(self) -> None:
        """A device has left: its files are for those who still reach it."""
        self._made = float("-inf")

    def applied(self, applied: Applied) -> None:
        """A commit of anybody: who wrote it is there and works."""
        if applied.own or not applied.node:
            return
        if applied.node not in self._heartbeats.known:
            self._soon(self._heartbeats.refresh, _RENEWED_S)
        sibling = self._siblings.get(applied.node)
        if sibling is not None and self._fid in applied.touched:
            sibling.committed = self._env.clock.monotonic()
            sibling.passed = sibling.late = False

    async def close(self) -> None:
        """Ends reading."""
        await self._tasks.close()

    def _soon(self, read: Callable[[float], Awaitable[None]], max_age_s: float) -> None:
        """Reads in the background, unless that is being done."""
        if not self._reading:
            self._reading = True
            self._tasks.spawn(self._read(read, max_age_s), "heartbeats")

    async def _read(self, read: Callable[[float], Awaitable[None]], max_age_s: float) -> None:
        before = self._heartbeats.fresh()
        try:
            await read(max_age_s)
        except StnodeError as exc:  # a hint: what was known goes on, and the folder's own work tells of the store's trouble
            _log.info("heartbeats not read", error=exc.message)
        finally:
            self._reading = False
        if before != self._heartbeats.fresh():
            self._made = float("-inf")

    def _crashed(self, name: str, exc: Exception) -> None:
        _log.error("folder task ended by a bug", task=name, exc_info=exc)

    def _others(self, settings: FolderSettings) -> list[Heartbeat]:
        """Nodes, this one too, that could do something for the folder; none where no other node could."""
        devices = {device.device_id for device in settings.devices}
        able = [
            heartbeat
            for heartbeat in self._heartbeats.fresh()
            if not heartbeat.full
            and settings.fkey not in heartbeat.not_pulled
            and (settings.fkey not in heartbeat.unshared or self._is_older(heartbeat))
            and any(reach.device_id in devices for reach in heartbeat.reached)
        ]
        return able if any(heartbeat.node != self._me for heartbeat in able) else []

    def _is_older(self, heartbeat: Heartbeat) -> bool:
        """Whether it was written before a device began to share the folder here: most likely it does so there too by now."""
        return self._heartbeats.age_s(heartbeat) > self._env.clock.monotonic() - self._shared_at - _TOLD_S

    # --- a pass over what is needed

    async def begin(self) -> None:
        """A pass begins. Waits for a first look at the siblings that is under way, and between long passes."""
        if self._reading:
            try:
                async with asyncio.timeout(_FIRST_READ_S):
                    while self._reading:
                        await self._env.clock.sleep(0.02)
            except TimeoutError:
                pass
        if self._split is not None:
            rest = self._ended + min(_REST * (self._ended - self._began), _LONGEST_REST_S) - self._env.clock.monotonic()
            if rest > 0:
                await self._env.clock.sleep(rest)
        self._began = self._env.clock.monotonic()
        self._left = Left()
        self._made = float("-inf")
        self._judge(self._began)

    async def split(self, db: Database, settings: FolderSettings, peers: Collection[int]) -> Split | None:
        """Who does what from here on; None where this node does all. Made anew for each pass, and every half minute of one."""
        able = self._others(settings)
        if not able:
            self._split = None
            if all(heartbeat.node == self._me for heartbeat in self._heartbeats.fresh()):
                return None
            if not self._early():
                self._soon(self._heartbeats.renew, _RENEWED_S)
                return None
        await self._read(self._heartbeats.renew, _RENEWED_EARLY_S if self._early() else _RENEWED_S)
        now = self._env.clock.monotonic()
        if self._split is None or now - self._made >= _SPLIT_S:
            able = self._others(settings)
            passed = {node for node, sibling in self._siblings.items() if sibling.passed}
            late = {node for node, sibling in self._siblings.items() if sibling.late}
            make = partial(self._make, able=able, passed=passed, late=late, task=settings.fkey.encode(), peers=set(peers))
            self._split = await db.run(make) if able else None
            self._made = now
        return self._split

    def _early(self) -> bool:
        return self._env.clock.monotonic() - self._device_up < _NEWS_S

    def _make(
        self, conn: Connection, able: Iterable[Heartbeat], passed: set[bytes], late: set[bytes], task: bytes, peers: set[int]
    ) -> Split:
        """In the database's thread."""
        rates: dict[bytes, dict[bytes, int]] = {}
        for heartbeat in able:
            if heartbeat.node not in passed:
                for reach in heartbeat.reached:
                    rates.setdefault(reach.device_id, {})[heartbeat.node] = reach.bytes_per_s
        weights: dict[int, dict[bytes, float]] = {}
        for number, device in index.device_ids(conn).items():
            nodes = weigh(rates.get(device, {}))
            if number not in peers:
                nodes.pop(self._me, None)
            weights[number] = nodes
        renamed = index.going(conn, self._fid, _GOING) if index.need_totals(conn, self._fid).deletes else ()
        return Split(self._me, task, weights, late, renamed)

    def passes_over(self, node: bytes) -> bool:
        """Whether the node makes no progress: what it says it fetches is fetched here too."""
        return node in self._siblings and self._siblings[node].passed

    def leave(self, left: Left) -> None:
        """What is left to others of a window of the pass."""
        self._left.add(left)

    def end(self, *, idle: bool, store_time_us: int) -> list[str]:
        """The pass is over; `idle`: nothing of this node's own is under way. Names of others to be done here nevertheless."""
        now = self._ended = self._env.clock.monotonic()
        before, self.items = self.items, self._left.items
        for node in [node for node in self._siblings if node not in self._left.tallies and not self._siblings[node].passed]:
            del self._siblings[node]
        for node, tally in self._left.tallies.items():
            sibling = self._siblings.setdefault(node, _Sibling(now))
            if not tally.others:
                sibling.others_since = None
            elif sibling.others_since is None:
                sibling.others_since = now
        if not self.items or not (idle or self._helping):
            self._idle_since, self._interval, self._helping = None, LOOK_S, False
            for sibling in self._siblings.values():
                sibling.paces.clear()
        if not self.items or not idle:
            return []
        if self._idle_since is None:
            self._idle_since = now
        self._interval = LOOK_S if self.items < before else min(self._interval * 1.5, LONGEST_LOOK_S)
        taken = self._help(now, now - self._idle_since, store_time_us)
        self._helping = bool(taken)
        return [each.name for each in taken]

    def satisfied(self, names: int) -> None:
        """So many names left to others are no longer needed."""
        self.items = max(0, self.items - names)
        if not self.items:
            self._siblings = {node: sibling for node, sibling in self._siblings.items() if sibling.passed}

    def due(self, *, idle: bool) -> float | None:
        """When to look again at what was left to others (monotonic), None if nothing was."""
        if not self.items:
            return None
        times = [self._ended + max(self._interval, 20 * (self._ended - self._began))] if idle else []
        for sibling in self._siblings.values():
            if not sibling.passed:
                times.append(sibling.heard + PASSED_OVER_S)
            if sibling.others_since is not None and not sibling.late:
                times.append(_leader_due(sibling))
        return max(min(times), self._ended + 1) if times else None

    # --- who is passed over, who is helped

    def _judge(self, now: float) -> None:
        for node, sibling in self._siblings.items():
            heartbeat = self._heartbeats.known.get(node)
            instance = heartbeat.instance if heartbeat is not None else 0
            if sibling.passed and instance != sibling.instance:
                sibling.passed = sibling.late = False
                sibling.since = now
            if not sibling.passed and now >= sibling.heard + PASSED_OVER_S:
                sibling.passed = sibling.late = True
                sibling.instance = instance
                _log.info("a node makes no progress, its work goes to others", node=node.hex()[:14])
            if not sibling.late and sibling.others_since is not None and now >= _leader_due(sibling):
                sibling.late = True

    def _help(self, now: float, idle_s: float, store_time_us: int) -> list[Waiting]:
        taken: list[Waiting] = []
        split = self._split
        if split is None:
            return taken
        mine = max((nodes[self._me] for nodes in split.weights.values() if self._me in nodes), default=0.0)
        rate = mine if mine > 1 else _DEFAULT_RATE
        for node, tally in self._left.tallies.items():
            sibling = self._siblings[node]
            paces = sibling.paces
            if tally.work:
                stall_s = self._stall_s(split, node)
                pace = _pace(paces, now, tally.work, sibling.committed, stall_s)
                paces.append((now, tally.work))
                if pace is not None and tally.work > pace * HELP_S:
                    room = min(rate * HELP_SPAN_S, tally.work * rate / (rate + pace))
                    ranked = idle_s < stall_s + RANKED_S
                    found = self._take(split, node, room, moving=pace > 0, ranked=ranked, store_time_us=store_time_us)
                    taken += found
                    work = sum(each.work for each in found)
                    for at, (then, before) in enumerate(paces):  # what is taken from it is no progress of its own
                        paces[at] = (then, before - work)
        return taken

    def _stall_s(self, split: Split, node: bytes) -> float:
        """How long a node may show nothing before it counts as one that does nothing: two packs take their time."""
        rate = min((nodes[node] for nodes in split.weights.values() if nodes.get(node, 0.0) > 1), default=0.0)
        return min(max(HELP_S, (64 << 20) / rate), PASSED_OVER_S) if rate else HELP_S * 2

    def _take(self, split: Split, node: bytes, room: float, *, moving: bool, ranked: bool, store_time_us: int) -> list[Waiting]:
        """From the end of a node's part, as much as fits. The last file of a node that moves is the one it is at."""
        away = set() if ranked else {heartbeat.node for heartbeat in self._heartbeats.fresh() if heartbeat.working} - {self._me}
        own = [each for each in self._left.tail if each.node == node]
        taken: list[Waiting] = []
        for each in reversed(own[1:] if moving else own):
            if moving and _in_progress(each, store_time_us):
                continue
            helpers = {other: weight for other, weight in split.reach(each.devices).items() if other not in away and other != node}
            if first(each.key, helpers) != self._me:
                continue
            if taken and each.work > room:
                break
            if moving and each.work > room:
                continue
            taken.append(each)
            room -= each.work
        return taken


def weigh(rates: Mapping[bytes, int]) -> dict[bytes, float]:
    """Weights of the nodes that reach a device: their rates, the mean where nothing is measured yet, alike where nobody has measured. In
    steps of a quarter, so that nodes that read heartbeats at different times mostly see the same."""
    measured = [rate for rate in rates.values() if rate > 0]
    usual = sum(measured) / len(measured) if measured else 1.0
    return {node: _stepped(rate or usual) for node, rate in rates.items()}


def _stepped(rate: float) -> float:
    """The rate cut to its three highest bits."""
    whole = int(rate)
    shift = max(0, whole.bit_length() - 3)
    return float(max(1, whole >> shift << shift))


def _leader_due(sibling: _Sibling) -> float:
    """When what fetches nothing goes to the next node: at once if this one seems to be gone, later if it is at work."""
    since = sibling.since if sibling.others_since is None else sibling.others_since
    return min(max(since, sibling.committed) + LEADER_S, since + PASSED_OVER_S)


def _pace(paces: Collection[tuple[float, int]], now: float, work: int, committed: float, stall_s: float) -> float | None:
    """Bytes per second by which a node's work has become less while this node was idle, by the node's own commits; None: not known yet."""
    if not paces:
        return None
    began, before = max((each for each in paces if now - each[0] >= PACE_S), default=min(paces))
    if now - began < PACE_S:
        return None
    pace = max(0.0, (before - work) / (now - began)) if committed >= began else 0.0
    return pace if pace > 0 or now - min(paces)[0] >= stall_s else None


def _in_progress(waiting: Waiting, store_time_us: int) -> bool:
    """Whether its node has stored something of this file lately."""
    saved = waiting.saved
    return saved is not None and saved.node == waiting.node and store_time_us - saved.renewed_us < PASSED_OVER_S * 1e6
