"""Status, settings, bucket, and how commands fail."""

from __future__ import annotations

import io
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from stnode import config
from stnode.clock import Env, InlineThreads, SeededRandomness, SystemClock
from stnode.errors import Corrupt, Refused, Unavailable
from stnode.frontends.cli.node import status_text
from stnode.frontends.cli.output import table
from stnode.node import setup
from stnode.node.present import size_text, span_text
from stnode.node.service import CheckProblem
from stnode.node.status import (
    DeviceStatus,
    FolderStatus,
    NodeStatus,
    PathError,
    PendingDeletions,
    PendingDevice,
    PendingFolder,
    SiblingStatus,
    StoreStatus,
)
from tests.support.fake_service import OWN_ID, PEER_ID, FakeService
from tests.unit.cli.conftest import Cli


def test_help_and_version(cli: Cli) -> None:
    shown = cli("--help").out
    for command in (
        "init",
        "id",
        "status",
        "node",
        "device",
        "folder",
        "apply",
        "ls",
        "cat",
        "get",
        "put",
        "rm",
        "mv",
        "mkdir",
        "bucket",
        "shutdown",
    ):
        assert f"\n  {command} " in shown
    assert cli("--version").out.startswith("stnode")


def test_mistakes_of_usage(cli: Cli) -> None:
    for arguments in (("none",), ("ls", "--none"), ("cat",), ("folder", "set", "docs"), ("folder", "add", "x", "--type", "both")):
        result = cli(*arguments)
        assert result.code == 64
        assert result.err.startswith("stnode: error: ")
        assert "--help" in result.err


@pytest.mark.parametrize("error", [Unavailable("no answer", hint="wait"), Refused("no rights"), Corrupt("bad pack", hint="repair")])
def test_errors_have_message_hint_and_code(cli: Cli, fake: FakeService, error: Unavailable) -> None:
    async def fails(path: str, at: str = "") -> None:
        raise error

    fake.stat = fails  # type: ignore[assignment, method-assign]
    result = cli("get", "docs/a")
    assert result.code == error.exit_code
    assert result.err == f"stnode: error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else "")


def test_a_bug_is_no_traceback_unless_wanted(cli: Cli, fake: FakeService) -> None:
    async def fails(path: str, at: str = "") -> None:
        raise RuntimeError("oops")

    fake.stat = fails  # type: ignore[assignment, method-assign]
    result = cli("get", "docs/a")
    assert result.code == 70
    assert "Traceback" not in result.err
    assert "RuntimeError: oops" in result.err
    assert "Traceback" in cli("get", "docs/a", environ={"STNODE_DEBUG": "1", "STNODE_HOME": "/none"}).err


def test_status(cli: Cli) -> None:
    shown = cli("status").out
    assert OWN_ID in shown
    assert "My docs (docs)  sendreceive  idle" in shown
    assert json.loads(cli("status", "--json").out)["device_id"] == OWN_ID


def test_status_shows_trouble() -> None:
    folder = FolderStatus(
        "docs", "", "sendreceive", "error", files=3, bytes=2048, need_files=1, need_bytes=5, error_count=3, reason="store full",
        errors=(PathError("a\x1b", "no device has it"),), pending_deletions=PendingDeletions(900, 1000, 1_000_060.0),
    )  # fmt: skip
    device = DeviceStatus(PEER_ID, "laptop", True, "tcp://192.0.2.1:1", "syncthing v1.29", {"docs": 0.999}, in_bytes_per_s=2048)
    gone = DeviceStatus(PEER_ID, "", False, last_seen_s=999_000.0)
    store = StoreStatus("s3://b", 7, 3.0, 999_940.0, "connection refused", {}, 1024, 2, 4096, ("clock differs",))
    status = NodeStatus(
        OWN_ID,
        "n",
        "0",
        True,
        65.0,
        ("tcp://0.0.0.0:1",),
        store,
        (folder,),
        (device, gone),
        (PendingDevice(OWN_ID, "192.0.2.9:5"),),
        (PendingFolder("new", "New", PEER_ID),),
    )
    text = status_text(status, 1_000_000.0)
    for part in (
        "running, up 65 s", "commit 7, seen 3 s ago; 2 packs, 4.0 KiB", "does not answer since 60 s: connection refused", "1.0 KiB wait",
        "warning: clock differs", "1 file, 5 B", "docs: store full", "docs: a?: no device has it", "2 more errors",
        "900 of 1,000 files waits for 60 s", "confirm-deletions docs", "connected, syncthing v1.29", "99 %", "2.0 KiB/s", "seen 17 min ago",
        f"{OWN_ID} tried to connect from 192.0.2.9:5", "offers the folder new (New)",
    ):  # fmt: skip
        assert part in text, part
    assert "not in sync: the store does not answer" not in text  # what is missing says more
    quiet = replace(status, folders=(), in_sync=True, received_bytes=2048, store=StoreStatus("s3://b"), given_way="given way to another")
    sibling = SiblingStatus(PEER_ID, "bucket-b", True, 61.0, 9, "1.2", "192.0.2.8:22000")
    away = SiblingStatus(OWN_ID, "", False, 3.0, 8, "1.1", stopped=True)
    text = status_text(replace(quiet, siblings=(sibling, away)), 0.0)
    for part in (
        "in sync, 2.0 KiB of files received",
        "warning: given way",
        "bucket-b",
        "connected, 192.0.2.8:22000",
        "61 s ago",
        "stopped",
    ):
        assert part in text, part
    assert "no daemon is running" in status_text(replace(status, running=False), 0.0)


