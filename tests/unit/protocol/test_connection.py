"""The state machine: what may come and go when, closing, compression, timers."""

from __future__ import annotations

import pytest

from stnode.errors import Internal, ProtocolError
from stnode.protocol import codec
from stnode.protocol.connection import BEPConnection
from stnode.protocol.framing import Decoder, frame, frame_hello
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
from tests.support.bep import HELLO, digest, encoded, encoded_progress, file_info, greeting, response_frame, running, sent

F = FolderID("f")
REQUEST = Request(0, F, "n", 0, 5, digest("x"))
FRAMES: dict[type[Event], bytes] = {
    Hello: frame_hello(HELLO),
    ClusterConfig: frame(MessageType.CLUSTER_CONFIG, b"", pack=False),
    Index: frame(MessageType.INDEX, codec.encode_index(F, [], 0, 0), pack=False),
    Request: frame(MessageType.REQUEST, codec.encode_request(REQUEST, codec.request_folder(F)), pack=False),
    Response: response_frame(1, b"x"),
    DownloadProgress: frame(MessageType.DOWNLOAD_PROGRESS, encoded_progress(DownloadProgress(F, ())), pack=False),
    Ping: frame(MessageType.PING, b"", pack=False),
    Close: frame(MessageType.CLOSE, codec.encode_close("bye"), pack=False),
    Hint: frame(MessageType.HINT, codec.encode_hint(Hint(1)), pack=False),
    Claim: frame(MessageType.CLAIM, codec.encode_claim(Claim(1, "key", (2, 3))), pack=False),
}
MESSAGES = [kind for kind in FRAMES if kind is not Hello]


def received(data: bytes) -> list[Event]:
    """What a peer decodes of our bytes after our Hello."""
    decoder = Decoder()
    decoder.receive_data(frame_hello(HELLO))
    return decoder.receive_data(data)


def ours_ready() -> BEPConnection:
    connection = BEPConnection(0.0)
    connection.send_hello(HELLO)
    connection.send_cluster_config(ClusterConfig())
    connection.data_to_send()
    return connection


@pytest.mark.parametrize("kind", MESSAGES)
def test_before_the_cluster_config_only_close_is_legal(kind: type[Event]) -> None:
    connection = ours_ready()
    connection.receive_data(FRAMES[Hello])
    if kind in (ClusterConfig, Close):
        assert [type(event) for event in connection.receive_data(FRAMES[kind])] == [kind]
        return
    with pytest.raises(ProtocolError) as raised:
        connection.receive_data(FRAMES[kind])
    assert connection.closed
    assert received(sent(connection)) == [Close(raised.value.message)]


@pytest.mark.parametrize("kind", MESSAGES)
def test_when_running_everything_is_legal(kind: type[Event]) -> None:
    connection = running()
    assert [type(event) for event in connection.receive_data(FRAMES[kind])] == [kind]
    assert connection.closed == (kind is Close)


@pytest.mark.parametrize("kind", [Index, Request, DownloadProgress])
def test_what_answers_to_our_cluster_config_cannot_come_before_it(kind: type[Event]) -> None:
    connection = BEPConnection(0.0)
    connection.send_hello(HELLO)
    connection.receive_data(greeting())
    with pytest.raises(ProtocolError):
        connection.receive_data(FRAMES[kind])


def test_a_cluster_config_may_come_again() -> None:
    assert running().receive_data(FRAMES[ClusterConfig] * 2) == [ClusterConfig(), ClusterConfig()]


def test_nothing_counts_after_close() -> None:
    connection = running()
    assert connection.receive_data(FRAMES[Ping] + FRAMES[Close] + FRAMES[Ping]) == [Ping(), Close("bye")]
    assert connection.receive_data(FRAMES[Ping]) == []
    connection.send_ping()
    connection.send_close("me too")
    assert sent(connection) == b""
    assert connection.get_timer() is None
    connection.handle_timer(1e9)


def test_buffers_and_bytes_are_two_ways_of_the_same() -> None:
    connection = ours_ready()
    data = greeting() + FRAMES[Ping]
    buffer = connection.get_buffer()
    buffer[: len(data)] = data
    assert [type(event) for event in connection.buffer_updated(len(data))] == [Hello, ClusterConfig, Ping]
    connection.send_close("done")
    assert connection.buffer_updated(len(connection.get_buffer())) == []


def test_an_error_ends_with_a_close_that_names_it_and_only_once() -> None:
    connection = running()
    with pytest.raises(ProtocolError) as raised:
        connection.receive_data(b"\xff\xff\xff\xff\xff\xff")
    connection.send_close("other reason")
    assert received(sent(connection)) == [Close(raised.value.message)]


def test_without_our_hello_no_close_can_be_said() -> None:
    connection = BEPConnection(0.0)
    with pytest.raises(ProtocolError):
        connection.receive_data(b"HTTP")
    assert sent(connection) == b""


