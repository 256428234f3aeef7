"""Checks a whole store: everything in it against everything else. Reads only, and trusts no cache of this node.

First the journal and its checkpoints as they are, then the state is rebuilt from them in a scratch database, then packs and
records of that state are checked against the store. So it works on a store from which no node can start any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Corrupt, NotFound, Refused
from stnode.objectstore.base import ObjectStore
from stnode.repo import layout, parameters, state
from stnode.repo.check_journal import JournalCheck
from stnode.repo.check_packs import PackCheck
from stnode.repo.checkreport import CheckProblem, CheckReport, CheckStep
from stnode.repo.restore import restore
from stnode.repo.slots import arranged


async def check(
    objects: ObjectStore, env: Env, scratch: Path, *, read_data: bool = False, share: float = 1.0, own: Database | None = None
) -> AsyncIterator[CheckStep]:
    """Checks the store step by step; the last step carries the report. `scratch` is a directory with room for the state (some 500
    bytes per file); `own` is this node's state, compared where it is at the same commit. `share` of the data is read, another part of it
    each day, so that as many runs as make a whole have read all. Raises Unavailable, Full, and Refused for
    what the store itself refuses."""
    objects = await arranged(objects)
    journal = JournalCheck(objects, env)
    async for step in journal.steps():
        yield step
    problems = list(journal.problems)
    with TemporaryDirectory(dir=scratch, prefix="check-") as directory:
        db = Database(Path(directory) / "state.db")
        try:
            packs = PackCheck(objects, db, env)
            yield CheckStep("restore", 0, 1)
            if (fault := await _restore(objects, db, env, own)) is not None:
                problems.append(fault)
            if (await db.run(state.head)).complete:
                async for step in packs.steps(share if read_data else 0.0):
                    yield step
        finally:
            await db.close()
    report = CheckReport(
        slots=journal.slots,
        manifests=journal.manifests,
        runs=journal.runs,
        packs=packs.packs,
        records=packs.records,
        blocks_read=packs.blocks_read,
        bytes_read=packs.bytes_read,
        problems=(*problems, *packs.problems),
        notes=tuple(journal.notes),
    )
    yield CheckStep("done", 1, 1, report)


async def _restore(objects: ObjectStore, db: Database, env: Env, own: Database | None) -> CheckProblem | None:
    """Rebuilds the state in `db`; what came in the way, or how this node's state differs."""
    prefix = layout.journal_prefix()
    await state.prepare(db)
    try:
        await parameters.read(objects)
    except (Corrupt, NotFound) as exc:  # by which rules commits are void is not known
        return CheckProblem(layout.STORE, exc.message)
    known = (await own.run(state.head)).number if own is not None else 0
    try:
        await restore(objects, db, env)
    except (Corrupt, Refused, NotFound) as exc:
        return CheckProblem(prefix, f"the state cannot be rebuilt up to the head: {exc.message}")
    if own is None:
        return None
    number = (await db.run(state.head)).number
    if number < known:
        return CheckProblem(prefix, f"it ends with commit {number}, but this node has applied commit {known}")
    ours = await own.run(lambda conn: state.hash_at(conn, number))
    if ours is not None and ours != await db.run(state.state_hash):
        return CheckProblem(
            prefix, f"this node's cached state at commit {number} is another one: stop the node and delete its state directory"
        )
    return None
