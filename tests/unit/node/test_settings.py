"""The store's settings in the user's form: mistakes refused, changes as the smallest commit, wishes compared."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from stnode.clock import SeededRandomness
from stnode.errors import Conflict, Invalid, NotFound
from stnode.node.service import DevicePassword, DeviceSettings, FolderChange, FolderSettings, RepairWish
from stnode.node.settings import Settings
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from stnode.repo import settings as stored
from stnode.repo.codec_body import Body
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
    folders = (
        FolderSettings("docs", "Documents", devices=("anna", "carl"), encrypted_for=("anna",)),
        FolderSettings("pics", devices=("carl",)),
    )
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


# --- untrusted devices and encrypted folders

CLOUD = DeviceID(b"c" * 32)
CLOUD_TEXT = deviceid.format(CLOUD)
VAULT = stored.FolderSettings(
    "vault", "8899aabbccddeeff", 6, type="receiveencrypted", devices=(stored.FolderDevice(BEN),), encryption_password_token=b"token"
)


@pytest.fixture
def guarded() -> Settings:
    """anna gets docs encrypted, ben as it is, and shares the receive-encrypted vault; the cloud is untrusted and shares nothing."""
    devices = [
        stored.DeviceSettings(ANNA, "anna"),
        stored.DeviceSettings(BEN, "ben"),
        stored.DeviceSettings(CLOUD, "cloud", untrusted=True),
    ]
    return Settings(OWN, devices, [DOCS, VAULT])


def with_password(device: str, password: str = "hush") -> tuple[DevicePassword, ...]:
    return (DevicePassword(device, password),)


def refusal(attempt: Callable[[], object]) -> Invalid:
    with pytest.raises(Invalid) as caught:
        attempt()
    assert caught.value.hint
    assert not {"hush", "secret"} & set(re.findall(r"\w+", caught.value.message + caught.value.hint))
    return caught.value


def test_a_folder_is_added_for_a_device_that_gets_it_encrypted(guarded: Settings) -> None:
    folder = FolderSettings("new", devices=("ben",), passwords=with_password("cloud"))
    assert guarded.add_folder(folder, RANDOM).folders[0].devices == (stored.FolderDevice(BEN), stored.FolderDevice(CLOUD, "hush"))
    same = replace(folder, devices=("ben", "cloud"), encrypted_for=("cloud",))
    assert guarded.add_folder(same, RANDOM).folders[0].devices == (stored.FolderDevice(BEN), stored.FolderDevice(CLOUD, "hush"))


def test_a_change_shares_a_folder_encrypted_or_gives_another_password(guarded: Settings) -> None:
    added = guarded.change_folder("docs", FolderChange(passwords=with_password(CLOUD_TEXT))).folders[0]
    assert set(added.devices) == {*DOCS.devices, stored.FolderDevice(CLOUD, "hush")}
    accepted = replace(DOCS, devices=(stored.FolderDevice(ANNA, "secret", b"token"), stored.FolderDevice(BEN)))
    settings = Settings(OWN, [stored.DeviceSettings(ANNA, "anna"), stored.DeviceSettings(BEN, "ben")], [accepted])
    assert settings.change_folder("docs", FolderChange(label="D")).folders[0].devices == accepted.devices
    assert settings.change_folder("docs", FolderChange(passwords=with_password("anna", "secret"))).folders[0].devices == accepted.devices
    changed = settings.change_folder("docs", FolderChange(passwords=with_password("anna"))).folders[0]
    assert changed.devices[0] == stored.FolderDevice(ANNA, "hush")  # and the token of the old one is forgotten


def test_the_users_form_says_who_gets_it_encrypted_and_no_password(guarded: Settings) -> None:
    docs, vault = guarded.folders()
    assert (docs.devices, docs.encrypted_for, docs.passwords) == ((ANNA_TEXT, BEN_TEXT), (ANNA_TEXT,), ())
    assert (vault.type, vault.encrypted_for) == ("receiveencrypted", ())
    assert [device.untrusted for device in guarded.devices()] == [False, False, True]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (FolderChange(passwords=with_password("ben")), "ben gets the folder docs as it is"),
        (FolderChange(passwords=with_password("ben"), remove_devices=("ben",)), "ben gets the folder docs as it is"),
        (FolderChange(add_devices=("anna",), remove_devices=("anna",)), "anna gets the folder docs encrypted"),
        (FolderChange(passwords=with_password("cloud", "")), "is empty"),
        (FolderChange(passwords=(*with_password("cloud"), *with_password(CLOUD_TEXT, "hush2"))), "two passwords"),
        (FolderChange(add_devices=("cloud",)), "untrusted"),
        (FolderChange(type="receiveencrypted"), "is sendreceive and cannot become receiveencrypted"),
    ],
)
def test_what_a_shared_folder_cannot_become(guarded: Settings, change: FolderChange, words: str) -> None:
    assert words in refusal(lambda: guarded.change_folder("docs", change)).message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (FolderChange(type="sendreceive"), "is receiveencrypted and cannot become sendreceive"),
        (FolderChange(ignore=("*.tmp",)), "no pattern"),
        (FolderChange(passwords=with_password("cloud")), "passed on as it is"),
    ],
)
def test_what_a_receive_encrypted_folder_cannot_have(guarded: Settings, change: FolderChange, words: str) -> None:
    assert words in refusal(lambda: guarded.change_folder("vault", change)).message
    new = FolderSettings("new", type="receiveencrypted", ignore=change.ignore or (), passwords=change.passwords)
    if change.type is None:
        assert words in refusal(lambda: guarded.add_folder(new, RANDOM)).message


def test_a_receive_encrypted_folder_is_shared_with_untrusted_devices_and_keeps_its_token(guarded: Settings) -> None:
    made = guarded.change_folder("vault", FolderChange(add_devices=("cloud",), history="7d")).folders[0]
    assert {device.device_id for device in made.devices} == {BEN, CLOUD}
    assert (made.encryption_password_token, made.history, made.type) == (b"token", "7d", "receiveencrypted")
    assert guarded.add_folder(FolderSettings("new", type="receiveencrypted", devices=("cloud",)), RANDOM).folders[0].type == made.type


def test_wished_passwords_are_compared_and_not_shown(guarded: Settings) -> None:
    wish = FolderSettings("docs", "Documents", devices=("ben",), passwords=with_password("anna", "secret"))
    assert guarded.compare((), (wish,), RANDOM, prune=False) == ((), Commit())
    [change], commit = guarded.compare((), (replace(wish, passwords=with_password("anna")),), RANDOM, prune=False)
    assert change.detail == "password of anna changed"
    assert stored.FolderDevice(ANNA, "hush") in commit.folders[0].devices
    [change], _ = guarded.compare((), (replace(wish, passwords=(*wish.passwords, *with_password("cloud"))),), RANDOM, prune=False)
    assert f"encrypted_for [{ANNA_TEXT}] → [{', '.join(sorted((ANNA_TEXT, CLOUD_TEXT)))}]" in change.detail
    assert "hush" not in repr((change, commit))
    plain = refusal(lambda: guarded.compare((), (FolderSettings("docs", devices=("anna",)),), RANDOM, prune=False))
    assert "anna gets the folder docs encrypted" in plain.message
    kind = refusal(lambda: guarded.compare((), (FolderSettings("vault", devices=("ben",)),), RANDOM, prune=False))
    assert "is receiveencrypted" in kind.message


def test_a_device_is_wished_untrusted_only_where_it_gets_nothing_as_it_is(guarded: Settings) -> None:
    ben, anna = DeviceSettings(BEN_TEXT, "ben", untrusted=True), DeviceSettings(ANNA_TEXT, "anna", untrusted=True)
    assert "ben is untrusted" in refusal(lambda: guarded.compare((ben,), (), RANDOM, prune=False)).message
    [change], commit = guarded.compare((anna,), (), RANDOM, prune=False)
    assert (change.detail, commit.devices[0].untrusted) == ("untrusted False → True", True)
    without = FolderSettings("docs", "Documents", devices=("anna",), encrypted_for=("anna",))
    assert len(guarded.compare((ben,), (without,), RANDOM, prune=False)[0]) == 2
    assert guarded.compare((ben,), (), RANDOM, prune=True)[1].folders_removed == ("docs", "vault")


def test_an_untrusted_device_is_added(settings: Settings) -> None:
    assert settings.add_device(DeviceSettings(CLOUD_TEXT, "cloud", untrusted=True)).devices[0].untrusted


def test_no_value_shows_a_password(guarded: Settings) -> None:
    change = guarded.add_folder(FolderSettings("new", passwords=with_password("cloud")), RANDOM)
    again = [stored.decode_folder(stored.encode_folder(folder)) for folder in change.folders]
    assert again == list(change.folders)
    given = (
        FolderSettings("new", passwords=with_password("cloud")),
        FolderChange(passwords=with_password("cloud")),
        with_password("cloud"),
    )
    for value in (change, Body(folders=tuple(again)), RepairWish(folders=given[:1]), *given):
        assert "hush" not in repr(value) + str(value)
