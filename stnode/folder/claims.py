"""Who of the store's nodes fetches a content of a folder: siblings ask each other before they fetch (ADR 0036).

    about to fetch these -> every connected sibling is asked: which of them do you fetch?
        fetched there, or stored there a moment ago -> left to it, as what rendezvous gives to others (`sharing.py`)
        asked here for the same at this moment      -> the first by rendezvous has it
        no answer within half a second              -> fetched here

Rendezvous alone decides by whom heartbeats reach, and by which devices this node has heard of a version. Two devices that know nothing of
each other, each at a node of its own, offer the same content without either node hearing of the other's offer. An answer is a hint as
everything here: content that two nodes fetch costs bytes, never correctness.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Protocol

from stnode.clock import Env
from stnode.repo.election import first

KEPT_S: Final = 30.0
"""So long what was fetched counts as fetched here: the commit is under way, and has to be seen by who asks."""
_KEPT: Final = 20_000


class Asker(Protocol):
    """What is wanted of `node.siblings`."""

    async def who_fetches(self, folder_key: str, contents: Collection[int]) -> Mapping[bytes, Collection[int]]:
        """Nodes that fetch some of the contents, and which; returns soon, whoever answers."""


class Claims:
    """One per folder runner, on the event loop. `fetching` gives the contents of the running downloads. A content is the XXH3-64 of a file's
    block hashes."""

    def __init__(self, env: Env, asker: Asker, me: bytes, folder_key: str, fetching: Callable[[], Iterable[int]]) -> None:
        self._env = env
        self._asker = asker
        self._me = me
        self._folder_key = folder_key
        self._fetching = fetching
        self._asking: frozenset[int] = frozenset()
        self._fetched: deque[tuple[float, int]] = deque(maxlen=_KEPT)

    async def ask(self, contents: Collection[int]) -> dict[int, bytes]:
        """The nodes that fetch some of these, by content. The caller begins to fetch the rest before it awaits anything else, and asks one
        question at a time."""
        if not contents:
            return {}
        self._asking = frozenset(contents)
        try:
            answers = await self._asker.who_fetches(self._folder_key, self._asking)
        finally:
            self._asking = frozenset()
        holders: dict[int, dict[bytes, float]] = defaultdict(dict)
        for node, held in answers.items():
            for content in held:
                holders[content][node] = 1.0
        return {content: self._first(content, nodes) for content, nodes in holders.items() if content in contents}

    def answer(self, node: bytes, contents: Collection[int]) -> tuple[int, ...]:
        """Which of the contents that another node asks for are this one's to fetch."""
        self._forget_old()
        mine = {*self._fetching(), *(content for _, content in self._fetched)}
        both = {node: 1.0, self._me: 1.0}
        return tuple(
            content for content in contents if content in mine or (content in self._asking and self._first(content, both) == self._me)
        )

    def fetched(self, contents: Iterable[int]) -> None:
        """These downloads are over, their records on the way."""
        now = self._env.clock.monotonic()
        self._fetched.extend((now, content) for content in contents)
        self._forget_old()

    def _forget_old(self) -> None:
        before = self._env.clock.monotonic() - KEPT_S
        while self._fetched and self._fetched[0][0] < before:
            self._fetched.popleft()

    @staticmethod
    def _first(content: int, nodes: Mapping[bytes, float]) -> bytes:
        found = first(content.to_bytes(8, "big"), nodes)
        assert found is not None
        return found
