"""Tells one peer of one folder's committed records, in the order of their numbers, each batch once.

Nothing but what the database holds as committed is ever sent (invariant 1): the announcer reads records behind its cursor,
adds the block hashes from the packs' lists and hands encoded batches on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from sqlite3 import Connection

from stnode.clock import Env
from stnode.db import Database
from stnode.errors import Corrupt, NotFound
from stnode.folder.announcing import announced_files
from stnode.protocol import announce
from stnode.protocol.encryption import FolderCipher
from stnode.repo import state
from stnode.repo.records import Record
from stnode.repo.store import Store

_READ = 2000
_ENCRYPTED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Batch:
    """One Index or IndexUpdate: encoded FileInfos, the number of the last one, and the one sent before."""

    files: Sequence[bytes]
    last_sequence: int
    prev_sequence: int
    update: bool


class Announcer:
    """The cursor of one (peer, folder). `start` comes from the delta index handshake; until then nothing is sent. With a `cipher` the peer
    gets what it makes of the records."""

    def __init__(self, env: Env, db: Database, store: Store, fid: int, cipher: FolderCipher | None = None) -> None:
        self._env = env
        self._db = db
        self._store = store
        self._fid = fid
        self._cipher = cipher
        self._sent: int | None = None
        self._update = False
        self._queue: deque[Batch] = deque()

    def start(self, after: int, *, full: bool) -> None:
        """Send what is numbered above `after`; with `full` the first batch replaces all that the peer has of us."""
        self._sent = after
        self._update = not full
        self._queue.clear()

    def stop(self) -> None:
        """The peer does not share the folder now."""
        self._sent = None
        self._queue.clear()

    async def next_batch(self) -> Batch | None:
        """The next batch, None when everything committed has been handed out."""
        if not self._queue and self._sent is not None:
            await self._fill(self._sent)
        return self._queue.popleft() if self._queue and self._sent is not None else None

    async def _fill(self, after: int) -> None:
        def read(conn: Connection) -> list[Record]:
            # While the state is rebuilt its records come in another order than their numbers': nothing is said before it is whole, which
            # is told as a commit is.
            return state.records_since(conn, self._fid, after, _READ) if state.head(conn).complete else []

        records = await self._db.run(read)
        if not records:
            return
        try:
            encoded = await announced_files(self._env, self._store.packlists, records)
        except (Corrupt, NotFound):
            # We are behind, or a pack is lost: then its records are about to get new numbers, under which they come without blocks.
            await self._store.follow_to_head()
            await self._store.damage.settle()
            records = await self._db.run(read)
            encoded = await announced_files(self._env, self._store.packlists, records)
        if self._cipher is not None:
            encoded = await self._encrypted(self._cipher, encoded)
        if self._sent != after:
            return  # restarted by another ClusterConfig meanwhile
        cuts = list(announce.batches(records, encoded))
        if len(records) == _READ and len(cuts) > 1:
            cuts.pop()  # read again with what follows it, so that no rename is torn apart at the page's end
        prev = after
        for first, end in cuts:
            last = records[end - 1].sequence
            self._queue.append(Batch(encoded[first:end], last, prev, self._update))
            self._update = True
            prev = last
        self._sent = prev

    async def _encrypted(self, cipher: FolderCipher, encoded: Sequence[bytes]) -> list[bytes]:
        """The same items for an untrusted device, made in threads."""
        parts = [encoded[at : at + _ENCRYPTED_AT_ONCE] for at in range(0, len(encoded), _ENCRYPTED_AT_ONCE)]
        made = [await self._env.threads.run(_encrypt_items, cipher, part) for part in parts]
        return [item for part in made for item in part]


def _encrypt_items(cipher: FolderCipher, encoded: Sequence[bytes]) -> list[bytes]:
    return [cipher.encrypt_item(item) for item in encoded]
