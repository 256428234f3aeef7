"""A device that speaks real BEP and is all in the test's hands: its files, versions and numbers, its index, its answers.

By default it behaves as a Syncthing does: announces what it has by the delta index rules, answers Requests, and with `follows` takes
over what it hears, pulling blocks and making conflict copies. Every Index it hears is checked against the rules of bep-facts 6.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from stnode.clock import Env, Tasks
from stnode.errors import StnodeError
from stnode.net import base as net
from stnode.net.base import Link
from stnode.net.identity import Identity
from stnode.protocol import conflict, deviceid, fileinfo, vector
from stnode.protocol.blocks import TOKEN_BYTES, block_lengths, block_size_for
from stnode.protocol.connection import BEPConnection
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.framing import frame
from stnode.protocol.messages import (
    Close,
    ClusterConfig,
    ClusterDevice,
    ClusterFolder,
    Event,
    FolderID,
    Hello,
    Index,
    MessageType,
    Request,
    Response,
)
from stnode.protocol.pb import bep_pb2 as pb
from stnode.protocol.vector import Ordering, Vector

FOLDER = "f"
MTIME_S = 1_763_000_000
Answer = tuple[bytes, int]
"""Data and BEP error code of a Response."""

_BATCH = 100


def device_of(name: str) -> DeviceID:
    return DeviceID(hashlib.sha256(name.encode()).digest())


def identity_of(device: DeviceID) -> Identity:
    """Enough of an identity for links without TLS."""
    return cast("Identity", SimpleNamespace(device_id=device))


def content(name: str, size: int) -> bytes:
    """Bytes that differ by name, none of them a block of another name."""
    return hashlib.shake_128(name.encode()).digest(size)


@dataclass(frozen=True, slots=True)
class Held:
    """One item of the peer's folder. `info.sequence` is the peer's own number for it."""

    info: FileInfo
    data: bytes = b""

    @property
    def live(self) -> bool:
        return not self.info.deleted and not self.info.invalid


@dataclass(eq=False)
class FakeFolder:
    """The peer's side of one folder. `heard`: the node's newest announcement of each name; `messages`: every Index as it came."""

    id: str
    index_id: int
    files: dict[str, Held] = field(default_factory=dict)
    sequence: int = 0
    shared: bool = True
    paused: bool = False
    heard: dict[str, FileInfo] = field(default_factory=dict)
    heard_index_id: int = 0
    heard_sequence: int = 0
    messages: list[Index] = field(default_factory=list)
    unsent: list[FileInfo] = field(default_factory=list)

    def live(self) -> dict[str, tuple[str, bytes]]:
        """What a user sees: name to type and content."""
        return {
            name: (held.info.type.name, held.data or held.info.symlink_target) for name, held in sorted(self.files.items()) if held.live
        }

    def announced(self) -> list[str]:
        """Names in the order in which the node announced them."""
        return [info.name for message in self.messages for info in message.files]


class _Handler:
    """The link's bytes to events and back."""

    def __init__(self, peer: FakePeer) -> None:
        self.peer = peer
        self.connection = BEPConnection(peer.env.clock.monotonic())
        self.link: Link | None = None
        self.tasks = Tasks(peer.env, peer.crashed)
        self.last_sequences: dict[str, int] = {}

    def link_made(self, link: Link, peer_id: DeviceID) -> None:
        self.link = link
        self.peer.greet(self)

    def get_buffer(self) -> memoryview:
        return self.connection.get_buffer()

    def buffer_updated(self, count: int) -> None:
        if not self.peer.greets:
            return
        for event in self.connection.buffer_updated(count):
            self.peer.handle(self, event)
        self.flush()

    def link_lost(self, reason: Exception | None) -> None:
        self.tasks.cancel()
        self.peer.lost(self)

    def pause_writing(self) -> None:
        """What a test sends is bounded by the test."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def flush(self) -> None:
        if self.link is not None and (data := self.connection.data_to_send()):
            self.link.write(data)


class FakePeer:
    """Switches: `answers` decides what a Request gets (None: no answer); `follows`: takes over what it hears; `exchanges`: sends index and
    ClusterConfig by itself; `lies`: what it says of the node's index is made up by the test; `greets`: speaks and hears BEP at all. `committed`: asked for each item that the node announces, whether the node may (invariant 1)."""

    def __init__(self, env: Env, name: str, node: DeviceID, address: str) -> None:
        self.env, self.name, self.node, self.address = env, name, node, address
        self.device = device_of(name)
        self.short = deviceid.short_id(self.device)
        self.folders: dict[str, FakeFolder] = {}
        self.now_s = MTIME_S
        self.follows = self.exchanges = True
        self.greets = True
        self.lies = False
        self.answers: Callable[[Request], Answer | None] = self.answer
        self.committed: Callable[[str, FileInfo], bool] = lambda _folder, _info: True
        self.requests: list[Request] = []
        self.configs: list[ClusterConfig] = []
        self.closes: list[str] = []
        self.responses: list[Response] = []
        self.losses = 0
        self.troubles: list[str] = []
        self.handler: _Handler | None = None
        self._waiting: dict[int, asyncio.Future[Response]] = {}
        self._next_id = 0
        self._batching = False

    # --- its folder

    def folder(self, folder: str = FOLDER) -> FakeFolder:
        if folder not in self.folders:
            self.folders[folder] = FakeFolder(folder, int.from_bytes(hashlib.sha256(f"{self.name} {folder}".encode()).digest()[:8], "big"))
        return self.folders[folder]

    def write(self, name: str, data: bytes, folder: str = FOLDER, *, mtime: int | None = None, block_size: int = 0, **fields: Any) -> Held:
        """A local edit: new or changed file."""
        size = block_size or block_size_for(len(data))
        cuts = range(0, len(data), size) if data else ()
        hashes = b"".join(hashlib.sha256(data[at : at + size]).digest() for at in cuts)
        old = self.folder(folder).files.get(name)
        before = fileinfo.blocks_hash(old.info.block_hashes) if old is not None and old.info.block_hashes else b""
        return self._changed(
            folder,
            name,
            data,
            FileType.FILE,
            mtime,
            size=len(data),
            block_size=size,
            block_hashes=hashes,
            previous_blocks_hash=before,
            **fields,
        )

    def mkdir(self, name: str, folder: str = FOLDER, **fields: Any) -> Held:
        return self._changed(folder, name, b"", FileType.DIRECTORY, None, **fields)

    def symlink(self, name: str, target: str, folder: str = FOLDER) -> Held:
        return self._changed(folder, name, b"", FileType.SYMLINK, 0, symlink_target=target.encode())

    def delete(self, name: str, folder: str = FOLDER, **fields: Any) -> Held:
        return self._changed(folder, name, b"", self.folder(folder).files[name].info.type, None, deleted=True, **fields)

    def rename(self, old: str, new: str, folder: str = FOLDER) -> None:
        """New name first, deletion next, one message."""
        held = self.folder(folder).files[old]
        with self.batch():
            self.write(new, held.data, folder, mtime=held.info.modified_s)
            self.delete(old, folder)

    def announce(self, info: FileInfo, data: bytes = b"", folder: str = FOLDER) -> Held:
        """Puts an item made by the test into the index, with the next number."""
        at = self.folder(folder)
        at.sequence += 1
        held = at.files[info.name] = Held(fileinfo.replace(info, sequence=at.sequence), data)
        at.unsent.append(held.info)
        if not self._batching:
            self.push()
        return held

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What is changed inside is announced together."""
        self._batching = True
        try:
            yield
        finally:
            self._batching = False
            self.push()

    def _changed(self, folder: str, name: str, data: bytes, kind: FileType, mtime: int | None, **fields: Any) -> Held:
        old = self.folder(folder).files.get(name)
        self.now_s += 1
        version: Vector = fields.pop("version", None) or vector.update(old.info.version if old else (), self.short, self.now_s)
        permissions = 0 if kind is FileType.SYMLINK or fields.get("deleted") else fields.pop("permissions", 0o644)
        info = fileinfo.new(
            name=name,
            type=kind,
            version=version,
            modified_by=self.short,
            permissions=permissions,
            modified_s=self.now_s if mtime is None else mtime,
            **fields,
        )
        return self.announce(info, data, folder)

    # --- how the node keeps what this peer has

    def stored_name(self, name: str) -> str:
        return name

    def stored_version(self, info: FileInfo) -> Vector:
        return info.version

    def plain_content(self, name: str, stored: bytes, folder: str = FOLDER) -> bytes:
        """A file's bytes, given those that the node has stored for it."""
        return stored

    def push(self) -> None:
        """Sends what has changed, if the folder is being exchanged."""
        for folder in self.folders.values():
            infos, folder.unsent = folder.unsent, []
            if infos and self.handler is not None and folder.id in self.handler.last_sequences:
                self.send_index(infos, folder.id, update=True)

    # --- the connection

    async def connect(self) -> None:
        """Dials the node; returns when the link is there."""
        handler = _Handler(self)
        await net.dial(self.env, self.address, identity_of(self.device), self.node, lambda _device, _address: handler)

    def accept(self, device: DeviceID, address: str) -> _Handler | None:
        """For a listener of this peer."""
        return _Handler(self) if device == self.node and self.handler is None else None

    def disconnect(self) -> None:
        """As if the cable were pulled."""
        if self.handler is not None and self.handler.link is not None:
            self.handler.link.abort()

    @property
    def connected(self) -> bool:
        return self.handler is not None

    def greet(self, handler: _Handler) -> None:
        self.handler = handler
        if self.greets:
            handler.connection.send_hello(Hello(self.name, "fake", "v1.29.5", 1, 1))
            handler.flush()
            handler.tasks.spawn(self._keep_alive(handler), f"{self.name} timer")

    async def _keep_alive(self, handler: _Handler) -> None:
        while True:
            await self.env.clock.sleep(30)
            handler.connection.handle_timer(self.env.clock.monotonic())
            handler.flush()

    def lost(self, handler: _Handler) -> None:
        self.losses += 1
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()
        if self.handler is handler:
            self.handler = None

    def crashed(self, name: str, exc: Exception) -> None:
        self.troubles.append(f"{name}: {exc!r}")

    def raw(self, data: bytes) -> None:
        """Bytes past the protocol's state."""
        assert self.handler is not None
        assert self.handler.link is not None
        self.handler.link.write([data])

    def config(self) -> ClusterConfig:
        """All that this peer shares with the node."""
        return ClusterConfig(tuple(self._entry(folder) for folder in self.folders.values() if folder.shared))

    def _entry(self, folder: FakeFolder) -> ClusterFolder:
        mine = ClusterDevice(self.device, self.name, index_id=folder.index_id, max_sequence=folder.sequence)
        theirs = ClusterDevice(self.node, "node", index_id=folder.heard_index_id, max_sequence=folder.heard_sequence)
        return ClusterFolder(FolderID(folder.id), folder.id, folder.paused, (theirs, mine))

    def send_config(self, config: ClusterConfig | None = None) -> None:
        """Says (again) what is shared."""
        assert self.handler is not None
        self.handler.connection.send_cluster_config(config or self.config())
        self.handler.flush()

    def send_index(self, infos: Sequence[FileInfo], folder: str = FOLDER, *, update: bool) -> None:
        """One or more messages of these items, by ascending number."""
        assert self.handler is not None
        by_name = {info.name: info for info in infos}
        ordered = sorted(by_name.values(), key=lambda info: info.sequence)
        for start in range(0, len(ordered), _BATCH):
            part = ordered[start : start + _BATCH]
            encoded = [self.encoded(info) for info in part]
            before = self.handler.last_sequences.get(folder, 0)
            self.handler.connection.send_index(FolderID(folder), encoded, part[-1].sequence, before, update or start > 0)
            self.handler.last_sequences[folder] = part[-1].sequence
        self.handler.flush()

    def encoded(self, info: FileInfo) -> bytes:
        """An item as it goes out."""
        return fileinfo.encode(info.wire, info.sequence, info.size, info.block_size, info.block_hashes)

    # --- what it hears

    def handle(self, handler: _Handler, event: Event) -> None:
        match event:
            case Hello():
                if self.exchanges:
                    self.send_config()
            case ClusterConfig():
                self.configs.append(event)
                if self.exchanges:
                    self._configured(handler, event)
            case Index():
                self._heard(handler, event)
            case Request():
                self.requests.append(event)
                if (reply := self.answers(event)) is not None:
                    handler.connection.send_response(event.id, reply[0], reply[1])
            case Response():
                self.responses.append(event)
                if (future := self._waiting.pop(event.id, None)) is not None and not future.done():
                    future.set_result(event)
            case Close():
                self.closes.append(event.reason)
            case _:
                pass

    def _configured(self, handler: _Handler, config: ClusterConfig) -> None:
        """The delta index handshake, our half (bep-facts 5.3, 5.4)."""
        for folder in self.folders.values():
            entry = config.folder(FolderID(folder.id))
            if not folder.shared or folder.paused or entry is None or entry.paused:
                handler.last_sequences.pop(folder.id, None)
                continue
            ours, theirs = entry.device(self.device), entry.device(self.node)
            assert ours is not None
            assert theirs is not None
            if theirs.index_id != folder.heard_index_id and not self.lies:
                folder.heard, folder.heard_index_id, folder.heard_sequence = {}, theirs.index_id, 0
            delta = ours.index_id == folder.index_id and 0 < ours.max_sequence <= folder.sequence
            after = ours.max_sequence if delta else 0
            infos = [held.info for held in folder.files.values() if held.info.sequence > after]
            handler.last_sequences[folder.id] = after
            folder.unsent = []
            if infos:
                self.send_index(infos, folder.id, update=delta)
            if self.follows:  # what the last connection's end interrupted
                handler.tasks.spawn(self._follow(folder, list(folder.heard.values())), f"{self.name} follows")

    def _heard(self, handler: _Handler, message: Index) -> None:
        folder = self.folders[message.folder]
        folder.messages.append(message)
        assert folder.shared, "an index for a folder that is not shared"
        assert not folder.paused, "an index for a folder that is paused"
        assert len(message.files) <= 1001
        if not message.update:
            folder.heard, folder.heard_sequence = {}, 0
        assert message.prev_sequence == folder.heard_sequence or not message.prev_sequence, "a gap between index messages"
        for info in message.files:
            assert info.sequence > folder.heard_sequence, "numbers do not ascend"
            assert self.committed(message.folder, info), f"{info.name} is announced without being committed"
            fileinfo.check(info)
            folder.heard[info.name], folder.heard_sequence = info, info.sequence
        assert message.last_sequence == folder.heard_sequence
        if self.follows:
            handler.tasks.spawn(self._follow(folder, message.files), f"{self.name} follows")

    # --- blocks

    def answer(self, request: Request) -> Answer:
        """As a real device does: the block if it has it, else no such file."""
        held = self.folder(request.folder).files.get(request.name)
        if held is None or not held.live:
            return b"", 2
        data = held.data[request.offset : request.offset + request.size]
        return (data, 0) if hashlib.sha256(data).digest() == request.hash else (b"", 2)

    async def ask(self, name: str, offset: int, size: int, digest: bytes = b"", folder: str = FOLDER) -> Response:
        """One Request to the node and its answer."""
        return (await self.ask_many([(name, offset, size, digest)], folder))[0]

    async def ask_many(self, blocks: Sequence[tuple[str, int, int, bytes]], folder: str = FOLDER) -> list[Response]:
        """Requests of (name, offset, size, hash), all at once."""
        assert self.handler is not None
        futures: list[asyncio.Future[Response]] = []
        frames: list[bytes] = []
        for name, offset, size, digest in blocks:
            self._next_id += 1
            future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
            self._waiting[self._next_id] = future
            futures.append(future)
            # Made by hand: the codec refuses what only older devices ask for.
            known = self.folder(folder).heard.get(name)
            number = min(offset // known.block_size, 0x7FFF_FFFF) if known is not None and known.block_size else 0
            message = pb.Request(id=self._next_id, folder=folder, name=name, offset=offset, size=size, hash=digest, block_no=number)
            frames.append(frame(MessageType.REQUEST, message.SerializeToString(), pack=False))
        self.raw(b"".join(frames))
        return [await future for future in futures]

    # --- following the node

    async def _follow(self, folder: FakeFolder, infos: Sequence[FileInfo]) -> None:
        for info in infos:
            if self._takes(folder, info) is None:
                continue
            wait_s = 0.5
            while (data := await self._content(folder, info)) is None:
                await self.env.clock.sleep(wait_s)
                wait_s = min(60.0, wait_s * 2)
                if (now := folder.heard.get(info.name)) is None or now.version != info.version:
                    break
            order = self._takes(folder, info)  # it may have been edited meanwhile
            now = folder.heard.get(info.name)
            if data is None or order is None or now is None or now.version != info.version:
                continue
            own = folder.files.get(info.name)
            if order is not Ordering.GREATER and own is not None and self._worth_a_copy(own, info):
                self.write(conflict.conflict_name(info.name, info.modified_by, self.env.clock.now_ns()), own.data, folder.id)
            self.announce(info, data, folder.id)

    def _takes(self, folder: FakeFolder, info: FileInfo) -> Ordering | None:
        """How the node's version stands to ours if it is to be taken over."""
        own = folder.files.get(info.name)
        if info.invalid:
            return None
        if own is None:
            return Ordering.GREATER
        order = vector.compare(info.version, own.info.version)
        if order is Ordering.GREATER:
            return order
        is_concurrent = order in (Ordering.CONCURRENT_GREATER, Ordering.CONCURRENT_LESSER)
        return order if is_concurrent and conflict.wins(info, own.info) else None

    def _worth_a_copy(self, own: Held, info: FileInfo) -> bool:
        is_file = own.live and own.info.type is FileType.FILE and not conflict.is_conflict_copy(own.info.name)
        return is_file and (info.deleted or own.info.block_hashes != info.block_hashes)

    async def _content(self, folder: FakeFolder, info: FileInfo) -> bytes | None:
        """The file's bytes, from what is here or from the node; None if the node does not give them."""
        if info.type is not FileType.FILE or info.deleted or not info.size:
            return b""
        for held in folder.files.values():
            if held.live and held.info.block_hashes == info.block_hashes:
                return held.data
        lengths, width = block_lengths(info.size, info.block_size), fileinfo.hash_bytes(info.block_hashes, info.size, info.block_size)
        wanted = [
            (info.name, index * info.block_size, length, info.block_hashes[width * index : width * (index + 1)])
            for index, length in enumerate(lengths)
        ]
        try:
            responses = await self.ask_many(wanted, folder.id)
        except StnodeError:
            return None
        for response, (_, _, length, digest) in zip(responses, wanted, strict=True):
            if response.code:
                return None
            assert len(response.data) == length
            assert width == TOKEN_BYTES or hashlib.sha256(response.data).digest() == digest, "the node served wrong data"
        return b"".join(bytes(response.data) for response in responses)
