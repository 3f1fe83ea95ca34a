"""Membership epochs in which nothing moves although all members are heard of: since when, and who is in the way. Pure.

A member that hangs in its computation is found by its own supervisor. What is left is an exchange that never ends, and
members that reach the master but not each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mms_workloads.sync.membership import Member

# A round that takes this many times what the longest one took, and at least the floor, will not end; supervisors give a
# computation half of that. Before the first round of an epoch parameters travel, and data may be read from far away.
SLOWEST = 40.0
FLOOR_SECONDS = 600.0
UNKNOWN_SECONDS = 1200.0
LEARNED = 3  # rounds
VAIN_EPOCHS = 2  # one after another, that ended without a round although nobody was lost


@dataclass(slots=True)
class Stalls:
    longest: float = 0.0  # seconds between two rounds of the epoch
    parted: int = 0  # members that were to leave since the last round
    _since: float | None = None  # None: no round is expected
    _inside: int = 0  # rounds of this epoch
    _vain: int = 0
    _unreached: dict[int, set[int]] = field(default_factory=dict)  # by rank: the members that have not reached it

    def began(self, now: float) -> None:
        self._since, self._inside, self.longest = now, 0, 0.0

    def round(self, now: float) -> None:
        if self._inside and self._since is not None:
            self.longest = max(self.longest, now - self._since)
        self._since = now
        self._inside += 1
        self._vain = self.parted = 0
        self._unreached.clear()

    def pause(self) -> None:
        self._since = None

    def verdict(self, now: float) -> str | None:
        """Why the epoch will not go on by itself; None while it may."""
        if self._since is None:
            return None
        known = self._inside >= LEARNED  # others had other members, and rounds of another size
        bound = max(FLOOR_SECONDS, SLOWEST * self.longest) if known else UNKNOWN_SECONDS
        waited = now - self._since
        return f"no round for {waited:.0f} s" if waited > bound else None

    def missed(self, by: int, ranks: Iterable[int]) -> None:
        """A member says that it has not reached these; one that names itself has not reached a shard."""
        for rank in ranks:
            self._unreached.setdefault(rank, set()).add(by)

    def failed(self, members: Sequence[Member]) -> Member | None:
        """An epoch was given up, nobody was lost: who is to leave, where that goes on and on.

        It is the one whom most do not reach, of several the one that came last; none where nobody reaches a shard.
        """
        inside, self._inside = self._inside, 0
        self.pause()
        missed = [m for m in members if m.rank in self._unreached]
        if inside or not missed:
            return None
        self._vain += 1
        if self._vain < VAIN_EPOCHS or all(self._unreached.get(m.rank) == {m.rank} for m in members):
            return None
        found = max(missed, key=lambda m: (len(self._unreached[m.rank]), m.joined))
        self.lost()
        self.parted += 1
        return found

    def lost(self) -> None:
        """The epoch ended since a member was lost: that explains what its peers saw."""
        self.pause()
        self._vain = 0
        self._unreached.clear()
