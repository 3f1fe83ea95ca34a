"""Recognition of text in the image of a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.serve.pipelines import ctc, pictures
from mms_workloads.serve.pipelines.tensors import Signature, strings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays, Prepared


class Recognise:
    """IMAGE or PIXELS -> TEXT string [n, 1], SCORES float32 [n, 1]."""

    model = "recognise"
    outputs = (Signature("TEXT", "BYTES", (1,)), Signature("SCORES", "FP32", (1,)))
    feeds = ("pixels",)
    results = ("logits",)
    padded: Mapping[str, int] = {}
    rows = 8

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        del folder
        self.pipeline = pipeline
        self.inputs = pictures.image_inputs(pictures.image_of(pipeline))

    def prepare(self, inputs: Arrays) -> Prepared:
        return pictures.prepare_images(inputs, self.pipeline)

    def finish(self, results: Arrays, asked: Prepared) -> dict[str, NDArray[Any]]:
        del asked
        logits = results["logits"]
        texts, scores = ctc.read(logits, [logits.shape[1]] * len(logits), self.pipeline)
        return {"TEXT": strings([[one] for one in texts]), "SCORES": np.array(scores, np.float32)[:, None]}
