"""How slots are named, created and read. Two ways, found by the probe, never by a vendor's name:

- a store with conditional writes: slot n is the object `journal/<j>/<n>`, made by create-if-absent. Nothing here is in the way;
- a store without them (`NamedSlots`), used by one declared node: slot n is `journal/<j>/<n>-<write id>`, so that no write can ever replace
  another's. Everybody above goes on asking for `journal/<j>/<n>`; this wrapper finds the object behind it by a listing of the number.

Two processes on such a store (a rolling update that overlaps, a write of a dead process that arrives late) can leave two names for one
number. Why no announced commit is lost by that: a create wins only when a listing *after* its PUT shows no other name, so of two
processes at most the one whose PUT was listed first wins, and the other one has seen both names and stops. Both stay in the bucket:

    one name                              it is the slot
    several, a stub among them            the stub: the number is truncated
    several, and there is a slot n + 1    the one whose hash slot n + 1 carries
    several at the head                   the one that this process has seen alone before; else `TwoNames`, until a repair decides

A journal that was begun with conditional writes keeps its plain names; they count like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Final

from stnode.errors import Corrupt, NotFound, Refused, Unavailable, UnknownOutcome
from stnode.objectstore.base import Blob, Buffer, Exists, IfMatch, Key, Meta, Mode, ObjectStore, PutResult
from stnode.objectstore.wrappers import Wrapper
from stnode.repo import layout
from stnode.repo.codec_slot import Slot, Stub, decode_slot, slot_sha
from stnode.repo.container import Kind, kind_of
from stnode.repo.singlenode import declared_node
from stnode.telemetry import get_logger

REPAIR: Final = (
    "stop all processes of this node, then run `stnode bucket repair`, with its state directory if it is there: it goes on from the commit "
    "that somebody may have been told of, and commits again what the other one holds"
)

_JOURNAL: Final = "journal/"
_NAME: Final = re.compile(r"(journal/[^/]+/[0-9]{20})(?:-[0-9a-f]{32})?")
_REMEMBERED: Final = 16

log = get_logger(__name__)


class TwoNames(Corrupt):
    """Two processes wrote the same commit's number, and nothing says yet which one counts. Nothing was overwritten."""

    def __init__(self, key: str, names: Sequence[str]) -> None:
        self.number = number = layout.slot_number(key) or 0
        found = " and ".join(sorted(name.rpartition("/")[2] for name in names))
        super().__init__(f"two processes wrote commit {number} of this single-node store: {found}", hint=REPAIR)


class AnotherProcess(Refused):
    """In a store of one node somebody else commits: this process ends, for two would get into each other's way."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"another process has written commit {number} of this single-node store",
            hint="run one process only; a new one waits until the old one's heartbeat is two minutes old",
        )


async def arranged(objects: ObjectStore) -> ObjectStore:
    """The store as this module's users want it: with `NamedSlots` around it where its stnode.json declares a single node."""
    if isinstance(objects, NamedSlots):
        return objects  # two of them around each other would take one's names for another's
    try:
        document = json.loads((await objects.get(layout.STORE)).data)
        return NamedSlots(objects) if declared_node(document) is not None else objects
    except (NotFound, ValueError):
        return objects  # said by whoever reads stnode.json for what it says


