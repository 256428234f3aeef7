"""Values that the folder's parts share: kinds of need, and what evaluating an index leads to."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class NeedKind(IntEnum):
    """What has to be done for a needed name."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    METADATA = 3
    """We have the same content under another version: nothing is fetched."""
    DELETE = 4
    """Delete a file or symlink."""
    DELETE_DIRECTORY = 5

    @property
    def deletes(self) -> bool:
        return self >= NeedKind.DELETE


SMALL_BYTES = 256 << 10
"""Files up to this size are the small ones, for which a part of each request window is kept."""


@dataclass(frozen=True, slots=True)
class Needed:
    """One name whose global version we lack. `size` in bytes; `blocks` is how many the file has (0 for anything else); `held`: a
    send-only folder does not take it. `known` is False while no index entry with the content is there (see `missing_content`)."""

    name: str
    kind: NeedKind
    size: int
    blocks: int
    held: bool
    known: bool

    @property
    def small(self) -> bool:
        return self.size <= SMALL_BYTES


@dataclass(slots=True)
class IndexEffect:
    """What a batch changed: `needed` = names that became needed or whose needed version changed, `satisfied` = names that are
    not needed any more."""

    needed: list[str] = field(default_factory=list)
    satisfied: list[str] = field(default_factory=list)

    def extend(self, other: IndexEffect) -> None:
        """Adds what another batch changed."""
        self.needed += other.needed
        self.satisfied += other.satisfied


@dataclass(frozen=True, slots=True)
class IndexState:
    """What we hold of a device's index of a folder, as our ClusterConfig says it: 0, 0 when nothing."""

    index_id: int = 0
    max_sequence: int = 0


@dataclass(frozen=True, slots=True)
class NeedTotals:
    """Sums over what a folder needs. `bytes` are those of files to fetch. `held_*`: what a send-only folder differs in and does not
    take."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    bytes: int = 0
    deletes: int = 0
    held_items: int = 0
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """How much of the global state a device has (bep-facts 12.3). `items` are live files, directories and symlinks."""

    need_items: int
    need_bytes: int
    need_deletes: int
    global_items: int
    global_bytes: int

    @property
    def percent(self) -> float:
        """0 to 100; 95 when nothing but deletions is missing."""
        if self.need_bytes <= 0 and self.need_items <= 0:
            return 95.0 if self.need_deletes > 0 else 100.0
        if self.global_bytes <= 0:
            return 0.0 if self.global_items <= self.need_items else 100.0 * (1 - self.need_items / self.global_items)
        return max(0.0, 100.0 * (1 - self.need_bytes / self.global_bytes))
