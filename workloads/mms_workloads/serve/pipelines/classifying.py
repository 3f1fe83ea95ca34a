"""Classification of images, videos and texts: the likeliest labels, and how likely they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.serve.pipelines import pictures, writing
from mms_workloads.serve.pipelines.tensors import Prepared, RequestError, Signature, softmax, strings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays

K = Signature("K", "INT32", (1,), optional=True)


class Classify:
    """IMAGE, VIDEO or TEXT, and K -> LABELS string [n, k], SCORES float32 [n, k], the likeliest first. K absent: 1."""

    model = "classify"
    outputs = (Signature("LABELS", "BYTES", (-1,)), Signature("SCORES", "FP32", (-1,)))
    results = ("logits",)

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.pipeline = pipeline
        self.padded: Mapping[str, int] = {}
        self.text: writing.Tokens | None = None
        if pipeline.task == "textClassification":
            self.text = writing.Tokens(pipeline, folder)
            self.inputs: tuple[Signature, ...] = (*writing.INPUTS, K)
            self.feeds: tuple[str, ...] = ("tokens", "mask")
            self.padded, self.rows = self.text.padded, 64
        elif pipeline.task == "videoUnderstanding":
            given, count = pictures.image_of(pipeline), pipeline.frames or 8
            shape = (count, given.channels, given.height, given.width)
            video = Signature(pictures.VIDEO, "BYTES", (1,), optional=True)
            self.inputs = (video, Signature(pictures.FRAMES, "FP32", shape, optional=True), K)
            self.feeds, self.rows, self.frames = ("frames",), 8, count
        else:
            self.inputs = (*pictures.image_inputs(pictures.image_of(pipeline)), K)
            self.feeds, self.rows = ("pixels",), 32

    def prepare(self, inputs: Arrays) -> Prepared:
        k = asked_for(inputs, len(self.pipeline.labels))
        given = {name: value for name, value in inputs.items() if name != K.name}
        if self.text is not None:
            found = self.text.prepare(given)
        elif self.pipeline.task == "videoUnderstanding":
            found = pictures.prepare_videos(given, self.pipeline, self.frames)
        else:
            found = pictures.prepare_images(given, self.pipeline)
        return Prepared(found.feeds, k, found.odd)

    def finish(self, results: Arrays, asked: Prepared) -> dict[str, NDArray[Any]]:
        likely = likelihoods(results["logits"], self.pipeline)
        best = np.argsort(-likely, axis=1, kind="stable")[:, : asked.about]
        labels = strings([[label_of(self.pipeline, place) for place in row] for row in best.tolist()])
        return {"LABELS": labels, "SCORES": np.take_along_axis(likely, best, axis=1)}


def asked_for(inputs: Arrays, labels: int) -> int:
    """K. Raises RequestError."""
    given = inputs.get(K.name)
    if given is None:
        return 1
    k = int(given.flat[0])
    if k < 1 or (given != k).any():
        raise RequestError("K: it must be 1 or more, and the same in each row")
    return min(k, labels) if labels else k


def likelihoods(logits: NDArray[np.float32], pipeline: Pipeline) -> NDArray[np.float32]:
    logits = np.asarray(logits, np.float32)
    return logits if pipeline.scores == "Probabilities" else softmax(logits)


def label_of(pipeline: Pipeline, place: int) -> str:
    """A network may know more labels than have names."""
    return pipeline.labels[place] if place < len(pipeline.labels) else str(place)
