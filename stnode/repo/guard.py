"""Mass-deletion guard: a peer whose disk dropped out must not empty a folder before somebody has looked (design 6, Guards).

Counts in memory what this node's commits delete: deletions come in many commits, so an hour of them counts together.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from stnode.repo.proposal import FolderFacts, Wish

FILES_AT_LEAST: Final = 1000
DEFAULT_SHARE: Final = 0.5
HOLD_S: Final = 3600.0
WINDOW_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class PendingDeletions:
    """Deletions of one folder that wait: `files` of them, since and until when (monotonic seconds)."""

    fid: int
    files: int
    since_s: float
    until_s: float


@dataclass(slots=True)
class _Folder:
    held: list[Wish] = field(default_factory=list)
    since_s: float = 0.0
    allowed_until_s: float = float("-inf")
    deleted: deque[tuple[float, int]] = field(default_factory=deque)


class DeletionGuard:
    """Decides which deletions wait. Times are a monotonic clock's."""

    def __init__(self) -> None:
        self._folders: dict[int, _Folder] = {}

    def holds(self, fid: int, removing: int, facts: FolderFacts, now: float) -> bool:
        """Whether deleting `removing` live files of a folder has to wait."""
        folder = self._folders.setdefault(fid, _Folder())
        if now < folder.allowed_until_s:
            return False
        while folder.deleted and folder.deleted[0][0] < now - WINDOW_S:
            folder.deleted.popleft()
        gone = sum(count for _, count in folder.deleted)
        before = facts.live_files + gone
        return before >= FILES_AT_LEAST and gone + removing > (facts.delete_guard or DEFAULT_SHARE) * before

    def hold(self, fid: int, wishes: list[Wish], now: float) -> None:
        """Keeps sets back until they are confirmed or their hour is over."""
        folder = self._folders.setdefault(fid, _Folder())
        if not folder.held:
            folder.since_s = now
        folder.held += wishes

    def committed(self, fid: int, removed: int, now: float) -> None:
        """A commit of this node has deleted live files."""
        if removed:
            self._folders.setdefault(fid, _Folder()).deleted.append((now, removed))

    def confirm(self, fid: int, now: float) -> list[Wish]:
        """Lets a folder's deletions go on for an hour; those that waited come back."""
        folder = self._folders.setdefault(fid, _Folder())
        folder.allowed_until_s = now + WINDOW_S
        folder.deleted.clear()
        held, folder.held = folder.held, []
        return held

    def due(self, now: float) -> list[Wish]:
        """Sets whose hour is over."""
        over = [fid for fid, folder in self._folders.items() if folder.held and now >= folder.since_s + HOLD_S]
        return [wish for fid in over for wish in self.confirm(fid, now)]

    def next_due(self) -> float:
        """When `due` will have something; infinity if nothing waits."""
        return min((folder.since_s + HOLD_S for folder in self._folders.values() if folder.held), default=float("inf"))

    def pending(self) -> list[PendingDeletions]:
        """What waits, by folder."""
        return [
            PendingDeletions(fid, sum(wish.records for wish in folder.held), folder.since_s, folder.since_s + HOLD_S)
            for fid, folder in sorted(self._folders.items())
            if folder.held
        ]

    def take_all(self) -> list[Wish]:
        """Everything that waits, to be given up."""
        held = [wish for folder in self._folders.values() for wish in folder.held]
        for folder in self._folders.values():
            folder.held = []
        return held
