"""Messages to protobuf and back; hand-written encodings against the generated code."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stnode.errors import Internal, ProtocolError
from stnode.protocol import codec
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.messages import (
    Claim,
    Close,
    ClusterConfig,
    ClusterDevice,
    ClusterFolder,
    Compression,
    DownloadProgress,
    FolderID,
    Hint,
    Index,
    MessageType,
    Ping,
    ProgressUpdate,
    Request,
    Response,
)
from stnode.protocol.pb import bep_pb2 as pb
from stnode.protocol.varint import read_varint, varint
from tests.support.bep import HELLO, digest, encoded_progress, file_message

REQUEST = Request(3, FolderID("default"), "dir/ü", 131072, 65536, digest("x"), True, 1)


@pytest.mark.parametrize(
    "value", [0, 1, 127, 128, 16383, 16384, 2**21 - 1, 2**21, 2**31 - 1, 2**35, 1_700_000_000_000_000, 2**63 - 1, 2**64 - 1]
)
def test_varints(value: int) -> None:
    written = varint(value)
    assert written == pb.Counter(id=value).SerializeToString()[1:] or value == 0
    assert read_varint(b"x" + written + b"y", 1, 1 + len(written)) == (value, 1 + len(written))


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\xff" * 9, b"\xff" * 12])
def test_broken_varints(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_varint(raw, 0, len(raw))


def test_hello_both_ways() -> None:
    assert codec.decode_hello(codec.encode_hello(HELLO)) == HELLO


def test_cluster_config_both_ways() -> None:
    device = ClusterDevice(
        DeviceID(bytes(range(32))),
        "name",
        ("dynamic", "tcp://192.0.2.1:22000"),
        Compression.ALWAYS,
        "cert",
        max_sequence=5,
        introducer=True,
        index_id=2**64 - 1,
        skip_introduction_removals=True,
        encryption_password_token=b"token",
    )
    config = ClusterConfig((ClusterFolder(FolderID("f"), "label", True, (device, ClusterDevice(DeviceID(bytes(32))))),), secondary=True)
    assert codec.decode(MessageType.CLUSTER_CONFIG, codec.encode_cluster_config(config)) == config
    assert config.folder(FolderID("f")) is config.folders[0]
    assert config.folder(FolderID("g")) is None
    assert config.folders[0].device(DeviceID(bytes(range(32)))) is device
    assert config.folders[0].device(DeviceID(b"x" * 32)) is None


def test_fields_of_v1_cluster_configs() -> None:
    """read_only, ignore_permissions, ignore_delete, disable_temp_indexes, paused as v1 sends them; an unknown compression."""
    device = pb.Device(id=bytes(32), compression=9).SerializeToString()
    folder = b"\x0a\x01f\x18\x01\x20\x01\x28\x01\x30\x01\x38\x01\x82\x01" + bytes([len(device)]) + device
    config = codec.decode(MessageType.CLUSTER_CONFIG, b"\x0a" + bytes([len(folder)]) + folder)
    expected = ClusterFolder(FolderID("f"), paused=True, devices=(ClusterDevice(DeviceID(bytes(32))),))
    assert config == ClusterConfig((expected,))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_device_ids_of_other_lengths_are_neither_taken_nor_sent(length: int) -> None:
    raw = pb.ClusterConfig(folders=[pb.Folder(id="f", devices=[pb.Device(id=bytes(length))])]).SerializeToString()
    with pytest.raises(ProtocolError):
        codec.decode(MessageType.CLUSTER_CONFIG, raw)
    device = ClusterDevice(DeviceID(bytes(length)))
    with pytest.raises(Internal):
        codec.encode_cluster_config(ClusterConfig((ClusterFolder(FolderID("f"), devices=(device,)),)))


@pytest.mark.parametrize(
    "request_", [REQUEST, replace(REQUEST, id=0, offset=0, block_no=0, from_temporary=False), replace(REQUEST, id=2**31 - 1)]
)
def test_requests_are_written_as_the_generated_code_would(request_: Request) -> None:
    written = codec.encode_request(request_, codec.request_folder(request_.folder))
    fields = {field: getattr(request_, field) for field in ("id", "folder", "name", "offset", "size", "hash", "from_temporary", "block_no")}
    assert written == pb.Request(**fields).SerializeToString()
    assert codec.decode(MessageType.REQUEST, written) == request_


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": -1}, {"size": (32 << 20) + 1}, {"hash": b""}])
def test_we_never_send_a_request_that_closes_the_connection(wrong: dict[str, object]) -> None:
    with pytest.raises(Internal):
        codec.encode_request(replace(REQUEST, **wrong), b"")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"size": -1}, {"size": (32 << 20) + 1}, {"offset": -1}, {"name": "../x"}, {"name": ""}])
def test_requests_that_peers_close_for(wrong: dict[str, object]) -> None:
    fields: dict[str, object] = {"folder": "f", "name": "n", "size": 5, "hash": b"h"} | wrong
    with pytest.raises(ProtocolError):
        codec.decode(MessageType.REQUEST, pb.Request(**fields).SerializeToString())  # type: ignore[arg-type]


def test_requests_of_old_peers_may_lack_the_hash_and_ask_for_nothing() -> None:
    raw = pb.Request(folder="f", name="n").SerializeToString() + b"\x40\x09"  # and v1's weak_hash
    assert codec.decode(MessageType.REQUEST, raw) == Request(0, FolderID("f"), "n", 0, 0, b"")


@pytest.mark.parametrize(
    "response", [Response(0), Response(5, b"data"), Response(2**31 - 1, b"x" * 200), Response(3, b"", 2), Response(-1, b"x", 9)]
)
def test_responses_are_read_as_the_generated_code_would(response: Response) -> None:
    message = pb.Response(id=response.id, data=bytes(response.data), code=response.code)
    raw = message.SerializeToString()
    assert codec.decode(MessageType.RESPONSE, raw) == response
    head = codec.encode_response_head(response.id, len(response.data), response.code)
    assert pb.Response.FromString(head + response.data) == message


def test_responses_with_fields_in_any_order_unknown_ones_and_repeated_ones() -> None:
    raw = b"\x18\x02\x12\x01a\x0a\x03xyz\x21\x00\x00\x00\x00\x00\x00\x00\x00\x2d\x00\x00\x00\x00\x38\x80\x01\x08\x80\x02\x12\x02bc\x98\x01\x01"
    assert codec.decode(MessageType.RESPONSE, raw) == Response(256, b"bc", 2)
    parsed = pb.Response.FromString(raw)
    assert (parsed.id, parsed.data, parsed.code) == (256, b"bc", 2)


@pytest.mark.parametrize("raw", [b"\x08", b"\x08\x80", b"\x12\x05abc", b"\x12", b"\x0b", b"\x21\x00", b"\x2d\x00", b"\x0a\x05abc"])
def test_broken_responses(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.decode(MessageType.RESPONSE, raw)


def test_indexes_both_ways() -> None:
    messages = [file_message("a", sequence=3), file_message("b", 300_000, sequence=9)]
    raw = codec.encode_index(FolderID("f"), [message.SerializeToString() for message in messages], 9, 2)
    assert raw == pb.Index(folder="f", files=messages, last_sequence=9, prev_sequence=2).SerializeToString()
    index = codec.decode(MessageType.INDEX_UPDATE, raw)
    assert isinstance(index, Index)
    assert (index.folder, index.last_sequence, index.prev_sequence, index.update) == ("f", 9, 2, True)
    assert [(info.name, info.sequence, len(info.block_hashes)) for info in index.files] == [("a", 3, 32), ("b", 9, 96)]


@pytest.mark.parametrize("sequences", [(0,), (-1,), (3, 3), (3, 2)])
def test_sequences_ascend(sequences: tuple[int, ...]) -> None:
    files = [file_message(str(place), sequence=sequence) for place, sequence in enumerate(sequences)]
    with pytest.raises(ProtocolError):
        codec.decode(MessageType.INDEX, pb.Index(folder="f", files=files).SerializeToString())


def test_download_progress_close_ping_hint_and_claim_both_ways() -> None:
    progress = DownloadProgress(
        FolderID("f"), (ProgressUpdate("n", ((1, 2),), False, (0, 5), 131072), ProgressUpdate("m", (), True, (), 0))
    )
    assert codec.decode(MessageType.DOWNLOAD_PROGRESS, encoded_progress(progress)) == progress
    assert codec.decode(MessageType.CLOSE, codec.encode_close("because")) == Close("because")
    assert codec.decode(MessageType.PING, b"") == Ping()
    assert codec.decode(MessageType.HINT, codec.encode_hint(Hint(7))) == Hint(7)
    for claim in (Claim(1, "key", (0, 2**64 - 1)), Claim(2**32 - 1, "key", (), reply=True)):
        assert codec.decode(MessageType.CLAIM, codec.encode_claim(claim)) == claim


@pytest.mark.parametrize("kind", [MessageType.HINT, MessageType.CLAIM])
def test_what_has_a_number_of_ours_and_is_not_ours_is_skipped(kind: int) -> None:
    """The numbers are not the protocol's: another implementation may use them one day."""
    assert codec.decode(kind, b"\xff\xff") is None


@pytest.mark.parametrize("kind", [8, 66, -1, 1 << 20])
def test_unknown_types_are_skipped(kind: int) -> None:
    assert codec.decode(kind, b"\xff\xff") is None


@pytest.mark.parametrize("kind", [kind for kind in MessageType if kind not in (MessageType.RESPONSE, MessageType.HINT, MessageType.CLAIM)])
def test_unparseable_messages(kind: MessageType) -> None:
    with pytest.raises(ProtocolError, match=kind.name):
        codec.decode(kind, b"\x0a\x05abc")


def test_invalid_utf8_is_unparseable() -> None:
    with pytest.raises(ProtocolError):
        codec.decode(MessageType.REQUEST, b"\x1a\x01\xff")
