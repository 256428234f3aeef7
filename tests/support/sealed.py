"""A bucket in the clear as nodes of an encrypted store reach it: tests and witnesses read keys and contents, nodes and faults meet
ciphertext. What a node puts is opened, and refused by an error where it is not sealed as it has to be; what it gets is sealed by the
version's ETag, so that all ranges of a version fit together.

    Encrypted (stnode/objectstore/encrypted.py) -> faults -> Sealed -> the bucket
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from stnode.clock import Env
from stnode.errors import NotFound
from stnode.objectstore.base import Blob, Buffer, IfMatch, Key, Meta, Mode, ObjectStore, PutResult, beyond_end
from stnode.objectstore.encrypted import Encrypted, _Names
from stnode.objectstore.sealing import SALT_BYTES, StoreKeys, plain_size, seal, stored_size, unseal
from stnode.objectstore.wrappers import Wrapper
from stnode.repo import layout

KEYS = StoreKeys(b"the master key of encrypted test")
_KEPT = 16


def encrypted(objects: ObjectStore, env: Env) -> Encrypted:
    """What a node puts around its way to a `Sealed` bucket."""
    return Encrypted(objects, env, KEYS, layout.SECRECY)


class Sealed(Wrapper):
    """See above. `flipped`: bytes, counted in the sealed object, that are wrong whenever they are read, until the object is put again."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.flipped: dict[Key, int] = {}
        self._names = _Names(KEYS, layout.SECRECY)
        self._versions: dict[tuple[Key, str], bytes] = {}

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        plain_key = self._opened(key)
        if self._names.readable(key):
            return await self.inner.get(plain_key, start, length)
        meta, data = await self._version(plain_key)
        if start >= len(data) and (start or length is not None):
            raise beyond_end(key, start, len(data))
        return Blob(replace(meta, key=key, size_bytes=len(data)), data[start : None if length is None else start + length])

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        plain_key = self._opened(key)
        if self._names.readable(key):
            return await self.inner.put(plain_key, data, mode)
        sealed = b"".join(data)
        size = plain_size(len(sealed))
        assert size is not None, f"{plain_key} is put with {len(sealed)} bytes, which are not sealed"
        result = await self.inner.put(plain_key, [unseal(KEYS, plain_key, sealed, 0, len(sealed), 0, size)], mode)
        self.flipped.pop(plain_key, None)
        return result

    async def head(self, key: Key) -> Meta:
        return self._told(await self.inner.head(self._opened(key)))

    async def delete(self, key: Key) -> None:
        await self.inner.delete(self._opened(key))

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        area, slash, _ = prefix.partition("/")
        found = [self._told(meta) async for meta in self.inner.list(area + slash if slash else "")]
        for meta in sorted(found, key=lambda meta: meta.key):
            if meta.key.startswith(prefix) and meta.key > start_after:
                yield meta

    async def _version(self, key: Key) -> tuple[Meta, bytes]:
        blob = await self.inner.get(key)
        version = (key, blob.meta.etag)
        if version not in self._versions:
            while len(self._versions) >= _KEPT:
                del self._versions[next(iter(self._versions))]
            salt = hashlib.sha256(f"{key} {blob.meta.etag}".encode()).digest()[:SALT_BYTES]
            self._versions[version] = b"".join(seal(KEYS, key, salt, [blob.data]))
        data = self._versions[version]
        if key in self.flipped:
            at = self.flipped[key]
            data = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        return blob.meta, data

    def _opened(self, key: Key) -> Key:
        found = self._names.logical(key)
        if found is None:
            raise NotFound(f"{key} does not exist")
        return found

    def _told(self, meta: Meta) -> Meta:
        if self._names.readable(meta.key):
            return meta
        return replace(meta, key=self._names.stored(meta.key), size_bytes=stored_size(meta.size_bytes))
