"""One example of every object of the store's format, with all its fields in use; golden files are made of these."""

from __future__ import annotations

import hashlib

from stnode.protocol import vector
from stnode.protocol.fileinfo import FileType
from stnode.repo.codec import (
    Body,
    BodyRef,
    BodySet,
    Group,
    Manifest,
    PackAdded,
    Partial,
    Relocation,
    RunRef,
    RunWriter,
    Section,
    Slot,
    Space,
    encode_body,
    encode_manifest,
    encode_slot,
    encode_stub,
    slot_sha,
)
from stnode.repo.heartbeat import Heartbeat, Reach, encode_heartbeat
from stnode.repo.records import HistoryRule, SetKind
from stnode.repo.settings import DeviceSettings, FolderDevice, FolderSettings
from tests.support.journal import DAY_US, DOCS, NODE, PHOTOS, START_US, record

_ID = "0006441a3f5e80" + "ab" * 10
ALL_FOLDER = FolderSettings(
    "Größe/1",
    "0123456789abcdef",
    2**64 - 1,
    "Ein Ordner",
    "receiveencrypted",
    (FolderDevice(bytes(32)), FolderDevice(b"\1" * 32, "secret", b"token")),
    ("*.tmp", "!/keep"),
    "0",
    "3d",
    ignore_permissions=True,
    objects_up_to=-1,
    encryption_password_token=b"\2" * 16,
    objects_prefix="web",
    storage_class="STANDARD_IA",
    delete_guard=0.25,
)
ALL_DEVICE = DeviceSettings(
    b"\3" * 32,
    "laptop",
    ("tcp://192.0.2.7:22000", "dynamic"),
    "always",
    introducer=True,
    skip_introduction_removals=True,
    introduced_by=b"\4" * 32,
    cert_name="syncthing",
    untrusted=True,
)
PARTIAL = Partial("big.iso", vector.to_wire(((77, 9),)), NODE, 1 << 40, 16 << 20, b"\5" * 32, (0, 40), ((-1, 0, 5), (3, 2, 1)))


def all_body() -> Body:
    """A body that uses every field. It is no valid commit."""
    photos = Section(
        PHOTOS.fkey,
        (
            BodySet(SetKind.SINGLE, (record("a.txt", 3, ((1, 0, 1), (0, 0, 4), (-1, 7, 300))),)),
            BodySet(SetKind.ALL_OR_NONE, (record("b.txt", 2), record("b.sync-conflict.txt", 1, ((1, 200, 1),)))),
            BodySet(SetKind.NEW_FIRST, (record("new", history=HistoryRule.DROP), record("old", 2, deleted=True))),
            BodySet(SetKind.SINGLE, (record("dir", type=FileType.DIRECTORY), record("link", type=FileType.SYMLINK))),
            BodySet(SetKind.SINGLE, (record("loser", 4, history=HistoryRule.ONLY),)),
        ),
        (PARTIAL,),
        (("gone.iso", b"\x0a\x00"),),
        START_US - 14 * DAY_US,
        START_US - 30 * DAY_US,
        START_US - 480 * DAY_US,
    )
    return Body(
        sections=(photos, Section(DOCS.fkey)),
        packs_added=(PackAdded(PHOTOS.fkey, _ID, 1 << 26, 512, (1 << 26) - 20_000, 20_000),),
        relocations=(Relocation(4, 10, 20, -1, 30), Relocation(4, 40, 1, 9, 0)),
        relocations_dropped=(2,),
        packs_condemned=(4, 5),
        objects_condemned=(f"runs/ab/{_ID}",),
        packs_gone=(3,),
        objects_gone=(f"bodies/ab/{_ID}",),
        horizon_us=START_US - DAY_US,
        folders=(ALL_FOLDER, PHOTOS),
        folders_removed=(DOCS.fkey,),
        devices=(ALL_DEVICE,),
        devices_removed=(b"\6" * 32,),
        features_on=("later",),
        packs_lost=(6,),
        packs_found=(7,),
    )


def versions_dropped_body() -> Body:
    """Single versions leave the history."""
    return Body(sections=(Section(PHOTOS.fkey, history_dropped=(("a.txt", START_US), ("Größe/b", START_US + 1))),))


def small_slot() -> Slot:
    """A commit of one file, its body inside."""
    body = Body(sections=(Section(PHOTOS.fkey, (BodySet(SetKind.SINGLE, (record("a.txt", 1, ((1, 0, 1),)),)),)),))
    return Slot(2, b"\7" * 32, NODE, 2**64 - 1, b"\x08" * 16, START_US, ((PHOTOS.fkey, START_US),), body=body)


def large_slot() -> Slot:
    """A commit with a stored body, two of its sets dropped, and an addition inside."""
    stored = BodyRef(_ID, 123_456, hashlib.sha256(encode_body(all_body())).digest())
    extra = Body(sections=(Section(PHOTOS.fkey, (BodySet(SetKind.SINGLE, (record("c.txt", 1, ((-1, 0, 1),)),)),)),))
    return Slot(
        3, slot_sha(encode_slot(small_slot())), NODE, 1, b"\x09" * 16, START_US + 1, ((PHOTOS.fkey, START_US + 1),), stored, (1, 3), extra
    )


def manifest() -> Manifest:
    """Two groups, one with a delta."""
    base = (RunRef(_ID, 10, b"\1" * 32, 100, 50), RunRef(_ID, 11, b"\2" * 32, 200, 60, b"\x10dir/x"))
    delta = RunRef(_ID, 12, b"\3" * 32, 7, 70, base_entries=(0, 7))
    groups = (Group(0, (RunRef(_ID, 9, b"\0" * 32, 3, 70),)), Group(1, base, (delta,)))
    return Manifest(70, b"\4" * 32, START_US, START_US - 2 * DAY_US, 12, 3, b"\5" * 16, NODE, groups)


def heartbeat() -> Heartbeat:
    """One that uses every field; its time is the store's."""
    return Heartbeat(
        NODE,
        2**64 - 1,
        "bucket-a",
        "0.1.0",
        START_US,
        0,
        ("tcp://192.0.2.7:22000",),
        "http://192.0.2.7:8384/",
        (Reach(b"\3" * 32, 10_000_000), Reach(b"\4" * 32)),
        (PHOTOS.fkey,),
        full=True,
        working=True,
        head=70,
        features=("later",),
        stopped=True,
        unshared=(PHOTOS.fkey,),
    )


def base_run() -> bytes:
    """A run of records and an interval."""
    writer = RunWriter(1)
    for number in range(20):
        writer.add(Space.RECORD, f"name {number:02d}".encode(), b"value %d" % number)
    writer.add(Space.INTERVAL, bytes(8), b"\1" * 8)
    return b"".join(writer.finish())


def delta_run() -> bytes:
    """A run with a removed and an empty entry."""
    writer = RunWriter(1)
    writer.add(Space.RECORD, b"gone", None)
    writer.add(Space.RECORD, b"there", b"")
    return b"".join(writer.finish())


SAMPLES = {
    "slot-small.bin": lambda: encode_slot(small_slot()),
    "slot-large.bin": lambda: encode_slot(large_slot()),
    "slot-stub.bin": lambda: encode_stub(2),
    "body.bin": lambda: encode_body(all_body()),
    "body-versions-dropped.bin": lambda: encode_body(versions_dropped_body()),
    "manifest.bin": lambda: encode_manifest(manifest()),
    "heartbeat.bin": lambda: encode_heartbeat(heartbeat()),
    "run-base.bin": base_run,
    "run-delta.bin": delta_run,
}
"""Golden file to the bytes that version 1 writes."""
