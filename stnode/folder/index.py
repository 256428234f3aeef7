"""Remote indexes and need: what each device announced, which version is global, what this folder lacks.

All functions are synchronous over the database's connection and run inside `db.write` (those that change) or `db.run`. `fid` is the
folder's number, `dev` the device's (`device_number`). Names come in any number; the work is done a batch at a time.

What this module does not know: connections, packs, how anything is fetched.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Sequence
from sqlite3 import Connection

from stnode.folder import ignore
from stnode.folder.evaluation import BATCH, Rules, evaluate, remove, take_in
from stnode.folder.needs import (
    Part,
    announced_by,
    best_versions,
    completion,
    device_ids,
    going,
    missing_content,
    need_totals,
    needed_info,
    needed_named,
    needless,
    next_needed,
    parts,
    replacing,
    sources,
)
from stnode.folder.tables import device_number, index_state, migrate, set_index_state
from stnode.folder.types import SMALL_BYTES, Completion, IndexEffect, IndexState, Needed, NeedKind, NeedTotals
from stnode.protocol.fileinfo import FileInfo
from stnode.repo.settings import FolderSettings, decode_folder

__all__ = [
    "SMALL_BYTES",
    "Completion",
    "IndexEffect",
    "IndexState",
    "NeedKind",
    "NeedTotals",
    "Needed",
    "Part",
    "announced_by",
    "apply_index",
    "begin_index",
    "best_versions",
    "completion",
    "device_ids",
    "device_number",
    "drop_device",
    "drop_folder",
    "drop_step",
    "evaluate_all",
    "forget",
    "going",
    "index_state",
    "is_stranger",
    "migrate",
    "missing_content",
    "need_totals",
    "needed_info",
    "needed_named",
    "needless",
    "next_needed",
    "parts",
    "recheck",
    "replacing",
    "sources",
    "strangers",
]

_DROP_NAMES = 10_000
_NO_RULES = Rules(ignored=ignore.is_internal)


def begin_index(conn: Connection, fid: int, dev: int, index_id: int) -> IndexEffect:
    """The device's ClusterConfig names this index ID for the folder. 0 or another one than before: all that we had of its index goes
    away (bep-facts 5.4)."""
    state = index_state(conn, fid, dev)
    effect = IndexEffect()
    if index_id == 0 or state.index_id != index_id:
        effect, _ = _drop_index(conn, fid, dev)
        set_index_state(conn, fid, dev, IndexState(index_id, 0))
    return effect


def apply_index(conn: Connection, fid: int, dev: int, files: Sequence[FileInfo], *, full: bool, settings: FolderSettings) -> IndexEffect:
    """Stores one Index (`full`: replaces all that we had of the device) or IndexUpdate, checked by `fileinfo.check`, together with
    the sequence it reaches. Of equal names in a message the last counts."""
    effect = IndexEffect()
    state = index_state(conn, fid, dev)
    if full:
        effect, _ = _drop_index(conn, fid, dev)
        state = IndexState(state.index_id, 0)
    reached = max((info.sequence for info in files), default=0)
    set_index_state(conn, fid, dev, IndexState(state.index_id, max(state.max_sequence, reached)))
    rules = rules_of(settings)
    for start in range(0, len(files), BATCH):
        batch = {info.name: info for info in files[start : start + BATCH]}
        effect.extend(take_in(conn, fid, dev, batch, rules))
    return effect


def recheck(conn: Connection, fid: int, names: Sequence[str], settings: FolderSettings) -> IndexEffect:
    """Our records of these names changed (`Applied.folders[fid].names`): needs that are satisfied go away, others appear."""
    effect = IndexEffect()
    rules = rules_of(settings)
    unique = list(dict.fromkeys(names))
    for start in range(0, len(unique), BATCH):
        effect.extend(evaluate(conn, fid, unique[start : start + BATCH], rules))
    _note_evaluated(conn, fid, unique)
    return effect


def evaluate_all(conn: Connection, fid: int, settings: FolderSettings) -> IndexEffect:
    """Brings need up to date at the start and after a change of the folder's settings: everything if its type, patterns or index ID are
    not those of the last time, else only what was committed since then."""
    row = conn.execute("SELECT incarnation, rules, own_seq FROM need_state WHERE fid = ?", (fid,)).fetchone()
    effect = IndexEffect()
    if row is not None and row[0] not in ("", settings.incarnation):
        drop_folder(conn, fid)
        row = None
    rules, mark = rules_of(settings), _mark_of(settings)
    query, low = "SELECT name FROM remote WHERE fid = ? AND name > ? GROUP BY name ORDER BY name LIMIT ?", ""
    if row is not None and row[1] == mark:
        names = [name for (name,) in conn.execute("SELECT name FROM records WHERE fid = ? AND seq > ?", (fid, row[2]))]
        for start in range(0, len(names), BATCH):
            effect.extend(evaluate(conn, fid, names[start : start + BATCH], rules))
    else:
        while window := [name for (name,) in conn.execute(query, (fid, low, BATCH))]:
            effect.extend(evaluate(conn, fid, window, rules))
            low = window[-1]
    last = conn.execute("SELECT max(seq) FROM records WHERE fid = ?", (fid,)).fetchone()[0] or 0
    conn.execute(
        "INSERT INTO need_state (fid, incarnation, rules, own_seq) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (fid) DO UPDATE SET incarnation = excluded.incarnation, rules = excluded.rules, own_seq = excluded.own_seq",
        (fid, settings.incarnation, mark, last),
    )
    return effect


def forget(conn: Connection, fid: int, dev: int) -> None:
    """Makes the next ClusterConfig report nothing of the device's index, so that it comes whole again; what we have stays until then."""
    set_index_state(conn, fid, dev, IndexState())


