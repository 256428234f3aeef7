"""The check of a store finds every kind of damage, and nothing in a store that is whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from stnode.clock import SeededRandomness
from stnode.db import Database
from stnode.errors import Archived
from stnode.objectstore.base import Blob, Key
from stnode.objectstore.memory import MemoryStore
from stnode.protocol.fileinfo import FileInfo
from stnode.repo import checkpoint, codec, layout, state
from stnode.repo.check import check
from stnode.repo.checkreport import CheckReport, CheckStep
from stnode.repo.packer import PendingPack
from stnode.repo.records import Extents, SetKind
from stnode.repo.settings import FolderSettings
from stnode.repo.store import Store
from tests.support.packs import STORE_TIME_US, a_file, blocks_of, fill, make_packer, quick_env

NODE = b"n" * 32
FOLDER = FolderSettings("photos", "0011223344556677", 7)
BLOCK = 131072


class World:
    """A store written commit by commit, by the codecs alone."""

    def __init__(self, scratch: Path) -> None:
        self.env = quick_env()
        self.objects = MemoryStore(self.env)
        self.db = Database(None, inline=True)
        self.packer = make_packer(self.objects, self.env)
        self.scratch = scratch
        self.packs: list[PendingPack] = []
        self._sequence = STORE_TIME_US

    async def commit(self, body: codec.Body, records: int = 0, *, stored: bool = False) -> Key:
        head = await self.db.run(state.head)
        number, ref = head.number + 1, None
        if stored:
            data, name = codec.encode_body(body), layout.mint(STORE_TIME_US, self.env.random)
            await self.objects.put(layout.body_key(name), [data])
            ref = codec.BodyRef(name, len(data), codec.slot_sha(data))
        slot = codec.Slot(
            number, head.slot_sha, NODE, 1, bytes([number]) * 16, STORE_TIME_US + number,
            ((FOLDER.fkey, self._sequence + 1),) if records else (), ref, (), codec.EMPTY if stored else body,
        )  # fmt: skip
        self._sequence += records
        encoded = codec.encode_slot(slot)
        key = layout.slot_key(number)
        await self.objects.put(key, [encoded])
        applied = await self.db.write(lambda conn: state.apply(conn, slot, codec.slot_sha(encoded), body))
        assert applied.void is None, applied.void
        return key

    async def add(
        self, name: str, blocks: Sequence[bytes], *, extents: Extents | None = None, info: FileInfo | None = None, stored: bool = False
    ) -> Key:
        """A commit with one new pack and one file in it."""
        pack = self.packer.begin(1, stream=False)
        fill(pack, blocks)
        pending = self.packer.pending((await self.packer.seal(pack)).handle)
        self.packs.append(pending)
        record = codec.BodyRecord((info or a_file(name, blocks, BLOCK)).wire, extents or ((-1, 0, len(blocks)),))
        added = codec.PackAdded(
            pending.fkey, pending.id, pending.size, pending.blocks, pending.size - pending.footer_size, pending.footer_size
        )
        section = codec.Section(FOLDER.fkey, (codec.BodySet(SetKind.SINGLE, (record,)),))
        return await self.commit(codec.Body(sections=(section,), packs_added=(added,)), 1, stored=stored)

    async def manifest(self) -> codec.Manifest:
        made = await checkpoint.write_manifest(self.objects, self.db, self.env, NODE, STORE_TIME_US + 1000)
        assert made is not None
        return made

    async def check(self, *, read_data: bool = False, share: float = 1.0) -> CheckReport:
        steps: list[CheckStep] = [
            step async for step in check(self.objects, self.env, self.scratch, read_data=read_data, share=share, own=self.db)
        ]
        assert steps[-1].report is not None
        assert not list(self.scratch.iterdir())
        return steps[-1].report

    async def replace(self, key: str, change: int) -> None:
        """Flips a byte of an object."""
        data = bytearray((await self.objects.get(Key(key))).data)
        data[change] ^= 1
        await self.objects.put(Key(key), [bytes(data)])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await Store.init(world.objects, world.env)
    await state.prepare(world.db)
    await world.commit(codec.Body(folders=(FOLDER,)))
    await world.add("a", blocks_of(1, BLOCK, BLOCK, 500))
    await world.add("b", blocks_of(2, 700), stored=True)
    yield world
    await world.db.close()


def only(report: CheckReport) -> tuple[str, str, tuple[str, ...]]:
    assert len(report.problems) == 1, report.problems
    return report.problems[0].key, report.problems[0].message, report.problems[0].lost


async def test_a_whole_store_has_no_problems(world: World) -> None:
    await world.manifest()
    await world.add("c", blocks_of(3, 900))
    report = await world.check(read_data=True)
    assert report.problems == ()
    assert (report.slots, report.manifests, report.packs, report.records) == (4, 1, 3, 3)
    assert (report.blocks_read, report.bytes_read) == (5, 2 * BLOCK + 500 + 700 + 900)
    assert report.runs >= 1
    assert (await world.check()).blocks_read == 0


async def test_an_empty_store_has_no_problems(tmp_path: Path) -> None:
    world = World(tmp_path)
    await Store.init(world.objects, world.env)
    await state.prepare(world.db)
    assert (await world.check()).problems == ()
    await world.db.close()


async def test_a_missing_pack_names_its_files(world: World) -> None:
    await world.objects.delete(world.packs[0].key)
    assert only(await world.check()) == (world.packs[0].key, "it is missing", ("photos/a",))


async def test_a_short_pack(world: World) -> None:
    pack = world.packs[0]
    await world.objects.put(pack.key, [(await world.objects.get(pack.key)).data[:-1]])
    key, message, lost = only(await world.check())
    assert (key, lost) == (pack.key, ("photos/a",))
    assert f"instead of {pack.size}" in message


async def test_a_damaged_list_is_found_without_reading_data(world: World) -> None:
    await world.replace(world.packs[1].key, -30)
    key, message, lost = only(await world.check())
    assert (key, lost) == (world.packs[1].key, ("photos/b",))
    assert "checksum" in message


async def test_damaged_data_is_found_by_reading_it(world: World) -> None:
    await world.replace(world.packs[0].key, BLOCK + 5)
    assert (await world.check()).problems == ()
    key, message, lost = only(await world.check(read_data=True))
    assert (key, lost) == (world.packs[0].key, ("photos/a",))
    assert "1 of its 3 blocks" in message


async def test_a_record_whose_blocks_have_other_lengths(world: World) -> None:
    await world.add("wrong", blocks_of(4, BLOCK, BLOCK), info=a_file("wrong", blocks_of(4, BLOCK, 5), BLOCK))
    key, message, _ = only(await world.check())
    assert key == "photos/wrong"
    assert "other lengths" in message


async def test_a_record_without_enough_blocks(world: World) -> None:
    await world.add("wrong", blocks_of(4, BLOCK), info=a_file("wrong", blocks_of(4, BLOCK, BLOCK), BLOCK))
    assert "1 blocks instead of 2" in only(await world.check())[1]


@pytest.mark.parametrize("damage", ["flip", "delete"])
async def test_a_bad_body(world: World, damage: str) -> None:
    [key] = [meta.key async for meta in world.objects.list("bodies/")]
    if damage == "flip":
        await world.replace(key, 40)
    else:
        await world.objects.delete(key)
    report = await world.check()
    assert [problem.key for problem in report.problems] == [key, "journal/main/"]
    assert "cannot be rebuilt" in report.problems[1].message


async def test_a_gap_in_the_journal(world: World) -> None:
    await world.objects.delete(layout.slot_key(2))
    report = await world.check()
    assert report.problems[0].key == layout.slot_key(3)
    assert "commits 2 to 2 before it are missing" in report.problems[0].message


async def test_a_slot_of_another_history(world: World) -> None:
    data = (await world.objects.get(layout.slot_key(2))).data
    slot = codec.decode_slot(data, "slot")
    assert isinstance(slot, codec.Slot)
    other = codec.encode_slot(codec.Slot(2, b"x" * 32, *(getattr(slot, name) for name in codec.Slot.__slots__[2:])))
    await world.objects.put(layout.slot_key(2), [other])
    report = await world.check()
    assert [problem.key for problem in report.problems[:2]] == [layout.slot_key(2), layout.slot_key(3)]
    assert "does not follow" in report.problems[0].message


async def test_a_damaged_slot_and_a_foreign_name(world: World) -> None:
    await world.replace(layout.slot_key(3), 60)
    await world.objects.put(Key("journal/main/readme"), [b"x"])
    report = await world.check()
    assert {problem.key for problem in report.problems} >= {layout.slot_key(3), "journal/main/readme"}


async def test_stubs_need_a_manifest(world: World) -> None:
    manifest = await world.manifest()
    for number in (1, 2, 3):
        await world.objects.put(layout.slot_key(number), [codec.encode_stub(number)])
    await world.add("c", blocks_of(3, 900))
    assert (await world.check()).problems == ()
    await world.objects.delete(layout.manifest_key(manifest.number))
    report = await world.check()
    assert [problem.key for problem in report.problems[:3]] == [layout.slot_key(number) for number in (1, 2, 3)]


@pytest.mark.expects_log("a manifest is not whole")
async def test_a_damaged_run_makes_its_manifest_worthless(world: World) -> None:
    manifest = await world.manifest()
    run = layout.run_key(manifest.runs()[0][1].id)
    await world.replace(run, 50)
    key, message, _ = only(await world.check())
    assert key == layout.manifest_key(manifest.number)
    assert run in message


async def test_a_cache_with_another_state_is_told(world: World) -> None:
    await world.db.write(lambda conn: conn.execute("UPDATE hashes SET hash = zeroblob(16)"))
    assert "cached state" in only(await world.check())[1]


async def test_a_part_is_read_each_day_and_all_in_the_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        await world.add(f"f{number}", blocks_of(10 + number, 100))
    read = []
    for day in range(4):
        monkeypatch.setattr(world.env.clock, "now_ns", lambda day=day: (20_000 + day) * 86_400 * 10**9)
        read.append((await world.check(read_data=True, share=0.25)).blocks_read)
    assert sum(read) == 3 + 1 + 10
    assert max(read) < sum(read)


async def test_an_archived_pack_is_no_damage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    get = world.objects.get

    async def archived(key: Key, start: int = 0, length: int | None = None) -> Blob:
        if key == world.packs[0].key:
            raise Archived(f"{key} is archived")
        return await get(key, start, length)

    monkeypatch.setattr(world.objects, "get", archived)
    report = await world.check(read_data=True)
    assert only(report) == (world.packs[0].key, f"{world.packs[0].key} is archived", ())
    assert report.problems[0].pack == 0


async def test_what_a_whole_manifest_steps_over_is_only_noted(world: World) -> None:
    await world.manifest()
    await world.replace(layout.slot_key(2), 60)
    [body] = [meta.key async for meta in world.objects.list("bodies/")]
    await world.objects.delete(body)
    report = await world.check()
    assert report.problems == ()
    assert [note.partition(":")[0] for note in report.notes] == [layout.slot_key(2), body]


@pytest.mark.expects_log("manifest is not whole")
@pytest.mark.parametrize("seed", range(25))
async def test_whatever_is_damaged_is_named(world: World, seed: int) -> None:
    """Any byte of any object, or a part of it, or all of it."""
    random = SeededRandomness(f"damage {seed}")
    await world.manifest()
    await world.add("c", blocks_of(3, 900, 50), stored=True)
    await world.add("d", blocks_of(4, BLOCK))
    keys = sorted([meta.key async for meta in world.objects.list("") if meta.key != layout.STORE])
    key = keys[random.uint64() % len(keys)]
    data = (await world.objects.get(key)).data
    at = random.uint64() % len(data)
    match random.uint64() % 3:
        case 0:
            await world.replace(key, at)
        case 1:
            await world.objects.put(key, [data[:at]])
        case _:
            await world.objects.delete(key)
    report = await world.check(read_data=True)
    said = [problem.key for problem in report.problems] + list(report.notes)
    if key.startswith("runs/"):
        assert any(text.startswith("checkpoint/") for text in said), said
    elif key.startswith("journal/") and not any(text.startswith(key) for text in said):
        assert said, "a missing slot is told of the one behind it, or of the journal"
    else:
        assert any(text.startswith(key) for text in said), (key, said)


async def test_a_journal_that_has_lost_its_end_is_told_by_who_knows_it(world: World) -> None:
    head = await world.db.run(state.head)
    await world.objects.delete(layout.slot_key(head.number))
    assert "this node has applied commit" in only(await world.check())[1]
