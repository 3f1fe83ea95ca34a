"""Which worker trains on which block: a state machine. Blocks are numbered; what they hold is data.blocks' subject.

A lease is (data epoch, block). Its samples become part of the parameters slice by slice, each slice together with the
round that contains it, on all ranks; what was leased and not committed goes back and is leased again from where its
committed part ends. `Progress` says how much of the data is part of the parameters: the same on every rank, in
checkpoints and in the master.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mms_workloads.contract import Data


@dataclass(frozen=True, slots=True, order=True)
class Lease:
    data_epoch: int
    block: int
    start: int = 0  # samples of it that are part of the parameters


@dataclass(frozen=True, slots=True, order=True)
class Slice:
    """Samples [start, stop) of a leased block of `size` samples."""

    data_epoch: int
    block: int
    start: int
    stop: int
    size: int


@dataclass(slots=True)
class Progress:
    """applied[b]: data epochs whose pass over block b is whole; partial[b]: (samples, size) of the one under way.

    rate_factor: on the learning rate, lowered by the guard. passed_over: samples that count as seen without being
    trained on, in the order of their blocks.
    """

    applied: list[int]
    partial: dict[int, tuple[int, int]] = field(default_factory=dict)
    rate_factor: float = 1.0
    passed_over: list[Slice] = field(default_factory=list)
    # Blocks that were asked about last, and how many passes over them are whole: there may be very many.
    _whole: tuple[Sequence[int], int] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def none(cls, blocks: int) -> Progress:
        return cls([0] * blocks)

    def commit(self, slices: Iterable[Slice]) -> None:
        """Counts slices, in place. Raises ValueError, and counts none, when one does not follow what its block has."""
        slices = sorted(slices)
        at = {s.block: (self.applied[s.block], self.partial.get(s.block, (0, 0))[0]) for s in slices}
        for s in slices:
            if at[s.block] != (s.data_epoch, s.start):
                raise ValueError(
                    f"{s} does not follow data epoch {at[s.block][0]}, sample {at[s.block][1]} of its block"
                )
            at[s.block] = (s.data_epoch, s.stop) if s.stop < s.size else (s.data_epoch + 1, 0)
        for s in slices:
            if s.stop < s.size:
                self.partial[s.block] = (s.stop, s.size)
            else:
                self.partial.pop(s.block, None)
                self.applied[s.block] += 1
        if self._whole:
            blocks, whole = self._whole
            self._whole = blocks, whole + sum(s.stop >= s.size for s in slices)

    def put(self, block: int, applied: int, partial: tuple[int, int] | None) -> None:
        """What is said of one block, whatever was known of it."""
        self.applied[block], self._whole = applied, None
        if partial is None:
            self.partial.pop(block, None)
        else:
            self.partial[block] = partial

    def start(self, block: int) -> int:
        """Samples of the block's pass under way that are applied."""
        return self.partial[block][0] if block in self.partial else 0

    def part_of(self, block: int) -> float:
        """That is applied of the block in its pass under way, from 0 to less than 1."""
        done, size = self.partial.get(block, (0, 1))
        return done / size

    def fraction(self, blocks: Sequence[int], epochs: int) -> float:
        """How much of the job is done, 0 to 1; exactly 1 at its end. blocks: all that is committed is of these."""
        if self._whole is None or self._whole[0] is not blocks:
            self._whole = blocks, sum(self.applied[b] for b in blocks)
        parts = math.fsum(done / size for done, size in self.partial.values())  # in whatever order they came
        return (self._whole[1] + parts) / (len(blocks) * epochs)

    def copy(self) -> Progress:
        return Progress(list(self.applied), dict(self.partial), self.rate_factor, list(self.passed_over))

    def part(self, data_epoch: int, block: int, start: int, stop: int) -> tuple[int, bool]:
        """Where the samples from `start` that are alike end, at most at `stop`, and whether they are trained on."""
        first, end = (bisect.bisect_left(self.passed_over, Slice(data_epoch, block, at, 0, 0)) for at in (0, stop))
        for s in self.passed_over[first:end]:
            if s.stop > start:
                return (s.start, True) if s.start > start else (min(stop, s.stop), False)
        return stop, True

    def skip(self, blocks: Iterable[int], epochs: int) -> None:
        """Counts all passes over these blocks as made, so that nobody trains on them any more."""
        for block in blocks:
            self.put(block, max(self.applied[block], epochs), None)

    def document(self) -> dict[str, Any]:
        """For messages and files, as JSON."""
        return {
            "applied": list(self.applied),
            "partial": [[b, *part] for b, part in sorted(self.partial.items())],
            "rate_factor": self.rate_factor,
            "passed_over": [[s.data_epoch, s.block, s.start, s.stop, s.size] for s in self.passed_over],
        }

    @classmethod
    def read(cls, document: dict[str, Any]) -> Progress:
        """Raises KeyError, TypeError or ValueError when it is none."""
        partial = {int(b): (int(done), int(size)) for b, done, size in document["partial"]}
        passed_over = [Slice(*map(int, one)) for one in document.get("passed_over", ())]
        return cls([int(a) for a in document["applied"]], partial, float(document.get("rate_factor", 1.0)), passed_over)


