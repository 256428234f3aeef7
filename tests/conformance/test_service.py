"""One suite for everything that is a `Service`: the fake, the node in this process, and the daemon over HTTP."""

from __future__ import annotations

import asyncio
import os
import re
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from stnode import config
from stnode.clock import system_env
from stnode.config import ApiSection
from stnode.errors import Conflict, Invalid, NotFound, Refused, StnodeError
from stnode.frontends.api import ApiServer
from stnode.frontends.api.page import status_page
from stnode.frontends.cli.node import status_text
from stnode.node import setup, wire
from stnode.node.home import Home
from stnode.node.node import Node
from stnode.node.operations import NodeService
from stnode.node.remote import RemoteService
from stnode.node.service import DevicePassword, DeviceSettings, Entry, FolderChange, FolderSettings, NewFile, Service
from tests.support.fake_service import PEER_ID, FakeService

STATE_FILES = {("state", name) for name in ("state.db", "state.db-wal", "state.db-shm")}


@asynccontextmanager
async def over_http(service: Service) -> AsyncIterator[Service]:
    """The service as a client of its API sees it."""
    server = ApiServer(service, ApiSection(listen="127.0.0.1:0", api_key="key"))
    remote = RemoteService(await server.start(), "key")
    try:
        yield remote
    finally:
        await remote.close()
        await server.stop()


@asynccontextmanager
async def of_a_node(path: Path) -> AsyncIterator[Service]:
    """A node on an embedded store of its own, opened as commands open it."""
    env = system_env()
    try:
        await setup.initialise(Home(path), setup.Asked(name="test"), env, {})
        node = await Node.open(path, config.load(path / "config.toml", {}), env)
        try:
            service = NodeService(node, path)
            await service.folder_add(FolderSettings("docs", label="My docs"))
            yield service
        finally:
            await node.stop()
    finally:
        env.close()


