"""Detectors of Transformers that learn by matching boxes to objects, one to one (DETR, Carion et al., 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mms_workloads.tasks import starting, transformers_library

if TYPE_CHECKING:
    from mms_workloads.contract import ObjectDetection
    from mms_workloads.tasks.starting import Start

KIND = "objectDetection"
KNOWN = ("detr", "yolos")  # others bring losses of several layers, and noise of their own


def build(spec: ObjectDetection, labels: int, start: Start, seed: int) -> Matched:
    """Raises JobError."""
    config = starting.config(start)
    kind = config.get("model_type")
    if kind not in KNOWN:
        raise start.refuse(
            f"its network is of kind {kind}, and {KIND} starts from folders of {' and '.join(KNOWN)}, or from an "
            f"artifact of {KIND}. A folder of another detector is served as it is by model.pretrained of a ModelService"
        )
    channels = config.get("num_channels", 3)
    if channels != spec.channels:
        raise start.refuse(f"its images have {channels} channels: set task.{KIND}.channels to that")
    from mms_workloads import vision  # noqa: F401, PLC0415 - before transformers, which looks for torchvision

    # isort: split
    from transformers import AutoModelForObjectDetection  # noqa: PLC0415

    network: Any
    network, unset = transformers_library.make(AutoModelForObjectDetection, start, seed, num_labels=labels)
    network.config.update({"auxiliary_loss": False})  # of the last layer alone: it is asked of images one by one
    made = Matched(network)
    if start.kind is not None:
        starting.load(made, start, network.class_labels_classifier)
    starting.trained_parts(made, network.class_labels_classifier, start, seed, unset=unset)
    return made


class Matched(nn.Module):
    """pixels [n, C, H, W] -> boxes [n, q, 4] as parts of the width and height, scores [n, q, labels]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network(pixel_values=pixels)
        centres, half = found.pred_boxes[..., :2], found.pred_boxes[..., 2:] / 2
        boxes = torch.cat((centres - half, centres + half), dim=-1).clamp(0, 1)
        return boxes, found.logits.softmax(dim=-1)[..., :-1]  # the last one is "nothing"

    def loss(self, pixels: Tensor, boxes: Tensor, objects: Tensor) -> Tensor:
        """The library's own, of each image by itself; their sum. boxes [n, m, 4] as `forward` has them, objects int64
        [n, m], -1 where there is none.
        """
        found = self.network(pixel_values=pixels)
        logits, told = found.logits.float(), found.pred_boxes.float()
        total: Tensor = logits.new_zeros(())
        for row in range(len(pixels)):
            there = objects[row] >= 0
            near, far = boxes[row][there, :2], boxes[row][there, 2:]
            truth = {"class_labels": objects[row][there], "boxes": torch.cat(((near + far) / 2, far - near), dim=1)}
            one = slice(row, row + 1)
            loss, _, _ = self.network.loss_function(
                logits[one], [truth], logits.device, told[one], self.network.config, None, None
            )
            total = total + loss
        return total
