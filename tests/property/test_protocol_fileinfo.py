"""Any FileInfo that a peer may send is read, kept and announced again without loss, as the generated code would do it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stnode.errors import ProtocolError
from stnode.protocol import conflict, fileinfo
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.pb import bep_pb2 as pb
from stnode.protocol.vector import Ordering, compare
from tests.support.bep import digest, encoded

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=8), min_size=1, max_size=4)
CLEAN = NAMES.map("/".join).filter(lambda name: not fileinfo.name_fault(name))
SIZES = st.one_of(st.integers(0, 400_000), st.integers(0, 3_000_000).map(lambda size: size // 131072 * 131072))
COUNTERS = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=4)
UNKNOWN = st.sampled_from([b"", b"\xa8\x01\x07", b"\xf2\x3f\x03new", b"\x7a\x00"])


@st.composite
def messages(draw: st.DrawFn) -> pb.FileInfo:
    """A FileInfo that passes all checks, with a block list where there must be one."""
    kind = draw(st.sampled_from([0, 0, 0, 1, 4]))
    deleted = draw(st.booleans())
    message = pb.FileInfo(
        name=draw(CLEAN),
        type=kind,
        permissions=draw(st.integers(0, 0o7777)),
        modified_s=draw(st.integers(-(2**63), 2**63 - 1)),
        modified_ns=draw(st.integers(0, 999_999_999)),
        modified_by=draw(st.integers(0, 2**64 - 1)),
        deleted=deleted,
        invalid=draw(st.booleans()),
        no_permissions=draw(st.booleans()),
        sequence=draw(st.integers(1, 2**63 - 1)),
        symlink_target=draw(st.binary(max_size=9)) if kind == 4 else b"",
        blocks_hash=draw(st.binary(max_size=4)),
        encrypted=draw(st.binary(max_size=4)),
        previous_blocks_hash=draw(st.binary(max_size=4)),
    )
    if draw(st.booleans()):
        message.platform = draw(st.binary(max_size=5))
    for short_id, value in draw(COUNTERS):
        message.version.counters.add(id=short_id, value=value)
    if kind == 0 and not deleted:
        message.size = draw(SIZES)
        message.block_size = draw(st.sampled_from([0, 131072, 262144]))
        block_size = max(131072, message.block_size)
        for number, length in enumerate(fileinfo.block_lengths(message.size, block_size)):
            message.blocks.add(offset=number * block_size, size=length, hash=digest(number))
    return message


def read(raw: bytes) -> FileInfo:
    info = fileinfo.from_wire(pb.FileInfo.FromString(raw))
    fileinfo.check(info)
    return info


@given(messages(), UNKNOWN)
def test_what_is_announced_again_is_what_came(message: pb.FileInfo, unknown: bytes) -> None:
    raw = message.SerializeToString() + unknown
    info = read(raw)
    assert pb.FileInfo.FromString(encoded(info)).SerializeToString() == pb.FileInfo.FromString(raw).SerializeToString()
    assert read(encoded(info)) == info
    assert fileinfo.from_record(info.wire, info.sequence, info.block_hashes) == info


@given(messages())
def test_the_fields_are_those_of_the_message(message: pb.FileInfo) -> None:
    info = read(message.SerializeToString())
    same = (
        "name",
        "size",
        "permissions",
        "modified_s",
        "modified_ns",
        "modified_by",
        "deleted",
        "invalid",
        "no_permissions",
        "sequence",
        "symlink_target",
    )
    assert {field: getattr(info, field) for field in same} == {field: getattr(message, field) for field in same}
    assert info.type == message.type
    assert info.block_hashes == b"".join(block.hash for block in message.blocks)
    assert info.block_size == (max(message.block_size, 131072) if info.type is FileType.FILE else 0)
    assert list(info.version) == sorted(info.version)


@given(messages(), CLEAN, st.integers(0, 2**64 - 1), st.integers(0, 2**31))
def test_replacing_leaves_all_else(message: pb.FileInfo, name: str, by: int, modified_s: int) -> None:
    info = read(message.SerializeToString())
    changed = fileinfo.replace(info, name=name, modified_by=by, modified_s=modified_s)
    back = fileinfo.replace(changed, name=info.name, modified_by=info.modified_by, modified_s=info.modified_s)
    assert back == info
    assert (changed.name, changed.modified_by, changed.modified_s) == (name, by, modified_s)


@given(messages(), messages())
def test_every_pair_has_one_winner(a: pb.FileInfo, b: pb.FileInfo) -> None:
    """supersedes is antisymmetric, and total unless the two are the same version."""
    first, second = read(a.SerializeToString()), read(b.SerializeToString())
    forth, back = conflict.supersedes(first, second), conflict.supersedes(second, first)
    assert not (forth and back)
    assert forth or back or compare(first.version, second.version) is Ordering.EQUAL


@given(
    st.integers(0, 5_000_000), st.sampled_from([131072, 262144]), st.dictionaries(st.integers(0, 40), st.binary(max_size=33), max_size=2)
)
def test_damaged_block_lists_never_pass(size: int, block_size: int, damage: dict[int, Any]) -> None:
    """A list with one hash of another length, a missing or a doubled block is refused; the untouched one is taken."""
    message = pb.FileInfo(name="a", size=size, block_size=block_size, sequence=1)
    for number, length in enumerate(fileinfo.block_lengths(size, block_size)):
        message.blocks.add(offset=number * block_size, size=length, hash=digest(number))
    harmless = True
    for place, value in damage.items():
        if place < len(message.blocks):
            message.blocks[place].hash = value
            harmless = harmless and len(value) == 32
    try:
        read(message.SerializeToString())
    except ProtocolError:
        assert not harmless
    else:
        assert harmless
