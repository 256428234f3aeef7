"""After a repair of the journal: what set-aside commits and unregistered packs hold comes back into the state, as far as it can be told.

- packs that lie in the bucket and no commit of the new state knows are registered, found by listing and read from their footers: what peers
  announce then is found by its hashes instead of being pulled;
- records of set-aside commits that can be read are committed anew, as a peer's would be, by the ordinary rules, where every block can be
  told: a pack's number means something only on the state it was given on. Deletions are left to the devices that know of them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from sqlite3 import Connection

from stnode.clock import Randomness
from stnode.errors import Conflict, Corrupt, Invalid, NotFound, Refused
from stnode.objectstore.base import Key, ObjectStore
from stnode.protocol import fileinfo, vector
from stnode.protocol.deviceid import DeviceID, short_id
from stnode.protocol.fileinfo import FileInfo
from stnode.repo import layout, state
from stnode.repo.codec import Body, PackAdded, Partial, Section, Slot, decode_slot
from stnode.repo.pack import TOKEN_BYTES
from stnode.repo.packlist import PackGone, read_list
from stnode.repo.proposal import PackTable
from stnode.repo.records import Draft, DraftSet, Extents, HistoryRule, SetKind, Status
from stnode.repo.repair import read_set_aside
from stnode.repo.restore import read_content
from stnode.repo.settings import ENCRYPTED, FolderSettings
from stnode.repo.slots import NamedSlots
from stnode.repo.store import SettingsChange, Store

_AT_ONCE = 8
_PACKS_A_COMMIT = 200
_SETS_A_TIME = 1000
_SALVAGED = ".stnode-salvaged"
"""The directory of the partial files that hold salvaged packs; no peer announces it."""


@dataclass(slots=True)
class Salvaged:
    """What came back: `packs` registered anew with their `pack_bytes`, `records` committed. `lost` are names (FOLDER/PATH) that set-aside commits
    wrote and that did not come back, `unreadable` commits of which nothing is known, `skipped` packs (keys) that cannot be used, and why."""

    packs: int = 0
    pack_bytes: int = 0
    records: int = 0
    lost: list[str] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SetAside:
    """A commit that is not part of the state; `body` is None where it cannot be read. `node` wrote it."""

    number: int
    body: Body | None
    node: bytes = b""


async def read_names(objects: NamedSlots, number: int, names: Sequence[Key]) -> AsyncIterator[SetAside]:
    """What certain names of a number hold (single-node stores), as far as it can be read."""
    for name in names:
        yield SetAside(number, *await _content(objects, number, (await objects.inner.get(name)).data))


async def read_all(objects: ObjectStore, numbers: Sequence[int]) -> AsyncIterator[SetAside]:
    """The commits of these numbers, as far as they can be read."""
    for number in numbers:
        datas = await read_set_aside(objects, number)
        if not datas:
            yield SetAside(number, None)
        for data in datas:
            yield SetAside(number, *await _content(objects, number, data))


async def _content(objects: ObjectStore, number: int, data: bytes) -> tuple[Body | None, bytes]:
    """What a slot changes, None where it cannot be read, and who wrote it."""
    try:
        slot = decode_slot(data, layout.slot_key(number))
        return (await read_content(objects, slot), slot.node) if isinstance(slot, Slot) else (None, b"")
    except (Corrupt, Refused, NotFound):
        return None, b""


def names_in(body: Body) -> list[str]:
    """Live files and other items that a commit wrote, as FKEY/PATH."""
    found = []
    for section in body.sections:
        for record in section.records():
            info = fileinfo.from_record(record.info)
            if not info.deleted:
                found.append(f"{section.fkey}/{info.name}")
    return found


async def renew_index_ids(store: Store) -> None:
    """Every folder gets a new index ID: peers hold numbers that the state does not know, and take the folder's index anew (invariant 7)."""
    random = store.env.random

    def make(conn: Connection, _packs: PackTable) -> Body:
        return Body(folders=tuple(replace(folder.settings, index_id=random.uint64()) for folder in state.folders(conn)))

    await store.submit_entries(make)


