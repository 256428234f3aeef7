"""Blocks that downloads left behind in packs on their way to the store: the same content often comes again at once, as the file's next
version or under another name, and must not be stored twice.

What lies in the store already is found by `repo.dedupe`; what is not sealed yet is dropped with its download.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from stnode.folder.planner import Job
from stnode.repo.packer import OpenPack, Token


class Leftovers:
    """Downloads given up while packs are being sealed, and who inherits their blocks."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._heirs: dict[Token, list[tuple[Job, int]]] = {}

    def left(self, job: Job) -> None:
        """The download is given up."""
        self._jobs[job.id] = job

    def inherit(self, jobs: Iterable[Job], sealing: Collection[OpenPack]) -> None:
        """Takes from `todo` the blocks that are on their way: they get their address when their pack is sealed."""
        if not sealing:
            self._jobs.clear()
        if not self._jobs:
            return
        coming: dict[bytes, Token] = {}
        on_their_way: dict[int, Job] = {}
        for pack in sealing:
            for token in pack.tokens:
                left = self._jobs.get(token[0])
                if left is not None:
                    on_their_way[left.id] = left
                    coming[left.block_hash(token[1])] = token
        self._jobs = on_their_way
        for job in jobs if coming else ():
            for index in tuple(job.todo):
                origin = coming.get(job.block_hash(index))
                if origin is not None:
                    job.todo.remove(index)
                    self._heirs.setdefault(origin, []).append((job, index))

    def settled(self, tokens: Iterable[Token]) -> dict[Token, list[tuple[Job, int]]]:
        """These blocks have their addresses, or will never have one: which blocks of others wait for each of them."""
        return {token: self._heirs.pop(token) for token in tokens if token in self._heirs} if self._heirs else {}
