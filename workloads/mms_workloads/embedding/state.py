"""Word vectors on a worker: what all ranks agree on, and a working copy that a round's block is trained in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from mms_workloads.embedding import native
from mms_workloads.embedding.parameters import Parameters, Touches, buffer, no_touches
from mms_workloads.train.state import Agreement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray
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
    room: Tensor = field(default_factory=lambda: torch.empty(0))  # for a round's changes

    @classmethod
    def start(cls, parameters: Parameters) -> EmbeddingState:
        base, words = Pair.of(parameters), len(parameters.contexts)
        return cls(base, base.clone(), Pair.of(no_touches(words, len(parameters.vectors) - words)))

    @property
    def size(self) -> int:
        """Rows of vectors."""
        return self.base.vectors.shape[0]

    def training(self) -> Parameters:
        """What a round trains."""
        return self.working.parameters()

    def parameters(self) -> Parameters:
        """What is agreed."""
        return self.base.parameters()

    def matrix(self, rows: int, columns: int) -> NDArray[np.float32]:
        """Room for what is made of all rows."""
        return np.empty((rows, columns), np.float32)

    def tables(self) -> Tables:
        return {"vectors": {"parameters": self.base.vectors}, "contexts": {"parameters": self.base.contexts}}

    def adopt(self, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.base.copy_(Pair(tables["vectors"]["parameters"], tables["contexts"]["parameters"]))
        self.reset()

    def touched(self) -> Tensor:
        """How often each row was: [rows of vectors, then of contexts]."""
        return torch.cat((self.touches.vectors, self.touches.contexts))

    def changes(self, rows: Tensor) -> tuple[Tensor, float]:
        """What `working` has changed [n, d], and the sum of its squares; in the same memory each time.

        rows: ascending, of both matrices, as `touched` has them.
        """
        size, columns = rows.numel(), self.base.vectors.shape[1]
        if not self.room.numel():  # for all rows: what no round needs takes no memory
            self.room = torch.from_numpy(buffer((self.size + len(self.base.contexts)) * columns))
        out, squares = self.room[: size * columns].view(size, columns), 0.0
        for base, working, index, part in self._parts(rows):
            squares += native.changes(base.numpy(), working.numpy(), index.numpy(), out[part].numpy())
        return out, squares

    def commit(self, rows: Tensor, changes: Tensor, scale: Tensor, slices: Iterable[Slice]) -> None:
        """Adds a round's merged changes, each row times its scale [n]. Raises ValueError on samples applied before."""
        self.agreement.progress.commit(slices)
        for base, working, index, part in self._parts(rows):
            arrays = (base.numpy(), working.numpy(), index.numpy(), changes[part].numpy(), scale[part].numpy())
            native.settle(*arrays)
        self.touches.zero_()
        self.agreement.step += 1

    def _parts(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, slice]]:
        """Of each matrix that has rows there: base, working, the numbers of the rows in it, and where they stand."""
        split = int(torch.searchsorted(rows, self.size))
        if split:
            yield self.base.vectors, self.working.vectors, rows[:split], slice(0, split)
        if split < rows.numel():
            yield self.base.contexts, self.working.contexts, rows[split:] - self.size, slice(split, rows.numel())

    def reset(self) -> None:
        self.working.copy_(self.base)
        self.touches.zero_()

    def next_round(self) -> None:
        self.touches.zero_()
