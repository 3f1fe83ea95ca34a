"""Asking a served word embedding through tritonclient: a few functions for the command line, tests and notebooks.

A url is host:port or grpc://host:port for gRPC, http://host:port for HTTP.

    neighbours("localhost:8001", ["gold"], 3)[0].words   # ["silver", ...]
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tritonclient.utils import InferenceServerException

from mms_workloads.serve.repository import MAX_BATCH_SIZE, NEIGHBOURS, VECTORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from numpy.typing import NDArray

TIMEOUT_SECONDS = 30.0

_NOT_READY = ("has no available versions", "is not found", "is not ready", "unknown model")


class QueryError(Exception):
    """A question that got no answer; the message says why and what to do."""


class UnknownWordError(QueryError):
    """The model has no vector for a word."""


class InvalidQueryError(QueryError):
    """The request is not one that the model answers."""


class NotReadyError(QueryError):
    """Triton is there, the model is not."""


class UnreachableError(QueryError):
    """Nothing answers at the address."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    word: str
    words: list[str]  # nearest first
    scores: list[float]  # their cosines
    version: int  # of the artifact that answered
    digest: str


def neighbours(url: str, words: Sequence[str], k: int = 10, timeout: float = TIMEOUT_SECONDS) -> list[Neighbours]:
    """The k nearest words of each word. Raises QueryError."""
    answers = []
    with _client(url, timeout) as ask:
        for part in _parts(words):
            outputs, version = ask(
                NEIGHBOURS,
                {"WORDS": _column(part), "K": np.full((len(part), 1), k, np.int32)},
                ["WORDS", "SCORES", "DIGEST"],
            )
            digest = outputs["DIGEST"].flat[0].decode()
            for word, found, scores in zip(part, outputs["WORDS"], outputs["SCORES"], strict=True):
                answers.append(Neighbours(word, [w.decode() for w in found], scores.tolist(), version, digest))
    return answers


def vectors(url: str, words: Sequence[str], timeout: float = TIMEOUT_SECONDS) -> NDArray[np.float32]:
    """The vectors [n, d] of words. Raises QueryError."""
    with _client(url, timeout) as ask:
        found = [ask(VECTORS, {"WORDS": _column(part)}, ["VECTORS"])[0]["VECTORS"] for part in _parts(words)]
    return np.concatenate(found)


@contextmanager
def _client(url: str, timeout: float) -> Iterator[Any]:
    scheme, separator, address = url.rpartition("://")
    if scheme not in {"", "grpc", "http"} or (separator and not scheme):
        raise InvalidQueryError(f"{url}: give host:port, grpc://host:port or http://host:port")
    # Both modules import much; one of them is needed.
    if scheme == "http":
        from tritonclient import http as module  # noqa: PLC0415

        client = module.InferenceServerClient(address, connection_timeout=timeout, network_timeout=timeout)
        infer = client.infer
    else:
        from tritonclient import grpc as module  # noqa: PLC0415

        client = module.InferenceServerClient(address)
        infer = partial(client.infer, client_timeout=timeout)

    def ask(model: str, inputs: dict[str, NDArray[Any]], outputs: list[str]) -> tuple[dict[str, Any], int]:
        return _ask(module, infer, model, inputs, outputs)

    try:
        yield ask
    except InferenceServerException as error:
        raise _explain(url, error) from error
    except OSError as error:  # of HTTP: refused, reset, no such host, no answer in time
        raise _unreachable(url, error) from error
    finally:
        client.close()


def _ask(
    module: ModuleType, infer: Callable[..., Any], model: str, inputs: dict[str, NDArray[Any]], outputs: list[str]
) -> tuple[dict[str, Any], int]:
    """The outputs by name and the model's version."""
    tensors = []
    for name, array in inputs.items():
        tensor = module.InferInput(name, list(array.shape), "INT32" if array.dtype == np.int32 else "BYTES")
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    result = infer(model, tensors, outputs=[module.InferRequestedOutput(name) for name in outputs])
    response = result.get_response()
    version = response["model_version"] if isinstance(response, dict) else response.model_version
    return {name: result.as_numpy(name) for name in outputs}, int(version)


def _explain(url: str, error: InferenceServerException) -> QueryError:
    message, status = error.message(), str(error.status())
    if "unknown word" in message:
        return UnknownWordError(message)
    if any(text in message for text in _NOT_READY):
        return NotReadyError(f"{url}: the model is not ready: {message}: look at the service's conditions")
    if "UNAVAILABLE" in status or "DEADLINE_EXCEEDED" in status:
        return _unreachable(url, message)
    return InvalidQueryError(message)


def _unreachable(url: str, why: object) -> UnreachableError:
    return UnreachableError(f"{url} does not answer: {why}: check the address, and that the service is ready")


def _parts(words: Sequence[str]) -> Iterator[Sequence[str]]:
    if isinstance(words, str) or not words:
        raise InvalidQueryError("words: give a list of at least one word")
    for start in range(0, len(words), MAX_BATCH_SIZE):
        yield words[start : start + MAX_BATCH_SIZE]


def _column(words: Sequence[str]) -> NDArray[np.object_]:
    column = np.empty((len(words), 1), dtype=np.object_)
    column[:, 0] = [word.encode() for word in words]
    return column
