"""Untrusted devices: what a folder's password turns names, metadata, blocks and requests into, and back (bep-facts 10).

Responsible for the bytes of Syncthing's encryption, for one folder and password: `FolderCipher`. Not responsible for who gets what encrypted
(`sharing_state`, node), nor for folders that are stored encrypted: those are kept as they come, nothing here is needed for them.

Sans-IO: random bytes come in. Nothing here is quick enough for the event loop by the hundred: an item costs some 60 µs, a block of 128 KiB
about 100 µs, which OpenSSL spends without the GIL; `folder_key` takes a tenth of a second. All of it may be called from several threads.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from google.protobuf.message import DecodeError

from stnode.errors import Internal, ProtocolError
from stnode.protocol import fileinfo, xchacha
from stnode.protocol.fileinfo import FileInfo
from stnode.protocol.messages import Request
from stnode.protocol.pb import bep_pb2 as pb

OVERHEAD: Final = xchacha.NONCE_BYTES + xchacha.TAG_BYTES
"""A block, or a FileInfo, has so many bytes more when it is encrypted."""
LEAST_BLOCK: Final = 1024
"""Shorter blocks are filled up to this before they are encrypted."""

_SALT: Final = b"syncthing"
_DIRECTORY_SUFFIX: Final = ".syncthing-enc"
_LONGEST_PART: Final = 200
_FAKE_PERMISSIONS: Final = 0o644
_FAKE_MODIFIED_S: Final = 1234567890
_VERSION_ID: Final = 1
_FILES_KEPT: Final = 4096


def folder_key(folder_id: str, password: str) -> bytes:
    """The key of a folder: scrypt, a tenth of a second and 32 MiB. For a thread, never for the event loop."""
    salt = _SALT + folder_id.encode()
    return hashlib.scrypt(password.encode(), salt=salt, n=32768, r=8, p=1, maxmem=64 << 20, dklen=32)


def check_library() -> None:
    """Raises Internal when the OpenSSL in use cannot do what Syncthing does: versions before 3.0.10 and 3.1.2 pass empty associated data
    over without a word (CVE-2023-2975), so that every name would be encrypted wrongly. Costs microseconds; called at the start."""
    key = bytes.fromhex("f2a78ad8aa3995c8b8b977c44213487bbd55240b41b0441d288c9594c9073726")  # folder "default", password "pass"
    token = bytes.fromhex("46c8514a6d407ccd6f2528acc711c90d578aec70c278c77340290548735b64a7")
    if AESSIV(key).encrypt(b"syncthingdefault", [b""]) != token:
        raise Internal(
            "the OpenSSL library of this Python encrypts wrongly (AES-SIV with empty associated data, CVE-2023-2975)",
            hint="install a newer `cryptography` package, or OpenSSL 3.0.10, 3.1.2 or later",
        )


class FileCipher:
    """The keys of one file, by its plain name."""

    __slots__ = ("_key", "_random", "_siv", "encrypted_name", "name")

    def __init__(self, key: bytes, name: str, encrypted_name: str, random: Callable[[int], bytes]) -> None:
        self._key = key
        self._siv = AESSIV(key)
        self._random = random
        self.name = name
        self.encrypted_name = encrypted_name

    def seal(self, data: bytes | memoryview) -> bytes:
        """Encrypts with a fresh nonce: OVERHEAD bytes more, different each time."""
        nonce = self._random(xchacha.NONCE_BYTES)
        return nonce + xchacha.seal(self._key, nonce, data)

    def unseal(self, data: bytes | memoryview) -> bytes | None:
        """Inverse of `seal`; None for what was not sealed with this file's key."""
        if len(data) < OVERHEAD:
            return None
        return xchacha.unseal(self._key, data[: xchacha.NONCE_BYTES], data[xchacha.NONCE_BYTES :])

    def seal_block(self, data: bytes | memoryview) -> bytes:
        """A block for the untrusted device: a short one filled up with random bytes."""
        if len(data) < LEAST_BLOCK:
            data = bytes(data) + self._random(LEAST_BLOCK - len(data))
        return self.seal(data)

    def unseal_block(self, data: bytes | memoryview, size: int) -> memoryview | None:
        """The `size` bytes of a block; None for what was not made with this file's key, or is shorter. The caller checks the hash."""
        plain = self.unseal(data)
        return None if plain is None or len(plain) < size else memoryview(plain)[:size]

    def token(self, digest: bytes, offset: int) -> bytes:
        """What stands for the hash of the block at plaintext `offset`. The second, empty string is the nonce of Syncthing's library."""
        return self._siv.encrypt(digest, [offset.to_bytes(8, "big"), b""])

    def digest(self, token: bytes, offset: int) -> bytes:
        """Inverse of `token`, also for those of very old versions, made without the offset. Raises ProtocolError."""
        for associated in ([offset.to_bytes(8, "big"), b""], [b""]):
            try:
                return self._siv.decrypt(token, associated)
            except InvalidTag:
                continue
        raise ProtocolError(f"a block's token for {self.name!r} was not made with this folder's password")


