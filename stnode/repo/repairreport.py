"""What a repair of the journal is about to do, and what it has done: plain values, for everyone who shows or sends them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """`fault` is what is wrong, "" when nothing is; `steps` say in words what the repair does. `first` is the commit that cannot be read (0: none), to be given as `--void`
    where `void` is set; `rebuild` asks for `--rebuild`. `set_aside` counts commits that do not count afterwards, `files` names of live items
    that these wrote, as far as they can be read, at most a hundred."""

    fault: str
    steps: tuple[str, ...] = ()
    first: int = 0
    void: bool = False
    rebuild: bool = False
    set_aside: int = 0
    files: tuple[str, ...] = ()


A_CHECKPOINT: Final = RepairPlan("", ("write this node's whole state as a new checkpoint",))
"""What a running node does: all that is damaged below it is stepped over then."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """`done` is False where only the plan was made. `commit` is the one that everybody restores to. `packs` were registered anew, `records`
    committed again; `lost` are files of set-aside commits that did not come back by themselves, `unreadable` commits of which nothing is
    known, `skipped` packs that cannot be used. `advice` is what the user does next."""

    plan: RepairPlan
    done: bool = False
    commit: int = 0
    packs: int = 0
    pack_bytes: int = 0
    records: int = 0
    lost: tuple[str, ...] = ()
    unreadable: tuple[int, ...] = ()
    skipped: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
