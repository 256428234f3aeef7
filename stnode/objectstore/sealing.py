"""Encryption at rest: what turns bytes and names into what the bucket's owner sees, and back (docs/format.md, Encryption at rest).

Pure: keys, salts and nonces come in. The door to the ciphers of `cryptography`. Knows nothing of what is encrypted; which parts of keys
are names, and where the passphrases are, is decided above.

An object is sealed in segments of 64 KiB, each of which says by itself how it is read, so that a range needs no other request:

    segment = header (magic, version, salt of the object) ciphertext tag

The key of a segment is derived from the master key, the salt and the object's key; its nonce is its number and whether it is the last.
So segments cannot change places, objects neither, and nothing can be cut off.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from stnode.errors import Corrupt, Refused
from stnode.objectstore.base import Buffer, size_of

VERSION: Final = 1
MASTER_BYTES: Final = 32
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 12
SEGMENT_BYTES: Final = 65_536
"""Plaintext of a segment; only the last one of an object has less."""

_MAGIC = b"stnE"
_HEADER_BYTES = 8 + SALT_BYTES
_TAG_BYTES = 16
OVERHEAD_BYTES: Final = _HEADER_BYTES + _TAG_BYTES
STORED_SEGMENT_BYTES: Final = SEGMENT_BYTES + OVERHEAD_BYTES
_NAME_PADDING = 32
_LABEL_BYTES = 64
_DAMAGED_HINT = "run `stnode bucket check`; bring the object back from a backup of the bucket"


class StoreKeys:
    """All keys of one store, derived from its master key. Shows none of them."""

    __slots__ = ("_labels", "_names", "_objects")

    def __init__(self, master: bytes) -> None:
        assert len(master) == MASTER_BYTES
        self._objects = _derived(master, b"", b"objects", 32)
        self._names = AESSIV(_derived(master, b"", b"names", 64))
        self._labels = AESSIV(_derived(master, b"", b"labels", 64))

    def object_cipher(self, key: str, salt: bytes) -> AESGCM:
        """The cipher of one object."""
        return AESGCM(_derived(self._objects, salt, b"object " + key.encode(), 32))

    def seal_name(self, parent: str, name: str) -> str:
        """The pseudonym of one part of a key, `[0-9a-v]`, always the same; `parent` is the key before it. Tells the length in steps of 32."""
        plain = name.encode()
        sealed = self._names.encrypt(plain + bytes(-len(plain) % _NAME_PADDING), [parent.encode()])
        return base64.b32hexencode(sealed).rstrip(b"=").lower().decode()

    def open_name(self, parent: str, pseudonym: str) -> str | None:
        """The name of a pseudonym; None when it is none of this store and parent."""
        try:
            sealed = base64.b32hexdecode(pseudonym.upper() + "=" * (-len(pseudonym) % 8))
            return self._names.decrypt(sealed, [parent.encode()]).rstrip(b"\0").decode()
        except (binascii.Error, InvalidTag, ValueError):
            return None

    def seal_label(self, slot_id: str, label: str) -> bytes:
        """A key slot's label, of at most 64 bytes, without its length."""
        return self._labels.encrypt(label.encode().ljust(_LABEL_BYTES, b"\0"), [slot_id.encode()])

    def open_label(self, slot_id: str, sealed: bytes) -> str:
        """Raises Corrupt."""
        try:
            return self._labels.decrypt(sealed, [slot_id.encode()]).rstrip(b"\0").decode()
        except (InvalidTag, ValueError) as exc:
            raise Corrupt(f"the label of key slot {slot_id} is damaged") from exc


# --- objects


