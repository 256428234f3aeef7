"""Manifests as values, and their bytes (docs/format.md, Manifest). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from stnode.repo.codec_slot import check_features
from stnode.repo.container import Kind, damaged, open_one, seal
from stnode.repo.pb import store_pb2 as pb

HASH_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class RunRef:
    """A run as a manifest names it. `number` is the commit whose state it shows. In a base run `first_key` (space byte, then
    key) begins its range, which ends where the next one's begins; the first range begins with b"". In a delta `base_entries[i]`
    says how many of its entries lie in the range of base run i, 0 where that range has been rewritten since."""

    id: str
    size_bytes: int
    sha256: bytes
    entries: int
    number: int
    first_key: bytes = b""
    base_entries: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one folder (by its number), or of what belongs to none (0)."""

    number: int
    base: tuple[RunRef, ...]
    deltas: tuple[RunRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The whole state after commit `number`."""

    number: int
    slot_sha: bytes
    store_time_us: int
    horizon_us: int
    next_pack: int
    next_folder: int
    state_hash: bytes
    node: bytes
    groups: tuple[Group, ...] = ()
    features: tuple[str, ...] = ()

    def runs(self) -> list[tuple[int, RunRef]]:
        """All runs with their groups, base runs before deltas."""
        return [(group.number, run) for group in self.groups for run in (*group.base, *group.deltas)]


def encode_manifest(manifest: Manifest) -> bytes:
    """The object under `checkpoint/`."""
    message = pb.Manifest(
        features=manifest.features,
        number=manifest.number,
        slot_sha256=manifest.slot_sha,
        store_time_us=manifest.store_time_us,
        horizon_us=manifest.horizon_us,
        next_pack=manifest.next_pack,
        next_folder=manifest.next_folder,
        state_hash=manifest.state_hash,
        node=manifest.node,
        groups=[
            pb.Group(number=group.number, base=map(_run_message, group.base), deltas=map(_run_message, group.deltas))
            for group in manifest.groups
        ],
    )
    return seal(Kind.MANIFEST, message.SerializeToString(deterministic=True))


def decode_manifest(data: bytes, name: str) -> Manifest:
    """Manifest of the object `name`; raises Corrupt, or Refused for a newer format or unknown features."""
    payload = open_one(Kind.MANIFEST, data, name)
    try:
        message = pb.Manifest.FromString(payload)
    except DecodeError as exc:
        raise damaged(name, "no manifest can be read from it") from exc
    check_features(message.features, name)
    if len(message.state_hash) != HASH_BYTES or len(message.slot_sha256) != 32:
        raise damaged(name, "its hashes are malformed")
    return Manifest(
        number=message.number,
        slot_sha=message.slot_sha256,
        store_time_us=message.store_time_us,
        horizon_us=message.horizon_us,
        next_pack=message.next_pack,
        next_folder=message.next_folder,
        state_hash=message.state_hash,
        node=message.node,
        groups=tuple(Group(g.number, tuple(map(_run, g.base)), tuple(map(_run, g.deltas))) for g in message.groups),
        features=tuple(message.features),
    )


def _run_message(run: RunRef) -> pb.RunRef:
    return pb.RunRef(
        id=run.id,
        size_bytes=run.size_bytes,
        sha256=run.sha256,
        entries=run.entries,
        number=run.number,
        first_key=run.first_key,
        base_entries=run.base_entries,
    )


def _run(message: pb.RunRef) -> RunRef:
    return RunRef(
        message.id, message.size_bytes, message.sha256, message.entries, message.number, message.first_key, tuple(message.base_entries)
    )
