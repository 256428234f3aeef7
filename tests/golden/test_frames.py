"""Streams that real Syncthings sent (frames/README.md) through our protocol, in one piece and in crumbs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from stnode.protocol import fileinfo
from stnode.protocol.connection import BEPConnection
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.messages import ClusterConfig, Event, FolderID, Hello, Index, Ping, Request, Response

FRAMES = Path(__file__).parent / "frames"
FOLDER = FolderID("golden-folder")
VERSIONS = sorted(path.name for path in FRAMES.iterdir() if path.is_dir())
BLOCKS = bytes(range(256)) * 1400


def decode(version: str, name: str, step: int = 1 << 30) -> list[Event]:
    """All events of a recording."""
    stream = (FRAMES / version / f"{name}.bin").read_bytes()
    connection = BEPConnection(0.0)
    connection.send_hello(Hello("test", "stnode", "v0"))
    connection.send_cluster_config(ClusterConfig())
    events: list[Event] = []
    for start in range(0, len(stream), step):
        events += connection.receive_data(stream[start : start + step])
    return events


def hashes(content: bytes) -> bytes:
    """Block hashes of a file of 128 KiB blocks."""
    return b"".join(hashlib.sha256(content[at : at + 131072]).digest() for at in range(0, max(len(content), 1), 131072))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["index", "index-plain", "index-all-compressed", "update", "requests", "responses", "ping"])
def test_beginnings_and_crumbs(version: str, name: str) -> None:
    events = decode(version, name)
    hello, config, index = events[:3]
    assert isinstance(hello, Hello)
    assert hello.client_version.startswith(f"v{version}")
    assert (hello.client_name, hello.device_name) == ("syncthing", "golden")
    assert isinstance(config, ClusterConfig)
    folder = config.folder(FOLDER)
    assert folder is not None
    assert len(folder.devices) == 2
    assert sum(device.max_sequence > 0 and device.index_id > 0 for device in folder.devices) >= 1
    assert isinstance(index, Index)
    assert not index.update
    assert index.folder == FOLDER
    again = decode(version, name, 7)
    assert [type(event) for event in again] == [type(event) for event in events]
    assert again[2] == index


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["index", "index-plain", "index-all-compressed"])
def test_index(version: str, name: str) -> None:
    index = decode(version, name)[2]
    assert isinstance(index, Index)
    files = {info.name: info for info in index.files}
    kinds = {name: (info.type, info.deleted, info.size) for name, info in files.items() if info.type is not FileType.DIRECTORY}
    assert kinds == {
        "file.txt": (FileType.FILE, False, 10),
        "empty": (FileType.FILE, False, 0),
        "blocks.bin": (FileType.FILE, False, len(BLOCKS)),
        "directory/nested/ünïcödé.txt": (FileType.FILE, False, 5),
        "directory/script.sh": (FileType.FILE, False, 10),
        "link": (FileType.SYMLINK, False, 0),
        "deleted.txt": (FileType.FILE, True, 0),
    }
    assert {name for name, info in files.items() if info.type is FileType.DIRECTORY} == {"directory", "directory/nested"}
    assert files["blocks.bin"].block_hashes == hashes(BLOCKS)
    assert files["empty"].block_hashes == hashes(b"")
    assert files["link"].symlink_target == b"file.txt"
    assert files["directory/script.sh"].permissions & 0o777 == 0o755
    sequences = [info.sequence for info in index.files]
    assert sequences == sorted(set(sequences))
    for info in index.files:
        fileinfo.check(info)
        assert _again(info) == info


def _again(info: FileInfo) -> FileInfo:
    """The same item from what a record stores of it."""
    return fileinfo.from_record(info.wire, info.sequence, info.block_hashes)


@pytest.mark.parametrize("version", VERSIONS)
def test_updates(version: str) -> None:
    updates = decode(version, "update")[3:]
    found = []
    for update in updates:
        assert isinstance(update, Index)
        assert update.update
        found += [(info.name, info.deleted, info.size) for info in update.files]
    assert found == [("file.txt", False, 19), ("new.txt", False, 4), ("new.txt", True, 0)]


@pytest.mark.parametrize("version", VERSIONS)
def test_requests(version: str) -> None:
    requests = decode(version, "requests")[3:]
    wanted = []
    for request in requests:
        assert isinstance(request, Request)
        wanted.append((request.folder, request.name, request.offset, request.size, request.hash))
    assert sorted(wanted) == [
        (FOLDER, "wanted.bin", 0, 131072, bytes([1]) * 32),
        (FOLDER, "wanted.bin", 131072, 1000, bytes([2]) * 32),
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_responses(version: str) -> None:
    answers = {}
    for response in decode(version, "responses")[3:]:
        assert isinstance(response, Response)
        answers[response.id] = (bytes(response.data), response.code != 0)
    assert answers == {1: (BLOCKS[:131072], False), 2: (BLOCKS[262144:], False), 3: (b"", True)}


@pytest.mark.parametrize("version", VERSIONS)
def test_ping(version: str) -> None:
    assert isinstance(decode(version, "ping")[3], Ping)
