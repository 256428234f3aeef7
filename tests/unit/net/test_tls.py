"""What strangers and faulty programs at a TCP port can do: nothing."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from stnode.clock import Env, system_env
from stnode.errors import Invalid, ProtocolError, Refused, StnodeError, Unavailable
from stnode.net import base, identity, tcp, tls
from stnode.net.base import Accept, Listener
from stnode.net.identity import Identity, KeyType
from stnode.protocol.deviceid import DeviceID
from tests.support.links import Recorder


@pytest.fixture
def env() -> Iterator[Env]:
    env = system_env(1)
    yield env
    env.close()


@pytest.fixture
def me(env: Env) -> Identity:
    return identity.generate(env.clock)


def _giving(recorder: Recorder) -> Accept:
    return lambda _device, _address: recorder


class Door:
    """A listener that counts whom it lets in."""

    def __init__(self) -> None:
        self.guests: list[Recorder] = []
        self.listener: Listener

    @property
    def port(self) -> int:
        return int(self.listener.address.rpartition(":")[2])

    def accept(self, device: bytes, address: str) -> Recorder:
        self.guests.append(Recorder())
        return self.guests[-1]


@pytest.fixture
async def door(env: Env, me: Identity) -> AsyncIterator[Door]:
    door = Door()
    door.listener = await base.listen(env, "tcp://127.0.0.1:0", me, door.accept)
    yield door
    await door.listener.close()


def client(tmp_path: Path, *identities: Identity, chain: bool = False) -> ssl.SSLContext:
    """The standard library's client with the first identity; with `chain` it sends the others' certificates too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if identities:
        context.load_cert_chain(pem_file(tmp_path, *identities, chain=chain))
    return context


def pem_file(tmp_path: Path, *identities: Identity, chain: bool = False) -> Path:
    pem = tmp_path / "pair.pem"
    shown = identities if chain else identities[:1]
    pem.write_bytes(identities[0].key_pem() + b"".join(one.certificate_pem() for one in shown))
    return pem


async def ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """What came until the end of the connection, however it ended."""
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    except (OSError, ssl.SSLError):
        return b""
    finally:
        writer.transport.abort()


@asynccontextmanager
async def server(first_words: bytes | None = None, tls_context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The address of a foreign server that says something and hangs up, or with None says nothing and waits."""
    writers: list[asyncio.StreamWriter] = []

    def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if first_words is not None:
            writer.write(first_words)
            writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls_context)
    yield f"tcp://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    listening.close()
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0)


async def test_any_kind_of_key_gets_in(env: Env, door: Door, me: Identity, tmp_path: Path) -> None:
    for kind in KeyType:
        guest = identity.generate(env.clock, kind)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port, ssl=client(tmp_path, guest))
        writer.write(b"hello")
        recorder = None
        async with asyncio.timeout(10):
            while recorder is None:
                recorder = door.guests[-1] if len(door.guests) > list(KeyType).index(kind) else None
                await asyncio.sleep(0.001)
        link = await recorder.until(size=5)
        assert link.peer == guest.device_id
        link.write([b"welcome"])
        link.close()
        assert await ended(reader, writer) == b"welcome"
        assert await recorder.lost is None
        near = Recorder()
        link = await base.dial(env, door.listener.address, guest, me.device_id, _giving(near))
        link.close()
        await near.lost
        await door.guests.pop().lost


async def test_no_certificate(door: Door, tmp_path: Path) -> None:
    assert await ended(*await asyncio.open_connection("127.0.0.1", door.port, ssl=client(tmp_path))) == b""
    assert not door.guests


@pytest.mark.parametrize("same", [False, True])
async def test_two_certificates_of_a_client(env: Env, door: Door, tmp_path: Path, same: bool) -> None:
    one = identity.generate(env.clock)
    two = one if same else identity.generate(env.clock)
    context = client(tmp_path, one, two, chain=True)
    assert await ended(*await asyncio.open_connection("127.0.0.1", door.port, ssl=context)) == b""
    assert not door.guests


@pytest.mark.parametrize("chain", [False, True])
async def test_two_certificates_of_a_server(env: Env, me: Identity, tmp_path: Path, chain: bool) -> None:
    one, two = identity.generate(env.clock), identity.generate(env.clock)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem_file(tmp_path, one, two, chain=chain))
    near = Recorder()
    async with server(b"x", context) as address:
        if chain:
            with pytest.raises(ProtocolError, match="2 certificates"):
                await base.dial(env, address, me, one.device_id, lambda _d, _a: near)
        else:
            await base.dial(env, address, me, one.device_id, lambda _d, _a: near)
            await near.lost


async def test_old_tls(env: Env, door: Door, tmp_path: Path) -> None:
    context = client(tmp_path, identity.generate(env.clock))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        await asyncio.open_connection("127.0.0.1", door.port, ssl=context)
    assert not door.guests


@pytest.mark.parametrize("alpn", [["bep/1.0"], ["h2", "bep/1.0"], ["h2"], []])
async def test_protocol_name_is_selected_but_not_demanded(env: Env, door: Door, tmp_path: Path, alpn: list[str]) -> None:
    context = client(tmp_path, identity.generate(env.clock))
    if alpn:
        context.set_alpn_protocols(alpn)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port, ssl=context)
    found = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    assert found == ("bep/1.0" if "bep/1.0" in alpn else None)
    writer.write(b"x")
    async with asyncio.timeout(10):
        while not door.guests:
            await asyncio.sleep(0.001)
    (await door.guests[0].until(size=1)).close()
    await ended(reader, writer)
    await door.guests[0].lost


def _twice(port: int, context: ssl.SSLContext) -> list[bool]:
    """Two connections, the second with the first one's session; whether each was resumed."""
    session, resumed = None, []
    for _ in range(2):
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port)), session=session) as link:
            link.sendall(b"x")
            assert link.recv(1) == b"y"
            session = link.session
            resumed.append(bool(link.session_reused))
    return resumed


