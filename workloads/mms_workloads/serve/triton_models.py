"""The models as Triton's python backend calls them: tensors in, embedding.py's answers out.

`triton_python_backend_utils` exists only in the backend's process.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mms_workloads.serve import comparing, embedding, vectors_file
from mms_workloads.serve.embedding import Question, UnknownWordError
from mms_workloads.serve.failures import Failures
from mms_workloads.serve.frames import SOCKET
from mms_workloads.serve.generations import PIN
from mms_workloads.serve.shelf import NotHeldError, Shelf
from mms_workloads.serve.tap import Tap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mms_workloads.serve.shelf import Held, View
    from mms_workloads.serve.vectors_file import Embedding


class Served:
    """A model whose processes hold artifacts."""

    answer: Callable[[Any, list[Any]], list[Any]]  # of what an artifact holds, and questions; an exception refuses one
    shelf: Shelf
    failures: Failures
    tap: Tap | None = None  # where answers can be compared

    def initialize(self, args: dict[str, str]) -> None:
        """Called once when the model is loaded. What it raises becomes the load's error."""
        config = json.loads(args["model_config"])
        path = Path(config["parameters"]["generations"]["string_value"])
        instance, version = args["model_instance_name"], int(args["model_version"])
        self.failures = Failures(path, instance, version)
        self.shelf = Shelf(path, instance, self.load, version)
        if comparing.comparable({one["name"]: one["data_type"] for one in config.get("output", ())}):
            self.tap = Tap(path.with_name(SOCKET), args["model_name"])

    def finalize(self) -> None:
        if self.tap is not None:
            self.tap.close()
        self.shelf.close()

    def load(self, folder: Path) -> Any:
        raise NotImplementedError

    def question(self, request: Any) -> Any:
        raise NotImplementedError

    def execute(self, requests: list[Any]) -> list[Any]:
        """The whole batch sees one state of the shelf; requests that name an artifact are answered apart."""
        view = self.shelf.view
        responses: list[Any] = [None] * len(requests)
        answered: list[int] = []
        failed = 0
        for held, places in _by_artifact(view, self.shelf.key, requests, responses):
            answers = self.answer(held.content, [self.question(requests[place]) for place in places])
            for place, one in zip(places, answers, strict=True):
                refused = isinstance(one, Exception)
                answered += [] if refused else [place]
                failed += refused and not isinstance(one, ValueError)  # which is the client's matter
                responses[place] = _refusal(one) if refused else _response(self.outputs(one, held.content), held)
        if failed:
            self.failures.add(failed)
        if self.tap is not None and self.tap.wanted:
            self._offer(self.tap, [requests[place] for place in answered])
        return responses

    def _offer(self, tap: Tap, answered: list[Any]) -> None:
        """An input of a client. What the agent asks names an artifact."""
        for request in answered:
            if _pin(request, self.shelf.key) is None:
                tap.offer({one.name(): one.as_numpy() for one in request.inputs()})
                return

    def outputs(self, answer: Any, held: Any) -> dict[str, Any]:
        raise NotImplementedError


class _Model(Served):
    unit = True  # whether the model works on vectors of length 1

    def load(self, folder: Path) -> Embedding:
        return vectors_file.load(folder, unit=self.unit)

    def question(self, request: Any) -> Question:
        return _question(request)


class Vectors(_Model):
    """WORDS or IDS -> VECTORS [n, d]."""

    unit = False
    answer = staticmethod(embedding.vectors)

    def outputs(self, answer: Any, held: Embedding) -> dict[str, Any]:  # noqa: ARG002 - of the other models
        return {"VECTORS": np.ascontiguousarray(answer)}


class Neighbours(_Model):
    """WORDS or IDS, and K -> WORDS [n, k], SCORES [n, k]."""

    answer = staticmethod(embedding.neighbours)

    def outputs(self, answer: Any, held: Embedding) -> dict[str, Any]:
        return {"WORDS": held.words[answer.ids], "SCORES": answer.scores}


class Analogies(Neighbours):
    """The same of WORDS or IDS [n, 3]."""

    answer = staticmethod(embedding.analogies)


class Similarity(_Model):
    """TEXTS [n, 2] -> SCORES [n, 1]."""

    answer = staticmethod(embedding.similarity)

    def load(self, folder: Path) -> Embedding:
        loaded = super().load(folder)
        embedding.words_in(b"", loaded)  # makes the tokenizer's tables, or the first request would wait
        return loaded

    def outputs(self, answer: Any, held: Embedding) -> dict[str, Any]:  # noqa: ARG002 - of the other models
        return {"SCORES": answer}


def _by_artifact(view: View, key: str, requests: list[Any], responses: list[Any]) -> Iterable[tuple[Held, list[int]]]:
    """The places of the requests that each artifact is to answer. Those that none can have their refusal already."""
    places: dict[str, list[int]] = {}
    chosen: dict[str, Held] = {}
    for place, request in enumerate(requests):
        try:
            held = view.pick(_pin(request, key))
        except NotHeldError as error:
            refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.UNAVAILABLE)
            responses[place] = pb_utils.InferenceResponse(output_tensors=[], error=refusal)
            continue
        chosen[held.digest] = held
        places.setdefault(held.digest, []).append(place)
    return [(chosen[digest], found) for digest, found in places.items()]


def _pin(request: Any, key: str) -> str | None:
    """The digest that the request names, if it has the key: who has not is answered as everybody."""
    given = request.parameters()
    pin = json.loads(given).get(PIN) if given and PIN in given else None
    shown, _, digest = pin.partition(" ") if isinstance(pin, str) else ("", "", "")
    return digest if secrets.compare_digest(shown, key) else None


def _response(outputs: dict[str, Any], held: Held) -> Any:
    rows = len(next(iter(outputs.values())))
    tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
    tensors.append(pb_utils.Tensor("DIGEST", np.full((rows, 1), held.digest.encode(), dtype=np.object_)))
    tensors.append(pb_utils.Tensor("VERSION", np.full((rows, 1), held.version, dtype=np.int64)))
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _question(request: Any) -> Question:
    tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in ("WORDS", "IDS", "K", "TEXTS")]
    return Question(*(None if tensor is None else tensor.as_numpy() for tensor in tensors))


def _refusal(error: Exception) -> Any:
    """A ValueError is the client's matter, any other exception the model's."""
    code = pb_utils.TritonError.INTERNAL
    if isinstance(error, ValueError):
        unknown = isinstance(error, UnknownWordError)
        code = pb_utils.TritonError.NOT_FOUND if unknown else pb_utils.TritonError.INVALID_ARG
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error), code))
