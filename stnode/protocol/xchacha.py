"""XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03): what Syncthing encrypts blocks and metadata with (bep-facts 10.3).

OpenSSL has ChaCha20-Poly1305 with its short nonce only. The long nonce needs one step more: HChaCha20 makes a key of its own from the key and
the nonce's first 16 bytes. ChaCha20 itself gives it: its first block is the wanted words plus the words that it began with.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16

_BLOCK: Final = Struct("<16I")
_WORDS: Final = Struct("<4I")
_KEY: Final = Struct("<8I")
_CONSTANTS: Final = _WORDS.unpack(b"expand 32-byte k")
_ZEROS: Final = bytes(64)
_MASK: Final = 0xFFFF_FFFF


def seal(key: bytes, nonce: bytes, plain: bytes | memoryview) -> bytes:
    """Ciphertext and tag, TAG_BYTES longer than `plain`. `key` has 32 bytes, `nonce` NONCE_BYTES and is never used twice with it."""
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])).encrypt(bytes(4) + nonce[16:], plain, None)


def unseal(key: bytes, nonce: bytes | memoryview, sealed: bytes | memoryview) -> bytes | None:
    """The plaintext, or None when it was not sealed with this key and nonce, or changed since."""
    nonce = bytes(nonce)
    try:
        return ChaCha20Poly1305(hchacha20(key, nonce[:16])).decrypt(bytes(4) + nonce[16:], sealed, None)
    except InvalidTag:
        return None


def hchacha20(key: bytes, head: bytes) -> bytes:
    """The key for one long nonce, of which `head` is the first 16 bytes."""
    words = _BLOCK.unpack(Cipher(algorithms.ChaCha20(key, head), mode=None).encryptor().update(_ZEROS))
    a, b, c, d = _CONSTANTS
    e, f, g, h = _WORDS.unpack(head)
    return _KEY.pack(
        (words[0] - a) & _MASK,
        (words[1] - b) & _MASK,
        (words[2] - c) & _MASK,
        (words[3] - d) & _MASK,
        (words[12] - e) & _MASK,
        (words[13] - f) & _MASK,
        (words[14] - g) & _MASK,
        (words[15] - h) & _MASK,
    )
