"""imageGeneration: images of a label, by conditional flow matching.

A network tells the velocity at which noise flows to an image of the label: at time t, 0 to 1, of x = (1 - t) noise + t
image it is to tell image - noise (Lipman et al., 2023, with straight paths). A tenth of the labels is left out while it
learns, so that what is drawn can lean to the label (classifier-free guidance, Ho and Salimans, 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mms_workloads.contract import Flow, Pipeline, Statistics
from mms_workloads.data.schema import class_of
from mms_workloads.tasks import labels, pictures, starting
from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import ImageGeneration, ImageInput, ModelTask
    from mms_workloads.tasks.starting import Start
    from mms_workloads.tasks.task import Batch

UNLABELLED = 0.1
GUIDANCE = 1.5
FREQUENCIES = 32  # that tell the time
MEASURED_SEED = 0


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norm, self.first = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.told = nn.Linear(condition, 2 * outputs)
        self.normed, self.second = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.past = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.told(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.first(functional.silu(self.norm(x)))
        h = self.second(functional.silu(self.normed(h) * (1 + scale) + shift))
        out: Tensor = self.past(x) + h
        return out


class Velocity(nn.Module):
    """x [n, C, H, W], time [n], label int64 [n], `labels` for none -> velocity [n, C, H, W]. A U with one turn."""

    def __init__(self, channels: int, labels: int, hidden: int) -> None:
        super().__init__()
        condition = 2 * hidden
        self.label = nn.Embedding(labels + 1, condition)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.enter = nn.Conv2d(channels, hidden, 3, padding=1)
        self.down = nn.ModuleList([Residual(hidden, hidden, condition), Residual(hidden, 2 * hidden, condition)])
        self.middle = nn.ModuleList([Residual(2 * hidden, 2 * hidden, condition) for _ in range(2)])
        self.up = Residual(3 * hidden, hidden, condition)
        self.leave = nn.Conv2d(hidden, channels, 3, padding=1)
        self.rates: Tensor
        rates = torch.exp(torch.linspace(0, math.log(1000.0), FREQUENCIES))
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        angle = time[:, None] * self.rates
        condition = self.time(torch.cat((angle.sin(), angle.cos()), dim=1)) + self.label(label)
        first = self.down[0](self.enter(x), condition)
        h = functional.avg_pool2d(first, 2, ceil_mode=True)
        h = self.down[1](h, condition)
        for block in self.middle:
            h = block(h, condition)
        h = functional.interpolate(h, size=first.shape[-2:], mode="nearest")
        h = self.up(torch.cat((first, h), dim=1), condition)
        out: Tensor = self.leave(functional.silu(h))
        return out


@dataclass(slots=True)
class ImageGenerator:
    spec: ImageGeneration
    classes: Sequence[str]
    start: Start
    statistics: Statistics | None = None
    kind: ModelTask = "imageGeneration"
    metric: str = "flowLoss"
    compared: int = 0

    def build(self, seed: int) -> nn.Module:
        with device.seeded(seed):
            network = Velocity(self.spec.channels, len(self.classes), self.spec.hidden)
        if self.start.folder is None:
            return network
        unset = starting.load_own(network, self.start, self.kind, network.label)
        return starting.trained_parts(network, network.leave, self.start, seed, unset=unset)

    @property
    def input(self) -> ImageInput:
        return pictures.image_input(self.spec)

    def prepare(self, records: Sequence[Mapping[str, Any]]) -> Batch:
        return {"pixels": pictures.stacked(records, self.input), "label": labels.numbers(records, self.classes)}

    def augment(self, batch: Batch, transform: str, generator: torch.Generator) -> Batch:
        return pictures.augmented(batch, transform, generator)

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        on = next(network.parameters()).device
        count = batch["pixels"].shape[0]
        noise = torch.randn(batch["pixels"].shape, generator=generator)
        time = torch.rand(count, generator=generator)
        hidden = torch.rand(count, generator=generator) < UNLABELLED
        label = torch.where(hidden, len(self.classes), batch["label"])
        image = pictures.normalised(device.moved(batch["pixels"], on), self.input)
        noise, time, label = (device.moved(one, on) for one in (noise, time, label))
        along = time[:, None, None, None]
        told = network((1 - along) * noise + along * image, time, label)
        return functional.mse_loss(told.float(), image - noise, reduction="none").mean(dim=(1, 2, 3)).sum()

    def measure(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """flowLoss: the mean square between the velocity that is told and the true one, over held-out images, at times
        and with noise that are the same in each run: less is better.
        """
        generator, total, count = torch.Generator().manual_seed(MEASURED_SEED), 0.0, 0
        for batch in batches:
            total += float(self.loss(network, batch, generator))
            count += batch["pixels"].shape[0]
        return {self.metric: total / count}

    def exported(self, network: nn.Module) -> tuple[nn.Module, Batch, Mapping[str, Sequence[str]]]:
        spec = self.spec
        example = {
            "x": torch.randn(2, spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(0)),
            "time": torch.tensor([0.0, 0.5]),
            "label": torch.tensor([0, len(self.classes)]),
        }
        return network, example, {"x": ("n", "", "", ""), "time": ("n",), "label": ("n",)}

    def outputs(self) -> Sequence[str]:
        return ["velocity"]

    def pipeline(self, folder: Path) -> Pipeline:
        del folder
        flow = Flow(steps=self.spec.steps, guidance=GUIDANCE)
        return Pipeline(task=self.kind, labels=list(self.classes), image=self.input, flow=flow)

    def questions(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, NDArray[np.generic]]]:
        """An image of each record's label: LABEL, SEED."""
        return [
            {
                "LABEL": np.array([[class_of(record["label"]).encode()]], dtype=np.object_),
                "SEED": np.array([[number]], dtype=np.int64),
            }
            for number, record in enumerate(records)
        ]
