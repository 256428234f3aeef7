"""TLS 1.3 between devices over any asyncio stream transport: proves who the other side is, then moves bytes. The one door to OpenSSL.

The standard library's ssl cannot accept an unknown self-signed client certificate, so records go through OpenSSL's memory BIOs inside an
asyncio.BufferedProtocol: received bytes take the way kernel → one fixed buffer → OpenSSL → the handler's own buffer, sent ones
the handler's buffers → OpenSSL → kernel. Not responsible for addresses and dialing (tcp.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

from OpenSSL import SSL, crypto
from OpenSSL import _util as _internals

from stnode.errors import ProtocolError, Refused, StnodeError, Unavailable
from stnode.net.base import HANDSHAKE_S, Accept, Buffer, LinkHandler, join_host_port
from stnode.net.identity import Identity
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID

ALPN = b"bep/1.0"
RECORD = 16 * 1024
"""Most plaintext bytes in one TLS record."""
READ_CHUNK = 256 * 1024
"""Most ciphertext bytes taken from the kernel at once; larger ones no longer stay in the processor's cache."""
WRITE_CHUNK = 128 * 1024
"""Plaintext bytes encrypted at once; what the kernel does not take of it is copied, so it must not be large."""
TURN_BYTES = 1024 * 1024
"""Most bytes encrypted in one turn of the loop, so that a fast receiver does not stop everything else."""
QUEUE_HIGH, QUEUE_LOW = 1024 * 1024, 256 * 1024
"""Bytes waiting in a link at which its handler shall stop and may go on."""
CLOSE_S = 10.0
"""Seconds that an orderly close may take to send what is queued."""
_FFI: Any = getattr(_internals, "ffi", None)
_SSL_READ: Any = getattr(getattr(_internals, "lib", None), "SSL_read", None)
_MODE_ENABLE_PARTIAL_WRITE = 1  # a constant of OpenSSL that pyOpenSSL sets but does not name


class TlsContext:
    """OpenSSL's settings for one identity, for both roles: TLS 1.3, any certificate accepted here and judged by `peer_of` later."""

    def __init__(self, identity: Identity) -> None:
        self.device_id = identity.device_id
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        context.use_certificate(identity.certificate)
        context.use_privatekey(identity.key)
        context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        context.set_alpn_protos([ALPN])
        context.set_alpn_select_callback(lambda _, offered: ALPN if ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS)
        context.set_options(SSL.OP_NO_TICKET)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        # One call encrypts a whole buffer: a memory BIO is never full.
        context.clear_mode(_MODE_ENABLE_PARTIAL_WRITE)
        self._context = context

    def connection(self, *, server: bool) -> SSL.Connection:
        """A fresh connection over memory BIOs."""
        connection = SSL.Connection(self._context, None)
        if server:
            connection.set_accept_state()
        else:
            connection.set_connect_state()
        return connection


def peer_of(connection: SSL.Connection, *, server: bool) -> DeviceID:
    """Who is at the other end of a finished handshake; raises ProtocolError unless it showed exactly one certificate."""
    certificate = connection.get_peer_certificate()
    if certificate is None:
        raise ProtocolError("the device sent no certificate")
    # As a client OpenSSL lists the peer's own certificate in the chain too, as a server it does not.
    count = len(connection.get_peer_cert_chain() or []) + server
    if count != 1:
        raise ProtocolError(f"the device sent {count} certificates; it must be exactly one")
    return deviceid.from_certificate(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))


def _read_records(connection: SSL.Connection, target: memoryview) -> int:
    """Decrypts records straight into `target` until it is full or there is no whole record; how many bytes. `recv_into` would allocate
    and copy each record (0.30 against 0.15 CPU seconds per GB). It uses what pyOpenSSL itself is built of; where a version hides that,
    nothing is read here and `recv_into` does all the work."""
    ssl = getattr(connection, "_ssl", None)
    if _FFI is None or _SSL_READ is None or ssl is None:
        return 0
    start, size, filled = _FFI.from_buffer(target), len(target), 0
    while filled < size:
        count = _SSL_READ(ssl, start + filled, min(RECORD, size - filled))
        if count <= 0:
            break
        filled += count
    return filled


