"""An object store in a bucket of any S3 server: `s3://bucket/prefix`. The only module that imports the AWS SDK and its HTTP client.

One call is one HTTP attempt: the SDK's retries are off, and so is aiohttp's own second sending of a PUT over a kept-alive
connection that died (`_OneAttemptSession`): it would answer our own successful create with 412.

Speed: bodies go out as they are, buffer by buffer; the SDK neither hashes nor checks them. Bodies up to 1 MiB (slots, bodies of
commits, footers) carry Content-MD5, which the server verifies; larger ones are packs, whose readers verify every block.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from botocore import exceptions as sdk
from botocore.parsers import ResponseParserError

from stnode.clock import Env
from stnode.errors import ConfigError, Invalid, NotFound, Refused, StnodeError, Unavailable
from stnode.objectstore.base import (
    Blob,
    Buffer,
    Exists,
    IfMatch,
    Key,
    Meta,
    Mode,
    PutResult,
    check_key,
    check_prefix,
    check_range,
    size_of,
)
from stnode.objectstore.bucketrules import lifecycle_warnings, versioning_warnings
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.s3errors import Answer, Purpose, broken, error_of, not_reached

T = TypeVar("T")

_VERIFIED_BYTES_MAX = 1 << 20
_PIECE_BYTES = 256 << 10
_READ_BUFFER_BYTES = 256 << 10
_KEEP_ALIVE_S = 12
_PRELOADED = (("s3", "service-2"), ("s3", "endpoint-rule-set-1"))


class S3Store:
    """Connects with the first call. ETags are passed on with their quotes."""

    def __init__(self, url: str, options: StoreOptions, env: Env) -> None:
        self._bucket, self._prefix = _parse_url(url)
        if bool(options.access_key_id) != bool(options.secret_access_key):
            raise ConfigError("store.access_key_id and store.secret_access_key belong together: one of them is not set")
        self._endpoint = options.endpoint_url or "AWS S3"
        self._options = options
        self._env = env
        self._connecting = asyncio.Lock()
        self._closing = AsyncExitStack()
        self._connected: Any = None
        self._bare_etags = False

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        arguments = self._named(key)
        if check_range(key, start, length):
            arguments["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"

        async def exchange(client: Any) -> Blob:
            answer = await client.get_object(**arguments)
            async with answer["Body"] as body:
                data: bytes = await body.read()
            return _ranged(_meta(key, answer), data, answer, start, length)

        return await self._ask(exchange, "read", key)

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        if isinstance(mode, IfMatch):
            return await self._replace(key, data, mode)
        if mode is Mode.CREATE:
            return await self._put(key, data, "conditional", {"IfNoneMatch": "*"})
        return await self._put(key, data, "write", {})

    async def head(self, key: Key) -> Meta:
        arguments = self._named(key)

        async def exchange(client: Any) -> Meta:
            return _meta(key, await client.head_object(**arguments))

        return await self._ask(exchange, "read", key)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        arguments = {"Bucket": self._bucket, "Prefix": self._prefix + check_prefix(prefix)}
        if start_after:
            arguments["StartAfter"] = self._prefix + start_after
        while True:
            answer = await self._ask(lambda client: client.list_objects_v2(**arguments), "read", prefix)
            date_ns = _date_ns(answer)
            for entry in answer.get("Contents", ()):
                key = Key(entry["Key"].removeprefix(self._prefix))
                yield Meta(key, entry["Size"], _etag(entry), _nanoseconds(entry["LastModified"]), date_ns)
            if not answer.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = answer["NextContinuationToken"]

    async def delete(self, key: Key) -> None:
        arguments = self._named(key)
        await self._ask(lambda client: client.delete_object(**arguments), "write", key)

    async def capabilities(self) -> None:
        """Not known: servers differ, whatever they call themselves."""

    async def bucket_rules(self) -> tuple[str, ...]:
        """Warnings about rules of the bucket that would hurt the store; none where the server has no such rules or does not let us see them."""
        found: tuple[str, ...] = ()
        with suppress(StnodeError):
            answer = await self._ask(lambda client: client.get_bucket_lifecycle_configuration(Bucket=self._bucket), "read", "")
            found += lifecycle_warnings(answer.get("Rules", ()), self._prefix)
        with suppress(StnodeError):
            answer = await self._ask(lambda client: client.get_bucket_versioning(Bucket=self._bucket), "read", "")
            found += versioning_warnings(answer.get("Status", ""))
        return found

    async def close(self) -> None:
        self._connected = None
        await self._closing.aclose()

    async def _replace(self, key: Key, data: Sequence[Buffer], mode: IfMatch) -> PutResult:
        """Old Ceph compares If-Match with the bare ETag and answers 412 to the quoted one: then the bare form is tried as well."""
        if not self._bare_etags:
            try:
                return await self._put(key, data, "conditional", {"IfMatch": mode.etag})
            except Exists:
                if mode.etag == mode.etag.strip('"'):
                    raise
        result = await self._put(key, data, "conditional", {"IfMatch": mode.etag.strip('"')})
        self._bare_etags = True
        return result

    async def _put(self, key: Key, data: Sequence[Buffer], purpose: Purpose, conditions: dict[str, str]) -> PutResult:
        arguments: dict[str, Any] = {**self._named(key), **conditions}
        size_bytes = size_of(data)
        if size_bytes <= _VERIFIED_BYTES_MAX:
            digest = hashlib.md5(usedforsecurity=False)
            for part in data:
                digest.update(part)
            arguments["ContentMD5"] = base64.b64encode(digest.digest()).decode()
        silence_s = self._options.connect_timeout_s + self._options.read_timeout_s

        async def exchange(client: Any) -> PutResult:
            # The SDK's timeouts watch the answer only: an upload that no longer moves is ended here.
            async with asyncio.timeout(silence_s) as limit:
                arguments["Body"] = _Body(data, size_bytes, lambda: limit.reschedule(asyncio.get_running_loop().time() + silence_s))
                answer = await client.put_object(**arguments)
            return PutResult(_etag(answer), _date_ns(answer))

        return await self._ask(exchange, purpose, key)

    def _named(self, key: Key) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    async def _ask(self, exchange: Callable[[Any], Awaitable[T]], purpose: Purpose, key: str) -> T:
        client = self._connected or await self._connect()
        try:
            return await exchange(client)
        except sdk.ClientError as error:
            refusal = error_of(_answer(error), purpose, key, self._bucket, self._endpoint)
            if isinstance(refusal, NotFound):
                refusal.date_ns = _date_ns(cast("dict[str, Any]", error.response))
            raise refusal from error
        except (sdk.BotoCoreError, ResponseParserError, aiohttp.ClientError, OSError, ValueError) as error:
            raise _transport_error(error, purpose, key, self._endpoint) from error

    async def _connect(self) -> Any:
        async with self._connecting:
            if self._connected is None:
                self._connected = await self._make_client()
            return self._connected

    async def _make_client(self) -> Any:
        options = self._options
        try:
            session = await self._env.threads.run(_make_session, options)
            client = session.client(
                "s3",
                endpoint_url=options.endpoint_url or None,
                verify=options.ca_file or None,
                config=_config(options),
            )
            return await self._closing.enter_async_context(client)
        except (sdk.BotoCoreError, ValueError, OSError) as error:
            raise ConfigError(
                f"the settings of the store {self._endpoint} do not work: {error}", hint="Check the [store] section."
            ) from error


class _OneAttemptSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no types
    """The SDK's HTTP client without aiohttp's hidden resending, and with a read buffer for large ranges."""

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession | None = self._sessions.get(proxy_url)
        if session is None:
            session = aiohttp.ClientSession(
                connector=self._create_connector(proxy_url),
                timeout=self._timeout,
                skip_auto_headers={"Content-Type"},
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=_READ_BUFFER_BYTES,
            )
            session._retry_connection = False  # noqa: SLF001 aiohttp's own tests switch it off like this; a test here watches it
            self._sessions[proxy_url] = await self._exit_stack.enter_async_context(session)
        return session


class _Body:
    """A request's body as the SDK takes it: it has a length and can be iterated, again after `seek`. `moved` is called after each piece."""

    def __init__(self, data: Sequence[Buffer], size_bytes: int, moved: Callable[[], None]) -> None:
        self._data = data
        self._size_bytes = size_bytes
        self._moved = moved

    def __len__(self) -> int:
        return self._size_bytes

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        for piece in _pieces(self._data):
            yield piece
            self._moved()

    def seek(self, _position: int) -> None:
        """The SDK rewinds before it follows a redirect to another region; each iteration starts anew anyway."""


