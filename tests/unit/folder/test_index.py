"""Questions to the index that the model test does not ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from sqlite3 import Connection

import pytest

from stnode.db import Database
from stnode.folder import index
from stnode.folder.types import Completion, IndexState, NeedKind
from stnode.protocol import fileinfo, vector
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.vector import Vector
from stnode.repo.records import LocalFlag
from stnode.repo.settings import ENCRYPTED, FolderSettings, encode_folder
from stnode.repo.state_schema import LAYER, STEPS

FID = 1
FOLDER = FolderSettings("f", "aaaaaaaa", 1)
V1: Vector = ((5, 1),)
V2: Vector = ((5, 2),)


@pytest.fixture
async def conn() -> Iterator[Connection]:  # type: ignore[misc]
    db = Database(None, inline=True)
    await db.migrate(LAYER, STEPS)
    await index.migrate(db)
    found = await db.run(lambda conn: conn)
    found.execute(
        "INSERT INTO folders (fid, fkey, folder_id, incarnation, index_id, settings) VALUES (1, 'k', 'f', 'a', '1', ?)",
        (encode_folder(FOLDER),),
    )
    yield found
    await db.close()


def item(
    name: str, version: Vector = V1, size: int = 100, sequence: int = 1, *, deleted: bool = False, kind: FileType = FileType.FILE
) -> FileInfo:
    file = kind is FileType.FILE and not deleted
    return fileinfo.new(
        name=name, type=kind, version=version, modified_by=5, size=size if file else 0, sequence=sequence, deleted=deleted,
        block_hashes=version[0][1].to_bytes(32, "big") * fileinfo.block_count(size, fileinfo.block_size_for(size)) if file else b"",
    )  # fmt: skip


def announce(conn: Connection, dev: int, *files: FileInfo, full: bool = False) -> index.IndexEffect:
    return index.apply_index(conn, FID, dev, files, full=full, settings=FOLDER)


def commit(conn: Connection, info: FileInfo, flags: int = 0) -> index.IndexEffect:
    seq = (conn.execute("SELECT max(seq) FROM records").fetchone()[0] or 0) + 1
    row = (FID, info.name, seq, info.type, info.deleted, 0, flags, info.size, vector.to_wire(info.version), info.wire, b"")
    conn.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    totals = conn.execute("SELECT count(*), sum(size) FROM records WHERE deleted = 0").fetchone()
    conn.execute("UPDATE folders SET files = ?, bytes = ?", (totals[0], totals[1] or 0))
    return index.recheck(conn, FID, [info.name], FOLDER)


def wanted(conn: Connection, deletes: bool = False) -> list[tuple[str, NeedKind]]:
    return [(need.name, need.kind) for need in index.next_needed(conn, FID, "", 100, deletes=deletes)]


async def test_devices_keep_their_number(conn: Connection) -> None:
    numbers = [index.device_number(conn, bytes([at]) * 32) for at in (1, 2, 1)]
    assert numbers[0] == numbers[2] != numbers[1]


async def test_index_id_and_sequence_are_kept_with_the_files(conn: Connection) -> None:
    assert index.index_state(conn, FID, 1) == IndexState(0, 0)
    index.begin_index(conn, FID, 1, 2**64 - 1)
    announce(conn, 1, item("a", sequence=7), item("b", sequence=9))
    index.begin_index(conn, FID, 1, 2**64 - 1)
    assert index.index_state(conn, FID, 1) == IndexState(2**64 - 1, 9)
    assert [name for name, _ in wanted(conn)] == ["a", "b"]
    index.begin_index(conn, FID, 1, 3)
    assert index.index_state(conn, FID, 1) == IndexState(3, 0)
    assert wanted(conn) == []


async def test_windows_sources_and_content_of_what_is_needed(conn: Connection) -> None:
    announce(conn, 1, item("d", kind=FileType.DIRECTORY), item("d/f", V2, 300_000), item("e", V1))
    announce(conn, 2, item("d/f", V1), item("e", V1), item("l", kind=FileType.FILE, version=V2, size=0))
    first = index.next_needed(conn, FID, "", 2, deletes=False)
    assert [(need.name, need.kind, need.size, need.blocks, need.small) for need in first] == [
        ("d", NeedKind.DIRECTORY, 0, 0, True),
        ("d/f", NeedKind.FILE, 300_000, 3, False),
    ]
    assert [need.name for need in index.next_needed(conn, FID, "d/f", 2, deletes=False)] == ["e", "l"]
    assert index.sources(conn, FID, ["d/f", "e", "nothing"]) == {"d/f": [1], "e": [1, 2]}
    info = index.needed_info(conn, FID, ["d/f"])["d/f"]
    assert (info.version, info.block_hashes) == (V2, (2).to_bytes(32, "big") * 3)
    assert index.announced_by(conn, FID, "d/f", V1) == [2]
    totals = index.need_totals(conn, FID)
    assert (totals.files, totals.directories, totals.bytes) == (3, 1, 300_100)


async def test_deletions_only_of_what_is_there(conn: Connection) -> None:
    commit(conn, item("f", V1))
    commit(conn, item("d", V1, kind=FileType.DIRECTORY))
    announce(conn, 1, item("f", V2, deleted=True), item("d", V2, deleted=True, kind=FileType.DIRECTORY), item("unknown", V2, deleted=True))
    assert wanted(conn) == []
    assert wanted(conn, deletes=True) == [("d", NeedKind.DELETE_DIRECTORY), ("f", NeedKind.DELETE)]
    assert set(commit(conn, item("f", V2, deleted=True)).satisfied) == {"f"}


async def test_a_live_item_with_the_vector_of_our_deletion_is_needed_with_its_content(conn: Connection) -> None:
    commit(conn, item("f", V1))
    commit(conn, item("f", V2, deleted=True))
    announce(conn, 1, item("f", V2, deleted=True))
    announce(conn, 2, item("f", V2))
    assert wanted(conn) == [("f", NeedKind.FILE)]
    assert index.sources(conn, FID, ["f"]) == {"f": [2]}
    assert [part.devices for part in index.parts(conn, FID, ["f"])] == [(2,)]
    info = index.needed_info(conn, FID, ["f"])["f"]
    assert (info.deleted, info.block_hashes) == (False, (2).to_bytes(32, "big"))
    assert commit(conn, item("f", (*V2, (6, 1)))).satisfied == ["f"]


async def test_a_deletion_with_the_vector_of_our_live_item_comes_to_the_judge(conn: Connection) -> None:
    commit(conn, item("f", V1))
    announce(conn, 1, item("f", V1, deleted=True))
    assert wanted(conn, deletes=True) == [("f", NeedKind.DELETE)]
    assert index.needed_info(conn, FID, ["f"])["f"].deleted
    announce(conn, 2, item("f", V2))
    assert wanted(conn, deletes=True) == []
    assert wanted(conn) == [("f", NeedKind.FILE)]


async def test_equal_sums_of_an_encrypted_folder_are_no_contradiction(conn: Connection) -> None:
    encrypted = replace(FOLDER, type=ENCRYPTED)
    conn.execute("UPDATE folders SET settings = ?", (encode_folder(encrypted),))
    commit(conn, item("f", V1))
    index.apply_index(conn, FID, 1, [item("f", V1, deleted=True)], full=False, settings=encrypted)
    assert wanted(conn, deletes=True) == []


async def test_same_content_under_another_version_is_metadata(conn: Connection) -> None:
    mine = item("f", V1)
    commit(conn, mine)
    announce(conn, 1, fileinfo.replace(mine, version=V2, permissions=0o600, sequence=3))
    assert wanted(conn) == [("f", NeedKind.METADATA)]
    assert index.need_totals(conn, FID).bytes == 0


async def test_completion(conn: Connection) -> None:
    for name, size in (("a", 300), ("b", 100)):
        commit(conn, item(name, V1, size))
    assert index.completion(conn, FID, [1]) == {1: Completion(2, 400, 0, 2, 400)}
    announce(conn, 1, item("a", V1, 300), item("c", V1, 100), item("b", ((1, 1),), 100))
    (done,) = index.completion(conn, FID, [1]).values()
    assert (done.need_items, done.need_bytes, done.global_bytes) == (0, 0, 500)
    announce(conn, 1, item("b", V2, deleted=True))
    commit(conn, item("a", V2, deleted=True))
    (done,) = index.completion(conn, FID, [1]).values()
    assert done.need_deletes == 1
    assert done.percent == 95.0
    assert Completion(1, 50, 0, 4, 200).percent == 75.0
    assert Completion(0, 0, 0, 0, 0).percent == 100.0


async def test_damaged_content_is_needed_again_from_who_has_it_once_its_index_came_again(conn: Connection) -> None:
    info = item("f", V1)
    announce(conn, 1, info)
    commit(conn, info)
    assert conn.execute("SELECT count(*) FROM remote_content").fetchone() == (0,)
    commit(conn, info, LocalFlag.MUST_FETCH)
    (need,) = index.next_needed(conn, FID, "", 10, deletes=False)
    assert not need.known
    assert index.needed_info(conn, FID, ["f"]) == {}
    assert index.missing_content(conn, FID) == [1]
    index.forget(conn, FID, 1)
    assert index.index_state(conn, FID, 1) == IndexState(0, 0)
    index.begin_index(conn, FID, 1, 44)
    announce(conn, 1, info, full=True)
    assert index.missing_content(conn, FID) == []
    assert list(index.needed_info(conn, FID, ["f"])) == ["f"]
    commit(conn, info)
    assert wanted(conn) == []


async def test_large_indexes_are_dropped_in_steps(conn: Connection) -> None:
    index.begin_index(conn, FID, 1, 9)
    announce(conn, 1, *[item(f"f{at:04}", sequence=at + 1) for at in range(2500)])
    effect, done = index.drop_step(conn, FID, 1, 1000)
    assert not done
    assert effect.satisfied == [f"f{at:04}" for at in range(1000)]
    assert index.index_state(conn, FID, 1) == IndexState(9, 0)
    assert conn.execute("SELECT count(*) FROM need").fetchone() == (1500,)
    assert not index.drop_step(conn, FID, 1, 1500)[1]
    assert index.drop_step(conn, FID, 1)[1]
    assert conn.execute("SELECT count(*) FROM remote_content").fetchone() == (0,)


async def test_numbers_made_up_by_a_peer_do_no_harm(conn: Connection) -> None:
    for at in range(3):
        wild = fileinfo.from_record(
            fileinfo.replace(item(f"f{at}"), modified_s=2**62, modified_ns=999_999_999).wire.replace(b"\x18d", b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), 5, b"x" * 32
        )  # fmt: skip
        announce(conn, 1, wild)
    assert index.need_totals(conn, FID).files == 3
    index.drop_folder(conn, FID)
    assert wanted(conn) == []


async def test_another_incarnation_starts_with_nothing(conn: Connection) -> None:
    index.evaluate_all(conn, FID, FOLDER)
    announce(conn, 1, item("a"))
    index.evaluate_all(conn, FID, FolderSettings("f", "bbbbbbbb", 2))
    assert wanted(conn) == []
    assert index.index_state(conn, FID, 1) == IndexState()


async def test_records_of_other_runs_are_taken_in_at_the_start(conn: Connection) -> None:
    index.evaluate_all(conn, FID, FOLDER)
    announce(conn, 1, item("a"), item("b", sequence=2))
    row = (FID, "a", 50, 0, 0, 0, 0, 100, vector.to_wire(V1), item("a").wire, b"")
    conn.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    assert index.evaluate_all(conn, FID, FOLDER).satisfied == ["a"]
    assert index.evaluate_all(conn, FID, FOLDER).satisfied == []
