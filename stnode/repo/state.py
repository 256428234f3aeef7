"""The state at the head of the journal, in SQLite, all in one place for importers; each part has its own module.

`prepare` once per database; then `apply` inside `Database.write`, `validate` and reads inside `Database.run`.
"""

from __future__ import annotations

from stnode.db import Database
from stnode.repo.parameters import Collection
from stnode.repo.state_apply import MERGE_INTERVALS_US
from stnode.repo.state_reads import (
    FolderState,
    Head,
    OldVersion,
    Pack,
    Served,
    Totals,
    all_moves,
    all_packs,
    children,
    condemned,
    device,
    devices,
    features,
    folder,
    folder_by_id,
    folders,
    get_records,
    hash_at,
    head,
    horizons,
    intervals,
    last_sequence,
    live_children,
    may_be_named,
    old_versions,
    orphan_age_us,
    pack_by_id,
    packs,
    packs_after,
    partial_runs,
    partials,
    records_since,
    relocations,
    resolve,
    served,
    state_hash,
    totals,
    walk,
    walk_history,
)
from stnode.repo.state_schema import LAYER, STEPS
from stnode.repo.state_validate import apply, check_slot, condemned_reference, validate

__all__ = [
    "MERGE_INTERVALS_US",
    "FolderState",
    "Head",
    "OldVersion",
    "Pack",
    "Served",
    "Totals",
    "all_moves",
    "all_packs",
    "apply",
    "check_slot",
    "children",
    "condemned",
    "condemned_reference",
    "device",
    "devices",
    "features",
    "folder",
    "folder_by_id",
    "folders",
    "get_records",
    "hash_at",
    "head",
    "horizons",
    "intervals",
    "last_sequence",
    "live_children",
    "may_be_named",
    "old_versions",
    "orphan_age_us",
    "pack_by_id",
    "packs",
    "packs_after",
    "partial_runs",
    "partials",
    "prepare",
    "records_since",
    "relocations",
    "resolve",
    "served",
    "state_hash",
    "totals",
    "validate",
    "walk",
    "walk_history",
]


async def prepare(db: Database, collection: Collection | None = None) -> None:
    """Creates the tables in a fresh database, and notes the store's own parameters, by which commits are valid or void."""
    await db.migrate(LAYER, STEPS)
    if collection is not None:
        age_us = collection.orphan_age_us
        await db.write(lambda conn: conn.execute("UPDATE state SET orphan_age_us = ?", (age_us,)))
