"""Bugs to plant, and which invariant must find each. `test_mutations.py` plants them, docs/testing.md has how soon they were found.

A mutant rewrites a few words of one function's source; the words must be there exactly once, so that a mutant whose code has changed
fails instead of planting nothing.
"""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from stnode.repo import (
    checkpoint,
    collect_entries,
    collect_sweep,
    committer,
    follower,
    journal,
    judge,
    packer,
    packlist,
    proposal,
    reader,
    state_validate,
)
from tests.sim.actors import lived
from tests.sim.witness import Violation

MADE_ONCE = "EntryWish(lambda conn, packs, kept=[]: kept[0] if kept else (kept.append(make(conn, packs)) or kept[0]), done, handles)"

Edit = tuple[object, str, str, str]
"""Class or module, name of its function, the words, what they become."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """`invariant` must be what finds it, with a message that has `message` in it, in one of the first `seeds` seeds."""

    name: str
    breaks: str
    edits: tuple[Edit, ...]
    invariant: str
    message: str
    seeds: int = 200

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The bug is in the code until the end of the block."""
        with ExitStack() as stack:
            for owner, name in dict.fromkeys((owner, name) for owner, name, _, _ in self.edits):
                words = [(old, new) for its_owner, its_name, old, new in self.edits if (its_owner, its_name) == (owner, name)]
                stack.enter_context(mock.patch.object(owner, name, _rewritten(owner, name, words)))
            yield


def hunt(mutant: Mutant) -> tuple[int, Violation] | None:
    """The first seed whose run breaks the mutant's invariant, with what was said; None when none of its seeds does."""
    with mutant.planted():
        for seed in range(mutant.seeds):
            try:
                lived(seed, quiet=True)
            except Violation as found:
                if found.invariant == mutant.invariant and mutant.message in str(found):
                    return seed, found
            except Exception:  # noqa: BLE001 - a mutant may break anything; only its invariant counts
                continue
    return None


def _rewritten(owner: Any, name: str, words: Sequence[tuple[str, str]]) -> Callable[..., Any]:
    original = inspect.getattr_static(owner, name)
    source = textwrap.dedent(inspect.getsource(original))
    for old, new in words:
        if source.count(old) != 1:
            raise LookupError(f"{name} has {old!r} {source.count(old)} times: the mutant must follow the code")
        source = source.replace(old, new)
    code = compile(source, f"<{name}, mutated>", "exec", flags=__future__.annotations.compiler_flag)
    made: dict[str, Any] = {}
    exec(code, vars(sys.modules[original.__module__]), made)
    function: Callable[..., Any] = made[name]
    return function