def strangers(conn: Connection, fid: int, shared: Collection[bytes]) -> list[int]:
    """Devices of whose index of the folder we have something, though their IDs are not in `shared`: the folder's devices."""
    rows = conn.execute(
        "SELECT s.dev, d.device FROM remote_state s JOIN remote_devices d ON d.dev = s.dev WHERE s.fid = ? "
        "AND (s.max_sequence > 0 OR s.index_id != x'0000000000000000')",
        (fid,),
    )
    return [dev for dev, device in rows if device not in shared]


def is_stranger(conn: Connection, dev: int, shared: Collection[bytes]) -> bool:
    """Whether the device's ID is not in `shared`."""
    row = conn.execute("SELECT device FROM remote_devices WHERE dev = ?", (dev,)).fetchone()
    return row is None or row[0] not in shared


def drop_step(conn: Connection, fid: int, dev: int, limit: int = _DROP_NAMES) -> tuple[IndexEffect, bool]:
    """Removes up to `limit` entries of the device's index; what that changed, and whether none is left. A large index is dropped in steps
    of their own transactions before `begin_index` or `apply_index(full=True)` would do it in one; the first step makes us report nothing
    of it."""
    state = index_state(conn, fid, dev)
    if state.max_sequence:
        set_index_state(conn, fid, dev, IndexState(state.index_id, 0))
    return _drop_index(conn, fid, dev, limit)


def drop_device(conn: Connection, dev: int) -> None:
    """The device is no peer any more: its entries in all folders go away. Its number stays its own."""
    for (fid,) in conn.execute("SELECT fid FROM remote_state WHERE dev = ?", (dev,)).fetchall():
        _drop_index(conn, fid, dev)
        conn.execute("DELETE FROM remote_state WHERE fid = ? AND dev = ?", (fid, dev))


def drop_folder(conn: Connection, fid: int) -> None:
    """The folder is removed: all devices' entries and its needs go away."""
    conn.execute("DELETE FROM remote_content WHERE id IN (SELECT content FROM remote WHERE fid = ?)", (fid,))
    for table in ("remote", "remote_state", "need", "need_state"):
        conn.execute(f"DELETE FROM {table} WHERE fid = ?", (fid,))  # noqa: S608 - constants


def rules_of(settings: FolderSettings) -> Rules:
    """What the folder's settings mean for need. Raises Invalid for ignore lines that cannot be read."""
    return Rules(ignore.matcher_for(settings).ignores, takes_nothing=settings.type == "sendonly", sums=settings.encrypted)


def _stored_rules(conn: Connection, fid: int) -> Rules:
    """The rules by the committed settings; a folder that is gone has none."""
    row = conn.execute("SELECT settings FROM folders WHERE fid = ?", (fid,)).fetchone()
    return _NO_RULES if row is None else rules_of(decode_folder(row[0]))


def _drop_index(conn: Connection, fid: int, dev: int, limit: int = sys.maxsize) -> tuple[IndexEffect, bool]:
    """What removing up to `limit` entries of the device's index changed, and whether none is left."""
    rules, low, left, effect = _stored_rules(conn, fid), "", limit, IndexEffect()
    while left > 0:
        rows = conn.execute(
            "SELECT name FROM remote WHERE fid = ? AND name > ? AND dev = ? ORDER BY name LIMIT ?", (fid, low, dev, min(left, BATCH))
        )
        names = [name for (name,) in rows]
        if not names:
            return effect, True
        effect.extend(remove(conn, fid, dev, names, rules))
        low, left = names[-1], left - len(names)
    return effect, False


def _mark_of(settings: FolderSettings) -> bytes:
    parts = (settings.type, str(settings.index_id), *settings.ignore_lines)
    return hashlib.sha256("\0".join(parts).encode()).digest()


def _note_evaluated(conn: Connection, fid: int, names: Sequence[str]) -> None:
    """Moves the mark of what was evaluated up to the head if the names are all that was committed since."""
    row = conn.execute("SELECT own_seq FROM need_state WHERE fid = ?", (fid,)).fetchone()
    if row is None:
        return
    known = set(names)
    last = row[0]
    for name, seq in conn.execute("SELECT name, seq FROM records WHERE fid = ? AND seq > ? ORDER BY seq", (fid, row[0])):
        if name not in known:
            break
        last = seq
    conn.execute("UPDATE need_state SET own_seq = ? WHERE fid = ?", (last, fid))
