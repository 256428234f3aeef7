"""The S3 backend against servers that refuse, lie, hang up or fall silent: one attempt each, and the right kind of error."""

from __future__ import annotations

import asyncio
import hashlib
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from stnode.clock import Env, system_env
from stnode.errors import Archived, ConfigError, Full, Invalid, NotFound, Refused, StnodeError, Unavailable, UnknownOutcome
from stnode.objectstore.base import Exists, IfMatch, Key, Mode
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.s3 import S3Store
from tests.support.ports import free_port
from tests.unit.objectstore.scripted import Handler, Received, ScriptedServer, scripted

KEY = Key("journal/j/1")


@pytest.fixture
def env() -> Iterator[Env]:
    env = system_env()
    yield env
    env.close()


@asynccontextmanager
async def against(handler: Handler, env: Env, read_timeout_s: float = 5.0) -> AsyncIterator[tuple[S3Store, ScriptedServer]]:
    async with scripted(handler) as server:
        store = S3Store("s3://bucket/pre/fix", server.options(read_timeout_s), env)
        try:
            yield store, server
        finally:
            await store.close()


def answering(status: int, code: str = "", **headers: str) -> Handler:
    """Every request gets this refusal."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>so it is</Message></Error>".encode() if code else b""

    async def handle(received: Received) -> bool:
        await received.read_body()
        received.answer(status, body, None, **headers)
        return True

    return handle


CREATE = "create"
CALLS: dict[str, Callable[[S3Store], object]] = {
    "get": lambda store: store.get(KEY),
    "put": lambda store: store.put(KEY, [b"data"]),
    CREATE: lambda store: store.put(KEY, [b"data"], Mode.CREATE),
    "delete": lambda store: store.delete(KEY),
}


@pytest.mark.parametrize(
    ("call", "status", "code", "kind", "said"),
    [
        ("get", 404, "NoSuchKey", NotFound, "journal/j/1 does not exist"),
        ("get", 404, "NoSuchBucket", Refused, "no bucket 'bucket' at http://127"),
        ("put", 404, "NoSuchBucket", Refused, "no bucket"),
        ("get", 403, "InvalidObjectState", Archived, "archived"),
        ("get", 403, "AccessDenied", Refused, "AccessDenied"),
        ("get", 403, "RequestTimeTooSkewed", Refused, "Skewed"),
        ("get", 403, "ExpiredToken", Refused, "ExpiredToken"),
        ("get", 416, "InvalidRange", Invalid, "InvalidRange"),
        ("get", 500, "InternalError", Unavailable, "InternalError"),
        ("get", 503, "SlowDown", Unavailable, "SlowDown"),
        ("get", 429, "", Unavailable, "429"),
        ("get", 409, "OperationAborted", Unavailable, "409"),
        ("put", 503, "SlowDown", Unavailable, "SlowDown"),
        ("put", 500, "InternalError", UnknownOutcome, "InternalError"),
        ("put", 503, "", UnknownOutcome, "503"),
        ("put", 400, "BadDigest", Unavailable, "BadDigest"),
        ("put", 400, "EntityTooLarge", Invalid, "EntityTooLarge"),
        ("put", 507, "", Full, "507"),
        ("put", 403, "QuotaExceeded", Full, "QuotaExceeded"),
        ("delete", 502, "", UnknownOutcome, "502"),
        (CREATE, 412, "PreconditionFailed", Exists, "exists"),
        (CREATE, 409, "ConditionalRequestConflict", UnknownOutcome, "409"),
        (CREATE, 501, "NotImplemented", Refused, "NotImplemented"),
        (CREATE, 500, "InternalError", UnknownOutcome, "InternalError"),
        (CREATE, 504, "", UnknownOutcome, "504"),
        (CREATE, 503, "SlowDown", Unavailable, "SlowDown"),
    ],
)
async def test_what_a_refusal_means(env: Env, call: str, status: int, code: str, kind: type[StnodeError], said: str) -> None:
    async with against(answering(status, code), env) as (store, server):
        with pytest.raises(StnodeError, match=said) as raised:
            await CALLS[call](store)  # type: ignore[misc]
        assert type(raised.value) is kind
        assert len(server.requests) == 1
        if kind is Refused and status == 403:
            assert raised.value.hint


async def test_retry_after_is_passed_on(env: Env) -> None:
    async with against(answering(503, "SlowDown", Retry_After="7"), env) as (store, _):
        with pytest.raises(Unavailable) as raised:
            await store.put(KEY, [b"x"])
        assert raised.value.retry_after_s == 7


async def test_a_missing_object_cannot_match(env: Env) -> None:
    async with against(answering(404, "NoSuchKey"), env) as (store, _):
        with pytest.raises(Exists):
            await store.put(KEY, [b"x"], IfMatch('"e"'))


async def test_what_a_create_sends(env: Env) -> None:
    async def handle(received: Received) -> bool:
        await received.read_body()
        received.answer(200, ETag='"e"')
        return True

    async with against(handle, env) as (store, server):
        result = await store.put(KEY, [b"da", memoryview(b"ta")], Mode.CREATE)
        large = [os.urandom(700_000), os.urandom(700_000)]
        await store.put(Key("packs/x"), large)
        first, second = server.requests
    assert (result.etag, result.date_ns) == ('"e"', 1795248000 * 10**9)
    assert (first.method, first.path, first.body) == ("PUT", "/bucket/pre/fix/journal/j/1", b"data")
    assert first.headers["if-none-match"] == "*"
    assert first.headers["content-md5"] == b64encode(hashlib.md5(b"data").digest()).decode()
    assert first.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert second.body == b"".join(large)
    unwanted = {"expect", "content-md5", "transfer-encoding", "x-amz-checksum-crc32", "if-none-match", "content-encoding"}
    assert not unwanted & second.headers.keys()


@pytest.mark.parametrize("after", ["headers", "body"])
@pytest.mark.parametrize("call", ["get", "put", CREATE, "delete"])
async def test_a_dead_kept_alive_connection_does_not_double_a_request(env: Env, after: str, call: str) -> None:
    """aiohttp sends an idempotent request again by itself; a create would then be refused by its own first sending (R24)."""

    async def handle(received: Received) -> bool:
        if received.method == "HEAD":
            received.answer(200, ETag='"e"', Last_Modified="Sat, 21 Nov 2026 08:00:00 GMT")
            return True
        if after == "body":
            await received.read_body()
        return False

    async with against(handle, env) as (store, server):
        await store.head(KEY)  # the connection is kept alive
        with pytest.raises(Unavailable) as raised:
            await CALLS[call](store)  # type: ignore[misc]
        assert isinstance(raised.value, UnknownOutcome) == (call != "get")
        assert len(server.requests) == 2
        assert server.requests[0].writer is server.requests[1].writer


async def test_a_body_that_ends_early_is_unavailable(env: Env) -> None:
    async def handle(received: Received) -> bool:
        received.answer(200, b"hello", 100, ETag='"e"', Last_Modified="Sat, 21 Nov 2026 08:00:00 GMT")
        await received.writer.drain()
        return False

    async with against(handle, env) as (store, server):
        with pytest.raises(Unavailable, match="no answer"):
            await store.get(KEY)
        assert len(server.requests) == 1


async def test_silence_ends_a_call(env: Env) -> None:
    async def handle(received: Received) -> bool:
        await received.read_body()
        await asyncio.sleep(60)
        return False

    async with against(handle, env, read_timeout_s=0.2) as (store, _):
        with pytest.raises(Unavailable) as read:
            await store.get(KEY)
        assert type(read.value) is Unavailable
        with pytest.raises(UnknownOutcome):
            await store.put(KEY, [b"x"], Mode.CREATE)


async def test_an_upload_that_no_longer_moves_ends(env: Env) -> None:
    async def handle(received: Received) -> bool:
        received.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(60)
        return False

    async with scripted(handle) as server:
        store = S3Store("s3://bucket", server.options(read_timeout_s=0.3, connect_timeout_s=0.2), env)
        async with asyncio.timeout(10):
            with pytest.raises(UnknownOutcome):
                await store.put(KEY, [memoryview(bytes(1 << 20))] * 64)
        await store.close()


async def test_nothing_listening_is_surely_nothing_done(env: Env) -> None:
    port = free_port()
    options = StoreOptions(endpoint_url=f"http://127.0.0.1:{port}", region="x", access_key_id="k", secret_access_key="s")
    store = S3Store("s3://bucket", options, env)
    with pytest.raises(Unavailable, match=f"cannot reach http://127.0.0.1:{port}") as raised:
        await store.put(KEY, [b"x"], Mode.CREATE)
    assert type(raised.value) is Unavailable
    await store.close()


async def test_a_server_that_ignores_ranges_is_cut_here(env: Env) -> None:
    async def handle(received: Received) -> bool:
        received.answer(200, b"0123456789", ETag='"e"', Last_Modified="Sat, 21 Nov 2026 08:00:00 GMT")
        return True

    async with against(handle, env) as (store, _):
        blob = await store.get(KEY, 2, 3)
        assert (blob.data, blob.meta.size_bytes, blob.meta.modified_ns) == (b"234", 10, 1795248000 * 10**9)
        with pytest.raises(Invalid):
            await store.get(KEY, 10, 3)


async def test_old_ceph_wants_bare_etags(env: Env) -> None:
    async def handle(received: Received) -> bool:
        await received.read_body()
        received.answer(200 if received.headers["if-match"] == "e" else 412, ETag='"e"')
        return True

    async with against(handle, env) as (store, server):
        for _ in range(2):
            await store.put(KEY, [b"x"], IfMatch('"e"'))
        with pytest.raises(Exists):
            await store.put(KEY, [b"x"], IfMatch('"other"'))
        assert [received.headers["if-match"] for received in server.requests] == ['"e"', "e", "e", "other"]


async def test_what_is_no_s3_server_is_told(env: Env) -> None:
    async def handle(received: Received) -> bool:
        received.answer(200, b"<html>welcome")  # which the SDK takes for a failure of the server
        return True

    async with against(handle, env) as (store, _):
        with pytest.raises(Unavailable, match="Internal Server Error"):
            async for _meta in store.list(""):
                pass


async def test_cancelling_a_put_leaves_a_working_store(env: Env) -> None:
    async def handle(received: Received) -> bool:
        await received.read_body()
        if received.method == "PUT":
            await asyncio.sleep(60)
        received.answer(200, b"ok", ETag='"e"', Last_Modified="Sat, 21 Nov 2026 08:00:00 GMT")
        return True

    async with against(handle, env) as (store, server):
        task = env.spawn(store.put(KEY, [b"x"]), "put")
        async with asyncio.timeout(10):
            while not server.requests:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await store.get(KEY)).data == b"ok"


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://b/a//b", "s3://b/../x", "s3://user@b/x", "s3://b/x?y=1", "s3://b/x#y"])
def test_urls_that_name_no_place(env: Env, url: str) -> None:
    with pytest.raises(ConfigError):
        S3Store(url, StoreOptions(), env)


async def test_settings_that_do_not_work_are_told(env: Env) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        S3Store("s3://b", StoreOptions(access_key_id="x"), env)
    store = S3Store("s3://b", StoreOptions(endpoint_url="not a url", access_key_id="x", secret_access_key="y"), env)
    with pytest.raises(ConfigError, match="do not work"):
        await store.get(KEY)
    await store.close()


async def test_no_credentials_are_told(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    store = S3Store("s3://b", StoreOptions(endpoint_url="http://127.0.0.1:9"), env)
    with pytest.raises(Refused, match="no credentials") as raised:
        await store.get(KEY)
    assert "access_key_id" in raised.value.hint
    await store.close()
