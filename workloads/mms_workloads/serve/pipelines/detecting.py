"""Detection: where in an image things are, what they are, and how likely."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.media import images
from mms_workloads.serve.pipelines import pictures
from mms_workloads.serve.pipelines.classifying import label_of
from mms_workloads.serve.pipelines.tensors import Signature, strings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays, Prepared

MOST = 1000  # boxes of an image that are looked at, the likeliest
KEPT = 300  # and in the answer


class Detect:
    """IMAGE or PIXELS -> BOXES float32 [n, m, 4], LABELS string [n, m], SCORES float32 [n, m], COUNT int32 [n, 1].

    The likeliest things first; COUNT is how many there are, and the rest of a row is zeros and empty. Boxes are left,
    top, right, bottom, as parts of the image's width and height.
    """

    model = "detect"
    outputs = (
        Signature("BOXES", "FP32", (-1, 4)),
        Signature("LABELS", "BYTES", (-1,)),
        Signature("SCORES", "FP32", (-1,)),
        Signature("COUNT", "INT32", (1,)),
    )
    feeds = ("pixels",)
    padded: Mapping[str, int] = {}
    rows = 16

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        del folder
        self.pipeline = pipeline
        self.inputs = pictures.image_inputs(pictures.image_of(pipeline))
        self.results = ("boxes",) if pipeline.boxes == "YOLO" else ("boxes", "scores")

    def prepare(self, inputs: Arrays) -> Prepared:
        return pictures.prepare_images(inputs, self.pipeline)

    def finish(self, results: Arrays, asked: Prepared) -> dict[str, NDArray[Any]]:
        given = pictures.image_of(self.pipeline)
        boxes, scores = self._parts(results)
        found = []
        for row, (height, width) in enumerate(asked.about):
            kept = suppressed(boxes[row], scores[row], self.pipeline.scoreThreshold, self.pipeline.overlapThreshold)
            places = images.placed(boxes[row][kept[:, 0]], height, width, given)
            found.append((places, kept[:, 1].tolist(), scores[row][kept[:, 0], kept[:, 1]]))
        most = max(len(labels) for _, labels, _ in found)
        answer = {
            "BOXES": np.zeros((len(found), most, 4), np.float32),
            "LABELS": strings([[label_of(self.pipeline, one) for one in labels] for _, labels, _ in found]),
            "SCORES": np.zeros((len(found), most), np.float32),
            "COUNT": np.array([[len(labels)] for _, labels, _ in found], np.int32),
        }
        for row, (places, labels, likely) in enumerate(found):
            answer["BOXES"][row, : len(labels)], answer["SCORES"][row, : len(labels)] = places, likely
        return answer

    def _parts(self, results: Arrays) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Boxes [n, q, 4] as parts of what the network sees, scores [n, q, labels]."""
        if self.pipeline.boxes == "Parts":
            return np.asarray(results["boxes"], np.float32), np.asarray(results["scores"], np.float32)
        raw = np.moveaxis(np.asarray(results["boxes"], np.float32), 1, 2)
        given = pictures.image_of(self.pipeline)
        sides = np.array([given.width, given.height], np.float32)
        centres, half = raw[..., :2] / sides, raw[..., 2:4] / sides / 2
        return np.clip(np.concatenate([centres - half, centres + half], axis=-1), 0, 1), raw[..., 4:]


def suppressed(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], least: float, overlap: float
) -> NDArray[np.int64]:
    """Which boxes [q, 4] stay, the likeliest first: rows of (box, label).

    Each box has its likeliest label. Of two of one label that overlap by more than `overlap` (intersection over union)
    the likelier one stays.
    """
    labels, likely = scores.argmax(axis=1), scores.max(axis=1)
    order = np.argsort(-likely, kind="stable")
    order = order[likely[order] >= least][:MOST]
    kept: list[int] = []
    while len(order) and len(kept) < KEPT:
        first, order = order[0], order[1:]
        kept.append(int(first))
        same = labels[order] == labels[first]
        order = order[~(same & (overlaps(boxes[first], boxes[order]) > overlap))]
    return (
        np.stack([np.array(kept, np.int64), labels[kept].astype(np.int64)], axis=1) if kept else np.zeros((0, 2), int)
    )


def overlaps(one: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of a box [4] with each of [m, 4]."""
    sides = np.clip(np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2]), 0, None)
    common = sides.prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    return np.asarray(common / np.maximum((one[2:] - one[:2]).prod() + areas - common, 1e-12), np.float32)
