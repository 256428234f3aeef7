"""Accounts whose sum no run may change: each is a file, a transfer writes two of them in one set, on condition that nobody was faster.

A content is "balance delta transfer". So a lost update shows (the balance is not the one before plus the delta), a doubled one (a transfer
in two commits), half of one (the sum), and an acknowledged one that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from stnode.errors import StnodeError
from stnode.repo.records import Draft, DraftSet, SetKind, Status
from tests.sim.witness import Written
from tests.sim.world import SimNode, World

ACCOUNTS = tuple(f"bank/{number}" for number in range(4))
OPENING = 100


class Ledger:
    """`acknowledged` transfers must be in a commit in the end; others may be."""

    def __init__(self, world: World) -> None:
        self.acknowledged: set[str] = set()
        self.transfers: dict[str, int] = {}
        self.balances: dict[str, int] = {}
        self._world = world
        self._saved: dict[int, tuple[dict[str, int], dict[str, int]]] = {0: ({}, {})}
        self._number = 0
        world.truth.on_commit.append(self._committed)
        world.truth.on_rewind.append(self._rewound)

    async def open(self, node: SimNode) -> None:
        """Opens all accounts in one set."""
        drafts = [await node.local(name, f"{OPENING} {OPENING} opening") for name in ACCOUNTS]
        await node.put(DraftSet(SetKind.ALL_OR_NONE, tuple(drafts)))

    async def transfer(self, node: SimNode, random: Random) -> None:
        """Moves an amount between two accounts as the node sees them; what it reads comes through the node's reader."""
        self._number += 1
        transfer, amount = f"t{self._number}", random.randint(1, 50)
        drafts: list[Draft] = []
        for name, delta in zip(random.sample(ACCOUNTS, 2), (-amount, amount), strict=True):
            record = node.record(name)
            try:
                content = None if record is None else await node.read(record)
            except StnodeError:
                content = None  # the store does not answer, or the pack is gone and the node has not followed yet
            if record is None or content is None or node.gate.dead:
                return
            balance = int(content.split()[0])
            version = record.info.version
            drafts.append(await node.local(name, f"{balance + delta} {delta} {transfer}", version, version))
        [outcome] = await node.submit(DraftSet(SetKind.ALL_OR_NONE, tuple(drafts)))
        if outcome.status is Status.COMMITTED:
            self.acknowledged.add(transfer)

    def check(self) -> None:
        """What was acknowledged is there."""
        lost = self.acknowledged - self.transfers.keys()
        self._world.require(not lost, "acknowledged", f"transfers {sorted(lost)} were acknowledged and are lost")

    def forget(self) -> None:
        """The bucket is put back: see `World.forget`."""
        self.acknowledged.clear()

    def _committed(self, number: int, written: Sequence[Written]) -> None:
        violate = self._world.violate
        for each in written:
            if each.name not in ACCOUNTS or not each.is_current:
                continue
            content = self._world.contents.get(each.blocks_hash)
            if content is None:
                violate("content", f"commit {number} writes {each.name} with a content that nobody had")
                continue
            balance, delta, transfer = content.decode().split()
            before = self.balances.get(each.name, 0)
            if before + int(delta) != int(balance):
                violate("sum", f"commit {number}: {each.name} goes from {before} by {delta} to {balance}: an update is lost")
            if self.transfers.setdefault(transfer, number) != number:
                violate("once", f"transfer {transfer} is in commits {self.transfers[transfer]} and {number}")
            self.balances[each.name] = int(balance)
        if self.balances and sum(self.balances.values()) != OPENING * len(ACCOUNTS):
            violate("sum", f"after commit {number} the accounts add up to {sum(self.balances.values())}: {self.balances}")
        self._saved[number] = (dict(self.balances), dict(self.transfers))

    def _rewound(self) -> None:
        """To the last commit with something to say at or before the head that the bucket has now."""
        head = self._world.truth.number
        self._saved = {number: saved for number, saved in self._saved.items() if number <= head}
        balances, transfers = self._saved[max(self._saved)]
        self.balances, self.transfers = dict(balances), dict(transfers)
