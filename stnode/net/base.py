"""Links between devices: the interfaces that transports implement, addresses, and the registry of transports by URL scheme.

A link carries plaintext bytes between this node and one device whose ID was proved by TLS. This package knows nothing of what the
bytes mean and nothing of storage. All calls happen on the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from stnode.errors import Invalid, Refused

if TYPE_CHECKING:
    from stnode.clock import Env
    from stnode.net.identity import Identity
    from stnode.protocol.deviceid import DeviceID

Buffer = bytes | bytearray | memoryview

DEFAULT_PORT = 22000
HANDSHAKE_S = 10.0
"""Seconds in which a TLS handshake must be finished, as in Syncthing."""


class Link(Protocol):
    """One established connection. `kind` is the transport and role, e.g. "tcp-client"; addresses are "host:port" texts.

    `write` never blocks: it queues the buffers, which must not change until the link has sent them, and after a close drops them.
    When more than about 1 MiB waits the handler's `pause_writing` is called, and `resume_writing` when little is left.
    `pause_reading` stops delivery at once (the buffer in delivery included) and, as the kernel's buffers fill, the peer.
    `close` sends what is queued, says goodbye and gives up after ten seconds; `abort` drops everything. Both may be called
    at any time and more than once; after either no more bytes are delivered and `link_lost` follows in a later turn of the loop.
    """

    peer: DeviceID
    kind: str
    local_address: str
    remote_address: str
    bytes_in: int
    bytes_out: int

    def write(self, buffers: Sequence[Buffer]) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class LinkHandler(Protocol):
    """What a link talks to. `link_made` comes first, `link_lost` last, each once; none of the calls may block or raise."""

    def link_made(self, link: Link, peer_id: DeviceID) -> None:
        """The device's ID is proved; the link may be written to from here on."""

    def get_buffer(self) -> memoryview:
        """Where the next plaintext bytes go; writable and not empty. Valid until the following `buffer_updated`."""
        ...

    def buffer_updated(self, count: int) -> None:
        """`count` > 0 bytes were put at the start of the buffer."""

    def link_lost(self, reason: Exception | None) -> None:
        """Nothing more comes. None after an orderly end by either side or an own `abort`; else an StnodeError."""

    def pause_writing(self) -> None:
        """Enough is queued: write no more until `resume_writing`."""

    def resume_writing(self) -> None:
        """The queue is almost empty again."""


Accept = Callable[["DeviceID", str], LinkHandler | None]
"""Called with the proved device ID and the remote address; the handler of the new link, or None to close it without a byte. A listener is
also told of callers that have this node's own ID, itself or another process with the same identity: they never get in, whatever the
answer."""


class Listener(Protocol):
    """An open door. `address` is its URL with the real port."""

    address: str

    async def close(self) -> None:
        """Stops accepting and drops handshakes under way; established links go on."""


class Transport(Protocol):
    """A way to make links; registered for one or more URL schemes. For the methods see `dial` and `listen`."""

    async def dial(
        self, env: Env, address: Address, identity: Identity, expect: DeviceID, handler_factory: Accept, timeout: float
    ) -> Link: ...
    async def listen(self, env: Env, address: Address, identity: Identity, accept: Accept) -> Listener: ...


@dataclass(frozen=True, slots=True)
class Address:
    """A device's or listener's address. An empty host means all interfaces (listening only)."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{join_host_port(self.host, self.port)}"


def join_host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> Address:
    """Reads `tcp://host[:port]`; raises Invalid. A missing port is 22000; the scheme need not be a registered one."""
    hint = "addresses look like tcp://192.0.2.7:22000, tcp://[2001:db8::7]:22000 or tcp://host.example"
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError as exc:
        raise Invalid(f"address {text!r}: {exc}", hint=hint) from exc
    if not parts.scheme or not parts.netloc or parts.username is not None or parts.path not in {"", "/"} or any(c.isspace() for c in host):
        raise Invalid(f"address {text!r} is not understood", hint=hint)
    return Address(parts.scheme.lower(), host, DEFAULT_PORT if port is None else port)


_transports: dict[str, Transport] = {}


def register(scheme: str, transport: Transport) -> None:
    """Makes addresses with this scheme go to `transport`."""
    _transports[scheme] = transport


def schemes() -> frozenset[str]:
    """The schemes that `dial` and `listen` understand."""
    return frozenset(_transports)


def _transport(address: Address) -> Transport:
    if (transport := _transports.get(address.scheme)) is None:
        raise Refused(f"address {address}: no transport for {address.scheme}://", hint=f"usable are {', '.join(sorted(_transports))}")
    return transport


async def dial(env: Env, address: str, identity: Identity, expect: DeviceID, handler_factory: Accept, timeout: float = 20.0) -> Link:
    """Connects to the device `expect`; its handler has had `link_made` when this returns.

    Raises Unavailable (nobody there, too slow, closed by the other side), Refused (another device answers, no transport),
    ProtocolError (not a device at all), Invalid (address).
    """
    where = parse_address(address)
    return await _transport(where).dial(env, where, identity, expect, handler_factory, timeout)


async def listen(env: Env, address: str, identity: Identity, accept: Accept) -> Listener:
    """Opens a door at the address (port 0: any). Raises Refused (port taken, no right, no such interface) or Invalid."""
    where = parse_address(address)
    return await _transport(where).listen(env, where, identity, accept)
