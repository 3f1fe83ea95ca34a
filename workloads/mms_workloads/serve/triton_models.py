"""The models as Triton's python backend calls them: tensors in, embedding.py's answers out.

`triton_python_backend_utils` exists only in the backend's process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mms_workloads.serve import embedding, vectors_file
from mms_workloads.serve.embedding import Question, RequestError, UnknownWordError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mms_workloads.serve.vectors_file import Embedding


class _Model:
    unit = True  # whether the model works on vectors of length 1
    answer: Callable[[Embedding, list[Question]], list[Any]]
    embedding: Embedding
    digest: bytes

    def initialize(self, args: dict[str, str]) -> None:
        """Called once when the model is loaded. What it raises becomes the load's error."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.embedding = vectors_file.load(Path(parameters["artifact_dir"]["string_value"]), unit=self.unit)
        self.digest = parameters["digest"]["string_value"].encode()

    def execute(self, requests: list[Any]) -> list[Any]:
        answers = self.answer(self.embedding, [_question(request) for request in requests])
        return [_refusal(one) if isinstance(one, RequestError) else self.response(self.outputs(one)) for one in answers]

    def outputs(self, answer: Any) -> dict[str, Any]:
        raise NotImplementedError

    def response(self, outputs: dict[str, Any]) -> Any:
        rows = len(next(iter(outputs.values())))
        tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
        tensors.append(pb_utils.Tensor("DIGEST", np.full((rows, 1), self.digest, dtype=np.object_)))
        return pb_utils.InferenceResponse(output_tensors=tensors)


class Vectors(_Model):
    """WORDS or IDS -> VECTORS [n, d]."""

    unit = False
    answer = staticmethod(embedding.vectors)

    def outputs(self, answer: Any) -> dict[str, Any]:
        return {"VECTORS": np.ascontiguousarray(answer)}


class Neighbours(_Model):
    """WORDS or IDS, and K -> WORDS [n, k], SCORES [n, k]."""

    answer = staticmethod(embedding.neighbours)

    def outputs(self, answer: Any) -> dict[str, Any]:
        return {"WORDS": self.embedding.words[answer.ids], "SCORES": answer.scores}


class Analogies(Neighbours):
    """The same of WORDS or IDS [n, 3]."""

    answer = staticmethod(embedding.analogies)


class Similarity(_Model):
    """TEXTS [n, 2] -> SCORES [n, 1]."""

    answer = staticmethod(embedding.similarity)

    def initialize(self, args: dict[str, str]) -> None:
        super().initialize(args)
        embedding.words_in(b"", self.embedding)  # makes the tokenizer's tables, or the first request would wait

    def outputs(self, answer: Any) -> dict[str, Any]:
        return {"SCORES": answer}


def _question(request: Any) -> Question:
    tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in ("WORDS", "IDS", "K", "TEXTS")]
    return Question(*(None if tensor is None else tensor.as_numpy() for tensor in tensors))


def _refusal(error: RequestError) -> Any:
    code = pb_utils.TritonError.NOT_FOUND if isinstance(error, UnknownWordError) else pb_utils.TritonError.INVALID_ARG
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error), code))