async def test_sessions_are_never_resumed(env: Env, door: Door, tmp_path: Path) -> None:
    trial = env.threads.run(_twice, door.port, client(tmp_path, identity.generate(env.clock)))
    clients = asyncio.ensure_future(trial)
    for number in range(2):
        async with asyncio.timeout(10):
            while len(door.guests) <= number:
                await asyncio.sleep(0.001)
        (await door.guests[number].until(size=1)).write([b"y"])
    assert await clients == [False, False]
    for guest in door.guests:
        await guest.lost


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01\xff\xff" + bytes(70_000)])
async def test_garbage(door: Door, garbage: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(garbage)
    answer = await ended(reader, writer)
    assert len(answer) < 10, "an alert at most"
    assert not door.guests


async def test_garbage_from_a_server(env: Env, me: Identity) -> None:
    async with server(b"SSH-2.0-OpenSSH\r\n") as address:
        with pytest.raises(ProtocolError, match="handshake"):
            await base.dial(env, address, me, me.device_id, lambda _d, _a: None)


async def test_slow_handshakes_end(door: Door, env: Env, me: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_S", 0.2)
    assert await ended(*await asyncio.open_connection("127.0.0.1", door.port)) == b""
    other = identity.generate(env.clock).device_id
    async with server() as address:
        with pytest.raises(Unavailable, match=r"not finished within 0\.2 s"):
            await base.dial(env, address, me, other, lambda _d, _a: None)
        monkeypatch.undo()
        with pytest.raises(Unavailable, match=r"did not answer within 0\.1 s"):
            await base.dial(env, address, me, other, lambda _d, _a: None, timeout=0.1)


async def test_too_many_handshakes_at_once(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "MAX_HANDSHAKES", 2)
    waiting = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(2)]
    assert await ended(*await asyncio.open_connection("127.0.0.1", door.port)) == b""
    for reader, writer in waiting:
        assert not reader.at_eof()
        writer.transport.abort()


async def test_closing_the_door_drops_handshakes(door: Door) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    await asyncio.sleep(0.01)
    await door.listener.close()
    assert await ended(reader, writer) == b""


@pytest.mark.parametrize("turns", range(6))
async def test_closing_the_door_while_somebody_enters(env: Env, me: Identity, turns: int) -> None:
    for _ in range(5):
        listener = await base.listen(env, "tcp://127.0.0.1:0", me, lambda _d, _a: None)
        with socket.create_connection(("127.0.0.1", int(listener.address.rpartition(":")[2]))) as guest:
            for _ in range(turns):
                await asyncio.sleep(0)
            await listener.close()
            await asyncio.sleep(0)
            guest.settimeout(5)
            with suppress(ConnectionResetError):
                assert await env.threads.run(guest.recv, 1) == b""
    gc.collect()  # a lost transport would show as an unclosed one


async def test_a_node_does_not_talk_to_itself(env: Env, door: Door, me: Identity) -> None:
    with pytest.raises(Refused, match="this node itself"):
        await base.dial(env, door.listener.address, me, me.device_id, lambda _d, _a: None)


async def test_a_listener_is_told_of_callers_with_its_own_identity(
    env: Env, me: Identity, eventually: Callable[..., Awaitable[object]]
) -> None:
    callers: list[DeviceID] = []

    def accept(device: DeviceID, _address: str) -> Recorder:
        callers.append(device)
        return Recorder()

    listener = await base.listen(env, "tcp://127.0.0.1:0", me, accept)
    with pytest.raises(StnodeError):
        await base.dial(env, listener.address, me, me.device_id, lambda _d, _a: None)
    await eventually(lambda: callers)
    assert callers == [me.device_id]
    await listener.close()


async def test_cancelled_dials_leave_nothing(env: Env, me: Identity) -> None:
    async with server() as address:
        dialing = asyncio.ensure_future(base.dial(env, address, me, identity.generate(env.clock).device_id, lambda _d, _a: None))
        await asyncio.sleep(0.05)
        dialing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialing


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("tcp://127.0.0.1:1", Unavailable, "Connection refused"),
        ("tcp://no-such-host.invalid:22000", Unavailable, "cannot be resolved"),
        ("tcp://:22000", Invalid, "names no host"),
        ("carrier-pigeon://a:1", Refused, "no transport"),
    ],
)
async def test_dial_errors_say_what_is_wrong(env: Env, me: Identity, address: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        await base.dial(env, address, me, me.device_id, lambda _d, _a: None)


@pytest.mark.parametrize(("address", "words"), [("tcp://192.0.2.1:0", "Cannot assign"), ("tcp://no-such-host.invalid:0", "resolved")])
async def test_listen_errors_say_what_is_wrong(env: Env, me: Identity, address: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        await base.listen(env, address, me, lambda _d, _a: None)


async def test_everywhere_means_both_families(env: Env, me: Identity) -> None:
    door = Door()
    door.listener = await base.listen(env, "tcp://0.0.0.0:0", me, door.accept)
    other = identity.generate(env.clock)
    for host in ("127.0.0.1", "[::1]", "localhost"):
        near = Recorder()
        link = await base.dial(env, f"tcp://{host}:{door.port}", other, me.device_id, _giving(near))
        assert link.remote_address in {f"127.0.0.1:{door.port}", f"[::1]:{door.port}"}
        link.close()
        await near.lost
        await door.guests.pop().lost
    await door.listener.close()
