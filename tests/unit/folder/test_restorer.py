"""Restoring in place: trees come back as they were, by metadata alone."""

from __future__ import annotations

import asyncio

import pytest

from stnode.errors import Invalid, NotFound, Refused
from stnode.folder.restorer import Restored
from stnode.protocol.fileinfo import FileType
from stnode.repo import history, state
from tests.unit.folder.test_view import Bench, bench, noise

Tree = dict[str, tuple[FileType, int | None, int, str, bytes]]


async def tree(b: Bench, at_us: int | None = None) -> Tree:
    """Everything that a restore has to bring back."""
    found: Tree = {}
    for entry in await b.view.walk(at_us=at_us):
        data = b""
        if entry.type is FileType.FILE:
            data = b"".join([bytes(piece) async for piece in b.view.read(entry.name, at_us=at_us)])
        when = entry.modified_ns if entry.type is FileType.FILE else 0
        found[entry.name] = (entry.type, entry.permissions, when, entry.target, data)
    return found


async def now_us(b: Bench) -> int:
    """A moment after all that was committed; the next commit is later."""
    at_us = (await b.db.run(state.head)).store_time_us + 10_000
    while b.store.present_us() <= at_us + 10_000:
        await asyncio.sleep(0.005)
        b.store._journal._follower.note_date(None)
    return at_us


async def restore(b: Bench, path: str, at_us: int, **options: bool) -> list[Restored]:
    return [step async for step in b.view.restore(path, at_us, **options)]


async def grown(b: Bench) -> None:
    await b.put("d/a", noise(300_000), modified_ns=1_700_000_000_000_000_001, permissions=0o600)
    await b.put("d/e/b", b"b", permissions=0o755)
    await b.put("top", b"top")
    await b.view.mkdir("empty", permissions=0o700)
    await b.view.symlink("d/link", "e/b")


async def test_a_deleted_tree_comes_back_byte_for_byte_and_moves_no_data() -> None:
    async with bench() as b:
        await grown(b)
        before, at_us = await tree(b), await now_us(b)
        for name in ("d", "empty"):
            await b.view.remove(name, recursive=True)
        await b.put("top", b"overwritten")
        await b.put("later", b"later")
        packs = b.packs()
        assert await tree(b, at_us) == before
        steps = await restore(b, "", at_us)
        last = steps[-1]
        assert (last.files, last.directories, last.symlinks, last.deleted, last.failed) == (3, 3, 1, 0, 0)
        assert last.bytes == 300_004
        after = await tree(b)
        assert after.pop("later")[4] == b"later"
        assert after == before
        assert b.packs() == packs
        again = (await restore(b, "", at_us))[-1]
        assert (again.files, again.directories, again.symlinks, again.unchanged) == (0, 0, 0, 7)


async def test_exact_also_deletes_what_came_since() -> None:
    async with bench() as b:
        await grown(b)
        before, at_us = await tree(b), await now_us(b)
        await b.put("d/new/deep/file", b"x")
        await b.put("other", b"x")
        await b.view.remove("d/a")
        planned = await restore(b, "", at_us, exact=True, dry_run=True)
        changes = [change for step in planned for change in step.changes]
        assert changes == [
            ("delete", "d/new/deep/file"), ("delete", "other"), ("delete", "d/new/deep"), ("delete", "d/new"), ("create", "d/a"),
        ]  # fmt: skip
        assert "other" in await tree(b)
        last = (await restore(b, "", at_us, exact=True))[-1]
        assert (last.deleted, last.files) == (4, 1)
        assert await tree(b) == before


async def test_one_directory_and_one_file_alone() -> None:
    async with bench() as b:
        await grown(b)
        before, at_us = await tree(b), await now_us(b)
        await b.view.remove("d", recursive=True)
        await b.view.remove("top")
        await restore(b, "d/e", at_us)
        assert sorted(await tree(b)) == ["d", "d/e", "d/e/b", "empty"]
        await restore(b, "d/a", at_us)
        found = await tree(b)
        assert found["d/a"] == before["d/a"]
        assert "top" not in found


