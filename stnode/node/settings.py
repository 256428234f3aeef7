"""The store's settings as users see them: devices and folders by readable IDs, changes checked, wishes compared.

Pure: what is there goes in, what shall be committed comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from stnode import retention
from stnode.clock import Randomness
from stnode.config import guard_share
from stnode.errors import Conflict, Invalid, NotFound
from stnode.folder import ignore
from stnode.node.service import DeviceSettings, FolderChange, FolderSettings, FolderTypeName, SettingsChange
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from stnode.repo import settings as stored
from stnode.repo.store import SettingsChange as Commit
from stnode.repo.store import new_folder

_TYPES: dict[str, FolderTypeName] = {
    "sendreceive": "sendreceive",
    "sendonly": "sendonly",
    "receiveonly": "receiveonly",
    "receiveencrypted": "receiveencrypted",
}
_ID_LIMIT = 64


class Settings:
    """The settings of a store at one moment. Methods that change answer what to commit and raise the user's mistakes. `siblings` are the
    other nodes of the store, by name: no devices of it."""

    def __init__(
        self,
        own: DeviceID,
        devices: Sequence[stored.DeviceSettings],
        folders: Sequence[stored.FolderSettings],
        siblings: Mapping[DeviceID, str] = MappingProxyType({}),
    ) -> None:
        self._own = own
        self._siblings = siblings
        self._devices = {DeviceID(device.device_id): device for device in devices}
        self._folders = {folder.folder_id: folder for folder in folders}

    # --- what is there

    def devices(self) -> tuple[DeviceSettings, ...]:
        """All devices, by name."""
        shown = [show_device(device) for device in self._devices.values()]
        return tuple(sorted(shown, key=lambda device: (device.name, device.id)))

    def folders(self) -> tuple[FolderSettings, ...]:
        """All folders, by ID."""
        return tuple(show_folder(self._folders[name]) for name in sorted(self._folders))

    def device(self, text: str) -> stored.DeviceSettings:
        """The device of a name or an ID. Raises NotFound, Invalid for a name that several have."""
        named = [device for device in self._devices.values() if device.name == text]
        if len(named) > 1:
            raise Invalid(f"{len(named)} devices have the name {text!r}", hint="use the device ID; `stnode device list` shows it")
        if named:
            return named[0]
        found = self._devices.get(_parsed(text)) if _looks_like_id(text) else None
        if found is None:
            raise NotFound(f"there is no device {text!r}", hint="`stnode device list` shows them; `stnode device add` makes one")
        return found

    def folder(self, text: str) -> stored.FolderSettings:
        """The folder of an ID or of a label that only one has. Raises NotFound."""
        if text in self._folders:
            return self._folders[text]
        labelled = [folder for folder in self._folders.values() if folder.label == text]
        if len(labelled) != 1:
            raise NotFound(f"there is no folder {text!r}", hint="`stnode folder list` shows them; `stnode folder add` makes one")
        return labelled[0]

    # --- changes

    def add_device(self, device: DeviceSettings) -> Commit:
        """A new device."""
        made = self._made_device(device)
        if made.device_id in self._devices:
            raise Conflict(f"the device {deviceid.format(DeviceID(made.device_id))} is there already", hint="`stnode device list` shows it")
        if made.name and any(other.name == made.name for other in self._devices.values()):
            raise Conflict(f"another device has the name {made.name!r} already", hint="choose another --name")
        return Commit(devices=(made,))

    def remove_device(self, text: str) -> Commit:
        """A device goes, from all folders too."""
        gone = self.device(text).device_id
        return Commit(folders=tuple(self._unshared(gone)), devices_removed=(gone,))

    def _unshared(self, device: bytes) -> list[stored.FolderSettings]:
        """The folders that were shared with the device, as they are without it."""
        return [
            replace(folder, devices=tuple(d for d in folder.devices if d.device_id != device))
            for folder in self._folders.values()
            if any(d.device_id == device for d in folder.devices)
        ]

    def add_folder(self, folder: FolderSettings, random: Randomness) -> Commit:
        """A new folder, or a new incarnation of a removed one."""
        if folder.id in self._folders:
            raise Conflict(f"the folder {folder.id!r} is there already", hint="`stnode folder set` changes it")
        return Commit(folders=(self._made_folder(folder, replace(new_folder(random, folder.id), type=folder.type)),))

    def change_folder(self, text: str, change: FolderChange) -> Commit:
        """Some settings of a folder."""
        old = self.folder(text)
        removed = {self.device(name).device_id for name in change.remove_devices}
        if not removed <= {device.device_id for device in old.devices}:
            raise NotFound(f"the folder {old.folder_id} is not shared with that device")
        shown = show_folder(old)
        kept = tuple(id_ for id_ in shown.devices if _parsed(id_) not in removed)
        wanted = replace(
            shown,
            label=shown.label if change.label is None else change.label,
            type=change.type or shown.type,
            devices=(*kept, *change.add_devices),
            encrypted_for=tuple(id_ for id_ in shown.encrypted_for if id_ in kept),
            passwords=change.passwords,
            ignore=shown.ignore if change.ignore is None else change.ignore,
            ignore_permissions=shown.ignore_permissions if change.ignore_permissions is None else change.ignore_permissions,
            history=shown.history if change.history is None else change.history,
            history_floor=shown.history_floor if change.history_floor is None else change.history_floor,
            delete_guard=shown.delete_guard if change.delete_guard is None else change.delete_guard,
        )
        return Commit(folders=(self._made_folder(wanted, old),))

    def remove_folder(self, text: str) -> Commit:
        """A folder goes."""
        return Commit(folders_removed=(self.folder(text).folder_id,))

    # --- wishes

    def compare(
        self, devices: Sequence[DeviceSettings], folders: Sequence[FolderSettings], random: Randomness, *, prune: bool
    ) -> tuple[tuple[SettingsChange, ...], Commit]:
        """What differs from the wishes, in words, and the commit that fulfils them. With `prune` what is not wished for goes."""
        changes: list[SettingsChange] = []
        set_devices: list[stored.DeviceSettings] = []
        after = dict(self._devices)
        for device in devices:
            made = self._made_device(device)
            id_ = DeviceID(made.device_id)
            old = self._devices.get(id_)
            if old is None:
                changes.append(SettingsChange("add", "device", deviceid.format(id_), made.name))
            elif detail := _difference(show_device(old), show_device(made)):
                made = replace(old, name=made.name, addresses=made.addresses, untrusted=made.untrusted)
                changes.append(SettingsChange("change", "device", deviceid.format(id_), detail))
            else:
                continue
            set_devices.append(made)
            after[id_] = made
        wished = {_parsed(device.id) for device in devices}
        gone = [id_ for id_ in self._devices if id_ not in wished] if prune else []
        changes += [SettingsChange("remove", "device", deviceid.format(id_), self._devices[id_].name) for id_ in gone]
        then = Settings(
            self._own, [device for id_, device in after.items() if id_ not in gone], tuple(self._folders.values()), self._siblings
        )
        set_folders = then._wished_folders(folders, random, changes)
        unwished = [name for name in self._folders if name not in {folder.id for folder in folders}] if prune else []
        changes += [SettingsChange("remove", "folder", name, self._folders[name].label) for name in unwished]
        for name in self._folders.keys() - {folder.id for folder in folders} - set(unwished):
            then._check_trust(self._folders[name])
        for id_ in gone:
            named = {folder.folder_id for folder in set_folders} | set(unwished)
            set_folders += [folder for folder in self._unshared(id_) if folder.folder_id not in named]
        return tuple(changes), Commit(tuple(set_folders), tuple(unwished), tuple(set_devices), tuple(gone))

    def _wished_folders(
        self, folders: Sequence[FolderSettings], random: Randomness, changes: list[SettingsChange]
    ) -> list[stored.FolderSettings]:
        found: list[stored.FolderSettings] = []
        for folder in folders:
            old = self._folders.get(folder.id)
            made = self._made_folder(folder, old or replace(new_folder(random, folder.id), type=folder.type))
            if old is None:
                changes.append(SettingsChange("add", "folder", folder.id, folder.label))
            elif detail := ", ".join(filter(None, (_difference(show_folder(old), show_folder(made)), self._new_passwords(old, made)))):
                changes.append(SettingsChange("change", "folder", folder.id, detail))
            else:
                continue
            found.append(made)
        return found

    # --- from the user's form

    def _made_device(self, device: DeviceSettings) -> stored.DeviceSettings:
        id_ = _parsed(device.id)
        if id_ == self._own:
            raise Invalid(f"{device.id} is this node itself", hint="add the other device's ID here, and this one there")
        if id_ in self._siblings:
            raise Invalid(
                f"{device.id} is {self._siblings[id_] or 'another node'}, a node of this store: it has everything already, and finds this one by itself",
                hint="leave it out; `stnode status` shows the other nodes",
            )
        for address in device.addresses:
            if address != "dynamic" and "://" not in address:
                raise Invalid(f"{address!r} is no address", hint="write it like tcp://192.0.2.7:22000, or dynamic")
        return stored.DeviceSettings(id_, device.name, device.addresses or ("dynamic",), untrusted=device.untrusted)

    def _made_folder(self, folder: FolderSettings, base: stored.FolderSettings) -> stored.FolderSettings:
        if not folder.id or len(folder.id) > _ID_LIMIT or "/" in folder.id or not folder.id.isprintable():
            raise Invalid(
                f"{folder.id!r} is no folder ID: it has 1 to {_ID_LIMIT} printable characters, and no /", hint="choose another ID"
            )
        if folder.type != base.type and stored.ENCRYPTED in (folder.type, base.type):
            raise Invalid(
                f"the folder {folder.id} is {base.type} and cannot become {folder.type}: what is stored of the two is different",
                hint=f"`stnode folder remove {folder.id}`, then add it again with the other type: it is synced anew",
            )
        if folder.type == stored.ENCRYPTED and folder.ignore:
            raise Invalid(
                f"the folder {folder.id} is receive-encrypted: its names cannot be read here, so no pattern ignores any",
                hint="leave the patterns out; the devices that have the password can ignore files",
            )
        made = replace(
            base,
            label=folder.label,
            type=folder.type,
            devices=self._made_shares(folder, base),
            ignore_lines=folder.ignore,
            ignore_permissions=folder.ignore_permissions,
            history=folder.history.strip(),
            history_floor=folder.history_floor.strip(),
            delete_guard=guard_share(folder.delete_guard.strip()),
        )
        retention.policy(made.history, made.history_floor)  # raises Invalid
        ignore.matcher_for(made)  # raises Invalid for lines that cannot be read
        self._check_trust(made)
        return made

    def _made_shares(self, folder: FolderSettings, base: stored.FolderSettings) -> tuple[stored.FolderDevice, ...]:
        """The devices that share a folder, each with the password that it has or is given."""
        there = {device.device_id: device for device in base.devices}
        kept = {self.device(text).device_id for text in folder.encrypted_for}
        passwords = {id_: there[id_].encryption_password for id_ in kept if id_ in there}
        given = dict[bytes, str]()
        for each in folder.passwords:
            id_ = self.device(each.device).device_id
            if given.setdefault(id_, each.password) != each.password:
                raise Invalid(f"two passwords are given for the device {each.device}", hint="a device has one password for a folder")
        passwords.update(given)
        if passwords and folder.type == stored.ENCRYPTED:
            raise Invalid(
                f"the folder {folder.id} is receive-encrypted: what comes encrypted is passed on as it is, there is nothing to give a password for",
                hint="share it without a password (--device, or the device's name alone)",
            )
        ids = dict.fromkeys((*(self.device(text).device_id for text in folder.devices), *kept, *given))
        return tuple(self._made_share(folder.id, id_, passwords.get(id_), there.get(id_)) for id_ in ids)

    def _made_share(self, folder: str, id_: bytes, password: str | None, old: stored.FolderDevice | None) -> stored.FolderDevice:
        name = self._name(id_)
        if password == "":
            raise Invalid(f"the password of the device {name} for the folder {folder} is empty", hint="give a password")
        if old is None or old.encryption_password == (password or ""):
            return old or stored.FolderDevice(id_, password or "")
        if password is None or not old.encryption_password:
            has, wanted = ("as it is", "encrypted") if password else ("encrypted", "as it is")
            raise Invalid(
                f"the device {name} gets the folder {folder} {has}: to get it {wanted} it has to begin anew",
                hint=f"`stnode folder set {folder} --remove-device {name}`, remove the folder on that device, then share it again",
            )
        return stored.FolderDevice(id_, password)

    def _check_trust(self, folder: stored.FolderSettings) -> None:
        """Raises Invalid for a folder that an untrusted device would get as it is."""
        for share in folder.devices:
            device = self._devices.get(DeviceID(share.device_id))
            if device is not None and device.untrusted and not share.encryption_password and not folder.encrypted:
                name = self._name(share.device_id)
                raise Invalid(
                    f"the device {name} is untrusted: it must not get the folder {folder.folder_id} as it is",
                    hint=f"share it with a password: --encrypt-for {name}=PASSWORD-FILE, or encryption_password in config.toml",
                )

    def _name(self, id_: bytes) -> str:
        device = self._devices.get(DeviceID(id_))
        return (device.name if device is not None else "") or deviceid.format(DeviceID(id_))

    def _new_passwords(self, old: stored.FolderSettings, new: stored.FolderSettings) -> str:
        """Which devices have another password, in words; not which one."""
        had = {device.device_id: device.encryption_password for device in old.devices}
        changed = [device.device_id for device in new.devices if had.get(device.device_id, "") not in ("", device.encryption_password)]
        return ", ".join(f"password of {self._name(id_)} changed" for id_ in changed)


def show_device(device: stored.DeviceSettings) -> DeviceSettings:
    """A device in the user's form."""
    return DeviceSettings(deviceid.format(DeviceID(device.device_id)), device.name, device.addresses, device.untrusted)


