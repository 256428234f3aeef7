"""Fake peers of encrypted folders: one that has the password, to a node that has not; and one that has not, to a node that has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from stnode.clock import SeededRandomness
from stnode.protocol import encryption, fileinfo
from stnode.protocol.encryption import FolderCipher
from stnode.protocol.fileinfo import FileInfo
from stnode.protocol.messages import ClusterConfig, ClusterFolder, Event, FolderID, Index, Request, Response
from stnode.protocol.vector import Vector
from tests.support.fakepeer import FOLDER, Answer, FakeFolder, FakePeer, _Handler

PASSWORD = "correct horse"
_key = lru_cache(encryption.folder_key)


def cipher_of(password: str = PASSWORD, folder: str = FOLDER) -> FolderCipher:
    """The keys of a folder, derived once."""
    return FolderCipher(folder, _key(folder, password), SeededRandomness(password).bytes)


class TrustedPeer(FakePeer):
    """Sees and edits plain files; the node gets what the password makes of them."""

    cipher: FolderCipher = cipher_of()

    def encoded(self, info: FileInfo) -> bytes:
        return self.cipher.encrypt_item(super().encoded(info))

    def stored_name(self, name: str) -> str:
        return self.cipher.encrypt_name(name)

    def stored_version(self, info: FileInfo) -> Vector:
        return ((1, sum(value for _, value in info.version)),)

    def plain_content(self, name: str, stored: bytes, folder: str = FOLDER) -> bytes:
        return opened(self.cipher, self.folder(folder).files[name].info, stored)

    def _entry(self, folder: FakeFolder) -> ClusterFolder:
        entry = super()._entry(folder)
        node, own = entry.devices
        return replace(entry, devices=(replace(node, encryption_password_token=self.cipher.token), own))

    def handle(self, handler: _Handler, event: Event) -> None:
        if not isinstance(event, Index):
            super().handle(handler, event)
            return
        for info in event.files:
            assert self.committed(event.folder, info), f"{info.name} is announced without being committed"
        committed, self.committed = self.committed, lambda _folder, _info: True  # what follows has other names
        super().handle(handler, replace(event, files=[self.cipher.decrypt_item(info) for info in event.files]))
        self.committed = committed

    def answer(self, request: Request) -> Answer:
        plain = self.cipher.decrypt_request(request)
        data, code = super().answer(plain)
        return (b"", code) if code else (self.cipher.file(plain.name).seal_block(data), 0)

    async def ask_many(self, blocks: Sequence[tuple[str, int, int, bytes]], folder: str = FOLDER) -> list[Response]:
        wanted = []
        for name, offset, size, digest in blocks:
            number = offset // self.folder(folder).heard[name].block_size
            request = self.cipher.encrypt_request(Request(0, FolderID(folder), name, offset, size, digest, block_no=number))
            wanted.append((request.name, request.offset, request.size, request.hash))
        responses = await super().ask_many(wanted, folder)
        return [self._opened(response, block) for response, block in zip(responses, blocks, strict=True)]

    def _opened(self, response: Response, block: tuple[str, int, int, bytes]) -> Response:
        if response.code:
            return response
        data = self.cipher.file(block[0]).unseal_block(response.data, block[2])
        assert data is not None, f"{block[0]} cannot be decrypted"
        return replace(response, data=data)


class UntrustedPeer(FakePeer):
    """Keeps what it gets, as it gets it, and the first token that it hears once it `has_folder`."""

    token = b""
    has_folder = True

    def _entry(self, folder: FakeFolder) -> ClusterFolder:
        entry = super()._entry(folder)
        node, own = entry.devices
        return replace(entry, devices=(node, replace(own, encryption_password_token=self.token)))

    def config(self) -> ClusterConfig:
        return super().config() if self.token else ClusterConfig()

    def handle(self, handler: _Handler, event: Event) -> None:
        if isinstance(event, ClusterConfig) and not self.token and self.has_folder:
            for folder in event.folders:
                entry = folder.device(self.device)
                self.token = entry.encryption_password_token if entry is not None else b""
            if self.token:
                self.send_config()
        if isinstance(event, Index):
            committed, self.committed = self.committed, lambda _folder, _info: True
            super().handle(handler, event)
            self.committed = committed
            return
        super().handle(handler, event)

    def answer(self, request: Request) -> Answer:
        held = self.folder(request.folder).files.get(request.name)
        if held is None or not held.live:
            return b"", 2
        data = held.data[request.offset : request.offset + request.size]
        return (data, 0) if len(data) == request.size else (b"", 2)

    def plain(self, cipher: FolderCipher, folder: str = FOLDER) -> dict[str, tuple[str, bytes]]:
        """What somebody with the password sees of what is here: as `FakeFolder.live`."""
        found: dict[str, tuple[str, bytes]] = {}
        for held in self.folder(folder).files.values():
            info = cipher.decrypt_item(held.info)
            if not info.deleted and not info.invalid:
                found[info.name] = (info.type.name, opened(cipher, info, held.data) if info.block_hashes else info.symlink_target)
        return found


def opened(cipher: FolderCipher, info: FileInfo, data: bytes) -> bytes:
    """The content of a file, given its real FileInfo and its encrypted blocks back to back."""
    parts: list[bytes] = []
    at = 0
    for length in fileinfo.block_lengths(info.size, info.block_size):
        size = max(length, encryption.LEAST_BLOCK) + encryption.OVERHEAD
        block = cipher.file(info.name).unseal_block(data[at : at + size], length)
        assert block is not None, f"{info.name} cannot be decrypted"
        parts.append(bytes(block))
        at += size
    return b"".join(parts)