class FolderCipher:
    """A folder and its password as keys, which never leave the memory. `token` is what both sides compare instead of the password."""

    def __init__(self, folder_id: str, key: bytes, random: Callable[[int], bytes]) -> None:
        self._key = key
        self._siv = AESSIV(key)
        self._random = random
        self._folder_id = folder_id
        self.token = self._siv.encrypt(_SALT + folder_id.encode(), [b""])
        self.file = lru_cache(_FILES_KEPT)(self._file)
        """The keys of a file (`FileCipher`) by its plain name; those used last are kept."""

    def _file(self, name: str) -> FileCipher:
        inner = hmac.digest(_SALT, self._key + name.encode(), "sha256")
        key = hmac.digest(inner, b"\x01", "sha256")  # HKDF-SHA256 for one block of output, without its overhead
        return FileCipher(key, name, self.encrypt_name(name), self._random)

    # --- names

    def encrypt_name(self, name: str) -> str:
        """The same name every time; the directories of the result say nothing of those of `name`."""
        text = base64.b32hexencode(self._siv.encrypt(name.encode(), [b""])).decode().rstrip("=")
        rest = text[3:]
        parts = [text[0] + _DIRECTORY_SUFFIX, text[1:3], *(rest[at : at + _LONGEST_PART] for at in range(0, len(rest), _LONGEST_PART))]
        return "/".join(parts)

    def decrypt_name(self, encrypted: str) -> str:
        """Inverse of `encrypt_name`; raises ProtocolError for a name that was not made with this folder's password."""
        text = encrypted[:1] + encrypted[1 + len(_DIRECTORY_SUFFIX) :].replace("/", "")
        try:
            if not encrypted[1:].startswith(_DIRECTORY_SUFFIX):
                raise ValueError
            return self._siv.decrypt(base64.b32hexdecode(text + "=" * (-len(text) % 8)), [b""]).decode()
        except (ValueError, binascii.Error, InvalidTag):
            raise ProtocolError(f"the name {encrypted!r} was not encrypted with the password of folder {self._folder_id!r}") from None

    # --- items of an index

    def encrypt_item(self, encoded: bytes) -> bytes:
        """What the untrusted device gets for an encoded FileInfo, encoded: all that is told of the item is its size, whether it is a file,
        and whether it is deleted (bep-facts 10.5)."""
        real = pb.FileInfo.FromString(encoded)
        cipher = self.file(real.name)
        fake = pb.FileInfo(
            name=cipher.encrypted_name,
            type=real.type if real.type == fileinfo.FileType.FILE else fileinfo.FileType.DIRECTORY,
            permissions=_FAKE_PERMISSIONS,
            modified_s=_FAKE_MODIFIED_S,
            deleted=real.deleted,
            invalid=real.invalid,
            sequence=real.sequence,
            encrypted=cipher.seal(encoded),
        )
        total = sum(counter.value for counter in real.version.counters)
        fake.version.counters.add(id=_VERSION_ID, value=total & 0xFFFF_FFFF_FFFF_FFFF)
        if real.type == fileinfo.FileType.FILE:
            fake.block_size = max(real.block_size, fileinfo.block_size_for(0)) + OVERHEAD
            for block in real.blocks:
                size = max(block.size, LEAST_BLOCK) + OVERHEAD
                fake.blocks.add(offset=fake.size, size=size, hash=cipher.token(block.hash, block.offset))
                fake.size += size
        return fake.SerializeToString()

    def decrypt_item(self, info: FileInfo) -> FileInfo:
        """The real item of one that an untrusted device announced, with the device's own sequence. Checked like any other; ProtocolError for
        what was not made with the folder's password."""
        name = self.decrypt_name(info.name)
        plain = self.file(name).unseal(pb.FileInfo.FromString(info.wire).encrypted)
        if plain is None:
            raise ProtocolError(f"the metadata of {name!r} was not encrypted with the password of folder {self._folder_id!r}")
        try:
            message = pb.FileInfo.FromString(plain)
        except DecodeError as error:
            raise ProtocolError(f"the decrypted metadata of {name!r} cannot be parsed") from error
        message.ClearField("sequence")
        real = fileinfo.from_wire(message, info.sequence)
        if real.name != name:
            raise ProtocolError(f"the metadata of {name!r} is that of {real.name!r}")
        fileinfo.check(real)
        return real

    # --- requests

    def encrypt_request(self, request: Request) -> Request:
        """A request for a plain block, as the untrusted device understands it (bep-facts 10.6)."""
        cipher = self.file(request.name)
        return Request(
            request.id,
            request.folder,
            cipher.encrypted_name,
            request.offset + request.block_no * OVERHEAD,
            max(request.size, LEAST_BLOCK) + OVERHEAD,
            cipher.token(request.hash, request.offset),
            block_no=request.block_no,
        )

    def decrypt_request(self, request: Request) -> Request:
        """What a request of an untrusted device is for. It does not know how long a short block is: the size is then LEAST_BLOCK, and less
        is to be answered. Its hash may be missing (Syncthing before 1.28.1). ProtocolError when it makes no sense."""
        name = self.decrypt_name(request.name)
        size, offset = request.size - OVERHEAD, request.offset - request.block_no * OVERHEAD
        if size < LEAST_BLOCK or offset < 0:
            raise ProtocolError(f"a request for {request.size} encrypted bytes at {request.offset} of {name!r}, block {request.block_no}")
        digest = self.file(name).digest(request.hash, offset) if request.hash else b""
        return Request(request.id, request.folder, name, offset, size, digest, block_no=request.block_no)