class _State(Enum):
    HANDSHAKE = auto()  # bytes go to OpenSSL only; → OPEN when the peer is proved and taken, → CLOSED otherwise
    OPEN = auto()  # plaintext flows; → CLOSING on close() or the peer's goodbye, → CLOSED on abort(), failure, loss
    CLOSING = auto()  # nothing is delivered; what is queued goes out, then goodbye; → CLOSED
    CLOSED = auto()  # waiting for connection_lost, or past it


class TlsLink(asyncio.BufferedProtocol):
    """One TLS connection; implements `base.Link`. Made as an asyncio protocol, it becomes a link when the handshake is done.

    `settled(link, error)` is called once: with None when the handler has had `link_made`, else with the reason of the failure.
    """

    def __init__(
        self,
        context: TlsContext,
        accept: Accept,
        settled: Callable[[TlsLink, StnodeError | None], None],
        *,
        kind: str,
        server: bool,
        expect: DeviceID | None = None,
    ) -> None:
        self.kind = kind
        self.peer = DeviceID(b"")
        self.local_address = self.remote_address = ""
        self.bytes_in = self.bytes_out = 0
        self._own_id = context.device_id
        self._connection = context.connection(server=server)
        self._accept = accept
        self._settled: Callable[[TlsLink, StnodeError | None], None] | None = settled
        self._server = server
        self._expect = expect
        self._state = _State.HANDSHAKE
        self._connected = False
        self._error: StnodeError | None = None
        self._cipher = memoryview(bytearray(READ_CHUNK))
        self._queue: deque[Buffer] = deque()
        self._queued = 0  # bytes in _queue, less the part of its head that is sent
        self._head_sent = 0
        self._flush_scheduled = False
        self._transport_full = False
        self._handler_paused = False
        self._reading_paused = False
        self._deadline: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------------------------ asyncio's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Starts the handshake and its deadline."""
        assert isinstance(transport, asyncio.Transport)
        self.transport, self._connected = transport, True
        self._loop = asyncio.get_running_loop()
        if self._state is _State.CLOSED:
            transport.abort()
            return
        # Paused as soon as the kernel takes no more: what waits stays in our queue, uncopied and counted.
        transport.set_write_buffer_limits(high=0)
        self.local_address = _address_text(transport.get_extra_info("sockname"))
        self.remote_address = _address_text(transport.get_extra_info("peername"))
        self._deadline = self._loop.call_later(HANDSHAKE_S, self._too_slow)
        self._handshake()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the kernel puts ciphertext."""
        return self._cipher

    def buffer_updated(self, nbytes: int) -> None:
        """Ciphertext has come."""
        if self._state is _State.HANDSHAKE:
            self._connection.bio_write(self._cipher[:nbytes])
            self._handshake()
        elif self._state is _State.OPEN:
            self._connection.bio_write(self._cipher[:nbytes])
            self._deliver()

    def eof_received(self) -> bool:
        """The other side ended the stream without a TLS goodbye."""
        if self._state in {_State.HANDSHAKE, _State.OPEN}:
            self._fail(Unavailable(f"{self.remote_address} closed the connection without a goodbye"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream is gone: tells the handler, or the one who waits for the handshake."""
        if self._deadline is not None:
            self._deadline.cancel()
        if exc is not None and self._error is None and self._state in {_State.HANDSHAKE, _State.OPEN}:
            self._error = Unavailable(f"the connection to {self.remote_address} broke: {exc}")
        self._state = _State.CLOSED
        self._drop_queue()
        if self._settled is not None:
            self._settle(self._error or Unavailable(f"{self.remote_address} closed the connection during the TLS handshake"))
        else:
            self._handler.link_lost(self._error)

    def pause_writing(self) -> None:
        """The kernel takes no more."""
        self._transport_full = True

    def resume_writing(self) -> None:
        """The kernel has taken everything."""
        self._transport_full = False
        self._flush()

    # ---------------------------------------------------------------------------------------------------- handshake
    def _handshake(self) -> None:
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            self._send_records()
            return
        except SSL.Error as exc:
            self._send_records()  # the alert that tells the other side
            self._fail(ProtocolError(f"TLS handshake with {self.remote_address} failed: {_reason(exc)}"))
            return
        self._send_records()
        try:
            handler = self._judge()
        except StnodeError as exc:
            self._fail(exc)
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._state, self._handler = _State.OPEN, handler
        self._settle(None)
        handler.link_made(self, self.peer)
        self._deliver()

    def _judge(self) -> LinkHandler:
        """The handler for the peer of the finished handshake; raises when it is not wanted."""
        peer = peer_of(self._connection, server=self._server)
        if peer == self._own_id:
            if self._server:
                self._accept(peer, self.remote_address)
            raise Refused(f"{self.remote_address} is this node itself", hint="remove the node's own address from its devices")
        if self._expect is not None and peer != self._expect:
            raise Refused(
                f"{self.remote_address} is device {deviceid.format(peer)}, not {deviceid.format(self._expect)}",
                hint="correct the device's address or its ID",
            )
        self.peer = peer
        handler = self._accept(peer, self.remote_address)
        if handler is None:
            raise Refused(f"a connection with {deviceid.format(peer)} at {self.remote_address} is not wanted now")
        return handler

    def _too_slow(self) -> None:
        self._fail(Unavailable(f"TLS handshake with {self.remote_address} was not finished within {HANDSHAKE_S:g} s"))

    def _settle(self, error: StnodeError | None) -> None:
        if (settled := self._settled) is not None:
            self._settled = None
            settled(self, error)

    # ---------------------------------------------------------------------------------------------------- receiving
    def _deliver(self) -> None:
        """Hands all plaintext that is there to the handler, its buffer filled as far as possible before each call."""
        receive, handler = self._connection.recv_into, self._handler
        more = True
        while more and self._state is _State.OPEN and not self._reading_paused:
            target = handler.get_buffer()
            size, filled, end = len(target), 0, None
            try:
                filled = _read_records(self._connection, target)
                while filled < size:
                    # Says why there is no more; else a read gives one record at most.
                    filled += receive(target[filled:], RECORD)
            except SSL.WantReadError:
                more = False
            except SSL.Error as exc:
                more, end = False, exc
            if filled:
                self.bytes_in += filled
                handler.buffer_updated(filled)
            if isinstance(end, SSL.ZeroReturnError):
                self._drop_queue()  # who has said goodbye reads no more
                self.close()
            elif end is not None:
                self._send_records()
                self._fail(ProtocolError(f"TLS with {self.remote_address} failed: {_reason(end)}"))
        if self._state is _State.OPEN:
            self._send_records()  # answers to key updates

    def pause_reading(self) -> None:
        """See `base.Link`."""
        if self._state is _State.OPEN and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """See `base.Link`."""
        if self._state is _State.OPEN and self._reading_paused:
            self._reading_paused = False
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        """First what OpenSSL still holds, then the kernel."""
        if self._state is _State.OPEN and not self._reading_paused:
            self._deliver()
        if self._state is _State.OPEN and not self._reading_paused:
            self.transport.resume_reading()

    # ------------------------------------------------------------------------------------------------------ sending
    def write(self, buffers: Sequence[Buffer]) -> None:
        """See `base.Link`."""
        if self._state is not _State.OPEN:
            return
        size = sum(map(len, buffers))
        self._queue.extend(buffers)
        self._queued += size
        self.bytes_out += size
        if self._queued > QUEUE_HIGH and not self._handler_paused:
            self._handler_paused = True
            self._handler.pause_writing()
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        # In a later turn: what is written in one turn goes out in as few records and system calls as possible.
        if not self._flush_scheduled and not self._transport_full:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_turn)

    def _flush_turn(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        if self._state not in {_State.OPEN, _State.CLOSING}:
            return
        budget = TURN_BYTES
        try:
            while self._queue and not self._transport_full and budget > 0:
                budget -= self._encrypt_chunk()
                self._send_records()
        except SSL.Error as exc:
            self._fail(ProtocolError(f"TLS with {self.remote_address} failed: {_reason(exc)}"))
            return
        if self._handler_paused and self._queued <= QUEUE_LOW and self._state is _State.OPEN:
            self._handler_paused = False
            self._handler.resume_writing()
        if self._queue:
            self._schedule_flush()
        elif self._state is _State.CLOSING:
            self._say_goodbye()

    def _encrypt_chunk(self) -> int:
        """Encrypts up to about WRITE_CHUNK of the queue; small buffers are joined to full records. Returns the plaintext bytes."""
        queue, send = self._queue, self._connection.send
        taken = 0
        small = bytearray()
        while queue and taken < WRITE_CHUNK:
            head = queue[0]
            if len(head) < RECORD:
                small += queue.popleft()
                taken += len(head)
                if len(small) >= RECORD:
                    send(small)
                    small = bytearray()
                continue
            if small:
                send(small)
                small = bytearray()
            start = self._head_sent
            part = memoryview(head)[start : start + WRITE_CHUNK - taken]
            send(part)
            taken += len(part)
            self._head_sent += len(part)
            if self._head_sent == len(head):
                self._head_sent = 0
                queue.popleft()
        if small:
            send(small)
        self._queued -= taken
        return taken

    def _send_records(self) -> None:
        """Gives the kernel what OpenSSL has made."""
        read, write = self._connection.bio_read, self.transport.write
        while True:
            try:
                records = read(2 * WRITE_CHUNK)
            except SSL.WantReadError:
                return
            write(records)

    # ------------------------------------------------------------------------------------------------------- ending
    def close(self) -> None:
        """See `base.Link`."""
        if self._state is not _State.OPEN:
            return
        self._state = _State.CLOSING
        if self._reading_paused:
            self.transport.resume_reading()  # read and dropped: unread bytes would make the kernel reset the connection
        self._deadline = self._loop.call_later(CLOSE_S, self.transport.abort)
        self._schedule_flush()

    def _drop_queue(self) -> None:
        self._queue.clear()
        self._queued = self._head_sent = 0

    def _say_goodbye(self) -> None:
        self._state = _State.CLOSED
        try:
            self._connection.shutdown()
            self._send_records()
        except SSL.Error:
            pass  # it is only a courtesy
        self.transport.close()

    def abort(self) -> None:
        """See `base.Link`. Before the connection is made: it will be dropped at once."""
        self._state = _State.CLOSED
        if self._connected:
            self.transport.abort()

    def _fail(self, error: StnodeError) -> None:
        """Ends the connection with this error; records that wait (an alert) still go out if the kernel takes them soon."""
        if self._state is _State.CLOSED:
            return
        self._error, self._state = error, _State.CLOSED
        if self._deadline is not None:
            self._deadline.cancel()
        self.transport.close()
        self._deadline = self._loop.call_later(CLOSE_S, self.transport.abort)


def _address_text(name: tuple[str, int] | tuple[str, int, int, int] | None) -> str:
    """`host:port` of a socket's name; IPv4 peers of a dual-stack socket as IPv4."""
    if not name:
        return "unknown"
    return join_host_port(name[0].removeprefix("::ffff:") if "." in name[0] else name[0], name[1])


def _reason(exc: SSL.Error) -> str:
    """OpenSSL's words for an error, without library and function names."""
    if exc.args and isinstance(exc.args[0], list):
        return "; ".join(str(entry[-1]) for entry in exc.args[0] if entry) or "connection ended"
    return ", ".join(str(part) for part in exc.args if part != -1) or "connection ended"
