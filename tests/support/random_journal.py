"""Random journals: bodies of every kind of entry, most of them valid, from one seeded generator."""

from __future__ import annotations

import random

from stnode.protocol import vector
from stnode.protocol.fileinfo import FileType
from stnode.repo.codec import Body, BodyRecord, PackAdded, Partial, Relocation, Section
from stnode.repo.pb.store_pb2 import FileView
from stnode.repo.records import Extents, HistoryRule
from stnode.repo.settings import DeviceSettings, FolderSettings
from tests.support.journal import DAY_US, NODE, JournalWriter, record, section

BLOCKS = 20


class RandomJournal:
    """Makes bodies for `writer`; it remembers only what is needed to make most of them valid."""

    def __init__(self, writer: JournalWriter, seed: int, names: int = 40) -> None:
        self._writer = writer
        self._dice = random.Random(seed)
        self._names = names
        self._folders: list[FolderSettings] = []
        self._packs: list[tuple[int, FolderSettings]] = []
        self._next_pack = 1
        self._made = 0
        self._sequences: list[tuple[str, int]] = []

    def body(self) -> Body:
        """The next commit's body."""
        dice = self._dice
        if not self._folders or (dice.random() < 0.05 and len(self._folders) < 4):
            self._made += 1
            self._folders.append(FolderSettings(f"folder {self._made}", f"{self._made:016x}", self._made))
            return Body(folders=(self._folders[-1],))
        match dice.choices(["records", "settings", "packs", "remove"], [80, 6, 12, 1])[0]:
            case "records":
                return self._records()
            case "settings":
                device = DeviceSettings(bytes([dice.randrange(4)]) * 32, f"name {dice.randrange(99)}")
                gone = (bytes([dice.randrange(4)]) * 32,) if dice.random() < 0.5 else ()
                return Body(devices=(device,), devices_removed=gone)
            case "packs":
                return self._pack_work()
            case _:
                folder = self._folders.pop(dice.randrange(len(self._folders)))
                self._packs = [pack for pack in self._packs if pack[1] is not folder]
                return Body(folders_removed=(folder.fkey,))

    def _records(self) -> Body:
        dice = self._dice
        packs: list[PackAdded] = []
        sections = []
        for folder in dice.sample(self._folders, dice.randint(1, len(self._folders))):
            fresh = dice.random() < 0.4
            if fresh:
                packs.append(self._writer.pack(BLOCKS, folder))
            relative = -len(packs) if fresh else 0
            records = [self._record(folder, relative) for _ in range(dice.randint(0, 12))]
            sections.append(self._section(folder, records, relative))
            if fresh:
                self._packs.append((self._next_pack, folder))
                self._next_pack += 1
        return Body(sections=tuple(sections), packs_added=tuple(packs))

    def _section(self, folder: FolderSettings, records: list[BodyRecord], relative: int) -> Section:
        dice, now_us = self._dice, self._writer.clock.now_us
        entries: dict[str, object] = {}
        if dice.random() < 0.3:
            extents = self._extents(folder, relative)
            name = f"file {dice.randrange(self._names)}"
            version = vector.to_wire(((77, dice.randrange(300)),))
            entries["partials"] = (Partial(name, version, NODE, 99, 9, b"h", tuple(range(len(extents))), extents),)
        for entry, chance in (("partials_dropped_before_us", 0.05), ("history_dropped_before_us", 0.1), ("tombstones_dropped_below", 0.05)):
            if dice.random() < chance:
                entries[entry] = now_us - dice.randrange(20_000_000)
        if dice.random() < 0.1 and self._sequences:
            entries["history_dropped"] = tuple(dice.choices(self._sequences, k=3))
        # The journal's writer numbers a folder's records from the second of the commit on.
        self._sequences += [(FileView.FromString(each.info).name, now_us + 1_000_000 + place) for place, each in enumerate(records)]
        return section(*records, folder=folder, **entries)

    def _record(self, folder: FolderSettings, relative: int) -> BodyRecord:
        dice = self._dice
        self._made += 1
        history = dice.choices([HistoryRule.KEEP, HistoryRule.DROP, HistoryRule.ONLY], [8, 1, 1])[0]
        name = f"{'dir/' * dice.randrange(3)}file {dice.randrange(self._names)}"
        match dice.randrange(6):
            case 0:
                return record(name, self._made, (), history, deleted=True)
            case 1:
                return record(name, self._made, (), history, type=FileType.DIRECTORY)
            case _:
                return record(name, self._made, self._extents(folder, relative), history, size=dice.randrange(1000))

    def _extents(self, folder: FolderSettings, relative: int) -> Extents:
        dice = self._dice
        known = [number for number, owner in self._packs if owner is folder] or [0]
        choices = [0, relative or 0, *dice.choices(known, k=2)]
        extents = []
        for _ in range(dice.randrange(4)):
            pack = dice.choice(choices)
            place = dice.randrange(BLOCKS) if pack else 0
            extents.append((pack, place, dice.randint(1, BLOCKS - place)))
        return tuple(extents)

    def _pack_work(self) -> Body:
        dice = self._dice
        if not self._packs:
            return Body(horizon_us=self._writer.clock.now_us - 2 * DAY_US)
        number, folder = dice.choice(self._packs)
        match dice.randrange(4):
            case 0:  # a whole repack
                self._packs.append((self._next_pack, folder))
                self._next_pack += 1
                moved = Relocation(number, 0, BLOCKS, -1, 0)
                self._packs.remove((number, folder))
                return Body(packs_added=(self._writer.pack(BLOCKS, folder),), relocations=(moved,), packs_condemned=(number,))
            case 1:  # often void
                return Body(packs_condemned=(number,))
            case 2:
                return Body(packs_lost=(number,), objects_condemned=(f"runs/00/{dice.randrange(9)}",))
            case _:
                return Body(packs_found=(number,), objects_gone=(f"runs/00/{dice.randrange(9)}",))