def order(sharding: str, seed: int, data_epoch: int, blocks: Sequence[int]) -> list[int]:
    """Sequential: as they are. Random: a permutation that depends on the seed and the data epoch only."""
    ordered = list(blocks)
    if sharding == "Random":
        random.Random(f"{seed}/{data_epoch}").shuffle(ordered)  # noqa: S311 - a shuffle, not a secret
    return ordered


@dataclass(slots=True)
class _Pass:
    """begins: blocks at the beginning of the order that nobody can take, till leases are given back."""

    order: list[int]
    begins: int = 0
    places: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.places = {block: place for place, block in enumerate(self.order)}


@dataclass(slots=True)
class Leases:
    """`blocks`: the numbers to train on, in the data set's order; held-out ones are not among them."""

    sharding: str
    seed: int
    epochs: int
    blocks: Sequence[int]
    progress: Progress
    held: dict[tuple[int, int], int] = field(default_factory=dict)  # (data epoch, block) -> rank
    _passes: dict[int, _Pass] = field(default_factory=dict)  # by data epoch
    _readers: dict[tuple[int, int], int] = field(default_factory=dict)  # (data epoch, block) -> rank that had it last
    _at: Counter[int] = field(default_factory=Counter)  # blocks by whole passes over them

    def __post_init__(self) -> None:
        self._at = Counter(self.progress.applied[b] for b in self.blocks)

    @classmethod
    def start(cls, data: Data, seed: int, epochs: int, blocks: Sequence[int], count: int) -> Leases:
        return cls(data.sharding, seed, epochs, blocks, Progress.none(count))

    def take(self, rank: int, members: int = 2) -> Lease | None:
        """The next lease: of the lowest data epoch that is not done, else of the one after it for blocks that are free.

        A rank goes on with a block that it had when its leases were given back: it has read that already. For the same
        reason it takes what another one had only where there is nothing else. None while all that may be taken is held
        by others, or the rank holds its share of all that is left, and at the end.

        members: ranks that there are. What a single one gets follows from the progress, not from what it has asked for
        before: a resumed run has the same rounds as an undisturbed one. First what has been begun, then what is next in
        the order; None while the pass before is not whole.
        """
        if self.done() or (members > 1 and self._has_its_share(rank, members)):
            return None
        current = min(self._at)
        self._passes = {data_epoch: each for data_epoch, each in self._passes.items() if data_epoch >= current}
        passes = range(current, min(current + 2, self.epochs))
        survives = any(reader != rank for reader in self._readers.values())
        lease = self._in_order(passes) if members == 1 and not survives else self._free_for(rank, passes)
        if lease is None:
            return None
        self.held[lease] = self._readers[lease] = rank
        return Lease(*lease, self.progress.start(lease[1]))

    def _has_its_share(self, rank: int, members: int) -> bool:
        """What nobody holds is no more than the others need to hold as much, in blocks: with more the rank would make
        the last rounds alone. One that holds nothing is never refused.
        """
        held = dict.fromkeys(self.held.values(), 0.0)
        for (_, block), one in self.held.items():
            held[one] += 1 - self.progress.part_of(block)
        mine = held.get(rank, 0.0)
        spare = (1 - self.fraction()) * len(self.blocks) * self.epochs - sum(held.values())
        owed = sum(max(0.0, mine - other) for other in held.values()) + (members - len(held)) * mine
        return mine > 0 and spare <= owed

    def _free_for(self, rank: int, passes: range) -> tuple[int, int] | None:
        for data_epoch in passes:
            place = self._pass(data_epoch).places
            given_back = sorted((one for one in self._readers if one[0] == data_epoch), key=lambda one: place[one[1]])
            read = [one for one in given_back if self._free(*one)]
            if mine := next((one for one in read if self._readers[one] == rank), None):
                return mine
            free = ((data_epoch, block) for block in self._left(data_epoch) if self._free(data_epoch, block))
            if lease := next((one for one in free if one not in self._readers), None) or next(iter(read), None):
                return lease
        return None

    def _in_order(self, passes: range) -> tuple[int, int] | None:
        if begun := [block for block in self.progress.partial if self._free(self.progress.applied[block], block)]:
            return min((self.progress.applied[block], block) for block in begun)
        for data_epoch in passes:
            for block in self._left(data_epoch):
                if self._free(data_epoch, block):
                    return data_epoch, block
                if self.progress.applied[block] < data_epoch:
                    return None
        return None

    def _left(self, data_epoch: int) -> Iterator[int]:
        """Blocks of the pass in order, without those at its beginning that are held or done."""
        this = self._pass(data_epoch)
        order = this.order
        while this.begins < len(order) and self._is_taken(data_epoch, order[this.begins]):
            this.begins += 1
        return itertools.islice(order, this.begins, None)

    def _is_taken(self, data_epoch: int, block: int) -> bool:
        return self.progress.applied[block] > data_epoch or (data_epoch, block) in self.held

    def _free(self, data_epoch: int, block: int) -> bool:
        return self.progress.applied[block] == data_epoch and (data_epoch, block) not in self.held

    def give_back(self, ranks: Iterable[int] | None = None) -> None:
        """Uncommitted leases of the ranks, or of all, can be taken again."""
        gone = None if ranks is None else set(ranks)
        for each in self._passes.values():
            each.begins = 0
        self.held = {} if gone is None else {lease: r for lease, r in self.held.items() if r not in gone}

    def commit(self, slices: Iterable[Slice]) -> None:
        """Raises ValueError when samples would be applied twice."""
        slices = list(slices)
        self.progress.commit(slices)
        for s in slices:
            if s.stop >= s.size:
                self.held.pop((s.data_epoch, s.block), None)
                self._readers.pop((s.data_epoch, s.block), None)
                self._at[s.data_epoch + 1] += 1
                self._at[s.data_epoch] -= 1
                if not self._at[s.data_epoch]:
                    del self._at[s.data_epoch]

    def restore(self, progress: Progress) -> None:
        """Progress as a survivor or a checkpoint holds it; nothing is held any more."""
        if len(progress.applied) != len(self.progress.applied):
            raise ValueError(
                f"progress of {len(progress.applied)} blocks, the data set has {len(self.progress.applied)}"
            )
        self.progress = progress.copy()
        self._at = Counter(self.progress.applied[b] for b in self.blocks)
        self.give_back()

    def done(self) -> bool:
        return min(self._at, default=self.epochs) >= self.epochs

    def fraction(self) -> float:
        return self.progress.fraction(self.blocks, self.epochs)

    def _pass(self, data_epoch: int) -> _Pass:
        if data_epoch not in self._passes:
            self._passes[data_epoch] = _Pass(order(self.sharding, self.seed, data_epoch, self.blocks))
        return self._passes[data_epoch]
