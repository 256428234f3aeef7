"""`bucket repair`: looks at a store's journal, says what can be done, and does it when that is confirmed. For a home on which no daemon
runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stnode.clock import Env
from stnode.config import Config
from stnode.db import Database
from stnode.errors import Refused
from stnode.net.identity import Identity
from stnode.node import identities
from stnode.node.objects import open_objects
from stnode.node.service import RepairWish
from stnode.node.settings import Settings
from stnode.objectstore.base import ObjectStore
from stnode.protocol import deviceid
from stnode.protocol.deviceid import DeviceID
from stnode.repo import layout, parameters, repair, salvage, state
from stnode.repo.heartbeat import Heartbeats
from stnode.repo.repair import Survey
from stnode.repo.repairreport import RepairPlan, RepairReport
from stnode.repo.settings import DeviceSettings, FolderSettings
from stnode.repo.slots import NamedSlots, arranged
from stnode.repo.store import SettingsChange, Store

_NAMED: Final = 100

Confirm = Callable[[RepairPlan], bool]
"""Shows the plan; whether to go on."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """Settings that somebody knows beside the journal: this node's cached state, its configuration."""

    devices: tuple[DeviceSettings, ...]
    folders: dict[str, FolderSettings]


async def repair_store(home: Path, config: Config, env: Env, wanted: RepairWish, confirm: Confirm) -> RepairReport:
    """Looks, asks, repairs. Raises Refused where the plan needs an option that was not given, or another node knows better; Conflict when
    somebody writes to the journal meanwhile."""
    directory = home / "state"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    own_path, path = directory / "state.db", directory / "repair.db"
    opened = await open_objects(home, config, env)
    _remove(path)
    scratch: Database | None = Database(path)
    own = Database(own_path) if own_path.exists() else None
    try:
        identity, config = await identities.resolve(home, config, opened, env)
        objects = await arranged(opened)
        assert scratch is not None
        rules = await parameters.read(objects)
        await state.prepare(scratch, rules)
        if own is not None:
            await state.prepare(own, rules)
        found = await repair.survey(objects, env, scratch, own)
        plan = await _plan(objects, found)
        if not plan.fault:
            return RepairReport(plan, advice=("nothing has to be done; `stnode bucket check` looks at packs and records too",))
        if not confirm(plan):
            return RepairReport(plan)
        await _check_allowed(objects, env, found, wanted, identity)
        base = own if found.way == "own" and own is not None else scratch
        if found.way == "names":
            own = own or Database(own_path)
            return await _merge_names(objects, own, env, identity, config, found, plan)
        known = await _remembered(own, identity, env, wanted)
        first_new_pack = (await base.run(state.head)).next_pack
        now_us = await _store_time_us(objects, env)
        commit = await repair.step_over(objects, env, base, found, identity.device_id, now_us)
        if base is scratch:
            # What was restored is this node's cache from now on: the packs' lists that are read below stay in it.
            before, own = own, None
            if before is not None:
                await before.close()
            scratch = None
            await base.close()
            _remove(own_path)
            path.rename(own_path)
            own = Database(own_path)
        assert own is not None
        return await _bring_back(objects, own, env, identity, config, (found, plan), commit, first_new_pack, known)
    finally:
        if own is not None:
            await own.close()
        if scratch is not None:
            await scratch.close()
        _remove(path)
        await opened.close()


