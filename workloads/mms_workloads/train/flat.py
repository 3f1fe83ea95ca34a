"""A model whose parameters all get a gradient in each step: one flat vector, its gradient, and the optimizer's slots.

The module's parameters are views of the flat vector and their gradients views of the flat gradient, so that what is
sent, summed and updated is contiguous memory. The gradient is cut into buckets in the order in which the backward pass
completes them (as in DistributedDataParallel, Li et al., 2020): a bucket travels while the rest is still computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mms_workloads.sync import optimizers
from mms_workloads.train.state import Agreement, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mms_workloads.contract import Optimizer
    from mms_workloads.sync.leases import Slice
    from mms_workloads.train.state import Tables

TABLE = "dense"
PARAMETERS = "parameters"
BUCKET_BYTES = 4 << 20  # large enough that a message's fixed cost is nothing, small enough to overlap


class FlatState:
    """parameters, gradient [P] float32, where the module is. `gradient` holds the sum over the samples of a round, not
    their mean.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.module = module
        self.agreement = Agreement()
        weights = [p for p in module.parameters() if p.requires_grad]
        self.parameters = torch.cat([p.detach().reshape(-1).float() for p in weights])
        self.gradient = torch.zeros_like(self.parameters)
        self.rule = optimizers.of(optimizer)
        self.slots = {name: torch.zeros_like(self.parameters) for name in self.rule.slots}
        # Where parameters that come from elsewhere are written before they count: on the CPU they need no other place.
        on_cpu = self.parameters.device.type == "cpu"
        self.inbox = self.parameters if on_cpu else torch.empty(self.parameters.numel(), pin_memory=True)
        self.buckets: list[slice] = []
        self.on_bucket: Callable[[int], None] = lambda _: None  # bucket number: its gradient is complete
        self._waiting: list[int] = []  # by bucket: parameters without a gradient in this round
        self._sizes: list[int] = []
        self._lay_out(weights, max(1, bucket_bytes // 4))

    def tables(self) -> Tables:
        slots = {PARAMETERS: self.parameters, **self.slots}
        return {TABLE: {name: tensor[:, None] for name, tensor in slots.items()}}

    def adopt(self, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
        take(self.tables()[TABLE], tables[TABLE])
        self.reset()

    def reset(self) -> None:
        self.gradient.zero_()
        self._waiting = list(self._sizes)

    def received(self) -> None:
        """The inbox is full."""
        if self.inbox is not self.parameters:
            self.parameters.copy_(self.inbox)

    def next_round(self) -> None:
        self.reset()

    def update(self, samples: int, rate: float) -> None:
        """One step of the optimizer with the gradient summed over all ranks. samples: of all ranks."""
        self.gradient /= samples
        self.rule.update_(self.parameters, self.slots, self.gradient, rate, self.agreement.step + 1)

    def commit(self, slices: Iterable[Slice]) -> None:
        """The round is part of the state. Raises ValueError on samples applied before."""
        self.agreement.progress.commit(slices)
        self.agreement.step += 1
        self.reset()

    def _lay_out(self, weights: list[nn.Parameter], bucket_size: int) -> None:
        """Makes the parameters views, and buckets of them from the last to the first."""
        starts = [0]
        for p in weights:
            starts.append(starts[-1] + p.numel())
        bucket_of: dict[int, int] = {}
        stop = starts[-1]
        members: list[int] = []
        for i in reversed(range(len(weights))):
            members.append(i)
            if stop - starts[i] >= bucket_size or i == 0:
                bucket_of.update(dict.fromkeys(members, len(self.buckets)))
                self.buckets.append(slice(starts[i], stop))
                self._sizes.append(len(members))
                stop, members = starts[i], []
        for i, p in enumerate(weights):
            window = slice(starts[i], starts[i + 1])
            p.data = self.parameters[window].view_as(p)
            p.grad = self.gradient[window].view_as(p)
            bucket = bucket_of[i]
            p.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._completed(bucket))  # type: ignore[no-untyped-call]
        self.reset()

    def _completed(self, bucket: int) -> None:
        self._waiting[bucket] -= 1
        if self._waiting[bucket] == 0:
            self.on_bucket(bucket)
