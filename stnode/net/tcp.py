"""The TCP transport: `tcp://`, `tcp4://` and `tcp6://` addresses, dialed and listened on. TLS and bytes are tls.py's work."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from dataclasses import replace

from stnode.clock import Env
from stnode.errors import Invalid, Refused, StnodeError, Unavailable
from stnode.net.base import Accept, Address, Link, register
from stnode.net.identity import Identity
from stnode.net.tls import TlsContext, TlsLink
from stnode.protocol.deviceid import DeviceID
from stnode.telemetry import get_logger

log = get_logger(__name__)

MAX_HANDSHAKES = 256
"""Handshakes under way at one listener; further connections are dropped, so that strangers cannot fill the memory."""
_FAMILIES = {"tcp": socket.AF_UNSPEC, "tcp4": socket.AF_INET, "tcp6": socket.AF_INET6}
_EVERYWHERE = {"", "0.0.0.0", "::"}
_KEEPALIVE_IDLE_S = 60


class TcpTransport:
    """Implements `base.Transport`."""

    async def dial(self, env: Env, address: Address, identity: Identity, expect: DeviceID, handler_factory: Accept, timeout: float) -> Link:
        """See `base.dial`. Addresses of both families are tried with a head start for the first."""
        if not address.host or address.port == 0:
            raise Invalid(f"address {address} names no host or port to dial", hint="give both, e.g. tcp://192.0.2.7:22000")
        loop = asyncio.get_running_loop()
        settled: asyncio.Future[StnodeError | None] = loop.create_future()

        def done(_link: TlsLink, error: StnodeError | None) -> None:
            if not settled.done():
                settled.set_result(error)

        link = TlsLink(TlsContext(identity), handler_factory, done, kind="tcp-client", server=False, expect=expect)
        made = False
        try:
            async with asyncio.timeout(timeout):
                transport, _ = await loop.create_connection(
                    lambda: link,
                    address.host,
                    address.port,
                    family=_FAMILIES[address.scheme],
                    happy_eyeballs_delay=None if _is_literal(address.host) else 0.25,
                )
                made = True
                _keep_alive(transport)
                error = await settled
        except TimeoutError as exc:
            raise Unavailable(f"{address} did not answer within {timeout:g} s") from exc
        except socket.gaierror as exc:
            raise Unavailable(f"the host name of {address} cannot be resolved: {exc.strerror}") from exc
        except OSError as exc:
            raise Unavailable(f"{address} cannot be reached: {_os_words(exc)}") from exc
        finally:
            if made and not settled.done():
                link.abort()
        if error is not None:
            raise error
        return link

    async def listen(self, env: Env, address: Address, identity: Identity, accept: Accept) -> TcpListener:
        """See `base.listen`. `tcp://` without a host, with 0.0.0.0 or :: means all addresses of both families, as in Syncthing."""
        listener = TcpListener(TlsContext(identity), accept)
        try:
            await listener.open(address)
        except socket.gaierror as exc:
            raise Refused(f"the host name of {address} cannot be resolved: {exc.strerror}") from exc
        except OSError as exc:
            raise Refused(f"cannot listen on {address}: {_os_words(exc)}", hint=_LISTEN_HINTS.get(exc.errno or 0, "")) from exc
        return listener


class TcpListener:
    """Implements `base.Listener`."""

    def __init__(self, context: TlsContext, accept: Accept) -> None:
        self.address = ""
        self._context = context
        self._accept = accept
        self._handshakes: set[TlsLink] = set()
        self._server: asyncio.Server | None = None

    async def open(self, address: Address) -> None:
        """Binds and listens; raises OSError."""
        loop = asyncio.get_running_loop()
        everywhere = address.host in _EVERYWHERE
        family = _FAMILIES[address.scheme]
        if everywhere and family is socket.AF_UNSPEC and socket.has_dualstack_ipv6():
            # One socket for both families, so that port 0 is one port.
            both = socket.create_server(("", address.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
            self._server = await loop.create_server(self._link, sock=both)
        else:
            host = address.host
            if everywhere:
                family = socket.AF_INET if family is socket.AF_UNSPEC else family
                host = "::" if family is socket.AF_INET6 else "0.0.0.0"
            self._server = await loop.create_server(self._link, host, address.port, family=family, backlog=128)
        port = self._server.sockets[0].getsockname()[1]
        self.address = str(replace(address, port=port))

    def _link(self) -> TlsLink:
        link = TlsLink(self._context, self._accept, self._settled, kind="tcp-server", server=True)
        if len(self._handshakes) >= MAX_HANDSHAKES:
            link.abort()
        self._handshakes.add(link)
        return link

    def _settled(self, link: TlsLink, error: StnodeError | None) -> None:
        self._handshakes.discard(link)
        if error is None:
            _keep_alive(link.transport)
        else:
            log.debug("incoming connection refused", remote=link.remote_address, reason=str(error))

    async def close(self) -> None:
        """See `base.Listener`."""
        server, self._server = self._server, None
        if server is not None:
            # asyncio loses (and leaks) a connection that is accepted in the turn in which the server is closed: first stop
            # accepting, then let what is accepted become a link.
            for sock in server.sockets:
                asyncio.get_running_loop().remove_reader(sock.fileno())
            for _ in range(2):
                await asyncio.sleep(0)
            server.close()
        for link in tuple(self._handshakes):
            link.abort()


_LISTEN_HINTS = {
    errno.EADDRINUSE: "another program (a Syncthing, or this node a second time?) listens there; stop it or choose another port",
    errno.EACCES: "ports below 1024 need rights that this user has not; choose another port",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address",
}


def _os_words(exc: OSError) -> str:
    """The system's words for an error, without asyncio's additions."""
    return {errno.EADDRINUSE: "the port is in use"}.get(exc.errno or 0) or (os.strerror(exc.errno) if exc.errno else str(exc))


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _keep_alive(transport: asyncio.BaseTransport) -> None:
    """Lets the kernel notice a peer that vanished, minutes before the protocol's own time-out would."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)


for _scheme in _FAMILIES:
    register(_scheme, TcpTransport())
