"""`bucket check --repair`: what a check has found is dealt with by the node, as far as it and its peers can.

Damaged packs are marked lost, and what they held is pulled again by the folders that run here; lost packs are asked for once more; where
the journal or its checkpoints are damaged, a new checkpoint steps over that. A second check says what is left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, cast

from stnode.errors import Internal
from stnode.node.node import Node
from stnode.repo import state, state_damage
from stnode.repo.checkreport import CheckReport, CheckStep

QUIET_S: Final = 10.0
"""For so long nothing came and nothing is on its way: nobody who is connected has the rest."""
_LOOK_S: Final = 0.5
_JOURNAL = ("journal/", "checkpoint/", "runs/", "bodies/")

RUN = "the node has to run, with devices connected that have these files: `stnode run`, then `stnode bucket check --repair`"
CONNECT = "connect a device that has these files, or bring the packs back; both are noticed by a running node"
JOURNAL = "`stnode bucket repair` says what can be done about the journal"


async def mend(node: Node, found: CheckReport, check: Callable[[], AsyncIterator[CheckStep]]) -> AsyncIterator[CheckStep]:
    """Deals with what was `found`; the last step carries the report of another `check` (without reading data), with what was repaired."""
    yield CheckStep("repair", 0, len(found.problems))
    await node.store.damage.settle([problem.pack for problem in found.problems if problem.pack], look_again=True)
    if any(problem.key.startswith(_JOURNAL) for problem in found.problems):
        await node.store.write_checkpoint()
    if node.listening:
        async for step in _pulled(node):
            yield step
    last: CheckReport | None = None
    async with aclosing(cast("Any", check())) as steps:
        async for step in steps:
            last = step.report
            if last is None:
                yield step
    if last is None:
        raise Internal("the check ended without a report")
    left = {problem.key for problem in last.problems}
    yield CheckStep(
        "done",
        1,
        1,
        replace(
            last,
            blocks_read=found.blocks_read,
            bytes_read=found.bytes_read,
            repaired=tuple(problem for problem in found.problems if problem.key not in left),
            advice=_advice(node, last),
        ),
    )


async def _pulled(node: Node) -> AsyncIterator[CheckStep]:
    """Waits until all that was lost is there again, or nothing more comes."""
    clock = node.env.clock
    first = left = await _lost(node)
    changed_s = clock.monotonic()
    while left:
        yield CheckStep("pulling again", first - left, first)
        await clock.sleep(_LOOK_S)
        before, left = left, await _lost(node)
        busy = any(runner.transfer.jobs for runner in node.runners().values())
        if left != before or busy:
            changed_s = clock.monotonic()
        if clock.monotonic() - changed_s >= QUIET_S:
            return


async def _lost(node: Node) -> int:
    return await node.db.run(lambda conn: sum(state_damage.lost_names(conn, folder.fid, 0)[0] for folder in state.folders(conn)))


def _advice(node: Node, report: CheckReport) -> str:
    """What the user does about problems that are left."""
    if not report.problems:
        return ""
    if any(problem.key.startswith(_JOURNAL) for problem in report.problems):
        return JOURNAL
    return CONNECT if node.listening else RUN
