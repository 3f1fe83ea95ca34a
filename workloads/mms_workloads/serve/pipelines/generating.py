"""Images made from noise, of a label that is asked for."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import numpy as np

from mms_workloads.media import images
from mms_workloads.serve.pipelines import pictures
from mms_workloads.serve.pipelines.tensors import Prepared, RequestError, Signature, not_finite, texts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays

LABEL, SEED, NOISE = "LABEL", "SEED", "NOISE"


class Generate:
    """LABEL string [n, 1], and SEED int64 [n, 1] or NOISE float32 [n, C, H, W] -> IMAGE [n, 1], a PNG file, PIXELS
    float32 [n, C, H, W], 0 to 1, SEED int64 [n, 1].

    The same seed gives the same image. Without one there is another image each time, and the answer's SEED says which.
    """

    model = "generate"
    feeds = ("noise", "label")
    results = ("pixels",)
    padded: Mapping[str, int] = {}
    rows = 16

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        del folder
        given = pictures.image_of(pipeline)
        self.labels = pipeline.labels
        self.shape = given.channels, given.height, given.width
        self.inputs = (
            Signature(LABEL, "BYTES", (1,), optional=not self.labels),
            Signature(SEED, "INT64", (1,), optional=True),
            Signature(NOISE, "FP32", self.shape, optional=True),
        )
        self.outputs = (
            Signature("IMAGE", "BYTES", (1,)),
            Signature("PIXELS", "FP32", self.shape),
            Signature("SEED", "INT64", (1,)),
        )

    def prepare(self, inputs: Arrays) -> Prepared:
        if not inputs:
            raise RequestError(f"give {SEED} or {NOISE}: they say how many images are wanted")
        if SEED in inputs and NOISE in inputs:
            raise RequestError(f"give one of {SEED} and {NOISE}: noise is what a seed is for")
        rows = len(next(iter(inputs.values())))
        labels = np.zeros(rows, np.int64)
        if LABEL in inputs:
            labels[:] = [self._label(one) for one in texts(inputs[LABEL], LABEL)]
        if NOISE in inputs:
            noise = inputs[NOISE]
            return Prepared({"noise": noise, "label": labels}, np.full((rows, 1), -1, np.int64), not_finite(noise))
        seeds = inputs.get(SEED, np.array([[secrets.randbits(62)] for _ in range(rows)], np.int64))
        if seeds.min() < 0:
            raise RequestError(f"{SEED}: {int(seeds.min())}: it must be 0 or more")
        noise = np.stack([noise_of(int(seed), self.shape) for seed in seeds[:, 0]])
        return Prepared({"noise": noise, "label": labels}, seeds)

    def finish(self, results: Arrays, asked: Prepared) -> dict[str, NDArray[Any]]:
        pixels = np.clip(np.asarray(results["pixels"], np.float32), 0, 1)
        found = np.empty((len(pixels), 1), np.object_)
        whole = (np.moveaxis(pixels, 1, -1) * 255).round().astype(np.uint8)
        found[:, 0] = [images.encode(one) for one in whole]
        return {"IMAGE": found, "PIXELS": pixels, "SEED": asked.about}

    def _label(self, name: str) -> int:
        if name not in self.labels:
            raise RequestError(
                f"{LABEL}: {name!r} is none of the model's: {', '.join(self.labels[:20]) or 'it has none'}"
            )
        return self.labels.index(name)


def noise_of(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Of the standard normal distribution, by numpy's Philox."""
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape, np.float32)