async def adopt_packs(store: Store, result: Salvaged) -> AsyncIterator[tuple[int, int]]:
    """Registers the packs of living folders that no commit knows; (done, total) of those looked at. Their lists are in this node's cache then."""
    folders = await store.db.run(state.folders)
    for folder in folders:
        known = await store.db.run(lambda conn: {row[0] for row in conn.execute("SELECT id FROM packs")})
        horizon_us = (await store.db.run(state.head)).horizon_us
        keys = [
            (name, meta.key)
            async for meta in store.objects.list(layout.pack_prefix(folder.fkey))
            if (name := layout.object_id(meta.key)) and name not in known and layout.minted_us(name) >= horizon_us
        ]
        for start in range(0, len(keys), _PACKS_A_COMMIT):
            part = keys[start : start + _PACKS_A_COMMIT]
            added: list[PackAdded] = []
            for first in range(0, len(part), _AT_ONCE):
                looks = [_read_pack(store, folder.fkey, *pack, result) for pack in part[first : first + _AT_ONCE]]
                added += [pack for pack in await asyncio.gather(*looks) if pack is not None]
            if added:
                await store.submit_entries(partial(_register, added=added, node=store.node))
                result.packs += len(added)
                result.pack_bytes += sum(pack.size_bytes for pack in added)
                await store.packlists.ensure(await store.db.run(partial(_numbers, ids=[pack.id for pack in added])))
            yield start + len(part), len(keys)


async def _read_pack(store: Store, fkey: str, name: str, key: str, result: Salvaged) -> PackAdded | None:
    """What registers a pack, from its footer. One that cannot be read is left where it is, and named."""
    try:
        blocks = await read_list(store.objects, layout.pack_key(fkey, name))
        size = (await store.objects.head(layout.pack_key(fkey, name))).size_bytes
    except (Corrupt, PackGone, Refused, Invalid) as exc:
        result.skipped.append((key, exc.message))
        return None
    return PackAdded(fkey, name, size, blocks.count, blocks.data_bytes, size - blocks.data_bytes)


def _register(conn: Connection, packs: PackTable, added: Sequence[PackAdded], node: bytes) -> Body:
    """Each pack with a partial file of its own that refers to all of it: without any reference it would be collected before peers have
    come back whose records name its blocks. Like all partial files these end two weeks later."""
    partials: dict[str, list[Partial]] = defaultdict(list)
    for pack in added:
        if state.pack_by_id(conn, pack.id) is None:
            number = packs.add(pack)
            name = f"{_SALVAGED}/{pack.id}"
            partials[pack.fkey].append(Partial(name, b"", node, pack.footer_offset, 0, b"", (0,), ((number, 0, pack.blocks),)))
    return Body(sections=tuple(Section(fkey, partials=tuple(each)) for fkey, each in partials.items()))


def _numbers(conn: Connection, ids: Sequence[str]) -> list[int]:
    return [pack.number for name in ids if (pack := state.pack_by_id(conn, name)) is not None]


async def merge_names(store: Store, counting: SetAside, others: Sequence[SetAside], result: Salvaged) -> None:
    """Commits anew what `others` hold, which were written for the same number as `counting`, the head: nobody was told of it."""
    for each in others:
        added = each.body.packs_added if each.body is not None else ()
        packs = [pack for pack in added if await _read_pack(store, pack.fkey, pack.id, layout.pack_key(pack.fkey, pack.id), result)]
        if packs:
            await store.submit_entries(partial(_register, added=packs, node=store.node))
            result.packs += len(packs)
            result.pack_bytes += sum(pack.size_bytes for pack in packs)
    ids = [pack.id for pack in counting.body.packs_added] if counting.body is not None else []
    numbers = await store.db.run(partial(_numbers, ids=ids))

    async def aside() -> AsyncIterator[SetAside]:
        for each in others:
            yield each

    # What the others named by number was there before the commit in question.
    await bring_back(store, aside(), min(numbers, default=1 << 62), result, beside=counting)


async def bring_back(
    store: Store, commits: AsyncIterator[SetAside], first_new_pack: int, result: Salvaged, *, beside: SetAside | None = None
) -> None:
    """Commits the settings and records of set-aside commits anew. `first_new_pack` is the next pack's number on the state that was built on: from
    there on numbers meant packs that only the commits themselves can tell. `beside` is the commit that counts in their place."""
    same = _changed_by_node(beside) if beside is not None else frozenset[tuple[str, str]]()
    async for commit in commits:
        if commit.body is None:
            result.unreadable.append(commit.number)
            continue
        await _settings(store, commit.body)
        added = {-(index + 1): pack.id for index, pack in enumerate(commit.body.packs_added)}
        drafts = await store.db.run(partial(_drafts, body=commit.body, added=added, first_new_pack=first_new_pack, lost=result.lost))
        if both := same & _changed_by_node(commit):
            stranger = store.env.random.uint64()
            fkeys = {folder.fid: folder.fkey for folder in await store.db.run(state.folders)}
            drafts = [
                (shown, _apart(draft, commit.node, stranger) if (fkeys[draft.fid], draft.info.name) in both else draft)
                for shown, draft in drafts
            ]
        for start in range(0, len(drafts), _SETS_A_TIME):
            part = drafts[start : start + _SETS_A_TIME]
            outcomes = await store.submit([DraftSet(SetKind.SINGLE, (draft,)) for _, draft in part])
            for (shown, _), outcome in zip(part, outcomes, strict=True):
                if outcome.status is Status.COMMITTED:
                    result.records += 1
                elif outcome.status is not Status.DROPPED:
                    result.lost.append(shown)


