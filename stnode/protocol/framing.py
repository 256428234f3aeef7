"""The byte stream: Hello, then frames of header, length and message (bep-facts 2.1 and 3). Messages themselves are `codec.py`'s.

Memory of received data. Frames below 32 KiB are gathered in one fixed buffer that is used again and again; what they carry is copied
out of it once. A larger frame is received straight into a buffer of its own that nobody writes to afterwards; the data of a Response
is a view of it, and the view keeps it alive. So whatever an event carries stays valid for as long as it is kept.

What a hostile length costs: a large frame's buffer starts with 1 MiB at most and doubles only when that much has really arrived.
Responses no larger than what was asked for (`expect_responses`) get all of it at once: that memory is the requester's own budget.
"""

from __future__ import annotations

import struct

from google.protobuf.message import DecodeError

from stnode.errors import ProtocolError
from stnode.protocol import codec, lz4block
from stnode.protocol.messages import Event, Hello, MessageType
from stnode.protocol.pb import bep_pb2 as pb

MESSAGE_LIMIT = 500_000_000
"""Bytes of a message, packed or not."""
RESPONSE_LIMIT = codec.REQUEST_LIMIT + 1024
"""Bytes of a Response: what the largest legal Request can bring, and room for its fields and encryption."""
LARGE = 32 << 10
"""From this length on a message gets its own buffer."""

_RESPONSE = int(MessageType.RESPONSE)
_MAGIC = b"\x2e\xa7\xd9\x0b"
_OLD_MAGICS = (b"\x9f\x79\xbc\x40", b"\x00\x01\x00\x00", b"\x00\x01\x00\x01")
_HEADER_LIMIT = 32767
_CHUNK = 68 << 10
_READ = 32 << 10
_USUAL_HEAD = struct.Struct(">HHI").unpack_from
"""Header length, a two-byte header and the message length: the head of any uncompressed message but a ClusterConfig."""
_FIRST_ALLOCATION = 1 << 20
_RESPONSE_FIELDS = 64
_WORTH_PACKING = 128


class Decoder:
    """Bytes in, events out. Either `get_buffer` and `buffer_updated` in turn, or `receive_data`. After a ProtocolError the stream is
    lost and the decoder must not be used any more; events of the same call that came before the error are lost with it."""

    def __init__(self) -> None:
        self._chunk = bytearray(_CHUNK + 2)  # a head is always read as 8 bytes and can have 6
        self._view = memoryview(self._chunk)[:_CHUNK]
        self._end = 0
        self._greeted = False
        self._large: _LargeFrame | None = None
        self._expected = 0

    def expect_responses(self, size_bytes: int) -> None:
        """Blocks of up to `size_bytes` are asked for from now on, so buffers of that size are made in one piece."""
        self._expected = max(self._expected, size_bytes + _RESPONSE_FIELDS)

    def get_buffer(self) -> memoryview:
        """Where the next bytes go; at least 1 byte long, valid until `buffer_updated`."""
        if self._large is not None:
            return self._large.get_buffer()
        return self._view[self._end : self._end + _READ]

    def buffer_updated(self, count: int) -> list[Event]:
        """Takes `count` bytes that were written to the buffer and returns the events that they complete."""
        events: list[Event] = []
        if self._large is not None:
            self._large.buffer_updated(count)
            self._finish_large(events)
        else:
            self._end += count
            self._parse(events)
        return events

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """The same for bytes that are somewhere else already; they are copied."""
        events: list[Event] = []
        source = memoryview(data)
        while source:
            buffer = self.get_buffer()
            count = min(len(buffer), len(source))
            buffer[:count] = source[:count]
            buffer.release()
            source = source[count:]
            events += self.buffer_updated(count)
        return events

    def _parse(self, events: list[Event]) -> None:
        """Everything complete in the chunk; what remains is moved to its front, so that there is always room to read on."""
        start = 0 if self._greeted else self._parse_hello(events)
        chunk, end = self._chunk, self._end
        while self._greeted and end - start >= 6:
            header_length, header, length = _USUAL_HEAD(chunk, start)
            body = start + header_length + 6
            if header_length > _HEADER_LIMIT:
                raise ProtocolError(f"a header of {header_length} bytes")
            if end < body:
                break
            if header_length == 2 and header & 0xFF80 == 0x0800:
                kind, packed = header & 0x7F, False
            else:
                kind, packed = self._header(start + 2, header_length)
                length = int.from_bytes(chunk[body - 4 : body], "big")
            if length >= LARGE:
                self._start_large(kind, packed, length, body)
                start = min(end, body + length)
                self._finish_large(events)
                continue
            behind = body + length
            if end < behind:
                break
            if kind == _RESPONSE and not packed:
                events.append(codec.decode_response(chunk, body, behind, copy=True))
            else:
                # bytes of its own: the message may keep views of it, the chunk is written again
                self._deliver(kind, packed, bytes(self._view[body:behind]), events)
            start = behind
        if start == end:
            self._end = 0
        elif start:
            self._view[: end - start] = self._view[start:end]
            self._end = end - start

    def _header(self, place: int, length: int) -> tuple[int, bool]:
        """Message type and whether it is compressed."""
        if length == 0:
            return 0, False
        try:
            header = pb.Header.FromString(bytes(self._view[place : place + length]))
        except DecodeError as error:
            raise ProtocolError("a header cannot be parsed") from error
        if header.compression not in (0, 1):
            raise ProtocolError(f"unknown compression {header.compression}")
        return header.type, header.compression == 1

    def _parse_hello(self, events: list[Event]) -> int:
        """Returns where the frames begin, 0 while the Hello is incomplete."""
        chunk, end = self._chunk, self._end
        magic = bytes(chunk[: min(end, 4)])
        if magic in _OLD_MAGICS:
            raise ProtocolError("the device runs a version of Syncthing that is too old")
        if not _MAGIC.startswith(magic) and not any(old.startswith(magic) for old in _OLD_MAGICS):
            raise ProtocolError("the device does not speak the Block Exchange Protocol")
        if end < 6:
            return 0
        length = chunk[4] << 8 | chunk[5]
        if length > _HEADER_LIMIT:
            raise ProtocolError(f"a Hello of {length} bytes")
        if end < 6 + length:
            return 0
        events.append(codec.decode_hello(self._view[6 : 6 + length]))
        self._greeted = True
        return 6 + length

    def _start_large(self, kind: int, packed: bool, length: int, body: int) -> None:
        limit = RESPONSE_LIMIT if kind == _RESPONSE else MESSAGE_LIMIT
        if length > limit:
            raise ProtocolError(f"a message of {length} bytes, more than {limit}")
        at_once = length if kind == _RESPONSE and length <= self._expected else min(length, _FIRST_ALLOCATION)
        self._large = _LargeFrame(kind, packed, length, at_once, self._view[body : min(self._end, body + length)])

    def _finish_large(self, events: list[Event]) -> None:
        large = self._large
        if large is not None and large.complete:
            self._large = None
            self._deliver(large.kind, large.packed, large.take(), events)

    @staticmethod
    def _deliver(kind: int, packed: bool, payload: bytes | bytearray, events: list[Event]) -> None:
        message = codec.decode(kind, unpack(kind, payload) if packed else payload)
        if message is not None:
            events.append(message)


