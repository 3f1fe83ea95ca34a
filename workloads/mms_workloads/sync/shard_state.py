"""What a parameter shard holds: its rows of each table, the data that is part of them, and a way one step back.

Synchronous shards may be one step apart when a worker dies between them; `rollback_to` makes them equal again to the
bit. A replica is the same state on another shard, made by the same updates in the same order: it is equal to the bit
on processors of one vector instruction set (torch picks its kernels by it; ATEN_CPU_CAPABILITY sets it).
Not safe for threads: the server has the lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.sync.shard_tables import PARAMETERS, DenseTable, SparseCopy, SparseTable, checksum

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from mms_workloads.sync.layout import Layout
    from mms_workloads.sync.optimizers import Rule


@dataclass(frozen=True, slots=True)
class Rows:
    """Of a sparse table. rows: int64 [n], ascending, each once, numbered in the whole table; values [n, columns]."""

    rows: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Update:
    """One step, decided: what a shard applies and its replica too.

    gradients: by dense table, the mean over the samples, float32, flat, of the shard's rows; deltas: by sparse table,
    what is added. A table that is missing does not change.
    """

    step: int  # that the state has afterwards
    rate: float
    slices: tuple[Slice, ...] = ()
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    deltas: Mapping[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lent:
    """Tensors [rows, columns] that do not change before `release`."""

    tensors: dict[str, Tensor]
    table: DenseTable | None = None
    held: Mapping[str, Tensor] = field(default_factory=dict)

    def release(self) -> None:
        """Once, with the state's lock."""
        if self.table:
            self.table.release(self.held)


