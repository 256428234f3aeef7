"""Settings that are journal entries, equal for all nodes of a store: folders and devices. Pure.

Each value carries the protobuf that it was read from, so that fields of a newer version survive being changed by this one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError

from stnode.errors import Corrupt, Invalid
from stnode.repo.layout import folder_key
from stnode.repo.pb import store_pb2 as pb

ENCRYPTED: Final = "receiveencrypted"
FOLDER_TYPES: Final = ("sendreceive", "sendonly", "receiveonly", ENCRYPTED)
ALL_FILES: Final = -1
"""`objects_up_to` for "one object per file, whatever its size"."""


@dataclass(frozen=True, slots=True)
class FolderDevice:
    """A device that shares a folder. With a password it gets the data encrypted; `encryption_password_token` is the one that it
    presented and that a commit accepted."""

    device_id: bytes
    encryption_password: str = field(default="", repr=False)
    encryption_password_token: bytes = b""


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """A folder's settings. `history` and `history_floor` are those of `stnode.retention`; `objects_up_to` is in
    bytes (`ALL_FILES`); `delete_guard` is the share of files whose deletion waits for confirmation, 0 the default of one half, below 0: none
    ever waits."""

    folder_id: str
    incarnation: str
    index_id: int
    label: str = ""
    type: str = "sendreceive"
    devices: tuple[FolderDevice, ...] = ()
    ignore_lines: tuple[str, ...] = ()
    history: str = "30d"
    history_floor: str = ""
    ignore_permissions: bool = False
    objects_up_to: int = 0
    encryption_password_token: bytes = b""
    objects_prefix: str = ""
    storage_class: str = ""
    delete_guard: float = 0.0
    wire: bytes = field(default=b"", compare=False, repr=False)

    @property
    def encrypted(self) -> bool:
        """Whether the folder holds what trusted devices have encrypted: names and contents cannot be read here."""
        return self.type == ENCRYPTED

    @property
    def fkey(self) -> str:
        """The folder's part of keys."""
        return folder_key(self.folder_id, self.incarnation)


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """A device's settings; `compression` is metadata, always or never."""

    device_id: bytes
    name: str = ""
    addresses: tuple[str, ...] = ("dynamic",)
    compression: str = "metadata"
    introducer: bool = False
    skip_introduction_removals: bool = False
    introduced_by: bytes = b""
    cert_name: str = ""
    untrusted: bool = False
    wire: bytes = field(default=b"", compare=False, repr=False)


def encode_folder(settings: FolderSettings) -> bytes:
    """FolderSettings as in a commit: the bytes that they were read from if nothing changed, so that every node keeps the same ones.
    Raises Invalid for a folder that cannot exist."""
    if settings.wire and decode_folder(settings.wire) == settings:
        return settings.wire
    if not settings.folder_id or not settings.incarnation or not settings.index_id or settings.type not in FOLDER_TYPES:
        raise Invalid(
            f"folder {settings.folder_id!r} needs an ID, an incarnation, an index ID and one of the types {', '.join(FOLDER_TYPES)}"
        )
    message = pb.FolderSettings.FromString(settings.wire)
    message.folder_id = settings.folder_id
    message.incarnation = settings.incarnation
    message.index_id = settings.index_id
    message.label = settings.label
    message.type = settings.type
    kept = {device.id: device for device in message.devices}
    devices = [_folder_device(device, kept.get(device.device_id)) for device in settings.devices]
    del message.devices[:]
    message.devices.extend(devices)
    message.ignore_lines[:] = settings.ignore_lines
    message.history = settings.history
    message.history_floor = settings.history_floor
    message.ignore_permissions = settings.ignore_permissions
    message.objects_up_to = settings.objects_up_to
    message.encryption_password_token = settings.encryption_password_token
    message.objects_prefix = settings.objects_prefix
    message.storage_class = settings.storage_class
    message.delete_guard = settings.delete_guard
    return message.SerializeToString(deterministic=True)


def _folder_device(device: FolderDevice, kept: pb.FolderDevice | None) -> pb.FolderDevice:
    message = pb.FolderDevice()
    if kept is not None:
        message.CopyFrom(kept)
    message.id = device.device_id
    message.encryption_password = device.encryption_password
    message.encryption_password_token = device.encryption_password_token
    return message


def decode_folder(wire: bytes) -> FolderSettings:
    """Inverse of `encode_folder`; the wire form is kept in the result. Raises Corrupt."""
    try:
        message = pb.FolderSettings.FromString(wire)
    except DecodeError as exc:
        raise Corrupt("a folder's settings cannot be read") from exc
    return FolderSettings(
        folder_id=message.folder_id,
        incarnation=message.incarnation,
        index_id=message.index_id,
        label=message.label,
        type=message.type,
        devices=tuple(FolderDevice(d.id, d.encryption_password, d.encryption_password_token) for d in message.devices),
        ignore_lines=tuple(message.ignore_lines),
        history=message.history,
        history_floor=message.history_floor,
        ignore_permissions=message.ignore_permissions,
        objects_up_to=message.objects_up_to,
        encryption_password_token=message.encryption_password_token,
        objects_prefix=message.objects_prefix,
        storage_class=message.storage_class,
        delete_guard=message.delete_guard,
        wire=wire,
    )


def encode_device(settings: DeviceSettings) -> bytes:
    """DeviceSettings as in a commit (see `encode_folder`); raises Invalid for a device ID that is not 32 bytes."""
    if settings.wire and decode_device(settings.wire) == settings:
        return settings.wire
    if len(settings.device_id) != 32:
        raise Invalid("a device ID has 32 bytes")
    message = pb.DeviceSettings.FromString(settings.wire)
    message.id = settings.device_id
    message.name = settings.name
    message.addresses[:] = settings.addresses
    message.compression = settings.compression
    message.introducer = settings.introducer
    message.skip_introduction_removals = settings.skip_introduction_removals
    message.introduced_by = settings.introduced_by
    message.cert_name = settings.cert_name
    message.untrusted = settings.untrusted
    return message.SerializeToString(deterministic=True)


def decode_device(wire: bytes) -> DeviceSettings:
    """Inverse of `encode_device`. Raises Corrupt."""
    try:
        message = pb.DeviceSettings.FromString(wire)
    except DecodeError as exc:
        raise Corrupt("a device's settings cannot be read") from exc
    return DeviceSettings(
        device_id=message.id,
        name=message.name,
        addresses=tuple(message.addresses),
        compression=message.compression,
        introducer=message.introducer,
        skip_introduction_removals=message.skip_introduction_removals,
        introduced_by=message.introduced_by,
        cert_name=message.cert_name,
        untrusted=message.untrusted,
        wire=wire,
    )
