from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Hello(_message.Message):
    __slots__ = ("device_name", "client_name", "client_version", "num_connections", "timestamp")
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    device_name: str
    client_name: str
    client_version: str
    num_connections: int
    timestamp: int
    def __init__(self, device_name: _Optional[str] = ..., client_name: _Optional[str] = ..., client_version: _Optional[str] = ..., num_connections: _Optional[int] = ..., timestamp: _Optional[int] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("type", "compression")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    type: int
    compression: int
    def __init__(self, type: _Optional[int] = ..., compression: _Optional[int] = ...) -> None: ...

class ClusterConfig(_message.Message):
    __slots__ = ("folders", "secondary")
    FOLDERS_FIELD_NUMBER: _ClassVar[int]
    SECONDARY_FIELD_NUMBER: _ClassVar[int]
    folders: _containers.RepeatedCompositeFieldContainer[Folder]
    secondary: bool
    def __init__(self, folders: _Optional[_Iterable[_Union[Folder, _Mapping]]] = ..., secondary: _Optional[bool] = ...) -> None: ...

class Folder(_message.Message):
    __slots__ = ("id", "label", "type", "stop_reason", "devices")
    ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    id: str
    label: str
    type: int
    stop_reason: int
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    def __init__(self, id: _Optional[str] = ..., label: _Optional[str] = ..., type: _Optional[int] = ..., stop_reason: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("id", "name", "addresses", "compression", "cert_name", "max_sequence", "introducer", "index_id", "skip_introduction_removals", "encryption_password_token")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    CERT_NAME_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INTRODUCER_FIELD_NUMBER: _ClassVar[int]
    INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    SKIP_INTRODUCTION_REMOVALS_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTION_PASSWORD_TOKEN_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    compression: int
    cert_name: str
    max_sequence: int
    introducer: bool
    index_id: int
    skip_introduction_removals: bool
    encryption_password_token: bytes
    def __init__(self, id: _Optional[bytes] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., compression: _Optional[int] = ..., cert_name: _Optional[str] = ..., max_sequence: _Optional[int] = ..., introducer: _Optional[bool] = ..., index_id: _Optional[int] = ..., skip_introduction_removals: _Optional[bool] = ..., encryption_password_token: _Optional[bytes] = ...) -> None: ...

class Index(_message.Message):
    __slots__ = ("folder", "files", "last_sequence", "prev_sequence")
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PREV_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    folder: str
    files: _containers.RepeatedCompositeFieldContainer[FileInfo]
    last_sequence: int
    prev_sequence: int
    def __init__(self, folder: _Optional[str] = ..., files: _Optional[_Iterable[_Union[FileInfo, _Mapping]]] = ..., last_sequence: _Optional[int] = ..., prev_sequence: _Optional[int] = ...) -> None: ...

class FileInfo(_message.Message):
    __slots__ = ("name", "type", "size", "permissions", "modified_s", "deleted", "invalid", "no_permissions", "version", "sequence", "modified_ns", "modified_by", "block_size", "platform", "blocks", "symlink_target", "blocks_hash", "encrypted", "previous_blocks_hash", "local_flags", "version_hash", "inode_change_ns", "encryption_trailer_size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_S_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    INVALID_FIELD_NUMBER: _ClassVar[int]
    NO_PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_NS_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_BY_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SYMLINK_TARGET_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_HASH_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTED_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_BLOCKS_HASH_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FLAGS_FIELD_NUMBER: _ClassVar[int]
    VERSION_HASH_FIELD_NUMBER: _ClassVar[int]
    INODE_CHANGE_NS_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTION_TRAILER_SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: int
    size: int
    permissions: int
    modified_s: int
    deleted: bool
    invalid: bool
    no_permissions: bool
    version: Vector
    sequence: int
    modified_ns: int
    modified_by: int
    block_size: int
    platform: bytes
    blocks: _containers.RepeatedCompositeFieldContainer[BlockInfo]
    symlink_target: bytes
    blocks_hash: bytes
    encrypted: bytes
    previous_blocks_hash: bytes
    local_flags: int
    version_hash: bytes
    inode_change_ns: int
    encryption_trailer_size: int
    def __init__(self, name: _Optional[str] = ..., type: _Optional[int] = ..., size: _Optional[int] = ..., permissions: _Optional[int] = ..., modified_s: _Optional[int] = ..., deleted: _Optional[bool] = ..., invalid: _Optional[bool] = ..., no_permissions: _Optional[bool] = ..., version: _Optional[_Union[Vector, _Mapping]] = ..., sequence: _Optional[int] = ..., modified_ns: _Optional[int] = ..., modified_by: _Optional[int] = ..., block_size: _Optional[int] = ..., platform: _Optional[bytes] = ..., blocks: _Optional[_Iterable[_Union[BlockInfo, _Mapping]]] = ..., symlink_target: _Optional[bytes] = ..., blocks_hash: _Optional[bytes] = ..., encrypted: _Optional[bytes] = ..., previous_blocks_hash: _Optional[bytes] = ..., local_flags: _Optional[int] = ..., version_hash: _Optional[bytes] = ..., inode_change_ns: _Optional[int] = ..., encryption_trailer_size: _Optional[int] = ...) -> None: ...

class BlockInfo(_message.Message):
    __slots__ = ("offset", "size", "hash")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    offset: int
    size: int
    hash: bytes
    def __init__(self, offset: _Optional[int] = ..., size: _Optional[int] = ..., hash: _Optional[bytes] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("counters",)
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    counters: _containers.RepeatedCompositeFieldContainer[Counter]
    def __init__(self, counters: _Optional[_Iterable[_Union[Counter, _Mapping]]] = ...) -> None: ...

class Counter(_message.Message):
    __slots__ = ("id", "value")
    ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    id: int
    value: int
    def __init__(self, id: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("id", "folder", "name", "offset", "size", "hash", "from_temporary", "block_no")
    ID_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    FROM_TEMPORARY_FIELD_NUMBER: _ClassVar[int]
    BLOCK_NO_FIELD_NUMBER: _ClassVar[int]
    id: int
    folder: str
    name: str
    offset: int
    size: int
    hash: bytes
    from_temporary: bool
    block_no: int
    def __init__(self, id: _Optional[int] = ..., folder: _Optional[str] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ..., size: _Optional[int] = ..., hash: _Optional[bytes] = ..., from_temporary: _Optional[bool] = ..., block_no: _Optional[int] = ...) -> None: ...

class Response(_message.Message):
    __slots__ = ("id", "data", "code")
    ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    id: int
    data: bytes
    code: int
    def __init__(self, id: _Optional[int] = ..., data: _Optional[bytes] = ..., code: _Optional[int] = ...) -> None: ...

class DownloadProgress(_message.Message):
    __slots__ = ("folder", "updates")
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    folder: str
    updates: _containers.RepeatedCompositeFieldContainer[FileDownloadProgressUpdate]
    def __init__(self, folder: _Optional[str] = ..., updates: _Optional[_Iterable[_Union[FileDownloadProgressUpdate, _Mapping]]] = ...) -> None: ...

class FileDownloadProgressUpdate(_message.Message):
    __slots__ = ("update_type", "name", "version", "block_indexes", "block_size")
    UPDATE_TYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BLOCK_INDEXES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    update_type: int
    name: str
    version: Vector
    block_indexes: _containers.RepeatedScalarFieldContainer[int]
    block_size: int
    def __init__(self, update_type: _Optional[int] = ..., name: _Optional[str] = ..., version: _Optional[_Union[Vector, _Mapping]] = ..., block_indexes: _Optional[_Iterable[int]] = ..., block_size: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Close(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Hint(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: int
    def __init__(self, head: _Optional[int] = ...) -> None: ...

class Claim(_message.Message):
    __slots__ = ("id", "reply", "folder_key", "contents")
    ID_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    FOLDER_KEY_FIELD_NUMBER: _ClassVar[int]
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    id: int
    reply: bool
    folder_key: str
    contents: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[int] = ..., reply: _Optional[bool] = ..., folder_key: _Optional[str] = ..., contents: _Optional[_Iterable[int]] = ...) -> None: ...
