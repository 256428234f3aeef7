"""A store in a local directory with a receive-encrypted folder in it, filled as a trusted device would have it: for tests of reading one.

async with vault(tmp_path / "store") as made:
    await made.put({"a.txt": b"...", "dir": None, "link": "a.txt"})
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from stnode.clock import Env, system_env
from stnode.db import Database
from stnode.folder import index
from stnode.objectstore.options import StoreOptions
from stnode.objectstore.registry import open_store
from stnode.protocol import encryption, fileinfo
from stnode.protocol.deviceid import DeviceID
from stnode.protocol.encryption import FolderCipher
from stnode.protocol.fileinfo import FileInfo, FileType
from stnode.protocol.pb import bep_pb2 as pb
from stnode.repo import state
from stnode.repo.keyslots import Cost
from stnode.repo.parameters import DEFAULT
from stnode.repo.records import Draft, DraftSet, Extents, SetKind, Status
from stnode.repo.store import SettingsChange, Store, new_folder
from stnode.repo.unlock import make_store, unlock

FOLDER = "vault"
PASSWORD = "pass word"
MODIFIED_S, MODIFIED_NS = 1_600_000_000, 123_456_789
ME = DeviceID(b"\x11" * 32)

Content = bytes | str | None
"""A file's bytes, a symlink's target, or None for a directory."""


@dataclass
class Vault:
    """The folder and its store, open. `versions` counts up, so that what is put again is newer."""

    url: str
    store: Store
    db: Database
    env: Env
    fid: int
    cipher: FolderCipher
    versions: int = 0

    async def put(self, items: Mapping[str, Content], **changes: object) -> int:
        """Commits these items as they come from a trusted device, and gives the last one's number; `changes` are of the plain FileInfo."""
        plain = [(self.plain(name, content, **changes), content if isinstance(content, bytes) else b"") for name, content in items.items()]
        return await self.commit([(info, content, self.encrypted(info)) for info, content in plain])

    async def delete(self, *names: str) -> int:
        plain = [self.plain(name, b"", deleted=True) for name in names]
        return await self.commit([(info, b"", self.encrypted(info)) for info in plain])

    def plain(self, name: str, content: Content, **changes: object) -> FileInfo:
        self.versions += 1
        kind = FileType.FILE if isinstance(content, bytes) else FileType.SYMLINK if isinstance(content, str) else FileType.DIRECTORY
        size = len(content) if isinstance(content, bytes) else 0
        block_size = fileinfo.block_size_for(size)
        blocks = [content[at : at + block_size] for at in range(0, size, block_size)] if isinstance(content, bytes) else []
        given: dict[str, object] = {
            "name": name,
            "type": kind,
            "version": ((77, self.versions),),
            "modified_by": 77,
            "size": size,
            "permissions": 0o755 if kind is FileType.DIRECTORY else 0o640,
            "modified_s": MODIFIED_S,
            "modified_ns": MODIFIED_NS,
            "symlink_target": content.encode() if isinstance(content, str) else b"",
            "block_hashes": b"".join(hashlib.sha256(block).digest() for block in blocks),
        }
        return fileinfo.new(**{**given, **changes})  # type: ignore[arg-type]

    def encrypted(self, info: FileInfo) -> FileInfo:
        """What the untrusted device gets."""
        return self.received(
            self.cipher.encrypt_item(fileinfo.encode(info.wire, self.versions, info.size, info.block_size, info.block_hashes))
        )

    def received(self, encoded: bytes) -> FileInfo:
        return fileinfo.from_wire(pb.FileInfo.FromString(encoded))

    async def commit(self, items: Sequence[tuple[FileInfo, bytes, FileInfo]]) -> int:
        """Commits (plain item, content that is encrypted for it, encrypted item), in order; the number of the last."""
        sets = []
        for info, content, sealed in items:
            stored = info.type is FileType.FILE and not info.deleted
            draft = Draft(self.fid, sealed, await self._store(info, content, sealed) if stored else ())
            sets.append(DraftSet(SetKind.SINGLE, (draft,)))
        outcomes = await self.store.submit(sets)
        assert all(outcome.status is Status.COMMITTED for outcome in outcomes), outcomes
        return max(outcome.sequences[-1] for outcome in outcomes)

    async def _store(self, info: FileInfo, content: bytes, sealed: FileInfo) -> Extents:
        cipher = self.cipher.file(info.name)
        pack = self.store.packer.begin(self.fid, stream=False, hash_bytes=48)
        lengths = fileinfo.block_lengths(len(content), info.block_size)
        for number, length in enumerate(lengths):
            start = number * info.block_size
            token = sealed.block_hashes[number * 48 : number * 48 + 48]
            pack.add((1, number), memoryview(cipher.seal_block(content[start : start + length])), token)
        return (((await self.store.packer.seal(pack)).handle, 0, len(lengths)),)

    async def set_token(self, token: bytes) -> None:
        await self.store.submit_token(self.fid, token)


@asynccontextmanager
async def vault(
    directory: Path, *, folder: str = FOLDER, password: str = PASSWORD, token: bool = True, passphrase: str | None = None
) -> AsyncIterator[Vault]:
    """Makes the store. Closed at the end: `url` is then for whoever reads it. An ordinary folder `plain`
    is beside it, empty."""
    env = system_env()
    url = f"file://{directory}"
    opened, db = open_store(url, StoreOptions(), env), Database(None)
    try:
        assert await make_store(opened, env, await Store.try_out(opened, env), DEFAULT, passphrase, Cost(16, 1, 1))
        objects = await unlock(opened, env, passphrase)
        await state.prepare(db)
        await index.migrate(db)
        store = await Store.open(objects, db, env, ME)
        try:
            made = replace(new_folder(env.random, folder), type="receiveencrypted", label="The vault")
            await store.submit_settings(SettingsChange(folders=(made, new_folder(env.random, "plain"))))
            found = await db.run(lambda conn: state.folder_by_id(conn, folder))
            assert found is not None
            key = await env.threads.run(encryption.folder_key, folder, password)
            opened_vault = Vault(url, store, db, env, found.fid, FolderCipher(folder, key, env.random.bytes))
            if token:
                await opened_vault.set_token(opened_vault.cipher.token)
            yield opened_vault
        finally:
            await store.close()
    finally:
        await db.close()
        await opened.close()
        env.close()