def test_devices_and_folders(cli: Cli, fake: FakeService) -> None:
    added = cli("device", "add", PEER_ID, "--name", "laptop", "--address", "tcp://192.0.2.1:22000")
    assert added.code == 0
    assert OWN_ID in added.out
    assert cli("device", "add", PEER_ID).code == 65
    assert f"laptop  {PEER_ID}  tcp://192.0.2.1:22000" in cli("device", "list").out
    assert json.loads(cli("device", "list", "--json").out)[0]["name"] == "laptop"
    assert cli("folder", "add", "pics", "--label", "P", "--type", "sendonly", "--device", "laptop", "--ignore", "*.tmp").code == 0
    assert "pics  P        sendonly     laptop" in cli("folder", "list").out
    assert cli("folder", "set", "pics", "--type", "receiveonly", "--remove-device", "laptop", "--no-ignore").code == 0
    assert (fake.folders["pics"].type, fake.folders["pics"].devices, fake.folders["pics"].ignore) == ("receiveonly", (), ())
    assert cli("folder", "revert", "pics").out == "reverted 0 items\n"
    assert cli("folder", "override", "pics").code == 77
    assert cli("folder", "confirm-deletions", "pics").code == 66
    assert cli("folder", "remove", "pics").code == 77  # nobody to ask
    assert cli("folder", "remove", "pics", "--yes").code == 0
    assert cli("device", "remove", "laptop").code == 0
    assert not fake.devices


