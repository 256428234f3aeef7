"""The index against a model that computes everything anew from what was announced and committed, after any history."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from sqlite3 import Connection

from hypothesis import given, settings
from hypothesis import strategies as st

from stnode.db import Database
from stnode.folder import index
from stnode.folder.tables import DELETED, HAS, LACKS_DELETE
from stnode.folder.types import NeedKind
from stnode.protocol import fileinfo, vector
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.vector import Ordering, Vector
from stnode.repo.records import LocalFlag
from stnode.repo.settings import FolderSettings, encode_folder
from stnode.repo.state_schema import LAYER, STEPS

FID = 7
NAMES = ("a", "a/b", "c\0d", "skip-me", "z")
FOLDER = FolderSettings("f", "aaaaaaaa", 1)
LINES = ((), ("skip*",), ("!a/b", "*"))

versions = st.dictionaries(st.integers(1, 3), st.integers(1, 3), min_size=1, max_size=3).map(lambda found: tuple(sorted(found.items())))


@st.composite
def infos(draw: st.DrawFn) -> FileInfo:
    """An item; time and content follow from the version, as on real devices, but deliberately not in the order of the vectors."""
    version = draw(versions)
    deleted = sum(value * short_id for short_id, value in version) % 4 == 0
    return made(draw(st.sampled_from(NAMES)), version, deleted=deleted, invalid=draw(st.integers(0, 5)) == 0)


def made(name: str, version: Vector, *, deleted: bool, invalid: bool = False) -> FileInfo:
    kind = FileType((0, 0, 1, 4)[sum(value for _, value in version) % 4])
    is_file = kind is FileType.FILE and not deleted
    size = 100 * version[0][1] if is_file else 0
    return fileinfo.new(
        name=name,
        type=kind,
        version=version,
        modified_by=version[0][0],
        size=size,
        modified_s=(7 * version[0][1] + version[-1][0]) % 4,
        deleted=deleted,
        invalid=invalid,
        permissions=0o644 if kind is not FileType.SYMLINK else 0,
        block_hashes=bytes([version[0][1]]) * 32 if is_file else b"",
        symlink_target=b"t" if kind is FileType.SYMLINK and not deleted else b"",
    )


devs = st.integers(1, 3)
flags = st.sampled_from((0, 0, 0, int(LocalFlag.RECEIVE_ONLY), int(LocalFlag.IGNORED)))
steps = st.one_of(
    st.tuples(st.just("index"), devs, st.booleans(), st.lists(infos(), max_size=4)),
    st.tuples(st.just("own"), infos().filter(lambda info: not info.invalid), flags),
    st.tuples(st.just("own-as"), devs, st.sampled_from(NAMES)),
    st.tuples(st.just("contradict"), devs, devs, st.sampled_from(NAMES)),
    st.tuples(st.just("begin"), devs, st.integers(0, 2)),
    st.tuples(st.just("drop"), devs),
    st.tuples(st.just("rules"), st.sampled_from(("sendreceive", "sendonly", "receiveonly")), st.sampled_from(LINES)),
)


def _latest(versions: list[FileInfo]) -> FileInfo | None:
    best = None
    for info in versions:
        if best is None or (info.version != best.version and fileinfo.wins(info, best)):
            best = info
    return best


class Model:
    """What everybody announced and what we committed."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, str], FileInfo] = {}
        self.own: dict[str, tuple[FileInfo, int]] = {}
        self.ids: dict[int, int] = {}

    def winner(self, name: str) -> FileInfo | None:
        own, own_flags = self.own.get(name, (None, 0))
        announced = [info for (_, entry), info in self.entries.items() if entry == name and not info.invalid]
        if own is None or own_flags:
            return self._greatest(announced, None)
        best = self._greatest([own, *(info for info in announced if info.version != own.version)], own)
        if best is own:
            return next((info for info in announced if info.version == own.version and info.deleted != own.deleted), own)
        return best

    def _greatest(self, valid: list[FileInfo], own: FileInfo | None) -> FileInfo | None:
        top = [a for a in valid if not any(vector.compare(b.version, a.version) is Ordering.GREATER for b in valid)]
        best = _latest([info for info in top if not info.deleted] or top)
        deletion = _latest([info for info in top if info.deleted])
        if best is not None and not best.deleted and best is own and deletion is not None and fileinfo.wins(deletion, best):
            return deletion
        return best

    def need(self, name: str) -> FileInfo | None:
        own, _ = self.own.get(name, (None, 0))
        best = self.winner(name)
        if best is None or best is own:
            return None
        if own is not None and vector.covers(own.version, best.version) and not self.contradicts(name, best):
            return None
        return None if best.deleted and (own is None or own.deleted) else best

    def contradicts(self, name: str, info: FileInfo) -> bool:
        own, own_flags = self.own.get(name, (None, 0))
        return own is not None and not own_flags and own.version == info.version and own.deleted != info.deleted


