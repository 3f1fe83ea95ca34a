"""objectDetection: one stage without anchors. Each cell of the network's last picture tells a label and a box.

After FCOS (Tian et al., 2019): a cell whose centre is in the middle of an object is to tell it, the smallest where
there are several; labels by focal loss (Lin et al., 2017), boxes by generalised overlap (Rezatofighi et al., 2019).
Or a detector of Transformers, which is asked for its own loss (transformers_detection.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mms_workloads.contract import SPOILS, Pipeline, Statistics
from mms_workloads.tasks import boxes, labels, pictures, starting, transformers_detection, transformers_library
from mms_workloads.tasks.boxes import AveragePrecision
from mms_workloads.tasks.networks import Convolutions
from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mms_workloads.contract import ImageInput, ModelTask, ObjectDetection
    from mms_workloads.tasks.starting import Start
    from mms_workloads.tasks.task import Batch

HALVINGS = 2  # a cell is 4 pixels wide
MIDDLE = 0.5  # of an object's width and height
GAMMA, ALPHA = 2.0, 0.25
RARE = -4.6  # the logit of a hundredth: most cells have no object
LEAST_SCORE, OVERLAP = 0.05, 0.5  # of detections that are measured


class Detector(nn.Module):
    """pixels [n, C, H, W] -> boxes [n, q, 4] as parts of the width and height, scores [n, q, labels]."""

    def __init__(self, inputs: int, labels: int, width: int = 32) -> None:
        super().__init__()
        self.features = Convolutions(inputs, width, HALVINGS, coarse=True)
        channels = self.features.channels
        self.context = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=2, dilation=2), nn.GroupNorm(8, channels), nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=4, dilation=4), nn.GroupNorm(8, channels), nn.SiLU(),
        )  # fmt: skip
        self.labels = nn.Conv2d(channels, labels, 1)
        self.sides = nn.Conv2d(channels, 4, 1)
        nn.init.constant_(self.labels.bias, RARE)  # type: ignore[arg-type]

    def raw(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [n, q, 4], logits [n, q, labels]."""
        x = self.features(pixels)
        x = x + self.context(x)
        high, wide = x.shape[-2:]
        centres = grid(high, wide, x.device)
        # Softplus: a side is never negative, and an eighth of the picture at the beginning.
        sides = functional.softplus(self.sides(x).flatten(2).transpose(1, 2) - 2)
        found = torch.cat((centres - sides[..., :2], centres + sides[..., 2:]), dim=2)
        return found, self.labels(x).flatten(2).transpose(1, 2)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found, logits = self.raw(pixels)
        return found.clamp(0, 1), logits.sigmoid()


def grid(high: int, wide: int, on: torch.device) -> Tensor:
    """The centres of cells, row by row: [high * wide, 2], across and down, 0 to 1."""
    down = (torch.arange(high, device=on) + 0.5) / high
    across = (torch.arange(wide, device=on) + 0.5) / wide
    return torch.stack((across.repeat(high), down.repeat_interleave(wide)), dim=1)


def told(centres: Tensor, truth: Tensor) -> Tensor:
    """The object that each cell is to tell, int64 [q]; -1: none. centres [q, 2], truth [m, 4]."""
    if not len(truth):
        return torch.full((len(centres),), -1, dtype=torch.int64, device=centres.device)
    middle, half = (truth[:, :2] + truth[:, 2:]) / 2, (truth[:, 2:] - truth[:, :2]) / 2
    inside = ((centres[:, None] - middle).abs() <= MIDDLE * half).all(dim=2)
    nearest = (centres[:, None] - middle).square().sum(dim=2).argmin(dim=0)
    inside[nearest, torch.arange(len(truth), device=centres.device)] = True  # each object has one cell at least
    smallest = torch.where(inside, (4 * half.prod(dim=1))[None], torch.inf).min(dim=1)
    return torch.where(smallest.values.isfinite(), smallest.indices, -1)


