"""What is special to HTTP: who may ask, what errors look like, plain reads, the page."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import aiohttp
import pytest

from stnode.config import ApiSection
from stnode.errors import ConfigError, Invalid, NotFound, Refused, StnodeError, Unavailable
from stnode.frontends.api import ApiServer
from stnode.node import wire
from stnode.node.remote import RemoteService
from stnode.node.service import DevicePassword, DeviceSettings, Entry, FolderSettings
from stnode.node.status import NodeStatus
from tests.support.fake_service import FakeService


async def metrics() -> bytes:
    return b"stnode_journal_head 7.0\n"


@pytest.fixture
def fake() -> FakeService:
    return FakeService()


@pytest.fixture
async def url(fake: FakeService) -> AsyncIterator[str]:
    server = ApiServer(fake, ApiSection(listen="127.0.0.1:0", api_key="key"), metrics)
    yield await server.start()
    await server.stop()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.mark.parametrize(
    "headers",
    [{"X-API-Key": "key"}, {"Authorization": "Bearer key"}, {"Authorization": aiohttp.encode_basic_auth("anyone", "key")}],
    ids=["header", "bearer", "basic"],
)
async def test_the_key_opens(url: str, http: aiohttp.ClientSession, headers: dict[str, str]) -> None:
    async with http.get(f"{url}/api/status", headers=headers) as answer:
        assert answer.status == 200
        assert wire.from_json(NodeStatus, await answer.json()).name == "fake"


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "kez"}, {"Authorization": "Basic !"}, {"X-API-Key": "ké"}])
async def test_without_it_nothing_opens(url: str, http: aiohttp.ClientSession, headers: dict[str, str]) -> None:
    for path in ("/api/status", "/api/read?path=docs/a", "/none"):
        async with http.get(f"{url}{path}", headers=headers) as answer:
            assert answer.status == 401
            assert "api_key" in (await answer.json())["hint"]


async def test_probes_metrics_and_page_are_open_on_loopback(url: str, http: aiohttp.ClientSession, fake: FakeService) -> None:
    fake.folders["x"] = FolderSettings("x", label="<script>")
    async with http.get(f"{url}/health") as answer:
        assert answer.status == 200
    async with http.get(f"{url}/metrics") as answer:
        assert "stnode_journal_head" in await answer.text()
    async with http.get(f"{url}/") as answer:
        page = await answer.text()
        assert "My docs" in page
        assert "<script>" not in page


async def test_only_health_is_open_elsewhere(fake: FakeService, http: aiohttp.ClientSession) -> None:
    server = ApiServer(fake, ApiSection(listen="0.0.0.0:0", api_key="key"))
    url = await server.start()
    for path, status in (("/health", 200), ("/", 401), ("/metrics", 401)):
        async with http.get(f"{url}{path}", headers={"Host": "node.example.org"}) as answer:
            assert answer.status == status
    await server.stop()


@pytest.mark.parametrize(("host", "status"), [("evil.example.org", 403), ("localhost:8384", 200), ("[::1]:1", 200), ("127.0.0.1", 200)])
async def test_host_is_checked_on_loopback(url: str, http: aiohttp.ClientSession, host: str, status: int) -> None:
    async with http.get(f"{url}/health", headers={"Host": host}) as answer:
        assert answer.status == status


async def test_mistakes_of_the_client_are_invalid(url: str, http: aiohttp.ClientSession) -> None:
    headers = {"X-API-Key": "key"}
    for verb, data in (("stat", "{}"), ("stat", "["), ("stat", '{"path": 1}'), ("stat", '{"path": "a", "b": 1}'), ("rm", "[]")):
        async with http.post(f"{url}/api/{verb}", data=data, headers=headers) as answer:
            assert answer.status == 400, await answer.text()
    async with http.get(f"{url}/api/rm?path=docs/a", headers=headers) as answer:
        assert answer.status == 400
    for verb in ("close", "__class__", "none"):
        async with http.post(f"{url}/api/{verb}", headers=headers) as answer:
            assert answer.status == 404


async def test_plain_read_and_ls_by_get(url: str, http: aiohttp.ClientSession, fake: FakeService) -> None:
    fake.entries["docs/a b"] = Entry("docs/a b", "file", 3)
    fake.contents["docs/a b"] = b"abc"
    headers = {"X-API-Key": "key"}
    async with http.get(f"{url}/api/read", params={"path": "docs/a b", "offset": "1"}, headers=headers) as answer:
        assert await answer.read() == b"bc"
    async with http.get(f"{url}/api/ls", params={"path": "docs", "recursive": "true"}, headers=headers) as answer:
        assert [entry["path"] for entry in (await answer.json())["entries"]] == ["docs/a b"]
    async with http.get(f"{url}/api/read", params={"path": "docs/none"}, headers=headers) as answer:
        assert answer.status == 404


async def test_an_error_in_the_middle_of_a_read_arrives_whole(url: str, http: aiohttp.ClientSession, fake: FakeService) -> None:
    fake.entries["docs/a"] = Entry("docs/a", "file", 300_000)
    fake.contents["docs/a"] = bytes(300_000)
    fake.fail_read_after = 2
    remote = RemoteService(url, "key")
    pieces = remote.read("docs/a")
    got = len(await anext(pieces)) + len(await anext(pieces))
    with pytest.raises(NotFound, match="pack is gone") as caught:
        await anext(pieces)
    assert got == 200_000
    assert "bucket check" in caught.value.hint
    await remote.close()
    with pytest.raises(aiohttp.ClientError):
        async with http.get(f"{url}/api/read?path=docs/a", headers={"X-API-Key": "key"}) as answer:
            await answer.read()


async def test_a_client_that_leaves_in_the_middle_of_a_write_changes_nothing(
    url: str, fake: FakeService, eventually: Callable[..., Awaitable[object]]
) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"PUT /api/write?path=docs/f HTTP/1.1\r\nHost: localhost\r\nX-API-Key: key\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        await eventually(lambda: fake.begun_writes == 1)
    await eventually(lambda: fake.broken_writes == 1)
    assert not fake.entries


async def test_a_taken_port_is_named(url: str, fake: FakeService) -> None:
    port = int(url.rpartition(":")[2])
    with pytest.raises(Refused, match=str(port)) as caught:
        await ApiServer(fake, ApiSection(listen=f"127.0.0.1:{port}", api_key="key")).start()
    assert "[api] listen" in caught.value.hint


async def test_no_key_no_server(fake: FakeService) -> None:
    with pytest.raises(Refused):
        await ApiServer(fake, ApiSection(listen="127.0.0.1:0")).start()


async def test_no_daemon_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        remote = RemoteService(f"http://127.0.0.1:{taken.getsockname()[1]}", "key")
        with pytest.raises(Unavailable):
            await remote.id()
        await remote.close()


@pytest.mark.expects_log("the API failed")
async def test_a_bug_is_reported_as_one(url: str, fake: FakeService) -> None:
    async def broken(path: str, at: str = "") -> Entry:
        raise RuntimeError(path)

    fake.stat = broken  # type: ignore[method-assign]
    remote = RemoteService(url, "key")
    with pytest.raises(StnodeError) as caught:
        await remote.stat("docs")
    assert caught.value.exit_code == 70
    await remote.close()


def test_errors_travel_as_their_class() -> None:
    for error in (ConfigError("m", hint="h"), Invalid("m"), Unavailable("m"), NotFound("m", hint="h")):
        back = wire.error_from_json(wire.error_to_json(error))
        assert (type(back), back.message, back.hint) == (type(error), error.message, error.hint)
    assert isinstance(wire.error_from_json({"message": "from a newer daemon", "kind": "new"}), StnodeError)
    assert isinstance(wire.error_from_json("<html>"), Unavailable)


def test_unknown_fields_are_ignored_missing_ones_are_not() -> None:
    assert wire.from_json(Entry, {"path": "a", "type": "file", "new": 1}) == Entry("a", "file")
    with pytest.raises(Invalid):
        wire.from_json(Entry, {"path": "a"})
    with pytest.raises(Invalid):
        wire.from_json(Entry, {"path": "a", "type": "socket"})
    with pytest.raises(Invalid):
        wire.from_json(Entry, {"path": "a", "type": "file", "size": "1"})
    entry = Entry("a", "file", permissions=0o644)
    assert wire.from_json(Entry, wire.to_json(entry)) == entry
    assert wire.from_json(Entry, wire.to_json(replace(entry, permissions=None))).permissions is None


def test_secrets_travel_with_arguments_only() -> None:
    folder = FolderSettings("docs", passwords=(DevicePassword("cloud", "hush"),))
    assert wire.from_json(FolderSettings, wire.to_json(folder, secrets=True)) == folder
    assert "hush" not in str(wire.to_json(folder))
    assert "passwords" not in str(wire.to_json(folder))


@pytest.mark.parametrize(
    "folder",
    [
        {"passwords": "hush"},
        {"passwords": {"cloud": "hush"}},
        {"passwords": ["hush"]},
        {"passwords": [{"device": "cloud", "password": ["hush"]}]},
        {"passwords": [{"device": ["hush"], "password": ""}]},
        {"passwords": [{"password": "hush"}]},
        "hush",
        ["hush"],
        {"devices": ["laptop", {"name": "cloud", "password": "hush"}]},
        {"encrypted_for": {"cloud": "hush"}},
    ],
)
async def test_what_does_not_fit_is_not_repeated(url: str, http: aiohttp.ClientSession, folder: object) -> None:
    asked = {"folder": {"id": "new", **folder} if isinstance(folder, dict) else folder}
    async with http.post(f"{url}/api/folder_add", json=asked, headers={"X-API-Key": "key"}) as answer:
        text = await answer.text()
        assert (answer.status, "folder" in text, "hush" in text) == (400, True, False), text


async def test_answers_and_page_have_no_password(url: str, http: aiohttp.ClientSession, fake: FakeService) -> None:
    fake.devices["P"] = DeviceSettings("P", "cloud", untrusted=True)
    headers = {"X-API-Key": "key"}
    asked = {"folder": {"id": "new", "passwords": [{"device": "cloud", "password": "hush"}]}}
    async with http.post(f"{url}/api/folder_add", json=asked, headers=headers) as answer:
        assert (await answer.json())["encrypted_for"] == ["P"]
    assert fake.passwords == {("new", "P"): "hush"}
    fake.folders["new"] = replace(fake.folders["new"], passwords=(DevicePassword("cloud", "hush"),))  # what no service does
    for path, part in (("api/folder_list", '"encrypted_for": ["P"]'), ("api/status", '"untrusted": true'), ("", "cloud (untrusted)")):
        async with http.get(f"{url}/{path}", headers=headers) as answer:
            text = await answer.text()
            assert (answer.status, "hush" in text, part in text) == (200, False, True)