def show_folder(folder: stored.FolderSettings) -> FolderSettings:
    """A folder in the user's form."""
    kind = _TYPES.get(folder.type)
    if kind is None:
        raise Invalid(f"the folder {folder.folder_id} is of the type {folder.type}, which this version does not serve")
    devices = tuple(sorted(deviceid.format(DeviceID(device.device_id)) for device in folder.devices))
    encrypted = tuple(sorted(deviceid.format(DeviceID(device.device_id)) for device in folder.devices if device.encryption_password))
    guard = "off" if folder.delete_guard < 0 else format(folder.delete_guard, "g") if folder.delete_guard else ""
    return FolderSettings(
        folder.folder_id,
        folder.label,
        kind,
        devices,
        folder.ignore_lines,
        folder.ignore_permissions,
        folder.history,
        folder.history_floor,
        guard,
        encrypted,
    )


def _difference(old: DeviceSettings | FolderSettings, new: DeviceSettings | FolderSettings) -> str:
    before, after = _fields(old), _fields(new)
    return ", ".join(f"{name} {_text(before[name])} → {_text(after[name])}" for name in before if before[name] != after[name])


def _fields(value: DeviceSettings | FolderSettings) -> Mapping[str, object]:
    return {name: getattr(value, name) for name in type(value).__slots__ if name != "passwords"}


def _text(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else repr(value)


def _looks_like_id(text: str) -> bool:
    return len(text.replace("-", "").replace(" ", "")) in (52, 56)


def _parsed(text: str) -> DeviceID:
    return deviceid.parse(text)
