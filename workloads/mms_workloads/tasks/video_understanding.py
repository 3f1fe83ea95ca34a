"""videoUnderstanding: a video has one of the labels. Each frame is seen by one network, a transformer looks at all;
or a network of Transformers (transformers_video.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mms_workloads.contract import Pipeline, Reason, Statistics
from mms_workloads.media import images, video
from mms_workloads.media.images import MediaError
from mms_workloads.store import JobError
from mms_workloads.tasks import labels, pictures, starting, transformers_library, transformers_video
from mms_workloads.tasks.networks import Convolutions, EncoderBlock, halvings, places
from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import ImageInput, ModelTask, VideoUnderstanding
    from mms_workloads.tasks.starting import Start
    from mms_workloads.tasks.task import Batch

WIDTH, LAYERS, HEADS, DROPOUT = 16, 2, 4, 0.1


class VideoClassifier(nn.Module):
    """frames [n, T, C, H, W] -> logits [n, labels]. Where things are in a frame is kept: two by two parts of it."""

    def __init__(self, spec: VideoUnderstanding, labels: int) -> None:
        super().__init__()
        self.features = Convolutions(spec.channels, WIDTH, halvings(spec.height, spec.width), coarse=True)
        size = self.features.channels
        self.seen = nn.Linear(4 * size, size)
        self.blocks = nn.ModuleList(EncoderBlock(size, HEADS, DROPOUT) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, labels)
        self.register_buffer("places", places(spec.frames, size), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        count, length = frames.shape[:2]
        seen = self.features(frames.flatten(0, 1))
        top, bottom = _halves(seen, 2)
        parts = [part.mean(dim=(2, 3)) for half in (top, bottom) for part in _halves(half, 3)]
        x = self.seen(torch.cat(parts, dim=1)).unflatten(0, (count, length)) + self.places
        everything = torch.ones(count, length, dtype=torch.bool, device=x.device)
        for block in self.blocks:
            x = block(x, everything)
        out: Tensor = self.head(self.norm(x).mean(dim=1))
        return out


def _halves(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    middle = x.shape[dim] // 2
    return x.narrow(dim, 0, max(1, middle)), x.narrow(dim, middle, x.shape[dim] - middle)


@dataclass(slots=True)
class VideoLabeller:
    spec: VideoUnderstanding
    classes: Sequence[str]
    start: Start
    statistics: Statistics | None = None
    kind: ModelTask = "videoUnderstanding"
    metric: str = "accuracy"
    compared: int = 100

    def build(self, seed: int) -> nn.Module:
        if transformers_library.is_start(self.start, self.kind):
            return transformers_video.build(self.spec, len(self.classes), self.start, seed)
        with device.seeded(seed):
            network = VideoClassifier(self.spec, len(self.classes))
        if self.start.folder is None:
            return network
        starting.load_own(network, self.start, self.kind, network.head)
        return starting.trained_parts(network, network.head, self.start, seed)

    @property
    def input(self) -> ImageInput:
        return pictures.image_input(self.spec, *starting.normalisation(self.start, self.spec))

    def prepare(self, records: Sequence[Mapping[str, Any]]) -> Batch:
        """Frames evenly spaced, uint8."""
        spec, given = self.spec, self.input
        frames = np.empty((len(records), spec.frames, spec.channels, spec.height, spec.width), np.uint8)
        for row, record in enumerate(records):
            try:
                found = video.frames(record["input"], spec.frames, spec.channels)
                frames[row] = np.stack([images.resized(one, given) for one in found]).transpose(0, 3, 1, 2)
            except MediaError as error:
                raise JobError(Reason.DATA_UNREADABLE, f"{record.get('source', 'a record')}: {error}") from error
        return {"pixels": torch.from_numpy(frames), "label": labels.numbers(records, self.classes)}

    def augment(self, batch: Batch, transform: str, generator: torch.Generator) -> Batch:
        """All frames of a video alike."""
        return pictures.augmented(batch, transform, generator)

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        del generator
        logits = self._logits(network, batch)
        return functional.cross_entropy(logits, device.moved(batch["label"], logits.device), reduction="sum")

    def measure(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """accuracy: the part of held-out videos whose likeliest label is right; macroF1: the mean of the labels' F1."""
        return labels.accuracy(batches, lambda batch: self._logits(network, batch).argmax(dim=1), len(self.classes))

    def _logits(self, network: nn.Module, batch: Batch) -> Tensor:
        pixels = device.moved(batch["pixels"], next(network.parameters()).device)
        logits: Tensor = network(frames=pictures.normalised(pixels, self.input)).float()
        return logits

    def exported(self, network: nn.Module) -> tuple[nn.Module, Batch, Mapping[str, Sequence[str]]]:
        spec = self.spec
        example = {"frames": torch.zeros(2, spec.frames, spec.channels, spec.height, spec.width)}
        return network, example, {"frames": ("n", "", "", "", "")}

    def outputs(self) -> Sequence[str]:
        return ["logits"]

    def pipeline(self, folder: Path) -> Pipeline:
        del folder
        return Pipeline(
            task=self.kind,
            labels=list(self.classes),
            image=self.input,
            frames=self.spec.frames,
            statistics=self.statistics,
        )

    def questions(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, NDArray[np.generic]]]:
        """VIDEO [1, 1]: an animated image, or frames as .npy."""
        return [{"VIDEO": np.array([[video.encoded(record["input"])]], dtype=np.object_)} for record in records]
