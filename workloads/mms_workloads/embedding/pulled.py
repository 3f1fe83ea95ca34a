"""Word vectors on a worker whose parameters are on shards: there is memory for the rows of a round, not for all.

A table may have more rows than the worker could hold. What is kept of each is where it is, how often it was touched,
and of its word what the vocabulary says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from mms_workloads import memory
from mms_workloads.embedding import native, parameters
from mms_workloads.embedding.parameters import Parameters, Places
from mms_workloads.embedding.state import Pair
from mms_workloads.train.state import Agreement

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from mms_workloads.sync.layout import Table
    from mms_workloads.train.state import Tables

SPARE = 0.25  # of the rows of a round, for a later one that needs more


@dataclass(slots=True)
class HeldRows:
    """Some rows of a table [rows, d]: as the shards have them, and as the round leaves them."""

    rows: int
    columns: int
    places: Tensor  # int32 [rows]
    numbers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # of those that are held
    base: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    working: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @classmethod
    def of(cls, rows: int, columns: int) -> HeldRows:
        none = _none(columns)
        return cls(rows, columns, torch.zeros(rows, dtype=torch.int32), base=none, working=none)

    def hold(self, numbers: Tensor) -> None:
        """Room for these rows (int64 [n], ascending) instead of the ones before. Raises JobError OutOfMemory."""
        count = numbers.numel()
        if count > len(self.base):
            self.base = self.working = _none(self.columns)  # what was there goes first: a view of it would hold it
            room = min(self.rows, int(count * (1 + SPARE)))
            parameters.room(2 * room, self.columns, f"a round that needs {count:,} rows of word vectors")
            self.base, self.working = (torch.from_numpy(parameters.matrix(room, self.columns)) for _ in range(2))
        self.places[self.numbers] = 0
        self.places[numbers] = torch.arange(count, dtype=torch.int32)
        self.numbers = numbers

    def put(self, part: slice, values: Tensor) -> None:
        """The parameters of numbers[part]."""
        self.base[part] = values
        self.working[part] = values


def _none(columns: int) -> Tensor:
    return torch.from_numpy(parameters.matrix(0, columns))


@dataclass(slots=True)
class PulledState:
    """working: the rows of a round, and what this rank did to them. whole: all rows, where they were gathered."""

    held: dict[str, HeldRows]
    touches: Pair  # [rows of the table] of `working`
    agreement: Agreement = field(default_factory=Agreement)
    whole: Parameters | None = None
    folder: Path | None = None  # where they were
    _room: Tensor = field(default_factory=lambda: torch.empty(0))  # for a round's changes

    @classmethod
    def of(cls, vectors: Table, contexts: Table) -> PulledState:
        """Raises JobError OutOfMemory where there is no room for what is kept of all rows."""
        buckets = vectors.rows - contexts.rows
        what = f"what a worker keeps of {contexts.rows:,} words and {buckets:,} buckets, whose rows shards hold,"
        remedy = "lower maxVocabulary or subwords.buckets, or raise the workers' memory limit"
        memory.need(parameters.ROW_BYTES * (vectors.rows + contexts.rows), what, remedy)
        held = {table.name: HeldRows.of(table.rows, table.columns) for table in (vectors, contexts)}
        touches = parameters.no_touches(contexts.rows, buckets)
        return cls(held, Pair.of(touches))

    @property
    def size(self) -> int:
        """Rows of vectors."""
        return self.held["vectors"].rows

    def training(self) -> Parameters:
        """What a round trains: of the rows that are held."""
        vectors, contexts = self.held["vectors"], self.held["contexts"]
        places = Places(vectors.places.numpy(), contexts.places.numpy())
        return Parameters(vectors.working.numpy(), contexts.working.numpy(), places)

    def parameters(self) -> Parameters:
        """All of them, once they were gathered."""
        assert self.whole is not None  # noqa: S101 - the worker gathers before it exports
        return self.whole

    def gather(self, folder: Path) -> Tables:
        """Memory for all rows, which the caller fills: files without a name in `folder`, so that the kernel can write
        them out where there is less memory than that. Raises OSError.
        """
        arrays = {name: parameters.on_disk(one.rows, one.columns, folder) for name, one in self.held.items()}
        self.whole, self.folder = Parameters(arrays["vectors"], arrays["contexts"]), folder
        return {name: {"parameters": torch.from_numpy(array)} for name, array in arrays.items()}

    def matrix(self, rows: int, columns: int) -> NDArray[np.float32]:
        """Room for what is made of all rows: as they are, in a file. Raises OSError."""
        assert self.folder is not None  # noqa: S101 - see `parameters`
        return parameters.on_disk(rows, columns, self.folder)

    def touched(self) -> Tensor:
        """How often each row was: [rows of vectors, then of contexts]."""
        return torch.cat((self.touches.vectors, self.touches.contexts))

    def changes(self, rows: Tensor) -> tuple[Tensor, float]:
        """What `working` has changed [n, d], and the sum of its squares; in the same memory each time.

        rows: ascending, of both tables, as `touched` has them.
        """
        size, columns = rows.numel(), self.held["vectors"].columns
        if self._room.numel() < size * columns:
            self._room = torch.empty(0)
            self._room = torch.from_numpy(parameters.buffer(int(size * (1 + SPARE)) * columns))
        out, squares = self._room[: size * columns].view(size, columns), 0.0
        for held, numbers, part in self._parts(rows):
            at = held.places[numbers].long()
            squares += native.changes(held.base.numpy(), held.working.numpy(), at.numpy(), out[part].numpy())
        return out, squares

    def _parts(self, rows: Tensor) -> Iterator[tuple[HeldRows, Tensor, slice]]:
        split = int(torch.searchsorted(rows, self.size))
        yield self.held["vectors"], rows[:split], slice(0, split)
        yield self.held["contexts"], rows[split:] - self.size, slice(split, rows.numel())

    def tables(self) -> Tables:
        """Nothing: what is agreed is on the shards, which also save it."""
        return {}

    def adopt(self, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Nothing is taken over: rows come with the rounds that need them."""

    def reset(self) -> None:
        self.touches.zero_()

    def next_round(self) -> None:
        self.touches.zero_()
