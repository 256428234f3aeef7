"""One connection to one device as a pure object: bytes in, events out; calls in, bytes out; time passed in. No sockets, no tasks.

What may be received and sent when stands in two tables; everything else is a ProtocolError (the peer's fault) or Internal (ours).

    nothing --Hello--> greeted --ClusterConfig--> running --Close--> closed          each direction for itself

Index, Request and DownloadProgress can only come after our own ClusterConfig went out, since they answer to it. Which folders both
sides share, and which connection of several is the primary one, is for the caller to judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final, TypeAlias

from stnode.errors import Internal, ProtocolError
from stnode.protocol import codec
from stnode.protocol.framing import Decoder, frame, frame_head, frame_hello
from stnode.protocol.messages import (
    Claim,
    Close,
    ClusterConfig,
    Compression,
    DownloadProgress,
    Event,
    FolderID,
    Hello,
    Hint,
    Index,
    MessageType,
    Ping,
    Request,
    Response,
)

Buffer: TypeAlias = bytes | bytearray | memoryview

HELLO_DEADLINE_S: Final = 20.0
RECEIVE_TIMEOUT_S: Final = 300.0
PING_AFTER_S: Final = 60.0
"""A ping goes out when nothing was written for this long, and at most one check interval later."""
CHECK_EVERY_S: Final = 30.0

_JOIN_BELOW = 16 << 10
_JOINED_SIZE = 256 << 10


class Stage(Enum):
    """How far one direction of the connection has come."""

    NOTHING = "nothing"
    GREETED = "greeted"
    RUNNING = "running"
    CLOSED = "closed"


_TRANSITIONS: Final[dict[Stage, dict[type[Event], Stage]]] = {
    Stage.NOTHING: {Hello: Stage.GREETED},
    Stage.GREETED: {ClusterConfig: Stage.RUNNING, Close: Stage.CLOSED},
    Stage.RUNNING: {
        ClusterConfig: Stage.RUNNING,
        Index: Stage.RUNNING,
        Request: Stage.RUNNING,
        Response: Stage.RUNNING,
        DownloadProgress: Stage.RUNNING,
        Ping: Stage.RUNNING,
        Hint: Stage.RUNNING,
        Claim: Stage.RUNNING,
        Close: Stage.CLOSED,
    },
    Stage.CLOSED: {},
}
"""Stage and message, received or sent, to the next stage of that direction."""

_ANSWERS_TO_OUR_CONFIG: Final = (Index, Request, DownloadProgress)


class BEPConnection:
    """The protocol's state of one link. `now` is monotonic seconds, the same clock in all calls.

    Receiving: `get_buffer`, then `buffer_updated(count)` returns events in order (or `receive_data`). A ProtocolError means: write
    what `data_to_send` still has (the Close with the reason is in it), then close the link. Sending: the `send_*` methods queue (nothing, once
    the connection is closed), `data_to_send` hands it out; payloads of 16 KiB and more are not copied and must not change until they
    are written.
    Whoever embeds it calls `handle_timer` no later than at `get_timer()`; earlier or more often does no harm.
    """

    def __init__(self, now: float, *, compression: Compression = Compression.METADATA) -> None:
        self._compression = compression
        self._decoder = Decoder()
        self._received = Stage.NOTHING
        self._sent = Stage.NOTHING
        self._queue: list[Buffer] = []
        self._joined: bytearray | None = None
        self._hello_deadline = now + HELLO_DEADLINE_S
        self._next_check = now + CHECK_EVERY_S
        self._last_read = self._last_write = now
        self._read_something = self._wrote_something = False

    @property
    def closed(self) -> bool:
        """True once either side has said Close or broken the protocol; nothing is received or queued any more."""
        return self._received is Stage.CLOSED or self._sent is Stage.CLOSED

    # --- receiving

    def get_buffer(self) -> memoryview:
        """Where the next received bytes go; valid until `buffer_updated`."""
        return self._decoder.get_buffer()

    def buffer_updated(self, count: int) -> list[Event]:
        """Takes `count` bytes written to the buffer. Raises ProtocolError when the peer breaks the protocol."""
        if self.closed:
            return []
        try:
            return self._admit(self._decoder.buffer_updated(count))
        except ProtocolError as error:
            raise self._broken(error.message) from error

    def receive_data(self, data: Buffer) -> list[Event]:
        """The same for bytes that are elsewhere; they are copied."""
        if self.closed:
            return []
        try:
            return self._admit(self._decoder.receive_data(data))
        except ProtocolError as error:
            raise self._broken(error.message) from error

    # --- sending

    def send_hello(self, hello: Hello) -> None:
        """Who we are; to be sent at once."""
        if not self._advance(Hello):
            return
        self._append(frame_hello(hello))

    def send_cluster_config(self, config: ClusterConfig) -> None:
        """All that we share with the peer; may be sent again at any time and replaces the one before."""
        if not self._advance(ClusterConfig):
            return
        self._append(self._metadata(MessageType.CLUSTER_CONFIG, codec.encode_cluster_config(config)))

    def send_index(self, folder: FolderID, encoded_files: Sequence[bytes], last_sequence: int, prev_sequence: int, update: bool) -> None:
        """FileInfos as `fileinfo.encode` makes them, ascending by sequence; `update` False replaces all the peer has of us."""
        if not self._advance(Index):
            return
        payload = codec.encode_index(folder, encoded_files, last_sequence, prev_sequence)
        self._append(self._metadata(MessageType.INDEX_UPDATE if update else MessageType.INDEX, payload))

    def send_requests(self, requests: Iterable[Request]) -> None:
        """Blocks that we want, all in one piece. Ids are the caller's, unique among outstanding ones."""
        if not self._advance(Request):
            return
        folder_fields: dict[FolderID, bytes] = {}
        joined = bytearray()
        largest = 0
        for request in requests:
            largest = max(largest, request.size)
            folder_field = folder_fields.get(request.folder)
            if folder_field is None:
                folder_field = folder_fields[request.folder] = codec.request_folder(request.folder)
            payload = codec.encode_request(request, folder_field)
            joined += b"\x00\x02\x08\x03%b%b" % (len(payload).to_bytes(4, "big"), payload)
        self._decoder.expect_responses(largest)
        self._append(joined)

    def send_response(self, request_id: int, data: Buffer = b"", code: int = 0) -> None:
        """The answer to the peer's Request; `data` is kept, not copied, when it is large."""
        if not self._advance(Response):
            return
        length = len(data)
        head = codec.encode_response_head(request_id, length, code)
        if self._compression is Compression.ALWAYS:
            self._append(frame(MessageType.RESPONSE, head + bytes(data), pack=True))
            return
        self._append(b"%b%b" % (frame_head(MessageType.RESPONSE, len(head) + length), head))
        self._append(data)

    def send_hint(self, hint: Hint) -> None:
        """For nodes of the same store; everybody else skips it."""
        if not self._advance(Hint):
            return
        self._append(frame(MessageType.HINT, codec.encode_hint(hint), pack=False))

    def send_claim(self, claim: Claim) -> None:
        """For nodes of the same store; everybody else skips it."""
        if not self._advance(Claim):
            return
        self._append(frame(MessageType.CLAIM, codec.encode_claim(claim), pack=False))

    def send_ping(self) -> None:
        """Keeps the connection alive; `handle_timer` does it by itself."""
        if not self._advance(Ping):
            return
        self._append(frame(MessageType.PING, b"", pack=False))

    def send_close(self, reason: str) -> None:
        """Says why, as far as the connection has come to a point where that can be said; then it is closed. Does nothing if it is."""
        if self.closed:
            return
        can_say = Close in _TRANSITIONS[self._sent]
        self._sent = Stage.CLOSED
        if can_say:
            self._append(frame(MessageType.CLOSE, codec.encode_close(reason), pack=False))

    def data_to_send(self) -> list[Buffer]:
        """What is to be written now, in order; empty when there is nothing."""
        if not self._queue:
            return []
        queue, self._queue, self._joined = self._queue, [], None
        self._wrote_something = True
        return queue

    # --- time

    def get_timer(self) -> float | None:
        """When `handle_timer` wants to be called at the latest; None when the connection is closed."""
        if self.closed:
            return None
        return min(self._next_check, self._hello_deadline) if self._received is Stage.NOTHING else self._next_check

    def handle_timer(self, now: float) -> None:
        """Queues a Ping when nothing was written for 60 to 90 s. Raises ProtocolError when the peer was silent for 300 s, or had no
        Hello for us in 20 s. What was read and written since the last check counts as of now, hence the spans."""
        if self.closed:
            return
        if self._received is Stage.NOTHING and now >= self._hello_deadline:
            raise self._broken("no Hello in time")
        if now < self._next_check:
            return
        self._next_check = now + CHECK_EVERY_S
        if self._read_something:
            self._last_read, self._read_something = now, False
        elif now - self._last_read >= RECEIVE_TIMEOUT_S:
            raise self._broken("read timeout")
        if self._wrote_something:
            self._last_write, self._wrote_something = now, False
        elif now - self._last_write >= PING_AFTER_S and self._sent is Stage.RUNNING:
            self.send_ping()

    # --- inside

    def _admit(self, events: list[Event]) -> list[Event]:
        """Drives the received stage. What follows a Close in the same bytes is dropped."""
        self._read_something = True
        legal = _TRANSITIONS[self._received]
        for place, event in enumerate(events):
            kind = type(event)
            following = legal.get(kind)
            early = kind in _ANSWERS_TO_OUR_CONFIG and self._sent is not Stage.RUNNING
            if following is None or early:
                raise ProtocolError(f"{kind.__name__} received while {self._received.value}, our own side {self._sent.value}")
            if following is not self._received:
                self._received, legal = following, _TRANSITIONS[following]
                if following is Stage.CLOSED:
                    return events[: place + 1]
        return events

    def _advance(self, kind: type[Event]) -> bool:
        """Drives the sent stage; False when the connection is closed and nothing is to be queued."""
        if self.closed:
            return False
        following = _TRANSITIONS[self._sent].get(kind)
        if following is None:
            raise Internal(f"{kind.__name__} sent on a connection that is {self._sent.value}")
        self._sent = following
        return True

    def _metadata(self, kind: MessageType, payload: bytes) -> bytes:
        return frame(kind, payload, pack=self._compression is not Compression.NEVER)

    def _append(self, data: Buffer) -> None:
        """Small pieces are joined, a large one stays as it is."""
        if len(data) >= _JOIN_BELOW:
            self._queue.append(data)
            self._joined = None
        elif self._joined is None or len(self._joined) > _JOINED_SIZE:
            self._joined = bytearray(data)
            self._queue.append(self._joined)
        else:
            self._joined += data

    def _broken(self, reason: str) -> ProtocolError:
        self.send_close(reason)
        self._received = Stage.CLOSED
        return ProtocolError(reason)
