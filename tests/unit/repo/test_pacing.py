"""When commits and looks happen: plain arithmetic, and what it does to several nodes at once."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from stnode.repo.guard import HOLD_S, DeletionGuard
from stnode.repo.pacing import GROUP_S, HINTED_S, LOOK_IDLE_S, LOOK_LATE_S, WINNER_PAUSE_S, CommitPace, LookPace, backoff_s
from stnode.repo.proposal import FolderFacts, Wish
from stnode.repo.records import DraftSet, SetKind


def test_the_first_record_after_a_pause_waits_briefly() -> None:
    pace = CommitPace()
    assert pace.due(100.0, full=False, now=100.0) == pytest.approx(100.05)


def test_a_trickle_costs_one_commit_a_second() -> None:
    pace = CommitPace()
    pace.started(100.0)
    pace.won(100.2)
    assert pace.due(100.3, full=False, now=100.3) == 101.0


def test_a_full_group_of_a_node_that_is_alone_starts_at_once() -> None:
    pace = CommitPace()
    pace.started(100.0)
    pace.won(100.2)
    assert pace.due(100.1, full=True, now=100.2) == 100.1


def test_a_winner_among_others_pauses_even_with_a_full_group() -> None:
    pace = CommitPace()
    pace.foreign(95.0)
    pace.won(100.2)
    assert pace.contended(100.2)
    assert pace.due(100.1, full=True, now=100.2) == pytest.approx(100.2 + WINNER_PAUSE_S)
    assert not pace.contended(200.0)


@pytest.mark.parametrize(
    ("losses", "age_s", "most"), [(0, 0, 0), (2, 0, 0), (3, 0, 0.96), (5, 0, 3.0), (60, 0, 3.0), (5, 5, 1.5), (5, 10, 0), (5, 99, 0)]
)
def test_back_off_grows_with_losses_and_shrinks_with_age(losses: int, age_s: float, most: float) -> None:
    assert backoff_s(losses, age_s, 1.0) == pytest.approx(most)
    assert backoff_s(losses, age_s, 0.0) == 0


def test_looks_slow_down_to_the_idle_pace() -> None:
    pace = LookPace()
    waits = []
    for _ in range(6):
        pace.nothing()
        waits.append(pace.wait_s)
    assert waits == [2, 4, 8, 15, LOOK_IDLE_S, LOOK_IDLE_S]
    pace.failed()
    assert pace.wait_s == LOOK_LATE_S
    pace.news()
    assert pace.wait_s == 1


def test_hints_are_followed_at_once_and_false_ones_later_and_later() -> None:
    pace = LookPace()
    assert pace.hint_due() <= 0
    waits = []
    for _ in range(10):
        pace.hint_followed(100.0, led_to_news=False)
        waits.append(pace.hint_due() - 100)
    assert waits[0] == pytest.approx(2 * HINTED_S)
    assert waits[-1] == LOOK_IDLE_S
    pace.hint_followed(200.0, led_to_news=True)
    assert pace.hint_due() == pytest.approx(200 + HINTED_S)


# ---- contention (model `age` of the steering lab, with the code's own rules) --------------------------------------------


@dataclass
class _Node:
    pace: CommitPace = field(default_factory=CommitPace)
    applied: int = 0
    first: float = 0.0
    losses: int = 0
    wins: int = 0
    tries: int = 0
    waits: list[float] = field(default_factory=list)


class _Contention:
    """Nodes that always have a group, requests with latencies of a real store: PUT 100/195 ms, GET 63/78 ms (p50/p99)."""

    def __init__(self, count: int, *, greedy: bool, seconds: float = 300, seed: int = 1) -> None:
        self._random = Random(seed)
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = self._head = 0
        self._greedy = greedy
        self.nodes = [_Node() for _ in range(count)]
        for node in self.nodes:
            self._at(self._random.uniform(0, 1), self._look, node)
        while self._events and self._events[0][0] < seconds:
            self._now, _, call, args = heapq.heappop(self._events)
            call(*args)

    def _latency(self, p50: float, p99: float) -> float:
        return p50 * math.exp(self._random.gauss(0, math.log(p99 / p50) / 2.326))

    def _at(self, when: float, call: Callable[..., None], *args: object) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, call, args))

    def _look(self, node: _Node) -> None:
        latency = self._latency(0.063, 0.078)
        self._at(self._now + latency * 0.6, self._seen, node, latency * 0.4)

    def _seen(self, node: _Node, back: float) -> None:
        self._at(self._now + back, self._looked, node, min(4, self._head - node.applied))

    def _looked(self, node: _Node, news: int) -> None:
        node.applied += news
        if news:
            node.pace.foreign(self._now)
            return self._look(node)
        node.tries += 1
        latency = self._latency(0.1, 0.195)
        return self._at(self._now + latency * 0.6, self._arrive, node, node.applied + 1, latency * 0.4)

    def _arrive(self, node: _Node, slot: int, back: float) -> None:
        won = slot == self._head + 1
        self._head += won
        self._at(self._now + back, self._answered, node, slot, won)

    def _answered(self, node: _Node, slot: int, won: bool) -> None:
        if not won:
            node.losses += 1
            wait = backoff_s(node.losses, self._now - node.first, self._random.random())
            return self._at(self._now + wait, self._look, node)
        node.applied, node.wins, node.losses = slot, node.wins + 1, 0
        node.waits.append(self._now - node.first)
        node.pace.won(self._now)
        full = self._greedy and node is self.nodes[0]
        node.first = self._now
        due = node.pace.due(self._now, full=full, now=self._now) if full else self._now + GROUP_S
        return self._at(max(due, self._now), self._look, node)


@pytest.mark.parametrize(
    ("count", "greedy", "worst_s", "puts"), [(2, False, 5, 1.5), (5, False, 8, 2.0), (10, False, 16, 3.0), (5, True, 10, 2.5)]
)
def test_nobody_starves(count: int, greedy: bool, worst_s: float, puts: float) -> None:
    found = _Contention(count, greedy=greedy)
    wins = [node.wins for node in found.nodes]
    ordinary = wins[1:] if greedy else wins
    assert min(ordinary) > 0.7 * sum(ordinary) / len(ordinary)
    assert max(wait for node in found.nodes for wait in node.waits) < worst_s
    assert sum(node.tries for node in found.nodes) / sum(wins) < puts


# ---- the deletion guard -----------------------------------------------------------------------------------------------


def facts(files: int, share: float = 0.0) -> FolderFacts:
    return FolderFacts("f", 1, files, share, encrypted=False)


def wish() -> Wish:
    return Wish(DraftSet(SetKind.SINGLE, ()), lambda *_: None)


@pytest.mark.parametrize(
    ("files", "removing", "share", "held"),
    [(1000, 500, 0, False), (1000, 501, 0, True), (999, 999, 0, False), (10_000, 1001, 0.1, True), (10_000, 10_000, 1.0, False)],
)
def test_what_is_a_mass_deletion(files: int, removing: int, share: float, held: bool) -> None:
    assert DeletionGuard().holds(1, removing, facts(files, share), 0.0) is held


def test_deletions_of_an_hour_count_together() -> None:
    guard = DeletionGuard()
    guard.committed(1, 4000, 0.0)
    assert not guard.holds(1, 1000, facts(6000), 10.0)
    assert guard.holds(1, 1001, facts(6000), 10.0)
    assert not guard.holds(1, 1001, facts(6000), 3700.0)
    assert not guard.holds(2, 1001, facts(6000), 10.0)


def test_a_word_or_an_hour_lets_them_go() -> None:
    guard = DeletionGuard()
    first, second = wish(), wish()
    guard.hold(1, [first], 5.0)
    guard.hold(2, [second], 6.0)
    assert guard.next_due() == 5.0 + HOLD_S
    assert [held.fid for held in guard.pending()] == [1, 2]
    assert guard.confirm(2, 7.0) == [second]
    assert not guard.holds(2, 9999, facts(9999), 8.0)
    assert guard.due(5.0 + HOLD_S - 1) == []
    assert guard.due(5.0 + HOLD_S) == [first]
    assert guard.next_due() == float("inf")
