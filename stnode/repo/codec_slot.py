"""Slots and stubs as values, and their bytes (docs/format.md, Slot). Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.message import DecodeError

from stnode.errors import Corrupt, Internal, Refused
from stnode.repo.codec_body import EMPTY, Body, Partial, Section, from_message, joined, to_message, without_sets
from stnode.repo.container import Kind, damaged, kind_of, open_one, seal
from stnode.repo.pb import store_pb2 as pb
from stnode.repo.records import Extents

MAX_SLOT_BYTES: Final = 32 << 10
NO_PREDECESSOR: Final = bytes(32)
KNOWN_FEATURES: Final[frozenset[str]] = frozenset()
"""Features of the format that this version understands beyond version 1 itself; none yet."""


@dataclass(frozen=True, slots=True)
class BodyRef:
    """A body that is an object of its own; `sha256` is of the whole object."""

    id: str
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Slot:
    """One entry of the journal. Its content is the `stored` body less the sets `dropped`, then the inline `body`: what
    re-validation adds to a large body that is already uploaded. Inline references to packs count on after the stored ones."""

    number: int
    prev: bytes
    node: bytes
    instance: int
    write_id: bytes
    store_time_us: int
    firsts: tuple[tuple[str, int], ...] = ()
    stored: BodyRef | None = None
    dropped: tuple[int, ...] = ()
    body: Body = EMPTY
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stub:
    """What a truncated slot has become: its content lives on in the manifests."""

    number: int


def slot_sha(data: bytes) -> bytes:
    """The hash that the next slot carries as `prev`."""
    return hashlib.sha256(data).digest()


def encode_slot(slot: Slot) -> bytes:
    """The slot's object, at most MAX_SLOT_BYTES (Internal: the body should have been stored apart)."""
    message = pb.Slot(
        features=slot.features,
        number=slot.number,
        previous=slot.prev,
        node=slot.node,
        instance=slot.instance,
        write_id=slot.write_id,
        store_time_us=slot.store_time_us,
        firsts=[pb.First(fkey=fkey, sequence=sequence) for fkey, sequence in slot.firsts],
        dropped=slot.dropped,
    )
    if slot.stored is not None:
        message.stored.CopyFrom(pb.BodyRef(id=slot.stored.id, size_bytes=slot.stored.size_bytes, sha256=slot.stored.sha256))
    if slot.body is not EMPTY:
        message.body.CopyFrom(to_message(slot.body))
    data = seal(Kind.SLOT, message.SerializeToString(deterministic=True))
    if len(data) > MAX_SLOT_BYTES:
        raise Internal(f"slot {slot.number} has {len(data)} bytes, more than {MAX_SLOT_BYTES}")
    return data


def encode_stub(number: int) -> bytes:
    """The object that overwrites slot `number`."""
    return seal(Kind.STUB, pb.Stub(number=number).SerializeToString(deterministic=True))


def decode_slot(data: bytes, name: str) -> Slot | Stub:
    """What the object `name` holds. Raises Corrupt; Refused when it needs a newer version or features unknown here."""
    kind = Kind.STUB if kind_of(data) is Kind.STUB else Kind.SLOT
    payload = open_one(kind, data, name)
    try:
        if kind is Kind.STUB:
            return Stub(pb.Stub.FromString(payload).number)
        message = pb.Slot.FromString(payload)
        check_features(message.features, name)
        body = from_message(message.body) if message.HasField("body") else EMPTY
    except (DecodeError, ValueError, Corrupt) as exc:
        raise damaged(name, f"no slot can be read from it ({exc})") from exc
    if len(message.previous) != 32 or len(message.write_id) != 16 or not message.number:
        raise damaged(name, "its number, predecessor or write id is malformed")
    stored = None
    if message.HasField("stored"):
        stored = BodyRef(message.stored.id, message.stored.size_bytes, message.stored.sha256)
    return Slot(
        number=message.number,
        prev=message.previous,
        node=message.node,
        instance=message.instance,
        write_id=message.write_id,
        store_time_us=message.store_time_us,
        firsts=tuple((first.fkey, first.sequence) for first in message.firsts),
        stored=stored,
        dropped=tuple(message.dropped),
        body=body,
        features=tuple(message.features),
    )


def check_features(features: Iterable[str], name: str) -> None:
    """Raises Refused naming the features that this version does not know."""
    unknown = sorted(set(features) - KNOWN_FEATURES)
    if unknown:
        raise Refused(f"{name} needs features that this stnode does not know: {', '.join(unknown)}", hint="update stnode on this node")


def content(slot: Slot, stored: Body | None) -> Body:
    """What the slot changes. `stored` is the decoded body that `slot.stored` names, None where it names none."""
    if (stored is None) != (slot.stored is None):
        raise Internal(f"slot {slot.number}: its stored body was not handed over, or it has none")
    if stored is None:
        return slot.body
    kept = without_sets(stored, slot.dropped)
    return kept if slot.body is EMPTY else joined(kept, _shifted(slot.body, len(kept.packs_added)))


def _shifted(extra: Body, shift: int) -> Body:
    """The body with its relative pack references behind `shift` packs that come before its own."""
    return replace(
        extra,
        sections=tuple(_shift_section(section, shift) for section in extra.sections),
        relocations=tuple(replace(r, to_pack=r.to_pack - shift) if r.to_pack < 0 else r for r in extra.relocations),
    )


def _shift_section(section: Section, shift: int) -> Section:
    if not shift:
        return section
    sets = tuple(
        replace(each, records=tuple(replace(record, extents=_shift(record.extents, shift)) for record in each.records))
        for each in section.sets
    )
    partials: tuple[Partial, ...] = tuple(replace(partial, extents=_shift(partial.extents, shift)) for partial in section.partials)
    return replace(section, sets=sets, partials=partials)


def _shift(extents: Extents, shift: int) -> Extents:
    return tuple((pack - shift if pack < 0 else pack, place, count) for pack, place, count in extents)
