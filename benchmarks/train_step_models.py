"""What both sides of train_step.py train: models, data and losses, the same in every process."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from mms_workloads.contract import LanguageModel, Optimizer
from mms_workloads.language.learner import cross_entropy
from mms_workloads.language.transformer import Transformer

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 1
TEXT_BYTES = 8 << 20
IMAGES, CLASSES, DIRECTIONS, SIDE = 4096, 10, 5, 32
NOISE = 0.5
WIDTHS = (64, 128, 256)
GROUPS = 8


@dataclass(frozen=True, slots=True)
class Workload:
    """loss(module, samples): summed over the samples. samples(step): those of all ranks, by number."""

    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tensor], Tensor]  # of samples by number, int64 [B]
    samples: int  # that there are
    global_batch: int
    optimizer: Optimizer

    def share(self, step: int, rank: int, ranks: int) -> Tensor:
        """Numbers of a rank's samples in a step, int64 [global_batch / ranks]."""
        rng = torch.Generator().manual_seed(SEED + step)
        chosen = torch.randint(self.samples, (self.global_batch,), generator=rng)
        return chosen.chunk(ranks)[rank]


def workload(name: str) -> Workload:
    return {"transformer": _transformer, "cnn": _cnn}[name]()


def _transformer() -> Workload:
    """Bytes of Python's standard library, in windows."""
    task = LanguageModel(dimensions=256, layers=4, heads=4, contextLength=128)
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    text = torch.frombuffer(bytearray(b"".join(f.read_bytes() for f in files)[:TEXT_BYTES]), dtype=torch.uint8)
    windows = text.unfold(0, task.contextLength + 1, task.contextLength)

    def loss(module: nn.Module, numbers: Tensor) -> Tensor:
        return cross_entropy(module, windows[numbers].long()) / task.contextLength

    optimizer = Optimizer(name="AdamW", learningRate=1e-3, weightDecay=0.01)
    return Workload(lambda: Transformer(task, SEED), loss, windows.shape[0], 32, optimizer)


def _cnn() -> Workload:
    """Images of a class are waves of one direction and length, at any phase, in any colour and under noise."""
    rng = torch.Generator().manual_seed(SEED)
    labels = torch.randint(CLASSES, (IMAGES,), generator=rng)
    angle, length = math.pi * (labels % DIRECTIONS) / DIRECTIONS, 4.0 + 4.0 * (labels // DIRECTIONS)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    along = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y
    phase = 2 * math.pi * torch.rand(IMAGES, 1, 1, generator=rng)
    waves = (2 * math.pi * along / length[:, None, None] + phase).sin()
    colours = torch.randn(IMAGES, 3, 1, 1, generator=rng)
    images = colours * waves[:, None] + NOISE * torch.randn(IMAGES, 3, SIDE, SIDE, generator=rng)

    def make() -> nn.Module:
        torch.manual_seed(SEED)
        return ResNet()

    def loss(module: nn.Module, numbers: Tensor) -> Tensor:
        return functional.cross_entropy(module(images[numbers]), labels[numbers], reduction="sum")

    optimizer = Optimizer(name="AdamW", learningRate=2e-4, weightDecay=0.01)
    return Workload(make, loss, IMAGES, 64, optimizer)


class ResNet(nn.Module):
    """A residual network for small images (He et al., 2016), a block per width: float32 [B, 3, 32, 32] -> [B, 10].

    Its norm is over groups of channels (Wu and He, 2018), which does not depend on how a batch is dealt to ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        pairs = zip((WIDTHS[0], *WIDTHS[:-1]), WIDTHS, strict=True)
        self.blocks = nn.Sequential(*(Residual(before, after) for before, after in pairs))
        self.norm = nn.GroupNorm(GROUPS, WIDTHS[-1])
        self.head = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.blocks(self.stem(images))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Residual(nn.Module):
    """Halves the image where the width grows."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.norms = nn.ModuleList([nn.GroupNorm(GROUPS, before), nn.GroupNorm(GROUPS, after)])
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.short = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(functional.relu(self.norms[0](x)))
        y = self.second(functional.relu(self.norms[1](y)))
        out: Tensor = self.short(x) + y
        return out
