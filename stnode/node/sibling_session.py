"""One connection to one sibling: Hello, an empty ClusterConfig, Pings, and hints both ways (design 5; R16).

No folder and no index: a sibling has the same journal. Not responsible for who is a sibling (`siblings`), nor for what a hint leads
to (`repo.journal`).
"""

from __future__ import annotations

from typing import Protocol, assert_never

from stnode.clock import Env, Tasks
from stnode.errors import ProtocolError
from stnode.net.base import Link
from stnode.protocol import deviceid
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
from stnode.telemetry import get_logger

_log = get_logger(__name__)
_TICK_S = 10.0


class SiblingHost(Protocol):
    """What such a session asks of its node."""

    def hello(self) -> Hello: ...
    def introduced(self, session: SiblingSession) -> None: ...
    def hinted(self, session: SiblingSession, head: int) -> None: ...
    def ended(self, session: SiblingSession, reason: str) -> None: ...


class SiblingSession:
    """A link handler (net.base). Made by `siblings` for a device that is one."""

    def __init__(self, env: Env, device_id: DeviceID, host: SiblingHost) -> None:
        self.device_id = device_id
        self.link: Link | None = None
        self.greeting: Hello | None = None
        self.last_error = ""
        self._env = env
        self._host = host
        self._conn = BEPConnection(env.clock.monotonic())
        self._heard_at = env.clock.monotonic()
        self._closing = False
        self._tasks = Tasks(env, self._crashed)

    @property
    def silent_s(self) -> float:
        """Seconds since the last byte from the sibling."""
        return self._env.clock.monotonic() - self._heard_at

    # --- the link (net.base.LinkHandler)

    def link_made(self, link: Link, peer_id: DeviceID) -> None:
        """TLS is up and the device is who it should be."""
        self.link = link
        self._conn.send_hello(self._host.hello())
        self._flush()
        self._tasks.spawn(self._timer(), f"sibling timer {deviceid.format(peer_id)[:7]}")

    def get_buffer(self) -> memoryview:
        """Where the next plaintext goes."""
        return self._conn.get_buffer()

    def buffer_updated(self, count: int) -> None:
        """`count` bytes of plaintext arrived."""
        self._heard_at = self._env.clock.monotonic()
        try:
            for event in self._conn.buffer_updated(count):
                self._handle(event)
        except ProtocolError as exc:
            self.close(exc.message)
        self._flush()

    def pause_writing(self) -> None:
        """What is sent here is small: nothing has to wait."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def link_lost(self, reason: Exception | None) -> None:
        """The link is gone."""
        self._closing = True
        if reason is not None and not self.last_error:
            self.last_error = str(reason)
        self._tasks.cancel()
        self._host.ended(self, self.last_error)

    # --- for the siblings

    def hint(self, head: int) -> None:
        """Says that the journal has this commit; nothing before the sibling's Hello."""
        if self.greeting is not None and not self._closing:
            self._conn.send_hint(Hint(head))
            self._flush()

    def close(self, reason: str) -> None:
        """Says why, then closes."""
        if self._closing or self.link is None:
            return
        _log.info("closing connection with a sibling", device=deviceid.format(self.device_id), reason=reason)
        self.last_error = reason
        self._conn.send_close(reason)
        self._flush()
        self._closing = True
        self.link.close()

    async def wait_ended(self) -> None:
        """Returns when all tasks of the session are over."""
        await self._tasks.close()

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
                self.last_error = f"closed by the sibling: {event.reason}"
                self._closing = True
                if self.link is not None:
                    self.link.close()
            case ClusterConfig() | DownloadProgress() | Index() | Ping() | Response():
                pass
            case _:
                assert_never(event)

    def _flush(self) -> None:
        if self.link is not None and not self._closing:
            data = self._conn.data_to_send()
            if data:
                self.link.write(data)

    async def _timer(self) -> None:
        while True:
            await self._env.clock.sleep(_TICK_S)
            self._conn.handle_timer(self._env.clock.monotonic())
            self._flush()

    def _crashed(self, name: str, exc: Exception) -> None:
        """The timer's ProtocolError (silence) ends the connection; anything else is a bug, and ends it too."""
        if isinstance(exc, ProtocolError):
            self.close(exc.message)
        else:
            _log.error("sibling task ended by a bug", task=name, exc_info=exc)
            self.close("internal error")
