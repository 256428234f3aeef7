"""A writer of journals for tests: commits built from bodies, put into an object store; and dumps of the state to compare."""

from __future__ import annotations

import hashlib
from sqlite3 import Connection
from typing import Any

from stnode.clock import Env, InlineThreads, SeededRandomness
from stnode.objectstore.base import ObjectStore
from stnode.objectstore.memory import MemoryStore
from stnode.protocol import fileinfo
from stnode.protocol.fileinfo import FileType
from stnode.repo.codec import Body, BodyRecord, BodyRef, BodySet, PackAdded, Section, Slot, encode_body, encode_slot, slot_sha
from stnode.repo.layout import body_key, mint, slot_key
from stnode.repo.records import Extents, HistoryRule, SetKind
from stnode.repo.settings import FolderDevice, FolderSettings

DAY_US = 86_400_000_000
START_US = 1_763_700_000_000_000
NODE = bytes(range(32))
PHOTOS = FolderSettings(
    "photos", "00112233aabbccdd", 0xFEDCBA9876543210, "Photos", devices=(FolderDevice(bytes(32)),), ignore_lines=("*.tmp",)
)
DOCS = FolderSettings("Docs & more", "ffeeddccbbaa9988", 7, type="receiveonly")


class TestClock:
    """A clock that moves when it is told to."""

    __test__ = False

    def __init__(self, now_us: int = START_US) -> None:
        self.now_us = now_us

    def now_ns(self) -> int:
        return self.now_us * 1000

    def monotonic(self) -> float:
        return self.now_us / 1e6

    async def sleep(self, seconds: float) -> None:
        del seconds


def make_env(seed: str = "journal") -> tuple[Env, TestClock]:
    """An environment without real time, randomness or threads."""
    clock = TestClock()
    return Env(clock, SeededRandomness(seed), InlineThreads()), clock


def wire(name: str, version: int = 1, size: int = 10, *, type: FileType = FileType.FILE, deleted: bool = False) -> bytes:  # noqa: A002
    """A FileInfo as records keep it."""
    content = type is FileType.FILE and not deleted
    return fileinfo.new(
        name=name,
        type=type,
        version=((77, version),),
        modified_by=77,
        size=size if content else 0,
        modified_s=1_763_700_000 + version,
        deleted=deleted,
        block_hashes=hashlib.sha256(f"{name} {version}".encode()).digest() if content else b"",
        symlink_target=b"target" if type is FileType.SYMLINK else b"",
    ).wire


def record(name: str, version: int = 1, extents: Extents = (), history: HistoryRule = HistoryRule.KEEP, **kind: Any) -> BodyRecord:
    """A record of a body."""
    return BodyRecord(wire(name, version, **kind), extents, 0, history)


def section(*records: BodyRecord, folder: FolderSettings = PHOTOS, **entries: Any) -> Section:
    """A section with each record in a set of its own."""
    return Section(folder.fkey, tuple(BodySet(SetKind.SINGLE, (each,)) for each in records), **entries)


class JournalWriter:
    """Writes one journal, commit after commit, one second of store time apart."""

    def __init__(self, objects: ObjectStore, env: Env, clock: TestClock) -> None:
        self.objects = objects
        self.env = env
        self.clock = clock
        self.number = 0
        self.sha = bytes(32)
        self.commits: list[tuple[Slot, bytes, Body]] = []

    def pack(self, blocks: int, folder: FolderSettings = PHOTOS) -> PackAdded:
        """A pack minted now; only its registration exists."""
        return PackAdded(folder.fkey, mint(self.clock.now_us, self.env.random), blocks * 100 + 60, blocks, blocks * 100, 60)

    async def commit(
        self, body: Body, *, stored: bool = False, extra: Body | None = None, body_ref: BodyRef | None = None, **changes: Any
    ) -> Slot:
        """Writes the next slot; `stored` puts the body into an object, `extra` is the inline one beside it, `body_ref` names
        an object that may not exist."""
        self.clock.now_us += 1_000_000
        now_us = self.clock.now_us
        sections = (*body.sections, *(extra.sections if extra else ()))
        fields: dict[str, Any] = {
            "number": self.number + 1,
            "prev": self.sha,
            "node": NODE,
            "instance": 5,
            "write_id": self.env.random.bytes(16),
            "store_time_us": now_us,
            "firsts": tuple({part.fkey: now_us for part in sections if part.records()}.items()),
        }
        if stored:
            data = encode_body(body)
            name = mint(now_us, self.env.random)
            await self.objects.put(body_key(name), [data])
            fields["stored"] = BodyRef(name, len(data), hashlib.sha256(data).digest())
            if extra is not None:
                fields["body"] = extra
        elif body_ref is not None:
            fields["stored"] = body_ref
        else:
            fields["body"] = body
        slot = Slot(**(fields | changes))
        data = encode_slot(slot)
        await self.objects.put(slot_key(slot.number), [data])
        self.number, self.sha = slot.number, slot_sha(data)
        self.commits.append((slot, self.sha, body))
        return slot


def new_journal(seed: str = "journal") -> tuple[JournalWriter, MemoryStore, Env]:
    """A journal in memory."""
    env, clock = make_env(seed)
    objects = MemoryStore(env)
    return JournalWriter(objects, env, clock), objects, env


def dump(conn: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Everything in the state's tables but what only this node keeps: dirty keys, earlier hashes, counters of checkpoints."""
    tables = "folders devices features packs relocations condemned intervals records history partials refs".split()  # noqa: SIM905
    content = {table: sorted(conn.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in tables}
    columns = "complete, number, slot_sha, store_time_us, horizon_us, next_pack, next_folder, hash"
    content["state"] = conn.execute(f"SELECT {columns} FROM state").fetchall()
    return content
