"""The folder view on a real store in memory: what is written is read back, in packs, commits and records as they should be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from stnode.clock import Env, InlineThreads, SeededRandomness, SystemClock
from stnode.db import Database
from stnode.errors import Conflict, Invalid, NotFound, Refused
from stnode.folder import index
from stnode.folder.entries import Entry
from stnode.folder.treewriter import Chunks, NewDirectory, NewItem, NewSymlink, Written
from stnode.folder.view import FolderView
from stnode.objectstore.memory import MemoryStore
from stnode.protocol import deviceid, fileinfo
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.repo import pacing, state
from stnode.repo.packer import PackerOptions
from stnode.repo.records import Draft, DraftSet, LocalFlag, Record, SetKind
from stnode.repo.settings import FolderSettings
from stnode.repo.store import SettingsChange, Store, new_folder

ME = DeviceID(b"\x11" * 32)
PEER = 0x2222


@pytest.fixture(autouse=True)
def quick_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal's pauses between commits are not what is tested here."""
    monkeypatch.setattr(pacing, "GROUP_S", 0.02)
    monkeypatch.setattr(pacing, "FIRST_WAIT_S", 0.01)


@dataclass
class Bench:
    env: Env
    db: Database
    store: Store
    objects: MemoryStore
    fid: int
    settings: FolderSettings
    view: FolderView

    async def record(self, name: str) -> Record:
        return (await self.db.run(lambda conn: state.get_records(conn, self.fid, [name])))[name]

    async def names(self) -> list[str]:
        return [entry.name for entry in await self.view.walk()]

    async def content(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return b"".join([bytes(piece) async for piece in self.view.read(name, offset, length)])

    async def put(self, name: str, data: bytes, **more: object) -> Entry:
        return await self.view.write_file(name, stream(data), **more)  # type: ignore[arg-type]

    def packs(self) -> list[str]:
        return [key for key in self.objects._objects if key.startswith("packs/")]

    def slots(self) -> int:
        return sum(key.startswith("journal/") for key in self.objects._objects)

    async def announce(self, *files: FileInfo) -> None:
        """A peer's index update."""

        def apply(conn: object) -> None:
            index.apply_index(conn, self.fid, 1, files, full=False, settings=self.settings)  # type: ignore[arg-type]

        await self.db.write(apply)

    async def recheck(self) -> None:
        await self.db.write(lambda conn: index.evaluate_all(conn, self.fid, self.settings))


async def stream(data: bytes, piece: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), piece):
        yield data[start : start + piece]


@asynccontextmanager
async def bench(kind: str = "sendreceive", **changes: object) -> AsyncIterator[Bench]:
    env = Env(SystemClock(), SeededRandomness(7), InlineThreads())
    objects, db = MemoryStore(env), Database(None, inline=True)
    await state.prepare(db)
    await index.migrate(db)
    await Store.init(objects, env)
    store = await Store.open(objects, db, env, ME, PackerOptions(target_bytes=1 << 20))
    settings = replace(new_folder(env.random, "f"), type=kind, **changes)  # type: ignore[arg-type]
    await store.submit_settings(SettingsChange(folders=(settings,)))
    folder = await db.run(lambda conn: state.folder_by_id(conn, "f"))
    assert folder is not None
    view = FolderView(env, db, store, folder.fid, folder.settings, ME)
    try:
        yield Bench(env, db, store, objects, folder.fid, folder.settings, view)
    finally:
        await view.close()
        await store.close()
        await db.close()


def noise(size: int, seed: int = 1) -> bytes:
    return SeededRandomness(seed).bytes(size)


# --- content


