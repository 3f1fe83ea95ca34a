"""What a worker holds: parameters that all ranks agree on, and the progress that is part of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mms_workloads.sync import shard_tables
from mms_workloads.sync.layout import bounds
from mms_workloads.sync.leases import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# By table, then by slot: "parameters" and what the optimizer keeps of each. A tensor is [rows, columns], float32.
Tables = dict[str, dict[str, Tensor]]


@dataclass(slots=True)
class Agreement:
    """Which state it is: `step` rounds are part of it; with `lineage` that names it to the bit."""

    step: int = -1  # none yet: the parameters mean nothing
    lineage: str = ""  # given by the master at the start of each membership epoch
    progress: Progress = field(default_factory=lambda: Progress([]))
    told: float | None = None  # how much of the work is done, where the master says it and the ranks cannot know

    @property
    def holds(self) -> bool:
        return self.step >= 0

    def fraction(self, blocks: Sequence[int], epochs: int) -> float:
        """How much of the work is done, 0 to 1."""
        return self.progress.fraction(blocks, epochs) if self.told is None else self.told

    def copy(self) -> Agreement:
        return Agreement(self.step, self.lineage, self.progress.copy(), self.told)


class State(Protocol):
    """One task's parameters on one worker."""

    agreement: Agreement

    def tables(self) -> Tables:
        """What is agreed, without a copy: changing a tensor changes the state."""

    def adopt(self, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes over what another rank or a checkpoint holds; slots that are missing start at zero."""

    def reset(self) -> None:
        """Drops an unfinished round."""

    def next_round(self) -> None:
        """The round went into the parameters elsewhere: forgets what this rank did in it."""


def take(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Writes what is given into one's own slots; those that are not given start at zero."""
    for name, slot in own.items():
        if name not in given:
            slot.zero_()
        elif slot.data_ptr() != given[name].data_ptr():  # else it was read into its place
            slot.copy_(given[name])


def checksum(state: State) -> int:
    """Of all that is agreed, to the bit; of 48 bits, so that a float64 carries it. Reads the memory once."""
    digest = hashlib.sha256()
    for name, slots in sorted(state.tables().items()):
        for slot, tensor in sorted(slots.items()):
            digest.update(f"{name}/{slot}: {shard_tables.checksum(tensor)}\n".encode())
    return int.from_bytes(digest.digest()[:6])


def agree(state: State, step: int, lineage: str, progress: Progress) -> None:
    """All members of a membership epoch have this state."""
    state.agreement = Agreement(step, lineage, progress.copy())


def part(tables: Tables, index: int, count: int, memory: Tables | None = None) -> Tables:
    """Copies on the CPU of the rows that are part `index` of `count`: of each table a contiguous range, sizes differ by
    one.

    memory: an earlier result, which nobody reads any more. It is written over where its shapes are the same: memory
    that is new to the process takes longer to get than to fill.
    """
    held, copies = memory or {}, Tables()
    for name, slots in tables.items():
        copies[name] = {}
        for slot, tensor in slots.items():
            rows = tensor[slice(*bounds(tensor.shape[0], index, count))]
            copy = held.get(name, {}).get(slot)
            if copy is None or copy.shape != rows.shape or copy.dtype != rows.dtype:
                copy = torch.empty(rows.shape, dtype=rows.dtype)
            copies[name][slot] = copy.copy_(rows)
    return copies
