"""Checks the journal and its checkpoints by reading all of them: slots, bodies, manifests, runs. Reads only.

What is wrong with slots and bodies that a whole manifest covers is only noted: nobody needs them any more. So are older manifests than that.

A manifest is right when all its runs are there and its state hash comes out of them. A slot is right when it decodes, stands under its own number, carries the hash of the slot before it, and its body is there with
the hash that it names. A stub is right where a manifest that can be read covers it. Numbers are dense from 1.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from stnode.clock import Env
from stnode.errors import Corrupt, NotFound, Refused
from stnode.objectstore.base import Key, ObjectStore
from stnode.repo import codec, layout
from stnode.repo.checkpoint import verify
from stnode.repo.checkreport import CheckProblem, CheckStep
from stnode.repo.slots import TwoNames

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 16


class JournalCheck:
    """One check. `slots`, `manifests`, `runs` count what was looked at; `problems` collects what is wrong, `notes` what is stepped over; `head` is
    the newest slot."""

    def __init__(self, objects: ObjectStore, env: Env) -> None:
        self._objects = objects
        self._env = env
        self.problems: list[CheckProblem] = []
        self.notes: list[str] = []
        self.slots = 0
        self.manifests = 0
        self.runs = 0
        self.head = 0
        self._good_manifests: dict[int, codec.Manifest] = {}

    async def steps(self) -> AsyncIterator[CheckStep]:
        """Runs the check; each step is some progress."""
        async for step in self._check_manifests():
            yield step
        async for step in self._check_slots():
            yield step

    def _problem(self, key: str, message: str, number: int | None = None) -> None:
        """Something of commit `number`; it is stepped over if a whole manifest is at or above it."""
        covered = max(self._good_manifests, default=0)
        if number is None or number > covered:
            self.problems.append(CheckProblem(key, message))
        else:
            self.notes.append(f"{key}: {message}; checkpoint {covered} steps over it")

    async def _check_manifests(self) -> AsyncIterator[CheckStep]:
        keys = [meta.key async for meta in self._objects.list(layout.checkpoint_prefix())]
        for done, key in enumerate(sorted(keys, reverse=True)):
            yield CheckStep("checkpoints", done, len(keys))
            self.manifests += 1
            number = layout.slot_number(key)
            try:
                manifest = codec.decode_manifest((await self._objects.get(key)).data, key)
            except (Corrupt, Refused, NotFound) as exc:
                self._problem(key, exc.message, number)
                continue
            if manifest.number != number:
                self._problem(key, f"it is the manifest of commit {manifest.number}", number)
                continue
            self.runs += len(manifest.runs())
            try:
                await verify(self._objects, self._env, manifest)
            except (Corrupt, NotFound) as exc:
                self._problem(key, f"nothing can be restored from it: {exc.message}", number)
            else:
                self._good_manifests[manifest.number] = manifest

    async def _check_slots(self) -> AsyncIterator[CheckStep]:
        listed: dict[int, Key] = {}
        async for meta in self._objects.list(layout.journal_prefix()):
            number = layout.slot_number(meta.key)
            if number is None:
                self._problem(meta.key, "this is no name of a slot")
            elif number in listed:
                self._problem(meta.key, f"commit {number} has a second slot, {listed[number]}")
            else:
                listed[number] = meta.key
        numbers = sorted(listed)
        self.head = numbers[-1] if numbers else 0
        covered = max(self._good_manifests, default=0)
        before: tuple[int, bytes | None] = (0, codec.NO_PREDECESSOR)
        done = 0
        async for number, data in in_order(self._read_slot, [(number, listed[number]) for number in numbers]):
            if done % 100 == 0:
                yield CheckStep("journal", done, len(numbers))
            done += 1
            self.slots += 1
            key = listed[number]
            if number != before[0] + 1:
                self._problem(key, f"commits {before[0] + 1} to {number - 1} before it are missing", number - 1)
                before = (number - 1, None)
            before = (number, await self._check_slot(key, number, data, before[1], covered))

    async def _read_slot(self, slot: tuple[int, Key]) -> tuple[int, bytes | str]:
        """The slot's number and bytes, or why there are none."""
        try:
            return slot[0], (await self._objects.get(slot[1])).data
        except NotFound:
            return slot[0], "it was listed, but it is missing"
        except TwoNames as exc:
            return slot[0], exc.message

    async def _check_slot(self, key: Key, number: int, data: bytes | str, before: bytes | None, covered: int) -> bytes | None:
        """Checks one slot; the hash that the next one must carry, None where that is not known."""
        if isinstance(data, str):
            self._problem(key, data, number)
            return None
        try:
            slot = codec.decode_slot(data, key)
        except (Corrupt, Refused) as exc:
            self._problem(key, exc.message, number)
            return None
        if slot.number != number:
            self._problem(key, f"it holds commit {slot.number}", number)
            return None
        if isinstance(slot, codec.Stub):
            if number > covered:
                self._problem(key, "it was truncated, but no whole checkpoint covers it")
            manifest = self._good_manifests.get(number)
            return manifest.slot_sha if manifest else None
        if before is not None and slot.prev != before:
            self._problem(key, "it does not follow the slot before it: its predecessor's hash is another", number)
        await self._check_body(key, slot)
        return codec.slot_sha(data)

    async def _check_body(self, slot_key: Key, slot: codec.Slot) -> None:
        if slot.stored is None:
            return
        key = layout.body_key(slot.stored.id)
        try:
            data = (await self._objects.get(key)).data
            if len(data) != slot.stored.size_bytes or hashlib.sha256(data).digest() != slot.stored.sha256:
                self._problem(key, f"it is not the body that {slot_key} names: size or hash differ", slot.number)
                return
            codec.content(slot, await self._env.threads.run(codec.decode_body, data, key))
        except NotFound:
            self._problem(key, f"the body of {slot_key} is missing", slot.number)
        except (Corrupt, Refused) as exc:
            self._problem(key, exc.message, slot.number)


async def in_order(work: Callable[[T], Awaitable[R]], items: Sequence[T]) -> AsyncIterator[R]:
    """Results of `work` in the order of the items, `AT_ONCE` of them under way."""
    for start in range(0, len(items), AT_ONCE):
        for result in await asyncio.gather(*(work(item) for item in items[start : start + AT_ONCE])):
            yield result
