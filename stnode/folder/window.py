"""A window of needed names as planning wants it, read in the database's thread, all of one moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from sqlite3 import Connection

from stnode.folder import index
from stnode.folder.index import Needed, NeedKind
from stnode.folder.planner import Reuse
from stnode.folder.split import Left, Saved, Split
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileInfo
from stnode.repo import state
from stnode.repo.records import Extents

NAMES = 1000
"""A window's names."""
Skip = Callable[[str], bool]
"""Whether a name is not to be planned now. Asked in the database's thread."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the database has of a window of needed names: the last one ("": the window is empty), global versions of those to plan,
    devices that have them, extents of our record where only metadata differs, runs of unfinished downloads of that very version, and
    which take the place of a directory that is not empty. `left` is what other nodes do of it."""

    last: str = ""
    infos: dict[str, FileInfo] = field(default_factory=dict)
    sources: dict[str, list[int]] = field(default_factory=dict)
    same: dict[str, Extents] = field(default_factory=dict)
    partials: dict[str, tuple[Reuse, ...]] = field(default_factory=dict)
    crowded: set[str] = field(default_factory=set)
    left: Left = field(default_factory=Left)


def read_window(conn: Connection, fid: int, after: str, skip: Skip, split: Split | None, *, heeds_crowds: bool) -> Known:
    """The next names after `after` that are no deletions; with `split`, those that this node does. What is needed, how, and what it looks
    like must be of one moment, or a version would get the extents of another."""
    window = index.next_needed(conn, fid, after, NAMES, deletes=False)
    last = window[-1].name if window else ""
    window = [needed for needed in window if not skip(needed.name)]
    if not window:
        return Known(last)
    crowded: set[str] = set()
    if heeds_crowds:
        crowded = state.live_children(conn, fid, index.replacing(conn, fid, window[0].name, window[-1].name))
    left = Left()
    if split is not None:
        mine, left = split.mine(index.parts(conn, fid, [needed.name for needed in window]), _saved(conn, fid), crowded)
        window = [needed for needed in window if needed.name in mine]
        crowded &= mine
    return _known(conn, fid, last, window, crowded, left)


def read_names(conn: Connection, fid: int, names: Sequence[str], skip: Skip) -> Known:
    """These names, whoever's they are."""
    window = [needed for needed in index.needed_named(conn, fid, names) if not skip(needed.name)]
    return _known(conn, fid, window[-1].name if window else "", window, set(), Left())


def read_deletions(conn: Connection, fid: int, after: str, skip: Skip, split: Split | None) -> tuple[str, list[Needed], Left]:
    """The last name of the next window of deletions ("": none is left), those to be done here, and what others do."""
    window = index.next_needed(conn, fid, after, NAMES, deletes=True)
    last, left = window[-1].name if window else "", Left()
    window = [needed for needed in window if not skip(needed.name)]
    if split is not None and window:
        mine, left = split.mine(index.parts(conn, fid, [needed.name for needed in window]), {})
        window = [needed for needed in window if needed.name in mine]
    return last, window, left


def read_deletion_totals(conn: Connection, fid: int) -> tuple[int, int]:
    """How many deletions are needed, and how many files live."""
    return index.need_totals(conn, fid).deletes, state.totals(conn, fid).files


def _known(conn: Connection, fid: int, last: str, window: Sequence[Needed], crowded: set[str], left: Left) -> Known:
    if not window:
        return Known(last, left=left)
    infos = index.needed_info(conn, fid, [needed.name for needed in window])
    same = [needed.name for needed in window if needed.kind is NeedKind.METADATA and needed.size]
    files = [name for name, info in infos.items() if info.size]
    return Known(
        last,
        infos,
        index.sources(conn, fid, files),
        _same_extents(conn, fid, same) if same else {},
        _partial_runs(conn, fid, infos) if files else {},
        crowded,
        left,
    )


def _same_extents(conn: Connection, fid: int, names: Sequence[str]) -> dict[str, Extents]:
    """Where the content of our records is, unless it may not be named any more: then it is pulled like another one."""
    records = state.get_records(conn, fid, names)
    return {name: record.extents for name, record in records.items() if state.may_be_named(conn, record.extents)}


def _partial_runs(conn: Connection, fid: int, infos: Mapping[str, FileInfo]) -> dict[str, tuple[Reuse, ...]]:
    """What unfinished downloads, ours or a sibling's, have of these very versions."""
    found: dict[str, tuple[Reuse, ...]] = {}
    for partial_file, _ in state.partials(conn, fid):
        info = infos.get(partial_file.name)
        if info is not None and partial_file.blocks_hash == fileinfo.blocks_hash(info.block_hashes):
            runs = [
                (start, extent)
                for start, extent in zip(partial_file.starts, partial_file.extents, strict=True)
                if state.may_be_named(conn, (extent,))
            ]
            found[info.name] = (*found.get(info.name, ()), *runs)
    return found


def _saved(conn: Connection, fid: int) -> dict[str, Saved]:
    """How far unfinished downloads are."""
    return {
        each.name: Saved(each.node, sum(extent[2] for extent in each.extents) * each.block_size, renewed_us)
        for each, renewed_us in state.partials(conn, fid)
    }
