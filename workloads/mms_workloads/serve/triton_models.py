"""The models as Triton's python backend calls them: tensors in, embedding.py's answers out.

`triton_python_backend_utils` exists only in the backend's process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mms_workloads.serve import embedding
from mms_workloads.serve.embedding import Embedding, Question, RequestError, UnknownWordError


class _Model:
    unit: bool  # whether the model works on vectors of length 1
    embedding: Embedding
    digest: bytes

    def initialize(self, args: dict[str, str]) -> None:
        """Called once when the model is loaded. What it raises becomes the load's error."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.embedding = embedding.load(Path(parameters["artifact_dir"]["string_value"]), unit=self.unit)
        self.digest = parameters["digest"]["string_value"].encode()

    def response(self, rows: int, outputs: dict[str, Any]) -> Any:
        tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
        tensors.append(pb_utils.Tensor("DIGEST", np.full((rows, 1), self.digest, dtype=np.object_)))
        return pb_utils.InferenceResponse(output_tensors=tensors)


class Vectors(_Model):
    """WORDS or IDS -> VECTORS [n, d]."""

    unit = False

    def execute(self, requests: list[Any]) -> list[Any]:
        answers = embedding.vectors(self.embedding, [_question(request) for request in requests])
        return [
            _refusal(answer)
            if isinstance(answer, RequestError)
            else self.response(len(answer), {"VECTORS": np.ascontiguousarray(answer)})
            for answer in answers
        ]


class Neighbours(_Model):
    """WORDS or IDS, and K -> WORDS [n, k], SCORES [n, k]."""

    unit = True

    def execute(self, requests: list[Any]) -> list[Any]:
        answers = embedding.neighbours(self.embedding, [_question(request) for request in requests])
        return [
            _refusal(answer)
            if isinstance(answer, RequestError)
            else self.response(len(answer.ids), {"WORDS": self.embedding.words[answer.ids], "SCORES": answer.scores})
            for answer in answers
        ]


def _question(request: Any) -> Question:
    tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in ("WORDS", "IDS", "K")]
    return Question(*(None if tensor is None else tensor.as_numpy() for tensor in tensors))


def _refusal(error: RequestError) -> Any:
    code = pb_utils.TritonError.NOT_FOUND if isinstance(error, UnknownWordError) else pb_utils.TritonError.INVALID_ARG
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error), code))
