"""Vectors of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.serve.pipelines import writing
from mms_workloads.serve.pipelines.tensors import Signature

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays, Prepared


class Embed:
    """TEXT, or TOKENS and MASK -> VECTORS float32 [n, d]."""

    model = "embed"
    inputs = writing.INPUTS
    outputs = (Signature("VECTORS", "FP32", (-1,)),)
    feeds = ("tokens", "mask")
    results = ("embedding",)
    rows = 64

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.text = writing.Tokens(pipeline, folder)
        self.padded = self.text.padded

    def prepare(self, inputs: Arrays) -> Prepared:
        return self.text.prepare(inputs)

    def finish(self, results: Arrays, asked: Prepared) -> dict[str, NDArray[Any]]:
        del asked
        return {"VECTORS": np.ascontiguousarray(results["embedding"], np.float32)}
