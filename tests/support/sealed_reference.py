"""Encryption at rest written down a second time, from docs/format.md and the RFCs alone, slow and plain: what `stnode/objectstore/sealing.py`
is compared with. HKDF is RFC 5869, AES-SIV RFC 5297."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC

SEGMENT = 65536
ALPHABET = "0123456789abcdefghijklmnopqrstuv"


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256."""
    pseudorandom = hmac.digest(salt or bytes(32), secret, "sha256")
    made, block = b"", b""
    while len(made) < length:
        block = hmac.digest(pseudorandom, block + info + bytes((len(made) // 32 + 1,)), "sha256")
        made += block
    return made[:length]


def seal_object(master: bytes, key: str, salt: bytes, content: bytes) -> bytes:
    """A sealed object."""
    object_key = hkdf(hkdf(master, b"", b"stnode 1 objects", 32), salt, b"stnode 1 object " + key.encode(), 32)
    header = b"stnE" + b"\x01\x00\x00\x00" + salt
    pieces = [content[at : at + SEGMENT] for at in range(0, len(content), SEGMENT)] or [b""]
    sealed = b""
    for number, piece in enumerate(pieces):
        nonce = number.to_bytes(11, "big") + (b"\x01" if number == len(pieces) - 1 else b"\x00")
        cipher = Cipher(algorithms.AES256(object_key), modes.GCM(nonce)).encryptor()
        cipher.authenticate_additional_data(header)
        sealed += header + cipher.update(piece) + cipher.finalize() + cipher.tag
    return sealed


def siv(key: bytes, associated: bytes, plain: bytes) -> bytes:
    """AES-SIV with one string of associated data, of 16 bytes and more: the synthetic IV, then the ciphertext."""
    half = len(key) // 2

    def mac(data: bytes) -> bytes:
        cmac = CMAC(algorithms.AES(key[:half]))
        cmac.update(data)
        return cmac.finalize()

    digest = _xor(_double(mac(bytes(16))), mac(associated))
    vector = mac(plain[:-16] + _xor(plain[-16:], digest))
    start = bytearray(vector)
    start[8] &= 0x7F
    start[12] &= 0x7F
    encryptor = Cipher(algorithms.AES(key[half:]), modes.CTR(bytes(start))).encryptor()
    return vector + encryptor.update(plain) + encryptor.finalize()


def pseudonym(master: bytes, parent: str, name: str) -> str:
    """A part of a key as it is stored."""
    padded = name.encode() + bytes(-len(name.encode()) % 32)
    sealed = siv(hkdf(master, b"", b"stnode 1 names", 64), parent.encode(), padded)
    bits = "".join(f"{byte:08b}" for byte in sealed)
    bits += "0" * (-len(bits) % 5)
    return "".join(ALPHABET[int(bits[at : at + 5], 2)] for at in range(0, len(bits), 5))


def wrap_master(passphrase: str, slot_head: bytes, salt: bytes, cost: tuple[int, int, int], nonce: bytes, master: bytes) -> bytes:
    """The wrapped master key of a slot."""
    n, r, p = cost
    key = hashlib.scrypt(passphrase.encode(), salt=salt, n=n, r=r, p=p, maxmem=1 << 30, dklen=32)
    cipher = Cipher(algorithms.AES256(key), modes.GCM(nonce)).encryptor()
    cipher.authenticate_additional_data(b"stnode key slot " + slot_head)
    return cipher.update(master) + cipher.finalize() + cipher.tag


def _double(block: bytes) -> bytes:
    number = int.from_bytes(block, "big") << 1
    return ((number & ((1 << 128) - 1)) ^ (0x87 if number >> 128 else 0)).to_bytes(16, "big")


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
