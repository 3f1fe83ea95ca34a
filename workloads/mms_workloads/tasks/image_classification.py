"""imageClassification: an image has one of the labels; the loss is the cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from mms_workloads.contract import SPOILS, Pipeline, Statistics
from mms_workloads.tasks import labels, pictures, starting
from mms_workloads.tasks.networks import SmallClassifier
from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mms_workloads.contract import ImageClassification, ImageInput, ModelTask
    from mms_workloads.tasks.starting import Start
    from mms_workloads.tasks.task import Batch


@dataclass(slots=True)
class ImageClassifier:
    spec: ImageClassification
    classes: Sequence[str]
    start: Start
    statistics: Statistics | None = None
    kind: ModelTask = "imageClassification"
    metric: str = "accuracy"
    compared: int = 100

    def build(self, seed: int) -> nn.Module:
        spec = self.spec
        if self.start.folder is None and spec.architecture == "Small":
            with device.seeded(seed):
                return SmallClassifier(spec.channels, spec.height, spec.width, len(self.classes))
        from mms_workloads.tasks import image_networks  # noqa: PLC0415 - torchvision takes a second to import

        return image_networks.build(self.start, spec, len(self.classes), seed)

    @property
    def input(self) -> ImageInput:
        return pictures.image_input(self.spec, *starting.normalisation(self.start, self.spec))

    def prepare(self, records: Sequence[Mapping[str, Any]]) -> Batch:
        return {"pixels": pictures.stacked(records, self.input), "label": labels.numbers(records, self.classes)}

    def augment(self, batch: Batch, transform: str, generator: torch.Generator) -> Batch:
        return pictures.augmented(batch, transform, generator)

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        del generator
        logits, own = self._logits(network, batch), batch["label"]
        if "other" not in batch:
            return functional.cross_entropy(logits, device.moved(own, logits.device), reduction="sum")
        # Mixed with another image: the loss is mixed alike (Zhang et al., 2018).
        part = device.moved(batch["part"], logits.device)
        first = functional.cross_entropy(logits, device.moved(own, logits.device), reduction="none")
        second = functional.cross_entropy(logits, device.moved(batch["other"], logits.device), reduction="none")
        return (part * first + (1 - part) * second).sum()

    def measure(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """accuracy: the part of held-out images whose likeliest label is right; macroF1: the mean of the labels' F1.
        accuracyNoise: with normal noise of a tenth of the range; accuracyOcclusion: with a quarter of the image grey;
        accuracyResize: with half of the detail.
        """
        kept = list(batches)

        def predict(batch: Batch) -> Tensor:
            return self._logits(network, batch).argmax(dim=1)

        found = labels.accuracy(kept, predict, len(self.classes))
        for how in SPOILS:
            spoilt = labels.accuracy(pictures.spoilt(kept, how), predict, len(self.classes))
            found[f"accuracy{how}"] = spoilt["accuracy"]
        return found

    def _logits(self, network: nn.Module, batch: Batch) -> Tensor:
        pixels = device.moved(batch["pixels"], next(network.parameters()).device)
        logits: Tensor = network(pixels=pictures.normalised(pixels, self.input)).float()
        return logits

    def exported(self, network: nn.Module) -> tuple[nn.Module, Batch, Mapping[str, Sequence[str]]]:
        example = {"pixels": torch.zeros(2, self.spec.channels, self.spec.height, self.spec.width)}
        return network, example, {"pixels": ("n", "", "", "")}

    def outputs(self) -> Sequence[str]:
        return ["logits"]

    def pipeline(self, folder: Path) -> Pipeline:
        del folder
        return Pipeline(task=self.kind, labels=list(self.classes), image=self.input, statistics=self.statistics)

    def questions(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, NDArray[np.generic]]]:
        return pictures.questions(records)
