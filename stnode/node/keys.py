"""The passphrases of an encrypted store: `stnode bucket key`. Works on the bucket alone, beside a running daemon too: key slots are
objects of their own, so no passphrase has to travel to the daemon, and no home is locked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from stnode import config
from stnode.clock import Env
from stnode.errors import ConfigError, NotFound, Refused
from stnode.node.home import Home
from stnode.node.objects import open_bucket
from stnode.repo.keyslots import KeySlots, Slot, Unlocked
from stnode.repo.store import describe
from stnode.repo.unlock import slots_opened


@dataclass(frozen=True, slots=True)
class KeySlot:
    """A key slot as it is shown. `opened`: its passphrase is the one that was given."""

    id: str
    label: str
    created_s: float
    opened: bool


class KeyRing:
    """The opened slots of a store; made by `key_ring`."""

    def __init__(self, slots: KeySlots, unlocked: Unlocked) -> None:
        self._slots = slots
        self._unlocked = unlocked

    async def list(self) -> tuple[KeySlot, ...]:
        """All slots, oldest first."""
        return tuple(self._shown(slot) for slot in await self._slots.list())

    async def add(self, passphrase: str, label: str) -> KeySlot:
        """One more passphrase. Raises Invalid for a weak one or a label that is too long."""
        return self._shown(await self._slots.add(self._unlocked, passphrase, label))

    async def change(self, passphrase: str) -> KeySlot:
        """Another passphrase in place of the given one. Raises Invalid for a weak one."""
        return self._shown(await self._slots.replace(self._unlocked, passphrase))

    async def remove(self, name: str) -> KeySlot:
        """Ends the passphrase of a slot, by its id, the beginning of it, or its label. Raises NotFound, Refused."""
        found = [slot for slot in await self.list() if name and (slot.id.startswith(name) or slot.label == name)]
        if len(found) != 1:
            raise NotFound(
                f"{'no' if not found else 'more than one'} key slot is called {name!r}", hint="`stnode bucket key list` shows them"
            )
        await self._slots.remove(self._unlocked, found[0].id)
        return found[0]

    def _shown(self, slot: Slot) -> KeySlot:
        return KeySlot(slot.id, self._unlocked.label(slot), slot.created_us / 1e6, slot.id == self._unlocked.slot.id)


def configured_passphrase(home: Home, environ: Mapping[str, str]) -> str | None:
    """The passphrase that the node itself would use. Raises ConfigError."""
    home.require(environ)
    return config.load(home.config, environ).store.passphrase


@asynccontextmanager
async def key_ring(home: Home, env: Env, environ: Mapping[str, str], passphrase: str) -> AsyncIterator[KeyRing]:
    """The slots of the configured store, opened by the passphrase. Raises NotFound without a store, Refused for a plain one or a wrong
    passphrase, and Unavailable."""
    home.require(environ)
    objects = open_bucket(home.path, config.load(home.config, environ), env)
    try:
        description = await describe(objects)
        if not description.encrypted:
            raise Refused(
                "this store is not encrypted: it has no passphrases",
                hint="encryption is chosen when a store is made: `stnode init` with a passphrase, on an empty bucket or prefix",
            )
        yield KeyRing(KeySlots(objects, env, description.store_id), await slots_opened(objects, env, description.store_id, passphrase))
    finally:
        await objects.close()


def read_passphrase(path: str) -> str:
    """A passphrase from a file. Raises ConfigError."""
    text = config.read_secret(path)
    if not text:
        raise ConfigError(f"the passphrase file {path} is empty", hint="write the passphrase into it")
    return text
