"""The node's one SQLite database and the one thread that owns it. It holds caches only: deleting it loses nothing.

Layers above add their tables by `migrate`; hot statements are prepared on the connection that a function passed
to `run` or `write` receives. Units of work are batches: at least 1,000 rows or 250 ms per transaction where possible.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import sqlite_utils

from stnode.errors import Corrupt, Full, Internal, StnodeError

T = TypeVar("T")


class Database:
    """`inline=True` runs everything in the caller's thread (simulation); else a thread of its own owns the connection."""

    def __init__(self, path: Path | None, *, inline: bool = False) -> None:
        self.path = path
        self._pool = None if inline else ThreadPoolExecutor(1, thread_name_prefix="stnode-db")
        self._conn: sqlite3.Connection | None = None

    def _connect(self) -> sqlite3.Connection:
        if self._conn is None:
            conn = sqlite3.connect(self.path or ":memory:", isolation_level=None, check_same_thread=False, cached_statements=256)
            conn.execute("PRAGMA journal_mode=WAL")
            conn.execute("PRAGMA synchronous=NORMAL")
            conn.execute("PRAGMA temp_store=MEMORY")
            conn.execute("PRAGMA cache_size=-65536")
            conn.execute("PRAGMA wal_autocheckpoint=8192")
            self._conn = conn
        return self._conn

    def _call(self, fn: Callable[[sqlite3.Connection], T], write: bool) -> T:
        try:
            conn = self._connect()
            if not write:
                return fn(conn)
            conn.execute("BEGIN IMMEDIATE")
            try:
                result = fn(conn)
            except BaseException:
                conn.execute("ROLLBACK")
                raise
            conn.execute("COMMIT")
            return result
        except sqlite3.Error as exc:
            raise self.mapped(exc) from exc

    def mapped(self, exc: sqlite3.Error) -> StnodeError:
        where = str(self.path or "memory")
        if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return Full(
                f"no space left for the cache database {where}", hint="free some space; nothing is lost, the node goes on by itself"
            )
        if isinstance(exc, sqlite3.DatabaseError) and getattr(exc, "sqlite_errorcode", None) in (
            sqlite3.SQLITE_CORRUPT,
            sqlite3.SQLITE_NOTADB,
        ):
            return Corrupt(
                f"the cache database {where} is damaged: {exc}",
                hint="stop the node and delete the state directory; all is rebuilt from the store",
            )
        return Internal(f"database {where}: {exc}")

    async def run(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Reads: `fn(conn)` in the owner thread, outside a transaction."""
        return await self._hop(fn, False)

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Writes: `fn(conn)` in the owner thread inside one transaction; an exception rolls back and is raised here."""
        return await self._hop(fn, True)

    async def _hop(self, fn: Callable[[sqlite3.Connection], T], write: bool) -> T:
        if self._pool is None:
            await asyncio.sleep(0)
            return self._call(fn, write)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._call, fn, write)

    async def migrate(self, layer: str, steps: Sequence[str]) -> None:
        """Applies the SQL scripts of `steps` not yet applied for `layer`, in order. Steps are only ever appended."""

        def apply(conn: sqlite3.Connection) -> None:
            tables = sqlite_utils.Database(conn)
            tables.table("migrations").create({"layer": str, "step": int}, pk=("layer", "step"), if_not_exists=True)
            done = {row[0] for row in conn.execute("SELECT step FROM migrations WHERE layer = ?", (layer,))}
            for number, script in enumerate(steps):
                if number not in done:
                    for statement in script.split(";"):
                        if statement.strip():
                            conn.execute(statement)
                    conn.execute("INSERT INTO migrations (layer, step) VALUES (?, ?)", (layer, number))

        await self.write(apply)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """A view of what is committed now that later writes don't change, with a thread of its own: long reads stop nobody."""
        view = Snapshot(self, inline=self._pool is None)
        try:
            if self.path is None:
                await self.run(view.copy)
            else:
                await view.run(lambda _: None)
            yield view
        finally:
            await view.close()

    async def close(self) -> None:
        """Waits for running work, then closes the file."""

        def shut(_: sqlite3.Connection) -> None:
            if self._conn is not None:
                self._conn.close()
                self._conn = None

        await self._hop(shut, False)
        if self._pool is not None:
            self._pool.shutdown(wait=True)


class Snapshot:
    """What `Database.snapshot` yields: reads of one moment. A file is read through a connection of its own, whose read
    transaction WAL keeps apart from writers; a database in memory is copied."""

    def __init__(self, database: Database, *, inline: bool) -> None:
        self._database = database
        self._pool = None if inline else ThreadPoolExecutor(1, thread_name_prefix="stnode-db-snapshot")
        self._conn: sqlite3.Connection | None = None

    def copy(self, source: sqlite3.Connection) -> None:
        """Takes the whole content of a database in memory."""
        self._conn = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        source.backup(self._conn)

    async def run(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """`fn(conn)` in the snapshot's thread."""
        if self._pool is None:
            await asyncio.sleep(0)
            return self._call(fn)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._call, fn)

    def _call(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._conn is None:
                self._conn = sqlite3.connect(self._database.path or ":memory:", isolation_level=None, check_same_thread=False)
                self._conn.execute("PRAGMA query_only=1")
                self._conn.execute("BEGIN")
                self._conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            return fn(self._conn)
        except sqlite3.Error as exc:
            raise self._database.mapped(exc) from exc

    async def close(self) -> None:
        """Ends the view."""

        def shut() -> None:
            if self._conn is not None:
                self._conn.close()
                self._conn = None

        if self._pool is None:
            shut()
        else:
            await asyncio.get_running_loop().run_in_executor(self._pool, shut)
            self._pool.shutdown(wait=True)
