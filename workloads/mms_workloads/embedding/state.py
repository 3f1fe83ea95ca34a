"""Word vectors on a worker: what all ranks agree on, and a working copy that a round's block is trained in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mms_workloads.embedding.word2vec import Parameters, Touches, no_touches
from mms_workloads.train.state import Agreement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from mms_workloads.sync.leases import Slice
    from mms_workloads.train.state import Tables


@dataclass(slots=True)
class EmbeddingState:
    """base: as of the agreement's step, equal on all ranks. working: base plus what this rank did in the round."""

    base: Parameters
    working: Parameters
    touches: Touches  # of `working` since `base`
    agreement: Agreement = field(default_factory=Agreement)

    @classmethod
    def start(cls, base: Parameters) -> EmbeddingState:
        return cls(base, base.clone(), no_touches(base.vectors.shape[0]))

    @property
    def size(self) -> int:
        return self.base.vectors.shape[0]

    def tables(self) -> Tables:
        return {"vectors": {"parameters": self.base.vectors}, "contexts": {"parameters": self.base.contexts}}

    def adopt(self, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.base.vectors.copy_(tables["vectors"]["parameters"])
        self.base.contexts.copy_(tables["contexts"]["parameters"])
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
        self._clear_touches()
        self.agreement.step += 1

    def reset(self) -> None:
        self.working.vectors.copy_(self.base.vectors)
        self.working.contexts.copy_(self.base.contexts)
        self._clear_touches()

    def next_round(self) -> None:
        """The rows of the working copy that were changed are stale until they are pulled again."""
        self._clear_touches()

    def _clear_touches(self) -> None:
        self.touches.vectors.zero_()
        self.touches.contexts.zero_()