def check(conn: Connection, model: Model, folder: FolderSettings) -> None:
    ignored = index.rules_of(folder).ignored
    counted: Counter[str] = Counter()
    have: Counter[tuple[int, str]] = Counter()
    needed = {row[0]: row[1:] for row in conn.execute("SELECT name, version, kind, held, size, content, replaces FROM need")}
    for name in NAMES:
        best = None if ignored(name) else model.winner(name)
        need = None if ignored(name) else model.need(name)
        assert (name in needed) == (need is not None), (name, need)
        if need is not None:
            version, kind, held, size, content, replaces = needed[name]
            assert vector.from_wire(version) == need.version
            assert NeedKind(kind).deletes == need.deleted
            own, _ = model.own.get(name, (None, 0))
            assert replaces == (own is not None and not own.deleted)
            assert held == 0 or folder.type == "sendonly"
            assert folder.type != "sendonly" or held or kind == NeedKind.METADATA
            counted["held" if held else "deletes" if need.deleted else "items"] += 1
            if content is not None:
                info = index.needed_info(conn, FID, [name])[name]
                assert (info.version, info.block_hashes, info.size) == (need.version, need.block_hashes, size)
        for dev, given_name, mark in conn.execute("SELECT dev, name, flags FROM remote WHERE name = ?", (name,)).fetchall():
            entry = model.entries[dev, given_name]
            assert bool(mark & DELETED) == entry.deleted
            has = best is not None and not best.deleted and not entry.invalid and not entry.deleted and entry.version == best.version
            lacks = best is not None and best.deleted and not entry.invalid and not entry.deleted
            assert (bool(mark & HAS), bool(mark & LACKS_DELETE)) == (has, lacks), name
            have[dev, "items"] += has
            have[dev, "bytes"] += entry.size if has else 0
            have[dev, "deletes"] += lacks
    assert conn.execute("SELECT count(*) FROM remote").fetchone()[0] == len(model.entries)
    totals = index.need_totals(conn, FID)
    assert (totals.files + totals.directories + totals.symlinks, totals.deletes, totals.held_items) == (
        counted["items"],
        counted["deletes"],
        counted["held"],
    )
    for dev, *sums in conn.execute("SELECT dev, have_items, have_bytes, lacks_deletes FROM remote_state").fetchall():
        assert sums == [have[dev, "items"], have[dev, "bytes"], have[dev, "deletes"]]
    used = {row[0] for row in conn.execute("SELECT content FROM remote UNION SELECT content FROM need") if row[0] is not None}
    assert used == {row[0] for row in conn.execute("SELECT id FROM remote_content")}
    for (name,) in conn.execute("SELECT name FROM need WHERE content IS NULL").fetchall():
        assert index.missing_content(conn, FID), name


def commit(conn: Connection, model: Model, info: FileInfo, local_flags: int, folder: FolderSettings) -> None:
    model.own[info.name] = (info, local_flags)
    seq = (conn.execute("SELECT max(seq) FROM records").fetchone()[0] or 0) + 1
    row = (FID, info.name, seq, info.type, info.deleted, 0, local_flags, info.size, vector.to_wire(info.version), info.wire, b"")
    conn.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    index.recheck(conn, FID, [info.name], folder)


def run(conn: Connection, history: list[tuple[object, ...]]) -> None:
    model, folder, sequence = Model(), FOLDER, 0
    conn.execute(
        "INSERT INTO folders (fid, fkey, folder_id, incarnation, index_id, settings) VALUES (?, 'k', 'f', 'a', '1', ?)",
        (FID, encode_folder(FOLDER)),
    )
    index.evaluate_all(conn, FID, folder)
    for step in history:
        match step:
            case "index", int(dev), bool(full), list(files):
                numbered = [fileinfo.replace(info, sequence=sequence + at) for at, info in enumerate(files, 1)]
                sequence += len(files)
                index.apply_index(conn, FID, dev, numbered, full=full, settings=folder)
                if full:
                    model.entries = {key: info for key, info in model.entries.items() if key[0] != dev}
                model.entries |= {(dev, info.name): info for info in numbered}
                if numbered:
                    assert index.index_state(conn, FID, dev).max_sequence == sequence
            case "own", FileInfo() as info, int(local_flags):
                commit(conn, model, info, local_flags, folder)
            case "own-as", int(dev), str(name):
                found = model.entries.get((dev, name))
                if found is not None and not found.invalid:
                    commit(conn, model, found, 0, folder)
            case "contradict", int(dev), int(other), str(name):
                found = model.entries.get((other, name)) if other != dev else model.own.get(name, (None, 0))[0]
                if found is not None:  # one vector for a deletion and a live item (docs/adr/0017)
                    sequence += 1
                    info = fileinfo.replace(made(name, found.version, deleted=not found.deleted), sequence=sequence)
                    index.apply_index(conn, FID, dev, [info], full=False, settings=folder)
                    model.entries[dev, name] = info
            case "begin", int(dev), int(index_id):
                index.begin_index(conn, FID, dev, index_id)
                if index_id == 0 or model.ids.get(dev) != index_id:
                    model.entries = {key: info for key, info in model.entries.items() if key[0] != dev}
                model.ids[dev] = index_id
            case "drop", int(dev):
                index.drop_device(conn, dev)
                model.entries = {key: info for key, info in model.entries.items() if key[0] != dev}
                model.ids.pop(dev, None)
            case "rules", str(kind), tuple(lines):
                folder = replace(FOLDER, type=kind, ignore_lines=lines)
                conn.execute("UPDATE folders SET settings = ?", (encode_folder(folder),))
                index.evaluate_all(conn, FID, folder)
            case _:
                raise AssertionError(step)
        check(conn, model, folder)


@given(st.lists(steps, max_size=14))
@settings(max_examples=150, deadline=None)
def test_any_history_gives_what_the_model_computes(history: list[tuple[object, ...]]) -> None:
    async def whole() -> None:
        db = Database(None, inline=True)
        await db.migrate(LAYER, STEPS)
        await index.migrate(db)
        await db.write(lambda conn: run(conn, history))
        await db.close()

    asyncio.run(whole())
