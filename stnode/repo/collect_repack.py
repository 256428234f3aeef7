"""Repacking: which packs are worth it, and copying what is wanted of them into new packs (design 7, R2, R23).

Worth it is a pack of which half is dead, and small packs together once there are many. What is copied is verified as it is read; a
pack with a damaged block is left alone. Nothing here decides that a pack may go: `collect_entries.repack` does, on the state of the commit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from stnode.clock import Env
from stnode.errors import Archived, Corrupt
from stnode.objectstore.base import ObjectStore
from stnode.repo.addresses import Move
from stnode.repo.collect_entries import Copied
from stnode.repo.collect_marks import Marks, runs_of
from stnode.repo.layout import minted_us
from stnode.repo.pack import PackList
from stnode.repo.packer import OpenPack, Packer, Token
from stnode.repo.packlist import PackGone, PackLists, read_range
from stnode.repo.packstate import verified_block
from stnode.repo.state import Pack
from stnode.repo.throttle import Throttle
from stnode.telemetry import get_logger

DEAD_SHARE: Final = 0.5
"""Copying the rest costs no more than it frees."""
SMALL_SHARE: Final = 4
"""A pack below a quarter of the target is small."""
SMALL_MANY: Final = 64
READ_BYTES: Final = 8 << 20
GAP_BYTES: Final = 64 << 10
"""Dead bytes between wanted ones that are read along rather than around."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Worth:
    """A pack worth repacking: `wanted` of its places (as bits) are, `wanted_bytes` about."""

    pack: Pack
    wanted: int
    wanted_bytes: int


Group = list[Worth]
"""Packs of one folder that are repacked in one commit: what is wanted of them fits one pack, or it is a single pack."""


def worth_repacking(packs: Sequence[Pack], marks: Mapping[int, Marks], target_bytes: int, max_blocks: int, before_us: int) -> list[Group]:
    """Groups of packs to repack, those that free most first. Packs minted after `before_us` are left alone: what is on its way may
    still name their blocks."""
    by_folder: dict[int, tuple[list[Worth], list[Worth]]] = defaultdict(lambda: ([], []))
    for pack in packs:
        if pack.condemned or pack.lost or minted_us(pack.id) >= before_us:
            continue
        found = marks.get(pack.number) or Marks()
        worth = Worth(pack, found.kept, min(int(found.kept_bytes), pack.footer_offset))
        dead, small = by_folder[pack.fid]
        if worth.wanted_bytes <= DEAD_SHARE * pack.footer_offset and found.blocks < pack.blocks:
            dead.append(worth)
        elif pack.size_bytes < target_bytes // SMALL_SHARE and pack.blocks < max_blocks // SMALL_SHARE:
            small.append(worth)
    groups: list[Group] = []
    for dead, small in by_folder.values():
        chosen = [*dead, *(small if len(small) >= SMALL_MANY else ())]
        groups += _groups(sorted(chosen, key=lambda worth: worth.pack.number), target_bytes, max_blocks)
    return sorted(groups, key=lambda group: -sum(worth.pack.size_bytes - worth.wanted_bytes for worth in group))


def _groups(chosen: Sequence[Worth], target_bytes: int, max_blocks: int) -> Iterator[Group]:
    group: Group = []
    size = blocks = 0
    for worth in chosen:
        count = worth.wanted.bit_count()
        if group and (size + worth.wanted_bytes > target_bytes or blocks + count > max_blocks):
            yield group
            group, size, blocks = [], 0, 0
        group.append(worth)
        size, blocks = size + worth.wanted_bytes, blocks + count
    if group:
        yield group


