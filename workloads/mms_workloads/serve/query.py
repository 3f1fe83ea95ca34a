"""Asking a served word embedding through tritonclient: a few functions for the command line, tests and notebooks.

A url is host:port or grpc://host:port for gRPC, http://host:port for HTTP; grpcs:// and https:// are over TLS. What a
service wants of its clients is an Access: a key, and the authority that has signed its certificate.

    neighbours("localhost:8001", ["gold"], 3)[0].words                       # ["silver", ...]
    analogies("localhost:8001", [("man", "king", "woman")], 3)[0].words      # ["queen", ...]
    similarity("localhost:8001", [("gold and silver", "a precious metal")])  # [0.71]
    neighbours("grpcs://words.example.org:8001", ["gold"], access=Access(key="...", ca="ca.crt"))
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mms_workloads.serve.access import Access, Connection, connect
from mms_workloads.serve.repository import ANALOGIES, MAX_BATCH_SIZE, NEIGHBOURS, SIMILARITY, VECTORS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Row = TypeVar("Row", bound=str | Sequence[str])

TIMEOUT_SECONDS = 30.0
ANYBODY = Access()

_REFUSED = ("401", "413", "429", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")
_NOT_READY = ("has no available versions", "is not found", "is not ready", "unknown model")


class QueryError(Exception):
    """A question that got no answer; the message says why and what to do."""


class UnknownWordError(QueryError):
    """The model has no vector for a word."""


class InvalidQueryError(QueryError):
    """The request is not one that the model answers."""


class NotReadyError(QueryError):
    """Triton is there, the model is not."""


class RefusedError(QueryError):
    """The service does not let this client in, or not now."""


class UnreachableError(QueryError):
    """Nothing answers at the address."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    word: str
    words: list[str]  # nearest first
    scores: list[float]  # their cosines
    version: int  # of the artifact that answered
    digest: str


@dataclass(frozen=True, slots=True)
class Analogy:
    asked: tuple[str, str, str]  # a, b, c: a is to b as c is to each of the words
    words: list[str]  # best first
    scores: list[float]  # their cosines with b - a + c
    version: int  # of the artifact that answered
    digest: str


def neighbours(
    url: str, words: Sequence[str], k: int = 10, timeout: float = TIMEOUT_SECONDS, access: Access = ANYBODY
) -> list[Neighbours]:
    """The k nearest words of each word. Raises QueryError."""
    with client(url, timeout, access) as there:
        return [Neighbours(word, *found) for word, found in _nearest(there, NEIGHBOURS, words, k)]


def analogies(
    url: str,
    questions: Sequence[tuple[str, str, str]],
    k: int = 10,
    timeout: float = TIMEOUT_SECONDS,
    access: Access = ANYBODY,
) -> list[Analogy]:
    """The k best answers to each (a, b, c): a is to b as c is to what? Raises QueryError."""
    with client(url, timeout, access) as there:
        return [Analogy(asked, *found) for asked, found in _nearest(there, ANALOGIES, questions, k)]


def similarity(
    url: str, pairs: Sequence[tuple[str, str]], timeout: float = TIMEOUT_SECONDS, access: Access = ANYBODY
) -> list[float]:
    """How near the two texts of each pair are, -1 to 1: the cosine of their words' means. Raises QueryError."""
    with client(url, timeout, access) as there:
        found = [there.ask(SIMILARITY, {"TEXTS": _rows(part)}, ["SCORES"])["SCORES"] for part in _parts(pairs, "pairs")]
    return [float(score) for scores in found for score in scores.ravel()]


def vectors(
    url: str, words: Sequence[str], timeout: float = TIMEOUT_SECONDS, access: Access = ANYBODY
) -> NDArray[np.float32]:
    """The vectors [n, d] of words. Raises QueryError."""
    with client(url, timeout, access) as there:
        found = [there.ask(VECTORS, {"WORDS": _rows(part)}, ["VECTORS"])["VECTORS"] for part in _parts(words)]
    return np.concatenate(found)


