"""What a worker holds: parameters that all ranks agree on, a working copy, and the progress that is part of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_workloads.embedding.skipgram import Parameters, Touches, no_touches
from mms_workloads.sync.leases import Lease, apply_commit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(slots=True)
class State:
    """base: as of `step`, equal on all ranks. working: base plus what this rank did in the round so far."""

    base: Parameters
    working: Parameters
    touches: Touches  # of `working` since `base`
    step: int  # -1: none yet, the parameters mean nothing
    lineage: str  # given by the master at the start of each membership epoch; with `step` it names `base` to the bit
    applied: list[int]  # by block: the data epochs whose pass over it is part of `base`

    @classmethod
    def start(cls, base: Parameters, blocks: int) -> State:
        """Of no step yet: `agreed` says when the parameters count."""
        return cls(base, base.clone(), no_touches(base.vectors.shape[0]), -1, "", [0] * blocks)

    def agreed(self, step: int, lineage: str, applied: Sequence[int]) -> None:
        """`base` is what all members of a membership epoch have."""
        self.step, self.lineage, self.applied = step, lineage, list(applied)

    def copy(self) -> State:
        """Of what is agreed: for a checkpoint that is written while training goes on."""
        base = self.base.clone()
        return State(base, base, self.touches, self.step, self.lineage, list(self.applied))

    @property
    def size(self) -> int:
        return self.base.vectors.shape[0]

    def delta_vectors(self, rows: Tensor) -> Tensor:
        return self.working.vectors[rows] - self.base.vectors[rows]

    def delta_contexts(self, rows: Tensor) -> Tensor:
        return self.working.contexts[rows] - self.base.contexts[rows]

    def commit(self, rows: tuple[Tensor, Tensor], deltas: tuple[Tensor, Tensor], leases: Sequence[Lease]) -> None:
        """Adds a round's merged change. rows: of vectors, of contexts. Raises ValueError on a lease applied before."""
        apply_commit(self.applied, leases)
        pairs = ((self.base.vectors, self.working.vectors), (self.base.contexts, self.working.contexts))
        for (base, working), index, delta in zip(pairs, rows, deltas, strict=True):
            base.index_add_(0, index, delta)
            working[index] = base[index]
        self.touches.vectors.zero_()
        self.touches.contexts.zero_()
        self.step += 1

    def adopt(self) -> None:
        """Makes the working copy, complete as another rank's base was received in it, the base."""
        self.base.vectors.copy_(self.working.vectors)
        self.base.contexts.copy_(self.working.contexts)

    def reset(self) -> None:
        """Drops an unfinished round."""
        self.working.vectors.copy_(self.base.vectors)
        self.working.contexts.copy_(self.base.contexts)
        self.touches.vectors.zero_()
        self.touches.contexts.zero_()
