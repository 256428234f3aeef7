"""What the collection of garbage says of itself: plain values, for everyone who shows or sends them. Bytes are of objects in the store but where noted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GcReport:
    """The store as a pass found it, and what the pass did (zeros for a dry run).

    Found: bytes of packs by what they are wanted for: `live_bytes` by current versions and partial files, `history_bytes` by
    old versions only, `dead_bytes` by nothing, footers included; `condemned_*` wait for their grace, until `next_deletion_s` (Unix time, None if
    nothing waits); `orphans` belong to no commit, those too that may still get into one; `unwanted_packs` would be condemned, and
    `repack_packs` repacked, which frees `repack_frees_bytes`. Done: see the names."""

    dry_run: bool
    head: int
    live_bytes: int = 0
    history_bytes: int = 0
    dead_bytes: int = 0
    condemned_packs: int = 0
    condemned_objects: int = 0
    condemned_bytes: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    unwanted_packs: int = 0
    unwanted_bytes: int = 0
    repack_packs: int = 0
    repack_frees_bytes: int = 0
    next_deletion_s: float | None = None
    packs_condemned: int = 0
    packs_repacked: int = 0
    objects_deleted: int = 0
    bytes_freed: int = 0
    commits: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CollectStatus:
    """How collection stands on this node. `last_pass_s` is Unix time, None before the first one; `freed_bytes` and `deleted_objects` are since
    the start; `waiting_bytes` are condemned or orphans, to be deleted from `next_deletion_s` on; `left_to` is the name of the node
    that does it, "" for this one; `trouble` is why it does not go on, "" when it does; `tombstones_held_by` is the device for whose
    return deleted records older than 16 months are kept."""

    last_pass_s: float | None = None
    freed_bytes: int = 0
    deleted_objects: int = 0
    packs_repacked: int = 0
    waiting_bytes: int = 0
    next_deletion_s: float | None = None
    left_to: str = ""
    trouble: str = ""
    hint: str = ""
    tombstones_held_by: str = ""
