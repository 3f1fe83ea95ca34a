"""Which worker trains on which block: a state machine. Blocks are numbered; what they hold is data.blocks' subject.

A lease is (data epoch, block). It is committed together with the round of parameters that contains it, on all ranks;
what was leased and not committed goes back. `applied[b]` counts the data epochs whose pass over block b is part of the
parameters, so the whole progress of a run is one small list, the same on every rank, in checkpoints and in the master.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mms_workloads.contract import Data


@dataclass(frozen=True, slots=True, order=True)
class Lease:
    data_epoch: int
    block: int


def order(sharding: str, seed: int, data_epoch: int, blocks: Sequence[int]) -> list[int]:
    """Sequential: as they are. Random: a permutation that depends on the seed and the data epoch only."""
    ordered = list(blocks)
    if sharding == "Random":
        random.Random(f"{seed}/{data_epoch}").shuffle(ordered)  # noqa: S311 - a shuffle, not a secret
    return ordered


def apply_commit(applied: list[int], leases: Iterable[Lease]) -> None:
    """Counts committed leases, in place. Raises ValueError when one is not the next of its block: to count it twice."""
    for lease in leases:
        if applied[lease.block] != lease.data_epoch:
            raise ValueError(f"{lease} does not follow the {applied[lease.block]} data epochs that its block has")
        applied[lease.block] += 1


@dataclass(slots=True)
class Leases:
    """`blocks`: the numbers to train on, in the data set's order; held-out ones are not among them."""

    sharding: str
    seed: int
    epochs: int
    blocks: Sequence[int]
    applied: list[int]  # by block number
    held: dict[Lease, int] = field(default_factory=dict)  # lease -> rank
    _orders: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def start(cls, data: Data, seed: int, epochs: int, blocks: Sequence[int], count: int) -> Leases:
        return cls(data.sharding, seed, epochs, blocks, [0] * count)

    def take(self, rank: int) -> Lease | None:
        """The next lease: of the lowest data epoch that is not done, else of the one after it for blocks that are free.

        None while all that may be taken is held by others, and at the end.
        """
        if self.done():
            return None
        current = min(self.applied[b] for b in self.blocks)
        for data_epoch in (current, current + 1):
            if data_epoch >= self.epochs:
                return None
            for block in self._order(data_epoch):
                lease = Lease(data_epoch, block)
                if self.applied[block] == data_epoch and lease not in self.held:
                    self.held[lease] = rank
                    return lease
        return None

    def give_back(self, ranks: Iterable[int] | None = None) -> None:
        """Uncommitted leases of the ranks, or of all, can be taken again."""
        gone = None if ranks is None else set(ranks)
        self.held = {} if gone is None else {lease: r for lease, r in self.held.items() if r not in gone}

    def commit(self, leases: Iterable[Lease]) -> None:
        """Raises ValueError when a lease would be applied twice."""
        leases = list(leases)
        apply_commit(self.applied, leases)
        for lease in leases:
            self.held.pop(lease, None)

    def restore(self, applied: Sequence[int]) -> None:
        """Progress as a survivor or a checkpoint holds it; nothing is held any more."""
        if len(applied) != len(self.applied):
            raise ValueError(f"progress of {len(applied)} blocks, the data set has {len(self.applied)}")
        self.applied = list(applied)
        self.held = {}

    def done(self) -> bool:
        return all(self.applied[b] >= self.epochs for b in self.blocks)

    def fraction(self) -> float:
        return fraction(self.applied, self.blocks, self.epochs)

    def _order(self, data_epoch: int) -> list[int]:
        if data_epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e >= data_epoch - 1}
            self._orders[data_epoch] = order(self.sharding, self.seed, data_epoch, self.blocks)
        return self._orders[data_epoch]


def fraction(applied: Sequence[int], blocks: Sequence[int], epochs: int) -> float:
    """How much of the job is done, 0 to 1."""
    return sum(applied[b] for b in blocks) / (len(blocks) * epochs)
