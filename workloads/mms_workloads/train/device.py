"""Where a worker computes: on its first GPU where the pod has one, else on the CPU.

A process asks only after its supervisor has forked it: CUDA cannot be used on both sides of a fork.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

CPU = torch.device("cpu")


@cache
def chosen() -> torch.device:
    """Of this process."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else CPU


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`; the copy to a GPU goes on while the CPU does other things."""
    return tensor if device == CPU else tensor.pin_memory().to(device, non_blocking=True)


def precision(device: torch.device) -> AbstractContextManager[object]:
    """The products of a forward pass in BF16 on a GPU, whose matrix units take that; parameters, gradients and
    sums stay float32. On the CPU all is float32.
    """
    return nullcontext() if device == CPU else torch.autocast(device.type, torch.bfloat16)