@pytest.fixture(params=["fake", "fake over HTTP", "node", "node over HTTP"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    async with AsyncExitStack() as stack:
        made: Service = FakeService()
        if request.param.startswith("node"):
            made = await stack.enter_async_context(of_a_node(tmp_path / "home"))
        if request.param.endswith("over HTTP"):
            made = await stack.enter_async_context(over_http(made))
        yield made


async def test_patterns_of_the_folders_own_files(tmp_path: Path) -> None:
    """What `#include` names is read when the settings are made; all nodes then go by the same lines."""
    async with of_a_node(tmp_path / "home") as service:
        await service.write("docs/lists/ignored", pieces(b"*.tmp\n#include more\n"))
        await service.write("docs/lists/more", pieces(b"/build\n"))
        lines = ("keep", "#include lists/ignored")
        assert (await service.folder_set("My docs", FolderChange(ignore=lines))).ignore == ("keep", "*.tmp", "/build")
        wish = FolderSettings("docs", label="My docs", ignore=lines)
        assert await service.settings_plan((), (wish,), False) == ()
        await service.write("docs/lists/more", pieces(b"/dist\n"))
        [change] = await service.settings_apply((), (wish,), False)
        assert "/dist" in change.detail
        assert (await service.folder_list())[0].ignore == ("keep", "*.tmp", "/dist")
        for refused in ("#include nowhere", "#include lists", "#include ../out"):
            with pytest.raises(Invalid):
                await service.folder_set("docs", FolderChange(ignore=(refused,)))
        await service.write("docs/large", pieces(bytes(2**20 + 1)))
        with pytest.raises(Invalid, match="too large"):
            await service.folder_set("docs", FolderChange(ignore=("#include large",)))
        with pytest.raises(Invalid, match="not there"):
            await service.folder_add(FolderSettings("new", ignore=("#include large",)))


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def content(service: Service, path: str, offset: int = 0, length: int | None = None, revision: str = "") -> bytes:
    return b"".join([piece async for piece in service.read(path, offset, length, revision)])


async def paths(service: Service, path: str, recursive: bool = False) -> list[str]:
    found: list[Entry] = []
    after: str | None = None
    while True:
        page = await service.ls(path, recursive, after)
        found += page.entries
        if page.next is None:
            return [entry.path for entry in found]
        after = page.next


async def test_nodes_that_are_not_there_cannot_be_removed(service: Service) -> None:
    status = await service.status()
    assert status.siblings == ()
    for name in ("nobody", status.device_id):
        with pytest.raises(NotFound, match="no other node"):
            await service.node_remove(name)


async def test_what_is_written_is_read(service: Service) -> None:
    data = os.urandom(700_000)
    written = await service.write("docs/a/b.bin", pieces(data[:300], data[300:]), len(data), 1_700_000_000_123_456_789, 0o640)
    assert (written.path, written.type, written.size) == ("docs/a/b.bin", "file", len(data))
    assert await service.stat("docs/a/b.bin") == written
    assert (written.modified_ns, written.permissions) == (1_700_000_000_123_456_789, 0o640)
    assert await content(service, "docs/a/b.bin") == data
    assert await content(service, "My docs/a/b.bin", 299_990, 20) == data[299_990:300_010]
    assert await content(service, "docs/a/b.bin", len(data)) == b""
    assert await content(service, "docs/a/b.bin", revision=written.revision) == data


async def test_only_encrypted_folders_have_something_sealed(service: Service) -> None:
    await service.folder_add(FolderSettings("vault", type="receiveencrypted"))
    page = await service.sealed("vault")
    assert (page.folder, page.token, page.items, page.next) == ("vault", b"", (), None)
    for path in ("docs", "docs/a"):
        with pytest.raises(Invalid, match="not encrypted"):
            await service.sealed(path)
    with pytest.raises(NotFound):
        await service.sealed("nothing")


async def test_an_empty_file(service: Service) -> None:
    assert (await service.write("docs/empty", pieces())).size == 0
    assert await content(service, "docs/empty") == b""


async def test_a_failed_write_changes_nothing(service: Service) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * 200_000
        raise Invalid("the source broke")

    await service.write("docs/f", pieces(b"before"))
    with pytest.raises(Invalid, match="the source broke"):
        await service.write("docs/f", breaks())
    with pytest.raises(StnodeError):
        await service.write("docs/f", pieces(b"short"), size=100)
    assert await content(service, "docs/f") == b"before"


async def test_read_of_another_revision_is_a_conflict(service: Service) -> None:
    first = await service.write("docs/f", pieces(b"1"))
    second = await service.write("docs/f", pieces(b"2"))
    assert first.revision != second.revision
    with pytest.raises(Conflict):
        await content(service, "docs/f", revision=first.revision)


async def test_missing_things_are_not_found(service: Service) -> None:
    for call in (
        service.stat("docs/none"),
        service.stat("none/x"),
        service.rm("docs/none"),
        service.ls("docs/none"),
        content(service, "docs/none"),
    ):
        with pytest.raises(NotFound):
            await call


async def test_a_directory_is_no_file(service: Service) -> None:
    await service.mkdir("docs/d")
    with pytest.raises(Invalid):
        await content(service, "docs/d")
    await service.write("docs/d/f", pieces(b"x"))
    with pytest.raises(Conflict):
        await service.write("docs/d", pieces(b"x"))


async def test_listing(service: Service) -> None:
    await service.mkdir("docs/d/e", parents=True, permissions=0o700)
    await service.write("docs/d/f", pieces(b"x"))
    await service.write("docs/top", pieces(b"x"))
    await service.symlink("docs/link", "d/f")
    assert await paths(service, "") == ["docs"]
    assert await paths(service, "docs") == ["docs/d", "docs/link", "docs/top"]
    assert await paths(service, "docs", recursive=True) == ["docs/d", "docs/d/e", "docs/d/f", "docs/link", "docs/top"]
    assert await paths(service, "docs/d/") == ["docs/d/e", "docs/d/f"]
    assert await paths(service, "docs/top") == ["docs/top"]
    assert (await service.stat("docs/d/e")).permissions == 0o700
    assert (await service.stat("docs/link")).target == "d/f"
    assert (await service.stat("docs")).type == "directory"


async def test_mkdir(service: Service) -> None:
    with pytest.raises(NotFound):
        await service.mkdir("docs/a/b")
    await service.mkdir("docs/a/b", parents=True)
    await service.mkdir("docs/a/b", parents=True)
    with pytest.raises(Conflict):
        await service.mkdir("docs/a/b")


async def test_rm(service: Service) -> None:
    await service.write("docs/d/f", pieces(b"x"))
    with pytest.raises(Conflict):
        await service.rm("docs/d")
    assert await service.rm("docs/d", recursive=True) == 2
    assert await paths(service, "docs", recursive=True) == []
    with pytest.raises(Invalid):
        await service.rm("docs", recursive=True)


async def test_mv(service: Service) -> None:
    await service.write("docs/d/f", pieces(b"x"))
    assert (await service.mv("docs/d", "docs/new")).path == "docs/new"
    assert await paths(service, "docs", recursive=True) == ["docs/new", "docs/new/f"]
    assert await content(service, "docs/new/f") == b"x"
    await service.write("docs/other", pieces(b"y"))
    with pytest.raises(Conflict):
        await service.mv("docs/other", "docs/new/f")


async def test_many_small_files_in_one_go(service: Service) -> None:
    files = [NewFile(f"docs/d{number % 3}/{number}", b"%d" % number * number, number + 1, 0o600) for number in range(300)]
    await service.write_many(files)
    assert len(await paths(service, "docs", recursive=True)) == 303
    assert await content(service, "docs/d0/123") == b"123" * 123
    found = await service.stat("docs/d1/1")
    assert (found.modified_ns, found.permissions) == (2, 0o600)
    with pytest.raises(Conflict):
        await service.write_many([NewFile("docs/x", b""), NewFile("docs/d1", b"")])


async def test_many_writes_side_by_side(service: Service) -> None:
    await asyncio.gather(*(service.write(f"docs/{number}", pieces(b"%d" % number), modified_ns=number + 1) for number in range(200)))
    assert len(await paths(service, "docs")) == 200
    assert await content(service, "docs/123") == b"123"


async def test_devices_and_folders(service: Service) -> None:
    device = await service.device_add(DeviceSettings(PEER_ID, "laptop", ("tcp://192.0.2.1:22000",)))
    assert await service.device_list() == (device,)
    with pytest.raises(Conflict):
        await service.device_add(device)
    with pytest.raises(Invalid):
        await service.device_add(DeviceSettings(PEER_ID[:-1] + "3"))
    folder = await service.folder_add(FolderSettings("pics", "Pictures", "sendonly", ("laptop",), ("*.tmp",)))
    assert folder.devices == (PEER_ID,)
    changed = await service.folder_set("pics", FolderChange(label="P", type="receiveonly", remove_devices=("laptop",), history="7d"))
    assert changed == FolderSettings("pics", "P", "receiveonly", (), ("*.tmp",), history="7d")
    changed = await service.folder_set("pics", FolderChange(history="simple:3", history_floor="1d", delete_guard="0.25"))
    assert (changed.history, changed.history_floor, changed.delete_guard) == ("simple:3", "1d", "0.25")
    changed = await service.folder_set("pics", FolderChange(history_floor="", delete_guard="off"))
    assert (changed.history, changed.history_floor, changed.delete_guard) == ("simple:3", "", "off")
    assert changed in await service.folder_list()
    assert [f.id for f in (await service.status()).folders] == ["docs", "pics"]
    await service.folder_remove("pics")
    assert [f.id for f in await service.folder_list()] == ["docs"]
    await service.device_remove("laptop")
    with pytest.raises(NotFound):
        await service.device_remove("laptop")


async def test_a_device_gets_a_folder_encrypted(service: Service) -> None:
    """Who does is shown, the password nowhere."""
    said: list[object] = [await service.device_add(DeviceSettings(PEER_ID, "cloud", untrusted=True))]
    assert (await service.device_list())[0].untrusted
    folder = FolderSettings("pics", passwords=(DevicePassword("cloud", "hush"),))
    made = await service.folder_add(folder)
    assert (made.devices, made.encrypted_for, made.passwords) == ((PEER_ID,), (PEER_ID,), ())
    changed = await service.folder_set("pics", FolderChange(label="P", passwords=(DevicePassword(PEER_ID, "hush, hush"),)))
    assert (changed.label, changed.devices, changed.encrypted_for) == ("P", (PEER_ID,), (PEER_ID,))
    said += [made, changed, await service.folder_list(), status := await service.status()]
    assert status.devices[0].untrusted
    assert [f.encrypted_for for f in status.folders] == [(), (PEER_ID,)]
    wish = FolderSettings("more", devices=("cloud",), passwords=(DevicePassword("cloud", "hush"),))
    devices = (DeviceSettings(PEER_ID, "cloud", untrusted=True),)
    said += [await service.settings_plan(devices, (wish,), False), await service.settings_apply(devices, (wish,), False)]
    assert await service.settings_plan(devices, (wish,), False) == ()
    assert "hush" not in repr(said) + str([wire.to_json(value, secrets=True) for value in said])
    assert (await service.folder_set("more", FolderChange(remove_devices=("cloud",)))).encrypted_for == ()


async def test_a_receive_encrypted_folder(service: Service) -> None:
    made = await service.folder_add(FolderSettings("vault", type="receiveencrypted", history="7d"))
    assert (made.type, made.history) == ("receiveencrypted", "7d")
    assert made in await service.folder_list()
    with pytest.raises(Refused):
        await service.folder_override("vault")
    assert [f.type for f in (await service.status()).folders] == ["sendreceive", "receiveencrypted"]


async def test_passwords_are_kept_in_the_journal_and_told_to_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every way out of a node on an embedded store, its mistakes included; what waits says so."""
    caplog.set_level(0)
    said: list[object] = []
    async with of_a_node(tmp_path / "home") as service, over_http(service) as remote:
        assert isinstance(service, NodeService)
        await remote.device_add(DeviceSettings(PEER_ID, "cloud", untrusted=True))
        said.append(await remote.folder_add(FolderSettings("pics", passwords=(DevicePassword("cloud", "hush-1"),))))
        said.append(await remote.folder_set("pics", FolderChange(passwords=(DevicePassword("cloud", "hush-2"),))))
        said.append(await remote.folder_add(FolderSettings("vault", type="receiveencrypted", devices=("cloud",))))
        attempts: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: remote.folder_add(FolderSettings("pics", passwords=(DevicePassword("cloud", "hush-3"),))),
            lambda: remote.folder_set("vault", FolderChange(passwords=(DevicePassword("cloud", "hush-4"),))),
            lambda: remote.folder_set("vault", FolderChange(type="sendonly", passwords=(DevicePassword("cloud", "hush-5"),))),
            lambda: remote.folder_set("docs", FolderChange(add_devices=("cloud",))),
            lambda: remote.folder_set("pics", FolderChange(passwords=(DevicePassword("cloud", ""),))),
            lambda: remote.folder_set("pics", FolderChange(passwords=(DevicePassword("nobody", "hush-6"),))),
        )
        for attempt in attempts:
            with pytest.raises(StnodeError) as caught:
                await attempt()
            said += [str(caught.value), caught.value.hint, "".join(traceback.format_exception(caught.value))]
        wishes = (FolderSettings("pics", passwords=(DevicePassword("cloud", "hush-7"),)),)
        said += [planned := await remote.settings_plan((), wishes, False), await remote.settings_apply((), wishes, False)]
        assert planned[0].detail == "password of cloud changed"
        status = await remote.status()
        assert [(f.id, f.state, f.reason) for f in status.folders if f.reason] == [
            ("vault", "waiting", "waits for a device that has its password")
        ]
        assert not status.in_sync
        said += [status, status_page(status), status_text(status, 0), await service.metrics(), await remote.bucket_stats()]
    assert not re.search(r"hush-\d", "".join(map(str, said)) + repr(said) + caplog.text + "".join(capfd.readouterr()))
    kept = {
        file.relative_to(tmp_path).parts[1:3]
        for file in (tmp_path / "home").rglob("*")
        if file.is_file() and re.search(rb"hush-\d", file.read_bytes())
    }
    assert kept <= {("store", "journal"), ("store", "bodies"), ("store", "checkpoint"), ("store", "runs"), *STATE_FILES}
    assert ("store", "journal") in kept or ("store", "bodies") in kept


async def test_override_and_revert_want_their_type_of_folder(service: Service) -> None:
    with pytest.raises(Refused):
        await service.folder_override("docs")
    with pytest.raises(Refused):
        await service.folder_revert("docs")
    with pytest.raises(NotFound):
        await service.confirm_deletions("docs")
    with pytest.raises(NotFound):
        await service.reject_deletions("docs")


async def test_wished_settings_are_planned_then_applied(service: Service) -> None:
    devices, folders = (DeviceSettings(PEER_ID, "laptop"),), (FolderSettings("new", devices=(PEER_ID,)),)
    planned = await service.settings_plan(devices, folders, False)
    assert [(c.action, c.kind, c.id) for c in planned] == [("add", "device", PEER_ID), ("add", "folder", "new")]
    assert [f.id for f in await service.folder_list()] == ["docs"]
    assert await service.settings_apply(devices, folders, False) == planned
    assert await service.settings_plan(devices, folders, False) == ()
    removed = await service.settings_apply(devices, folders, True)
    assert [(c.action, c.id) for c in removed] == [("remove", "docs")]


async def test_check_ends_with_a_report(service: Service) -> None:
    steps = [step async for step in service.bucket_check()]
    assert [step.report is None for step in steps[:-1]] == [True] * (len(steps) - 1)
    report = steps[-1].report
    assert report is not None
    assert report.problems == ()


async def test_stats_and_id(service: Service) -> None:
    assert len(await service.id()) == 63
    assert (await service.status()).device_id == await service.id()
    assert (await service.bucket_stats()).url
    found = await service.bucket_gc(dry_run=True)
    assert (found.dry_run, found.problems) == (True, ())
    assert not (await service.bucket_gc()).dry_run


@pytest.mark.parametrize(
    "change",
    [FolderChange(history="30 days"), FolderChange(history_floor="long"), FolderChange(delete_guard="0"), FolderChange(delete_guard="2")],
)
async def test_settings_that_mean_nothing_are_refused(tmp_path: Path, change: FolderChange) -> None:
    async with of_a_node(tmp_path / "home") as service:
        before = await service.folder_list()
        with pytest.raises(Invalid, match="is no"):
            await service.folder_set("docs", change)
        assert await service.folder_list() == before


@pytest.mark.parametrize("http", [False, True])
async def test_the_past_is_listed_read_and_restored(tmp_path: Path, http: bool) -> None:
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(of_a_node(tmp_path / "home"))
        if http:
            service = await stack.enter_async_context(over_http(service))
        await service.write("docs/d/f", pieces(b"first"), modified_ns=1_000_000_000)
        await service.write("docs/d/f", pieces(b"second"))
        await service.write("docs/d/new", pieces(b"new"))
        present, first = (await service.history("docs/d/f")).versions
        assert (present.entry.size, present.until_us, present.changed_by) == (6, None, "test")
        assert (first.entry.size, first.ended_by, first.deleted) == (5, "test", False)
        at = str(first.since_us)
        assert [entry.path for entry in (await service.ls("docs", True, at=at)).entries] == ["docs/d", "docs/d/f"]
        assert (await service.stat("docs/d/f", at)).modified_ns == 1_000_000_000
        assert b"".join([piece async for piece in service.read("docs/d/f", at=at)]) == b"first"
        with pytest.raises(NotFound):
            await service.stat("docs/d/new", at)
        planned = [step async for step in service.restore("docs", at, True, True)]
        changes = [(change.action, change.path) for step in planned for change in step.changes]
        assert changes == [("delete", "docs/d/new"), ("change", "docs/d/f")]
        assert await content(service, "docs/d/f") == b"second"
        done = [step async for step in service.restore("docs", at)][-1]
        assert (done.files, done.deleted, done.failed) == (1, 0, 0)
        assert await content(service, "docs/d/f") == b"first"
        assert await paths(service, "docs", recursive=True) == ["docs/d", "docs/d/f", "docs/d/new"]
        await service.rm("docs/d", recursive=True)
        gone = await service.history("docs", True)
        assert [(each.entry.path, each.ended_by) for each in gone.versions] == [(f"docs/{name}", "test") for name in ("d", "d/f", "d/new")]
        assert gone.directory
        with pytest.raises(NotFound):
            _ = [step async for step in service.restore("docs/nothing", at)]
        with pytest.raises(Invalid):
            _ = [step async for step in service.restore("docs", "someday")]
        with pytest.raises(NotFound):
            await service.history("docs/nothing")
