"""The guard against mass deletions, in a store whose commits are small: whatever comes in pieces is held whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from stnode.clock import Env, InlineThreads, SeededRandomness, SystemClock
from stnode.db import Database
from stnode.objectstore.memory import MemoryStore
from stnode.protocol import fileinfo
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.repo import pacing, state
from stnode.repo.guard import DeletionGuard
from stnode.repo.journal import JournalOptions
from stnode.repo.proposal import FolderFacts
from stnode.repo.records import Draft, DraftSet, SetKind, Status
from stnode.repo.store import SettingsChange, Store, new_folder

pytestmark = pytest.mark.expects_log("deletions wait")

FID = 1
FILES = 1200


@pytest.fixture(autouse=True)
def quick_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "GROUP_S", 0.02)
    monkeypatch.setattr(pacing, "FIRST_WAIT_S", 0.01)


def item(name: str, counter: int, *, deleted: bool = False, kind: FileType = FileType.FILE) -> FileInfo:
    return fileinfo.new(name=name, type=kind, version=((7, counter),), modified_by=7, deleted=deleted)


def single(info: FileInfo, *, local: bool = False) -> DraftSet:
    return DraftSet(SetKind.SINGLE, (Draft(FID, info, (), local=local, base=((7, 1),) if local else None),))


@asynccontextmanager
async def folder_of_files(delete_guard: float = 0.0, files: int = FILES) -> AsyncIterator[Store]:
    env = Env(SystemClock(), SeededRandomness(3), InlineThreads())
    objects, db = MemoryStore(env), Database(None, inline=True)
    await state.prepare(db)
    await Store.init(objects, env)
    store = await Store.open(objects, db, env, DeviceID(b"\x11" * 32), journal_options=JournalOptions(group_records=100))
    try:
        await store.submit_settings(SettingsChange(folders=(replace(new_folder(env.random, "f"), delete_guard=delete_guard),)))
        await store.submit([single(item("d", 1, kind=FileType.DIRECTORY)), *(single(item(f"d/{n}", 1)) for n in range(files))])
        yield store
    finally:
        await store.close()
        await db.close()


def deletions(count: int, *, local: bool = False) -> list[DraftSet]:
    gone = [single(item(f"d/{number}", 2, deleted=True), local=local) for number in range(count)]
    return [*gone, single(item("d", 2, deleted=True, kind=FileType.DIRECTORY))] if count == FILES else gone


async def settled(store: Store) -> None:
    """Everything that could be committed has been."""
    await store.submit([single(item(f"other {store.status().journal.number}", 1))])


async def live(store: Store) -> int:
    return (await store._db.run(lambda conn: state.totals(conn, FID))).files


async def test_none_of_many_small_commits_goes_before_all_are_held() -> None:
    async with folder_of_files() as store:
        waiting = store.submit(deletions(FILES))
        await settled(store)
        assert await live(store) == FILES + 1
        assert [pending.files for pending in store.pending_deletions()] == [FILES]
        assert not waiting.done()
        store.confirm_deletions(FID)
        outcomes = await waiting
        assert {outcome.status for outcome in outcomes} == {Status.COMMITTED}  # the directory too, after its files
        assert await live(store) == 1


async def test_rejected_deletions_of_clients_fail_those_of_devices_are_dropped() -> None:
    async with folder_of_files() as store:
        for local, status in ((False, Status.DROPPED), (True, Status.CONFLICT)):
            waiting = store.submit(deletions(700, local=local))
            await settled(store)
            assert len(store.held_deletions(FID)) == 700
            store.reject_deletions(FID)
            assert {outcome.status for outcome in await waiting} == {status}
            assert not store.pending_deletions()
        assert await live(store) == FILES + 2


async def test_a_file_that_comes_back_is_not_deleted_afterwards() -> None:
    """The disk was only away: what the device announces anew ends the deletions that wait."""
    async with folder_of_files() as store:
        waiting = store.submit(deletions(700))
        await settled(store)
        await store.submit([single(item(f"d/{number}", 3)) for number in range(700)])
        assert {outcome.status for outcome in await waiting} == {Status.DROPPED}
        assert not store.pending_deletions()


@pytest.mark.parametrize(
    ("guard", "count", "held"), [(0.0, 601, True), (0.0, 600, False), (0.1, 121, True), (0.9, 1000, False), (-1.0, FILES, False)]
)
async def test_the_share_of_the_folder_counts(guard: float, count: int, held: bool) -> None:
    async with folder_of_files(guard) as store:
        waiting = store.submit(deletions(count))
        await settled(store)
        assert bool(store.pending_deletions()) is held
        if held:
            store.reject_deletions(FID)
        await waiting


async def test_an_hour_of_deletions_counts_together() -> None:
    async with folder_of_files() as store:
        await store.submit(deletions(500))
        waiting = store.submit([single(item(f"d/{number}", 2, deleted=True)) for number in range(500, 700)])
        await settled(store)
        assert [pending.files for pending in store.pending_deletions()] == [200]
        store.reject_deletions(FID)
        await waiting


async def test_small_folders_are_not_guarded() -> None:
    async with folder_of_files(files=900) as store:
        outcomes = await store.submit(deletions(900))
        assert {outcome.status for outcome in outcomes} == {Status.COMMITTED}


def test_what_was_confirmed_on_a_lost_history_holds_for_nothing() -> None:
    """A folder's number may be another folder's after the bucket was put back."""
    guard, facts = DeletionGuard(), FolderFacts("f", 0, FILES, 0.0, encrypted=False)
    guard.confirm(FID, 0.0)
    assert not guard.holds(FID, 700, facts, 1.0)
    guard.take_all()
    assert guard.holds(FID, 700, facts, 2.0)
