"""Membership epochs in which nothing moves although all members are heard of: since when, and who is in the way. Pure.

A member that hangs in its computation is found by its own supervisor. What is left is an exchange that never ends, and
pods that reach the master but not each other: workers of a ring, workers and shards, shards.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mms_workloads.sync.absences import Place
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
    parted: int = 0  # pods that were to leave since the last round
    _since: float | None = None  # None: no round is expected
    _inside: int = 0  # rounds of this epoch
    _vain: int = 0
    _unmade: set[frozenset[Place]] = field(default_factory=set)  # connections, by their two ends

    def began(self, now: float) -> None:
        self._since, self._inside, self.longest = now, 0, 0.0

    def round(self, now: float) -> None:
        if self._inside and self._since is not None:
            self.longest = max(self.longest, now - self._since)
        self._since = now
        self._inside += 1
        self._vain = self.parted = 0
        self._unmade.clear()

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

    def missed(self, by: Place, places: Iterable[Place]) -> None:
        """A pod says that it has not reached these."""
        self._unmade |= {frozenset({by, other}) for other in places}

    def failed(self, workers: Sequence[Member], shards: Sequence[Member] = ()) -> Place | None:
        """An epoch was given up, nobody was lost: who is to leave, where that goes on and on.

        It is the end of most of the connections that were not made: a shard that nobody reaches, a worker that reaches
        no shard. Of several it is rather a worker, for the parameters are on the shards; but where one has left in
        vain, a shard that no worker reaches. Then the one that came last.
        """
        inside, self._inside = self._inside, 0
        self.pause()
        joined = {("worker", m.rank): m.joined for m in workers} | {("shard", m.rank): m.joined for m in shards}
        ends = Counter(place for link in self._unmade if link <= joined.keys() for place in link)
        if inside or not ends:
            return None
        self._vain += 1
        if self._vain < VAIN_EPOCHS:
            return None
        given_up = {
            place for place in ends if self.parted and all({place, ("worker", m.rank)} in self._unmade for m in workers)
        }
        found = max(ends, key=lambda one: (ends[one], one in given_up, one[0] == "worker", joined[one]))
        self.lost()
        self.parted += 1
        return found

    def lost(self) -> None:
        """The epoch ended since a member was lost: that explains what its peers saw."""
        self.pause()
        self._vain = 0
        self._unmade.clear()
