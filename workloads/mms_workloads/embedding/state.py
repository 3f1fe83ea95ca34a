"""Word vectors on a worker: what all ranks agree on, and a working copy that a round's block is trained in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from mms_workloads.embedding.parameters import Parameters, Touches, no_touches
from mms_workloads.train.state import Agreement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from mms_workloads.sync.leases import Slice
    from mms_workloads.train.state import Tables


@dataclass(frozen=True, slots=True)
class Pair:
    """The same memory as arrays that the kernels change, for the communicators."""

    vectors: Tensor
    contexts: Tensor

    @classmethod
    def of(cls, arrays: Parameters | Touches) -> Pair:
        return cls(torch.from_numpy(arrays.vectors), torch.from_numpy(arrays.contexts))

    def parameters(self) -> Parameters:
        return Parameters(self.vectors.numpy(), self.contexts.numpy())

    def touches(self) -> Touches:
        return Touches(self.vectors.numpy(), self.contexts.numpy())

    def clone(self) -> Pair:
        return Pair.of(self.parameters().copy())

    def copy_(self, other: Pair) -> None:
        self.vectors.copy_(other.vectors)
        self.contexts.copy_(other.contexts)

    def zero_(self) -> None:
        self.vectors.zero_()
        self.contexts.zero_()


@dataclass(slots=True)
class EmbeddingState:
    """base: as of the agreement's step, equal on all ranks. working: base plus what this rank did in the round."""

    base: Pair
    working: Pair
    touches: Pair  # [V] of `working` since `base`
    agreement: Agreement = field(default_factory=Agreement)

    @classmethod
    def start(cls, parameters: Parameters) -> EmbeddingState:
        base, words = Pair.of(parameters), len(parameters.contexts)
        return cls(base, base.clone(), Pair.of(no_touches(words, len(parameters.vectors) - words)))

    @property
    def size(self) -> int:
        return self.base.vectors.shape[0]

    def tables(self) -> Tables:
        return {"vectors": {"parameters": self.base.vectors}, "contexts": {"parameters": self.base.contexts}}

    def adopt(self, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.base.copy_(Pair(tables["vectors"]["parameters"], tables["contexts"]["parameters"]))
        self.reset()

    def delta_vectors(self, rows: Tensor) -> Tensor:
        return self.working.vectors[rows] - self.base.vectors[rows]

    def delta_contexts(self, rows: Tensor) -> Tensor:
        return self.working.contexts[rows] - self.base.contexts[rows]

    def commit(self, rows: tuple[Tensor, Tensor], deltas: tuple[Tensor, Tensor], slices: Iterable[Slice]) -> None:
        """Adds a round's merged change. rows: of vectors, of contexts. Raises ValueError on samples applied before."""
        self.agreement.progress.commit(slices)
        pairs = ((self.base.vectors, self.working.vectors), (self.base.contexts, self.working.contexts))
        for (base, working), index, delta in zip(pairs, rows, deltas, strict=True):
            base.index_add_(0, index, delta)
            working[index] = base[index]
        self.touches.zero_()
        self.agreement.step += 1

    def reset(self) -> None:
        self.working.copy_(self.base)
        self.touches.zero_()

    def next_round(self) -> None:
        """The rows of the working copy that were changed are stale until they are pulled again."""
        self.touches.zero_()
