"""What can be asked of a node, as one protocol: every command of the command line is one method, with plain values in and out.

Two implementations pass one suite (`tests/conformance/test_service.py`): `operations.NodeService` works on a node in this
process, `remote.RemoteService` asks the daemon over HTTP. Arguments and results are JSON-able dataclasses (`wire.py`), errors are
`stnode.errors` on both sides. Annotations here are the wire format: the server reads them to decode arguments.

Paths are `FOLDER/PATH`: the first part is a folder ID, or a label that only one folder has; parts are separated by `/`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from stnode.node.status import NodeStatus
from stnode.repo.checkreport import CheckProblem, CheckReport, CheckStep
from stnode.repo.collectreport import GcReport
from stnode.repo.repairreport import RepairPlan, RepairReport

__all__ = [
    "MANY_BYTES",
    "PAGE",
    "BucketStats",
    "CheckProblem",
    "CheckReport",
    "CheckStep",
    "DevicePassword",
    "DeviceSettings",
    "Entry",
    "EntryType",
    "Files",
    "FolderChange",
    "FolderSettings",
    "FolderStats",
    "FolderTypeName",
    "GcReport",
    "History",
    "ItemVersion",
    "KindStats",
    "Listing",
    "NewFile",
    "RepairPlan",
    "RepairReport",
    "RepairWish",
    "RestoreChange",
    "RestoreStep",
    "SealedFiles",
    "SealedItem",
    "SealedPage",
    "Service",
    "SettingsChange",
]

EntryType = Literal["file", "directory", "symlink"]
FolderTypeName = Literal["sendreceive", "sendonly", "receiveonly", "receiveencrypted"]

PAGE = 1000
"""Entries in one answer of `ls`."""
MANY_BYTES = 8 * 2**20
"""The most that one `write_many` takes."""


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """A peer device in the store's settings. `addresses` are URLs or "dynamic". An `untrusted` one shares only folders that it gets
    encrypted, or that come encrypted to this store."""

    id: str
    name: str = ""
    addresses: tuple[str, ...] = ("dynamic",)
    untrusted: bool = False


@dataclass(frozen=True, slots=True)
class DevicePassword:
    """The password with which a device, by name or ID, gets a folder encrypted. Only asked with, never answered."""

    device: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """A folder in the store's settings, equal for all nodes. `devices` are device IDs; in arguments names are understood too. `history`
    and `history_floor` ("": 7 days) are those of `stnode.retention`, `delete_guard` is a share of files, "off", or "" for one half.

    `encrypted_for` are those of the devices that get the data encrypted; in arguments: with the password that they have. `passwords` are
    given with arguments and share the folder so, or change a password; no answer has any."""

    id: str
    label: str = ""
    type: FolderTypeName = "sendreceive"
    devices: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    ignore_permissions: bool = False
    history: str = "30d"
    history_floor: str = ""
    delete_guard: str = ""
    encrypted_for: tuple[str, ...] = ()
    passwords: tuple[DevicePassword, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class FolderChange:
    """What `folder_set` changes; None leaves a value as it is. `passwords` are as in `FolderSettings`."""

    label: str | None = None
    type: FolderTypeName | None = None
    add_devices: tuple[str, ...] = ()
    remove_devices: tuple[str, ...] = ()
    ignore: tuple[str, ...] | None = None
    ignore_permissions: bool | None = None
    history: str | None = None
    history_floor: str | None = None
    delete_guard: str | None = None
    passwords: tuple[DevicePassword, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """One difference between what config.toml asks for and the store's settings; `detail` says it in words."""

    action: Literal["add", "change", "remove"]
    kind: Literal["device", "folder"]
    id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of a folder. `path` is FOLDER/PATH with the folder's ID, the folder itself is a directory of that name.
    `permissions` is None where the folder keeps none; `revision` changes with every change of the item."""

    path: str
    type: EntryType
    size: int = 0
    modified_ns: int = 0
    permissions: int | None = None
    target: str = ""
    revision: str = ""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class ItemVersion:
    """A version of an item. `since_us` is when it was committed (store time) and its number: as `at` it shows just this version. It was
    there until `until_us`, None: it still is. `changed_by` and `ended_by` (replaced or deleted it; "" unknown) are devices' names, or short
    IDs. `deleted`: this says that the item was deleted, and has no content."""

    entry: Entry
    since_us: int
    until_us: int | None
    changed_by: str
    ended_by: str = ""
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """Of a file or link: its versions, the newest first. Of a directory (`directory`): what was deleted in it, by path, each by the version
    that was deleted; pass `next` as `after` for the following page, None = that was all."""

    versions: tuple[ItemVersion, ...]
    directory: bool
    next: str | None = None


@dataclass(frozen=True, slots=True)
class RestoreChange:
    """One item of a restore, and why it could not be done ("": it was)."""

    action: Literal["create", "change", "delete"]
    path: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RestoreStep:
    """How far `restore` is: items written, deleted, found to be as they were, refused; `bytes` are those of the files written, none of
    which are moved. `changes` are those of this step: all of them when it is only tried, else those that were refused."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    deleted: int = 0
    unchanged: int = 0
    failed: int = 0
    bytes: int = 0
    changes: tuple[RestoreChange, ...] = ()


