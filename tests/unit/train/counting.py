"""A learner that learns nothing but how often each sample went into its parameters: parameter i counts sample i.

The optimizer of a ring is CountingState's; that of shards is SGD, which takes gradients from parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mms_workloads import tensors
from mms_workloads.contract import Golden, JobFile
from mms_workloads.sync import compression
from mms_workloads.sync.layout import Table
from mms_workloads.train.communicator import Stats
from mms_workloads.train.flat import TABLE, FlatState
from mms_workloads.train.learner import Evaluation, Place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mms_workloads.pod import Pod
    from mms_workloads.sync.leases import Slice
    from mms_workloads.sync.plan import Plan
    from mms_workloads.train.state import State

BATCH, MIXED = 3, 2
_mean_into = compression.mean_into


def block_size(block: int) -> int:
    """Blocks differ, so that rounds end in the middle of some and go over the ends of others."""
    return 1 + (7 * block) % 11


class Counts(nn.Module):
    def __init__(self, samples: int) -> None:
        super().__init__()
        self.counts = nn.Parameter(torch.zeros(samples))


class CountingState(FlatState):
    def update(self, samples: int, rate: float) -> None:
        del samples, rate
        self.parameters += self.gradient


def _sum_into(out: torch.Tensor, parts: Sequence[Sequence[torch.Tensor]], _: float) -> None:
    _mean_into(out, parts, 1.0)


class CountingLearner:
    """It makes the shard in this process count samples, too, and not take the mean of them."""

    kind = "languageModel"

    def __init__(self, pod: Pod, plan: Plan, _: str) -> None:
        compression.mean_into = _sum_into
        self.job: JobFile = pod.job
        self.trained_on = range(len(plan.blocks()))
        self.starts = [0]
        for block in self.trained_on:
            self.starts.append(self.starts[-1] + block_size(block))

    def start(self) -> FlatState:
        return CountingState(Counts(self.starts[-1]), self.job.optimizer, bucket_bytes=64)

    def size(self, block: int) -> int:
        return block_size(block)

    def tables(self) -> Sequence[Table]:
        return [Table(TABLE, self.starts[-1])]

    def initial(self, table: str, start: int, stop: int) -> Mapping[str, torch.Tensor]:
        return {slot: rows[start:stop] for slot, rows in self.start().tables()[table].items()}

    def rows(self, _: Sequence[Slice]) -> Mapping[str, torch.Tensor]:
        return {}

    def dead(self, _: int) -> str | None:
        return None

    def ready(self, block: int, data_epoch: int) -> None:
        pass

    def batch(self, _: Place) -> int:
        return BATCH

    def mixed(self, _: Place) -> int:
        return MIXED

    def rate(self, *_: object) -> float:
        return 1.0

    def precision(self, _: object) -> None:
        pass

    def compute(self, state: State, slices: Sequence[Slice], _: Place) -> Stats:
        assert isinstance(state, FlatState)
        once = 1 if self.job.syncMode == "Ring" else -1
        for s in slices:
            start = self.starts[s.block]
            state.gradient[start + s.start : start + s.stop] += once
        return Stats(sum(s.stop - s.start for s in slices), 1.0, 0.0)

    def evaluate(self, _: State) -> Evaluation:
        return Evaluation({"none": 0.0}, {})

    def write(self, state: State, _: Evaluation, folder: Path) -> Golden:
        tensors.write(folder / "model.safetensors", {"counts": state.tables()["dense"]["parameters"].numpy()})
        return Golden(cases=[])


make = CountingLearner