async def test_files_and_directories_that_took_each_others_place() -> None:
    async with bench() as b:
        await b.put("was-file", b"file")
        await b.put("was-dir/inner", b"inner")
        before, at_us = await tree(b), await now_us(b)
        await b.view.remove("was-file")
        await b.put("was-file/inner", b"x")
        await b.view.remove("was-dir", recursive=True)
        await b.put("was-dir", b"y")
        crowded = (await restore(b, "", at_us))[-1:]
        assert crowded[0].failed == 1
        assert (await tree(b))["was-dir/inner"] == before["was-dir/inner"]
        assert (await restore(b, "", at_us, exact=True))[-1].failed == 0
        assert await tree(b) == before


async def test_a_version_comes_back_by_its_number() -> None:
    async with bench() as b:
        first = await b.put("f", b"one")
        await b.put("f", b"two")
        await restore(b, "f", first.sequence)
        assert await b.content("f") == b"one"
        numbers = [version.entry.size for version in await b.view.versions("f")]
        assert numbers == [3, 3, 3]


async def test_what_others_change_meanwhile_is_not_lost() -> None:
    async with bench() as b:
        await b.put("f", b"one")
        at_us = await now_us(b)
        await b.put("f", b"two")
        await restore(b, "", at_us)
        assert await b.content("f") == b"one"
        assert [version.entry.size for version in await b.view.versions("f")] == [3, 3, 3]  # "two" is in the history


async def test_what_cannot_be() -> None:
    async with bench() as b:
        with pytest.raises(NotFound, match="no content yet"):
            await restore(b, "", 1)
        await grown(b)
        with pytest.raises(Invalid, match="no content yet"):
            await restore(b, "", 1, exact=True)
        at_us = await now_us(b)
        await b.put("later", b"x")
        with pytest.raises(NotFound, match="was not there"):
            await restore(b, "later", at_us)
        with pytest.raises(NotFound, match="did not exist then"):
            await b.view.stat("later", at_us)
        with pytest.raises(NotFound):
            await b.view.versions("nobody")


async def test_what_the_history_let_go_is_not_restored() -> None:
    async with bench(history="0", history_floor="0") as b:
        await b.put("f", b"one")
        await b.put("g", b"one")
        at_us = await now_us(b)
        await b.put("f", b"two")
        await now_us(b)
        found = await history.expire(b.db, b.store.submit_entries, b.store.present_us())
        assert found["f"].versions == 1
        last = (await restore(b, "", at_us))[-1]
        assert (last.files, last.unchanged) == (0, 1)
        assert await b.content("f") == b"two"


async def test_restoring_reads_no_data() -> None:
    async with bench() as b:
        entry = await b.put("f", noise(200_000))
        at_us = await now_us(b)
        await b.put("f", b"two")
        for key in b.packs():
            b.objects._objects.pop(key)
        b.store.reader.forget_moves()
        last = (await restore(b, "", at_us))[-1]
        assert (last.files, last.failed) == (1, 0)
        assert (await b.record("f")).info.size == entry.size


async def test_versions_say_who_and_when() -> None:
    async with bench() as b:
        await b.put("f", b"one")
        await b.view.remove("f")
        await b.put("f", b"three")
        present, first = await b.view.versions("f")
        assert (present.until_us, present.deleted, present.entry.size) == (None, False, 5)
        assert first.until_us is not None
        assert first.entry.sequence < first.until_us <= present.entry.sequence
        await b.view.remove("f")
        deletion = (await b.view.versions("f"))[0]
        assert deletion.deleted
        [gone] = await b.view.deleted()
        assert (gone.entry.name, gone.entry.size, gone.ended_by) == ("f", 5, gone.modified_by)


async def test_a_receive_only_folder_is_restored_as_a_local_change() -> None:
    async with bench("receiveonly") as b:
        await b.put("f", b"one")
        at_us = await now_us(b)
        await b.put("f", b"two")
        await restore(b, "", at_us)
        assert (await b.view.stat("f")).local_only
        assert await b.content("f") == b"one"


async def test_an_encrypted_folder_refuses() -> None:
    async with bench() as b:
        b.view.settings = b.settings.__class__("f", "00", 1, type="receiveencrypted")
        with pytest.raises(Refused, match="encrypted"):
            await restore(b, "", 1)
