from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Slot(_message.Message):
    __slots__ = ("features", "number", "previous", "node", "instance", "write_id", "store_time_us", "firsts", "stored", "dropped", "body")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    WRITE_ID_FIELD_NUMBER: _ClassVar[int]
    STORE_TIME_US_FIELD_NUMBER: _ClassVar[int]
    FIRSTS_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedScalarFieldContainer[str]
    number: int
    previous: bytes
    node: bytes
    instance: int
    write_id: bytes
    store_time_us: int
    firsts: _containers.RepeatedCompositeFieldContainer[First]
    stored: BodyRef
    dropped: _containers.RepeatedScalarFieldContainer[int]
    body: Body
    def __init__(self, features: _Optional[_Iterable[str]] = ..., number: _Optional[int] = ..., previous: _Optional[bytes] = ..., node: _Optional[bytes] = ..., instance: _Optional[int] = ..., write_id: _Optional[bytes] = ..., store_time_us: _Optional[int] = ..., firsts: _Optional[_Iterable[_Union[First, _Mapping]]] = ..., stored: _Optional[_Union[BodyRef, _Mapping]] = ..., dropped: _Optional[_Iterable[int]] = ..., body: _Optional[_Union[Body, _Mapping]] = ...) -> None: ...

class First(_message.Message):
    __slots__ = ("fkey", "sequence")
    FKEY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    fkey: str
    sequence: int
    def __init__(self, fkey: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class BodyRef(_message.Message):
    __slots__ = ("id", "size_bytes", "sha256")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    id: str
    size_bytes: int
    sha256: bytes
    def __init__(self, id: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Stub(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Body(_message.Message):
    __slots__ = ("sections", "packs_added", "relocations", "relocations_dropped", "packs_condemned", "objects_condemned", "packs_gone", "objects_gone", "horizon_us", "folders", "folders_removed", "devices", "devices_removed", "features_on", "packs_lost", "packs_found")
    SECTIONS_FIELD_NUMBER: _ClassVar[int]
    PACKS_ADDED_FIELD_NUMBER: _ClassVar[int]
    RELOCATIONS_FIELD_NUMBER: _ClassVar[int]
    RELOCATIONS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    PACKS_CONDEMNED_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_CONDEMNED_FIELD_NUMBER: _ClassVar[int]
    PACKS_GONE_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_GONE_FIELD_NUMBER: _ClassVar[int]
    HORIZON_US_FIELD_NUMBER: _ClassVar[int]
    FOLDERS_FIELD_NUMBER: _ClassVar[int]
    FOLDERS_REMOVED_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    DEVICES_REMOVED_FIELD_NUMBER: _ClassVar[int]
    FEATURES_ON_FIELD_NUMBER: _ClassVar[int]
    PACKS_LOST_FIELD_NUMBER: _ClassVar[int]
    PACKS_FOUND_FIELD_NUMBER: _ClassVar[int]
    sections: _containers.RepeatedCompositeFieldContainer[Section]
    packs_added: _containers.RepeatedCompositeFieldContainer[PackAdded]
    relocations: _containers.RepeatedCompositeFieldContainer[Relocation]
    relocations_dropped: _containers.RepeatedScalarFieldContainer[int]
    packs_condemned: _containers.RepeatedScalarFieldContainer[int]
    objects_condemned: _containers.RepeatedScalarFieldContainer[str]
    packs_gone: _containers.RepeatedScalarFieldContainer[int]
    objects_gone: _containers.RepeatedScalarFieldContainer[str]
    horizon_us: int
    folders: _containers.RepeatedScalarFieldContainer[bytes]
    folders_removed: _containers.RepeatedScalarFieldContainer[str]
    devices: _containers.RepeatedScalarFieldContainer[bytes]
    devices_removed: _containers.RepeatedScalarFieldContainer[bytes]
    features_on: _containers.RepeatedScalarFieldContainer[str]
    packs_lost: _containers.RepeatedScalarFieldContainer[int]
    packs_found: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sections: _Optional[_Iterable[_Union[Section, _Mapping]]] = ..., packs_added: _Optional[_Iterable[_Union[PackAdded, _Mapping]]] = ..., relocations: _Optional[_Iterable[_Union[Relocation, _Mapping]]] = ..., relocations_dropped: _Optional[_Iterable[int]] = ..., packs_condemned: _Optional[_Iterable[int]] = ..., objects_condemned: _Optional[_Iterable[str]] = ..., packs_gone: _Optional[_Iterable[int]] = ..., objects_gone: _Optional[_Iterable[str]] = ..., horizon_us: _Optional[int] = ..., folders: _Optional[_Iterable[bytes]] = ..., folders_removed: _Optional[_Iterable[str]] = ..., devices: _Optional[_Iterable[bytes]] = ..., devices_removed: _Optional[_Iterable[bytes]] = ..., features_on: _Optional[_Iterable[str]] = ..., packs_lost: _Optional[_Iterable[int]] = ..., packs_found: _Optional[_Iterable[int]] = ...) -> None: ...

class Section(_message.Message):
    __slots__ = ("fkey", "sets", "partials", "partials_dropped", "partials_dropped_before_us", "history_dropped_before_us", "tombstones_dropped_below", "history_dropped")
    FKEY_FIELD_NUMBER: _ClassVar[int]
    SETS_FIELD_NUMBER: _ClassVar[int]
    PARTIALS_FIELD_NUMBER: _ClassVar[int]
    PARTIALS_DROPPED_FIELD_NUMBER: _ClassVar[int]
    PARTIALS_DROPPED_BEFORE_US_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DROPPED_BEFORE_US_FIELD_NUMBER: _ClassVar[int]
    TOMBSTONES_DROPPED_BELOW_FIELD_NUMBER: _ClassVar[int]
    HISTORY_DROPPED_FIELD_NUMBER: _ClassVar[int]
    fkey: str
    sets: _containers.RepeatedCompositeFieldContainer[RecordSet]
    partials: _containers.RepeatedCompositeFieldContainer[NewPartial]
    partials_dropped: _containers.RepeatedCompositeFieldContainer[PartialName]
    partials_dropped_before_us: int
    history_dropped_before_us: int
    tombstones_dropped_below: int
    history_dropped: _containers.RepeatedCompositeFieldContainer[VersionName]
    def __init__(self, fkey: _Optional[str] = ..., sets: _Optional[_Iterable[_Union[RecordSet, _Mapping]]] = ..., partials: _Optional[_Iterable[_Union[NewPartial, _Mapping]]] = ..., partials_dropped: _Optional[_Iterable[_Union[PartialName, _Mapping]]] = ..., partials_dropped_before_us: _Optional[int] = ..., history_dropped_before_us: _Optional[int] = ..., tombstones_dropped_below: _Optional[int] = ..., history_dropped: _Optional[_Iterable[_Union[VersionName, _Mapping]]] = ...) -> None: ...

class VersionName(_message.Message):
    __slots__ = ("name", "sequence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    sequence: int
    def __init__(self, name: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class RecordSet(_message.Message):
    __slots__ = ("kind", "records")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    kind: int
    records: _containers.RepeatedCompositeFieldContainer[NewRecord]
    def __init__(self, kind: _Optional[int] = ..., records: _Optional[_Iterable[_Union[NewRecord, _Mapping]]] = ...) -> None: ...

class NewRecord(_message.Message):
    __slots__ = ("info", "extents", "local_flags", "history")
    INFO_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FLAGS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    info: bytes
    extents: bytes
    local_flags: int
    history: int
    def __init__(self, info: _Optional[bytes] = ..., extents: _Optional[bytes] = ..., local_flags: _Optional[int] = ..., history: _Optional[int] = ...) -> None: ...

class PackAdded(_message.Message):
    __slots__ = ("fkey", "id", "size_bytes", "blocks", "footer_offset", "footer_bytes")
    FKEY_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FOOTER_OFFSET_FIELD_NUMBER: _ClassVar[int]
    FOOTER_BYTES_FIELD_NUMBER: _ClassVar[int]
    fkey: str
    id: str
    size_bytes: int
    blocks: int
    footer_offset: int
    footer_bytes: int
    def __init__(self, fkey: _Optional[str] = ..., id: _Optional[str] = ..., size_bytes: _Optional[int] = ..., blocks: _Optional[int] = ..., footer_offset: _Optional[int] = ..., footer_bytes: _Optional[int] = ...) -> None: ...

class Relocation(_message.Message):
    __slots__ = ("pack", "place", "count", "to_pack", "to_place")
    PACK_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TO_PACK_FIELD_NUMBER: _ClassVar[int]
    TO_PLACE_FIELD_NUMBER: _ClassVar[int]
    pack: int
    place: int
    count: int
    to_pack: int
    to_place: int
    def __init__(self, pack: _Optional[int] = ..., place: _Optional[int] = ..., count: _Optional[int] = ..., to_pack: _Optional[int] = ..., to_place: _Optional[int] = ...) -> None: ...

class NewPartial(_message.Message):
    __slots__ = ("partial", "extents")
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    EXTENTS_FIELD_NUMBER: _ClassVar[int]
    partial: bytes
    extents: bytes
    def __init__(self, partial: _Optional[bytes] = ..., extents: _Optional[bytes] = ...) -> None: ...

class Partial(_message.Message):
    __slots__ = ("name", "version", "node", "size_bytes", "block_size", "blocks_hash", "starts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_HASH_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: bytes
    node: bytes
    size_bytes: int
    block_size: int
    blocks_hash: bytes
    starts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[bytes] = ..., node: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., block_size: _Optional[int] = ..., blocks_hash: _Optional[bytes] = ..., starts: _Optional[_Iterable[int]] = ...) -> None: ...

class PartialName(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: bytes
    def __init__(self, name: _Optional[str] = ..., version: _Optional[bytes] = ...) -> None: ...

class FolderSettings(_message.Message):
    __slots__ = ("folder_id", "incarnation", "index_id", "label", "type", "devices", "ignore_lines", "history", "history_floor", "ignore_permissions", "objects_up_to", "encryption_password_token", "objects_prefix", "storage_class", "delete_guard")
    FOLDER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    INDEX_ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    IGNORE_LINES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FLOOR_FIELD_NUMBER: _ClassVar[int]
    IGNORE_PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_UP_TO_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTION_PASSWORD_TOKEN_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_PREFIX_FIELD_NUMBER: _ClassVar[int]
    STORAGE_CLASS_FIELD_NUMBER: _ClassVar[int]
    DELETE_GUARD_FIELD_NUMBER: _ClassVar[int]
    folder_id: str
    incarnation: str
    index_id: int
    label: str
    type: str
    devices: _containers.RepeatedCompositeFieldContainer[FolderDevice]
    ignore_lines: _containers.RepeatedScalarFieldContainer[str]
    history: str
    history_floor: str
    ignore_permissions: bool
    objects_up_to: int
    encryption_password_token: bytes
    objects_prefix: str
    storage_class: str
    delete_guard: float
    def __init__(self, folder_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., index_id: _Optional[int] = ..., label: _Optional[str] = ..., type: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[FolderDevice, _Mapping]]] = ..., ignore_lines: _Optional[_Iterable[str]] = ..., history: _Optional[str] = ..., history_floor: _Optional[str] = ..., ignore_permissions: _Optional[bool] = ..., objects_up_to: _Optional[int] = ..., encryption_password_token: _Optional[bytes] = ..., objects_prefix: _Optional[str] = ..., storage_class: _Optional[str] = ..., delete_guard: _Optional[float] = ...) -> None: ...

class FolderDevice(_message.Message):
    __slots__ = ("id", "encryption_password", "encryption_password_token")
    ID_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTION_PASSWORD_FIELD_NUMBER: _ClassVar[int]
    ENCRYPTION_PASSWORD_TOKEN_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    encryption_password: str
    encryption_password_token: bytes
    def __init__(self, id: _Optional[bytes] = ..., encryption_password: _Optional[str] = ..., encryption_password_token: _Optional[bytes] = ...) -> None: ...

class DeviceSettings(_message.Message):
    __slots__ = ("id", "name", "addresses", "compression", "introducer", "skip_introduction_removals", "introduced_by", "cert_name", "untrusted")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    INTRODUCER_FIELD_NUMBER: _ClassVar[int]
    SKIP_INTRODUCTION_REMOVALS_FIELD_NUMBER: _ClassVar[int]
    INTRODUCED_BY_FIELD_NUMBER: _ClassVar[int]
    CERT_NAME_FIELD_NUMBER: _ClassVar[int]
    UNTRUSTED_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    compression: str
    introducer: bool
    skip_introduction_removals: bool
    introduced_by: bytes
    cert_name: str
    untrusted: bool
    def __init__(self, id: _Optional[bytes] = ..., name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., compression: _Optional[str] = ..., introducer: _Optional[bool] = ..., skip_introduction_removals: _Optional[bool] = ..., introduced_by: _Optional[bytes] = ..., cert_name: _Optional[str] = ..., untrusted: _Optional[bool] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("features", "number", "slot_sha256", "store_time_us", "horizon_us", "next_pack", "next_folder", "state_hash", "node", "groups")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SLOT_SHA256_FIELD_NUMBER: _ClassVar[int]
    STORE_TIME_US_FIELD_NUMBER: _ClassVar[int]
    HORIZON_US_FIELD_NUMBER: _ClassVar[int]
    NEXT_PACK_FIELD_NUMBER: _ClassVar[int]
    NEXT_FOLDER_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedScalarFieldContainer[str]
    number: int
    slot_sha256: bytes
    store_time_us: int
    horizon_us: int
    next_pack: int
    next_folder: int
    state_hash: bytes
    node: bytes
    groups: _containers.RepeatedCompositeFieldContainer[Group]
    def __init__(self, features: _Optional[_Iterable[str]] = ..., number: _Optional[int] = ..., slot_sha256: _Optional[bytes] = ..., store_time_us: _Optional[int] = ..., horizon_us: _Optional[int] = ..., next_pack: _Optional[int] = ..., next_folder: _Optional[int] = ..., state_hash: _Optional[bytes] = ..., node: _Optional[bytes] = ..., groups: _Optional[_Iterable[_Union[Group, _Mapping]]] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("number", "base", "deltas")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    number: int
    base: _containers.RepeatedCompositeFieldContainer[RunRef]
    deltas: _containers.RepeatedCompositeFieldContainer[RunRef]
    def __init__(self, number: _Optional[int] = ..., base: _Optional[_Iterable[_Union[RunRef, _Mapping]]] = ..., deltas: _Optional[_Iterable[_Union[RunRef, _Mapping]]] = ...) -> None: ...

class RunRef(_message.Message):
    __slots__ = ("id", "size_bytes", "sha256", "entries", "number", "first_key", "base_entries")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FIRST_KEY_FIELD_NUMBER: _ClassVar[int]
    BASE_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    id: str
    size_bytes: int
    sha256: bytes
    entries: int
    number: int
    first_key: bytes
    base_entries: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., entries: _Optional[int] = ..., number: _Optional[int] = ..., first_key: _Optional[bytes] = ..., base_entries: _Optional[_Iterable[int]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("node", "instance", "name", "version", "started_us", "addresses", "page", "reached", "not_pulled", "full", "working", "head", "features", "stopped", "unshared")
    NODE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_US_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    NOT_PULLED_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    WORKING_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    UNSHARED_FIELD_NUMBER: _ClassVar[int]
    node: bytes
    instance: int
    name: str
    version: str
    started_us: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    page: str
    reached: _containers.RepeatedCompositeFieldContainer[Reach]
    not_pulled: _containers.RepeatedScalarFieldContainer[str]
    full: bool
    working: bool
    head: int
    features: _containers.RepeatedScalarFieldContainer[str]
    stopped: bool
    unshared: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, node: _Optional[bytes] = ..., instance: _Optional[int] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., started_us: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., page: _Optional[str] = ..., reached: _Optional[_Iterable[_Union[Reach, _Mapping]]] = ..., not_pulled: _Optional[_Iterable[str]] = ..., full: _Optional[bool] = ..., working: _Optional[bool] = ..., head: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., stopped: _Optional[bool] = ..., unshared: _Optional[_Iterable[str]] = ...) -> None: ...

class Reach(_message.Message):
    __slots__ = ("device_id", "bytes_per_s")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    device_id: bytes
    bytes_per_s: int
    def __init__(self, device_id: _Optional[bytes] = ..., bytes_per_s: _Optional[int] = ...) -> None: ...

class FileView(_message.Message):
    __slots__ = ("name", "type", "size", "modified_s", "deleted", "invalid", "version", "modified_ns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_S_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    INVALID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: int
    size: int
    modified_s: int
    deleted: bool
    invalid: bool
    version: bytes
    modified_ns: int
    def __init__(self, name: _Optional[str] = ..., type: _Optional[int] = ..., size: _Optional[int] = ..., modified_s: _Optional[int] = ..., deleted: _Optional[bool] = ..., invalid: _Optional[bool] = ..., version: _Optional[bytes] = ..., modified_ns: _Optional[int] = ...) -> None: ...
