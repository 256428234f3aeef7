"""The registry reads what commits have written into the state's tables."""

from __future__ import annotations

from sqlite3 import Connection

from stnode.db import Database
from stnode.repo import state_schema
from stnode.repo.addresses import Move
from stnode.repo.packlist import PackEntry
from stnode.repo.records import encode_extents
from stnode.repo.registry import StateRegistry
from tests.support.packs import a_file


def fill(conn: Connection) -> None:
    conn.execute("INSERT INTO folders (fid, fkey, folder_id, incarnation, index_id, settings) VALUES (3, 'f-1', 'f', '1', '9', x'')")
    rows = [(number, f"{number:034x}", int(number == 2) * 7, int(number == 3) * 7) for number in range(1, 1201)]
    conn.executemany("INSERT INTO packs VALUES (?, 3, ?, 1000, 5, 900, 100, ?, ?, 0)", rows)
    conn.executemany("INSERT INTO relocations VALUES (2, ?, ?, 4, ?)", [(9, 1, 0), (2, 3, 1)])
    conn.execute("INSERT INTO relocations VALUES (4, 2, 1, 5, 30)")
    record = "INSERT INTO records VALUES (3, ?, ?, 0, 0, 0, 0, 1, x'', ?, ?)"
    wire = a_file("a", [b"x"]).wire
    conn.executemany(record, [("a", 1, wire, encode_extents([(1, 0, 2), (0, 0, 1)])), ("directory", 2, wire, b"")])


async def test_packs_moves_and_versions() -> None:
    db = Database(None, inline=True)
    await db.migrate(state_schema.LAYER, state_schema.STEPS)
    await db.write(fill)
    registry = StateRegistry()
    numbers = await db.run(lambda conn: registry.by_number(conn, [*range(1, 1201), 5000]))
    assert len(numbers) == 1200
    assert numbers[1] == PackEntry(1, "f-1", f"{1:034x}", 1000, 100, True)
    assert [number for number, entry in numbers.items() if not entry.usable] == [2, 3]
    assert await db.run(lambda conn: registry.by_id(conn, [f"{7:034x}", "other"])) == {f"{7:034x}": numbers[7]}
    assert await db.run(lambda conn: registry.moves(conn, 2)) == [
        Move(2, 1, 4, 1),
        Move(3, 1, 5, 30),
        Move(4, 1, 4, 3),
        Move(9, 1, 4, 0),
    ]
    assert await db.run(lambda conn: registry.moves(conn, 1)) == []
    assert await db.run(lambda conn: registry.extents(conn, 3, ["a", "directory", "absent"])) == {"a": ((1, 0, 2), (0, 0, 1))}
    await db.close()
