"""Gradients for DP-SGD: those of single records, clipped, summed, with a rank's share of the noise.

Opacus tells a layer's gradients of single records from its inputs and the gradients of its outputs. It knows the layers
of PyTorch; of a network whose layers do otherwise it can be wrong without a word, so the first round compares with the
gradients of two records by themselves, and refuses what differs.
"""

from __future__ import annotations

import contextlib
import copy
import math
import secrets
import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn

from mms_workloads.contract import Reason
from mms_workloads.store import JobError
from mms_workloads.train import device
from mms_workloads.train.flat import FlatState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from mms_workloads.contract import Differential, Optimizer
    from mms_workloads.tasks.task import Batch

HELD_VALUES = 32 << 20  # of single records' gradients at a time
TOLERANCE = 1e-3  # of a record's gradient, relative to its norm
COMPARED = 2


class PrivateState(FlatState):
    """A state whose gradient is made here. Its buckets travel when the round's is whole, noise included."""

    def __init__(self, network: nn.Module, optimizer: Optimizer, given: Differential, multiplier: float) -> None:
        """Raises JobError: the network mixes records."""
        from opacus import GradSampleModule  # noqa: PLC0415 - loads much
        from opacus.validators import ModuleValidator  # noqa: PLC0415

        if errors := ModuleValidator.validate(network.train(), strict=False):
            raise _unfit(str(errors[0]))
        twin = copy.deepcopy(network)
        super().__init__(network, optimizer)
        for own, other in zip(twin.parameters(), network.parameters(), strict=True):
            own.data = other.data  # the flat vector: the twin has each update
        try:
            self.twin = GradSampleModule(twin, batch_first=True, loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            raise _unfit(str(error)) from error
        self.given, self.multiplier = given, multiplier
        # Not reproducible, so that nobody can take it away again. Mersenne Twister is no cryptographic generator.
        self._random = torch.Generator(self.parameters.device).manual_seed(secrets.randbits(63))
        self._trained = [p for p in network.parameters() if p.requires_grad]
        self._per_record = [p for p in self.twin.parameters() if p.requires_grad]
        self._compared = False

    def add(self, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor], seed: int) -> float:
        """Adds the clipped gradients of the batch's records; returns the loss's sum. Raises JobError."""
        if not self._compared:
            self._compare(batch, loss)
            self._compared = True
        count, total = len(next(iter(batch.values()))), 0.0
        size = max(1, HELD_VALUES // self.parameters.numel())
        for start in range(0, count, size):
            part = {name: tensor[start : start + size] for name, tensor in batch.items()}
            with device.seeded((seed + start) % 2**62):
                total += self._differentiate(part, loss)
            self._clip(min(size, count - start))
        return total

    def add_noise(self, members: int) -> None:
        """A rank's share: those of all members make the noise of the multiplier."""
        deviation = self.multiplier * self.given.maxGradientNorm / math.sqrt(members)
        noise = torch.empty_like(self.gradient).normal_(0, deviation, generator=self._random)
        self.gradient += noise

    def _differentiate(self, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor]) -> float:
        """Leaves grad_sample [records, ...] at the twin's parameters."""
        for p in self._per_record:
            p.grad = p.grad_sample = None
        with _quiet():
            total = loss(self.twin, batch)
            total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    def _clip(self, count: int) -> None:
        squares = torch.zeros(count, device=self.parameters.device)
        found = [_of_records(p, count) for p in self._per_record]
        for each in found:
            if each is not None:
                squares += each.flatten(1).square().sum(1)
        norms = squares.sqrt()
        finite = torch.isfinite(norms)  # a record whose gradient is not counts for nothing
        factors = (self.given.maxGradientNorm / (norms + 1e-6)).clamp(max=1.0)
        for each, p in zip(found, self._trained, strict=True):
            if each is not None:
                assert p.grad is not None  # noqa: S101 - a part of the flat gradient
                p.grad += torch.tensordot(factors[finite], each[finite], dims=1)

    def _compare(self, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor]) -> None:
        few = {name: tensor[:COMPARED] for name, tensor in batch.items()}
        count = len(next(iter(few.values())))
        layers = [module for module in self.twin.modules() if isinstance(module, nn.Dropout)]
        kept = [layer.p for layer in layers]
        try:
            for layer in layers:
                layer.p = 0.0
            self._differentiate(few, loss)
            found = [_of_records(p, count) for p in self._per_record]
            names = [name for name, p in self.twin.named_parameters() if p.requires_grad]
            self.twin.disable_hooks()
            for record in range(count):
                one = {name: tensor[record : record + 1] for name, tensor in few.items()}
                with _quiet():
                    wanted = torch.autograd.grad(loss(self.twin, one), self._per_record, allow_unused=True)
                norm = math.sqrt(sum(float(g.square().sum()) for g in wanted if g is not None))
                for name, each, own in zip(names, found, wanted, strict=True):
                    have = torch.zeros(()) if each is None else each[record]
                    want = torch.zeros_like(have) if own is None else own
                    if float((have - want).norm()) > TOLERANCE * (norm + 1e-6):
                        raise _unfit(f"Opacus cannot tell single records' gradients of {name}")
        finally:
            self.twin.enable_hooks()
            for layer, p in zip(layers, kept, strict=True):
                layer.p = p


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch warns of hooks where no input has a gradient, as images and words have none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def _of_records(p: nn.Parameter, count: int) -> Tensor | None:
    """Raises JobError."""
    each: Tensor | None = getattr(p, "grad_sample", None)
    if each is not None and (not isinstance(each, torch.Tensor) or len(each) != count):
        raise _unfit(f"Opacus cannot tell single records' gradients of a parameter {list(p.shape)}")
    return each


def _unfit(why: str) -> JobError:
    return JobError(
        Reason.JOB_FILE_INVALID,
        f"privacy.differential: {why}. Take architecture Small, or pretrained.method Head, which trains the last layer",
    )
