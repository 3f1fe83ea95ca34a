"""The memory of a shard's tables: versions that can be read while the next one is made, and a way one step back.

Dense tables change as a whole: an update is written into other tensors, so the version before it stays until the next
update (two versions, twice the memory), and a reader may hold a version for as long as it takes to send it. Sparse ones
change in few rows: the rows' old values are kept. Not safe for threads: their owner has the lock.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from mms_workloads.sync.optimizers import Rule

PARAMETERS = "parameters"
PIECE_BYTES = 8 << 20  # that a snapshot copies at a time: about a millisecond under the lock
_CHECKSUM_COLUMNS = 4096


class DenseTable:
    """float32 [n], contiguous, of each slot."""

    def __init__(self, size: int, rule: Rule, *, undo: bool) -> None:
        self._rule, self._undo = rule, undo
        self.size = size
        self.current: dict[str, Tensor] = {name: torch.zeros(size) for name in (PARAMETERS, *rule.slots)}
        self._previous: dict[str, Tensor] | None = None
        self._spare: dict[str, Tensor] = {}
        self._holds: dict[int, list[Tensor]] = {}  # by a tensor's id: the tensor, once for each reader

    def update(self, gradient: Tensor | None, rate: float, step: int) -> None:
        """gradient: the mean over the samples; None changes nothing but counts as a step."""
        before, old = self.current, self._previous or {}
        if gradient is None:
            self._previous = before if self._undo else None
            self._retire(old)
            return
        after = {name: self._target(name, tensor, old.get(name)) for name, tensor in before.items()}
        self._rule.update(before[PARAMETERS], before, gradient, rate, step, into=(after[PARAMETERS], after))
        self.current = after
        self._previous = before if self._undo else None
        self._retire(old)
        self._retire(before)

    def back(self) -> None:
        """Undoes the last update."""
        assert self._previous is not None  # noqa: S101 - the state knows how far it can go
        undone, self.current, self._previous = self.current, self._previous, None
        self._retire(undone)

    def hold(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Tensors of the current version, which do not change before `release`."""
        held = {name: self.current[name] for name in names or self.current}
        for tensor in held.values():
            self._holds.setdefault(id(tensor), []).append(tensor)
        return held

    def release(self, held: Mapping[str, Tensor]) -> None:
        for tensor in held.values():
            readers = self._holds[id(tensor)]
            readers.pop()
            if not readers:
                del self._holds[id(tensor)]
        self._retire(held)

    def _target(self, name: str, current: Tensor, old: Tensor | None) -> Tensor:
        """A tensor that the update may write."""
        if not self._undo and id(current) not in self._holds:
            return current
        if old is not None and old is not current and id(old) not in self._holds:
            return old
        spare = self._spare.pop(name, None)
        return torch.empty_like(current) if spare is None else spare

    def _retire(self, tensors: Mapping[str, Tensor]) -> None:
        """Keeps one tensor of each slot for the next update: fresh memory costs more than the update itself."""
        versions = [self.current, *([self._previous] if self._previous else [])]
        for name, tensor in tensors.items():
            if id(tensor) not in self._holds and all(version[name] is not tensor for version in versions):
                self._spare[name] = tensor


@dataclass(slots=True)
class RowsBefore:
    """Old values of the rows that updates changed, oldest first."""

    patches: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def restore(self, tensor: Tensor) -> None:
        """Latest first, so that the oldest value of a row remains."""
        for rows, values in reversed(self.patches):
            tensor.index_copy_(0, rows, values)


class SparseTable:
    """float32 [rows, columns]: parameters only."""

    def __init__(self, rows: int, columns: int, *, undo: bool) -> None:
        self.current: dict[str, Tensor] = {PARAMETERS: torch.zeros(rows, columns)}
        self._undo = undo
        self._previous: RowsBefore | None = None
        self._watchers: list[RowsBefore] = []

    @property
    def parameters(self) -> Tensor:
        return self.current[PARAMETERS]

    def add(self, rows: Tensor | None, delta: Tensor | None) -> None:
        """rows: int64 [n], each once, numbered in the shard; delta [n, columns]. None counts as a step."""
        self._previous = RowsBefore() if self._undo else None
        if rows is None or delta is None or not rows.numel():
            return
        before = self.parameters.index_select(0, rows) if self._undo or self._watchers else None
        if before is not None:
            for log in (*self._watchers, *([self._previous] if self._previous else [])):
                log.patches.append((rows, before))
        self.parameters.index_add_(0, rows, delta)

    def back(self) -> None:
        """Undoes the last update."""
        assert self._previous is not None  # noqa: S101 - the state knows how far it can go
        for rows, _ in self._previous.patches:
            for watcher in self._watchers:
                watcher.patches.append((rows, self.parameters.index_select(0, rows)))
        self._previous.restore(self.parameters)
        self._previous = None

    def watch(self) -> RowsBefore:
        """A log of what all updates from now on change, until `forget`."""
        self._watchers.append(watcher := RowsBefore())
        return watcher

    def forget(self, watcher: RowsBefore) -> None:
        self._watchers = [w for w in self._watchers if w is not watcher]


class SparseCopy:
    """A table as it is now, copied in pieces while updates go on. Costs the copy and the rows that change meanwhile."""

    def __init__(self, table: SparseTable) -> None:
        self._table, self._log, self._done = table, table.watch(), 0
        self.tensor = torch.empty_like(table.parameters)

    def advance(self) -> bool:
        """Copies the next piece; whether it was the last one."""
        source = self._table.parameters
        rows = max(1, PIECE_BYTES // (4 * source.shape[1]))
        window = slice(self._done, self._done + rows)
        self.tensor[window] = source[window]
        self._done += rows
        if self._done < source.shape[0]:
            return False
        self._log.restore(self.tensor)
        self.close()
        return True

    def close(self) -> None:
        self._table.forget(self._log)


def checksum(tensor: Tensor) -> str:
    """Of a contiguous float32 tensor, for its comparison with a replica's: at the speed of memory.

    Pairs of elements, as integers, form a matrix, whose columns' sums modulo 2^64 are hashed, 64 MiB at a time. Any
    change inside one pair shows; changes that cancel in a column's sum do not, which damaged memory will hardly make.
    """
    flat = tensor.reshape(-1).view(torch.int32)
    even = flat.numel() // (2 * _CHECKSUM_COLUMNS) * 2 * _CHECKSUM_COLUMNS
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    piece = 1 << 24
    for start in range(0, even, piece):
        sums = flat[start : min(start + piece, even)].view(torch.int64).view(-1, _CHECKSUM_COLUMNS).sum(0)
        digest.update(sums.cpu().numpy().tobytes())
    digest.update(flat[even:].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
