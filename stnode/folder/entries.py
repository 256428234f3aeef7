"""Items as the folder view shows them: what is there, and what versions of it there are."""

from __future__ import annotations

from dataclasses import dataclass
from sqlite3 import Connection
from typing import Final

from stnode.protocol.fileinfo import FileType
from stnode.protocol.vector import Vector
from stnode.repo import past, state
from stnode.repo.records import LocalFlag, Record

_ONE_COMMIT_US: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A live item. `permissions` is None where the folder keeps none for it; `version` changes with every change and serves as
    `condition`; `local_only`: a change in a receive-only folder that is not announced."""

    name: str
    type: FileType
    size: int
    modified_ns: int
    permissions: int | None
    target: str
    version: Vector
    sequence: int
    local_only: bool = False


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an item. It was there from `entry.sequence` (store time, µs) until `until_us`, None: it still is. `modified_by` and,
    where that is known, `ended_by` are the short IDs of the devices that made it and that replaced or deleted it. `deleted`: this says that
    the item was deleted and has nothing to be read."""

    entry: Entry
    until_us: int | None
    modified_by: int
    ended_by: int | None = None
    deleted: bool = False


def entry_of(record: Record) -> Entry:
    """The record's item."""
    info = record.info
    return Entry(
        record.name,
        info.type,
        info.size,
        info.modified_s * 1_000_000_000 + info.modified_ns,
        None if info.no_permissions else info.permissions & 0o777,
        info.symlink_target.decode(errors="replace"),
        info.version,
        record.sequence,
        bool(record.local_flags & LocalFlag.RECEIVE_ONLY),
    )


def versions(conn: Connection, fid: int, name: str) -> list[Version]:
    """All versions of a name, the present one and the retained ones, the newest first. Who ended a version is known where the one that took
    its place is there, too."""
    current = state.get_records(conn, fid, [name]).get(name)
    found: list[Version] = []
    if current is not None and not current.info.invalid:
        found.append(Version(entry_of(current), None, current.info.modified_by, deleted=current.info.deleted))
    makers = {} if current is None else {current.sequence: current.info.modified_by}
    for old in state.old_versions(conn, fid, name):
        if old.record.info.invalid:
            continue
        until_us = max(old.superseded_us, old.record.sequence + 1)
        # A commit's numbers begin with its store time: what is much later came after a deletion of which nothing is left.
        ended_by = next((makers[at] for at in sorted(makers) if 0 <= at - old.superseded_us < _ONE_COMMIT_US), None)
        found.append(Version(entry_of(old.record), until_us, old.record.info.modified_by, ended_by))
        makers[old.record.sequence] = old.record.info.modified_by
    return found


def deleted_versions(conn: Connection, fid: int, directory: str, after: str, limit: int, *, recursive: bool) -> list[Version]:
    """Of what was deleted in a directory the versions that were, where these are kept, else the deletions."""
    found: list[Version] = []
    for gone in past.deleted_below(conn, fid, directory, after, limit, recursive=recursive):
        by = gone.record.info.modified_by
        if gone.last is None or gone.last.record.info.invalid:
            found.append(Version(entry_of(gone.record), None, by, deleted=True))
        else:
            last = gone.last.record
            found.append(Version(entry_of(last), max(gone.last.superseded_us, last.sequence + 1), last.info.modified_by, by))
    return found
