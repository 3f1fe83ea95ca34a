"""What workers push to shards and what they are answered, and whether a push fits the shard that it came to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mms_workloads.sync import compression

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mms_workloads.sync.leases import Slice
    from mms_workloads.sync.shard_state import ShardState, Update


@dataclass(frozen=True, slots=True)
class Delta:
    """What a worker changed in the rows that it pulled.

    rows: int64 [n], ascending, each once, numbered in the whole table; values [n, columns] float32 or bfloat16;
    touches [n] float32: how many gradients were added to each row.
    """

    rows: Tensor
    values: Tensor
    touches: Tensor


@dataclass(frozen=True, slots=True)
class Push:
    """A worker's part of a step, for one shard; without gradients and deltas it had no data.

    step: Synchronous: of the parameters that it was computed from; else how many pushes of this epoch the worker made
    before. gradients: by dense table, encoded (compression), the SUM over `samples` samples, of the shard's rows.
    """

    step: int
    rate: float = 0.0
    samples: float = 0.0
    slices: tuple[Slice, ...] = ()
    contribution: Mapping[str, Any] = field(default_factory=dict)  # opaque here: goes to all members
    gradients: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    deltas: Mapping[str, Delta] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """contributions: of all members, in their order; without synchrony each one's latest, None before its first.

    included: whose gradients or deltas went into the parameters.
    """

    step: int  # of the shard
    contributions: tuple[Mapping[str, Any] | None, ...]
    included: tuple[bool, ...]


def flaw(state: ShardState, push: Push) -> str | None:
    """Why the push does not fit the shard's tables."""
    if not (math.isfinite(push.rate) and push.rate >= 0 and math.isfinite(push.samples) and push.samples >= 0):
        return f"a rate of {push.rate} with {push.samples} samples is no step"
    for name, encoded in push.gradients.items():
        if name not in state.dense:
            return f"shard {state.shard} has no dense table {name!r}"
        if wrong := compression.mismatch(encoded, state.dense[name].size):
            return f"gradient of {name}: {wrong}"
    for name, delta in push.deltas.items():
        if name not in state.sparse:
            return f"shard {state.shard} has no sparse table {name!r}"
        if wrong := _flaw_of_delta(delta, *state.window(name), state.layout.table(name).columns):
            return f"delta of {name}: {wrong}"
    return None


def flaw_of_update(state: ShardState, update: Update) -> str | None:
    """Why an update that came from another shard does not fit the tables."""
    for name, gradient in update.gradients.items():
        if name not in state.dense:
            return f"shard {state.shard} has no dense table {name!r}"
        if (gradient.dtype, gradient.shape) != (torch.float32, (state.dense[name].size,)):
            return (
                f"gradient of {name} is {gradient.dtype} {tuple(gradient.shape)}, not {state.dense[name].size} float32"
            )
    for name, delta in update.deltas.items():
        if name not in state.sparse:
            return f"shard {state.shard} has no sparse table {name!r}"
        touches = torch.zeros(delta.rows.numel())
        shape = (*state.window(name), state.layout.table(name).columns)
        if wrong := _flaw_of_delta(Delta(delta.rows, delta.values, touches), *shape):
            return f"delta of {name}: {wrong}"
    return None


def flaw_of_rows(rows: Tensor, start: int, stop: int) -> str | None:
    """Why they are no ascending row numbers of a shard that has rows [start, stop)."""
    if rows.dtype != torch.int64 or rows.dim() != 1:
        return f"row numbers are {rows.dtype} {tuple(rows.shape)}, not int64 [n]"
    if rows.numel() and not (start <= int(rows[0]) and int(rows[-1]) < stop and bool((rows[1:] > rows[:-1]).all())):
        return f"row numbers are not ascending within the shard's rows {start} to {stop}"
    return None


def _flaw_of_delta(delta: Delta, start: int, stop: int, columns: int) -> str | None:
    if wrong := flaw_of_rows(delta.rows, start, stop):
        return wrong
    count = delta.rows.numel()
    if delta.values.shape != (count, columns) or delta.values.dtype not in (torch.float32, torch.bfloat16):
        return (
            f"values are {delta.values.dtype} {tuple(delta.values.shape)}, not float32 or bfloat16 {(count, columns)}"
        )
    if delta.touches.shape != (count,) or delta.touches.dtype != torch.float32:
        return f"touches are {delta.touches.dtype} {tuple(delta.touches.shape)}, not float32 {(count,)}"
    return None
