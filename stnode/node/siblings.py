"""The other nodes of the same store: who they are, being found by them, finding and dialing them, hints to and from them (design 5; R16,
R21, R23).

A sibling is a device whose heartbeat lies in the bucket: who can write the bucket is trusted with it. One task writes this node's
heartbeat and reads the others'; one per sibling dials. When heartbeats are due:

    written   at the start, every five minutes, at the end; sooner (30 s) when what they say has changed while siblings are there and work
    read      at the start, every five minutes each by itself, all by a listing every half hour; the one of an unknown device that
              connects, at once. Whoever is about to pull reads all (`Heartbeats.refresh`)

Two processes with one identity: the one that was started later is the node. The other finds the newer heartbeat in place of its own, gives
way (no listener, no connection), and comes back when the newer one has stopped or fallen silent. Commits are safe all the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from stnode.clock import Env, Tasks
from stnode.errors import Invalid, NotFound, StnodeError
from stnode.net import base as net
from stnode.net.identity import Identity
from stnode.node.dialing import Dialer, LinkState
from stnode.node.sibling_session import SiblingSession
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.messages import Claim, Hello
from stnode.repo.heartbeat import Heartbeat, Reach
from stnode.repo.records import Applied
from stnode.repo.singlenode import HEARTBEAT_S
from stnode.repo.store import Store
from stnode.telemetry import Metrics, get_logger

BEAT_S: Final = 300.0
BEAT_SOON_S: Final = 30.0
"""At most this often a heartbeat is written because it changed."""
READ_S: Final = 300.0
LIST_S: Final = 1800.0
READ_SINGLY: Final = 8
"""Up to so many known siblings are read one by one: a GET costs a twelfth of a listing."""
TICK_S: Final = 10.0
"""How often it is looked whether the heartbeat has changed, while there are siblings."""
MEET_S: Final = 5.0
"""So long after its start a node that is to fetch something waits for siblings that it knows of: they may be fetching it."""
RETRY_S: Final = 30.0
GIVEN_WAY_LOOK_S: Final = 15.0
QUESTION_EVERY_S: Final = 1.0
QUESTION_AGAIN_S: Final = 10.0
"""An unknown device's heartbeat is asked for at most this often, whatever it does; heartbeats of unknown devices at most every second."""
_QUESTIONS_KEPT = 100
_OTHER_FIRST_S = 2.0
_LAST_WORD_S = 2.0

_log = get_logger(__name__)


@dataclass(slots=True)
class SiblingState(LinkState[SiblingSession]):
    """What is known of one sibling beyond its heartbeat. `lan`: addresses heard of on the local network."""

    lan: tuple[str, ...] = ()

    @property
    def greeted(self) -> SiblingSession | None:
        """The session, once the sibling's Hello has come."""
        return self.session if self.session is not None and self.session.greeting is not None else None


