"""Winners, conflicts and names of conflict copies (bep-facts 7.2 to 7.5)."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest

from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileType
from tests.support.bep import digest, file_info

A, B = ((1, 2), (2, 1)), ((1, 1), (2, 2))


def test_valid_wins_over_invalid_whatever_the_time() -> None:
    valid, invalid = file_info(version=A, modified_s=1), file_info(version=B, modified_s=9, invalid=True)
    assert fileinfo.wins(valid, invalid)
    assert not fileinfo.wins(invalid, valid)


def test_later_wins_and_deletion_does_not_count() -> None:
    edited = file_info(version=A, modified_s=5, modified_ns=1)
    deleted = fileinfo.deletion(file_info(), version=B, modified_by=2, modified_s=6)
    assert fileinfo.wins(deleted, edited)
    assert not fileinfo.wins(edited, deleted)
    assert fileinfo.wins(file_info(version=B, modified_s=5, modified_ns=2), edited)


def test_at_the_same_time_the_higher_counter_of_the_lowest_id_wins() -> None:
    assert fileinfo.wins(file_info(version=A), file_info(version=B))
    assert not fileinfo.wins(file_info(version=B), file_info(version=A))


def test_supersedes_looks_at_vectors_first() -> None:
    old, new = file_info(version=((1, 1),), modified_s=9), file_info(version=((1, 2),), modified_s=1)
    assert fileinfo.supersedes(new, old)
    assert not fileinfo.supersedes(old, new)
    assert fileinfo.supersedes(old, file_info(version=((1, 1),), invalid=True))
    assert not fileinfo.supersedes(old, old)
    assert fileinfo.supersedes(file_info(version=A), file_info(version=B))


def test_a_version_made_of_our_content_is_no_conflict() -> None:
    local = file_info(version=A)
    assert fileinfo.conflicts(file_info(version=B), local)
    assert not fileinfo.conflicts(file_info(version=B, previous_blocks_hash=fileinfo.blocks_hash(local.block_hashes)), local)
    assert fileinfo.conflicts(file_info(version=B, previous_blocks_hash=digest("else")), local)
    assert not fileinfo.conflicts(file_info(version=((1, 2), (2, 2))), local)
    gone = fileinfo.deletion(local, version=B, modified_by=2, modified_s=1)
    assert fileinfo.conflicts(gone, local)


def test_content_and_equivalence() -> None:
    info = file_info()
    assert fileinfo.same_content(info, file_info(version=A, permissions=0o600))
    assert not fileinfo.same_content(info, file_info(block_hashes=digest("else")))
    assert fileinfo.equivalent(info, file_info(version=A, modified_by=9))
    assert not fileinfo.equivalent(info, file_info(permissions=0o600))
    assert fileinfo.equivalent(info, file_info(permissions=0o600, no_permissions=True))
    assert not fileinfo.equivalent(info, file_info(modified_ns=1))
    link = fileinfo.new(name="l", type=FileType.SYMLINK, version=A, modified_by=1, symlink_target=b"x")
    assert not fileinfo.same_content(link, fileinfo.new(name="l", type=FileType.SYMLINK, version=A, modified_by=1, symlink_target=b"y"))
    assert not fileinfo.same_content(link, info)
    folder = fileinfo.new(name="d", type=FileType.DIRECTORY, version=A, modified_by=1, modified_s=1)
    assert fileinfo.equivalent(folder, fileinfo.new(name="d", type=FileType.DIRECTORY, version=B, modified_by=1, modified_s=2))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hello.txt", "hello.sync-conflict-20261121-053633-TAYEP22.txt"),
        ("dir.d/hello", "dir.d/hello.sync-conflict-20261121-053633-TAYEP22"),
        ("a/b.tar.gz", "a/b.tar.sync-conflict-20261121-053633-TAYEP22.gz"),
        (".bashrc", ".sync-conflict-20261121-053633-TAYEP22.bashrc"),
        ("trailing.", "trailing.sync-conflict-20261121-053633-TAYEP22."),
    ],
)
def test_conflict_names(name: str, expected: str) -> None:
    """The first was seen live (bep-facts 7.5); the others follow Go's filepath.Ext."""
    winner = int.from_bytes(base64.b32decode("TAYEP22AAAAAA==="), "big")
    time_ns = int(datetime(2026, 11, 21, 5, 36, 33, tzinfo=UTC).timestamp()) * 10**9 + 999_999_999
    assert fileinfo.conflict_name(name, winner, time_ns) == expected
    assert fileinfo.is_conflict_copy(expected)
    assert not fileinfo.is_conflict_copy(name)
