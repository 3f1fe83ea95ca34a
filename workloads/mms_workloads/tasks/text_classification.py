"""textClassification: a text has one of the labels; the loss is the cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.nn import functional

from mms_workloads.tasks import labels, texts
from mms_workloads.tasks.texts import TextTask
from mms_workloads.train import device

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from mms_workloads.contract import ModelTask, TextClassification
    from mms_workloads.tasks.starting import Start
    from mms_workloads.tasks.task import Batch
    from mms_workloads.tasks.texts import Words


@dataclass(slots=True)
class TextClassifier(TextTask):
    spec: TextClassification
    classes: Sequence[str]
    start: Start
    words: Words
    kind: ModelTask = "textClassification"
    metric: str = "accuracy"
    compared: int = 100

    def build(self, seed: int) -> nn.Module:
        return texts.build(self.kind, self.spec, self.words, len(self.classes), self.start, seed=seed)

    def prepare(self, records: Sequence[Mapping[str, Any]]) -> Batch:
        tokens, mask, _ = self.words.numbers([str(record["input"]) for record in records], self.spec.maxLength)
        return {"tokens": tokens, "mask": mask, "label": labels.numbers(records, self.classes)}

    def loss(self, network: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        del generator
        logits = self.logits(network, batch)
        return functional.cross_entropy(logits, device.moved(batch["label"], logits.device), reduction="sum")

    def measure(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """accuracy: the part of held-out texts whose likeliest label is right; macroF1: the mean of the labels' F1."""
        return labels.accuracy(batches, lambda batch: self.logits(network, batch).argmax(dim=1), len(self.classes))

    def questions(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, NDArray[np.generic]]]:
        """TEXT [1, 1]."""
        return [{"TEXT": np.array([[str(record["input"]).encode()]], dtype=np.object_)} for record in records]