def _nearest(
    there: Client, model: str, asked: Sequence[Row], k: int
) -> Iterator[tuple[Row, tuple[list[str], list[float], int, str]]]:
    """Of each row the words, their scores, and the version and digest of the artifact."""
    for part in _parts(asked):
        inputs = {"WORDS": _rows(part), "K": np.full((len(part), 1), k, np.int32)}
        outputs = there.ask(model, inputs, ["WORDS", "SCORES", "DIGEST", "VERSION"])
        digest, version = outputs["DIGEST"].flat[0].decode(), int(outputs["VERSION"].flat[0])
        for row, found, scores in zip(part, outputs["WORDS"], outputs["SCORES"], strict=True):
            yield row, ([word.decode() for word in found], scores.tolist(), version, digest)


@dataclass(frozen=True, slots=True)
class Client:
    """A connection to a service. What it raises `client` explains."""

    connection: Connection

    def ready(self, model: str) -> bool:
        return self.connection.ready(model)

    def inputs(self, model: str) -> dict[str, tuple[str, list[int]]]:
        """Of each its datatype and shape, the rows first; -1: any."""
        found = self.connection.about(model)["inputs"]
        return {one["name"]: (one["datatype"], [int(side) for side in one["shape"]]) for one in found}

    def ask(
        self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """The outputs by name; None: all that there are."""
        module, tensors = self.connection.module, []
        for name, array in inputs.items():
            tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        wanted = None if outputs is None else [module.InferRequestedOutput(name) for name in outputs]
        result = self.connection.infer(model, tensors, outputs=wanted)
        names = outputs if outputs is not None else _names(result.get_response())
        return {name: result.as_numpy(name) for name in names}


def _names(response: Any) -> list[str]:
    """Of the outputs: HTTP's is a dict, gRPC's a message."""
    if isinstance(response, dict):
        return [one["name"] for one in response["outputs"]]
    return [one.name for one in response.outputs]


@contextmanager
def client(url: str, timeout: float = TIMEOUT_SECONDS, access: Access = ANYBODY) -> Iterator[Client]:
    """Raises QueryError, also of what is asked in its context."""
    try:
        connection = connect(url, access, timeout)
    except ValueError as error:
        raise InvalidQueryError(str(error)) from error
    except OSError as error:
        raise InvalidQueryError(f"{access.ca}: {error}: give a PEM file of certificates") from error
    try:
        yield Client(connection)
    except InferenceServerException as error:
        raise _explain(url, error) from error
    except OSError as error:  # of HTTP: refused, reset, no such host, no answer in time, a certificate of another
        raise _unreachable(url, error) from error
    finally:
        connection.close()


def _explain(url: str, error: InferenceServerException) -> QueryError:
    message, status = error.message(), str(error.status())
    if "unknown word" in message:
        return UnknownWordError(message)
    if any(text in message for text in _NOT_READY):
        return NotReadyError(f"{url}: the model is not ready: {message}: look at the service's conditions")
    if any(text in status for text in _REFUSED):
        return RefusedError(f"{url}: {message}")
    if "UNAVAILABLE" in status or "DEADLINE_EXCEEDED" in status:
        return _unreachable(url, message)
    return InvalidQueryError(message)


def _unreachable(url: str, why: object) -> UnreachableError:
    return UnreachableError(f"{url} does not answer: {why}: check the address, and that the service is ready")


def _parts(asked: Sequence[Row], what: str = "words") -> Iterator[Sequence[Row]]:
    if isinstance(asked, str) or not asked:
        raise InvalidQueryError(f"{what}: give a list of at least one {what.removesuffix('s')}")
    for start in range(0, len(asked), MAX_BATCH_SIZE):
        yield asked[start : start + MAX_BATCH_SIZE]


def _rows(asked: Sequence[str] | Sequence[Sequence[str]]) -> NDArray[np.object_]:
    """[n, 1] of strings, [n, m] of tuples of them."""
    rows = [[row] if isinstance(row, str) else row for row in asked]
    return np.array([[text.encode() for text in row] for row in rows], dtype=np.object_)