MUTANTS = (
    Mutant(
        "announced-before-commit",
        "a commit is applied, and so announced, before its slot is created",
        (
            (
                committer.Committer,
                "_try",
                "result, etag = await self._create(attempt)",
                "[applied] = await self.follower.apply([attempt.commit]); result, etag = await self._create(attempt)",
            ),
            (committer.Committer, "_try", "[applied] = await self.follower.apply([replace(attempt.commit, etag=etag)])", "pass"),
        ),
        "announced",
        "which commits gave to None",
    ),
    Mutant(
        "retry-taken-for-loss",
        "the own slot, found after an answer that was lost, is taken for somebody else's",
        ((committer.Committer, "_look", "return _Result.WON, blob.meta.etag", 'return _Result.LOST, ""'),),
        "once",
        "was written twice",
    ),
    Mutant(
        "unknown-taken-for-loss",
        "a create without an answer is given up, and its group judged and written anew under another write id",
        (
            (
                committer.Committer,
                "_create",
                "wait_s = await self._wait(exc, wait_s)",
                'wait_s = await self._wait(exc, wait_s)\n            return _Result.LOST, ""',
            ),
        ),
        "once",
        "was written twice",
    ),
    Mutant(
        "slot-deleted-not-stubbed",
        "truncation deletes slots",
        (
            (
                checkpoint,
                "truncate",
                "await objects.put(slot_key(number, journal), [encode_stub(number)])",
                "await objects.delete(slot_key(number, journal))",
            ),
        ),
        "truncation",
        "create-if-absent forgets it",
    ),
    Mutant(
        "truncated-too-early",
        "slots go as soon as any manifest covers them",
        ((checkpoint, "truncate", "covered = numbers[1]", "covered = numbers[0]"),),
        "truncation",
        "is truncated, the manifests are",
    ),
    Mutant(
        "renumbered",
        "the numbers told to a submitter count on from the state that was judged, not from what the slot says",
        ((committer.Committer, "_won", "firsts[fkey], 0", "proposal.folders[fids[fkey]].last_sequence + 1, 0"),),
        "announced",
        "acknowledges",
    ),
    Mutant(
        "numbers-used-twice",
        "sequences count on from the last one, without store time: a bucket put back gives them out again",
        ((committer.Committer, "_slot", "max(last[fkey] + 1, time_us)", "last[fkey] + 1"),),
        "numbers",
        "and was given to",
    ),
    Mutant(
        "head-not-confirmed",
        "a head that nobody has seen for a minute is built on",
        (
            (follower.Follower, "silent", "clock.monotonic() - self._confirmed_s > SILENCE_S", "False"),
            (follower.Follower, "silent", "abs(clock.now_ns() - self._confirmed_ns) > SILENCE_S * 10**9", "False"),
        ),
        "chain",
        "is created on commit",
    ),
    Mutant(
        "foreign-predecessor-followed",
        "a follower takes the next slot whatever its predecessor was",
        (
            (follower.Follower, "_read", "if slot.prev != sha:", "if False:"),
            (state_validate, "check_slot", "or slot.prev != at.slot_sha", ""),
        ),
        "state",
        "has another state",
        seeds=300,
    ),
    Mutant(
        "entries-not-made-anew",
        "relocations and condemnations that lost a slot are committed as they were computed before",
        ((journal.Journal, "submit_entries", "EntryWish(make, done, handles)", MADE_ONCE),),
        "void",
        "is void",
        seeds=300,
    ),
    Mutant(
        "horizon-ignored",
        "packs below the orphan horizon are registered",
        (
            (proposal.PackTable, "_usable", "and layout.minted_us(self._pending[pack].id) >= self._horizon_us", ""),
            (state_validate._Rules, "_packs", "or minted_us(pack.id) < self._head.horizon_us", ""),
        ),
        "horizon",
        "minted below the orphan horizon",
        seeds=300,
    ),
    Mutant(
        "served-without-verifying",
        "what a read brings is served without a look at its hash",
        (
            (
                reader.Reader,
                "_verify",
                "good = await verify_batch(self._env, [(view, blocks.hashes_of(place)) for place, view in stored])",
                "good = [True] * len(stored)",
            ),
        ),
        "content",
        "with another content",
    ),
    Mutant(
        "lists-of-a-lost-history",
        "numbers of packs keep their meaning when the bucket was put back",
        ((packlist.PackLists, "unregistered", "self._lists.clear()", "pass"),),
        "content",
        "with another content",
    ),
    Mutant(
        "upload-taken-for-done",
        "a pack whose upload had no answer counts as durable",
        ((packer.Packer, "_try", "except Exists:", "except Unavailable:\n                return object_id\n            except Exists:"),),
        "resolvable",
        "which is not in the bucket",
    ),
    Mutant(
        "condition-not-judged",
        "a client's condition on the committed version is not looked at",
        ((judge._Bench, "_local", "if draft.condition is not UNCONDITIONAL and", "if False and"),),
        "sum",
        "an update is lost",
    ),
    Mutant(
        "half-a-set",
        "of drafts that belong together those stand that can",
        ((judge._Bench, "_all", "return refusal", "continue"),),
        "sum",
        "add up to",
    ),
    Mutant(
        "state-depends-on-the-writer",
        "a node takes another time for its own commits than for others'",
        (
            (
                follower.Follower,
                "_apply",
                "state.apply(conn, commit.slot,",
                "state.apply(conn, commit.slot if own else replace(commit.slot, store_time_us=commit.slot.store_time_us + 1),",
            ),
            (follower.Follower, "_apply", "def write(", "from dataclasses import replace\n\n    def write("),
        ),
        "state",
        "has another state",
    ),
    Mutant(
        "deleted-uncondemned",
        "the collector deletes packs that no commit registered whatever their age",
        ((collect_sweep.Sweeper, "orphans", "if minted >= ripe_us or not delete:", "if not delete:"),),
        "deletion",
        "not below an orphan horizon whose grace is over",
    ),
    Mutant(
        "grace-ignored",
        "the collector deletes what was condemned a moment ago",
        ((collect_sweep.Sweeper, "condemned", "and now_us - modified_us >= collection.grace_us", ""),),
        "deletion",
        "it was condemned",
    ),
    Mutant(
        "repack-condemns-a-live-block",
        "a repack forgets what the history refers to, and no node refuses it",
        (
            (collect_entries, "_relocations", "wanted_places(conn, pack, packs.named)", "wanted_places(conn, pack, packs.named) >> 1"),
            (state_validate, "condemned_reference", "for pack in packs:", "for pack in ():"),
        ),
        "resolvable",
        "condemned",
    ),
)
