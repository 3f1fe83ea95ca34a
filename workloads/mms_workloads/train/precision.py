"""In which numbers a network's products are computed while it learns: BF16 where that is faster, else float32.

Only the forward pass's products and what they are made of (torch.autocast): parameters, gradients, sums, losses and the
optimizer stay float32, and so do evaluation and what is served.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import nn

    Products = Literal["FP32", "BF16"]

CPUINFO = Path("/proc/cpuinfo")
INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16"})  # without them BF16 is computed by way of float32
# Floating-point operations of products for each byte that goes into or comes out of them, from which on BF16 is faster
# on a CPU (`make bench-training-precision`). Below it converting those bytes takes longer than the products gain.
LEAST_INTENSITY = 64.0
MATRIX, FLOAT_BYTES = 2, 4  # dimensions; of float32


@cache
def supported() -> bool:
    """Whether this process's device has instructions for products in BF16."""
    return device.chosen() != device.CPU or in_cpuinfo(CPUINFO.read_text(encoding="utf-8", errors="replace"))


def in_cpuinfo(text: str) -> bool:
    """text: /proc/cpuinfo of Linux on x86-64."""
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not INSTRUCTIONS.isdisjoint(flags.split())


def intensity(network: nn.Module, forward: Callable[[nn.Module], object]) -> float:
    """Operations per byte, in float32, of all products that modules make in a forward pass; 0 where there are none.

    It says nothing of attention's own products, and does not depend on how many samples there are.
    """
    operations = moved = 0

    def seen(module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        nonlocal operations, moved
        weight, into = getattr(module, "weight", None), next(iter(given), None)
        if not (isinstance(weight, Tensor) and isinstance(into, Tensor) and isinstance(out, Tensor)):
            return
        if into.is_floating_point():
            channels = out.shape[1] if weight.dim() > MATRIX else out.shape[-1]
            operations += 2 * out.numel() * weight.numel() // channels
            moved += FLOAT_BYTES * (into.numel() + out.numel())

    hooks = [module.register_forward_hook(seen) for module in network.modules() if _multiplies(module)]
    try:
        with torch.no_grad(), device.seeded(0):
            forward(network)
    finally:
        for hook in hooks:
            hook.remove()
    return operations / moved if moved else 0.0


def _multiplies(module: nn.Module) -> bool:
    """By a matrix or kernels of its own. A lookup of rows has whole numbers as its input, which tells it apart."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() >= MATRIX and not any(module.children())


class Precision:
    """Of one learner's steps: the same on all workers with such a device, as a step must be whoever computes it."""

    def __init__(self, wanted: Literal["Auto", "FP32", "BF16"], forward: Callable[[nn.Module], object]) -> None:
        """wanted: Auto where all workers have instructions for BF16. forward: passes an example through the network,
        the same one each time.
        """
        self._wanted, self._forward = wanted, forward
        self._chosen: Products | None = None

    def chosen(self, network: nn.Module) -> Products:
        if self._chosen is None:
            self._chosen = self._by_rule(network) if self._wanted == "Auto" else self._wanted
        return self._chosen

    def products(self, network: nn.Module) -> AbstractContextManager[object]:
        """For a forward pass."""
        if self.chosen(network) == "FP32":
            return nullcontext()
        return torch.autocast(device.chosen().type, torch.bfloat16)

    def _by_rule(self, network: nn.Module) -> Products:
        # A GPU's matrix units take BF16 only.
        faster = device.chosen() != device.CPU or intensity(network, self._forward) >= LEAST_INTENSITY
        return "BF16" if faster else "FP32"
