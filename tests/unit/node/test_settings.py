"""The store's settings in the user's form: mistakes refused, changes as the smallest commit, wishes compared."""

from __future__ import annotations

import pytest

from stnode.clock import SeededRandomness
from stnode.errors import Conflict, Invalid, NotFound
from stnode.node.service import DeviceSettings, FolderChange, FolderSettings
from stnode.node.settings import Settings
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from stnode.repo import settings as stored
from stnode.repo.store import SettingsChange as Commit

OWN, ANNA, BEN = DeviceID(b"o" * 32), DeviceID(b"a" * 32), DeviceID(b"b" * 32)
ANNA_TEXT, BEN_TEXT = deviceid.format(ANNA), deviceid.format(BEN)
RANDOM = SeededRandomness(1)
DOCS = stored.FolderSettings(
    "docs", "0011223344556677", 5, "Documents", devices=(stored.FolderDevice(ANNA, "secret"), stored.FolderDevice(BEN)), storage_class="IA"
)


@pytest.fixture
def settings() -> Settings:
    return Settings(OWN, [stored.DeviceSettings(ANNA, "anna", introducer=True), stored.DeviceSettings(BEN, "ben")], [DOCS])


def test_devices_are_found_by_name_and_id(settings: Settings) -> None:
    assert settings.device("anna").device_id == settings.device(ANNA_TEXT.lower().replace("-", "")).device_id == ANNA
    for text in ("carl", deviceid.format(OWN)):
        with pytest.raises(NotFound):
            settings.device(text)
    twins = Settings(OWN, [stored.DeviceSettings(ANNA, "x"), stored.DeviceSettings(BEN, "x")], [])
    with pytest.raises(Invalid, match="2 devices"):
        twins.device("x")


def test_a_node_of_the_store_is_no_device_of_it() -> None:
    settings = Settings(OWN, [], [], {ANNA: "bucket-b"})
    for attempt in (
        lambda: settings.add_device(DeviceSettings(ANNA_TEXT)),
        lambda: settings.compare([DeviceSettings(ANNA_TEXT)], [], RANDOM, prune=False),
    ):
        with pytest.raises(Invalid, match="bucket-b, a node of this store"):
            attempt()


def test_devices_that_cannot_be_added(settings: Settings) -> None:
    for device, error in (
        (DeviceSettings(ANNA_TEXT), Conflict),
        (DeviceSettings(deviceid.format(OWN)), Invalid),
        (DeviceSettings("nonsense"), Invalid),
        (DeviceSettings(deviceid.format(DeviceID(b"c" * 32)), "anna"), Conflict),
        (DeviceSettings(deviceid.format(DeviceID(b"c" * 32)), "c", ("192.0.2.1",)), Invalid),
    ):
        with pytest.raises(error):
            settings.add_device(device)


def test_a_removed_device_leaves_its_folders(settings: Settings) -> None:
    change = settings.remove_device("anna")
    assert change.devices_removed == (ANNA,)
    assert [device.device_id for device in change.folders[0].devices] == [BEN]


def test_folders_that_cannot_be_added(settings: Settings) -> None:
    for folder, error in (
        (FolderSettings("docs"), Conflict),
        (FolderSettings("a/b"), Invalid),
        (FolderSettings(""), Invalid),
        (FolderSettings("x" * 65), Invalid),
        (FolderSettings("new", devices=("carl",)), NotFound),
        (FolderSettings("new", ignore=("[",)), Invalid),
    ):
        with pytest.raises(error):
            settings.add_folder(folder, RANDOM)


def test_a_new_folder_is_a_new_incarnation(settings: Settings) -> None:
    first, second = (settings.add_folder(FolderSettings("new", devices=("ben", BEN_TEXT)), RANDOM).folders[0] for _ in range(2))
    assert first.fkey != second.fkey
    assert [device.device_id for device in first.devices] == [BEN]


def test_a_change_keeps_what_it_does_not_name(settings: Settings) -> None:
    made = settings.change_folder("Documents", FolderChange(label="D", remove_devices=("ben",))).folders[0]
    assert (made.label, made.fkey, made.index_id, made.storage_class) == ("D", DOCS.fkey, 5, "IA")
    assert made.devices == (stored.FolderDevice(ANNA, "secret"),)
    with pytest.raises(NotFound):
        Settings(OWN, [stored.DeviceSettings(BEN, "ben")], [stored.FolderSettings("x", "1", 1)]).change_folder(
            "x", FolderChange(remove_devices=("ben",))
        )


def test_wishes_that_are_fulfilled_change_nothing(settings: Settings) -> None:
    assert settings.compare(settings.devices(), settings.folders(), RANDOM, prune=True) == ((), Commit())


def test_wishes_change_only_what_differs(settings: Settings) -> None:
    new = deviceid.format(DeviceID(b"c" * 32))
    devices = (DeviceSettings(ANNA_TEXT, "anna", ("tcp://192.0.2.1:1",)), DeviceSettings(new, "carl"))
    folders = (FolderSettings("docs", "Documents", devices=("anna", "carl")), FolderSettings("pics", devices=("carl",)))
    changes, commit = settings.compare(devices, folders, RANDOM, prune=False)
    assert [(c.action, c.kind, c.id) for c in changes] == [
        ("change", "device", ANNA_TEXT), ("add", "device", new), ("change", "folder", "docs"), ("add", "folder", "pics")
    ]  # fmt: skip
    assert "tcp://192.0.2.1:1" in changes[0].detail
    assert commit.devices[0].introducer
    assert commit.folders[0].devices[0] == stored.FolderDevice(ANNA, "secret")
    assert not commit.devices_removed
    assert not commit.folders_removed


def test_pruning_removes_what_is_not_wished_for(settings: Settings) -> None:
    changes, commit = settings.compare((DeviceSettings(ANNA_TEXT, "anna"),), (), RANDOM, prune=True)
    assert [(c.action, c.kind, c.id) for c in changes] == [("remove", "device", BEN_TEXT), ("remove", "folder", "docs")]
    assert commit == Commit(folders_removed=("docs",), devices_removed=(BEN,))
    with pytest.raises(NotFound):
        settings.compare((), (FolderSettings("docs", devices=("ben",)),), RANDOM, prune=True)
