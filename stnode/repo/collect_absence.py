"""How long configured devices have been away, as far as this node knows: deleted records are kept for the one that is away longest (R27).

What is remembered is a cache in SQLite: a device that is first heard of counts as seen then, and after the state directory was lost so do
all of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Final

from stnode.repo import state

LAYER: Final = "absence"
STEPS: Final = ("CREATE TABLE devices_seen (id BLOB PRIMARY KEY, seen_us INTEGER NOT NULL) WITHOUT ROWID",)


@dataclass(frozen=True, slots=True)
class Absent:
    """A configured device: `name`, and store time (µs) at which it is known to have been there last."""

    name: str
    seen_us: int


def longest_absent(conn: Connection, present: Collection[bytes], now_us: int) -> Absent | None:
    """Notes that devices are connected with some node of the store, and names the configured one that has been away longest; None without any."""
    configured = {device.device_id: device.name or device.device_id.hex()[:7] for device in state.devices(conn)}
    conn.executemany("INSERT OR IGNORE INTO devices_seen VALUES (?, ?)", [(device, now_us) for device in configured])
    conn.executemany("UPDATE devices_seen SET seen_us = ? WHERE id = ?", [(now_us, device) for device in present])
    rows = conn.execute("SELECT id, seen_us FROM devices_seen ORDER BY seen_us").fetchall()
    conn.executemany("DELETE FROM devices_seen WHERE id = ?", [(device,) for device, _ in rows if device not in configured])
    return next((Absent(configured[device], seen_us) for device, seen_us in rows if device in configured), None)
