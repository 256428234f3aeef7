"""One connection to one sibling: Hello, an empty ClusterConfig, Pings, and hints both ways (design 5; R16).

No folder and no index: a sibling has the same journal. Not responsible for who is a sibling (`siblings`), nor for what a hint leads
to (`repo.journal`).
"""

from __future__ import annotations

from typing import Protocol, assert_never

from stnode.clock import Env
from stnode.errors import ProtocolError
from stnode.net.base import Link
from stnode.node.peer_session import PeerSession
from stnode.protocol.connection import BEPConnection
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.messages import (
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


class SiblingHost(Protocol):
    """What such a session asks of its node."""

    def hello(self) -> Hello: ...
    def introduced(self, session: SiblingSession) -> None: ...
    def hinted(self, session: SiblingSession, head: int) -> None: ...
    def ended(self, session: SiblingSession, reason: str) -> None: ...


class SiblingSession(PeerSession):
    """A link handler (net.base). Made by `siblings` for a device that is one."""

    what = "sibling"

    def __init__(self, env: Env, device_id: DeviceID, host: SiblingHost) -> None:
        super().__init__(env, device_id, BEPConnection(env.clock.monotonic()))
        self.greeting: Hello | None = None
        self._host = host

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
        self._host.ended(self, self.last_error)

    # --- for the siblings

    def hint(self, head: int) -> None:
        """Says that the journal has this commit; nothing before the sibling's Hello."""
        if self.greeting is not None and not self._closing:
            self._conn.send_hint(Hint(head))
            self.flush()

    # --- inside

    def _handle(self, event: Event) -> None:
        match event:
            case Hello():
                self.greeting = event
                self._conn.send_cluster_config(ClusterConfig())
                self._host.introduced(self)
            case Hint(head):
                self._host.hinted(self, head)
            case Request():
                self._conn.send_response(event.id, b"", ErrorCode.GENERIC)  # it takes us for a peer: it has not read our heartbeat yet
            case Close():
                self._closed_by_peer(event.reason)
            case ClusterConfig() | DownloadProgress() | Index() | Ping() | Response():
                pass
            case _:
                assert_never(event)