def stored_size(size_bytes: int) -> int:
    """Bytes that an object of this size takes when it is sealed."""
    return size_bytes + OVERHEAD_BYTES * max(1, -(-size_bytes // SEGMENT_BYTES))


def plain_size(stored_bytes: int) -> int | None:
    """Bytes in a sealed object of this stored size; None when no sealed object has it."""
    count = -(-stored_bytes // STORED_SEGMENT_BYTES)
    last = stored_bytes - (count - 1) * STORED_SEGMENT_BYTES
    if count == 0 or last < OVERHEAD_BYTES + (count > 1):
        return None
    return stored_bytes - count * OVERHEAD_BYTES


def seal(keys: StoreKeys, key: str, salt: bytes, data: Sequence[Buffer]) -> list[Buffer]:
    """The buffers of the sealed object. `salt` is random and never used again. Buffers are copied only where a segment joins several."""
    header = _MAGIC + bytes((VERSION, 0, 0, 0)) + salt
    cipher = keys.object_cipher(key, salt)
    last = max(0, size_of(data) - 1) // SEGMENT_BYTES
    sealed: list[Buffer] = []
    for number, segment in enumerate(_segments(data)):
        sealed += (header, cipher.encrypt(_nonce(number, final=number == last), segment, header))
    return sealed


def unseal(keys: StoreKeys, key: str, data: bytes, first: int, stored_bytes: int, skip: int, length: int) -> bytes:
    """`length` bytes from `skip` on of what the segments in `data` hold; `data` begins with segment `first` and ends with a segment's
    end, `stored_bytes` is the size of the whole sealed object. Raises Corrupt, and Refused for a newer version."""
    view = memoryview(data)
    header = bytes(view[:_HEADER_BYTES])
    _check_header(key, header)
    cipher = keys.object_cipher(key, header[8:])
    last = (stored_bytes - 1) // STORED_SEGMENT_BYTES
    opened: list[Buffer] = []
    for at in range(0, len(view), STORED_SEGMENT_BYTES):
        number = first + at // STORED_SEGMENT_BYTES
        segment = view[at : at + STORED_SEGMENT_BYTES]
        try:
            if segment[:_HEADER_BYTES] != header:
                raise InvalidTag
            opened.append(cipher.decrypt(_nonce(number, final=number == last), segment[_HEADER_BYTES:], header))
        except InvalidTag as exc:
            raise Corrupt(f"{key} cannot be decrypted: its segment {number} is damaged or belongs elsewhere", hint=_DAMAGED_HINT) from exc
    if len(opened) == 1 and skip == 0 and len(opened[0]) == length:
        return bytes(opened[0])
    return _cut(opened, skip, length)


def _cut(parts: list[Buffer], skip: int, length: int) -> bytes:
    """Some bytes of the parts joined, copied once."""
    over = size_of(parts) - skip - length
    parts[0] = memoryview(parts[0])[skip:]
    if over:
        parts[-1] = memoryview(parts[-1])[:-over]
    return b"".join(parts)


def _check_header(key: str, header: bytes) -> None:
    if len(header) < _HEADER_BYTES or header[:4] != _MAGIC:
        raise Corrupt(f"{key} is damaged or not encrypted", hint=_DAMAGED_HINT)
    if header[4] != VERSION:
        raise Refused(f"{key} is encrypted by version {header[4]}, this stnode knows {VERSION}", hint="update stnode on this node")


def _nonce(number: int, *, final: bool) -> bytes:
    return number.to_bytes(NONCE_BYTES - 1, "big") + bytes((final,))


def _segments(data: Sequence[Buffer]) -> Iterator[Buffer]:
    """The plaintext in segments: at least one, all but the last full."""
    pending: list[memoryview] = []
    missing = SEGMENT_BYTES
    made = False
    for part in data:
        view = memoryview(part).cast("B")
        while view.nbytes:
            piece = view[:missing]
            view = view[piece.nbytes :]
            missing -= piece.nbytes
            pending.append(piece)
            if not missing:
                yield pending[0] if len(pending) == 1 else b"".join(pending)
                pending, missing, made = [], SEGMENT_BYTES, True
    if pending or not made:
        yield b"".join(pending)


# --- master key


def scrypt(passphrase: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    """The key that a passphrase makes: 128 · n · r bytes of memory and tenths of a second, so for a thread."""
    return Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(passphrase)


def wrap_master(passphrase_key: bytes, nonce: bytes, master: bytes, about: bytes) -> bytes:
    """The master key sealed by a passphrase's key, bound to `about`."""
    return AESGCM(passphrase_key).encrypt(nonce, master, about)


def unwrap_master(passphrase_key: bytes, nonce: bytes, wrapped: bytes, about: bytes) -> bytes | None:
    """The master key; None when this is another passphrase's key, or anything was changed."""
    try:
        return AESGCM(passphrase_key).decrypt(nonce, wrapped, about)
    except InvalidTag:
        return None


def _derived(secret: bytes, salt: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt or None, b"stnode 1 " + purpose).derive(secret)