def _changed_by_node(commit: SetAside) -> frozenset[tuple[str, str]]:
    """Items (fkey, name) that the writer of the commit changed itself, not a device that it had them from."""
    me = short_id(DeviceID(commit.node)) if commit.node else 0
    found = set[tuple[str, str]]()
    for section in commit.body.sections if commit.body is not None else ():
        infos = [fileinfo.from_record(record.info) for record in section.records()]
        found.update((section.fkey, info.name) for info in infos if info.modified_by == me)
    return frozenset(found)


def _apart(draft: Draft, node: bytes, stranger: int) -> Draft:
    """The draft of an item that two processes of one node changed without knowing of each other. By the node's counter one change would
    follow the other and take its place; as a stranger's they are concurrent, as they were."""
    me = short_id(DeviceID(node))
    pairs = [(by, value) for by, value in draft.info.version if by != me]
    version = vector.from_pairs([*pairs, (stranger, vector.counter(draft.info.version, me))])
    return replace(draft, info=fileinfo.replace_version(draft.info, version, stranger))


async def _settings(store: Store, body: Body) -> None:
    """Devices and folders that the commit added or changed; what is there in another incarnation stays."""
    folders = tuple(replace(settings, index_id=store.env.random.uint64()) for settings in body.folders)
    for change in [SettingsChange(devices=body.devices), *(SettingsChange(folders=(folder,)) for folder in folders)]:
        if change.devices or change.folders:
            try:
                await store.submit_settings(change)
            except (Conflict, NotFound):
                continue


def _drafts(conn: Connection, body: Body, added: dict[int, str], first_new_pack: int, lost: list[str]) -> list[tuple[str, Draft]]:
    found: list[tuple[str, Draft]] = []
    fids = {folder.fkey: folder for folder in state.folders(conn)}
    for section in body.sections:
        folder = fids.get(section.fkey)
        for record in section.records():
            info: FileInfo = fileinfo.from_record(record.info)
            if info.deleted or record.history is HistoryRule.ONLY:
                continue
            shown = f"{folder.settings.folder_id if folder else section.fkey}/{info.name}"
            extents = _told(conn, record.extents, added, first_new_pack)
            if folder is None or extents is None:
                lost.append(shown)
            else:
                found.append((shown, Draft(folder.fid, info, extents, local_flags=record.local_flags)))
    return found


def _told(conn: Connection, extents: Extents, added: dict[int, str], first_new_pack: int) -> Extents | None:
    """The extents by numbers of the present state; None where a pack cannot be told."""
    told = []
    for pack, place, count in extents:
        number = pack
        if pack < 0:
            known = state.pack_by_id(conn, added.get(pack, ""))
            number = known.number if known is not None else -1
        if number < 0 or (pack >= first_new_pack and pack > 0):
            return None
        told.append((number, place, count))
    return tuple(told)


async def folders_of_packs(objects: ObjectStore, known: Mapping[str, FolderSettings], random: Randomness) -> list[FolderSettings]:
    """Folders by what the keys of packs say of them: ID and incarnation, the youngest of each ID, with new index IDs; the rest from `known`, the
    settings that somebody remembers, by folder ID. A long ID is a hash in the key, so it must be known. Of what nobody remembers the packs
    tell whether others encrypted it."""
    youngest: dict[str, str] = {}
    async for meta in objects.list("packs/"):
        fkey, name = meta.key.split("/")[1], layout.object_id(meta.key)
        if name:
            youngest[fkey] = max(youngest.get(fkey, ""), name)
    found: dict[str, FolderSettings] = {}
    for fkey in sorted(youngest, key=lambda each: youngest[each]):
        incarnation = fkey.rpartition("-")[2]
        ids = [each for each in known if layout.folder_key(each, incarnation) == fkey]
        folder_id = ids[0] if ids else layout.folder_id(fkey)
        if folder_id:
            settings = known.get(folder_id)
            if settings is None:
                encrypted = await _holds_tokens(objects, layout.pack_key(fkey, youngest[fkey]))
                settings = FolderSettings(folder_id, incarnation, 0, type=ENCRYPTED if encrypted else "sendreceive")
            found[folder_id] = replace(settings, incarnation=incarnation, index_id=random.uint64())
    return list(found.values())


async def _holds_tokens(objects: ObjectStore, key: Key) -> bool:
    """Whether a pack is one of a receive-encrypted folder; False where it cannot be read."""
    try:
        return (await read_list(objects, key)).hash_bytes == TOKEN_BYTES
    except (Corrupt, PackGone):
        return False