@dataclass(frozen=True, slots=True)
class NewFile:
    """A small file for `write_many`, whole."""

    path: str
    data: bytes
    modified_ns: int | None = None
    permissions: int | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of entries, in order of their paths; pass `next` as `after` for the following page, None = that was all."""

    entries: tuple[Entry, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True)
class SealedItem:
    """An item of a receive-encrypted folder as it lies there: FOLDER/PATH by its encrypted name, its FileInfo as it came, encoded, and when
    it was committed (store time). `revision` is that of its `Entry`."""

    path: str
    info: bytes
    revision: str
    committed_us: int


@dataclass(frozen=True, slots=True)
class SealedPage:
    """A page of a receive-encrypted folder: `folder` is its ID, `token` its password token, b"" before a trusted device has said one; pass
    `next` as `after` for the following page, None = that was all."""

    folder: str
    token: bytes
    items: tuple[SealedItem, ...]
    next: str | None = None


@dataclass(frozen=True, slots=True)
class KindStats:
    """Objects of one kind (packs, journal, …) in the store and their bytes."""

    kind: str
    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class FolderStats:
    """`bytes` is what the folder's files add up to, `pack_bytes` what its packs take in the store."""

    id: str
    label: str
    files: int
    bytes: int
    packs: int
    pack_bytes: int


@dataclass(frozen=True, slots=True)
class BucketStats:
    """What the store holds and what it costs to ask it."""

    url: str
    store_id: str
    head: int
    kinds: tuple[KindStats, ...]
    folders: tuple[FolderStats, ...]
    requests: dict[str, int]


@dataclass(frozen=True, slots=True)
class RepairWish:
    """What the user asks of `bucket repair`: `void` names the commit that may be stepped over, `rebuild` allows a journal made of packs
    alone; `devices` and `folders` are the configuration's."""

    void: int | None = None
    rebuild: bool = False
    devices: tuple[DeviceSettings, ...] = ()
    folders: tuple[FolderSettings, ...] = ()


class Files(Protocol):
    """Reading: what a node offers, and a store that is only read (`offline.py`). Without `sealed` also what is decrypted by its reader
    (`unsealed.py`)."""

    async def time_of(self, at: str) -> int:
        """Store time (µs) of a moment as users write it: see `moments.parse`. Everything here takes such words as `at` too, "" is now;
        who asks several times for one moment asks here first and passes the number, in digits."""

    async def ls(self, path: str, recursive: bool = False, after: str | None = None, at: str = "") -> Listing:
        """A page of a directory's entries; with `recursive` of everything below it. "" lists the folders. A file lists itself."""

    async def stat(self, path: str, at: str = "") -> Entry: ...

    def read(self, path: str, offset: int = 0, length: int | None = None, revision: str = "", at: str = "") -> AsyncIterator[bytes]:
        """A file's bytes in pieces. With `revision`: Conflict when the file is another by now. Errors come from the first step on."""


class SealedFiles(Files, Protocol):
    """`Files` with what readers need that have a folder's password: it never comes here."""

    async def folder_list(self) -> tuple[FolderSettings, ...]: ...

    async def sealed(self, path: str, after: str | None = None, at: str = "", blocks: bool = False) -> SealedPage:
        """A page of a receive-encrypted folder, or of what is at or below an encrypted name of one; with `blocks` the block lists are in
        the FileInfos. The ciphertext of files is had by `read`. Raises Invalid for an ordinary folder."""
        ...