class _LargeFrame:
    """A message that is being received into its own buffer. The buffer grows as bytes arrive, in place where the allocator can."""

    def __init__(self, kind: int, packed: bool, length: int, at_once: int, begun: memoryview) -> None:
        self.kind = kind
        self.packed = packed
        self._length = length
        self._filled = len(begun)
        self._lent: tuple[memoryview, ...] = ()
        self._data = bytearray(at_once)
        self._data[: len(begun)] = begun

    @property
    def complete(self) -> bool:
        return self._filled == self._length

    def get_buffer(self) -> memoryview:
        self._give_back()
        if self._filled == len(self._data):
            self._grow()
        whole = memoryview(self._data)
        rest = whole[self._filled :]
        self._lent = (rest, whole)
        return rest

    def buffer_updated(self, count: int) -> None:
        self._filled += count
        self._give_back()

    def take(self) -> bytearray:
        return self._data

    def _give_back(self) -> None:
        for view in self._lent:
            view.release()
        self._lent = ()

    def _grow(self) -> None:
        more = bytes(min(self._length - self._filled, self._filled))
        try:
            self._data.extend(more)
        except BufferError:  # the reader still holds a view of it: growing in place is impossible, so move
            self._data = bytearray(self._data) + more


def unpack(kind: int, payload: bytes | bytearray | memoryview) -> bytes:
    """The message in a compressed one: 4 bytes of its size, big-endian, then a raw LZ4 block."""
    if len(payload) < 4:
        raise ProtocolError("a compressed message without its size")
    size = int.from_bytes(payload[:4], "big")
    if size > (RESPONSE_LIMIT if kind == MessageType.RESPONSE else MESSAGE_LIMIT):
        raise ProtocolError(f"a compressed message that claims {size} bytes")
    return lz4block.decompress(memoryview(payload)[4:], size)


def frame_hello(hello: Hello) -> bytes:
    """A Hello as it stands at the start of the stream."""
    body = codec.encode_hello(hello)
    return b"%b%b%b" % (_MAGIC, len(body).to_bytes(2, "big"), body)


def frame_head(kind: int, length: int, *, packed: bool = False) -> bytes:
    """What stands before `length` bytes of message."""
    header = (b"\x08%c" % kind if kind else b"") + (b"\x10\x01" if packed else b"")
    return b"%b%b%b" % (len(header).to_bytes(2, "big"), header, length.to_bytes(4, "big"))


def frame(kind: int, payload: bytes, *, pack: bool) -> bytes:
    """A whole frame; with `pack` compressed if that saves at least 1/32 of at least 128 bytes."""
    if pack and len(payload) >= _WORTH_PACKING:
        packed = lz4block.compress(payload)
        if len(packed) + 4 <= len(payload) - len(payload) // 32:
            head = frame_head(kind, len(packed) + 4, packed=True)
            return b"%b%b%b" % (head, len(payload).to_bytes(4, "big"), packed)
    return frame_head(kind, len(payload)) + payload
