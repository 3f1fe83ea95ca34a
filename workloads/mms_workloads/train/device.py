"""Where a worker computes: on its first GPU where the pod has one, else on the CPU.

A process asks only after its supervisor has forked it: CUDA cannot be used on both sides of a fork.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

CPU = torch.device("cpu")


@cache
def chosen() -> torch.device:
    """Of this process."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else CPU


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`; the copy to a GPU goes on while the CPU does other things."""
    return tensor if device == CPU else tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn without a generator of its own, as by layers that drop values, follows from the seed.

    torch.manual_seed would remember a traceback for each call as long as no GPU is used.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    if chosen() != CPU:
        torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
