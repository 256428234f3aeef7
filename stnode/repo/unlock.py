"""From an object store and, perhaps, a passphrase to the object store that the repository works on: the one place where it is decided
whether a store is read plain or encrypted. What does not go together is refused before anything else is read or written."""

from __future__ import annotations

from stnode.clock import Env
from stnode.errors import NotFound, Refused
from stnode.objectstore.base import Capabilities, ObjectStore
from stnode.objectstore.encrypted import Encrypted
from stnode.protocol.deviceid import DeviceID
from stnode.repo import layout
from stnode.repo.keyslots import Cost, KeySlots, Unlocked
from stnode.repo.parameters import Collection
from stnode.repo.store import Store, describe, new_store_id


async def unlock(objects: ObjectStore, env: Env, passphrase: str | None) -> ObjectStore:
    """`objects` itself for a plain store, else the encryption around it. Raises NotFound when there is no store, and Refused when the
    passphrase is missing, wrong, or one is given for a plain store: then its owner believes it encrypted."""
    description = await describe(objects)
    if not description.encrypted:
        if passphrase is not None:
            raise Refused(
                "a passphrase is given, but this store is not encrypted",
                hint="remove store.passphrase; or make a new, encrypted store elsewhere with `stnode init` and let the devices sync into it",
            )
        return objects
    unlocked = await slots_opened(objects, env, description.store_id, passphrase)
    return Encrypted(objects, env, unlocked.keys, layout.SECRECY)


async def slots_opened(objects: ObjectStore, env: Env, store_id: str, passphrase: str | None) -> Unlocked:
    """The keys of an encrypted store. Raises Refused without the right passphrase."""
    if passphrase is None:
        raise Refused(
            "this store is encrypted and no passphrase is given",
            hint="set STNODE_STORE_PASSPHRASE_FILE or STNODE_STORE_PASSPHRASE, or passphrase_file in [store] of config.toml",
        )
    return await KeySlots(objects, env, store_id).unlock(passphrase)


async def is_there(objects: ObjectStore) -> bool:
    """Whether the bucket holds a store. Raises Corrupt or Refused when it holds one that cannot be read."""
    try:
        await describe(objects)
    except NotFound:
        return False
    return True


async def make_store(
    objects: ObjectStore,
    env: Env,
    capabilities: Capabilities,
    collection: Collection,
    passphrase: str | None,
    cost: Cost | None = None,
    *,
    single_node: DeviceID | None = None,
) -> bool:
    """`Store.init`, encrypted when there is a passphrase: the slot is there before the store says that it needs one. A slot that this
    leaves without its store opens nothing: it is bound to the store id."""
    if passphrase is None:
        return await Store.init(objects, env, capabilities, collection, single_node=single_node)
    collection.check()
    store_id = new_store_id(env.random)
    slot = await KeySlots(objects, env, store_id).make_first(passphrase, cost)
    new = await Store.init(objects, env, capabilities, collection, single_node=single_node, encrypted_id=store_id)
    if not new:
        await objects.delete(layout.key_slot_key(slot.id))
    return new
