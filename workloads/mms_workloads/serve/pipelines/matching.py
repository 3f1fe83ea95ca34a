"""How near two texts are, and the texts that are nearest to another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from mms_workloads.contract import Match as How
from mms_workloads.serve.pipelines import writing
from mms_workloads.serve.pipelines.classifying import K, asked_for
from mms_workloads.serve.pipelines.tensors import Prepared, RequestError, Signature, strings

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import Pipeline
    from mms_workloads.serve.pipelines.tensors import Arrays

OTHER = "OTHER"


class Match:
    """TEXT and OTHER -> SCORES float32 [n, 1], and LABELS where labels say whether they match.

    Of a model with texts to search, TEXT and K alone -> SCORES [n, k], TEXTS [n, k], the nearest first. K absent: 1.
    """

    model = "match"
    feeds = ("tokens", "mask")
    results = ("sentence", "calibration")
    rows = 64

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.how, self.labels = pipeline.match or How(), pipeline.labels
        self.text = writing.Tokens(pipeline, folder)
        self.padded = self.text.padded
        self.vectors: NDArray[np.float32] | None = None
        if self.how.vectors and self.how.texts:
            self.vectors = np.ascontiguousarray(load_file(folder / self.how.vectors)["vectors"])
            self.texts: list[str] = json.loads((folder / self.how.texts).read_text(encoding="utf-8"))
            if len(self.texts) != len(self.vectors):
                raise ValueError(f"{self.how.texts}: {len(self.texts)} texts, and {len(self.vectors)} vectors")
        text, other = (Signature(name, "BYTES", (1,)) for name in (writing.TEXT, OTHER))
        scores, labels = Signature("SCORES", "FP32", (-1,)), Signature("LABELS", "BYTES", (-1,))
        self.inputs: tuple[Signature, ...] = (text, other)
        self.outputs: tuple[Signature, ...] = (scores, labels) if self.labels else (scores,)
        if self.vectors is not None:
            self.inputs = text, Signature(OTHER, "BYTES", (1,), optional=True), K
            self.outputs = (*self.outputs, Signature("TEXTS", "BYTES", (-1,)))

    def prepare(self, inputs: Arrays) -> Prepared:
        if OTHER not in inputs:
            assert self.vectors is not None  # noqa: S101 - else OTHER is an input that must be there
            return Prepared(self._read(inputs[writing.TEXT]), asked_for(inputs, len(self.vectors)))
        if K.name in inputs:
            raise RequestError(f"{K.name}: it is of a search, and {OTHER} is given: leave one of them out")
        return Prepared(self._read(np.concatenate((inputs[writing.TEXT], inputs[OTHER]))), inputs[OTHER])

    def _read(self, given: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return dict(self.text.prepare({writing.TEXT: given}).feeds)

    def finish(self, results: Arrays, asked: Prepared) -> dict[str, NDArray[Any]]:
        embedding = np.asarray(results["sentence"], np.float32)
        calibration = np.asarray(results["calibration"], np.float32)
        if isinstance(asked.about, np.ndarray):
            half = len(embedding) // 2
            near = (embedding[:half] * embedding[half:]).sum(axis=1, keepdims=True)
            answer = self._told(near, calibration[:half])
            return answer if self.vectors is None else {**answer, "TEXTS": asked.about}
        assert self.vectors is not None  # noqa: S101 - prepare has seen to it
        near = embedding @ self.vectors.T
        best = np.argsort(-near, axis=1, kind="stable")[:, : asked.about]
        found = strings([[self.texts[place] for place in row] for row in best.tolist()])
        return {**self._told(np.take_along_axis(near, best, axis=1), calibration), "TEXTS": found}

    def _told(self, near: NDArray[np.float32], calibration: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """near: cosines [n, k]."""
        value = calibration[:, :1] * near + calibration[:, 1:]
        if self.how.score == "Probability":
            scores = 1 / (1 + np.exp(-np.clip(value, -80, 80)))
        elif self.how.score == "Number":
            scores = self.how.least + (self.how.most - self.how.least) * np.clip(value, 0, 1)
        else:
            scores = near
        answer: dict[str, NDArray[Any]] = {"SCORES": np.ascontiguousarray(scores, np.float32)}
        if self.labels:
            answer["LABELS"] = strings([[self.labels[int(one > 0)] for one in row] for row in value])
        return answer
