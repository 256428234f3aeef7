"""The node's HTTP server. `POST /api/<verb>` takes the arguments of a method of `Service` as a JSON object and answers its result;
the verbs that only read also answer `GET` with a query. Bodies of files are streamed.

    POST /api/read         frames: 4 bytes of length, that many bytes; length 0, then `{}` or an error as JSON, ends the answer
    GET  /api/read         the plain bytes; the connection breaks off where an error comes after the start
    PUT  /api/write?path=  the body is the file (size, modified_ns, permissions as in `Service.write`)
    POST /api/write_many   the body is that of `wire.pack_files`
    POST /api/bucket_check, /api/restore  one JSON line per step, an error as the last line
    GET  /health           for probes, open to all: 200 while the process works, whatever the store does
    GET  /metrics, /       Prometheus text, status page: open on a loopback address, else with the key

The key comes as `X-API-Key`, as a bearer token, or as the password of HTTP Basic (so that a browser can ask for it). A server on a
loopback address answers only to loopback names in `Host`, which keeps foreign web pages out (DNS rebinding).
"""

from __future__ import annotations

import base64
import binascii
import errno
import hmac
import inspect
import ipaddress
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast, get_type_hints

from aiohttp import web

from stnode.config import ApiSection
from stnode.errors import ConfigError, Internal, Invalid, NotFound, Refused, StnodeError
from stnode.frontends.api.page import status_page
from stnode.node import wire
from stnode.node.service import Service
from stnode.telemetry import CONTENT_TYPE, get_logger

log = get_logger(__name__)

_STATUS = {"unavailable": 503, "conflict": 409, "not-found": 404, "invalid": 400, "corrupt": 500, "refused": 403, "full": 507}
_READING = frozenset({"id", "status", "device_list", "folder_list", "ls", "stat", "sealed", "history", "time_of", "bucket_stats"})
_CHANGING = frozenset(
    {
        "node_remove",
        "device_add",
        "device_remove",
        "folder_add",
        "folder_remove",
        "folder_set",
        "folder_override",
        "folder_revert",
        "confirm_deletions",
        "reject_deletions",
    }
    | {"settings_plan", "settings_apply", "symlink", "mkdir", "rm", "mv", "bucket_repair", "bucket_gc", "shutdown"}
)
_STEPWISE = ("bucket_check", "restore")
_MAX_ARGUMENTS = 16 * 2**20
_STOP_S = 2.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiServer:
    """Serves `service` at the address of `section`, and what `metrics` gives as `/metrics`. `start` once, `stop` once."""

    def __init__(self, service: Service, section: ApiSection, metrics: Callable[[], Awaitable[bytes]] | None = None) -> None:
        self._service = service
        self._host, self._port = section.address
        self._key = section.api_key
        self._metrics = metrics
        self._loopback = _is_loopback(self._host)
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Listens; the URL at which the API answers. Raises Refused when the address cannot be had."""
        if not self._key:
            raise ConfigError("the API has no key", hint="set [api] api_key in config.toml to a long random word")
        app = web.Application(client_max_size=_MAX_ARGUMENTS, middlewares=[self._guard])
        app.router.add_get("/", self._page)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics_text)
        app.router.add_route("*", "/api/read", self._read)
        app.router.add_put("/api/write", self._write)
        app.router.add_post("/api/write_many", self._write_many)
        for verb in _STEPWISE:
            app.router.add_post(f"/api/{verb}", self._steps)
        app.router.add_route("*", "/api/{verb}", self._verb)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_STOP_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as exc:
            await runner.cleanup()
            raise self._no_address(exc) from exc
        self._runner = runner
        port = runner.addresses[0][1]
        host = self._host if not _is_wildcard(self._host) else "127.0.0.1"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stops listening and ends what is still being answered."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _no_address(self, exc: OSError) -> Refused:
        option = "choose another one with [api] listen in config.toml or STNODE_API_LISTEN"
        if exc.errno == errno.EADDRINUSE:
            return Refused(f"port {self._port} of {self._host} is in use by another program", hint=f"end that program, or {option}")
        return Refused(f"the API cannot listen on {self._host}:{self._port}: {exc.strerror or exc}", hint=option)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Host check, key, and errors as JSON."""
        try:
            if self._loopback and not _is_loopback(_host_of(request.host)):
                raise Refused("Host check error", hint="use the address of [api] listen itself, or let it listen on a non-loopback address")
            open_here = request.path == "/health" or (self._loopback and request.path in ("/", "/metrics"))
            if not open_here and not self._has_key(request):
                return web.json_response(
                    wire.error_to_json(Refused("the API key is missing or wrong", hint="use the api_key of this node's config.toml")),
                    status=401,
                    headers={"WWW-Authenticate": 'Basic realm="stnode"'},
                )
            return await handler(request)
        except StnodeError as exc:
            return web.json_response(wire.error_to_json(exc), status=_STATUS.get(exc.kind, 500))
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:
            log.exception("the API failed", path=request.path)
            return web.json_response(wire.error_to_json(_bug()), status=500)

    def _has_key(self, request: web.Request) -> bool:
        given = request.headers.get("X-API-Key", "")
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if not given and scheme.lower() == "bearer":
            given = value.strip()
        elif not given and scheme.lower() == "basic":
            try:
                given = base64.b64decode(value, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                given = ""
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._key.encode())

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _metrics_text(self, _: web.Request) -> web.Response:
        return web.Response(body=await self._metrics() if self._metrics else b"", headers={"Content-Type": CONTENT_TYPE})

    async def _page(self, _: web.Request) -> web.Response:
        text = status_page(await self._service.status())
        return web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-store"})

    async def _verb(self, request: web.Request) -> web.Response:
        verb = request.match_info["verb"]
        if verb not in _READING | _CHANGING:
            raise NotFound(f"the API has no {verb}", hint="the command line and the daemon may be of different versions")
        if not (request.method == "POST" or (request.method == "GET" and verb in _READING)):
            raise Invalid(f"{verb} does not take {request.method}", hint="use POST")
        method = getattr(self._service, verb)
        result = await method(**await _arguments(request, verb))
        return web.json_response(wire.to_json(result))

    async def _read(self, request: web.Request) -> web.StreamResponse:
        arguments = await _arguments(request, "read")
        framed = request.method == "POST"
        async with aclosing(cast("Any", self._service.read(**arguments))) as pieces:
            first = await anext(pieces, b"")  # an error here is still answered with its own status
            response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
            await response.prepare(request)
            try:
                await _send_piece(response, first, framed)
                async for piece in pieces:
                    await _send_piece(response, piece, framed)
            except StnodeError as exc:
                if not framed:
                    raise ConnectionResetError(exc.message) from exc
                await response.write(bytes(4) + json.dumps(wire.error_to_json(exc)).encode())
            else:
                await response.write(bytes(4) + b"{}" if framed else b"")
            await response.write_eof()
        return response

    async def _write(self, request: web.Request) -> web.Response:
        arguments = _from_query(request, "write")
        source = _body(request)
        try:
            return web.json_response(wire.to_json(await self._service.write(source=source, **arguments)))
        finally:
            await cast("Any", source).aclose()

    async def _write_many(self, request: web.Request) -> web.Response:
        await self._service.write_many(wire.unpack_files(await request.read()))
        return web.json_response(None)

    async def _steps(self, request: web.Request) -> web.StreamResponse:
        verb = request.path.rpartition("/")[2]
        arguments = await _arguments(request, verb)
        async with aclosing(cast("Any", getattr(self._service, verb)(**arguments))) as steps:
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            try:
                async for step in steps:
                    await response.write(json.dumps({"step": wire.to_json(step)}).encode() + b"\n")
            except StnodeError as exc:
                await response.write(json.dumps({"error": wire.error_to_json(exc)}).encode() + b"\n")
            await response.write_eof()
        return response