class Copier:
    """Copies what is wanted of packs. `suspect` hears of those that are not what they should be: they are left to repair."""

    def __init__(
        self, objects: ObjectStore, env: Env, packer: Packer, packlists: PackLists, throttle: Throttle, suspect: Callable[[int], None]
    ) -> None:
        self._objects = objects
        self._env = env
        self._packer = packer
        self._lists = packlists
        self._throttle = throttle
        self._suspect = suspect

    async def copy(self, group: Group) -> Copied:
        """The group's blocks in new, durable packs. Packs that are damaged, gone or archived are left out. Raises Unavailable, Refused."""
        moves: dict[int, list[Move]] = {}
        placed: dict[Token, tuple[int, int]] = {}
        open_packs: dict[int, OpenPack] = {}
        try:
            for job, worth in enumerate(group):
                if await self._copy_pack(job, worth, open_packs, placed):
                    moves[job] = []
            for hash_bytes in tuple(open_packs):
                await self._seal(open_packs, hash_bytes, placed)
        finally:
            for pack in open_packs.values():
                self._packer.discard(pack)
        for (job, place), (handle, to_place) in sorted(placed.items()):
            if job in moves:
                _extend(moves[job], Move(place, 1, handle, to_place))
        packs = {job: group[job].pack for job in moves}
        return Copied({packs[job].number: found for job, found in moves.items()}, {pack.number: pack.id for pack in packs.values()})

    async def _copy_pack(self, job: int, worth: Worth, open_packs: dict[int, OpenPack], placed: dict[Token, tuple[int, int]]) -> bool:
        """Adds a pack's wanted blocks to the open pack, sealing full ones; False when it cannot be copied."""
        number = worth.pack.number
        if not worth.wanted:
            return True
        try:
            await self._lists.ensure((number,))
            listed = self._lists.get(number)
            if listed is None or listed.id != worth.pack.id:
                raise PackGone(f"pack {number} is gone")
            blocks = listed.blocks
            for first, last, places in _reads(blocks, worth.wanted):
                start, length = blocks.offsets[first], blocks.offsets[last + 1] - blocks.offsets[first]
                data = memoryview(await read_range(self._objects, listed.key, start, length))
                stored = [(place, data[blocks.offsets[place] - start : blocks.offsets[place + 1] - start]) for place in places]
                views = await self._env.threads.run(_verified, blocks, stored)
                for place, view in zip(places, views, strict=True):
                    if view is None:
                        raise Corrupt(f"block {place} of pack {listed.key} is damaged")
                    await self._add(open_packs, blocks, worth.pack.fid, (job, place), view, placed)
        except (Corrupt, PackGone) as exc:
            log.warning("a pack cannot be repacked", pack=number, why=exc.message)
            self._suspect(number)
            return False
        except Archived as exc:  # no damage: left alone until it is thawed
            log.warning("a pack cannot be repacked", pack=number, why=exc.message, hint=exc.hint)
            return False
        return True

    async def _add(
        self,
        open_packs: dict[int, OpenPack],
        blocks: PackList,
        fid: int,
        token: Token,
        view: memoryview,
        placed: dict[Token, tuple[int, int]],
    ) -> None:
        pack = open_packs.get(blocks.hash_bytes)
        if pack is not None and pack.full:
            await self._seal(open_packs, blocks.hash_bytes, placed)
            pack = None
        if pack is None:
            pack = open_packs[blocks.hash_bytes] = self._packer.begin(fid, stream=False, hash_bytes=blocks.hash_bytes)
        pack.add(token, view, blocks.hashes_of(token[1]))

    async def _seal(self, open_packs: dict[int, OpenPack], hash_bytes: int, placed: dict[Token, tuple[int, int]]) -> None:
        await self._throttle.take(1, open_packs[hash_bytes].size_bytes)
        sealed = await self._packer.seal(open_packs.pop(hash_bytes))
        placed.update((token, (sealed.handle, place)) for token, place in sealed.places.items())


def _verified(blocks: PackList, stored: Sequence[tuple[int, memoryview]]) -> list[memoryview | None]:
    """The blocks, None for each that is not what the list says. For a thread."""
    return [verified_block(blocks, place, view) for place, view in stored]


def _reads(blocks: PackList, wanted: int) -> Iterator[tuple[int, int, list[int]]]:
    """(first, last, wanted places) of the ranges to read, in order."""
    offsets = blocks.offsets
    places: list[int] = []
    for start, count in runs_of(wanted):
        for place in range(start, min(start + count, blocks.count)):
            if places and (offsets[place] - offsets[places[-1] + 1] > GAP_BYTES or offsets[place + 1] - offsets[places[0]] > READ_BYTES):
                yield places[0], places[-1], places
                places = []
            places.append(place)
    if places:
        yield places[0], places[-1], places


def _extend(moves: list[Move], move: Move) -> None:
    """Appends a move of one block, joined with the one before where both go on."""
    if moves:
        last = moves[-1]
        if (last.place + last.blocks, last.pack, last.to_place + last.blocks) == (move.place, move.pack, move.to_place):
            moves[-1] = Move(last.place, last.blocks + 1, last.pack, last.to_place)
            return
    moves.append(move)