class NamedSlots(Wrapper):
    """An object store without conditional writes as its one node uses it. A create of a slot lists the number before and after its PUT; any
    other create looks whether the key is there first, which is enough for names that one process writes."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self._alone: dict[str, Key] = {}
        self._settled: dict[str, Key] = {}

    async def get(self, key: Key, start: int = 0, length: int | None = None) -> Blob:
        if not _is_slot(key):
            return await self.inner.get(key, start, length)
        names = await self._names(key)
        blob = await self.inner.get((await self._counting(key, names)).key, start, length)
        return Blob(replace(blob.meta, key=key), blob.data)

    async def head(self, key: Key) -> Meta:
        if not _is_slot(key):
            return await self.inner.head(key)
        return replace(await self._counting(key, await self._names(key)), key=key)

    async def put(self, key: Key, data: Sequence[Buffer], mode: Mode | IfMatch = Mode.OVERWRITE) -> PutResult:
        if mode is Mode.CREATE:
            return await (self._create_slot(key, b"".join(data)) if _is_slot(key) else self._create(key, data))
        if not _is_slot(key) or isinstance(mode, IfMatch):
            return await self.inner.put(key, data, mode)
        # A stub: whatever was written for this number is covered by a manifest now.
        names = await self._names(key)
        results = [await self.inner.put(name, data) for name in ([meta.key for meta in names] or [key])]
        return results[-1]

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Meta]:
        """Slots once for each number, under the key that others ask for; of several names the largest and youngest is shown."""
        if not prefix.startswith(_JOURNAL):
            async for meta in self.inner.list(prefix, start_after=start_after):
                yield meta
            return
        shown: Meta | None = None
        async for meta in self.inner.list(prefix, start_after=start_after):
            found = _NAME.fullmatch(meta.key)
            key = Key(found[1]) if found else meta.key
            if found and start_after and key <= start_after:
                continue
            if shown is not None and key == shown.key:
                size_bytes, modified_ns = max(shown.size_bytes, meta.size_bytes), max(shown.modified_ns, meta.modified_ns)
                shown = replace(shown, size_bytes=size_bytes, modified_ns=modified_ns)
                continue
            if shown is not None:
                yield shown
            shown = replace(meta, key=key)
        if shown is not None:
            yield shown

    async def names(self, number: int, journal: str = layout.MAIN_JOURNAL) -> Sequence[Meta]:
        """What lies in the bucket for a number, whichever counts; for repairing."""
        return await self._names(layout.slot_key(number, journal))

    def settle(self, number: int, name: Key, journal: str = layout.MAIN_JOURNAL) -> None:
        """Decides for this process which of two names at the head counts; the next commit then says so to everybody."""
        self._settled[layout.slot_key(number, journal)] = name

    # ---- names ---------------------------------------------------------------------------------------------------------

    async def _names(self, key: Key) -> Sequence[Meta]:
        found = [meta async for meta in self.inner.list(key) if (match := _NAME.fullmatch(meta.key)) and match[1] == key]
        if len(found) == 1:
            self._saw_alone(key, found[0].key)
        return found

    def _saw_alone(self, key: Key, name: Key) -> None:
        self._alone[key] = name
        while len(self._alone) > _REMEMBERED:
            del self._alone[next(iter(self._alone))]

    async def _counting(self, key: Key, names: Sequence[Meta]) -> Meta:
        """The name that counts. Raises NotFound without any, TwoNames when that is not decided."""
        if not names:
            raise NotFound(f"{key} does not exist")
        if len(names) == 1:
            return names[0]
        blobs = [await self.inner.get(meta.key) for meta in names]
        for meta, blob in zip(names, blobs, strict=True):
            if kind_of(blob.data) is Kind.STUB:
                return meta
        wanted, known = await self._predecessor_of_next(key), self._settled.get(key, self._alone.get(key))
        for meta, blob in zip(names, blobs, strict=True):
            if slot_sha(blob.data) == wanted or (wanted is None and known == meta.key):
                return meta
        raise TwoNames(key, [meta.key for meta in names])

    async def _predecessor_of_next(self, key: Key) -> bytes | None:
        """What slot n + 1 says of slot n; None where there is none that says it."""
        directory, _, number = key.rpartition("/")
        following = Key(f"{directory}/{int(number) + 1:020d}")
        try:
            slot = decode_slot((await self.get(following)).data, following)
        except NotFound:
            return None
        return None if isinstance(slot, Stub) else slot.prev

    # ---- creating ------------------------------------------------------------------------------------------------------

    async def _create_slot(self, key: Key, data: bytes) -> PutResult:
        slot = decode_slot(data, key)
        assert isinstance(slot, Slot)
        name = Key(f"{key}-{slot.write_id.hex()}")
        if any(meta.key != name for meta in await self._names(key)):
            raise Exists(f"{key} exists")
        result = await self.inner.put(name, [data])
        try:
            after = await self._names(key)
        except Unavailable as exc:
            raise UnknownOutcome(
                f"{name} is written, but nobody knows whether alone: {exc.message}", retry_after_s=exc.retry_after_s
            ) from exc
        others = [meta.key for meta in after if meta.key != name]
        if others:
            log.error("another process wrote the same commit", key=key, own=name, others=others)
            raise TwoNames(key, [name, *others])
        if not after:
            raise UnknownOutcome(f"{name} is written, but the listing does not show it")
        return result

    async def _create(self, key: Key, data: Sequence[Buffer]) -> PutResult:
        try:
            await self.inner.head(key)
        except NotFound:
            return await self.inner.put(key, data)
        raise Exists(f"{key} exists")


def _is_slot(key: str) -> bool:
    return key.startswith(_JOURNAL) and layout.slot_number(key) is not None
