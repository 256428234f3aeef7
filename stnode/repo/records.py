"""Values of the repository: extents, records, drafts of changes, what became of them, and what a commit did.

Plain data and the codec of extents; nothing here knows SQLite, protobuf or the object store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, IntFlag
from typing import Final

from stnode.errors import Corrupt
from stnode.protocol.fileinfo import FileInfo
from stnode.protocol.vector import Vector

Extent = tuple[int, int, int]
"""(pack, place, count): `count` blocks from ordinal `place` of a pack's list. pack > 0 is a registered pack number; pack == 0
means `count` blocks of zeros (place 0); pack < 0 is relative: in a Draft a handle of the packer, in a commit's body
-(i + 1) for the i-th pack that the body adds."""

Extents = tuple[Extent, ...]


def encode_extents(extents: Sequence[Extent]) -> bytes:
    """Three unsigned LEB128 numbers per extent: zigzag(pack), place, count (docs/format.md, Extents)."""
    out = bytearray()
    for pack, place, count in extents:
        for value in (pack << 1 if pack >= 0 else (-pack << 1) - 1, place, count):
            while value > 127:
                out.append(value & 127 | 128)
                value >>= 7
            out.append(value)
    return bytes(out)


def decode_extents(data: bytes) -> Extents:
    """Inverse of `encode_extents`; raises Corrupt for anything that it cannot have written."""
    numbers: list[int] = []
    value = shift = 0
    for byte in data:
        if byte > 127:
            value |= (byte & 127) << shift
            shift += 7
        else:
            numbers.append(value | byte << shift)
            value = shift = 0
    if shift or len(numbers) % 3:
        raise Corrupt("an extent list ends in the middle of an extent")
    # Most files are one extent, and this runs once per record of a restore.
    if len(numbers) == 3:
        pack, place, count = numbers
        return ((-(pack + 1 >> 1) if pack & 1 else pack >> 1, place, count),)
    return tuple(
        (-(pack + 1 >> 1) if pack & 1 else pack >> 1, place, count)
        for pack, place, count in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    )


class LocalFlag(IntFlag):
    """Flags of a record that do not travel; a flagged record is announced invalid (bep-facts 4, notes). Syncthing's values."""

    IGNORED = 2
    """Matched by the ignore patterns."""
    MUST_FETCH = 4
    """Some of its content is lost: this version, or one that is not older, is taken again from whoever has it. The record keeps its vector
    and its extents, for the pack may come back; peers see it invalid. Together with RECEIVE_ONLY: the local change is given up, any
    version of a peer takes its place, an older one too."""
    RECEIVE_ONLY = 8
    """Changed locally in a receive-only folder. The record keeps its vector, the announcement hides it; any version of a peer that it
    does not cover takes its place."""


def is_lost(flags: int) -> bool:
    """Whether these local flags are those of a record with lost content, which is merely missing."""
    return flags & (LocalFlag.MUST_FETCH | LocalFlag.RECEIVE_ONLY) == LocalFlag.MUST_FETCH


@dataclass(frozen=True, slots=True)
class Record:
    """A committed version of one item. `info.block_hashes` may be b"" = not loaded; `info.sequence == sequence`."""

    fid: int
    name: str
    sequence: int
    info: FileInfo
    extents: Extents
    local_flags: int = 0


class Unconditional(Enum):
    """Type of the marker below, so that None can mean "only if it does not exist"."""

    UNCONDITIONAL = "unconditional"


UNCONDITIONAL: Final = Unconditional.UNCONDITIONAL
Condition = Vector | None | Unconditional


class HistoryRule(IntEnum):
    """What a record does to the version that it replaces."""

    KEEP = 0
    """The replaced version, unless it was deleted, moves to the history."""
    DROP = 1
    """The replaced version is forgotten (its content goes on in the new one, or nobody may see it)."""
    ONLY = 2
    """This record goes to the history itself, superseded at once; the current one stays (a losing version worth keeping)."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A change that wants to be committed. `info` is complete, `block_hashes` included. A local change gets its vector in
    the committer: `base` is the version that it was made on (None: the name did not exist); `condition` is what its client
    demands of the committed version (None: must not exist). `remark`: the committed record, if it still is this one, gets these
    `local_flags` and else stays as it is. `made_on` is `Store.histories` from before its extents were looked up, None where they name
    no registered packs: on another history these numbers mean other packs."""

    fid: int
    info: FileInfo
    extents: Extents
    local: bool = False
    base: Vector | None = None
    condition: Condition = UNCONDITIONAL
    local_flags: int = 0
    history: HistoryRule = HistoryRule.KEEP
    remark: bool = False
    made_on: int | None = None


class SetKind(IntEnum):
    """How the drafts of a set depend on each other at re-validation."""

    SINGLE = 0
    ALL_OR_NONE = 1
    """Winner and its conflict copy: all stand or none."""
    NEW_FIRST = 2
    """A rename, new name first: the first stands without the rest, the rest never without the first."""


@dataclass(frozen=True, slots=True)
class DraftSet:
    """Drafts that are judged together."""

    kind: SetKind
    drafts: tuple[Draft, ...]


class Status(Enum):
    """What became of a set."""

    COMMITTED = "committed"
    DROPPED = "dropped"
    """Already there, or older than what is there: nothing to do."""
    CONFLICT = "conflict"
    """Its condition did not hold, or the state forbids it (`reason`)."""
    RETRY_UPLOAD = "retry-upload"
    """Its blocks lie in a pack that was condemned meanwhile or may not be registered any more: upload them again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one DraftSet: `names` and `sequences` of the records written for it, pairwise (conflict copies included)."""

    status: Status
    names: tuple[str, ...] = ()
    sequences: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AppliedFolder:
    """Names that a commit wrote in one folder, in the order of their numbers `first_seq` to `last_seq`."""

    first_seq: int
    last_seq: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """What subscribers hear of a commit. `void` says why its content was ignored; `restored` that the state was rebuilt
    from the store, so that everything may have changed; `packs_changed` that packs were lost, found or their blocks moved. `node` wrote it;
    `touched` are the folders it has entries for, also such as are no records (partial files)."""

    number: int
    own: bool = False
    folders: Mapping[int, AppliedFolder] = field(default_factory=dict)
    settings_changed: bool = False
    packs_changed: bool = False
    restored: bool = False
    void: str | None = None
    node: bytes = b""
    touched: frozenset[int] = frozenset()