class Siblings:
    """`describe` gives this node's heartbeat of now; `changed` is told when who the siblings are or where has changed; `give_way(True)` has
    to end all connections with devices, `give_way(False)` to take them up again; `fetches(node, folder_key, contents)` says which of the contents
    that a sibling is about to fetch are fetched here. `newer` is the heartbeat of the process that this one has
    given way to."""

    def __init__(
        self,
        env: Env,
        store: Store,
        identity: Identity,
        metrics: Metrics,
        hello: Hello,
        describe: Callable[[], Heartbeat],
        changed: Callable[[], None],
        give_way: Callable[[bool], Awaitable[None]],
        fetches: Callable[[bytes, str, Collection[int]], tuple[int, ...]],
    ) -> None:
        self.states: dict[DeviceID, SiblingState] = {}
        self.newer: Heartbeat | None = None
        self._env = env
        self._store = store
        self._beats = store.heartbeats
        self._identity = identity
        self._own = identity.device_id
        self._metrics = metrics
        self._hello = hello
        self._describe = describe
        self._changed = changed
        self._give_way = give_way
        self._fetches = fetches
        self._dialer = Dialer(env, identity, self.accept)
        self._started_us = 0
        self._written: Heartbeat | None = None
        self._written_s = self._read_s = self._listed_s = self._own_look_s = float("-inf")
        self._retry_s = self._meet_until = float("-inf")
        self._shape: frozenset[object] = frozenset()
        self._questions: list[DeviceID] = []
        self._asked: dict[DeviceID, float] = {}
        self._question_s = float("-inf")
        self._doubted = self._knocked = self._stopping = False
        self._wake = asyncio.Event()
        self._tasks = Tasks(env, self._crashed)

    # --- life

    def start(self) -> None:
        """Writes and reads heartbeats, and dials, until `stop`."""
        self._meet_until = self._env.clock.monotonic() + MEET_S
        self._tasks.spawn(self._run(), "siblings")

    async def stop(self) -> None:
        """Ends all connections, and says in the heartbeat that this node has stopped."""
        self._stopping = True
        await self._leave("the node is stopping")
        await self._tasks.close()
        if self._written is not None and self.newer is None:
            try:
                async with asyncio.timeout(_LAST_WORD_S):
                    await self._beats.write(replace(self._written, stopped=True, working=False, reached=()))
            except (StnodeError, TimeoutError) as exc:
                _log.info("the last heartbeat could not be written", error=str(exc))

    async def _leave(self, reason: str) -> None:
        sessions = [known.session for known in self.states.values() if known.session is not None]
        for session in sessions:
            session.close(reason)
        for session in sessions:
            await session.wait_ended()

    def _crashed(self, name: str, exc: Exception) -> None:
        _log.error("sibling task ended by a bug", task=name, exc_info=exc)

    # --- for the node

    @property
    def others(self) -> Mapping[DeviceID, Heartbeat]:
        """Heartbeats of the siblings, own excluded, as last read."""
        return {DeviceID(node): heartbeat for node, heartbeat in self._beats.known.items() if node != self._own}

    def knows(self, device: DeviceID) -> bool:
        """Whether it is a sibling, as far as heartbeats were read."""
        return device != self._own and device in self._beats.known

    def applied(self, applied: Applied) -> None:
        """Hears of every commit: siblings are told of own ones at once."""
        if applied.own:
            for known in self.states.values():
                if (session := known.greeted) is not None:
                    session.hint(applied.number)
                    self._metrics.hints.labels("sent").inc()

    async def who_fetches(self, folder_key: str, contents: Collection[int]) -> dict[bytes, Collection[int]]:
        """What the connected siblings say (`folder.claims.Asker`): all are asked at once, within half a second; soon after the start it waits
        for those that are to be connected."""
        while self._env.clock.monotonic() < self._meet_until and self._misses_some():
            await self._env.clock.sleep(0.1)
        sessions = [session for known in self.states.values() if (session := known.greeted) is not None]
        answers = await asyncio.gather(*(session.who_fetches(folder_key, contents) for session in sessions))
        return {session.device_id: held for session, held in zip(sessions, answers, strict=True)}

    def _misses_some(self) -> bool:
        """Whether a sibling that seems to be there is not connected yet."""
        return any(
            self._beats.is_fresh(heartbeat) and heartbeat.addresses and ((known := self.states.get(node)) is None or known.greeted is None)
            for node, heartbeat in self.others.items()
        )

    def ask(self, device: DeviceID) -> None:
        """An unknown device wants to connect: is it a sibling? The answer shows when it tries again."""
        now = self._env.clock.monotonic()
        if now - self._asked.get(device, float("-inf")) >= QUESTION_AGAIN_S and len(self._questions) < _QUESTIONS_KEPT:
            self._asked = {other: at for other, at in self._asked.items() if now - at < QUESTION_AGAIN_S}
            self._asked[device] = now
            self._questions.append(device)
            self._wake.set()

    def doubt(self) -> None:
        """Somebody with this node's own identity connects: looks who is the newer one."""
        self._doubted = True
        self._wake.set()

    def heard_of(self, device: DeviceID, addresses: tuple[str, ...]) -> None:
        """The local network names addresses of a node of this store. They count once its heartbeat has been read."""
        if device == self._own:
            return
        if self.knows(device):
            self._state(device).lan = addresses
            self._wake.set()
        else:
            self.ask(device)

    async def remove(self, text: str) -> None:
        """Forgets the sibling of this name or device ID, until it writes another heartbeat. Raises NotFound, Invalid for a name that
        several have."""
        named = [id_ for id_, heartbeat in self.others.items() if text in (heartbeat.name, deviceid.format(id_))]
        if len(named) > 1:
            raise Invalid(f"{len(named)} nodes have the name {text!r}", hint="use the device ID; `stnode status --json` shows it")
        if not named:
            raise NotFound(f"no other node of this store is {text!r}", hint="`stnode status` shows them")
        await self._beats.remove(named[0])
        self._wake.set()

    def accept(self, device: DeviceID, address: str) -> SiblingSession | None:
        """The handler of a new link with a sibling, or None to drop it: one connection per sibling, the first that stands."""
        del address
        if self._stopping or self.newer is not None or not self.knows(device):
            return None
        known = self._state(device)
        if not known.makes_room():
            return None
        known.session = SiblingSession(self._env, device, self)
        return known.session

    # --- sibling_session.SiblingHost

    def hello(self) -> Hello:
        """What we say first, with the time of now."""
        return replace(self._hello, timestamp_ns=self._env.clock.now_ns())

    def introduced(self, session: SiblingSession) -> None:
        """The sibling's Hello has come."""
        self._state(session.device_id).last_error = ""
        _log.info(
            "sibling connected",
            device=deviceid.format(session.device_id),
            name=session.greeting.device_name if session.greeting else "",
            address=session.link.remote_address if session.link else "",
        )
        session.hint(self._store.status().journal.number)

    def hinted(self, session: SiblingSession, head: int) -> None:
        """The sibling knows a commit of this number."""
        self._metrics.hints.labels("received").inc()
        self._store.hint(head)

    def claimed(self, session: SiblingSession, claim: Claim) -> tuple[int, ...]:
        """The sibling is about to fetch something: what of it is fetched here."""
        return self._fetches(session.device_id, claim.folder_key, claim.contents)

    def ended(self, session: SiblingSession, reason: str) -> None:
        """The link is gone."""
        if session.greeting is not None:
            _log.info("sibling disconnected", device=deviceid.format(session.device_id), reason=reason)
        known = self.states.get(session.device_id)
        if known is not None and known.session is session:
            known.session = None
            known.last_error = reason
            known.wake.set()

    # --- the owner task

    async def _run(self) -> None:
        failing = False
        while True:
            self._wake.clear()
            try:
                await self._step()
                failing = False
            except StnodeError as exc:
                if not failing:
                    _log.info("heartbeats cannot be written or read", error=exc.message)
                failing = True
                self._retry_s = self._env.clock.monotonic() + RETRY_S
            self._reconcile()
            try:
                async with asyncio.timeout(max(0.0, self._due() - self._env.clock.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _due(self) -> float:
        """When there is something to do next."""
        now = self._env.clock.monotonic()
        due = min(self._own_due(), self._read_due())
        if self._doubted:
            due = min(due, max(now, self._own_look_s + QUESTION_EVERY_S))
        if self._questions:
            due = min(due, max(now, self._question_s + QUESTION_EVERY_S))
        if self.others and self.newer is None:
            due = min(due, now + TICK_S)
        return max(due, self._retry_s)

    async def _step(self) -> None:
        now = self._env.clock.monotonic()
        if now >= self._own_due() or (self._doubted and now >= self._own_look_s + QUESTION_EVERY_S):
            self._doubted = False
            await self._beat()
        if now >= self._read_due():
            await self._read()
        if self._questions and now >= self._question_s + QUESTION_EVERY_S:
            self._question_s = now
            await self._beats.look(self._questions.pop(0))

    # --- the own heartbeat

    def _own_due(self) -> float:
        if self.newer is not None:
            return self._own_look_s + GIVEN_WAY_LOOK_S
        due = self._written_s + (HEARTBEAT_S if self._store.single_node else BEAT_S)
        if self._written is not None and self._worth_telling(self._written):
            due = min(due, self._written_s + BEAT_SOON_S)
        return due

    def _worth_telling(self, written: Heartbeat) -> bool:
        """Whether siblings are there for whom something has changed: always whom this node reaches, since they leave work to it; the rest
        while they or this node work."""
        others = [heartbeat for heartbeat in self.others.values() if self._beats.is_fresh(heartbeat)]
        now = self._describe()
        if not others or _essence(now) == _essence(written):
            return False
        return _whom(now) != _whom(written) or now.working or any(heartbeat.working for heartbeat in others)

    async def _beat(self) -> None:
        """Looks who is the node of this identity, and writes its heartbeat if that is this process."""
        self._own_look_s = self._env.clock.monotonic()
        found = await self._beats.look(self._own)
        if not self._started_us:
            # Whatever was there when this process began was there before it, whatever the clocks say.
            self._started_us = max(self._beats.now_us(), found.started_us + 1 if found is not None else 0)
        own = self._heartbeat()
        other = found if found is not None and found.instance != own.instance and self._beats.is_fresh(found) else None
        if other is not None and other.newer_process_than(own):
            await self._stand_back(other)
            return
        if self.newer is not None:
            await self._give_way(False)
            self.newer = None
            _log.info("the other process with this identity has ended: this one is the node again")
            own = self._heartbeat()
        await self._beats.write(own)
        self._written, self._written_s = own, self._env.clock.monotonic()
        if other is not None and not self._knocked:
            self._knocked = True
            self._tasks.spawn(self._knock(other), "knock")

    def _heartbeat(self) -> Heartbeat:
        return replace(self._describe(), started_us=self._started_us)

    async def _stand_back(self, newer: Heartbeat) -> None:
        if self.newer is None:
            _log.warning(
                "another process with this node's identity was started later: this one leaves the devices to it",
                addresses=list(newer.addresses),
                name=newer.name,
                hint="end one of them; two nodes need two identities, each made by `stnode init`",
            )
            self.newer = newer
            await self._leave("another process with this identity was started later")
            await self._give_way(True)
        self.newer = newer

    async def _knock(self, older: Heartbeat) -> None:
        """Connects to the older process with its own identity, so that it looks at the heartbeat now and not within minutes. It may be long
        gone: then nobody answers."""
        for address in set(older.addresses) - set(self._describe().addresses):
            try:
                await net.dial(self._env, address, self._identity, self._own, lambda _device, _address: None)
            except StnodeError:
                continue

    # --- the others' heartbeats

    def _read_due(self) -> float:
        return self._read_s + READ_S

    async def _read(self) -> None:
        now = self._env.clock.monotonic()
        others = list(self.others)
        if now - self._listed_s >= LIST_S or len(others) > READ_SINGLY:
            await self._beats.refresh(READ_S / 2)
            self._listed_s = now
        else:
            for node in others:
                await self._beats.look(node)
        self._read_s = now

    def _reconcile(self) -> None:
        """Takes up what the heartbeats say: siblings that came and went, whom to dial."""
        others = self.others
        for node in [node for node in self.states if node not in others]:
            gone = self.states.pop(node)
            if gone.session is not None:
                gone.session.close("its heartbeat is gone")
            gone.wake.set()
        for node in others:
            known = self._state(node)
            if not known.dialer and self._addresses(node):
                known.dialer = True
                # Both sides dial: the one with the greater ID lets the other begin.
                first_s = _OTHER_FIRST_S if self._own > node else 0.0
                dialing = self._dialer.keep_dialing(node, known, partial(self._addresses_of, node, known), first_s=first_s)
                self._tasks.spawn(dialing, f"dial sibling {deviceid.format(node)[:7]}")
        shape = frozenset((node, heartbeat.name, heartbeat.addresses, heartbeat.not_pulled) for node, heartbeat in others.items())
        if shape != self._shape:
            self._shape = shape
            self._changed()

    def _state(self, device: DeviceID) -> SiblingState:
        return self.states.setdefault(device, SiblingState())

    # --- whom to dial

    def _addresses(self, node: DeviceID) -> tuple[str, ...]:
        """Where a sibling is to be dialed; nowhere while it has stopped or this process has given way."""
        heartbeat = self._beats.known.get(node)
        known = self.states.get(node)
        if heartbeat is None or known is None or heartbeat.stopped or self.newer is not None or self._stopping:
            return ()
        return tuple(dict.fromkeys((*known.lan, *heartbeat.addresses)))

    def _addresses_of(self, node: DeviceID, known: SiblingState) -> tuple[str, ...]:
        """`_addresses`; nowhere if it went meanwhile, even if it came back: then another task dials it."""
        return self._addresses(node) if self.states.get(node) is known else ()


def _whom(heartbeat: Heartbeat) -> tuple[object, ...]:
    """Whom it reaches, and for which folders."""
    return {reach.device_id for reach in heartbeat.reached}, heartbeat.unshared, heartbeat.not_pulled


def _essence(heartbeat: Heartbeat) -> Heartbeat:
    """What of a heartbeat is worth writing it sooner: neither the head, which changes with every commit, nor rates that changed by less
    than half."""
    reached = tuple(Reach(reach.device_id, reach.bytes_per_s.bit_length()) for reach in heartbeat.reached)
    return replace(heartbeat, reached=reached, head=0, started_us=0, written_us=0)