class Service(SealedFiles, Protocol):
    """All of a node that a user can ask for. Methods raise `stnode.errors` only; changes have happened durably when they return."""

    async def id(self) -> str: ...
    async def status(self) -> NodeStatus: ...

    async def node_remove(self, node: str) -> None:
        """Forgets another node of the store, by name or device ID, so that its siblings do not let it in any more; one that runs and may
        write the store comes back. Raises NotFound, Invalid for a name that several have."""
        ...

    async def device_add(self, device: DeviceSettings) -> DeviceSettings: ...
    async def device_remove(self, device: str) -> None: ...
    async def device_list(self) -> tuple[DeviceSettings, ...]: ...

    async def folder_add(self, folder: FolderSettings) -> FolderSettings: ...
    async def folder_remove(self, folder: str) -> None: ...
    async def folder_set(self, folder: str, change: FolderChange) -> FolderSettings: ...

    async def folder_override(self, folder: str) -> int:
        """Makes this store's content of a send-only folder the newest everywhere; how many items that concerned."""

    async def folder_revert(self, folder: str) -> int:
        """Undoes local changes of a receive-only folder; how many items that concerned."""

    async def confirm_deletions(self, folder: str) -> int:
        """Lets a waiting mass deletion go on; how many files it deletes."""

    async def reject_deletions(self, folder: str) -> int:
        """Gives a waiting mass deletion up: what it would delete is announced anew over the deletions, so that those who have it deleted
        get it back; how many files that concerns."""

    async def settings_plan(
        self, devices: tuple[DeviceSettings, ...], folders: tuple[FolderSettings, ...], prune: bool
    ) -> tuple[SettingsChange, ...]:
        """What `settings_apply` would do. Devices and folders that are not named are removed only with `prune`."""

    async def settings_apply(
        self, devices: tuple[DeviceSettings, ...], folders: tuple[FolderSettings, ...], prune: bool
    ) -> tuple[SettingsChange, ...]:
        """Makes the store's settings agree; the changes made."""

    async def history(self, path: str, recursive: bool = False, after: str | None = None) -> History:
        """What versions of an item there are; of a directory what was deleted in it, with `recursive` at any depth."""

    def restore(self, path: str, at: str, exact: bool = False, dry_run: bool = False) -> AsyncIterator[RestoreStep]:
        """Brings an item, a directory or a folder back as it was at a moment, by metadata alone; with `exact` what came since is deleted.
        The last step counts everything. `dry_run` only says what would be done."""

    async def write(
        self,
        path: str,
        source: AsyncIterator[bytes],
        size: int | None = None,
        modified_ns: int | None = None,
        permissions: int | None = None,
    ) -> Entry:
        """Stores a file, replacing what is there; parents are made. An error of `source`, or another length than `size`, changes
        nothing."""

    async def write_many(self, files: Sequence[NewFile]) -> None:
        """Stores small files of one folder, together at most `MANY_BYTES`, in as few commits as it goes; else as `write`. An error
        may leave some of them stored."""

    async def symlink(self, path: str, target: str, modified_ns: int | None = None) -> Entry: ...
    async def mkdir(self, path: str, parents: bool = False, modified_ns: int | None = None, permissions: int | None = None) -> Entry: ...
    async def rm(self, path: str, recursive: bool = False) -> int: ...
    async def mv(self, source: str, target: str) -> Entry: ...

    def bucket_check(self, read_data: bool = False, share: float = 1.0, repair: bool = False) -> AsyncIterator[CheckStep]:
        """Checks everything stored against everything else; `read_data` also reads packs, this share of them, another one each day, and
        hashes every block. `repair` deals with what was found, as far as this node and the devices that it is connected to can."""

    async def bucket_repair(self) -> RepairReport:
        """On a node that follows the journal: writes its whole state as a new checkpoint, which steps over what is damaged below it. Raises
        what following finds wrong: a journal that nobody can follow is repaired without a daemon."""

    async def bucket_stats(self) -> BucketStats: ...

    async def bucket_gc(self, dry_run: bool = False) -> GcReport:
        """Collects garbage now, one pass: what it found and did; with `dry_run` only looks. What is condemned now is deleted by a pass
        after the store's grace."""

    async def shutdown(self) -> None:
        """Asks the daemon to stop."""

    async def close(self) -> None:
        """Frees what this object holds; the node goes on."""
