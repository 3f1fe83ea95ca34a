"""Which workers have had which block of the data set, and from where they got what they read. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_RANKS = 1 << 16  # more than there are


@dataclass(slots=True)
class Lending:
    holders: dict[int, set[int]] = field(default_factory=dict)  # by block
    _totals: Counter[str] = field(default_factory=Counter)
    _said: dict[int, Mapping[str, int]] = field(default_factory=dict)  # by rank: what its process has said last

    def leased(self, block: int, rank: int) -> list[int]:
        """Ranks that the block can be had from, the next in the ring first. From now on this one has it, too."""
        having = self.holders.setdefault(block, set())
        found = sorted(having - {rank}, key=lambda other: (other - rank) % MOST_RANKS)
        having.add(rank)
        return found

    def gone(self, rank: int) -> None:
        for having in self.holders.values():
            having.discard(rank)
        self._said.pop(rank, None)

    def fetched(self, rank: int, said: Mapping[str, int]) -> None:
        """Bytes that a worker's process has had from each place since it began."""
        before = self._said.get(rank, {})
        self._totals.update({place: max(0, said[place] - before.get(place, 0)) for place in said})
        self._said[rank] = said

    def report(self) -> dict[str, int]:
        """Of a DataReport."""
        return {f"{place}Bytes": self._totals[name] for place, name in _PLACES.items()}


_PLACES = {"store": "store", "peer": "peers", "volume": "volume"}
