"""history, restore, and --at of other commands, against a fake node."""

from __future__ import annotations

import json
from pathlib import Path

from stnode.node.service import Entry, History, ItemVersion, RestoreChange, RestoreStep
from stnode.node.status import PendingDeletions
from tests.support.fake_service import FakeService
from tests.unit.cli.conftest import Cli

NOW_US = FakeService().now_us


def entry(path: str, size: int = 5) -> Entry:
    return Entry(path, "file", size, 1)


def test_versions_of_a_file(cli: Cli, fake: FakeService) -> None:
    fake.versions["docs/f"] = History(
        (
            ItemVersion(entry("docs/f"), NOW_US, None, "bucket", deleted=True),
            ItemVersion(entry("docs/f", 1234), NOW_US - 60_000_000, NOW_US, "laptop", "bucket"),
        ),
        False,
    )
    lines = cli("history", "docs/f").out.splitlines()
    assert lines[0].split() == ["VERSION", "CHANGED", "BY", "SIZE"]
    assert lines[1].split()[0] == str(NOW_US)
    assert lines[1].endswith("deleted")
    assert "laptop" in lines[2]
    assert "1,234" in lines[2]
    assert lines[2].endswith("by bucket")
    shown = json.loads(cli("history", "--json", "docs/f").out)
    assert [(version["since_us"], version["deleted"]) for version in shown] == [(NOW_US, True), (NOW_US - 60_000_000, False)]
    assert cli("history", "docs/nothing").code == 66


def test_what_was_deleted_in_a_directory(cli: Cli, fake: FakeService) -> None:
    fake.versions["docs/d"] = History(
        (
            ItemVersion(Entry("docs/d/e", "directory"), NOW_US, None, "laptop", deleted=True),
            ItemVersion(entry("docs/d/f\x1b"), NOW_US - 9, NOW_US, "bucket", "laptop"),
        ),
        True,
    )
    fake.versions["docs"] = History((), True)
    lines = cli("history", "docs/d").out.splitlines()
    assert lines[1].endswith("e/")
    assert str(NOW_US) not in lines[1]  # nothing of it is kept
    assert str(NOW_US - 9) in lines[2]
    assert lines[2].endswith("f?")
    assert cli("history", "docs").out == "nothing that is kept was deleted here\n"


def test_restore_in_place(cli: Cli, fake: FakeService) -> None:
    fake.restore_steps = (RestoreStep(files=1, bytes=10), RestoreStep(files=2, directories=1, deleted=3, unchanged=4, bytes=2048))
    result = cli("restore", "docs", "--at", "2h", "--exact")
    assert (result.code, result.out) == (0, "")
    assert result.err == "restored 2 files (2.0 KiB), 1 directory, deleted 3 items; 4 are as they were\n"
    assert fake.restores == [("docs", NOW_US - 7200 * 1_000_000, True, False)]
    assert json.loads(cli("restore", "docs", "--at", str(NOW_US), "--json").out)["files"] == 2


def test_restore_tried_only(cli: Cli, fake: FakeService) -> None:
    changes = (RestoreChange("create", "docs/a"), RestoreChange("change", "docs/b"), RestoreChange("delete", "docs/c"))
    fake.restore_steps = (RestoreStep(files=2, deleted=1, changes=changes),)
    result = cli("restore", "docs", "--at", "1h", "--dry-run")
    assert result.out == "+ docs/a\n~ docs/b\n- docs/c\nwould restore 2 files (0 B), delete 1 item\n"
    fake.restore_steps = (
        RestoreStep(files=1, changes=changes[:1]),
        RestoreStep(files=2, deleted=1, changes=changes[1:]),
        RestoreStep(files=2),
    )
    shown = json.loads(cli("restore", "docs", "--at", "1h", "--dry-run", "--json").out)
    assert (shown["files"], [change["path"] for change in shown["changes"]]) == (2, ["docs/a", "docs/b", "docs/c"])
    assert fake.restores[0][3]


def test_what_could_not_be_restored_is_told_and_fails(cli: Cli, fake: FakeService) -> None:
    fake.restore_steps = (RestoreStep(failed=1, changes=(RestoreChange("change", "docs/a", "it has live children"),)),)
    result = cli("restore", "docs", "--at", "1h")
    assert result.code == 65
    assert "docs/a: it has live children" in result.err


def test_restore_whose_deletions_are_held_goes_on_with_yes(cli: Cli, fake: FakeService) -> None:
    fake.hold_deletions = True
    assert cli("restore", "docs", "--at", "1h", "--exact", "--yes").code == 0
    assert fake.confirmed.is_set()


def test_restore_to_a_directory(cli: Cli, fake: FakeService, tmp_path: Path) -> None:
    fake.entries["docs/d"] = Entry("docs/d", "directory", 0, 5_000_000_000, 0o755)
    fake.entries["docs/d/f"] = Entry("docs/d/f", "file", 3, 7_000_000_001, 0o640, revision="1")
    fake.contents["docs/d/f"] = b"abc"
    assert cli("restore", "docs", "--at", str(NOW_US), "--to", tmp_path / "out").code == 0
    result = cli("restore", "docs", "--at", str(NOW_US), "--to", tmp_path / "out")
    assert "1 were there already" in result.err
    found = tmp_path / "out" / "d" / "f"
    assert found.read_bytes() == b"abc"
    assert (found.stat().st_mtime_ns, found.stat().st_mode & 0o777) == (7_000_000_001, 0o640)
    assert cli("restore", "docs", "--at", "2h", "--to", tmp_path / "early").code == 66
    assert cli("restore", "docs", "--at", "1h", "--to", tmp_path, "--exact").code == 64
    assert fake.restores == []


def test_times_are_checked(cli: Cli) -> None:
    assert cli("restore", "docs").code == 64
    bad = cli("restore", "docs", "--at", "yesteryear")
    assert bad.code == 64
    assert "is no time" in bad.err
    assert "hint: write it like" in bad.err


def test_ls_and_cat_of_the_past(cli: Cli, fake: FakeService) -> None:
    fake.entries["docs/f"] = entry("docs/f")
    fake.contents["docs/f"] = b"abc"
    assert cli("ls", "docs", "--at", str(NOW_US)).out == "f\n"
    assert cli("ls", "docs", "--at", "1h").code == 66
    assert cli("cat", "docs/f", "--at", "1h").code == 66


def test_reject_deletions(cli: Cli, fake: FakeService) -> None:
    assert cli("folder", "reject-deletions", "docs").code == 66
    fake.pending = PendingDeletions(1500, 2000, 1.0)
    result = cli("folder", "reject-deletions", "docs")
    assert result.out == "kept 1,500 files\n"
    assert fake.rejected