def _bug() -> StnodeError:
    return Internal("something unexpected happened in the daemon", hint="its log says what; please report it")


async def _send_piece(response: web.StreamResponse, piece: bytes, framed: bool) -> None:
    if piece:
        if framed:
            await response.write(len(piece).to_bytes(4, "big"))
        await response.write(piece)


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    async for piece in request.content.iter_any():
        yield piece


async def _arguments(request: web.Request, verb: str) -> dict[str, Any]:
    """The keyword arguments of a method of Service, from the body or the query. Raises Invalid."""
    if request.method == "GET":
        return _from_query(request, verb)
    try:
        data = json.loads(await request.read() or b"{}")
    except ValueError as exc:
        raise Invalid(f"the body is no JSON: {exc}") from None
    if not isinstance(data, dict):
        raise Invalid("the body is no JSON object")
    return _bound(verb, data)


def _from_query(request: web.Request, verb: str) -> dict[str, Any]:
    hints = get_type_hints(getattr(Service, verb))
    data: dict[str, Any] = {}
    for name, text in request.query.items():
        if hints.get(name) in (str, str | None):
            data[name] = text
        else:
            try:
                data[name] = json.loads(text)
            except ValueError:
                raise Invalid(f"{name}: {text!r} does not fit") from None
    return _bound(verb, data)


def _bound(verb: str, data: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(getattr(Service, verb))
    parameters = inspect.signature(getattr(Service, verb)).parameters
    for name in data:
        if name not in parameters or (verb == "write" and name == "source"):
            raise Invalid(f"{verb} has no argument {name}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in data and name != "self" and not (verb == "write" and name == "source"):
            raise Invalid(f"{verb} needs the argument {name}")
    return {name: wire.from_json(hints[name], value, name) for name, value in data.items()}


def _host_of(header: str) -> str:
    return header.rpartition("]")[0].strip("[") if header.startswith("[") else header.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