class ShardState:
    """step: updates that are part of it, -1 while its rows are being filled."""

    def __init__(self, layout: Layout, shard: int, rule: Rule, *, undo: bool) -> None:
        """undo: whether it can go back one step, at the price of a second version of the dense tables."""
        self.layout, self.shard = layout, shard
        self.step = -1
        self.progress = Progress([])
        self._undo = undo
        self._progress_before: dict[int, tuple[int, tuple[int, int] | None]] | None = None
        self._filled: dict[str, list[tuple[int, int]]] = {table.name: [] for table in layout.tables}
        self.dense: dict[str, DenseTable] = {}
        self.sparse: dict[str, SparseTable] = {}
        for table in layout.tables:
            start, stop = self.window(table.name)
            if table.sparse:
                self.sparse[table.name] = SparseTable(stop - start, table.columns, undo=undo)
            else:
                self.dense[table.name] = DenseTable((stop - start) * table.columns, rule, undo=undo)

    def window(self, name: str) -> tuple[int, int]:
        """The rows [start, stop) that it holds. Raises KeyError."""
        return self.layout.bounds(name, self.shard)

    # ------------------------------------------------------------------ filling

    def part(self, name: str, start: int, stop: int) -> dict[str, Tensor]:
        """Views [rows, columns] of all slots, without a copy. Raises KeyError, ValueError on rows of other shards."""
        first, last = self.window(name)
        if not first <= start <= stop <= last:
            raise ValueError(
                f"rows {start} to {stop} of {name} are not on shard {self.shard}, which has {first} to {last}"
            )
        columns = self.layout.table(name).columns
        slots = self.dense[name].current if name in self.dense else self.sparse[name].current
        return {
            slot: tensor.view(last - first, columns)[start - first : stop - first] for slot, tensor in slots.items()
        }

    def filled(self, name: str, start: int, stop: int) -> None:
        """The rows' parameters are in place; slots that nobody gave are zero."""
        self._filled[name].append((start, stop))

    def gaps(self) -> list[str]:
        """What is missing before `begin`."""
        missing = []
        for name, ranges in self._filled.items():
            at, last = self.window(name)
            for start, stop in sorted(ranges):
                if start > at:
                    missing.append(f"{name} {at}-{start}")
                at = max(at, stop)
            if at < last:
                missing.append(f"{name} {at}-{last}")
        return missing

    def begin(self, step: int, progress: Progress) -> None:
        """Its rows are those of that step. Raises ValueError when some are missing."""
        if missing := self.gaps():
            raise ValueError(f"shard {self.shard} has not got {', '.join(missing)}: fetch or put these rows first")
        self.step, self.progress = step, progress.copy()
        self._progress_before = None

    # ------------------------------------------------------------------ steps

    def apply(self, update: Update) -> None:
        """Raises ValueError, and changes nothing, when it does not follow."""
        if update.step != self.step + 1:
            raise ValueError(f"update {update.step} does not follow step {self.step} of shard {self.shard}")
        blocks = {s.block for s in update.slices}
        before = {b: (self.progress.applied[b], self.progress.partial.get(b)) for b in blocks}
        self.progress.commit(update.slices)
        self._progress_before = before if self._undo else None
        for name, dense in self.dense.items():
            dense.update(update.gradients.get(name), update.rate, update.step)
        for name, sparse in self.sparse.items():
            delta = update.deltas.get(name)
            if delta is None:
                sparse.add(None, None)
            else:
                sparse.add(delta.rows - self.window(name)[0], delta.values)
        self.step = update.step

    def rollback_to(self, step: int) -> None:
        """Undoes the last step if it is after `step`. Raises ValueError when that is not enough."""
        if step == self.step:
            return
        if step != self.step - 1 or self._progress_before is None:
            raise ValueError(
                f"shard {self.shard} is at step {self.step} and cannot go back to {step}: restore the last checkpoint"
            )
        for table in self._tables().values():
            table.back()
        for block, (applied, partial) in self._progress_before.items():
            self.progress.put(block, applied, partial)
        self._progress_before = None
        self.step = step

    @property
    def can_go_back(self) -> bool:
        return self._progress_before is not None

    # ------------------------------------------------------------------ reading

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """A copy of the rows' parameters [n, columns]. rows: int64 [n], numbered in the whole table."""
        start, stop = self.window(name)
        return self.part(name, start, stop)[PARAMETERS].index_select(0, rows - start)

    def lend(self, name: str, start: int, stop: int, slots: Iterable[str] | None = None) -> Lent:
        """Rows of the slots (all of them: None) as they are now. Raises KeyError, ValueError as `part`."""
        part = self.part(name, start, stop)
        chosen = {slot: part[slot] for slot in slots or part}
        if name in self.sparse:
            return Lent({slot: tensor.clone() for slot, tensor in chosen.items()})
        table = self.dense[name]
        return Lent(chosen, table, table.hold(chosen))

    def checksums(self) -> dict[str, str]:
        """By table and slot: equal to the replica's unless memory was damaged."""
        tables = self._tables()
        return {f"{name}.{slot}": checksum(t) for name in sorted(tables) for slot, t in tables[name].current.items()}

    def snapshot(self) -> Snapshot:
        return Snapshot(self)

    def _tables(self) -> dict[str, DenseTable | SparseTable]:
        return {**self.dense, **self.sparse}


class Snapshot:
    """The state as it is now, while steps go on: complete when `advance` has said so; `release` when it is written.

    Dense tables are not copied: the version is held, and costs its memory once more until it is released. Sparse ones
    are copied in pieces.
    """

    def __init__(self, state: ShardState) -> None:
        self.step, self.progress = state.step, state.progress.copy()
        self.layout, self.shard = state.layout, state.shard
        self._dense = [(name, table, table.hold()) for name, table in state.dense.items()]
        self._copies = {name: SparseCopy(table) for name, table in state.sparse.items()}
        self._pending = list(self._copies.values())

    def advance(self) -> bool:
        """Copies a piece; whether all is there. With the state's lock."""
        if self._pending and self._pending[-1].advance():
            self._pending.pop()
        return not self._pending

    def tables(self) -> dict[str, dict[str, Tensor]]:
        """By table and slot: [rows, columns]."""
        held = {
            name: {slot: t.view(-1, self.layout.table(name).columns) for slot, t in slots.items()}
            for name, _, slots in self._dense
        }
        return held | {name: {PARAMETERS: copy.tensor} for name, copy in self._copies.items()}

    def release(self) -> None:
        """With the state's lock. The dense tensors change from now on."""
        for _, table, held in self._dense:
            table.release(held)
        for copy in self._pending:
            copy.close()
        self._dense, self._pending = [], []
