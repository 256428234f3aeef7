"""Mutated frames against the decoder: whatever arrives, the outcome is events or a ProtocolError, and memory follows what arrived.

The seed of a round is in its message, `run(count, seed)` repeats it. `SOAK_S` (make soak) lets the last test go on for that long.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from stnode.errors import ProtocolError
from stnode.protocol import codec
from stnode.protocol.connection import BEPConnection
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.framing import Decoder, frame, frame_head, frame_hello
from stnode.protocol.messages import (
    Claim,
    ClusterConfig,
    ClusterDevice,
    ClusterFolder,
    DownloadProgress,
    Event,
    FolderID,
    Hint,
    MessageType,
    ProgressUpdate,
    Request,
)
from tests.support.bep import HELLO, digest, encoded_progress, file_message, greeting, index_frame, response_frame

F = FolderID("default")
RECORDINGS = sorted((Path(__file__).resolve().parents[1] / "golden" / "bep").glob("*.bin.gz"))
INTERESTING = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\x7f\xff",
    b"\x1d\xcd\x65\x00",
    b"\x00\x00\x00\x00",
    b"\x10\x01",
    b"..",
    b"/",
)


def corpus() -> list[bytes]:
    """One well-formed stream piece of each kind, and the beginnings of recorded sessions (Hello taken off)."""
    devices = (ClusterDevice(DeviceID(bytes(32)), "n", ("dynamic",), index_id=7), ClusterDevice(DeviceID(b"x" * 32)))
    config = codec.encode_cluster_config(ClusterConfig((ClusterFolder(F, "label", devices=devices),)))
    request = codec.encode_request(Request(1, F, "dir/name", 131072, 131072, digest("r"), True, 1), codec.request_folder(F))
    progress = encoded_progress(DownloadProgress(F, (ProgressUpdate("n", ((1, 2),), False, (0, 5), 131072),)))
    files = [file_message(f"dir/file {number}", number * 60_000, sequence=number + 1) for number in range(20)]
    pieces = [
        frame(MessageType.CLUSTER_CONFIG, config, pack=False),
        frame(MessageType.CLUSTER_CONFIG, config, pack=True),
        index_frame(*files),
        index_frame(*files, pack=True),
        index_frame(*[file_message(f"{number:05}", sequence=number + 1) for number in range(400)]),
        frame(MessageType.REQUEST, request, pack=False),
        frame(MessageType.REQUEST, request * 3, pack=True),
        response_frame(300, b"d" * 500),
        response_frame(1, b"d" * 40_000),
        frame(MessageType.RESPONSE, codec.encode_response_head(5, 50_000, 0) + bytes(50_000), pack=True),
        frame(MessageType.DOWNLOAD_PROGRESS, progress, pack=False),
        frame(MessageType.PING, b"", pack=False),
        frame(MessageType.CLOSE, codec.encode_close("reason"), pack=False),
        frame(MessageType.HINT, codec.encode_hint(Hint(9)), pack=False),
        frame(MessageType.CLAIM, codec.encode_claim(Claim(9, "key", (1, 2, 3))), pack=False),
        frame_head(99, 10) + bytes(10),
        frame_head(MessageType.INDEX, 500_000_000) + bytes(100),
    ]
    for recording in RECORDINGS:
        session = gzip.decompress(recording.read_bytes())
        start = 6 + int.from_bytes(session[4:6], "big")
        pieces.append(session[start : start + 3000])
    return pieces


def mutate(rng: random.Random, pieces: list[bytes]) -> bytes:
    """A piece with one to four wounds, mostly near its start, where headers and lengths are."""
    data = bytearray(rng.choice(pieces))
    for _ in range(rng.randint(1, 4)):
        reach = rng.choice((4, 12, 60, len(data)))
        place = rng.randrange(min(reach, len(data)) or 1)
        match rng.randrange(7):
            case 0:
                data[place : place + 1] = bytes((rng.randrange(256),))
            case 1:
                data[place : place + 1] = bytes(((data[place] if place < len(data) else 0) ^ 1 << rng.randrange(8),))
            case 2:
                del data[place : place + rng.randint(1, 5)]
            case 3:
                data[place:place] = rng.randbytes(rng.randint(1, 5))
            case 4:
                wound = rng.choice(INTERESTING)
                data[place : place + len(wound)] = wound
            case 5:
                del data[place + 1 :]
            case _:
                other = rng.choice(pieces)
                data[place:] = other[rng.randrange(len(other)) :]
    return bytes(data)


def feed(data: bytes, rng: random.Random) -> list[Event]:
    """Through a connection past its handshake, or through a bare decoder from the Hello on, in a few pieces."""
    receiver: BEPConnection | Decoder
    if rng.random() < 0.1:
        receiver = Decoder()
        data = frame_hello(HELLO)[: rng.choice((4, 6, 20, 99))] + data
    else:
        receiver = BEPConnection(0.0)
        receiver.send_hello(HELLO)
        receiver.send_cluster_config(ClusterConfig())
        receiver.receive_data(greeting())
    cut = rng.randrange(len(data) + 1)
    return receiver.receive_data(data[:cut]) + receiver.receive_data(data[cut:])


def run(count: int, seed: int) -> Counter[str]:
    """Feeds `count` mutated frames; counts events by kind and errors. Anything else than these two fails with the frame in hex."""
    rng = random.Random(seed)
    pieces = corpus()
    outcomes: Counter[str] = Counter()
    for number in range(count):
        data = mutate(rng, pieces)
        try:
            events = feed(data, rng)
        except ProtocolError:
            outcomes["errors"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, frame {number}: {data[:300].hex()} of {len(data)} bytes") from error
        else:
            outcomes.update(type(event).__name__ for event in events)
    return outcomes


def test_mutated_frames_give_events_or_protocol_errors() -> None:
    outcomes = run(5_000, seed=1)
    assert outcomes["errors"] > 1_000
    assert {"Index", "Response", "Request", "ClusterConfig", "Close"} <= outcomes.keys()


@pytest.mark.slow
def test_a_hundred_thousand_mutated_frames() -> None:
    began = time.monotonic()
    outcomes = run(100_000, seed=2)
    assert outcomes["errors"] > 20_000
    assert time.monotonic() - began < 60


def test_memory_follows_what_arrived() -> None:
    """At most 1 MiB ahead for a frame, 255 times what a compressed one really has, and what its decoded values take."""
    rng = random.Random(3)
    pieces = corpus()
    tracemalloc.start()
    try:
        for number in range(2_000):
            data = mutate(rng, pieces)
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            with contextlib.suppress(ProtocolError):
                feed(data, rng)
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < (3 << 20) + 300 * len(data), f"frame {number}: {data[:100].hex()}"
    finally:
        tracemalloc.stop()


@pytest.mark.soak
def test_soak() -> None:
    deadline = time.monotonic() + float(os.environ.get("SOAK_S", "60"))
    seed = time.time_ns()
    while time.monotonic() < deadline:
        run(10_000, seed)
        seed += 1
