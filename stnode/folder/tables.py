"""Tables of the remote indexes: schema, numbers of devices, what we hold of each device's index.

    remote          one row per (folder, name, device): version and flags, small enough to be read by the thousand
    remote_content  wire bytes and block hashes of the entries that we may still have to fetch; shared by devices with one version,
                    gone as soon as our own record has the version
    remote_state    index ID and highest sequence per (folder, device), and sums of what the device has of the global state
    need            names whose global version we lack
    need_state      per folder: sums over `need`, and the rules and own sequence that `need` was evaluated with

All of it is a cache: a peer sends its index again when we report nothing of it.
"""

from __future__ import annotations

from sqlite3 import Connection
from typing import Final

from stnode.db import Database
from stnode.folder.types import IndexState

DELETED: Final = 1
INVALID: Final = 2
TYPE_SHIFT: Final = 2
HAS: Final = 64
"""The device has the global version, live and valid."""
LACKS_DELETE: Final = 128
"""The global version is a deletion and the device has a live item."""
MARKS: Final = HAS | LACKS_DELETE

_SCHEMA = (
    """
    CREATE TABLE remote_devices (dev INTEGER PRIMARY KEY, device BLOB NOT NULL UNIQUE);
    CREATE TABLE remote (
        fid INTEGER NOT NULL, name TEXT NOT NULL, dev INTEGER NOT NULL, seq INTEGER NOT NULL, flags INTEGER NOT NULL,
        size INTEGER NOT NULL, modified INTEGER NOT NULL, version BLOB NOT NULL, content INTEGER,
        PRIMARY KEY (fid, name, dev)
    ) WITHOUT ROWID;
    CREATE TABLE remote_content (id INTEGER PRIMARY KEY, info BLOB NOT NULL, blocks BLOB NOT NULL);
    CREATE TABLE remote_state (
        fid INTEGER NOT NULL, dev INTEGER NOT NULL, index_id BLOB NOT NULL, max_sequence INTEGER NOT NULL,
        have_items INTEGER NOT NULL DEFAULT 0, have_bytes INTEGER NOT NULL DEFAULT 0, lacks_deletes INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (fid, dev)
    ) WITHOUT ROWID;
    CREATE TABLE need (
        fid INTEGER NOT NULL, name TEXT NOT NULL, kind INTEGER NOT NULL, held INTEGER NOT NULL, size INTEGER NOT NULL,
        blocks INTEGER NOT NULL, replaces INTEGER NOT NULL, replaced_bytes INTEGER NOT NULL, version BLOB NOT NULL, content INTEGER,
        PRIMARY KEY (fid, name)
    ) WITHOUT ROWID;
    CREATE TABLE need_state (
        fid INTEGER PRIMARY KEY, incarnation TEXT NOT NULL DEFAULT '', rules BLOB NOT NULL DEFAULT x'', own_seq INTEGER NOT NULL DEFAULT 0,
        files INTEGER NOT NULL DEFAULT 0, directories INTEGER NOT NULL DEFAULT 0, symlinks INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0, deletes INTEGER NOT NULL DEFAULT 0,
        held_items INTEGER NOT NULL DEFAULT 0, held_bytes INTEGER NOT NULL DEFAULT 0,
        added_items INTEGER NOT NULL DEFAULT 0, added_bytes INTEGER NOT NULL DEFAULT 0
    )
    """,
)


async def migrate(db: Database) -> None:
    """Creates or updates the tables; once per start, after those of `repo.state`."""
    await db.migrate("folder", _SCHEMA)


def device_number(conn: Connection, device: bytes) -> int:
    """The small local number of a device ID (32 bytes), the same for ever in this database."""
    row = conn.execute("SELECT dev FROM remote_devices WHERE device = ?", (device,)).fetchone()
    if row is None:
        row = conn.execute("INSERT INTO remote_devices (device) VALUES (?) RETURNING dev", (device,)).fetchone()
    return int(row[0])


def index_state(conn: Connection, fid: int, dev: int) -> IndexState:
    """Index ID and highest sequence that we hold of the device's index."""
    row = conn.execute("SELECT index_id, max_sequence FROM remote_state WHERE fid = ? AND dev = ?", (fid, dev)).fetchone()
    return IndexState() if row is None else IndexState(int.from_bytes(row[0], "big"), row[1])


def set_index_state(conn: Connection, fid: int, dev: int, state: IndexState) -> None:
    """Stores what `index_state` gives. The index ID is an unsigned 64-bit number, which SQLite has no integer for."""
    conn.execute(
        "INSERT INTO remote_state (fid, dev, index_id, max_sequence) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (fid, dev) DO UPDATE SET index_id = excluded.index_id, max_sequence = excluded.max_sequence",
        (fid, dev, state.index_id.to_bytes(8, "big"), state.max_sequence),
    )
