"""Recordings of real peers (`tests/golden/record_bep.py`) and the vectors of bep-facts, read and reproduced."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from stnode.protocol import codec, fileinfo
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.framing import Decoder
from stnode.protocol.messages import ClusterConfig, Event, Hello, Index, MessageType, Request, Response
from stnode.protocol.pb import bep_pb2 as pb
from tests.support.bep import encoded

ROOT = Path(__file__).resolve().parents[3]
RECORDINGS = sorted((ROOT / "tests" / "golden" / "bep").glob("*.bin.gz"))
BLOCKS = bytes(range(256)) * 1200


def events_of(recording: Path, step: int = 1 << 16) -> list[Event]:
    data = gzip.decompress(recording.read_bytes())
    decoder = Decoder()
    events: list[Event] = []
    for place in range(0, len(data), step):
        events += decoder.receive_data(data[place : place + step])
    return events


def files_of(events: list[Event]) -> dict[str, FileInfo]:
    return {info.name: info for event in events if isinstance(event, Index) for info in event.files}


def test_there_are_recordings_of_both_families() -> None:
    assert len(RECORDINGS) >= 2


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_recorded_sessions(recording: Path) -> None:
    events = events_of(recording)
    hello, config = events[:2]
    assert isinstance(hello, Hello)
    assert (hello.device_name, hello.client_name) == ("golden peer", "syncthing")
    assert recording.name.startswith(f"syncthing-{hello.client_version.removeprefix('v').partition('-')[0]}")
    assert isinstance(config, ClusterConfig)
    assert [(folder.id, folder.paused, len(folder.devices)) for folder in config.folders] == [("golden", False, 2)]
    files = files_of(events)
    assert (files["sub"].type, files["sub/déjà vu"].type, files["link"].type) == (FileType.DIRECTORY, FileType.DIRECTORY, FileType.SYMLINK)
    assert files["link"].symlink_target == b"sub/small.txt"
    assert files["deleted"].deleted
    assert (files["empty"].size, files["empty"].block_hashes) == (0, fileinfo.zero_hash(0))
    assert files["sub/small.txt"].block_hashes == hashlib.sha256(b"hello world").digest()
    zeros = files["zeros.bin"]
    assert zeros.block_hashes == fileinfo.zero_hash(131072) * 2 + fileinfo.zero_hash(5)
    received = sorted(bytes(event.data) for event in events if isinstance(event, Response))
    assert sum(map(len, received)) == len(BLOCKS) + 262149 + 11
    assert any(isinstance(event, Request) and event.name == "from us/offered.txt" and event.hash for event in events)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_recorded_sessions_in_small_pieces(recording: Path) -> None:
    assert events_of(recording, 97) == events_of(recording)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_what_we_announce_again_is_what_was_received(recording: Path) -> None:
    for info in files_of(events_of(recording)).values():
        again = fileinfo.from_wire(pb.FileInfo.FromString(encoded(info)))
        assert again == info
        assert fileinfo.from_record(info.wire, info.sequence, info.block_hashes) == info


def test_new_builds_what_the_newer_peer_sends() -> None:
    """blocks_hash is v2's in 1.29.5 too, platform data aside: the same fields with the same values."""
    (recording,) = [path for path in RECORDINGS if "1.29" in path.name]
    for info in files_of(events_of(recording)).values():
        theirs = pb.FileInfo.FromString(info.wire)
        ours = fileinfo.new(
            name=info.name,
            type=info.type,
            version=info.version,
            modified_by=info.modified_by,
            size=info.size,
            permissions=info.permissions,
            modified_s=info.modified_s,
            modified_ns=info.modified_ns,
            deleted=info.deleted,
            block_hashes=info.block_hashes,
            symlink_target=info.symlink_target,
        )
        mine = pb.FileInfo.FromString(ours.wire)
        for ignored in ("platform", "blocks_hash", "block_size"):
            theirs.ClearField(ignored)
            mine.ClearField(ignored)
        assert mine == theirs


def test_items_seen_on_the_wire() -> None:
    """bep-facts 8.1 and 9.1: an empty file's block is its hash alone; an uncompressed Ping is eight bytes."""
    empty = fileinfo.zero_hash(0)
    assert empty.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert fileinfo.encode(b"", 1, 0, 131072, empty) == b"\x50\x01\x82\x01\x22\x1a\x20" + empty
    request = pb.Request(folder="default", name="hello.txt", offset=131072, size=68928, hash=empty, block_no=1)
    decoded = codec.decode(MessageType.REQUEST, request.SerializeToString())
    assert isinstance(decoded, Request)
    assert (decoded.offset, decoded.size, decoded.block_no) == (131072, 68928, 1)


def test_the_generated_code_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, "proto/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
