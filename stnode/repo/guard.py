"""Mass-deletion guard: a peer whose disk dropped out must not empty a folder before somebody has looked (design 6, Guards; ADR 0025).

Counts in memory what commits delete: deletions come in many commits, so an hour of them counts together (those of other nodes as far as
files are fewer than they were), and so do those that are queued behind. After a restart the devices' deletions are planned and held again. While some of a folder wait, all its deletions do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
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
    """`held` in the order in which they came, `by_name` the same by what they delete."""

    held: dict[Wish, None] = field(default_factory=dict)
    by_name: dict[str, list[Wish]] = field(default_factory=dict)
    since_s: float = 0.0
    allowed_until_s: float = float("-inf")
    deleted: deque[tuple[float, int]] = field(default_factory=deque)
    files: deque[tuple[float, int]] = field(default_factory=deque)

    def most_files(self, files: int, now: float) -> int:
        """The most files that were seen alive within the hour; what siblings delete shows in that too."""
        while self.files and self.files[0][0] < now - WINDOW_S:
            self.files.popleft()
        while self.files and self.files[-1][1] <= files:
            self.files.pop()
        self.files.append((now, files))
        return self.files[0][1]

    def is_mass(self, removing: int, facts: FolderFacts, now: float) -> bool:
        """Whether that many deletions and those of the last hour are too many together."""
        while self.deleted and self.deleted[0][0] < now - WINDOW_S:
            self.deleted.popleft()
        gone = max(sum(count for _, count in self.deleted), self.most_files(facts.live_files, now) - facts.live_files)
        before = facts.live_files + gone
        return before >= FILES_AT_LEAST and gone + removing > (facts.delete_guard or DEFAULT_SHARE) * before

    def hold(self, wishes: list[Wish]) -> None:
        self.held.update(dict.fromkeys(wishes))
        for wish in wishes:
            for draft in wish.wanted.drafts:
                self.by_name.setdefault(draft.info.name, []).append(wish)

    def take(self) -> list[Wish]:
        held = list(self.held)
        self.held.clear()
        self.by_name.clear()
        return held

    def take_named(self, names: Collection[str]) -> list[Wish]:
        found = dict.fromkeys(wish for name in names for wish in self.by_name.get(name, ()))
        for wish in found:
            del self.held[wish]
            for draft in wish.wanted.drafts:
                rest = [other for other in self.by_name.pop(draft.info.name, ()) if other is not wish]
                if rest:
                    self.by_name[draft.info.name] = rest
        return list(found)


class DeletionGuard:
    """Decides which deletions wait. Times are a monotonic clock's."""

    def __init__(self) -> None:
        self._folders: dict[int, _Folder] = {}

    def holds(self, fid: int, removing: int, facts: FolderFacts, now: float) -> bool:
        """Whether deletions of a folder have to wait, of which `removing` live files would go."""
        folder = self._folders.setdefault(fid, _Folder())
        if now < folder.allowed_until_s or facts.delete_guard < 0:
            return False
        return bool(folder.held) or (removing > 0 and folder.is_mass(removing, facts, now))

    def hold(self, fid: int, wishes: list[Wish], now: float) -> None:
        """Keeps sets back until they are confirmed or their hour is over."""
        folder = self._folders.setdefault(fid, _Folder())
        if not folder.held:
            folder.since_s = now
        folder.hold(wishes)

    def committed(self, fid: int, removed: int, now: float) -> None:
        """A commit of this node has deleted live files."""
        if removed:
            self._folders.setdefault(fid, _Folder()).deleted.append((now, removed))

    def confirm(self, fid: int, now: float) -> list[Wish]:
        """Lets a folder's deletions go on for an hour; those that waited come back."""
        folder = self._folders.setdefault(fid, _Folder())
        folder.allowed_until_s = now + WINDOW_S
        folder.deleted.clear()
        folder.files.clear()
        return folder.take()

    def held(self, fid: int) -> list[Wish]:
        """Sets of a folder that wait."""
        return list(self._folders[fid].held) if fid in self._folders else []

    def take(self, fid: int) -> list[Wish]:
        """Sets of a folder that waited, to be given up."""
        return self._folders[fid].take() if fid in self._folders else []

    def overtaken(self, fid: int, names: Collection[str]) -> list[Wish]:
        """A commit has written these names: sets that wait to delete any of them, to be judged on what is there now."""
        folder = self._folders.get(fid)
        return folder.take_named(names) if folder is not None and folder.held else []

    def due(self, now: float) -> list[Wish]:
        """Sets whose hour is over."""
        over = [fid for fid, folder in self._folders.items() if folder.held and now >= folder.since_s + HOLD_S]
        return [wish for fid in over for wish in self.confirm(fid, now)]

    def answered(self, fid: int, facts: FolderFacts, now: float) -> list[Wish]:
        """Another node has committed a deletion that waited here: if there are more of them by now than its own guard lets through unasked,
        it was told to go on, and so is this one."""
        folder = self._folders.get(fid)
        return self.confirm(fid, now) if folder is not None and folder.held and folder.is_mass(0, facts, now) else []

    def next_due(self) -> float:
        """When `due` will have something; infinity if nothing waits."""
        return min((folder.since_s + HOLD_S for folder in self._folders.values() if folder.held), default=float("inf"))

    def pending(self) -> list[PendingDeletions]:
        """What waits, by folder."""
        return [
            PendingDeletions(fid, sum(wish.deleted_files.get(fid, 0) for wish in folder.held), folder.since_s, folder.since_s + HOLD_S)
            for fid, folder in sorted(self._folders.items())
            if folder.held
        ]

    def take_all(self) -> list[Wish]:
        """Everything that waits, to be given up: the bucket was put back. What was counted and confirmed is of the lost history too."""
        folders, self._folders = self._folders, {}
        return [wish for folder in folders.values() for wish in folder.take()]
