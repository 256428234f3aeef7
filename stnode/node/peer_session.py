"""What every session of a link does, whoever is at the other end: greets, hears, sends, keeps time, ends. What is said between is the subclass's
(`session`, `sibling_session`)."""

from __future__ import annotations

from typing import ClassVar

from stnode.clock import Env, Tasks
from stnode.errors import StnodeError
from stnode.net.base import Link
from stnode.protocol import deviceid
from stnode.protocol.connection import BEPConnection
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.messages import Hello
from stnode.telemetry import get_logger

_log = get_logger(__name__)
_TICK_S = 10.0


class PeerSession:
    """The part of a link handler (net.base) that does not depend on the messages. `last_error` is why the link ended, "" while it stands."""

    what: ClassVar[str]
    """Of whom the session is, in the log."""

    def __init__(self, env: Env, device_id: DeviceID, connection: BEPConnection) -> None:
        self.device_id = device_id
        self.link: Link | None = None
        self.last_error = ""
        self._env = env
        self._conn = connection
        self._heard_at = env.clock.monotonic()
        self._closing = False
        self._tasks = Tasks(env, self._crashed)

    @property
    def silent_s(self) -> float:
        """Seconds since the last byte from the device."""
        return self._env.clock.monotonic() - self._heard_at

    def get_buffer(self) -> memoryview:
        """Where the next plaintext goes."""
        return self._conn.get_buffer()

    def flush(self) -> None:
        """Hands queued bytes to the link."""
        if self.link is not None and not self._closing:
            data = self._conn.data_to_send()
            if data:
                self.link.write(data)

    def close(self, reason: str) -> None:
        """Says why, then closes."""
        if self._closing or self.link is None:
            return
        _log.info("closing connection", device=deviceid.format(self.device_id), kind=self.what, reason=reason)
        self.last_error = reason
        self._conn.send_close(reason)
        self.flush()
        self._closing = True
        self.link.close()

    async def wait_ended(self) -> None:
        """Returns when all tasks of the session are over."""
        await self._tasks.close()

    # --- for the subclass

    def _begin(self, link: Link, hello: Hello) -> None:
        """TLS is up and the device is who it should be."""
        self.link = link
        self._conn.send_hello(hello)
        self.flush()
        self._tasks.spawn(self._timer(), f"timer {deviceid.format(self.device_id)[:7]}")

    def _closed_by_peer(self, reason: str) -> None:
        """The other side has said that it closes."""
        self.last_error = f"closed by the {self.what}: {reason}"
        self._closing = True
        if self.link is not None:
            self.link.close()

    def _lost(self, reason: Exception | None) -> None:
        """The link is gone."""
        self._closing = True
        if reason is not None and not self.last_error:
            self.last_error = str(reason)
        self._tasks.cancel()

    def _tick(self) -> None:
        """Every ten seconds."""

    async def _timer(self) -> None:
        while True:
            await self._env.clock.sleep(_TICK_S)
            self._conn.handle_timer(self._env.clock.monotonic())
            self.flush()
            self._tick()

    def _crashed(self, name: str, exc: Exception) -> None:
        """An error of one task ends the connection, with its reason; the dialer tries again."""
        if isinstance(exc, StnodeError):
            self.close(exc.message)
        else:
            _log.error("session task ended by a bug", task=name, exc_info=exc)
            self.close("internal error")