def _pieces(data: Sequence[Buffer]) -> Iterator[Buffer]:
    """Pieces that suit a socket: large buffers cut without copying, small neighbours joined."""
    small: list[Buffer] = []
    small_bytes = 0
    for part in data:
        view = memoryview(part).cast("B")
        if view.nbytes < _PIECE_BYTES // 4:
            small.append(view)
            small_bytes += view.nbytes
            if small_bytes < _PIECE_BYTES:
                continue
            view = memoryview(b"")
        if small:
            yield b"".join(small)
            small, small_bytes = [], 0
        for start in range(0, view.nbytes, _PIECE_BYTES):
            yield view[start : start + _PIECE_BYTES]
    if small:
        yield b"".join(small)


def _parse_url(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    named = [part for part in prefix.split("/") if part.strip(".")]
    if not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment or (prefix and "/".join(named) != prefix):
        raise ConfigError(f"not a bucket and prefix: {url!r}", hint="Write s3://bucket or s3://bucket/prefix; credentials have options.")
    return parts.netloc, f"{prefix}/" if prefix else ""


def _config(options: StoreOptions) -> AioConfig:
    style = options.addressing_style
    if style == "auto":
        style = "path" if options.endpoint_url else "virtual"
    return AioConfig(
        connector_args={"keepalive_timeout": _KEEP_ALIVE_S},
        http_session_cls=_OneAttemptSession,
        max_pool_connections=options.concurrency,
        connect_timeout=options.connect_timeout_s,
        read_timeout=options.read_timeout_s,
        retries={"total_max_attempts": 1},
        parameter_validation=False,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        signature_version="s3v4",
        s3={"payload_signing_enabled": False, "addressing_style": style},
    )


def _make_session(options: StoreOptions) -> aioboto3.Session:
    """Blocks for some tenths of a second: the SDK reads its descriptions of S3, which it then keeps."""
    session = aioboto3.Session(
        aws_access_key_id=options.access_key_id or None,
        aws_secret_access_key=options.secret_access_key or None,
        aws_session_token=options.session_token or None,
        region_name=options.region or None,
    )
    core = session._session  # noqa: SLF001 the only way to the parser and the loader of a session
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    loader = core.get_component("data_loader")
    for service, kind in _PRELOADED:
        loader.load_service_model(service, kind)
    if session.region_name is None:
        core.set_config_variable("region", "us-east-1")
    return session


def _timestamp(text: Any) -> datetime:
    """The SDK's own parser takes half the time of a listing."""
    if isinstance(text, str):
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            return parsedate_to_datetime(text)
    return datetime.fromtimestamp(float(text), UTC)


def _nanoseconds(time: datetime) -> int:
    return int(time.replace(microsecond=0).timestamp()) * 10**9 + time.microsecond * 1000


def _date_ns(answer: dict[str, Any]) -> int | None:
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return None if date is None else _nanoseconds(_timestamp(date))


def _etag(answer: dict[str, Any]) -> str:
    return '"' + str(answer.get("ETag", "")).strip('"') + '"'


def _meta(key: Key, answer: dict[str, Any]) -> Meta:
    return Meta(key, answer["ContentLength"], _etag(answer), _nanoseconds(answer["LastModified"]), _date_ns(answer))


def _ranged(meta: Meta, data: bytes, answer: dict[str, Any], start: int, length: int | None) -> Blob:
    """The blob with the whole object's size; a server that ignored the range has sent everything."""
    content_range = answer.get("ContentRange")
    if content_range is None:
        if start >= max(len(data), 1):
            raise Invalid(f"range of {meta.key} starts at {start}, the object has {len(data)} bytes")
        return Blob(meta, data[start : None if length is None else start + length] if start or length is not None else data)
    size_bytes = int(content_range.rpartition("/")[2])
    wanted = size_bytes - start if length is None else min(length, size_bytes - start)
    if len(data) != wanted:
        raise Unavailable(f"{meta.key}: {len(data)} bytes came, {wanted} were asked for")
    return Blob(Meta(meta.key, size_bytes, meta.etag, meta.modified_ns, meta.date_ns), data)


def _answer(error: sdk.ClientError) -> Answer:
    detail = error.response.get("Error", {})
    metadata = error.response.get("ResponseMetadata", {})
    retry_after = metadata.get("HTTPHeaders", {}).get("retry-after", "")
    return Answer(
        status=int(metadata.get("HTTPStatusCode", 0)),
        code=str(detail.get("Code", "")),
        message=str(detail.get("Message", "")),
        retry_after_s=float(retry_after) if retry_after.isdigit() else None,
    )


def _transport_error(error: Exception, purpose: Purpose, key: str, endpoint: str) -> StnodeError:
    """What a request without a whole answer means; the SDK wraps aiohttp's error in its own as `error`."""
    cause = getattr(error, "kwargs", {}).get("error", error)
    reason = str(cause) or type(cause).__name__
    match error:
        case sdk.NoCredentialsError() | sdk.PartialCredentialsError() | sdk.TokenRetrievalError() | sdk.UnauthorizedSSOTokenError():
            return Refused(
                f"no credentials for {endpoint}: {reason}", hint="Set store.access_key_id and secret_access_key or the AWS chain."
            )
        case sdk.CredentialRetrievalError() | sdk.MetadataRetrievalError():
            return not_reached(endpoint, reason)
        case sdk.SSLError() if isinstance(cause, aiohttp.ClientConnectorCertificateError):
            return Refused(f"the certificate of {endpoint} is not trusted: {reason}", hint="Set store.ca_file to its authority's PEM file.")
        case sdk.ConnectTimeoutError() | sdk.ProxyConnectionError() | sdk.SSLError():
            return not_reached(endpoint, reason)
        case sdk.EndpointConnectionError() if isinstance(cause, aiohttp.ClientConnectorError):
            return not_reached(endpoint, reason)
        case ResponseParserError():
            return broken(purpose, key, endpoint, f"not an answer of S3: {reason}")
        case ValueError() if not isinstance(error, sdk.BotoCoreError):
            return ConfigError(f"the settings of the store {endpoint} do not work: {reason}", hint="Check store.endpoint_url.")
        case _:
            return broken(purpose, key, endpoint, reason)
