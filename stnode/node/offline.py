"""A store that is only read: no node, no home, no identity, rights to read are enough, and nothing is written into the bucket.

The state is rebuilt from the bucket in a temporary directory, up to the head of that moment; so commits that come later are not seen. What is
collected meanwhile stays readable for the store's grace, a day by default.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from sqlite3 import Connection
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from stnode import config
from stnode.clock import Env
from stnode.config import Config
from stnode.db import Database
from stnode.errors import ConfigError, NotFound
from stnode.folder.reading import FolderReader
from stnode.node.files import FileReading
from stnode.node.home import Home
from stnode.node.objects import open_objects
from stnode.node.service import FolderSettings
from stnode.node.settings import Settings
from stnode.objectstore.base import ObjectStore
from stnode.protocol.deviceid import DeviceID
from stnode.repo import layout, state
from stnode.repo.packlist import PackLists
from stnode.repo.reader import Reader, ReaderOptions
from stnode.repo.registry import StateRegistry
from stnode.repo.restore import restore
from stnode.repo.slots import arranged


@dataclass(frozen=True, slots=True)
class Where:
    """Which store the user names on the command line; "" is what configuration and environment say."""

    url: str = ""
    endpoint_url: str = ""
    region: str = ""
    passphrase_file: str = ""


class OfflineStore(FileReading):
    """See `SealedFiles`. Made by `offline`."""

    def __init__(self, objects: ObjectStore, env: Env, readers: list[FolderReader], shown: Settings) -> None:
        self._objects = objects
        self._env = env
        self._readers = readers
        self._shown = shown

    async def folder_list(self) -> tuple[FolderSettings, ...]:
        return self._shown.folders()

    def _at(self, path: str) -> tuple[FolderReader, str, str]:
        name, _, inside = path.partition("/")
        found = [each for each in self._readers if each.settings.folder_id == name]
        found = found or [each for each in self._readers if each.settings.label == name]
        if len(found) != 1:
            ids = ", ".join(each.settings.folder_id for each in self._readers) or "none"
            raise NotFound(f"there is no folder {name!r} in this store", hint=f"its folders are: {ids}")
        return found[0], found[0].settings.folder_id, inside.rstrip("/")

    async def _present_us(self) -> int:
        date_ns = (await self._objects.head(layout.STORE)).date_ns
        return (self._env.clock.now_ns() if date_ns is None else date_ns) // 1000


@asynccontextmanager
async def offline(home: Home, env: Env, environ: Mapping[str, str], where: Where) -> AsyncIterator[OfflineStore]:
    """The store that `where` names, else that of the home's config.toml and the environment. Raises ConfigError, NotFound when there is no
    store, Refused where its passphrase is missing or wrong, and what restoring finds wrong."""
    settings = _configured(home, environ, where)
    await env.threads.run(_check_there, home, settings)
    opened = await open_objects(home.path, settings, env)
    try:
        objects = await arranged(opened)
        with TemporaryDirectory(prefix="stnode-") as directory:
            db = Database(Path(directory) / "state.db")
            try:
                await restore(objects, db, env)
                lists = PackLists(objects, db, env, StateRegistry())
                await lists.open()
                reader = Reader(objects, lists, env, ReaderOptions(settings.limits.read_cache, disk_bytes=0))
                try:
                    readers, shown = await db.run(lambda conn: _folders(conn, env, db, reader, lists))
                    yield OfflineStore(objects, env, readers, shown)
                finally:
                    await reader.close()
            finally:
                await db.close()
    finally:
        await opened.close()


def _folders(conn: Connection, env: Env, db: Database, reader: Reader, lists: PackLists) -> tuple[list[FolderReader], Settings]:
    found = state.folders(conn)
    readers = [FolderReader(env, db, reader, lists, _stay, folder.fid, folder.settings) for folder in found]
    return readers, Settings(DeviceID(bytes(32)), state.devices(conn), [folder.settings for folder in found])


async def _stay() -> None:
    """There is nothing to follow."""


def _configured(home: Home, environ: Mapping[str, str], where: Where) -> Config:
    """Without config.toml where the store is named: a passphrase or keys in it are another store's."""
    given = {f"STNODE_STORE_{each.name.upper()}": str(getattr(where, each.name)) for each in fields(where) if getattr(where, each.name)}
    merged = {**environ, **given}
    if not where.url and home.config.is_file():
        return config.load(home.config, merged)
    if "STNODE_STORE_URL" not in merged:
        raise ConfigError("it is not said which store to read", hint="name it with --store, STNODE_STORE_URL, or a home with --home")
    return config.parse("", merged)


def _check_there(home: Home, settings: Config) -> None:
    """Opening a directory that is not there would make it."""
    where = urlsplit(settings.store.url)
    place = Path(unquote(where.path)) if where.scheme == "file" else home.path / "store"
    if (where.scheme == "file" or not settings.store.url) and not place.is_dir():
        raise NotFound(f"there is no store at {place}", hint="check the URL")
