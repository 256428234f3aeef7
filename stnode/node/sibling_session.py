"""One connection to one sibling: Hello, an empty ClusterConfig, Pings, hints and claims both ways (design 5; R16, ADR 0036).

No folder and no index: a sibling has the same journal. Not responsible for who is a sibling (`siblings`), nor for what a hint leads
to (`repo.journal`), nor for who fetches what (`folder.claims`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, Protocol, assert_never

from stnode.clock import Env
from stnode.errors import ProtocolError
from stnode.net.base import Link
from stnode.node.peer_session import PeerSession
from stnode.protocol.connection import BEPConnection
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.messages import (
    Claim,
    Close,
    ClusterConfig,
    DownloadProgress,
    ErrorCode,
    Event,
    Hello,
    Hint,
    Index,
    Ping,
    Request,
    Response,
)

ANSWER_S: Final = 0.5
"""So long an answer is waited for before this node does the work itself."""
UNASKED_S: Final = 30.0
"""So long a sibling that let this go by is asked nothing."""


class SiblingHost(Protocol):
    """What such a session asks of its node."""

    def hello(self) -> Hello: ...
    def introduced(self, session: SiblingSession) -> None: ...
    def hinted(self, session: SiblingSession, head: int) -> None: ...
    def claimed(self, session: SiblingSession, claim: Claim) -> tuple[int, ...]: ...
    def ended(self, session: SiblingSession, reason: str) -> None: ...


class SiblingSession(PeerSession):
    """A link handler (net.base). Made by `siblings` for a device that is one."""

    what = "sibling"

    def __init__(self, env: Env, device_id: DeviceID, host: SiblingHost) -> None:
        super().__init__(env, device_id, BEPConnection(env.clock.monotonic()))
        self.greeting: Hello | None = None
        self._host = host
        self._questions: dict[int, asyncio.Future[Collection[int]]] = {}
        self._asked = 0
        self._unasked_until = float("-inf")

    # --- the link (net.base.LinkHandler)

    def link_made(self, link: Link, peer_id: DeviceID) -> None:
        """TLS is up and the device is who it should be."""
        self._begin(link, self._host.hello())

    def buffer_updated(self, count: int) -> None:
        """`count` bytes of plaintext arrived."""
        self._heard_at = self._env.clock.monotonic()
        try:
            for event in self._conn.buffer_updated(count):
                self._handle(event)
        except ProtocolError as exc:
            self.close(exc.message)
        self.flush()

    def pause_writing(self) -> None:
        """What is sent here is small: nothing has to wait."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def link_lost(self, reason: Exception | None) -> None:
        """The link is gone."""
        self._lost(reason)
        for number in self._questions:
            self._answered(number, ())
        self._host.ended(self, self.last_error)

    # --- for the siblings

    def hint(self, head: int) -> None:
        """Says that the journal has this commit; nothing before the sibling's Hello."""
        if self.greeting is not None and not self._closing:
            self._conn.send_hint(Hint(head))
            self.flush()

    async def who_fetches(self, folder_key: str, contents: Collection[int]) -> Collection[int]:
        """Which of the contents the sibling fetches; none if it does not say so within half a second."""
        if self.greeting is None or self._closing or self._env.clock.monotonic() < self._unasked_until:
            return ()
        self._asked = self._asked % 0xFFFF_FFFF + 1
        number = self._asked
        question: asyncio.Future[Collection[int]] = asyncio.get_running_loop().create_future()
        self._questions[number] = question
        self._conn.send_claim(Claim(number, folder_key, tuple(contents)))
        self.flush()
        try:
            async with asyncio.timeout(ANSWER_S):
                return await question
        except TimeoutError:
            self._unasked_until = self._env.clock.monotonic() + UNASKED_S
            return ()
        finally:
            del self._questions[number]

    # --- inside

    def _answered(self, number: int, contents: Collection[int]) -> None:
        question = self._questions.get(number)
        if question is not None and not question.done():
            question.set_result(contents)

    def _handle(self, event: Event) -> None:
        match event:
            case Hello():
                self.greeting = event
                self._conn.send_cluster_config(ClusterConfig())
                self._host.introduced(self)
            case Hint(head):
                self._host.hinted(self, head)
            case Claim(reply=True):
                self._answered(event.id, event.contents)
            case Claim():
                self._conn.send_claim(Claim(event.id, event.folder_key, self._host.claimed(self, event), reply=True))
            case Request():
                self._conn.send_response(event.id, b"", ErrorCode.GENERIC)  # it takes us for a peer: it has not read our heartbeat yet
            case Close():
                self._closed_by_peer(event.reason)
            case ClusterConfig() | DownloadProgress() | Index() | Ping() | Response():
                pass
            case _:
                assert_never(event)
