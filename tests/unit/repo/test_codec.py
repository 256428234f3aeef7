"""The store's objects: golden files are read and written for ever, damage is found and names the key, unknown things are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stnode.errors import Corrupt, Internal, Refused
from stnode.repo import codec
from stnode.repo.codec import Body, BodyRecord, BodySet, Section, Stub
from stnode.repo.container import HEADER_BYTES, Kind, open_one, seal
from stnode.repo.heartbeat import decode_heartbeat
from stnode.repo.layout import folder_key, is_id, mint, minted_us, object_id, pack_key, slot_key, slot_number
from stnode.repo.pb import store_pb2 as pb
from stnode.repo.records import Extents, SetKind, decode_extents, encode_extents
from stnode.repo.settings import decode_device, decode_folder, encode_device, encode_folder
from tests.support import store_samples as samples
from tests.support.journal import DOCS, PHOTOS, make_env, record, section

GOLDEN = Path(__file__).parents[2] / "golden" / "format-v1"
KINDS = {"slot": Kind.SLOT, "body": Kind.BODY, "manifest": Kind.MANIFEST, "run": Kind.RUN, "heartbeat": Kind.HEARTBEAT}


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_golden_files_are_what_version_1_writes(name: str) -> None:
    assert samples.SAMPLES[name]() == (GOLDEN / name).read_bytes()


def test_golden_files_are_read() -> None:
    def golden(name: str) -> bytes:
        return (GOLDEN / name).read_bytes()

    assert codec.decode_slot(golden("slot-small.bin"), "s") == samples.small_slot()
    assert codec.decode_slot(golden("slot-large.bin"), "s") == samples.large_slot()
    assert codec.decode_slot(golden("slot-stub.bin"), "s") == Stub(2)
    assert codec.decode_body(golden("body.bin"), "b") == samples.all_body()
    assert codec.decode_manifest(golden("manifest.bin"), "m") == samples.manifest()
    assert decode_heartbeat(golden("heartbeat.bin"), "h") == samples.heartbeat()
    entries = [entry for frame in codec.read_frames(golden("run-base.bin"), 1, "r") for entry in frame]
    assert entries[3] == (codec.Space.RECORD, b"name 03", b"value 3")
    assert len(entries) == 21
    assert list(codec.read_frames(golden("run-delta.bin"), 1, "r")) == [[(16, b"gone", None), (16, b"there", b"")]]


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_every_damaged_byte_and_every_torn_end_is_corrupt_and_named(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    decoders: dict[str, Callable[[bytes, str], object]] = {
        "slot": codec.decode_slot,
        "body": codec.decode_body,
        "manifest": codec.decode_manifest,
        "heartbeat": decode_heartbeat,
        "run": lambda data, key: list(codec.read_frames(data, 1, key)),
    }
    decode = decoders[name.partition("-")[0].removesuffix(".bin")]
    damaged = [data[:at] + bytes((data[at] ^ 64,)) + data[at + 1 :] for at in range(len(data)) if at != 4]
    torn = [data[:length] for length in range(1, len(data))]
    for broken in (*damaged, *torn, data + b"x"):
        with pytest.raises(Corrupt, match="the/key is damaged"):
            decode(broken, "the/key")


def test_a_newer_format_or_feature_is_refused_by_name() -> None:
    data = bytearray(seal(Kind.BODY, b""))
    data[4] = 2
    with pytest.raises(Refused, match="format version 2"):
        codec.decode_body(bytes(data), "b")
    slot = codec.encode_slot(replace(samples.small_slot(), features=("time-travel", "teleport")))
    with pytest.raises(Refused, match="teleport, time-travel"):
        codec.decode_slot(slot, "s")
    with pytest.raises(Refused, match="teleport"):
        codec.decode_manifest(codec.encode_manifest(replace(samples.manifest(), features=("teleport",))), "m")


def test_a_valid_frame_around_nonsense_is_corrupt() -> None:
    for message in (b"\xff", pb.Body(sections=[pb.Section(sets=[pb.RecordSet(kind=9)])]).SerializeToString()):
        with pytest.raises(Corrupt, match="b is damaged"):
            codec.decode_body(seal(Kind.BODY, message), "b")
    torn = pb.Body(sections=[pb.Section(sets=[pb.RecordSet(records=[pb.NewRecord(extents=b"\x80")])])]).SerializeToString()
    with pytest.raises(Corrupt, match=r"b is damaged.*extent"):
        codec.decode_body(seal(Kind.BODY, torn), "b")
    with pytest.raises(Corrupt, match="malformed"):
        codec.decode_slot(seal(Kind.SLOT, b""), "s")


def test_a_slot_has_a_limit() -> None:
    huge = Body(sections=(section(*(record(f"{n}" * 9, n) for n in range(1000, 2000))),))
    with pytest.raises(Internal, match="slot 2 has"):
        codec.encode_slot(replace(samples.small_slot(), body=huge))


def test_bodies_shrink_by_compression() -> None:
    body = Body(sections=(section(*(record(f"dir/file {n}", n) for n in range(1, 200))),))
    data = codec.encode_body(body)
    assert len(data) < len(open_one(Kind.BODY, data, "b")) + HEADER_BYTES
    assert codec.decode_body(data, "b") == body


def test_content_drops_sets_and_goes_on_with_the_inline_body() -> None:
    stored = Body(
        sections=(section(record("a"), record("b")), section(record("c"), folder=DOCS)),
        packs_added=samples.all_body().packs_added * 2,
    )
    extra = Body(
        sections=(section(record("d", 1, ((-1, 0, 1), (5, 0, 1)))),), packs_added=samples.all_body().packs_added, packs_condemned=(9,)
    )
    slot = replace(samples.large_slot(), dropped=(1, 2), body=extra)
    merged = codec.content(slot, stored)
    assert merged.sections[0] == section(record("a"), record("d", 1, ((-3, 0, 1), (5, 0, 1))))
    assert merged.sections[1] == Section(DOCS.fkey)
    assert len(merged.packs_added) == 3
    assert merged.packs_condemned == (9,)
    with pytest.raises(Internal):
        codec.content(slot, None)


def test_settings_keep_unknown_fields_and_their_bytes() -> None:
    future = encode_folder(PHOTOS) + b"\xa2\x06\x03new"  # field 100
    settings = decode_folder(future)
    assert settings == PHOTOS
    assert encode_folder(settings) == future
    changed = encode_folder(replace(settings, label="other"))
    assert b"\xa2\x06\x03new" in changed
    assert decode_folder(changed).label == "other"
    assert decode_folder(encode_folder(samples.ALL_FOLDER)) == samples.ALL_FOLDER
    assert decode_device(encode_device(samples.ALL_DEVICE)) == samples.ALL_DEVICE


EXTENT = st.tuples(st.integers(-(2**31), 2**62), st.integers(0, 2**32), st.integers(0, 2**32))


@given(st.lists(EXTENT, max_size=5))
def test_extents_round_trip(extents: list[tuple[int, int, int]]) -> None:
    wanted: Extents = tuple(extents)
    assert decode_extents(encode_extents(wanted)) == wanted


@given(st.binary(max_size=40))
def test_any_bytes_as_extents_are_read_or_corrupt(data: bytes) -> None:
    try:
        decode_extents(data)
    except Corrupt as exc:
        assert "extent" in exc.message  # noqa: PT017 - both outcomes are allowed


@given(st.text(max_size=200), st.text(max_size=20))
def test_folder_keys_are_keys(folder_id: str, other: str) -> None:
    key = folder_key(folder_id, "0123456789abcdef")
    assert re.fullmatch(r"[0-9a-z_-]*-0123456789abcdef", key)
    assert len(key) <= 130
    assert (folder_key(other, "0123456789abcdef") == key) is (other == folder_id)


def test_ids_carry_their_time_and_sort_by_it() -> None:
    env, clock = make_env()
    first, second = mint(clock.now_us, env.random), mint(clock.now_us + 1, env.random)
    assert is_id(first)
    assert first < second
    assert minted_us(second) == clock.now_us + 1
    assert object_id(pack_key("photos-1", first)) == first
    assert slot_number(slot_key(12)) == 12
    assert slot_number(f"{slot_key(12)}-{bytes(16).hex()}") is None
    assert slot_number("journal/main/notes.txt") is None


def test_sets_and_records_keep_their_order() -> None:
    sets = (BodySet(SetKind.NEW_FIRST, (BodyRecord(b"1"), BodyRecord(b"2"))), BodySet(SetKind.SINGLE, (BodyRecord(b"3"),)))
    assert [each.info for each in Section("f", sets).records()] == [b"1", b"2", b"3"]