def test_untrusted_devices_and_encrypted_folders(cli: Cli, fake: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, said = tmp_path / "pass=word", []
    secret.write_text("hush\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("hush from stdin\n"))

    def run(*arguments: str, code: int = 0) -> str:
        result = cli(*arguments)
        assert result.code == code, result.err
        said.append(result.out + result.err)
        return result.out

    run("device", "add", PEER_ID, "--name", "cloud", "--untrusted")
    assert f"cloud (untrusted)  {PEER_ID}" in run("device", "list")
    assert json.loads(run("device", "list", "--json"))[0]["untrusted"] is True
    assert run("folder", "add", "pics", "--encrypt-for", f"cloud={secret}") == "added pics, shared with 1 device\n"
    assert fake.passwords == {("pics", PEER_ID): "hush"}
    assert "pics           sendreceive  cloud (encrypted)" in run("folder", "list")
    [_, listed] = json.loads(run("folder", "list", "--json"))
    assert (listed["devices"], listed["encrypted_for"]) == ([PEER_ID], [PEER_ID])
    run("folder", "set", "pics", "--encrypt-for", "cloud=-")
    assert fake.passwords == {("pics", PEER_ID): "hush from stdin"}
    run("folder", "add", "vault", "--type", "receiveencrypted", "--device", "cloud")
    assert fake.folders["vault"].type == "receiveencrypted"
    secret.write_text("\n")
    run("folder", "set", "pics", "--encrypt-for", f"cloud={secret}", code=64)
    run("folder", "set", "pics", "--encrypt-for", f"cloud={tmp_path}", code=78)
    for wrong in (("cloud",), ("=f",), ("cloud=",), ("cloud=-", "--encrypt-for", "other=-")):
        run("folder", "set", "pics", "--encrypt-for", *wrong, code=64)
    assert "cloud (untrusted)" in run("status")
    assert json.loads(run("status", "--json"))["folders"][1]["encrypted_for"] == [PEER_ID]
    assert "hush" not in "".join(said)


def test_apply_asks_for_passwords_and_does_not_show_them(cli: Cli, fake: FakeService, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[[device]]\nid = "{PEER_ID}"\nname = "cloud"\nuntrusted = true\n'
        f'[[folder]]\nid = "new"\ndevices = [{{ name = "{PEER_ID}", encryption_password = "hush" }}]\n'
    )
    said = [cli("apply", "--dry-run"), cli("apply"), cli("apply")]
    assert [result.code for result in said] == [0, 0, 0]
    assert fake.devices[PEER_ID].untrusted
    assert fake.passwords == {("new", PEER_ID): "hush"}
    assert "hush" not in "".join(result.out + result.err for result in said)


def test_apply_shows_then_changes(cli: Cli, fake: FakeService, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(f'[[device]]\nid = "{PEER_ID}"\nname = "laptop"\n[[folder]]\nid = "new"\n')
    assert cli("apply", "--dry-run").out == f"+ device {PEER_ID}: laptop\n+ folder new\n"
    assert not fake.devices
    assert "applied 2 changes" in cli("apply").out
    assert list(fake.folders) == ["docs", "new"]
    assert cli("apply").out == "the store is as config.toml asks\n"
    assert cli("apply", "--prune").code == 77
    assert cli("apply", "--prune", "--yes").code == 0
    assert list(fake.folders) == ["new"]
    (home / "config.toml").write_text("")
    nothing = cli("apply", "--prune", "--yes")
    assert nothing.code == 64
    assert "names no device and no folder" in nothing.err
    assert list(fake.folders) == ["new"]


def test_other_nodes(cli: Cli) -> None:
    assert cli("node", "list").out == ""
    assert json.loads(cli("node", "list", "--json").out) == []
    assert cli("node", "remove", "gone").code == 66


def test_bucket_check(cli: Cli, fake: FakeService) -> None:
    good = cli("bucket", "check")
    assert (good.code, good.err) == (0, "")
    assert "4 packs, 5 records: 0 problems" in good.out
    fake.problems = (CheckProblem("packs/a", "its checksum is wrong", ("docs/f",)),)
    bad = cli("bucket", "check", "--read-data")
    assert bad.code == 74
    assert "packs/a: its checksum is wrong" in bad.err
    assert "lost: docs/f" in bad.err
    document = cli("bucket", "check", "--json")
    assert document.code == 74
    assert json.loads(document.out)["problems"][0]["lost"] == ["docs/f"]


def test_bucket_gc(cli: Cli) -> None:
    result = cli("bucket", "gc")
    assert "live" in result.out
    assert "deleted 2 objects" in result.out
    assert "would condemn" in cli("bucket", "gc", "--dry-run").out
    assert json.loads(cli("bucket", "gc", "--dry-run", "--json").out)["condemned_bytes"] == 512


def test_bucket_stats(cli: Cli) -> None:
    assert "commit 7" in cli("bucket", "stats").out
    assert json.loads(cli("bucket", "stats", "--json").out)["head"] == 7


def test_shutdown(cli: Cli, fake: FakeService) -> None:
    assert cli("shutdown").code == 0
    assert fake.stopped


def test_commands_without_a_home_say_init(cli: Cli) -> None:
    for arguments in (("id",), ("apply",)):
        result = cli(*arguments)
        assert result.code == 78
        assert "init" in result.err


def test_numbers_for_people() -> None:
    assert [size_text(size) for size in (0, 1023, 1536, 5 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
    assert [span_text(seconds) for seconds in (0, 119, 600, 7200, 200_000)] == ["0 s", "119 s", "10 min", "2 h", "2 d"]
    assert table([("A", "B"), ("long", "1")], right=frozenset({1})) == "A     B\nlong  1"


def test_the_template_is_a_configuration() -> None:
    env = Env(SystemClock(), SeededRandomness(1), InlineThreads())
    plain = config.parse(setup._template(setup.Asked(), env), {})
    assert len(plain.api.api_key) == 48
    asked = setup.Asked('s3://b/\u0001"p\\', "http://h:1", "r", "näme", ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"), "127.0.0.1:0")
    text = setup._template(asked, env)
    assert tomllib.loads(text)["store"]["url"] == asked.store_url
    settings = config.parse(text, {})
    assert (settings.node.name, settings.node.listen, settings.api.listen) == (asked.name, asked.listen, asked.api_listen)


def test_bucket_repair_shows_the_plan_and_does_nothing_unasked(cli: Cli, fake: FakeService, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text("")
    looked = cli("bucket", "repair", "--dry-run")
    assert looked.code == 0
    assert "commit 5 is damaged" in looked.out
    assert "--void 5" in looked.out
    assert "docs/gone" in looked.out
    assert "done" not in looked.out
    refused = cli("bucket", "repair")
    assert (refused.code, "--yes" in refused.err) == (77, True)
    done = cli("bucket", "repair", "--void", "5", "--yes")
    assert done.code == 0
    assert "done: everybody goes on from commit 8" in done.out
    assert "lost unless a device has it: docs/gone" in done.out
    assert fake.repair_wish is not None
    assert fake.repair_wish.void == 5