@dataclass(slots=True)
class ObjectDetector:
    spec: ObjectDetection
    classes: Sequence[str]
    start: Start
    statistics: Statistics | None = None
    kind: ModelTask = "objectDetection"
    metric: str = "meanAveragePrecision"
    compared: int = 100

    def build(self, seed: int) -> nn.Module:
        if transformers_library.is_start(self.start, self.kind):
            return transformers_detection.build(self.spec, len(self.classes), self.start, seed)
        with device.seeded(seed):
            network = Detector(self.spec.channels, len(self.classes))
        if self.start.folder is None:
            return network
        starting.load_own(network, self.start, self.kind, network.labels)
        return starting.trained_parts(network, network.labels, self.start, seed)

    @property
    def input(self) -> ImageInput:
        return pictures.image_input(self.spec, *starting.normalisation(self.start, self.spec))

    def prepare(self, records: Sequence[Mapping[str, Any]]) -> Batch:
        """Boxes float32 [n, m, 4] as parts of the width and height, objects int64 [n, m], -1 where there is none."""
        place = {label: number for number, label in enumerate(self.classes)}
        most = max((len(record["label"]) for record in records), default=0) or 1
        truth = torch.zeros(len(records), most, 4)
        objects = torch.full((len(records), most), -1, dtype=torch.int64)
        for row, record in enumerate(records):
            high, wide = pictures.decoded(record, self.spec.channels).shape[:2]
            scale = torch.tensor([wide, high, wide, high], dtype=torch.float32)
            for number, one in enumerate(record["label"]):
                objects[row, number] = labels.number(place, one["label"])
                truth[row, number] = torch.tensor(one["box"], dtype=torch.float32) / scale
        return {"pixels": pictures.stacked(records, self.input), "boxes": truth, "objects": objects}

    def augment(self, batch: Batch, transform: str, generator: torch.Generator) -> Batch:
        return pictures.augmented(batch, transform, generator)

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        del generator
        on = next(network.parameters()).device
        pixels = pictures.normalised(device.moved(batch["pixels"], on), self.input)
        truth, objects = device.moved(batch["boxes"], on), device.moved(batch["objects"], on)
        if isinstance(network, transformers_detection.Matched):
            return network.loss(pixels, truth, objects)
        found, logits = network.raw(pixels)  # type: ignore[operator]
        centres = _centres(found.shape[1], self.spec, on)
        total: Tensor = logits.new_zeros(())
        for row in range(len(pixels)):
            there = objects[row] >= 0
            cells = told(centres, truth[row][there])
            positive = cells >= 0
            wanted = torch.zeros_like(logits[row], dtype=torch.float32)
            wanted[positive, objects[row][there][cells[positive]]] = 1.0
            count = max(1, int(positive.sum()))
            total = total + focal(logits[row].float(), wanted) / count
            if positive.any():
                fit = boxes.generalised(found[row][positive].float(), truth[row][there][cells[positive]])
                total = total + (1 - fit).sum() / count
        return total

    def measure(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """meanAveragePrecision: over the labels, of held-out images, at an overlap of half; of two boxes of a label
        that overlap by half the better one is kept. meanAveragePrecisionNoise, Occlusion, Resize: of images that are
        spoilt, as for imageClassification.
        """
        kept = list(batches)
        found = {self.metric: self._precision(network, kept)}
        for how in SPOILS:
            found[f"{self.metric}{how}"] = self._precision(network, pictures.spoilt(kept, how))
        return found

    def _precision(self, network: nn.Module, batches: Iterable[Batch]) -> float:
        precision = AveragePrecision(len(self.classes))
        for batch in batches:
            pixels = device.moved(batch["pixels"], next(network.parameters()).device)
            found, scores = (one.float().cpu() for one in network(pixels=pictures.normalised(pixels, self.input)))
            for row in range(len(found)):
                there = batch["objects"][row] >= 0
                best = scores[row].max(dim=1)
                likely = (best.values >= LEAST_SCORE).nonzero()[:, 0]
                mine, score, label = found[row][likely], best.values[likely], best.indices[likely]
                # Boxes of different labels are moved apart, so that they do not push each other out.
                stay = boxes.kept(mine + 2.0 * label[:, None], score, OVERLAP)
                truth = batch["boxes"][row][there], batch["objects"][row][there]
                precision.add(mine[stay], score[stay], label[stay], *truth)
        return precision.mean()

    def exported(self, network: nn.Module) -> tuple[nn.Module, Batch, Mapping[str, Sequence[str]]]:
        example = {"pixels": torch.zeros(2, self.spec.channels, self.spec.height, self.spec.width)}
        return network, example, {"pixels": ("n", "", "", "")}

    def outputs(self) -> Sequence[str]:
        return ["boxes", "scores"]

    def pipeline(self, folder: Path) -> Pipeline:
        del folder
        return Pipeline(task=self.kind, labels=list(self.classes), image=self.input, statistics=self.statistics)

    def questions(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, NDArray[np.generic]]]:
        return pictures.questions(records)


def focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss, summed. logits, wanted [q, labels]."""
    each = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    right = torch.exp(-each)
    weight = ALPHA * wanted + (1 - ALPHA) * (1 - wanted)
    return (weight * (1 - right) ** GAMMA * each).sum()


def _centres(cells: int, spec: ObjectDetection, on: torch.device) -> Tensor:
    high, wide = spec.height, spec.width
    for _ in range(HALVINGS):
        high, wide = -(-high // 2), -(-wide // 2)
    assert high * wide == cells  # noqa: S101 - as Convolutions rounds
    return grid(high, wide, on)
