"""Who may connect, and devices that break the protocol: told why, disconnected, nothing of theirs kept."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from stnode.errors import StnodeError
from stnode.net import base as net
from stnode.protocol import codec, fileinfo
from stnode.protocol.fileinfo import FileType
from stnode.protocol.framing import frame, frame_head, frame_hello
from stnode.protocol.messages import ClusterConfig, Hello, MessageType
from stnode.protocol.pb import bep_pb2 as pb
from tests.support.bep import file_message
from tests.support.fakepeer import FakePeer, content, identity_of
from tests.support.world import World, simulated


@simulated
async def test_an_unknown_device_gets_no_byte_and_is_pending() -> None:
    async with World() as world:
        stranger = world.peer("stranger")
        with pytest.raises(StnodeError):
            await stranger.connect()
        assert stranger.handler is None
        assert list(world.node.connections.pending_devices) == [stranger.device]
        await world.share(stranger)
        await stranger.connect()
        await world.until(lambda: stranger.configs)


@simulated
async def test_unknown_devices_are_remembered_up_to_a_bound() -> None:
    async with World() as world:
        for number in range(300):
            with pytest.raises(StnodeError):
                await world.peer(f"stranger {number}").connect()
        assert len(world.node.connections.pending_devices) == 100


@simulated
async def test_ourselves() -> None:
    async with World() as world:
        with pytest.raises(StnodeError):
            await net.dial(world.env, world.address, identity_of(world.device), world.device, lambda _device, _address: None)
        assert not world.node.connections.pending_devices


@simulated
async def test_a_second_connection_is_refused_while_the_first_lives() -> None:
    async with World() as world:
        a = await world.connected("a")
        first = a.handler
        with pytest.raises(StnodeError):
            await a.connect()
        assert a.handler is first
        a.write("x", b"x")
        await world.until(lambda: world.record("x"))


@simulated
async def test_a_silent_connection_gives_way_to_a_new_one() -> None:
    """Its device was cut off without a goodbye: it comes back before we notice."""
    async with World() as world:
        a = await world.connected("a")
        assert a.handler is not None
        a.handler.tasks.cancel()  # no pings
        await world.pause(125)
        await a.connect()
        await world.until(lambda: len(a.configs) == 2)
        a.write("x", b"x")
        await world.until(lambda: world.record("x"))
        assert a.losses == 1


@simulated
async def test_a_dead_connection_is_ended() -> None:
    async with World() as world:
        a = await world.connected("a")
        assert a.handler is not None
        a.handler.tasks.cancel()
        await world.until(lambda: not a.connected, 600)
        assert world.device_state(a).session is None


@simulated
async def test_a_device_that_says_nothing_is_disconnected() -> None:
    async with World() as world:
        a = world.peer("a")
        await world.share(a)
        a.greets = False
        await a.connect()
        await world.until(lambda: a.losses == 1, 60)
        assert world.device_state(a).session is None


def _config_missing(peer: FakePeer) -> bytes:
    return frame_hello(Hello("a", "x", "1")) + frame(MessageType.INDEX, pb.Index(folder="f").SerializeToString(), pack=False)


def _hello(peer: FakePeer) -> bytes:
    return frame_hello(Hello("a", "x", "1")) + frame(MessageType.CLUSTER_CONFIG, codec.encode_cluster_config(ClusterConfig()), pack=False)


@pytest.mark.parametrize(
    "start",
    [
        lambda peer: b"GET / HTTP/1.1\r\n\r\n",
        lambda peer: bytes(64),
        lambda peer: b"\xff" * 64,
        _config_missing,
        lambda peer: frame_hello(Hello("a", "x", "1")) + frame(MessageType.PING, b"", pack=False),
        lambda peer: frame_hello(Hello("a", "x", "1")) * 2,
        lambda peer: frame_hello(Hello("a", "x", "1")) + frame(MessageType.REQUEST, pb.Request(id=1, folder="f", name="x", size=1, hash=bytes(32)).SerializeToString(), pack=False),
    ],
    ids=["http", "zeros", "ones", "index first", "ping first", "two hellos", "request first"],
)  # fmt: skip
def test_a_wrong_start(start: Callable[[FakePeer], bytes]) -> None:
    @simulated
    async def scenario() -> None:
        async with World() as world:
            a = world.peer("a")
            await world.share(a)
            a.greets = False
            await a.connect()
            a.raw(start(a))
            await world.until(lambda: a.losses == 1, 400)  # at the latest when it says nothing more
            assert world.device_state(a).session is None

    scenario()


def _index(*messages: pb.FileInfo, folder: str = "f") -> bytes:
    return frame(MessageType.INDEX_UPDATE, pb.Index(folder=folder, files=messages).SerializeToString(), pack=False)


def _request(**fields: Any) -> bytes:
    values: dict[str, Any] = {"id": 1, "folder": "f", "name": "x", "size": 10, "hash": bytes(32)}
    message = pb.Request(**(values | fields))
    return frame(MessageType.REQUEST, message.SerializeToString(), pack=False)


_DELETED_WITH_BLOCKS = file_message("x", 10, deleted=True)
_NO_BLOCKS = file_message("x", 10)
del _NO_BLOCKS.blocks[:]
_TOKENS = file_message("x", 300_000)
for _block in _TOKENS.blocks:
    _block.hash = bytes(48)
_DIRECTORY_WITH_SIZE = pb.FileInfo(name="d", type=FileType.DIRECTORY, size=77, sequence=1)

BROKEN = {
    "index of an unknown folder": _index(file_message(), folder="nonsense"),
    "name ..": _index(file_message("..")),
    "name ../x": _index(file_message("../x")),
    "absolute name": _index(file_message("/etc/passwd")),
    "name a//b": _index(file_message("a//b")),
    "empty name": _index(file_message("")),
    "deleted with blocks": _index(_DELETED_WITH_BLOCKS),
    "without blocks": _index(_NO_BLOCKS),
    "tokens of an encrypted folder": _index(_TOKENS),
    "directory with size": _index(_DIRECTORY_WITH_SIZE),
    "same number twice": _index(file_message("x", sequence=5), file_message("y", sequence=5)),
    "request of ../x": _request(name="../x"),
    "negative offset": _request(offset=-1),
    "negative size": _request(size=-5),
    "huge size": _request(size=1 << 30),
    "no protobuf": frame(MessageType.INDEX, b"\xff\xff\xff\xff", pack=False),
    "header with no protobuf": b"\x00\x02\xff\xff" + bytes(8),
    "500 MB announced": frame_head(MessageType.INDEX, 501 << 20),
    "bad LZ4": frame_head(MessageType.INDEX, 20, packed=True) + b"\x00\x00\x10\x00" + b"\xff" * 16,
    "LZ4 of a gigabyte": frame_head(MessageType.INDEX, 20, packed=True) + b"\x7f\xff\xff\xff" + bytes(16),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_what_breaks_the_protocol_ends_the_connection_and_leaves_nothing(data: bytes) -> None:
    @simulated
    async def scenario() -> None:
        async with World() as world:
            a = await world.connected("a", "b")
            await world.until(lambda: world.runner().peers)
            a.raw(data)
            await world.until(lambda: a.losses == 1, 60)
            assert a.closes
            await world.until(lambda: world.runner().state == "idle")
            assert not world.records()
            await a.connect()  # it may come back
            a.write("x", b"x")
            await world.until(lambda: world.record("x"))
            assert world.peers["b"].connected

    scenario()


@simulated
async def test_what_is_only_odd_does_no_harm() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.raw(frame(MessageType.RESPONSE, codec.encode_response_head(4711, 3, 0) + b"abc", pack=False))  # nobody asked
        a.raw(frame(MessageType.PING, b"", pack=False) * 1000)
        a.raw(frame_head(100, 8) + b"whatever")
        a.raw(frame(MessageType.DOWNLOAD_PROGRESS, pb.DownloadProgress(folder="nonsense").SerializeToString(), pack=False))
        a.write("x", b"x")
        await world.until(lambda: world.record("x"))
        assert a.losses == 0


@simulated
async def test_numbers_without_sense_are_stored_or_refused_but_stop_nothing() -> None:
    """Sizes, times and vectors at the edges of what the wire can carry."""
    async with World() as world:
        a = await world.connected("a")
        odd: list[dict[str, Any]] = [
            {"modified_s": -(1 << 62)},
            {"modified_s": (1 << 62)},
            {"modified_ns": 2_000_000_000},
            {"modified_ns": -5},
            {"permissions": 0xFFFFFFFF},
            {"modified_by": (1 << 64) - 1},
            {"version": ((0, 1),)},
            {"version": (((1 << 64) - 1, (1 << 64) - 1),)},
            {"version": tuple((short, 1) for short in range(1, 500))},
        ]
        for number, fields in enumerate(odd):
            values: dict[str, Any] = {"name": f"d{number}", "type": FileType.DIRECTORY, "version": ((5, 1),), "modified_by": 5}
            a.announce(fileinfo.new(**(values | fields)))
            await world.pause(1)
            if not a.connected:
                await a.connect()
        del a.folder().files["d0"]
        await world.pause(1)
        a.write("x", b"x")
        await world.until(lambda: world.record("x"))


@simulated
async def test_a_file_of_a_petabyte_costs_no_memory() -> None:
    """What cannot be listed block by block is refused; a size that only claims to be huge does not get memory by claiming."""
    async with World() as world:
        a = await world.connected("a")
        tracemalloc.start()
        message = file_message("x", 10)
        message.size = 1 << 50
        a.raw(_index(message))
        await world.until(lambda: a.losses == 1)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


@simulated
async def test_a_device_that_takes_back_what_it_announced() -> None:
    async with World() as world:
        a = await world.connected("a")
        a.answers = lambda _request: (b"", 2)
        for number in range(50):
            a.write("x", content(f"{number}", 1000))
            await world.turns(20)
        a.delete("x")
        await world.until(lambda: world.runner().state == "idle")
        assert not world.runner().errors
        assert not world.records()