def _remove(path: Path) -> None:
    """A database with what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


async def _store_time_us(objects: ObjectStore, env: Env) -> int:
    date_ns = (await objects.head(layout.STORE)).date_ns
    return (env.clock.now_ns() if date_ns is None else date_ns) // 1000


async def _plan(objects: ObjectStore, found: Survey) -> RepairPlan:
    """What will be done, in words."""
    if found.way == "nothing":
        return RepairPlan("")
    if found.way == "checkpoint":
        return RepairPlan(
            found.fault, (f"write the state of commit {found.base}, which is whole, as a new checkpoint: it steps over the damage",)
        )
    if found.way == "own":
        return RepairPlan(
            found.fault,
            (f"write this node's own state, that of commit {found.base}, as a checkpoint: it has what is damaged or missing in the store",),
            found.first,
        )
    if found.way == "names":
        return await _plan_of_names(objects, found)
    aside = found.set_aside
    names: dict[str, None] = {}
    async for commit in salvage.read_all(objects, aside):
        names.update(dict.fromkeys(salvage.names_in(commit.body) if commit.body is not None else ()))
    steps = [
        f"go on from commit {found.base}, the newest state that can be read" if found.base else "begin a new history: no state can be read",
        f"set {len(aside):,} commits from {found.first} on aside; their objects stay where they are" if aside else "",
        "" if found.base else "make the folders that the packs' keys name, with the settings that this node and its configuration know",
        "give every folder a new index ID, so that devices take its index anew",
        "register the packs in the bucket that no commit knows: what devices announce is found in them instead of being pulled",
        "commit again what set-aside commits say of files, where that can be told" if aside else "",
    ]
    return RepairPlan(
        found.fault,
        tuple(step for step in steps if step),
        found.first,
        void=found.way == "void",
        rebuild=found.way == "rebuild",
        set_aside=len(aside),
        files=tuple(names)[:_NAMED],
    )


async def _plan_of_names(objects: ObjectStore, found: Survey) -> RepairPlan:
    assert isinstance(objects, NamedSlots)
    names: dict[str, None] = {}
    async for commit in salvage.read_names(objects, found.first, found.others):
        names.update(dict.fromkeys(salvage.names_in(commit.body) if commit.body is not None else ()))
    steps = (
        f"go on from {found.counting}, of which somebody may have been told: this node has applied it, or it is the older one",
        "give every folder a new index ID, so that devices take its index anew",
        f"commit again what {' and '.join(found.others)} says of files, where that can be told: of a file that both changed both versions stay",
    )
    return RepairPlan(found.fault, steps, found.first, set_aside=len(found.others), files=tuple(names)[:_NAMED])


async def _merge_names(
    objects: ObjectStore, db: Database, env: Env, identity: Identity, config: Config, found: Survey, plan: RepairPlan
) -> RepairReport:
    """Goes on from the name that counts, and commits what the others hold. The first commit, of index IDs, says to everybody which one it
    is: one that was restored from the other has told devices of numbers that mean something else now."""
    assert isinstance(objects, NamedSlots)
    assert found.counting is not None
    counting = [each async for each in salvage.read_names(objects, found.first, [found.counting])]
    others = [each async for each in salvage.read_names(objects, found.first, found.others)]
    objects.settle(found.first, found.counting)
    result = salvage.Salvaged(unreadable=[found.first] if any(each.body is None for each in others) else [])
    store = await Store.open(objects, db, env, identity.device_id, single_node=config.store.single_node)
    try:
        await salvage.renew_index_ids(store)
        await salvage.merge_names(store, counting[0], [each for each in others if each.body is not None], result)
    finally:
        await store.close()
    return _report(found, plan, found.first, result)


async def _check_allowed(objects: ObjectStore, env: Env, found: Survey, wanted: RepairWish, identity: Identity) -> None:
    if found.way == "void" and wanted.void != found.first:
        raise Refused(
            f"commit {found.first} is the one that would be stepped over, with all that follows it",
            hint="a node that has applied it repairs it without loss: run `stnode bucket repair` there. If there is none, and no copy of "
            f"the bucket has it: `stnode bucket repair --void {found.first}`",
        )
    if found.way == "rebuild" and not wanted.rebuild:
        raise Refused(
            "nothing of the journal can be used any more",
            hint="put journal/, checkpoint/, runs/ and bodies/ back from a backup, or run `stnode bucket repair` on a node that has its state "
            "directory. If there is neither: `stnode bucket repair --rebuild`",
        )
    now_us = await _store_time_us(objects, env)
    beats = Heartbeats(objects, env, lambda: now_us)
    await beats.refresh()
    for beat in beats.fresh():
        if beat.node != identity.device_id and beat.head > found.base:
            raise Refused(
                f"the node {beat.name or deviceid.format(DeviceID(beat.node))} has applied commit {beat.head}, this repair would go on from {found.base}",
                hint="run `stnode bucket repair` on that node; or stop it for good, and wait ten minutes",
            )


async def _remembered(own: Database | None, identity: Identity, env: Env, wanted: RepairWish) -> Remembered:
    """Settings for folders that are made from the keys of packs."""
    _, wishes = Settings(identity.device_id, (), ()).compare(wanted.devices, wanted.folders, env.random, prune=False)
    devices = {device.device_id: device for device in wishes.devices}
    folders = {folder.folder_id: folder for folder in wishes.folders}
    if own is not None and (await own.run(state.head)).complete:
        devices.update({device.device_id: device for device in await own.run(state.devices)})
        folders.update({folder.settings.folder_id: folder.settings for folder in await own.run(state.folders)})
    return Remembered(tuple(devices.values()), folders)


async def _bring_back(
    objects: ObjectStore,
    db: Database,
    env: Env,
    identity: Identity,
    config: Config,
    planned: tuple[Survey, RepairPlan],
    commit: int,
    first_new_pack: int,
    known: Remembered,
) -> RepairReport:
    """What comes after the step over: index IDs, folders, packs, records, and a second checkpoint."""
    found, plan = planned
    result = salvage.Salvaged()
    store = await Store.open(objects, db, env, identity.device_id, single_node=config.store.single_node)
    try:
        if commit > found.base:
            await salvage.renew_index_ids(store)
        if found.way == "rebuild":
            folders = tuple(await salvage.folders_of_packs(objects, known.folders, env.random))
            await store.submit_settings(SettingsChange(folders=folders, devices=known.devices))
        if found.way in ("void", "rebuild"):
            async for _ in salvage.adopt_packs(store, result):
                pass
            await salvage.bring_back(store, salvage.read_all(objects, found.set_aside), first_new_pack, result)
            await store.write_checkpoint()
    finally:
        await store.close()
    return _report(found, plan, commit, result)


def _report(found: Survey, plan: RepairPlan, commit: int, result: salvage.Salvaged) -> RepairReport:
    return RepairReport(
        plan,
        done=True,
        commit=commit,
        packs=result.packs,
        pack_bytes=result.pack_bytes,
        records=result.records,
        lost=tuple(dict.fromkeys(result.lost)),
        unreadable=tuple(result.unreadable),
        skipped=tuple(f"{key}: {why}" for key, why in result.skipped),
        advice=_advice(found),
    )


def _advice(found: Survey) -> tuple[str, ...]:
    if found.way in ("checkpoint", "own"):
        return ("start the nodes again",)
    if found.way == "names":
        return ("start one process of the node, and no second one", "then run `stnode bucket check`")
    again = ("look at `stnode device list` and `stnode folder list`, and complete them",) if found.way == "rebuild" else ()
    return (
        *again,
        "start the nodes again, with the devices that have the files: what the store lacks is pulled from them, most of it without moving bytes",
        "then run `stnode bucket check`",
    )
