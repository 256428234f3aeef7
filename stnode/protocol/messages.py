"""The messages of the protocol as values. No bytes here: `codec.py` turns them into protobuf and back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType, TypeAlias

from stnode.protocol.deviceid import DeviceID
from stnode.protocol.fileinfo import FileInfo
from stnode.protocol.vector import Vector

FolderID = NewType("FolderID", str)
"""A folder's ID as users configure it; compared exactly."""


class MessageType(IntEnum):
    """Header.type on the wire. Other types are skipped, as real peers do; HINT and CLAIM are ours, between nodes of one store."""

    CLUSTER_CONFIG = 0
    INDEX = 1
    INDEX_UPDATE = 2
    REQUEST = 3
    RESPONSE = 4
    DOWNLOAD_PROGRESS = 5
    PING = 6
    CLOSE = 7
    HINT = 64
    CLAIM = 65


class Compression(IntEnum):
    """Which outgoing messages a side compresses, set per device; the wire values of Device.compression."""

    METADATA = 0
    NEVER = 1
    ALWAYS = 2


class ErrorCode(IntEnum):
    """Response.code."""

    NO_ERROR = 0
    GENERIC = 1
    NO_SUCH_FILE = 2
    INVALID_FILE = 3


@dataclass(frozen=True, slots=True)
class Hello:
    """Who is there. `timestamp_ns` is Unix nanoseconds, 0 from peers before v1.25."""

    device_name: str
    client_name: str
    client_version: str
    num_connections: int = 1
    timestamp_ns: int = 0


@dataclass(frozen=True, slots=True)
class ClusterDevice:
    """One device of a shared folder. For the sender itself: its index ID and highest sequence; for the receiver: what the
    sender holds of the receiver's index (0 and 0 for nothing); for others informative."""

    id: DeviceID
    name: str = ""
    addresses: tuple[str, ...] = ()
    compression: Compression = Compression.METADATA
    cert_name: str = ""
    max_sequence: int = 0
    introducer: bool = False
    index_id: int = 0
    skip_introduction_removals: bool = False
    encryption_password_token: bytes = b""


@dataclass(frozen=True, slots=True)
class ClusterFolder:
    """One shared folder. `paused` is v1's flag and v2's stop reason: the same bytes."""

    id: FolderID
    label: str = ""
    paused: bool = False
    devices: tuple[ClusterDevice, ...] = ()

    def device(self, device: DeviceID) -> ClusterDevice | None:
        """The entry of one device, None when it is not listed."""
        return next((entry for entry in self.devices if entry.id == device), None)


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """All folders shared with the receiver; replaces the one before. A `secondary` one carries none and has no effect."""

    folders: tuple[ClusterFolder, ...] = ()
    secondary: bool = False

    def folder(self, folder: FolderID) -> ClusterFolder | None:
        """The entry of one folder, None when it is not shared."""
        return next((entry for entry in self.folders if entry.id == folder), None)


@dataclass(frozen=True, slots=True)
class Index:
    """Files of one folder, ascending by sequence. `update` False replaces all the receiver has of the sender. `last_sequence`
    and `prev_sequence` are 0 from peers before v1.28."""

    folder: FolderID
    files: list[FileInfo]
    last_sequence: int = 0
    prev_sequence: int = 0
    update: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One block, wanted. `offset` and `size` in bytes; `hash` is the block's, b"" from old peers. Peers up to v2.1.0 ask for the
    empty block of an empty file with size 0; we never do."""

    id: int
    folder: FolderID
    name: str
    offset: int
    size: int
    hash: bytes
    from_temporary: bool = False
    block_no: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to the Request with this id. A received `data` stays valid for as long as it is kept (see framing). `code` is
    an ErrorCode or a number that we do not know; anything but 0 means no data."""

    id: int
    data: memoryview | bytes = b""
    code: int = 0


@dataclass(frozen=True, slots=True)
class ProgressUpdate:
    """What a peer has of a file that it is downloading: further blocks, or with `forget` nothing any more."""

    name: str
    version: Vector
    forget: bool
    block_indexes: tuple[int, ...]
    block_size: int


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """Temporary files a peer would serve from; may be ignored."""

    folder: FolderID
    updates: tuple[ProgressUpdate, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """Keeps the connection alive; no answer."""


@dataclass(frozen=True, slots=True)
class Close:
    """The sender ends the connection for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hint:
    """From a node of the same store: its journal has a commit of number `head`. Nothing may depend on it."""

    head: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Between nodes of one store. A question: the sender is about to fetch these contents of a folder. Its reply, of the same id: which of
    them the other one fetches. A content is the XXH3-64 of a file's block hashes. Nothing may depend on it."""

    id: int
    folder_key: str
    contents: tuple[int, ...]
    reply: bool = False


Message: TypeAlias = ClusterConfig | Index | Request | Response | DownloadProgress | Ping | Close | Hint | Claim
Event: TypeAlias = Hello | Message
"""What a connection reports, in the order of arrival."""
