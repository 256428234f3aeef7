"""One connection per device: whether a new one may take its place, and dialing whenever there is none. For devices and siblings alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from stnode.clock import Env
from stnode.errors import StnodeError
from stnode.net import base as net
from stnode.net.base import LinkHandler
from stnode.net.identity import Identity
from stnode.node.peer_session import PeerSession
from stnode.protocol.deviceid import DeviceID

_FIRST_WAIT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 60.0
_LASTING_S: Final = 10.0
_DEAD_AFTER_S: Final = 120.0
S = TypeVar("S", bound=PeerSession)


@dataclass(slots=True)
class LinkState(Generic[S]):
    """How it stands with the connection to one device. `dialer`: a task dials it; `wake` tells that task that something has changed."""

    session: S | None = None
    dialer: bool = False
    last_error: str = ""
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def makes_room(self) -> bool:
        """Whether a new connection may be made: the first one that stands is kept, unless it has been silent for so long that it is
        likely dead."""
        if self.session is not None:
            if self.session.silent_s < _DEAD_AFTER_S:
                return False
            self.session.close("replaced by a new connection")
        return True


@dataclass(frozen=True, slots=True)
class Dialer:
    """`accept` makes the handler of a link that stands; `tried` hears of each attempt whether it did."""

    env: Env
    identity: Identity
    accept: Callable[[DeviceID, str], LinkHandler | None]
    tried: Callable[[bool], None] = lambda _ok: None

    async def keep_dialing(
        self, device: DeviceID, known: LinkState[S], addresses: Callable[[], Sequence[str]], *, first_s: float = 0.0
    ) -> None:
        """Connects whenever the device is not connected, until it has no address; waits longer after each failure, also of a connection that
        was ended within ten seconds, and `first_s` before the first attempt."""
        wait_s = _FIRST_WAIT_S
        try:
            if first_s:
                await self.env.clock.sleep(first_s)
            while found := addresses():
                if known.session is None:
                    for address in found:
                        if await self._dial(device, address, known):
                            break
                known.wake.clear()
                if known.session is not None:
                    began = self.env.clock.monotonic()
                    await known.wake.wait()
                    if self.env.clock.monotonic() - began >= _LASTING_S:
                        wait_s = _FIRST_WAIT_S
                await self.env.clock.sleep(self.env.random.uniform(wait_s / 2, wait_s))
                wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
        finally:
            known.dialer = False

    async def _dial(self, device: DeviceID, address: str, known: LinkState[S]) -> bool:
        try:
            await net.dial(self.env, address, self.identity, device, self.accept)
        except StnodeError as exc:
            known.last_error = f"{address}: {exc.message}"
            self.tried(False)
            return False
        self.tried(True)
        return True
