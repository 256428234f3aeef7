"""A commit's body as values, and its bytes (docs/format.md, Body). Pure.

Records carry no sequence and no registered pack of this commit: a sequence is the folder's first one plus the record's place,
a pack added here is -(i + 1). So a body outlives lost slots unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.message import DecodeError

from stnode.errors import Corrupt
from stnode.repo.container import Kind, damaged, open_one, seal
from stnode.repo.pb import store_pb2 as pb
from stnode.repo.records import Extents, HistoryRule, SetKind, decode_extents, encode_extents
from stnode.repo.settings import DeviceSettings, FolderSettings, decode_device, decode_folder, encode_device, encode_folder


@dataclass(frozen=True, slots=True)
class BodyRecord:
    """One record: FileInfo wire bytes without sequence and blocks, and what we add."""

    info: bytes
    extents: Extents = ()
    local_flags: int = 0
    history: HistoryRule = HistoryRule.KEEP


@dataclass(frozen=True, slots=True)
class BodySet:
    """Records that the committer judged together. Applying ignores the kind; it documents the judgement."""

    kind: SetKind
    records: tuple[BodyRecord, ...]


@dataclass(frozen=True, slots=True)
class Partial:
    """Blocks so far of a version that is being pulled. `starts[i]` is the block number at which `extents[i]` begins; `version` is the
    wire Vector; `blocks_hash` is that of the FileInfo."""

    name: str
    version: bytes
    node: bytes
    size_bytes: int
    block_size: int
    blocks_hash: bytes
    starts: tuple[int, ...]
    extents: Extents


@dataclass(frozen=True, slots=True)
class Section:
    """What a commit does in one folder. Zero in a `…_before_us` or `…_below` means nothing is dropped; `history_dropped` are single
    versions, (name, sequence)."""

    fkey: str
    sets: tuple[BodySet, ...] = ()
    partials: tuple[Partial, ...] = ()
    partials_dropped: tuple[tuple[str, bytes], ...] = ()
    partials_dropped_before_us: int = 0
    history_dropped_before_us: int = 0
    tombstones_dropped_below: int = 0
    history_dropped: tuple[tuple[str, int], ...] = ()

    def records(self) -> list[BodyRecord]:
        """All records in the order of their numbers."""
        return [record for each in self.sets for record in each.records]


@dataclass(frozen=True, slots=True)
class PackAdded:
    """A durable pack that the commit registers; its number is the next free one plus its place in the body."""

    fkey: str
    id: str
    size_bytes: int
    blocks: int
    footer_offset: int
    footer_bytes: int


@dataclass(frozen=True, slots=True)
class Relocation:
    """`count` blocks at (pack, place) on are from now on found at (to_pack, to_place) on, which must be their final address."""

    pack: int
    place: int
    count: int
    to_pack: int
    to_place: int


@dataclass(frozen=True, slots=True)
class Body:
    """Everything that one commit changes."""

    sections: tuple[Section, ...] = ()
    packs_added: tuple[PackAdded, ...] = ()
    relocations: tuple[Relocation, ...] = ()
    relocations_dropped: tuple[int, ...] = ()
    packs_condemned: tuple[int, ...] = ()
    objects_condemned: tuple[str, ...] = ()
    packs_gone: tuple[int, ...] = ()
    objects_gone: tuple[str, ...] = ()
    horizon_us: int = 0
    folders: tuple[FolderSettings, ...] = ()
    folders_removed: tuple[str, ...] = ()
    devices: tuple[DeviceSettings, ...] = ()
    devices_removed: tuple[bytes, ...] = ()
    features_on: tuple[str, ...] = ()
    packs_lost: tuple[int, ...] = ()
    packs_found: tuple[int, ...] = ()


EMPTY: Final = Body()


def encode_body(body: Body) -> bytes:
    """The object under `bodies/`."""
    return seal(Kind.BODY, to_message(body).SerializeToString(deterministic=True))


def decode_body(data: bytes, name: str) -> Body:
    """Body of the object `name`; raises Corrupt, or Refused for a newer format."""
    payload = open_one(Kind.BODY, data, name)
    try:
        return from_message(pb.Body.FromString(payload))
    except (DecodeError, ValueError, Corrupt) as exc:
        raise damaged(name, f"no body can be read from it ({exc})") from exc


def to_message(body: Body) -> pb.Body:
    """Body as protobuf."""
    message = pb.Body(
        relocations=[
            pb.Relocation(pack=r.pack, place=r.place, count=r.count, to_pack=r.to_pack, to_place=r.to_place) for r in body.relocations
        ],
        relocations_dropped=body.relocations_dropped,
        packs_condemned=body.packs_condemned,
        objects_condemned=body.objects_condemned,
        packs_gone=body.packs_gone,
        objects_gone=body.objects_gone,
        horizon_us=body.horizon_us,
        folders=[encode_folder(folder) for folder in body.folders],
        folders_removed=body.folders_removed,
        devices=[encode_device(device) for device in body.devices],
        devices_removed=body.devices_removed,
        features_on=body.features_on,
        packs_lost=body.packs_lost,
        packs_found=body.packs_found,
    )
    for section in body.sections:
        _add_section(message, section)
    for pack in body.packs_added:
        message.packs_added.add(
            fkey=pack.fkey,
            id=pack.id,
            size_bytes=pack.size_bytes,
            blocks=pack.blocks,
            footer_offset=pack.footer_offset,
            footer_bytes=pack.footer_bytes,
        )
    return message


def _add_section(message: pb.Body, section: Section) -> None:
    target = message.sections.add(
        fkey=section.fkey,
        partials_dropped_before_us=section.partials_dropped_before_us,
        history_dropped_before_us=section.history_dropped_before_us,
        tombstones_dropped_below=section.tombstones_dropped_below,
    )
    for each in section.sets:
        records = target.sets.add(kind=each.kind).records
        for record in each.records:
            records.add(info=record.info, extents=encode_extents(record.extents), local_flags=record.local_flags, history=record.history)
    for partial in section.partials:
        target.partials.add(partial=encode_partial(partial), extents=encode_extents(partial.extents))
    for name, version in section.partials_dropped:
        target.partials_dropped.add(name=name, version=version)
    for name, sequence in section.history_dropped:
        target.history_dropped.add(name=name, sequence=sequence)


def from_message(message: pb.Body) -> Body:
    """Inverse of `to_message`; raises ValueError or Corrupt for values that no version 1 body has."""
    return Body(
        sections=tuple(_section(section) for section in message.sections),
        packs_added=tuple(PackAdded(p.fkey, p.id, p.size_bytes, p.blocks, p.footer_offset, p.footer_bytes) for p in message.packs_added),
        relocations=tuple(Relocation(r.pack, r.place, r.count, r.to_pack, r.to_place) for r in message.relocations),
        relocations_dropped=tuple(message.relocations_dropped),
        packs_condemned=tuple(message.packs_condemned),
        objects_condemned=tuple(message.objects_condemned),
        packs_gone=tuple(message.packs_gone),
        objects_gone=tuple(message.objects_gone),
        horizon_us=message.horizon_us,
        folders=tuple(decode_folder(wire) for wire in message.folders),
        folders_removed=tuple(message.folders_removed),
        devices=tuple(decode_device(wire) for wire in message.devices),
        devices_removed=tuple(message.devices_removed),
        features_on=tuple(message.features_on),
        packs_lost=tuple(message.packs_lost),
        packs_found=tuple(message.packs_found),
    )


def _section(message: pb.Section) -> Section:
    return Section(
        fkey=message.fkey,
        sets=tuple(
            BodySet(
                SetKind(each.kind),
                tuple(BodyRecord(r.info, decode_extents(r.extents), r.local_flags, HistoryRule(r.history)) for r in each.records),
            )
            for each in message.sets
        ),
        partials=tuple(decode_partial(p.partial, p.extents) for p in message.partials),
        partials_dropped=tuple((p.name, p.version) for p in message.partials_dropped),
        partials_dropped_before_us=message.partials_dropped_before_us,
        history_dropped_before_us=message.history_dropped_before_us,
        tombstones_dropped_below=message.tombstones_dropped_below,
        history_dropped=tuple((v.name, v.sequence) for v in message.history_dropped),
    )


def encode_partial(partial: Partial) -> bytes:
    """The Partial message, which leaves the extents out."""
    return pb.Partial(
        name=partial.name,
        version=partial.version,
        node=partial.node,
        size_bytes=partial.size_bytes,
        block_size=partial.block_size,
        blocks_hash=partial.blocks_hash,
        starts=partial.starts,
    ).SerializeToString(deterministic=True)


def decode_partial(wire: bytes, extents: bytes) -> Partial:
    """Inverse of `encode_partial`; raises Corrupt."""
    try:
        p = pb.Partial.FromString(wire)
    except DecodeError as exc:
        raise Corrupt("a partial file cannot be read") from exc
    decoded = decode_extents(extents)
    if len(decoded) != len(p.starts):
        raise Corrupt(f"the partial file {p.name!r} has {len(decoded)} extents and {len(p.starts)} starts")
    return Partial(p.name, p.version, p.node, p.size_bytes, p.block_size, p.blocks_hash, tuple(p.starts), decoded)


def without_sets(body: Body, dropped: tuple[int, ...]) -> Body:
    """The body less the sets with these indices, counted over all sections in order."""
    if not dropped:
        return body
    gone, index, sections = set(dropped), 0, []
    for section in body.sections:
        kept = tuple(each for number, each in enumerate(section.sets, index) if number not in gone)
        index += len(section.sets)
        sections.append(replace(section, sets=kept))
    return replace(body, sections=tuple(sections))


def joined(first: Body, then: Body) -> Body:
    """The entries of both, those of a folder in one section. Relative pack references stay as they are."""
    sections = {section.fkey: section for section in first.sections}
    for section in then.sections:
        sections[section.fkey] = _joined_section(sections[section.fkey], section) if section.fkey in sections else section
    return Body(
        sections=tuple(sections.values()),
        packs_added=first.packs_added + then.packs_added,
        relocations=first.relocations + then.relocations,
        relocations_dropped=first.relocations_dropped + then.relocations_dropped,
        packs_condemned=first.packs_condemned + then.packs_condemned,
        objects_condemned=first.objects_condemned + then.objects_condemned,
        packs_gone=first.packs_gone + then.packs_gone,
        objects_gone=first.objects_gone + then.objects_gone,
        horizon_us=max(first.horizon_us, then.horizon_us),
        folders=first.folders + then.folders,
        folders_removed=first.folders_removed + then.folders_removed,
        devices=first.devices + then.devices,
        devices_removed=first.devices_removed + then.devices_removed,
        features_on=first.features_on + then.features_on,
        packs_lost=first.packs_lost + then.packs_lost,
        packs_found=first.packs_found + then.packs_found,
    )


def _joined_section(first: Section, then: Section) -> Section:
    return Section(
        fkey=first.fkey,
        sets=first.sets + then.sets,
        partials=first.partials + then.partials,
        partials_dropped=first.partials_dropped + then.partials_dropped,
        partials_dropped_before_us=max(first.partials_dropped_before_us, then.partials_dropped_before_us),
        history_dropped_before_us=max(first.history_dropped_before_us, then.history_dropped_before_us),
        tombstones_dropped_below=max(first.tombstones_dropped_below, then.tombstones_dropped_below),
        history_dropped=first.history_dropped + then.history_dropped,
    )
