"""However the bytes of a stream are split, and through whichever door they come, the events are the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stnode.errors import ProtocolError
from stnode.protocol import codec
from stnode.protocol.connection import BEPConnection
from stnode.protocol.framing import frame, frame_head
from stnode.protocol.messages import ClusterConfig, Event, FolderID, Hint, MessageType, Request, Response
from tests.support.bep import HELLO, digest, file_message, greeting, index_frame, response_frame

REQUEST = Request(9, FolderID("default"), "some/name", 131072, 131072, digest("b"), block_no=1)
SIZES = st.one_of(st.integers(0, 200), st.sampled_from([32_700, 32_768, 33_000, 70_000, 131_072, 1_100_000]))


def some_index(count: int, pack: bool) -> bytes:
    return index_frame(*[file_message(f"dir/{number}", 10 + number * 70_000, sequence=number + 1) for number in range(count)], pack=pack)


FRAMES = st.one_of(
    st.builds(lambda number, size: response_frame(number, bytes([number]) * size), st.integers(0, 255), SIZES),
    st.builds(some_index, st.integers(0, 120), st.booleans()),
    st.just(frame(MessageType.REQUEST, codec.encode_request(REQUEST, codec.request_folder(REQUEST.folder)), pack=False)),
    st.just(frame(MessageType.PING, b"", pack=False)),
    st.just(frame(MessageType.CLUSTER_CONFIG, b"", pack=False)),
    st.just(frame(MessageType.HINT, codec.encode_hint(Hint(2**40)), pack=False)),
    st.builds(lambda size: frame_head(99, size) + bytes(size), SIZES),
    st.builds(
        lambda size: frame(MessageType.RESPONSE, codec.encode_response_head(5, size, 0) + bytes(size), pack=True), st.integers(200, 300_000)
    ),
)
STREAMS = st.lists(FRAMES, max_size=8).map(lambda frames: greeting() + b"".join(frames))
BROKEN = st.sampled_from([b"\xff\xff\xff\xff\xff\xff", frame_head(1, 2) + b"\xff\xff", b"\x00\x02\x10\x07" + bytes(4)])
STEPS = st.lists(st.one_of(st.integers(1, 9), st.integers(1, 40_000)), min_size=1, max_size=40)


def connection() -> BEPConnection:
    made = BEPConnection(0.0)
    made.send_hello(HELLO)
    made.send_cluster_config(ClusterConfig())
    return made


def frozen(events: list[Event]) -> list[Event]:
    """Response data compared as bytes."""
    return [Response(event.id, bytes(event.data), event.code) if isinstance(event, Response) else event for event in events]


def pumped(data: bytes, steps: list[int], events: list[Event]) -> None:
    """Through the buffer, as a link does it; events are kept, so that overwritten ones would show."""
    receiver = connection()
    place = turn = 0
    while place < len(data):
        buffer = receiver.get_buffer()
        count = min(len(buffer), steps[turn % len(steps)] if turn < 400 else 1 << 20, len(data) - place)
        buffer[:count] = data[place : place + count]
        place, turn = place + count, turn + 1
        events += receiver.buffer_updated(count)


@given(STREAMS, STEPS)
def test_any_split_gives_the_same_events(stream: bytes, steps: list[int]) -> None:
    whole = frozen(connection().receive_data(stream))
    events: list[Event] = []
    pumped(stream, steps, events)
    assert frozen(events) == whole


@given(STREAMS, BROKEN, STEPS)
def test_any_split_gives_the_same_error(stream: bytes, broken: bytes, steps: list[int]) -> None:
    """Events before the error in the same call are lost with it, so those of a split stream are a prefix of all."""
    good = frozen(connection().receive_data(stream))
    reasons = []
    for data_in in (
        lambda into: into.extend(connection().receive_data(stream + broken)),
        lambda into: pumped(stream + broken, steps, into),
    ):
        events: list[Event] = []
        try:
            data_in(events)
        except ProtocolError as error:
            reasons.append(error.message)
        assert frozen(events) == good[: len(events)]
    assert len(reasons) == 2
    assert reasons[0] == reasons[1]


@given(STREAMS, STEPS)
def test_asking_first_changes_only_where_memory_comes_from(stream: bytes, steps: list[int]) -> None:
    asking = connection()
    asking.receive_data(greeting())
    asking.send_requests([REQUEST])
    rest = stream[len(greeting()) :]
    assert frozen(asking.receive_data(rest)) == frozen(connection().receive_data(stream))[2:]
