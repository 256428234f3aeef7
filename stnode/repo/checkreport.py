"""What a check of the store says while it runs and at its end: plain values, for everyone who shows or sends them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckProblem:
    """One thing wrong: the object's key, or FOLDER/PATH of a record, and what is wrong with it. `lost` are files (FOLDER/PATH)
    whose data cannot be read because of it: current versions, at most a hundred named; `lost_versions` old ones in the history. `pack` is the
    number of a damaged pack, else 0."""

    key: str
    message: str
    lost: tuple[str, ...] = ()
    lost_versions: tuple[str, ...] = ()
    pack: int = 0


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was looked at, and every problem found. `blocks_read` and `bytes_read` count verified data, 0 unless data was read. `notes` is what
    is not as it was written and hurts nobody; `repaired` what was a problem before a repair, `advice` what the user does about the rest."""

    slots: int = 0
    manifests: int = 0
    runs: int = 0
    packs: int = 0
    records: int = 0
    blocks_read: int = 0
    bytes_read: int = 0
    problems: tuple[CheckProblem, ...] = ()
    notes: tuple[str, ...] = ()
    repaired: tuple[CheckProblem, ...] = ()
    advice: str = ""


@dataclass(frozen=True, slots=True)
class CheckStep:
    """Progress: `done` of `total` things of a phase, bytes in the phase "data". The last step, and only that, carries the report."""

    phase: str
    done: int
    total: int
    report: CheckReport | None = None
