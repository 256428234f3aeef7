"""Who fetches what, as siblings ask each other: one of them for each content, whoever asks first, and nobody waits for what is not fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from stnode.clock import Env, InlineThreads, SeededRandomness
from stnode.folder.claims import KEPT_S, Claims
from tests.support.world import VirtualClock, simulated

NODES = {name: name.encode() * 32 for name in "abc"}
CONTENTS = frozenset(range(1, 200))


class _Group:
    """Nodes that ask each other; an answer takes a second there and back."""

    def __init__(self, *names: str) -> None:
        env = Env(VirtualClock(), SeededRandomness(1), InlineThreads())
        self.fetching: dict[str, set[int]] = {name: set() for name in names}
        self.claims = {
            name: Claims(env, _Wire(self, name), NODES[name], "folder", lambda name=name: self.fetching[name])  # type: ignore[misc]
            for name in names
        }

    async def fetch(self, name: str, contents: Collection[int] = CONTENTS) -> Mapping[int, bytes]:
        """The node asks, and fetches what is left to it."""
        held = await self.claims[name].ask(contents)
        self.fetching[name] |= set(contents) - set(held)
        return held


class _Wire:
    def __init__(self, group: _Group, name: str) -> None:
        self._group, self._name = group, name

    async def who_fetches(self, folder_key: str, contents: Collection[int]) -> Mapping[bytes, Collection[int]]:
        assert folder_key == "folder"
        await asyncio.sleep(0.5)
        others = [other for other in self._group.claims if other != self._name]
        answers = {NODES[other]: self._group.claims[other].answer(NODES[self._name], contents) for other in others}
        await asyncio.sleep(0.5)
        return answers


@simulated
async def test_who_asks_first_fetches_and_is_named_to_the_others() -> None:
    group = _Group("a", "b", "c")
    assert await group.fetch("a", {1, 2, 3}) == {}
    assert await group.fetch("b", {2, 3, 4}) == {2: NODES["a"], 3: NODES["a"]}
    assert await group.fetch("c", {1, 4, 5}) == {1: NODES["a"], 4: NODES["b"]}
    assert group.fetching == {"a": {1, 2, 3}, "b": {4}, "c": {5}}


@simulated
async def test_of_nodes_that_ask_at_once_exactly_one_fetches_each_content() -> None:
    group = _Group("a", "b", "c")
    await asyncio.gather(*(group.fetch(name) for name in group.claims))
    parts = list(group.fetching.values())
    assert set.union(*parts) == CONTENTS
    assert sum(len(part) for part in parts) == len(CONTENTS)
    assert all(len(CONTENTS) / 5 < len(part) for part in parts)


@simulated
async def test_questions_that_cross_by_half_leave_nothing_to_two_and_nothing_to_nobody() -> None:
    group = _Group("a", "b", "c")

    async def later(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await group.fetch(name)

    await asyncio.gather(later("a", 0.0), later("b", 0.7), later("c", 1.3))
    assert sum(len(part) for part in group.fetching.values()) == len(CONTENTS) == len(set.union(*group.fetching.values()))


@simulated
async def test_what_was_fetched_is_held_until_its_commit_can_have_been_seen() -> None:
    group = _Group("a", "b")
    group.claims["a"].fetched([1, 2])
    assert set(await group.fetch("b", {1, 2, 3})) == {1, 2}
    await asyncio.sleep(KEPT_S)
    assert await group.fetch("b", {1, 2}) == {}


@simulated
async def test_a_download_that_ended_without_its_file_is_free_again() -> None:
    group = _Group("a", "b")
    await group.fetch("a", {1})
    group.fetching["a"].clear()
    assert await group.fetch("b", {1}) == {}


@simulated
async def test_contents_that_nobody_asked_for_are_not_heeded() -> None:
    group = _Group("a", "b")
    group.claims["b"].answer = lambda _node, _contents: (7, 8)  # type: ignore[method-assign,assignment]
    assert await group.fetch("a", {8, 9}) == {8: NODES["b"]}
