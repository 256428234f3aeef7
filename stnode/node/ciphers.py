"""The keys of folders that devices get encrypted: derived in a thread, once per folder and password, and kept in memory only."""

from __future__ import annotations

import asyncio

from stnode.clock import Env
from stnode.protocol import encryption
from stnode.protocol.encryption import FolderCipher


class Ciphers:
    """One for a node. Passwords are asked for by value, so that a changed one has other keys."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._known: dict[tuple[str, str], FolderCipher] = {}
        self._deriving = asyncio.Lock()

    async def get(self, folder_id: str, password: str) -> FolderCipher:
        """The keys of a folder. The first call for it takes a tenth of a second and 32 MiB, so there is one derivation at a time."""
        async with self._deriving:
            known = self._known.get((folder_id, password))
            if known is None:
                key = await self._env.threads.run(encryption.folder_key, folder_id, password)
                known = self._known[folder_id, password] = FolderCipher(folder_id, key, self._env.random.bytes)
            return known
