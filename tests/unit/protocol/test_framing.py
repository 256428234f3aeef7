"""The byte stream: frames of all sizes, what stays valid, what hostile lengths cost (bep-facts 2.1, 3)."""

from __future__ import annotations

import tracemalloc

import lz4.block
import pytest

from stnode.errors import ProtocolError
from stnode.protocol import codec, framing
from stnode.protocol.framing import Decoder, frame, frame_head, frame_hello
from stnode.protocol.messages import Close, ClusterConfig, Event, Hello, Index, MessageType, Ping, Response
from stnode.protocol.pb import bep_pb2 as pb
from tests.support.bep import HELLO, file_message, index_frame, response_frame

CLOSE = frame(MessageType.CLOSE, codec.encode_close("bye"), pack=False)


def greeted() -> Decoder:
    decoder = Decoder()
    decoder.receive_data(frame_hello(HELLO))
    return decoder


def pump(decoder: Decoder, data: bytes, step: int) -> list[Event]:
    """As a link does it: fill part of the buffer, say so."""
    events: list[Event] = []
    place = 0
    while place < len(data):
        buffer = decoder.get_buffer()
        assert len(buffer) > 0
        count = min(step, len(buffer), len(data) - place)
        buffer[:count] = data[place : place + count]
        place += count
        events += decoder.buffer_updated(count)
    return events


def test_the_bytes_of_the_shortest_frames() -> None:
    assert frame(MessageType.PING, b"", pack=True) == bytes.fromhex("0002080600000000")
    assert frame(MessageType.CLUSTER_CONFIG, b"", pack=False) == bytes.fromhex("000000000000")
    assert frame_head(MessageType.INDEX, 5) == bytes.fromhex("0002080100000005")
    assert frame_head(MessageType.CLUSTER_CONFIG, 5, packed=True) == bytes.fromhex("0002100100000005")
    assert frame_head(MessageType.INDEX, 5, packed=True) == bytes.fromhex("00040801100100000005")
    assert frame_hello(Hello("", "", "", 0, 0)) == bytes.fromhex("2ea7d90b0000")


def test_frames_one_after_the_other_in_one_piece() -> None:
    data = frame(0, b"", pack=False) + frame(MessageType.PING, b"", pack=False) + response_frame(1, b"x") + CLOSE
    assert greeted().receive_data(data) == [ClusterConfig(), Ping(), Response(1, b"x"), Close("bye")]


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, 10_240, framing.LARGE - 20, framing.LARGE, 131_072])
def test_responses_of_all_sizes_arrive_whole(size: int, step: int) -> None:
    payloads = [bytes([number + 1]) * size for number in range(3)]
    data = b"".join(response_frame(number, payload) for number, payload in enumerate(payloads))
    events = pump(greeted(), data + CLOSE, step)
    assert events == [*(Response(number, payload) for number, payload in enumerate(payloads)), Close("bye")]


def test_a_large_response_is_a_view_of_the_buffer_that_was_received_into() -> None:
    decoder = greeted()
    decoder.expect_responses(4 << 20)
    data = response_frame(1, b"x" * (4 << 20))
    pump(decoder, data[:40], 40)
    buffer = decoder.get_buffer()
    assert buffer.nbytes == len(data) - 40
    owner = buffer.obj
    buffer[:] = data[40:]
    (event,) = decoder.buffer_updated(len(data) - 40)
    assert isinstance(event, Response)
    assert isinstance(event.data, memoryview)
    assert event.data.obj is owner


def test_what_was_received_stays_valid() -> None:
    decoder = greeted()
    kept = pump(decoder, response_frame(1, b"a" * 1000) + response_frame(2, b"b" * 50_000), 333)
    pump(decoder, response_frame(3, b"c" * 200_000) + response_frame(4, b"d" * 1000), 16384)
    first, second = kept
    assert isinstance(first, Response)
    assert isinstance(second, Response)
    assert bytes(first.data) == b"a" * 1000
    assert bytes(second.data) == b"b" * 50_000


def test_an_unexpectedly_large_response_still_arrives_and_a_reader_may_keep_its_view() -> None:
    decoder = greeted()
    data = response_frame(1, bytes(range(256)) * (5 << 12))
    kept: list[memoryview] = []
    events: list[Event] = []
    place = 0
    while place < len(data):
        buffer = decoder.get_buffer()[:100_000]
        kept.append(buffer)  # hinders growing in place
        count = min(len(buffer), len(data) - place)
        buffer[:count] = data[place : place + count]
        place += count
        events += decoder.buffer_updated(count)
    assert events == [Response(1, bytes(range(256)) * (5 << 12))]