@pytest.mark.parametrize("size", [0, 1, 131_071, 131_072, 131_073, 3_000_000, 17 << 20])
async def test_a_file_is_read_back_whole_and_in_ranges(size: int) -> None:
    data = noise(size)
    async with bench() as b:
        entry = await b.put("d/e/file", data, size=size, modified_ns=1_700_000_000_123_456_789, permissions=0o640)
        assert (entry.size, entry.modified_ns, entry.permissions, entry.type) == (size, 1_700_000_000_123_456_789, 0o640, FileType.FILE)
        assert await b.names() == ["d", "d/e", "d/e/file"]
        assert await b.content("d/e/file") == data
        for offset, length in ((0, 10), (131_070, 5), (size - 1, 10), (size // 2, 200_000), (size + 5, 1)):
            if offset >= 0:
                assert await b.content("d/e/file", offset, length) == data[offset : offset + length]


@pytest.mark.parametrize("size", [5 << 20, 20 << 20])
async def test_zeros_and_what_did_not_change_cost_nothing(size: int) -> None:
    async with bench() as b:
        await b.put("zeros", bytes(size))
        assert not b.packs()
        assert await b.content("zeros") == bytes(size)
        data = bytearray(noise(size))
        await b.put("f", bytes(data))
        stored = sum(len(b.objects._objects[key].data) for key in b.packs())
        data[size // 2] ^= 1
        await b.put("f", bytes(data))
        assert await b.content("f") == bytes(data)
        more = sum(len(b.objects._objects[key].data) for key in b.packs()) - stored
        assert more < 2_300_000, "one block and its neighbours below the shortest run"


async def test_a_copy_costs_nothing() -> None:
    async with bench() as b:
        data = noise(3_000_000)
        await b.put("one", data)
        packs = b.packs()
        await b.put("two", data)
        assert b.packs() == packs
        assert await b.content("two") == data


async def test_a_change_names_the_content_that_it_was_made_on() -> None:
    async with bench() as b:
        first = await b.put("f", b"first")
        old = (await b.record("f")).info
        entry = await b.put("f", b"second")
        assert entry.version > first.version
        info = (await b.record("f")).info
        assert (info.modified_by, info.version[0][0]) == (deviceid.short_id(ME), deviceid.short_id(ME))
        assert fileinfo.blocks_hash(fileinfo.zero_hash(0)) not in info.wire
        assert old.wire.split(b"\x92\x01 ")[1][:32] in info.wire, "previous_blocks_hash is the old blocks_hash"


async def test_a_wrong_length_or_a_failing_source_changes_nothing() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        raise Invalid("the source broke")

    async with bench() as b:
        for size in (10, 20 << 20):
            with pytest.raises(Invalid, match="were announced"):
                await b.put("f", noise(size), size=size + 1)
        with pytest.raises(Invalid, match="broke"):
            await b.view.write_file("f", failing())
        assert await b.names() == []


async def test_concurrent_small_writes_share_a_pack_and_few_commits() -> None:
    async with bench() as b:
        slots = b.slots()
        await asyncio.gather(*(b.put(f"f{at}", noise(1000, at)) for at in range(50)))
        assert len(b.packs()) == 1
        assert b.slots() - slots <= 3
        assert await b.content("f7") == noise(1000, 7)


async def test_a_tree_is_written_in_batches() -> None:
    items: dict[str, NewItem] = {
        f"t/{at % 7}/f{at}": Chunks(f"t/{at % 7}/f{at}", stream(noise(3000 + at, at)), 3000 + at) for at in range(600)
    }
    items["t/big"] = Chunks("t/big", stream(noise(17 << 20)))
    items["t/empty"] = NewDirectory("t/empty", permissions=0o700)
    items["t/link"] = NewSymlink("t/link", "3/f3")
    seen: list[Written] = []

    async def source() -> AsyncIterator[NewItem]:
        for item in items.values():
            yield item

    async with bench() as b:
        slots = b.slots()
        written = await b.view.write_many(source(), seen.append)
        assert (written.files, written.directories, written.symlinks) == (601, 1, 1)
        assert seen[-1] == written
        assert b.slots() - slots < 8
        assert set(await b.names()) == {*items, "t", *(f"t/{at}" for at in range(7))}
        assert (await b.view.stat("t/empty")).permissions == 0o700
        assert (await b.view.stat("t/link")).target == "3/f3"
        for at in (0, 299, 599):
            assert await b.content(f"t/{at % 7}/f{at}") == noise(3000 + at, at)
        assert await b.content("t/big", 16 << 20, 1000) == noise(17 << 20)[16 << 20 :][:1000]


async def test_blocks_that_may_not_be_named_any_more_are_uploaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench() as b:
        await b.put("a", noise(500_000))
        record = await b.record("a")
        info = fileinfo.replace(await b.view._writer.loaded(record), name="b", version=())
        again = await b.view._writer.copied(Draft(b.fid, info, record.extents, local=True))
        assert again.extents != record.extents
        await b.store.submit([DraftSet(SetKind.SINGLE, (again,))])
        assert await b.content("b") == noise(500_000)


# --- the tree


async def test_paths_that_cannot_be() -> None:
    async with bench() as b:
        for path in ("", "/a", "a/", "a//b", "../a", "a/./b", ".stfolder", ".stignore", "a/.syncthing.b.tmp", "x" * 256, "a\0b"):
            with pytest.raises(Invalid, match="cannot be used"):
                await b.put(path, b"x")
        await b.put("a\u0308", b"x")
        assert await b.names() == ["\u00e4"]


async def test_directories_and_what_stands_in_their_way() -> None:
    async with bench() as b:
        with pytest.raises(NotFound):
            await b.view.mkdir("a/b")
        await b.view.mkdir("a/b", parents=True, permissions=0o711)
        assert (await b.view.stat("a/b")).permissions == 0o711
        with pytest.raises(Conflict):
            await b.view.mkdir("a/b")
        await b.view.mkdir("a/b", parents=True)
        await b.put("a/f", b"x")
        with pytest.raises(Conflict):
            await b.put("a/f/g", b"x")
        with pytest.raises(Conflict):
            await b.put("a", b"x")
        with pytest.raises(Conflict):
            await b.view.remove("a")
        with pytest.raises(Invalid):
            await b.content("a")
        with pytest.raises(NotFound):
            await b.view.list_dir("nowhere")
        assert await b.view.remove("a", recursive=True) == 3
        assert await b.names() == []
        await b.put("a/f", b"again")
        assert await b.names() == ["a", "a/f"]


async def test_listing_in_pages() -> None:
    async with bench() as b:
        for name in ("a/1", "a/2", "a/2-x", "a/3/deep", "b"):
            await b.put(name, b"x")
        assert [entry.name for entry in await b.view.list_dir()] == ["a", "b"]
        first = await b.view.list_dir("a", limit=2)
        assert [entry.name for entry in first] == ["a/1", "a/2"]
        assert [entry.name for entry in await b.view.list_dir("a", after="a/2", limit=2)] == ["a/2-x", "a/3"]
        assert [entry.name for entry in await b.view.walk("a", after="a/2-x")] == ["a/3", "a/3/deep"]
        assert (await b.view.stat("")).type is FileType.DIRECTORY


async def test_a_file_and_a_tree_are_moved_by_metadata() -> None:
    async with bench() as b:
        data = noise(700_000)
        await b.put("d/f", data, permissions=0o600, modified_ns=10**18)
        await b.put("d/s/empty", b"")
        await b.view.symlink("d/s/link", "../f")
        packs = b.packs()
        entry = await b.view.rename("d/f", "d/g")
        assert (entry.permissions, entry.modified_ns) == (0o600, 10**18)
        await b.view.rename("d", "new/place")
        assert await b.names() == ["new", "new/place", "new/place/g", "new/place/s", "new/place/s/empty", "new/place/s/link"]
        assert await b.content("new/place/g") == data
        assert await b.content("new/place/s/empty") == b""
        assert b.packs() == packs
        with pytest.raises(Invalid):
            await b.view.rename("new", "new/place/inside")
        with pytest.raises(Conflict):
            await b.view.rename("new/place/g", "new/place/s")
        await b.put("other", b"x")
        with pytest.raises(Conflict):
            await b.view.rename("other", "new/place/g", replace=False)
        await b.view.rename("other", "new/place/g")
        assert await b.content("new/place/g") == b"x"


async def test_times_and_modes() -> None:
    async with bench() as b:
        first = await b.put("f", b"x", permissions=0o600)
        entry = await b.view.set_meta("f", modified_ns=1_500_000_000_000_000_001, permissions=0o755)
        assert (entry.modified_ns, entry.permissions) == (1_500_000_000_000_000_001, 0o755)
        assert await b.content("f") == b"x"
        with pytest.raises(Conflict):
            await b.view.set_meta("f", permissions=0o700, condition=first.version)
    async with bench(ignore_permissions=True) as b:
        assert (await b.put("f", b"x", permissions=0o600)).permissions is None


async def test_conditions() -> None:
    async with bench() as b:
        first = await b.put("f", b"1", condition=None)
        with pytest.raises(Conflict):
            await b.put("f", b"2", condition=None)
        second = await b.put("f", b"2", condition=first.version)
        with pytest.raises(Conflict):
            await b.put("f", b"3", condition=first.version)
        with pytest.raises(Conflict):
            [piece async for piece in b.view.read("f", condition=first.version)]
        with pytest.raises(Conflict):
            await b.view.remove("f", condition=first.version)
        await b.view.remove("f", condition=second.version)
        with pytest.raises(NotFound):
            await b.content("f")


# --- folder types


def theirs(name: str, version: tuple[tuple[int, int], ...], content: bytes | None, sequence: int = 1) -> FileInfo:
    """A peer's item; None = deleted."""
    hashes = b"" if content is None else __import__("hashlib").sha256(content).digest()
    return fileinfo.new(
        name=name, type=FileType.FILE, version=version, modified_by=PEER, size=len(content or b""), permissions=0o644, modified_s=4_000_000_000,
        deleted=content is None, block_hashes=hashes, sequence=sequence,
    )  # fmt: skip


async def pull(b: Bench, info: FileInfo, content: bytes) -> None:
    """What the runner does with a peer's file."""
    pack = b.store.packer.begin(b.fid, stream=False)
    pack.add((1, 0), content, info.block_hashes)
    sealed = await b.store.packer.seal(pack)
    await b.store.submit([DraftSet(SetKind.SINGLE, (Draft(b.fid, info, ((sealed.handle, 0, 1),)),))])


async def test_an_encrypted_folder_is_not_changed() -> None:
    async with bench("receiveencrypted") as b:
        with pytest.raises(Refused):
            await b.put("f", b"x")
        with pytest.raises(Refused):
            await b.view.remove("f")
        with pytest.raises(Refused):
            await b.view.revert()


async def test_local_changes_of_a_receive_only_folder_are_flagged_and_reverted() -> None:
    async with bench("receiveonly") as b:
        one, two = theirs("one", ((PEER, 5),), b"one"), theirs("two", ((PEER, 6),), b"two", 2)
        await b.announce(one, two)
        await pull(b, one, b"one")
        await pull(b, two, b"two")
        await b.recheck()
        changed = await b.put("one", b"changed here")
        assert changed.local_only
        assert (await b.record("one")).local_flags == LocalFlag.RECEIVE_ONLY
        await b.put("added", b"only here")
        await b.view.remove("two")
        await b.recheck()
        assert await b.db.run(lambda conn: index.next_needed(conn, b.fid, "", 10, deletes=False)) == []
        assert await b.view.revert() == 3
        assert await b.names() == ["one", "two"]
        assert (await b.content("one"), await b.content("two")) == (b"one", b"two")
        for name, info in (("one", one), ("two", two)):
            record = await b.record(name)
            assert (record.info.version, record.local_flags) == (info.version, 0)
        assert (await b.record("added")).local_flags == 0
        assert await b.view.revert() == 0


async def test_reverting_without_history_makes_it_needed_again() -> None:
    async with bench("receiveonly") as b:
        await b.put("f", b"mine")
        newer = theirs("f", ((PEER, 9),), b"theirs")
        await b.announce(newer)
        await b.view.revert()
        await b.recheck()
        needed = await b.db.run(lambda conn: index.next_needed(conn, b.fid, "", 10, deletes=False))
        assert [need.name for need in needed] == ["f"]
        await pull(b, newer, b"theirs")
        assert await b.content("f") == b"theirs"
        assert (await b.record("f")).local_flags == 0


async def test_a_newer_version_replaces_a_receive_only_change_which_becomes_a_flagged_copy() -> None:
    async with bench("receiveonly") as b:
        first = theirs("f.txt", ((PEER, 5),), b"one")
        await pull(b, first, b"one")
        await b.put("f.txt", b"mine", modified_ns=5_000_000_000 * 10**9)
        await pull(b, theirs("f.txt", ((PEER, 6),), b"new"), b"new")
        assert await b.content("f.txt") == b"new"
        (copy,) = [name for name in await b.names() if "sync-conflict" in name]
        assert await b.content(copy) == b"mine"
        assert (await b.view.stat(copy)).local_only


async def test_override_makes_a_send_only_folder_win() -> None:
    async with bench("sendonly") as b:
        mine = await b.put("f", b"mine")
        await b.announce(theirs("f", (*mine.version, (PEER, 1 << 40)), b"theirs"), theirs("extra", ((PEER, 7),), b"extra", 2))
        assert await b.view.override() == 2
        await b.recheck()
        assert index.NeedTotals() == await b.db.run(lambda conn: index.need_totals(conn, b.fid))
        record, extra = await b.record("f"), await b.record("extra")
        assert await b.content("f") == b"mine"
        assert (PEER, 1 << 40) in record.info.version
        assert extra.info.deleted
        assert (PEER, 7) in extra.info.version
        with pytest.raises(Refused):
            await b.view.revert()
