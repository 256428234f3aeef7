"""FileInfo: shapes on the wire, the rules of bep-facts 6.3 and 9.1, block lists (8.1)."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from stnode.errors import Invalid, ProtocolError
from stnode.protocol import fileinfo
from stnode.protocol.blocks import block_count
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.pb import bep_pb2 as pb
from tests.support.bep import digest, encoded, file_info, file_message

KIB, MIB = 1 << 10, 1 << 20


def received(message: pb.FileInfo) -> FileInfo:
    info = fileinfo.from_wire(pb.FileInfo.FromString(message.SerializeToString()))
    fileinfo.check(info)
    return info


@pytest.mark.parametrize(
    ("size", "block_size"),
    [
        (0, 128 * KIB),
        (262_143_999, 128 * KIB),
        (262_144_000, 256 * KIB),
        (524_288_000, 512 * KIB),
        (1_048_576_000, 1 * MIB),
        (2_097_152_000, 2 * MIB),
        (4_194_304_000, 4 * MIB),
        (8_388_608_000, 8 * MIB),
        (16_777_216_000, 16 * MIB),
        (1 << 45, 16 * MIB),
    ],
)
def test_block_size_table(size: int, block_size: int) -> None:
    assert fileinfo.block_size_for(size) == block_size


def test_a_changed_file_keeps_its_block_size_within_a_factor_of_two() -> None:
    assert fileinfo.block_size_for(300_000_000, previous=128 * KIB) == 128 * KIB
    assert fileinfo.block_size_for(100, previous=256 * KIB) == 256 * KIB
    assert fileinfo.block_size_for(100, previous=512 * KIB) == 128 * KIB
    assert fileinfo.block_size_for(100, previous=64 * KIB) == 128 * KIB


def test_zero_hashes_and_lengths() -> None:
    assert fileinfo.zero_hash(128 * KIB).hex() == "fa43239bcee7b97ca62f007cc68487560a39e19f74f3dde7486db3f98df8e471"
    assert fileinfo.zero_hash(0) == hashlib.sha256().digest()
    assert fileinfo.block_lengths(0, 128 * KIB) == [0]
    assert fileinfo.block_lengths(262149, 128 * KIB) == [131072, 131072, 5]
    assert fileinfo.block_lengths(262144, 128 * KIB) == [131072, 131072]
    assert [block_count(size, 10) for size in (0, 1, 10, 11)] == [1, 1, 1, 2]


def test_wire_keeps_everything_but_sequence_and_blocks() -> None:
    unknown = b"\xf2\x3f\x03new\xa8\x01\x07"  # fields 1022 and 21 of a later version
    message = file_message(size=200_000, platform=b"\x0a\x02\x08\x01", blocks_hash=b"h" * 32, previous_blocks_hash=b"p" * 32)
    info = fileinfo.from_wire(pb.FileInfo.FromString(message.SerializeToString() + unknown))
    assert info.block_hashes == digest(("a", 0)) + digest(("a", 1))
    kept = pb.FileInfo.FromString(info.wire)
    assert not kept.blocks
    assert not kept.sequence
    assert (kept.platform, kept.blocks_hash, kept.previous_blocks_hash) == (b"\x0a\x02\x08\x01", b"h" * 32, b"p" * 32)
    assert b"\xf2\x3f\x03new" in info.wire
    assert b"\xa8\x01\x07" in info.wire
    assert (
        pb.FileInfo.FromString(encoded(info)).SerializeToString()
        == pb.FileInfo.FromString(message.SerializeToString() + unknown).SerializeToString()
    )


def test_empty_platform_data_stays_where_it_was_sent() -> None:
    assert b"\x72\x00" in received(file_message(platform=b"")).wire
    assert b"\x72\x00" not in received(file_message()).wire


def test_private_fields_of_a_peer_are_dropped() -> None:
    message = file_message(local_flags=8, version_hash=b"v", inode_change_ns=1, encryption_trailer_size=1)
    assert received(message).wire == received(file_message()).wire


def test_a_v1_peer_has_weak_hashes_and_may_leave_the_block_size_out() -> None:
    message = file_message(block_size=0)
    raw = message.SerializeToString()
    weak = raw.replace(message.blocks[0].SerializeToString(), message.blocks[0].SerializeToString() + b"\x20\x09")
    weak = weak.replace(b"\x82\x01\x24", b"\x82\x01\x26")
    assert pb.FileInfo.FromString(weak).blocks[0].hash == digest(("a", 0))
    info = fileinfo.from_wire(pb.FileInfo.FromString(weak))
    assert (info.block_size, info.block_hashes) == (131072, digest(("a", 0)))


def test_directories_of_size_128_are_taken_without_it() -> None:
    info = received(pb.FileInfo(name="d", type=1, size=128, sequence=1))
    assert (info.type, info.size, pb.FileInfo.FromString(info.wire).size) == (FileType.DIRECTORY, 0, 0)


@pytest.mark.parametrize("kind", [2, 3, 4])
def test_all_kinds_of_symlinks_are_symlinks(kind: int) -> None:
    assert received(pb.FileInfo(name="l", type=kind, symlink_target=b"\xff/x", sequence=1)).type is FileType.SYMLINK


def test_invalid_items_may_have_blocks_or_not() -> None:
    assert received(pb.FileInfo(name="i", invalid=True, sequence=1)).block_hashes == b""
    assert received(file_message(invalid=True)).block_hashes


def blocks(*entries: tuple[int, int, bytes]) -> list[pb.BlockInfo]:
    return [pb.BlockInfo(offset=offset, size=size, hash=value) for offset, size, value in entries]


H = b"h" * 32
BAD: dict[str, dict[str, Any]] = {
    "empty name": {"name": ""},
    "dot": {"name": "."},
    "dotdot": {"name": ".."},
    "absolute": {"name": "/a"},
    "parent": {"name": "../a"},
    "inner parent": {"name": "a/../b"},
    "trailing parent": {"name": "a/.."},
    "trailing slash": {"name": "a/"},
    "double slash": {"name": "a//b"},
    "leading dot": {"name": "./a"},
    "too long": {"name": "x" * 9000},
    "unknown type": {"type": 5},
    "negative type": {"type": -1},
    "file without blocks": {"size": 11},
    "empty file without blocks": {},
    "negative size": {"size": -1, "blocks": blocks((0, -1, H))},
    "deleted with blocks": {"deleted": True, "size": 11, "blocks": blocks((0, 11, H))},
    "deleted with an empty block": {"deleted": True, "blocks": blocks((0, 0, H))},
    "directory with blocks": {"type": 1, "blocks": blocks((0, 0, H))},
    "directory with size": {"type": 1, "size": 127},
    "symlink with size": {"type": 4, "size": 128},
    "symlink with blocks": {"type": 4, "size": 5, "blocks": blocks((0, 5, H))},
    "short hash": {"size": 11, "blocks": blocks((0, 11, b"h" * 31))},
    "neither hash nor token": {"size": 11, "blocks": blocks((0, 11, b"h" * 40))},
    "mixed hashes": {"size": 131073, "blocks": blocks((0, 131072, H), (131072, 1, b"h" * 48))},
    "swapped hash lengths": {"size": 262145, "blocks": blocks((0, 131072, H), (131072, 131072, b"h" * 31), (262144, 1, b"h" * 33))},
    "wrong offset": {"size": 11, "blocks": blocks((1, 11, H))},
    "wrong size": {"size": 11, "blocks": blocks((0, 10, H))},
    "gap": {"size": 262144, "blocks": blocks((0, 131072, H), (131073, 131072, H))},
    "short middle": {"size": 262143, "blocks": blocks((0, 131071, H), (131071, 131072, H))},
    "too many blocks": {"size": 11, "blocks": blocks((0, 11, H), (131072, 0, H))},
    "too few blocks": {"size": 131073, "blocks": blocks((0, 131072, H))},
    "huge block size": {"size": 11, "block_size": 1 << 30, "blocks": blocks((0, 11, H))},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD.keys())
def test_what_real_peers_close_for_is_a_protocol_error(fields: dict[str, Any]) -> None:
    defaults: dict[str, Any] = {"name": "a", "sequence": 1}
    message = pb.FileInfo(**defaults | fields)
    with pytest.raises(ProtocolError):
        received(message)


@pytest.mark.parametrize("name", ["a", ".a", "a.", "...", "..a", "a/.b/c..", "ü/ß", "a b", "a\\b"])
def test_clean_names(name: str) -> None:
    assert not fileinfo.name_fault(name)
    fileinfo.check_name(name)


def test_names_go_over_the_wire_in_nfc() -> None:
    decomposed = "e\u0301"
    assert not fileinfo.is_nfc(decomposed)
    assert fileinfo.normalize(decomposed) == "é"
    assert fileinfo.is_nfc("é")


def test_a_new_empty_file_has_its_one_block() -> None:
    info = file_info(size=0)
    wire = pb.FileInfo.FromString(encoded(info))
    assert [block.SerializeToString() for block in wire.blocks] == [b"\x1a\x20" + hashlib.sha256().digest()]
    assert wire.blocks_hash == hashlib.sha256(hashlib.sha256().digest()).digest()
    received(wire.__class__.FromString(encoded(fileinfo.replace(info, sequence=1))))


def test_new_items_have_the_shape_that_peers_send() -> None:
    directory = fileinfo.new(name="d", type=FileType.DIRECTORY, version=((7, 1),), modified_by=7, permissions=0o755)
    link = fileinfo.new(name="l", type=FileType.SYMLINK, version=((7, 1),), modified_by=7, symlink_target=b"t")
    gone = fileinfo.new(name="x", type=FileType.FILE, version=((7, 1),), modified_by=7, deleted=True, modified_s=5)
    assert (directory.block_size, directory.block_hashes, directory.no_permissions) == (0, b"", False)
    assert (link.no_permissions, link.symlink_target) == (True, b"t")
    assert (gone.deleted, gone.block_hashes, pb.FileInfo.FromString(gone.wire).block_size) == (True, b"", 0)


def test_new_refuses_what_no_peer_would_take() -> None:
    with pytest.raises(Invalid):
        fileinfo.new(name="a/", type=FileType.FILE, version=(), modified_by=7)
    with pytest.raises(Invalid):
        fileinfo.new(name="a", type=FileType.FILE, version=(), modified_by=7, size=5)


def test_hello_world_has_the_v2_blocks_hash() -> None:
    assert fileinfo.blocks_hash(hashlib.sha256(b"hello world").digest()) == hashlib.sha256(hashlib.sha256(b"hello world").digest()).digest()


def test_replace_changes_value_and_wire_alike_and_needs_no_hashes() -> None:
    info = received(file_message(platform=b"\x0a\x02\x08\x01"))
    stored = fileinfo.from_record(info.wire, 9)
    changed = fileinfo.replace(stored, name="b", version=((9, 2), (3, 1)), modified_by=9, permissions=0o600, invalid=True)
    assert (changed.name, changed.version, changed.modified_by, changed.permissions) == ("b", ((3, 1), (9, 2)), 9, 0o600)
    assert changed.sequence == 9
    assert fileinfo.from_record(changed.wire, 9) == changed
    assert pb.FileInfo.FromString(changed.wire).platform == b"\x0a\x02\x08\x01"
    with pytest.raises(Invalid):
        fileinfo.replace(stored, name="../b")


def test_replace_version_touches_nothing_else() -> None:
    info = received(file_message())
    changed = fileinfo.replace_version(info, ((5, 5),), 5)
    assert (changed.version, changed.modified_by) == (((5, 5),), 5)
    assert fileinfo.replace_version(changed, info.version, info.modified_by) == info


def test_a_deletion_keeps_type_and_permissions_only() -> None:
    info = received(file_message(size=200_000, invalid=True, blocks_hash=b"v1 with weak hashes"))
    gone = fileinfo.deletion(info, version=((7, 2),), modified_by=8, modified_s=99)
    assert (gone.deleted, gone.size, gone.block_hashes, gone.invalid, gone.modified_s) == (True, 0, b"", False, 99)
    assert gone.permissions == info.permissions
    wire = pb.FileInfo.FromString(gone.wire)
    assert (wire.blocks_hash, wire.previous_blocks_hash) == (b"", fileinfo.blocks_hash(info.block_hashes))
    fileinfo.check(gone)


def test_garbage_in_a_record_is_reported() -> None:
    with pytest.raises(ProtocolError):
        fileinfo.from_record(b"\xff\xff")
