"""What a node says of itself: frozen, JSON-able values. The node fills them, every frontend shows them.

Times are Unix seconds (float), sizes bytes, rates bytes per second, completion 0..1. Field names are part of the output of
`status --json`: they are added to, never renamed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stnode.repo.collectreport import CollectStatus

FolderState = Literal["idle", "syncing", "waiting", "error"]


@dataclass(frozen=True, slots=True)
class PathError:
    """Something that could not be done for one path; tried again by itself unless the message says otherwise."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class PendingDeletions:
    """A mass deletion that waits for `folder confirm-deletions` or for `until_s`: `files` of `total` files would go."""

    files: int
    total: int
    until_s: float


@dataclass(frozen=True, slots=True)
class FolderStatus:
    """One folder. `files`, `directories`, `bytes` describe what is committed; `need_*` what peers have and the store lacks,
    `left_to_siblings` how many items of it other nodes of the store are at. `store_objects` and `store_bytes` are the packs of this folder;
    `sequence` is the highest number that a commit gave to one of its records. `history` is the folder's policy, `history_words` what it
    keeps; `history_versions` old versions are kept, which add up to `history_bytes` (less in the store: blocks that a file still has count
    anew), the oldest replaced or deleted at `history_oldest_s`. `error_count` may exceed len(`errors`), which is a sample."""

    id: str
    label: str
    type: str
    state: FolderState
    files: int = 0
    directories: int = 0
    symlinks: int = 0
    bytes: int = 0
    need_files: int = 0
    need_bytes: int = 0
    need_deletes: int = 0
    left_to_siblings: int = 0
    store_objects: int = 0
    store_bytes: int = 0
    sequence: int = 0
    devices: tuple[str, ...] = ()
    error_count: int = 0
    errors: tuple[PathError, ...] = ()
    pending_deletions: PendingDeletions | None = None
    lost_count: int = 0
    """Files with lost content, which nobody has had again so far; `lost` names some of them."""
    lost: tuple[str, ...] = ()
    history: str = ""
    history_words: str = ""
    history_versions: int = 0
    history_bytes: int = 0
    history_oldest_s: float | None = None
    encrypted_for: tuple[str, ...] = ()
    """Those of `devices` that get the data encrypted."""
    reason: str = ""
    """Why the state is waiting or error, in words; '' otherwise."""


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One peer device. `completion` maps folder ID to the share of the folder that the device has, None while it is not known. Bytes
    and rates are those of the present connection."""

    id: str
    name: str
    connected: bool
    address: str = ""
    client: str = ""
    completion: dict[str, float] | None = None
    in_bytes: int = 0
    out_bytes: int = 0
    in_bytes_per_s: float = 0.0
    out_bytes_per_s: float = 0.0
    last_seen_s: float | None = None
    last_error: str = ""
    untrusted: bool = False


@dataclass(frozen=True, slots=True)
class SiblingStatus:
    """Another node of the store, by its heartbeat: written `heartbeat_age_s` ago by the store's clock, saying that it had applied commit
    `head`. `stopped`: it ended in order. `page` is its status page, "" where other machines do not reach it."""

    id: str
    name: str
    connected: bool
    heartbeat_age_s: float
    head: int
    version: str
    address: str = ""
    addresses: tuple[str, ...] = ()
    page: str = ""
    working: bool = False
    stopped: bool = False
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """The store as this node sees it. `spooled_bytes` wait to be stored, in memory or on disk; of them `queued_packs` with `queued_bytes`
    are complete, the oldest since `queued_age_s`, and `spool_packs` with `spool_bytes` lie in the spool; `spool_full`: there is room for no
    other one. `uploads_mended` were lost by the store and stored again, `uploads_unchecked` could not be read back. `objects` and `bytes`
    are those of packs. `lag_s`: how long ago the node last knew to be at the journal's head; None = never yet. `unavailable_since_s` is
    None while the store answers. `requests` counts object store requests by kind since the start."""

    url: str
    head: int = 0
    lag_s: float | None = None
    unavailable_since_s: float | None = None
    unavailable_reason: str = ""
    requests: dict[str, int] | None = None
    spooled_bytes: int = 0
    objects: int = 0
    bytes: int = 0
    warnings: tuple[str, ...] = ()
    collection: CollectStatus = field(default_factory=CollectStatus)
    queued_packs: int = 0
    queued_bytes: int = 0
    queued_age_s: float = 0.0
    spool_packs: int = 0
    spool_bytes: int = 0
    spool_full: bool = False
    uploads_mended: int = 0
    uploads_unchecked: int = 0


@dataclass(frozen=True, slots=True)
class PendingDevice:
    """A device that tried to connect and is not in the store's settings."""

    id: str
    address: str


@dataclass(frozen=True, slots=True)
class PendingFolder:
    """A folder that a device wants to share and that is not here, or not shared with it. `encrypted`: it gives it to this node encrypted."""

    id: str
    label: str
    device: str
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """Everything above, and the node itself. `running` is False when a command opened the node without a daemon. `in_sync`: the store
    answers and no folder lacks anything that a device announced; `received_bytes` of files came from devices since the start. `given_way`
    says to which process of the same identity this one has left the devices, "" if to none."""

    device_id: str
    name: str
    version: str
    running: bool
    uptime_s: float
    listen: tuple[str, ...]
    store: StoreStatus
    folders: tuple[FolderStatus, ...]
    devices: tuple[DeviceStatus, ...]
    pending_devices: tuple[PendingDevice, ...] = ()
    pending_folders: tuple[PendingFolder, ...] = ()
    siblings: tuple[SiblingStatus, ...] = ()
    in_sync: bool = False
    received_bytes: int = 0
    given_way: str = ""
