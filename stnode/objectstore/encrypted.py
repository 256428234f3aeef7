"""An object store whose owner sees neither contents nor names: what is put is sealed, what is read is opened, and parts of keys that
mean something are replaced by pseudonyms (`sealing.py`). A passphrase opens nothing here: the keys are given.

It goes around the whole stack of `registry.open_store`: what is repeated is sealed once, and the counters count what travels.
Sizes told by `head`, `list` and `get` are those of the content, ETags and times the store's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeVar, TypeVarTuple, Unpack

from stnode.clock import Env
from stnode.errors import Corrupt, Invalid, StnodeError
from stnode.objectstore.base import (
    Blob,
    Buffer,
    IfMatch,
    Key,
    Meta,
    Mode,
    ObjectStore,
    PutResult,
    beyond_end,
    check_key,
    check_prefix,
    check_range,
    size_of,
)
from stnode.objectstore.sealing import SALT_BYTES, SEGMENT_BYTES, STORED_SEGMENT_BYTES, StoreKeys, plain_size, seal, unseal
from stnode.objectstore.wrappers import Wrapper

V = TypeVar("V")
Ts = TypeVarTuple("Ts")

_INLINE_BYTES: Final = 264 << 10
"""Up to so much (256 KiB of content in five segments) is sealed or opened at once, in a fifth of a millisecond: a hop to a thread costs more."""
_NAMES_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Secrecy:
    """What of the keys is secret. An area is the first part of a key; it always stays as it is."""

    readable: frozenset[str]
    """Areas that are not encrypted at all."""
    sealed_parts: Mapping[str, frozenset[int]]
    """Which parts (the area is 0) become pseudonyms, by area; in areas not named here all after the first."""


class Encrypted(Wrapper):
    """All but the readable areas of `inner`, encrypted."""

    def __init__(self, inner: ObjectStore, env: Env, keys: StoreKeys, secrecy: Secrecy) -> None:
        super().__init__(inner)
        self._env = env
        self._keys = keys
        self._names = _Names(keys, secrecy)
        self._large = asyncio.Semaphore(1)

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        ranged = check_range(check_key(key), start, length)
        if self._names.readable(key):
            return await self.inner.get(key, start, length)
        try:
            return await self._opened(key, start, length, ranged=ranged)
        except Corrupt:  # what was damaged on its way is whole the second time
            return await self._opened(key, start, length, ranged=ranged)

    async def _opened(self, key: Key, start: int, length: int | None, *, ranged: bool) -> Blob:
        first = start // SEGMENT_BYTES
        count = None if length is None else (start + length - 1) // SEGMENT_BYTES - first + 1
        stored = self._names.stored(key)
        try:
            with _spoken_of(key, stored):
                blob = await self.inner.get(stored, first * STORED_SEGMENT_BYTES, None if count is None else count * STORED_SEGMENT_BYTES)
        except Invalid:
            raise beyond_end(key, start, (await self.head(key)).size_bytes) from None
        size = plain_size(blob.meta.size_bytes)
        if size is None or len(blob.data) != _stored_span(blob.meta.size_bytes, first, count):
            raise Corrupt(f"{key} is damaged: no encrypted object has {blob.meta.size_bytes} bytes", hint="run `stnode bucket check`")
        if ranged and start >= size:
            raise beyond_end(key, start, size)
        wanted = size - start if length is None else min(length, size - start)
        arguments = (self._keys, key, blob.data, first, blob.meta.size_bytes, start - first * SEGMENT_BYTES, wanted)
        data = unseal(*arguments) if len(blob.data) <= _INLINE_BYTES else await self._in_turn(unseal, *arguments)
        return Blob(replace(blob.meta, key=key, size_bytes=size), data)

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        if self._names.readable(check_key(key)):
            return await self.inner.put(key, data, mode)
        salt = self._env.random.bytes(SALT_BYTES)
        small = size_of(data) <= _INLINE_BYTES
        sealed = seal(self._keys, key, salt, data) if small else await self._in_turn(seal, self._keys, key, salt, data)
        stored = self._names.stored(key)
        with _spoken_of(key, stored):
            return await self.inner.put(stored, sealed, mode)

    async def _in_turn(self, work: Callable[[Unpack[Ts]], V], *arguments: Unpack[Ts]) -> V:
        """In a thread, one at a time: gigabytes a second, and several at once would only keep the loop from running."""
        async with self._large:
            return await self._env.threads.run(work, *arguments)

    async def head(self, key: Key) -> Meta:
        stored = self._names.stored(check_key(key))
        with _spoken_of(key, stored):
            return self._told(key, await self.inner.head(stored))

    async def delete(self, key: Key) -> None:
        stored = self._names.stored(check_key(key))
        with _spoken_of(key, stored):
            await self.inner.delete(stored)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        """Names that are no pseudonyms of this store are passed over. Where the last parts of keys are pseudonyms, the listing is read
        whole before its first key: only then can it be put in order."""
        stored_prefix, stored_after = self._names.stored_prefix(check_prefix(prefix), start_after)
        listing = self._listed(prefix, start_after, self.inner.list(stored_prefix, start_after=stored_after))
        if self._names.in_order(prefix):
            async for meta in listing:
                yield meta
            return
        for meta in sorted([meta async for meta in listing], key=lambda meta: meta.key):
            yield meta

    async def _listed(self, prefix: str, start_after: str, stored: AsyncIterator[Meta]) -> AsyncIterator[Meta]:
        async for meta in stored:
            key = self._names.logical(meta.key)
            if key is not None and key.startswith(prefix) and key > start_after:
                yield self._told(key, meta)

    def _told(self, key: Key, stored: Meta) -> Meta:
        """What is told of an object. One of an impossible size has no bytes to read; reading it says that it is damaged."""
        if self._names.readable(key):
            return stored
        return replace(stored, key=key, size_bytes=plain_size(stored.size_bytes) or 0)


def _stored_span(stored_bytes: int, first: int, count: int | None) -> int:
    """Stored bytes of `count` segments from `first` on, as far as the object goes."""
    end = stored_bytes if count is None else min(stored_bytes, (first + count) * STORED_SEGMENT_BYTES)
    return end - first * STORED_SEGMENT_BYTES


@contextmanager
def _spoken_of(key: Key, stored: Key) -> Iterator[None]:
    """Errors speak of the key that the caller knows."""
    try:
        yield
    except StnodeError as error:
        error.message = error.message.replace(stored, key)
        error.args = (error.message,)
        raise


class _Names:
    """Keys to stored keys and back; remembers some pseudonyms, as the same folders and nodes come again and again."""

    def __init__(self, keys: StoreKeys, secrecy: Secrecy) -> None:
        self._keys = keys
        self._secrecy = secrecy
        self._sealed: dict[tuple[str, str], str] = {}
        self._opened: dict[tuple[str, str], str | None] = {}

    def readable(self, key: str) -> bool:
        return key.partition("/")[0] in self._secrecy.readable

    def in_order(self, prefix: str) -> bool:
        """Whether the order of stored keys in a directory below this prefix is that of the keys: the last part is none of the sealed."""
        area, slash, _ = prefix.partition("/")
        return bool(slash) and (area in self._secrecy.readable or area in self._secrecy.sealed_parts)

    def stored(self, key: str) -> Key:
        parts = key.split("/")
        return Key("/".join(self._seal(parts, place) if self._is_sealed(parts[0], place) else part for place, part in enumerate(parts)))

    def logical(self, stored: str) -> Key | None:
        parts = stored.split("/")
        for place, part in enumerate(parts):
            if self._is_sealed(parts[0], place):
                name = self._open("/".join(parts[:place]), part)
                if name is None:
                    return None
                parts[place] = name
        return Key("/".join(parts))

    def stored_prefix(self, prefix: str, start_after: str) -> tuple[str, str]:
        """The narrowest stored prefix, and stored key to start after, that leave nothing out; the caller leaves out the rest."""
        directory, slash, begun = prefix.rpartition("/")
        stored = f"{self.stored(directory)}/" if slash else ""
        area, place = prefix.partition("/")[0], prefix.count("/")
        if not self._is_sealed(area, place):
            stored_after = stored + start_after[len(directory) + 1 :] if slash and start_after.startswith(f"{directory}/") else ""
            if self.in_order(prefix) and not any(self._is_sealed(area, deeper) for deeper in range(place, start_after.count("/") + 1)):
                return stored + begun, stored_after
            return stored + begun, ""
        return stored, ""

    def _is_sealed(self, area: str, place: int) -> bool:
        if place == 0 or area in self._secrecy.readable:
            return False
        sealed = self._secrecy.sealed_parts.get(area)
        return sealed is None or place in sealed

    def _seal(self, parts: list[str], place: int) -> str:
        parent, name = "/".join(parts[:place]), parts[place]
        found = self._sealed.get((parent, name))
        if found is None:
            found = self._keys.seal_name(parent, name)
            _remember(self._sealed, (parent, name), found)
        return found

    def _open(self, parent: str, pseudonym: str) -> str | None:
        if (parent, pseudonym) not in self._opened:
            _remember(self._opened, (parent, pseudonym), self._keys.open_name(parent, pseudonym))
        return self._opened[parent, pseudonym]


def _remember(known: dict[tuple[str, str], V], name: tuple[str, str], value: V) -> None:
    if len(known) >= _NAMES_KEPT:
        known.clear()
    known[name] = value
