"""Bytes of the store's objects, all in one place for importers; each part has its own module. Pure."""

from __future__ import annotations

from stnode.repo.codec_body import (
    EMPTY,
    Body,
    BodyRecord,
    BodySet,
    PackAdded,
    Partial,
    Relocation,
    Section,
    decode_body,
    encode_body,
    joined,
    without_sets,
)
from stnode.repo.codec_manifest import Group, Manifest, RunRef, decode_manifest, encode_manifest
from stnode.repo.codec_run import RunWriter, Space, read_frames
from stnode.repo.codec_slot import (
    KNOWN_FEATURES,
    MAX_SLOT_BYTES,
    NO_PREDECESSOR,
    BodyRef,
    Slot,
    Stub,
    content,
    decode_slot,
    encode_slot,
    encode_stub,
    slot_sha,
)

__all__ = [
    "EMPTY",
    "KNOWN_FEATURES",
    "MAX_SLOT_BYTES",
    "NO_PREDECESSOR",
    "Body",
    "BodyRecord",
    "BodyRef",
    "BodySet",
    "Group",
    "Manifest",
    "PackAdded",
    "Partial",
    "Relocation",
    "RunRef",
    "RunWriter",
    "Section",
    "Slot",
    "Space",
    "Stub",
    "content",
    "decode_body",
    "decode_manifest",
    "decode_slot",
    "encode_body",
    "encode_manifest",
    "encode_slot",
    "encode_stub",
    "joined",
    "read_frames",
    "slot_sha",
    "without_sets",
]