def test_our_own_order_is_kept_too() -> None:
    connection = BEPConnection(0.0)
    with pytest.raises(Internal):
        connection.send_ping()
    connection.send_hello(HELLO)
    with pytest.raises(Internal):
        connection.send_hello(HELLO)
    with pytest.raises(Internal):
        connection.send_response(0)
    connection.send_cluster_config(ClusterConfig())
    connection.send_response(0)


def test_all_that_can_be_sent_arrives() -> None:
    connection = running(compression=Compression.NEVER)
    info = file_info(sequence=5)
    large = memoryview(bytes(100_000))
    requests = [REQUEST, Request(1, FolderID("g"), "m", 131072, 9, digest("y"), block_no=1), Request(2, F, "o", 0, 1, digest("z"))]
    connection.send_index(F, [encoded(info)], 5, 0, False)
    connection.send_index(F, [], 5, 5, True)
    connection.send_requests(requests)
    connection.send_response(1, b"small")
    connection.send_response(2, large)
    connection.send_response(3, b"", 2)
    connection.send_ping()
    connection.send_hint(Hint(7))
    connection.send_claim(Claim(1, "key", (2,)))
    connection.send_close("done")
    pieces = connection.data_to_send()
    assert len(pieces) == 3
    assert pieces[1] is large
    expected: list[Event] = [Index(F, [info], 5, 0, False), Index(F, [], 5, 5, True), *requests]
    expected += [
        Response(1, b"small"),
        Response(2, bytes(large)),
        Response(3, b"", 2),
        Ping(),
        Hint(7),
        Claim(1, "key", (2,)),
        Close("done"),
    ]
    assert received(b"".join(pieces)) == expected
    assert connection.data_to_send() == []


def test_many_small_pieces_become_few_buffers() -> None:
    connection = running()
    for number in range(1000):
        connection.send_response(number, bytes(1000))
    assert len(connection.data_to_send()) <= 5


@pytest.mark.parametrize(
    ("compression", "index_packed", "response_packed"),
    [(Compression.NEVER, 0, 0), (Compression.METADATA, 1, 0), (Compression.ALWAYS, 1, 1)],
)
def test_compression_rule(compression: Compression, index_packed: bool, response_packed: bool) -> None:
    connection = running(compression=compression)
    connection.send_index(F, [file_info("x" * 500).wire], 1, 0, True)
    assert (sent(connection)[1] == 4) == index_packed
    connection.send_response(0, bytes(1000))
    data = sent(connection)
    assert (data[1] == 4) == response_packed
    assert received(data) == [Response(0, bytes(1000))]


# --- time


def silence(connection: BEPConnection, until: float) -> list[float]:
    """Calls the timer when it wants, up to `until`; when it sent something."""
    sent_at = []
    while (due := connection.get_timer()) is not None and due <= until:
        connection.handle_timer(due)
        if connection.data_to_send():
            sent_at.append(due)
    return sent_at


def test_pings_keep_the_line_warm() -> None:
    connection = running(now=0.0)
    connection.handle_timer(29.9)
    connection.receive_data(FRAMES[Ping])
    pings = silence(connection, 290.0)
    assert pings
    assert all(60 <= after - before <= 90 for before, after in zip([0.0, *pings], pings, strict=False))


def test_whatever_is_written_puts_the_ping_off() -> None:
    connection = running(now=0.0)
    for now in range(30, 271, 30):
        connection.send_response(0)
        assert len(received(sent(connection))) == 1
        connection.handle_timer(float(now))
        assert connection.data_to_send() == []


def test_no_ping_before_our_cluster_config() -> None:
    connection = BEPConnection(0.0)
    connection.send_hello(HELLO)
    connection.receive_data(FRAMES[Hello])
    connection.data_to_send()
    assert silence(connection, 200.0) == []


def test_a_silent_peer_is_given_up_after_300_s() -> None:
    connection = running(now=0.0)
    connection.receive_data(FRAMES[Ping])
    connection.handle_timer(30.0)
    with pytest.raises(ProtocolError, match="read timeout"):
        silence(connection, 1000.0)
    assert connection.closed
    assert received(sent(connection))[-1] == Close("read timeout")


def test_a_peer_that_sends_anything_lives() -> None:
    connection = running(now=0.0)
    for now in range(30, 3000, 30):
        connection.receive_data(FRAMES[Ping][:1] if now % 60 else FRAMES[Ping][1:])
        connection.handle_timer(float(now))
    assert not connection.closed


def test_a_peer_without_hello_is_given_up_after_20_s() -> None:
    connection = BEPConnection(100.0)
    connection.send_hello(HELLO)
    assert connection.get_timer() == 120.0
    connection.handle_timer(119.9)
    with pytest.raises(ProtocolError, match="Hello"):
        connection.handle_timer(120.0)
