"""Re-validation, case by case: a committed state, drafts, and what must be written of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.vector import Vector, counter, covers, update
from stnode.repo import judge as judging
from stnode.repo.judge import Context, Judged, Verdict, judge
from stnode.repo.records import UNCONDITIONAL, Condition, Draft, DraftSet, Extents, HistoryRule, Record, SetKind, Status

ME, SIBLING, P1, P2 = 50, 60, 1, 2
NOW = 1_763_700_000
FID, ENCRYPTED = 1, 2
DIR, FILE, LINK = FileType.DIRECTORY, FileType.FILE, FileType.SYMLINK


def item(
    name: str,
    version: Vector,
    kind: FileType = FILE,
    *,
    content: str = "",
    deleted: bool = False,
    by: int = P1,
    mtime: int = 1000,
    previous: bytes = b"",
) -> FileInfo:
    data = (content or f"{name}{version}").encode()
    has_data = kind is FILE and not deleted
    return fileinfo.new(
        name=name, type=kind, version=version, modified_by=by, size=100 if has_data else 0, modified_s=mtime, deleted=deleted,
        block_hashes=(data * 32)[:32] if has_data else b"", symlink_target=data if kind is LINK else b"", previous_blocks_hash=previous,
    )  # fmt: skip


def draft(info: FileInfo, fid: int = FID, extents: Extents = ((1, 0, 1),), *, flags: int = 0) -> Draft:
    return Draft(fid, info, extents if info.block_hashes else (), local_flags=flags)


def local(info: FileInfo, base: Vector | None = None, condition: Condition = UNCONDITIONAL) -> Draft:
    return Draft(FID, info, ((1, 0, 1),) if info.block_hashes else (), local=True, base=base, condition=condition)


@dataclass
class FakeView:
    records: dict[tuple[int, str], Record] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()
    announces: frozenset[tuple[str, Vector]] = frozenset()

    def record(self, fid: int, name: str) -> Record | None:
        return self.records.get((fid, name))

    def live_below(self, fid: int, directory: str) -> Iterable[str]:
        return [n for (f, n), r in self.records.items() if f == fid and n.startswith(directory + "/") and not r.info.deleted]

    def usable(self, extents: Extents) -> bool:
        return all(extent[0] not in self.gone for extent in extents)

    def announced(self, fid: int, info: FileInfo) -> bool:
        return (info.name, info.version) in self.announces


def state(*infos: FileInfo, fid: int = FID, loaded: bool = False, flags: int = 0) -> FakeView:
    """A view of committed records; block hashes are not loaded unless wanted, as in the real one."""
    view = FakeView()
    for number, info in enumerate(infos, 1):
        kept = info if loaded else fileinfo.from_record(info.wire, number)
        view.records[fid, info.name] = Record(fid, info.name, number, kept, ((9, number, 1),) if info.block_hashes else (), flags)
    return view


def decide(view: FakeView, *sets: DraftSet | Draft) -> list[Verdict]:
    wrapped = [each if isinstance(each, DraftSet) else DraftSet(SetKind.SINGLE, (each,)) for each in sets]
    return judge(view, wrapped, Context(ME, NOW, {FID, ENCRYPTED}, nodes={ME, SIBLING}, encrypted={ENCRYPTED}))


def one(view: FakeView, wanted: DraftSet | Draft) -> Verdict:
    return decide(view, wanted)[0]


def names(verdict: Verdict) -> list[str]:
    return [record.name for record in verdict.records]


def the(verdict: Verdict, name: str) -> Judged:
    return next(record for record in verdict.records if record.name == name)


# ---- versions from peers ----------------------------------------------------------------------------------------------

A1: Vector = ((P1, 1),)
A2: Vector = ((P1, 2),)
B1: Vector = ((P2, 1),)


@pytest.mark.parametrize(
    ("committed", "incoming", "status", "reason"),
    [
        (None, item("f", A1), Status.COMMITTED, ""),
        (None, item("f", A1, deleted=True), Status.COMMITTED, ""),
        (item("f", A1), item("f", A2), Status.COMMITTED, ""),
        (item("f", A1), item("f", A2, deleted=True), Status.COMMITTED, ""),
        (item("f", A2), item("f", A1), Status.DROPPED, judging.OLDER),
        (item("f", A1, content="x"), item("f", A1, content="x"), Status.DROPPED, judging.ALREADY_THERE),
        (item("d", A1, DIR), item("d", A1, DIR), Status.DROPPED, judging.ALREADY_THERE),
        (item("f", A1, mtime=5), item("f", B1, mtime=6), Status.COMMITTED, ""),
        (item("f", A1, mtime=6, content="same"), item("f", B1, mtime=5, content="same"), Status.DROPPED, judging.LOSES),
        (item("d", A1, DIR, mtime=6), item("d", B1, DIR, mtime=5), Status.DROPPED, judging.LOSES),
    ],
)
def test_a_peers_version_against_the_committed_one(committed: FileInfo | None, incoming: FileInfo, status: Status, reason: str) -> None:
    verdict = one(state(*[committed] if committed else []), draft(incoming))
    assert (verdict.status, verdict.reason) == (status, reason)
    if status is Status.COMMITTED:
        kept = the(verdict, incoming.name)
        assert kept.info == incoming, "a pulled item is stored with the sender's vector"


def test_an_unannounced_loser_becomes_a_copy_by_metadata_alone() -> None:
    verdict = one(state(item("a/f.txt", A1, mtime=5)), draft(item("a/f.txt", B1, mtime=6, by=P2)))
    copy, winner = verdict.records
    assert copy.name.startswith("a/f.sync-conflict-20251121-")
    assert copy.name.endswith(".txt")
    assert copy.extents == ((9, 1, 1),), "the same blocks"
    assert copy.info.version == ((ME, NOW),)
    assert copy.info.modified_by == ME
    assert copy.info.size == 100
    assert copy.info.modified_s == 5
    assert winner.info.version == B1


@pytest.mark.parametrize("winner_is_committed", [True, False])
def test_a_loser_that_a_device_announces_is_left_to_it(winner_is_committed: bool) -> None:
    loser, winner = item("f", A1, mtime=5), item("f", B1, mtime=6)
    committed, incoming = (winner, loser) if winner_is_committed else (loser, winner)
    view = state(committed)
    view.announces = frozenset({("f", A1)})
    verdict = one(view, draft(incoming))
    assert names(verdict) == ([] if winner_is_committed else ["f"])
    assert verdict.status is (Status.DROPPED if winner_is_committed else Status.COMMITTED)


def test_an_incoming_loser_that_nobody_announces_is_copied_without_touching_the_winner() -> None:
    verdict = one(state(item("f", B1, mtime=6, by=P2)), draft(item("f", A1, mtime=5)))
    assert verdict.status is Status.COMMITTED
    assert [fileinfo.is_conflict_copy(name) for name in names(verdict)] == [True]
    assert verdict.records[0].extents == ((1, 0, 1),)


@pytest.mark.parametrize(
    ("loser", "winner"),
    [
        (item("d", A1, DIR, mtime=5), item("d", B1, DIR, mtime=6)),
        (item("l", A1, LINK, mtime=5), item("l", B1, LINK, mtime=6)),
        (item("f", A1, deleted=True, mtime=5), item("f", B1, mtime=6)),
        (item("f", A1, content="same", mtime=5), item("f", B1, content="same", mtime=6)),
        (item("f.sync-conflict-20250101-000000-AAAAAAA", A1, mtime=5), item("f.sync-conflict-20250101-000000-AAAAAAA", B1, mtime=6)),
    ],
)
def test_nothing_worth_a_copy(loser: FileInfo, winner: FileInfo) -> None:
    assert names(one(state(loser), draft(winner))) == [winner.name]


def test_a_winner_made_of_the_losing_content_is_no_conflict() -> None:
    loser = item("f", A1, mtime=5)
    made_of_it = item("f", B1, mtime=6, previous=fileinfo.blocks_hash(loser.block_hashes))
    assert names(one(state(loser), draft(made_of_it))) == ["f"]


@pytest.mark.parametrize("deletion_first", [True, False])
@pytest.mark.parametrize("later", ["deletion", "change"])
def test_a_change_outlives_a_concurrent_deletion_under_a_vector_above_both(deletion_first: bool, later: str) -> None:
    gone = item("f", B1, deleted=True, mtime=6 if later == "deletion" else 4)
    live = item("f", A1, mtime=5)
    committed, incoming = (gone, live) if deletion_first else (live, gone)
    (record,) = one(state(committed), draft(incoming)).records
    assert not record.info.deleted
    assert not record.removes_file
    assert covers(record.info.version, A1)
    assert covers(record.info.version, B1)


@pytest.mark.parametrize("deletion_first", [True, False])
def test_of_a_deletion_and_a_live_item_of_one_vector_the_live_one_goes_on_above_it(deletion_first: bool) -> None:
    gone, live = item("f", A1, deleted=True, mtime=6), item("f", A1, mtime=5)
    committed, incoming = (gone, live) if deletion_first else (live, gone)
    (record,) = one(state(committed), draft(incoming)).records
    assert not record.info.deleted
    assert record.info.version == update(A1, ME, NOW)
    again = one(state(record.info), draft(incoming))
    assert (again.status, again.reason) == (Status.DROPPED, judging.OLDER)


def test_a_deletion_of_the_same_sum_in_an_encrypted_folder_changes_nothing() -> None:
    verdict = one(state(item("f", A1), fid=ENCRYPTED), draft(item("f", A1, deleted=True), ENCRYPTED))
    assert verdict.status is Status.DROPPED


def test_a_copy_finds_a_free_name() -> None:
    taken = fileinfo.conflict_name("f", P2, NOW * 10**9)
    verdict = one(state(item("f", A1, mtime=5), item(taken, A1)), draft(item("f", B1, mtime=6, by=P2)))
    assert verdict.records[0].name == fileinfo.conflict_name("f", P2, (NOW + 1) * 10**9)


def test_a_copy_of_a_file_in_a_deleted_directory_revives_it() -> None:
    view = state(item("d", A1, DIR, deleted=True), item("d/f", B1, deleted=True, mtime=9))
    verdict = one(view, draft(item("d/f", A1, mtime=5)))
    assert names(verdict)[0] == "d"
    assert not the(verdict, "d").info.deleted


@pytest.mark.parametrize(("mine", "theirs"), [(5, 6), (6, 5), (5, 5)])
def test_equal_vectors_with_different_blocks_are_a_conflict_that_everybody_hears_of(mine: int, theirs: int) -> None:
    verdict = one(state(item("f", A1, content="x", mtime=mine)), draft(item("f", A1, content="y", mtime=theirs)))
    copy, winner = verdict.records
    assert fileinfo.is_conflict_copy(copy.name)
    assert winner.info.version == update(A1, ME, NOW), "devices that hold the loser believe to be in sync"
    incoming_won = theirs > mine
    assert winner.extents == (((1, 0, 1),) if incoming_won else ((9, 1, 1),))
    assert copy.extents == (((9, 1, 1),) if incoming_won else ((1, 0, 1),))


def test_equal_vectors_in_an_encrypted_folder_keep_the_first() -> None:
    view = state(item("f", A1, content="x"), fid=ENCRYPTED)
    verdict = one(view, draft(item("f", A1, content="y"), ENCRYPTED))
    assert (verdict.status, verdict.reason) == (Status.DROPPED, judging.TOKENS_DIFFER)


def test_a_valid_version_replaces_an_invalid_equal_one() -> None:
    lost = fileinfo.replace(item("f", A1, content="x"), invalid=True)
    assert one(state(lost), draft(item("f", A1, content="x"))).status is Status.COMMITTED


def test_a_change_of_flags_alone_is_written() -> None:
    info = item("f", A1, content="x")
    assert one(state(info), draft(info, flags=2)).records[0].local_flags == 2


def test_a_losing_version_for_the_history_touches_nothing() -> None:
    wanted = Draft(FID, item("f", A1), ((1, 0, 1),), history=HistoryRule.ONLY)
    verdict = one(state(item("f", A2)), wanted)
    assert [record.history for record in verdict.records] == [HistoryRule.ONLY]


# ---- local changes ----------------------------------------------------------------------------------------------------


def test_a_local_change_gets_its_vector_here() -> None:
    verdict = one(state(item("f", ((P1, 3), (ME, 7)))), local(item("f", ()), base=((P1, 3), (ME, 7))))
    assert verdict.records[0].info.version == ((P1, 3), (ME, NOW))
    assert verdict.records[0].info.modified_by == ME


def test_the_own_counter_always_grows() -> None:
    ahead: Vector = ((ME, NOW + 100),)
    verdict = one(state(item("f", ahead, by=ME)), local(item("f", ()), base=ahead))
    assert counter(verdict.records[0].info.version, ME) == NOW + 101


def test_two_local_changes_of_one_commit_follow_each_other() -> None:
    first, second = decide(state(), local(item("f", ())), local(item("f", ())))
    assert counter(second.records[0].info.version, ME) == counter(first.records[0].info.version, ME) + 1
    assert names(second) == ["f"], "the store's own node wrote it: the last writer wins"


@pytest.mark.parametrize(
    ("committed", "condition", "status"),
    [
        (item("f", A1), A1, Status.COMMITTED),
        (item("f", A2), A1, Status.CONFLICT),
        (item("f", A1), None, Status.CONFLICT),
        (None, None, Status.COMMITTED),
        (None, A1, Status.CONFLICT),
        (item("f", A1, deleted=True), None, Status.COMMITTED),
        (item("f", A1, deleted=True), A1, Status.CONFLICT),
        (item("f", A2), UNCONDITIONAL, Status.COMMITTED),
    ],
)
def test_conditions_of_clients(committed: FileInfo | None, condition: Condition, status: Status) -> None:
    assert one(state(*[committed] if committed else []), local(item("f", ()), base=A2, condition=condition)).status is status


def test_the_second_of_two_conditional_creations_fails() -> None:
    first, second = decide(state(), local(item("f", ()), condition=None), local(item("f", ()), condition=None))
    assert (first.status, second.status) == (Status.COMMITTED, Status.CONFLICT)


def test_last_writer_wins_over_a_sibling_without_a_copy() -> None:
    verdict = one(state(item("f", ((SIBLING, NOW),), by=SIBLING)), local(item("f", ())))
    assert names(verdict) == ["f"]
    assert covers(verdict.records[0].info.version, ((SIBLING, NOW),))


def test_what_a_peer_edited_unseen_is_kept_aside() -> None:
    verdict = one(state(item("f", A2)), local(item("f", ()), base=A1))
    assert len(verdict.records) == 2
    assert covers(the(verdict, "f").info.version, A2)


def test_a_local_change_on_a_version_not_committed_yet_covers_it() -> None:
    override = one(state(item("f", A1)), local(item("f", ()), base=((P1, 1), (P2, 4))))
    assert covers(override.records[0].info.version, ((P1, 1), (P2, 4)))


@pytest.mark.parametrize("committed", [None, item("f", A1, deleted=True)])
def test_deleting_what_is_not_there(committed: FileInfo | None) -> None:
    verdict = one(state(*[committed] if committed else []), local(item("f", (), deleted=True)))
    assert (verdict.status, verdict.reason) == (Status.DROPPED, judging.ALREADY_THERE)


# ---- the tree ---------------------------------------------------------------------------------------------------------


def test_a_live_record_revives_its_deleted_parents() -> None:
    view = state(item("a", A2, DIR, deleted=True), item("a/b", ((P1, 5), (ME, 8)), DIR, deleted=True))
    verdict = one(view, draft(item("a/b/f", B1)))
    assert names(verdict) == ["a", "a/b", "a/b/f"]
    assert [record.info.deleted for record in verdict.records] == [False] * 3
    assert the(verdict, "a/b").info.version == ((P1, 5), (ME, NOW))


def test_parents_are_revived_once() -> None:
    verdicts = decide(state(item("a", A2, DIR, deleted=True)), draft(item("a/f", A1)), draft(item("a/g", A1)))
    assert [names(verdict) for verdict in verdicts] == [["a", "a/f"], ["a/g"]]


def test_parents_are_revived_by_the_next_set_when_the_first_falls() -> None:
    view = state(item("a", A2, DIR, deleted=True))
    view.gone = frozenset({7})
    falls = DraftSet(SetKind.ALL_OR_NONE, (draft(item("a/f", A1)), draft(item("a/g", A1), extents=((7, 0, 1),))))
    first, second = decide(view, falls, draft(item("a/h", A1)))
    assert first.status is Status.RETRY_UPLOAD
    assert names(second) == ["a", "a/h"]


@pytest.mark.parametrize("by_us", [True, False])
def test_a_directory_with_live_children_is_not_deleted(by_us: bool) -> None:
    view = state(item("d", A1, DIR), item("d/f", A1))
    gone = item("d", A2, DIR, deleted=True)
    verdict = one(view, local(gone, A1) if by_us else draft(gone))
    assert (verdict.status, verdict.reason) == (Status.CONFLICT, judging.NOT_EMPTY)


def test_a_deletion_of_a_name_without_record_that_has_live_children() -> None:
    verdict = one(state(item("d/f", A1)), draft(item("d", A2, deleted=True)))
    assert (verdict.status, verdict.reason) == (Status.CONFLICT, judging.NOT_EMPTY)


def test_a_tree_is_deleted_children_first() -> None:
    view = state(item("d", A1, DIR), item("d/e", A1, DIR), item("d/e/f", A1))
    verdicts = decide(
        view,
        draft(item("d/e/f", A2, deleted=True)),
        draft(item("d/e", A2, DIR, deleted=True)),
        draft(item("d", A2, DIR, deleted=True)),
    )
    assert [verdict.status for verdict in verdicts] == [Status.COMMITTED] * 3


def test_a_child_of_the_same_commit_keeps_its_directory() -> None:
    verdicts = decide(state(item("d", A1, DIR)), draft(item("d/f", A1)), draft(item("d", A2, DIR, deleted=True)))
    assert verdicts[1].reason == judging.NOT_EMPTY


def test_a_child_written_and_deleted_again_does_not() -> None:
    verdicts = decide(
        state(item("d", A1, DIR)), draft(item("d/f", A1)), draft(item("d/f", A2, deleted=True)), draft(item("d", A2, DIR, deleted=True))
    )
    assert [verdict.status for verdict in verdicts] == [Status.COMMITTED] * 3


def test_a_child_after_its_directory_went_in_the_same_commit_brings_it_back() -> None:
    _, verdict = decide(state(item("d", A1, DIR)), draft(item("d", A2, DIR, deleted=True)), draft(item("d/f", B1)))
    assert names(verdict) == ["d", "d/f"]


def test_a_set_of_a_deleted_tree_with_a_new_child_falls_whole() -> None:
    view = state(item("d", A1, DIR), item("d/f", A1), item("d/x", B1))
    wanted = DraftSet(SetKind.ALL_OR_NONE, (draft(item("d/f", A2, deleted=True)), draft(item("d", A2, DIR, deleted=True))))
    verdict = one(view, wanted)
    assert (verdict.status, verdict.records) == (Status.CONFLICT, ())


@pytest.mark.parametrize("has_record", [True, False])
def test_a_file_over_live_children_goes_to_a_copy(has_record: bool) -> None:
    view = state(*[item("d", A1, DIR)] if has_record else [], item("d/x", A1))
    verdict = one(view, draft(item("d", ((P1, 9),))))
    copy, directory = verdict.records
    assert fileinfo.is_conflict_copy(copy.name)
    assert copy.extents == ((1, 0, 1),)
    assert directory.info.type is DIR
    assert covers(directory.info.version, ((P1, 9),)), "the sender learns that the directory stays"


def test_a_file_whose_place_becomes_a_directory_goes_to_a_copy() -> None:
    verdict = one(state(item("d", A1)), draft(item("d/x", B1)))
    copy, directory, child = verdict.records
    assert (fileinfo.is_conflict_copy(copy.name), directory.name, child.name) == (True, "d", "d/x")
    assert copy.extents == ((9, 1, 1),)
    assert covers(directory.info.version, A1)


@pytest.mark.parametrize(
    ("view", "wanted", "reason"),
    [
        (state(item("d", A1, DIR), item("d/x", A1)), local(item("d", ())), judging.NOT_EMPTY),
        (state(item("d", A1)), local(item("d/x", ())), judging.NO_DIRECTORY),
    ],
)
def test_local_changes_that_the_tree_forbids(view: FakeView, wanted: Draft, reason: str) -> None:
    verdict = one(view, wanted)
    assert (verdict.status, verdict.reason) == (Status.CONFLICT, reason)


def test_a_file_replaces_an_empty_directory() -> None:
    view = state(item("d", A1, DIR), item("d/x", A1, deleted=True))
    assert names(one(view, draft(item("d", A2)))) == ["d"]


def test_names_of_an_encrypted_folder_have_no_tree() -> None:
    view = state(item("d", A1, deleted=True), fid=ENCRYPTED)
    assert names(one(view, draft(item("d/x", A1), ENCRYPTED))) == ["d/x"]


# ---- sets -------------------------------------------------------------------------------------------------------------


def test_winner_and_copy_stand_or_fall_together() -> None:
    pair = DraftSet(SetKind.ALL_OR_NONE, (draft(item("f", A2)), draft(item("f.sync-conflict-x", ((SIBLING, 5),)))))
    assert len(one(state(item("f", A1)), pair).records) == 2
    verdict = one(state(item("f", A2, content=f"f{A2}")), pair)
    assert (verdict.status, verdict.records) == (Status.DROPPED, ())


RENAME = DraftSet(SetKind.NEW_FIRST, (draft(item("new", A1, content="c")), draft(item("old", A2, deleted=True))))


def test_a_rename_writes_the_new_name_first() -> None:
    assert names(one(state(item("old", A1)), RENAME)) == ["new", "old"]


def test_the_new_name_stands_without_the_delete() -> None:
    assert names(one(state(item("old", ((P1, 9),))), RENAME)) == ["new"]


def test_the_delete_never_goes_without_the_new_name() -> None:
    verdict = one(state(item("old", A1), item("new", A2)), RENAME)
    assert (verdict.status, verdict.reason) == (Status.DROPPED, judging.OLDER)


def test_the_delete_goes_when_the_new_name_is_there() -> None:
    assert names(one(state(item("old", A1), item("new", A1, content="c")), RENAME)) == ["old"]


def test_a_rename_that_happened_is_dropped() -> None:
    verdict = one(state(item("old", A2, deleted=True), item("new", A1, content="c")), RENAME)
    assert (verdict.status, verdict.reason) == (Status.DROPPED, judging.ALREADY_THERE)


def test_blocks_in_a_condemned_pack_must_be_uploaded_again() -> None:
    view = state()
    view.gone = frozenset({1})
    verdict = one(view, draft(item("f", A1)))
    assert (verdict.status, verdict.reason) == (Status.RETRY_UPLOAD, judging.NO_BLOCKS)


def test_a_folder_that_is_gone() -> None:
    verdict = one(state(), draft(item("f", A1), 77))
    assert (verdict.status, verdict.reason) == (Status.CONFLICT, judging.NO_FOLDER)


def test_the_second_of_two_equal_drafts_is_dropped() -> None:
    first, second = decide(state(), draft(item("f", A1)), draft(item("f", A1)))
    assert (first.status, second.status) == (Status.COMMITTED, Status.DROPPED)