def test_any_message_may_be_compressed() -> None:
    for payload, kind in ((pb.Index(folder="f", files=[file_message(str(n), sequence=n + 1) for n in range(300)]), MessageType.INDEX),):
        raw = payload.SerializeToString()
        packed = frame(kind, raw, pack=True)
        assert len(packed) < len(raw)
        (event,) = greeted().receive_data(packed)
        assert isinstance(event, Index)
        assert len(event.files) == 300
    head = codec.encode_response_head(1, 100_000, 0)
    packed = frame(MessageType.RESPONSE, head + bytes(100_000), pack=True)
    assert len(packed) < 2000
    assert greeted().receive_data(packed) == [Response(1, bytes(100_000))]


def test_small_or_incompressible_messages_are_sent_plain() -> None:
    assert frame(MessageType.CLOSE, b"a" * 127, pack=True)[:4] == b"\x00\x02\x08\x07"
    assert frame(MessageType.CLOSE, b"a" * 128, pack=True)[:2] == b"\x00\x04"
    assert frame(MessageType.CLOSE, bytes(range(200)), pack=True)[:2] == b"\x00\x02"


def test_headers_may_be_longer_than_usual() -> None:
    header = b"\x08\x06\x1a\x80\x01" + bytes(128)
    assert greeted().receive_data(len(header).to_bytes(2, "big") + header + bytes(4)) == [Ping()]
    header = b"\x08\x06\x1a\xf0\xff\x01" + bytes(32752)
    assert len(header) > 32700
    assert pump(greeted(), len(header).to_bytes(2, "big") + header + bytes(4), 5000) == [Ping()]


def test_unknown_types_are_skipped_small_and_large() -> None:
    data = frame_head(100, 5) + bytes(5) + frame_head(101, 100_000) + bytes(100_000) + CLOSE
    assert pump(greeted(), data, 9000) == [Close("bye")]


def packed(size: int, block: bytes, kind: int = MessageType.INDEX) -> bytes:
    return frame_head(kind, len(block) + 4, packed=True) + size.to_bytes(4, "big") + block


BLOCK = lz4.block.compress(bytes(1000), store_size=False)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff",
        b"\x80\x00\x00\x00\x00\x00\x00",
        frame_head(MessageType.INDEX, 500_000_001),
        frame_head(MessageType.RESPONSE, framing.RESPONSE_LIMIT + 1),
        b"\x00\x02\x10\x02" + bytes(4),
        b"\x00\x02\xff\xff" + bytes(4),
        frame_head(MessageType.INDEX, 3, packed=True) + bytes(3),
        packed(999, BLOCK),
        packed(1001, BLOCK),
        packed(1000, BLOCK[:-1]),
        packed(500_000_001, BLOCK),
        packed(2_000_000, BLOCK),
        packed(framing.RESPONSE_LIMIT + 1, BLOCK, MessageType.RESPONSE),
        frame_head(MessageType.INDEX, 2) + b"\xff\xff",
        response_frame(1, b"x")[:-3] + b"\x12\x05x",
    ],
    ids=lambda data: data[:16].hex(),
)
def test_broken_frames(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        greeted().receive_data(data + bytes(8))


@pytest.mark.parametrize(
    "data",
    [
        b"\x2f",
        b"GET / HTTP/1.1",
        bytes.fromhex("9f79bc40"),
        bytes.fromhex("00010000"),
        bytes.fromhex("00010001"),
        b"\x2e\xa7\xd9\x0b\x80\x00",
    ],
    ids=lambda data: data.hex(),
)
def test_what_is_no_hello(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder().receive_data(data)


def test_an_old_peer_is_named_as_such() -> None:
    decoder = Decoder()
    assert decoder.receive_data(bytes.fromhex("000100")) == []
    with pytest.raises(ProtocolError, match="too old"):
        decoder.receive_data(b"\x01")


@pytest.mark.parametrize(("kind", "length"), [(MessageType.INDEX, 500_000_000), (MessageType.RESPONSE, framing.RESPONSE_LIMIT)])
def test_a_hostile_length_costs_little_until_the_bytes_arrive(kind: int, length: int) -> None:
    decoder = greeted()
    tracemalloc.start()
    try:
        decoder.receive_data(frame_head(kind, length) + bytes(100))
        assert tracemalloc.get_traced_memory()[1] < 1_200_000
        for _ in range(50):
            decoder.receive_data(bytes(100_000))
        assert tracemalloc.get_traced_memory()[1] < 4 * 5_000_000
    finally:
        tracemalloc.stop()


def test_index_frames_decode_alike_small_and_large() -> None:
    files = [file_message(f"{number:06}", sequence=number + 1) for number in range(1000)]
    data = index_frame(*files)
    assert len(data) > framing.LARGE
    (event,) = pump(greeted(), data, 16384)
    assert isinstance(event, Index)
    assert [info.name for info in event.files] == [message.name for message in files]
