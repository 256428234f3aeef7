"""One connection to one device: the link's bytes, the protocol's events, the folders' work.

Responsible for: the order of things on a connection (Hello, ClusterConfig, index exchange), the request window of the device,
announcing commits, back-pressure both ways. Not responsible for: who may connect (`connections`), what is needed
(`folder.runner`), bytes on the wire (`protocol.connection`).

Tasks of a session: `control` sends our ClusterConfig and handles the peer's and its Indexes in order of arrival; `serve` answers
Requests; `announce` sends what was committed; `timer` keeps the connection alive and ends one that answers nothing. Reading stops
while `control` or `serve` is far behind. Responses are handed to the transfers in the turn in which they arrive. All tasks end with
the link.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, assert_never

from stnode.clock import Env
from stnode.errors import ProtocolError
from stnode.folder.runner import FolderRunner
from stnode.folder.transfer import Answer, Ask, Transfer
from stnode.net.base import Link
from stnode.node.announcer import Announcer
from stnode.node.asks import Answers, Asks
from stnode.node.peer_session import PeerSession
from stnode.node.sealed_blocks import decrypt_items, decrypt_requests, encrypt_blocks
from stnode.protocol import fileinfo
from stnode.protocol.announce import Start
from stnode.protocol.blocks import TOKEN_BYTES
from stnode.protocol.connection import BEPConnection
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.encryption import LEAST_BLOCK, FolderCipher
from stnode.protocol.messages import (
    Claim,
    Close,
    ClusterConfig,
    DownloadProgress,
    ErrorCode,
    Event,
    FolderID,
    Hello,
    Hint,
    Index,
    Ping,
    Request,
    Response,
)
from stnode.telemetry import get_logger

_log = get_logger(__name__)

_CONTROL_QUEUE = 4
_REQUEST_QUEUE = 10_000
_ANSWER_S = 5.0
"""A ClusterConfig that comes so soon after ours may be the answer to it."""
_SERVE_BATCH = 256
_SERVE_TASKS = 2
_FLUSH_BYTES = 4 << 20


class SessionHost(Protocol):
    """What a session asks of its node."""

    def hello(self) -> Hello: ...
    def introduced(self, session: Session) -> None: ...
    def ended(self, session: Session, reason: str) -> None: ...
    def announcer(self, runner: FolderRunner, cipher: FolderCipher | None) -> Announcer: ...
    async def cluster_config(self, session: Session) -> ClusterConfig: ...
    async def shared_folders(self, session: Session, config: ClusterConfig) -> Mapping[str, Agreed]: ...


@dataclass(frozen=True, slots=True)
class Agreed:
    """A folder that both sides list and that runs on both: the device's index ID, where our announcing begins, and the keys by which the
    device gets it, None where it gets it as it is."""

    runner: FolderRunner
    peer_index_id: int
    start: Start
    cipher: FolderCipher | None = None


@dataclass(slots=True)
class _Shared:
    """A folder under way on this connection. `index_id` is ours, as the announcing began with it."""

    runner: FolderRunner
    announcer: Announcer
    index_id: int
    cipher: FolderCipher | None


class Session(PeerSession):
    """A link handler (net.base) and a source of blocks (folder.transfer). Made by `connections` for an accepted device.

    `device` is the device's small number in the folder index; `host` decides all that concerns more than this connection.
    """

    what = "device"

    def __init__(self, env: Env, device_id: DeviceID, device: int, connection: BEPConnection, host: SessionHost) -> None:
        super().__init__(env, device_id, connection)
        self._host = host
        self._config: ClusterConfig | None = None
        self._sent_config: ClusterConfig = ClusterConfig()
        self._sent_config_at = 0.0
        self.device = device
        self.hello: Hello | None = None
        self._asks = Asks(env, self._spawn, self._send_requests, self._deliver, self._bytes_in)
        self.folders: dict[str, _Shared] = {}
        self._formerly_shared: set[str] = set()
        self._control: deque[ClusterConfig | Index] = deque()
        self._control_wake = asyncio.Event()
        self._requests: deque[Request] = deque()
        self._serve_wake = asyncio.Event()
        self._announce_wake = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._stalled = False
        self._config_due = False

    # --- the link (net.base.LinkHandler)

    def link_made(self, link: Link, peer_id: DeviceID) -> None:
        """TLS is up and the device is who it should be."""
        self._begin(link, self._host.hello())

    def buffer_updated(self, count: int) -> None:
        """`count` bytes of plaintext arrived. A peer that breaks the protocol is told why and disconnected."""
        self._heard_at = self._env.clock.monotonic()
        try:
            events = self._conn.buffer_updated(count)
        except ProtocolError as exc:
            self.close(exc.message)
            return
        responses: list[Response] = []
        for event in events:
            if isinstance(event, Response):
                responses.append(event)
            else:
                self._handle(event)
        if responses:
            self._asks.came(responses)
        self.flush()

    def pause_writing(self) -> None:
        """The peer reads slower than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It caught up."""
        self._writable.set()

    def link_lost(self, reason: Exception | None) -> None:
        """The link is gone: requests are given back, tasks end."""
        self._lost(reason)
        lost = self._asks.give_back()
        for shared in self.folders.values():
            shared.runner.peer_down(self, lost.pop(shared.runner.transfer, []))
        for transfer, contexts in lost.items():
            transfer.source_down(self, contexts)
        self.folders.clear()
        self._host.ended(self, self.last_error)

    # --- for the folders (folder.transfer.Source)

    @property
    def bytes_in_flight(self) -> int:
        """Bytes that were asked for and have not come."""
        return self._asks.bytes_in_flight

    @property
    def requests_in_flight(self) -> int:
        """Requests that are not answered."""
        return self._asks.requests_in_flight

    def request(self, receiver: Transfer, folder: str, asks: Sequence[Ask]) -> None:
        """Asks for blocks of a folder that is shared on this connection."""
        self._asks.ask(receiver, folder, asks, self.folders[folder].cipher)

    def _send_requests(self, requests: Sequence[Request]) -> None:
        self._conn.send_requests(requests)
        self.flush()

    def _bytes_in(self) -> int:
        return 0 if self.link is None else self.link.bytes_in

    def announce(self, fid: int) -> None:
        """Something was committed."""
        self._announce_wake.set()

    def resend_config(self) -> None:
        """What we share, or hold of the peer's index, changed: sends our ClusterConfig, then evaluates the peer's last one anew."""
        self._config_due = True
        self._control_wake.set()

    # --- events

    def _handle(self, event: Event) -> None:
        match event:
            case Hello():
                self.hello = event
                self._host.introduced(self)
                self._spawn(self._control_loop(), "control")
                for number in range(_SERVE_TASKS):
                    self._spawn(self._serve_loop(), f"serve {number}")
                self._spawn(self._announce_loop(), "announce")
            case Request():
                self._requests.append(event)
                self._serve_wake.set()
                self._hold_back()
            case ClusterConfig() | Index():
                self._control.append(event)
                self._control_wake.set()
                self._hold_back()
            case Close():
                self._closed_by_peer(event.reason)
            case DownloadProgress() | Ping() | Response() | Hint() | Claim():
                pass  # hints and claims are listened to only from siblings
            case _:
                assert_never(event)

    def _hold_back(self) -> None:
        """Stops reading when the peer is far ahead of us, and goes on when we have caught up."""
        if self.link is None:
            return
        if not self._stalled:
            if len(self._control) > _CONTROL_QUEUE or len(self._requests) > _REQUEST_QUEUE:
                self._stalled = True
                self.link.pause_reading()
        elif len(self._control) <= _CONTROL_QUEUE // 2 and len(self._requests) <= _REQUEST_QUEUE // 2:
            self._stalled = False
            self._asks.note_progress()
            self.link.resume_reading()

    def _deliver(self, answers: Answers) -> None:
        groups: dict[Transfer, list[Answer]] = {}
        for receiver, answer in answers:
            groups.setdefault(receiver, []).append(answer)
        # The window is the device's: folders that have less under way are the first to use what has become free.
        others = [shared.runner.transfer for shared in self.folders.values() if shared.runner.transfer not in groups]
        for transfer in sorted(others, key=_under_way):
            transfer.pump()
        for receiver, came in sorted(groups.items(), key=lambda group: _under_way(group[0])):
            receiver.answered(self, came)

    async def _control_loop(self) -> None:
        """ClusterConfig and Index messages, one after the other."""
        self._config_due = False
        await self._send_config()
        while True:
            await self._control_wake.wait()
            self._control_wake.clear()
            while self._control or self._config_due:
                if self._config_due:
                    self._config_due = False
                    await self._send_config()
                    if self._config is not None:
                        await self._configured(self._config, again=True)
                    continue
                message = self._control.popleft()
                if isinstance(message, ClusterConfig):
                    await self._configured(message)
                else:
                    await self._receive_index(message)
                self._hold_back()

    async def _receive_index(self, message: Index) -> None:
        shared = self.folders.get(message.folder)
        if shared is not None:
            if shared.cipher is not None:
                message = replace(message, files=await self._env.threads.run(decrypt_items, shared.cipher, message.files))
            _check_hashes(message, shared.runner.hash_bytes)
            await shared.runner.receive_index(self.device, message)
        elif message.folder not in self._formerly_shared:  # else it crossed a ClusterConfig, ours or its own
            raise ProtocolError(f"index for folder {message.folder!r}, which is not shared")

    async def _send_config(self) -> None:
        """Follows the journal to its head, so that no peer sees an older state than before (R15), then says what we share."""
        self._sent_config = await self._host.cluster_config(self)
        self._sent_config_at = self._env.clock.monotonic()
        self._conn.send_cluster_config(self._sent_config)
        self.flush()

    async def _configured(self, config: ClusterConfig, *, again: bool = False) -> None:
        """The peer's ClusterConfig replaces the one before: index exchange starts anew for its folders. `again`: it is the one of
        before, our own settings changed; what goes on as it was is not announced from the beginning."""
        if config.secondary:
            return
        self._config = config
        if not again and self._lacks_a_token(config) and self._env.clock.monotonic() - self._sent_config_at > _ANSWER_S:
            self._config_due = True
        wanted = await self._host.shared_folders(self, config)
        for folder, shared in list(self.folders.items()):
            if folder not in wanted or wanted[folder].runner is not shared.runner:
                del self.folders[folder]
                self._formerly_shared.add(folder)
                shared.runner.peer_down(self, [])
        for folder, agreed in wanted.items():
            runner, index_id = agreed.runner, agreed.runner.settings.index_id
            known = self.folders.get(folder)
            if known is not None and known.cipher is not agreed.cipher:
                raise ProtocolError(
                    f"the password of folder {folder!r} for the device was changed"
                )  # begin anew: what is under way has the old one
            if again and known is not None and known.index_id == index_id:
                continue
            await runner.begin_index(self.device, agreed.peer_index_id)
            shared = known or _Shared(runner, self._host.announcer(runner, agreed.cipher), index_id, agreed.cipher)
            shared.index_id = index_id
            shared.announcer.start(agreed.start.after, full=agreed.start.full)
            self.folders[folder] = shared
            runner.peer_up(self)
        self._announce_wake.set()

    def _lacks_a_token(self, config: ClusterConfig) -> bool:
        """Whether the device lists a folder no longer, or not yet, that we give it encrypted. One that has just made it there lists it only
        after it has heard our token, and a real one heard it, if at all, before there was the folder: our ClusterConfig goes out again. Not
        in answer to an answer, so that two nodes do not go on for ever."""
        return any(
            entry.encryption_password_token and config.folder(folder.id) is None
            for folder in self._sent_config.folders
            if (entry := folder.device(self.device_id)) is not None
        )

    async def _serve_loop(self) -> None:
        """Requests in batches. Stops while the peer does not take what it asked for."""
        while True:
            while not self._requests:
                self._serve_wake.clear()
                await self._serve_wake.wait()
            await self._writable.wait()
            batches: dict[str, list[Request]] = {}
            size = 0
            while self._requests and size < _FLUSH_BYTES and sum(map(len, batches.values())) < _SERVE_BATCH:
                request = self._requests.popleft()
                size += request.size
                batches.setdefault(request.folder, []).append(request)
            for folder, requests in batches.items():
                shared = self.folders.get(folder)
                if shared is None:
                    for request in requests:
                        self._reply(request.id, b"", ErrorCode.GENERIC)
                elif shared.cipher is None:
                    await shared.runner.server.answer(requests, self._reply)
                else:
                    await self._serve_encrypted(shared.runner, shared.cipher, requests)
            self.flush()
            self._hold_back()

    async def _serve_encrypted(self, runner: FolderRunner, cipher: FolderCipher, requests: Sequence[Request]) -> None:
        """Answers an untrusted device: what it asks for is decrypted, what it gets encrypted."""
        asked = await self._env.threads.run(decrypt_requests, cipher, requests)
        names = {request.id: request.name for request in asked if request is not None}
        blocks: list[tuple[int, memoryview | bytes]] = []

        def collect(request_id: int, data: memoryview | bytes, code: ErrorCode) -> None:
            if code:
                self._reply(request_id, b"", code)
            else:
                blocks.append((request_id, data))

        await runner.server.answer([request for request in asked if request is not None], collect, least=LEAST_BLOCK)
        sealed = await self._env.threads.run(encrypt_blocks, cipher, [(names[request_id], data) for request_id, data in blocks])
        for (request_id, _), data in zip(blocks, sealed, strict=True):
            self._reply(request_id, data, ErrorCode.NO_ERROR)
        for request in requests:
            if request.id not in names:
                self._reply(request.id, b"", ErrorCode.GENERIC)

    def _reply(self, request_id: int, data: memoryview | bytes, code: ErrorCode) -> None:
        if not self._closing:
            self._conn.send_response(request_id, data, code)

    async def _announce_loop(self) -> None:
        while True:
            await self._announce_wake.wait()
            self._announce_wake.clear()
            for folder, shared in list(self.folders.items()):
                while (batch := await shared.announcer.next_batch()) is not None:
                    if self.folders.get(folder) is not shared:
                        break
                    self._conn.send_index(FolderID(folder), batch.files, batch.last_sequence, batch.prev_sequence, batch.update)
                    self.flush()
                    await self._writable.wait()

    def _tick(self) -> None:
        if not self._stalled and self._asks.is_stuck():
            self.close("requests were not answered")

    def _spawn(self, coro: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.spawn(coro, f"{name} {self.device}")


def _check_hashes(message: Index, hash_bytes: int) -> None:
    """Raises ProtocolError when a file is plain in an encrypted folder, or the other way round."""
    for info in message.files:
        if info.block_hashes and fileinfo.hash_bytes(info.block_hashes, info.size, info.block_size) != hash_bytes:
            kind = "encrypted" if hash_bytes == TOKEN_BYTES else "plain"
            raise ProtocolError(f"{info.name!r} in the index of folder {message.folder!r}, which is {kind} here, is not")


def _under_way(transfer: Transfer) -> int:
    return transfer.bytes_in_flight
