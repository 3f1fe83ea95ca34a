"""What a user of the client functions is told when there is no answer."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from mms_workloads.serve import query

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("message", "status", "kind"),
    [
        ('WORDS: unknown word "x": not among', "StatusCode.NOT_FOUND", query.UnknownWordError),
        ('WORDS: unknown word "is not found": not', "404", query.UnknownWordError),
        ("Request for unknown model: 'neighbours' is not found", "StatusCode.NOT_FOUND", query.NotReadyError),
        ("Request for unknown model: 'n' has no available versions", "400", query.NotReadyError),
        ("failed to connect to all addresses", "StatusCode.UNAVAILABLE", query.UnreachableError),
        ("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED", query.UnreachableError),
        ("K: 0 neighbours asked for", "StatusCode.INVALID_ARGUMENT", query.InvalidQueryError),
        ("no valid API key", "StatusCode.UNAUTHENTICATED", query.RefusedError),
        ("too many requests", "429", query.RefusedError),
    ],
)
def test_errors(message: str, status: str, kind: type[query.QueryError]) -> None:
    error = query._explain("host:1", InferenceServerException(message, status))
    assert type(error) is kind
    assert message in str(error)


class Asked:
    """Answers each row of a request with its number, and keeps what was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, np.ndarray]]] = []

    @contextmanager
    def client(self, *_: Any) -> Iterator[Any]:
        yield self

    def ask(self, model: str, inputs: dict[str, np.ndarray], outputs: list[str]) -> dict[str, Any]:
        self.requests.append((model, inputs))
        count = len(next(iter(inputs.values())))
        scores = np.arange(count, dtype=np.float32)[:, None]
        answers = {
            "WORDS": np.full((count, 1), "höhe".encode(), np.object_),
            "DIGEST": np.array([[b"sha256:0"]]),
            "VERSION": np.array([[3]]),
        }
        return {name: {**answers, "SCORES": scores}[name] for name in outputs}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    made = Asked()
    monkeypatch.setattr(query, "client", made.client)
    return made


def test_analogies(asked: Asked) -> None:
    questions = [("a", "b", f"höhe{i}") for i in range(257)]
    answers = query.analogies("host:1", questions, 4)
    assert answers[0] == query.Analogy(("a", "b", "höhe0"), ["höhe"], [0], 3, "sha256:0")
    assert [answer.asked for answer in answers] == questions
    (model, first), (_, second) = asked.requests
    assert model == "analogies"
    assert (first["WORDS"].shape, second["WORDS"].tolist()) == ((256, 3), [[b"a", b"b", "höhe256".encode()]])
    assert (first["K"].dtype, second["K"].tolist()) == (np.int32, [[4]])


def test_similarity(asked: Asked) -> None:
    assert query.similarity("host:1", [("a b", "c")] * 257) == [*range(256), 0]
    assert [(model, inputs["TEXTS"].shape) for model, inputs in asked.requests] == [
        ("similarity", (256, 2)),
        ("similarity", (1, 2)),
    ]


def test_neighbours(asked: Asked) -> None:
    assert query.neighbours("host:1", ["gold"], 2) == [query.Neighbours("gold", ["höhe"], [0], 3, "sha256:0")]
    assert asked.requests[0][1]["WORDS"].tolist() == [[b"gold"]]


def test_no_pairs() -> None:
    with pytest.raises(query.InvalidQueryError, match="pairs: give a list of at least one pair"):
        query.similarity("127.0.0.1:1", [])


@pytest.mark.parametrize("url", ["127.0.0.1:1", "grpc://127.0.0.1:1", "http://127.0.0.1:1"])
def test_nothing_there(url: str) -> None:
    with pytest.raises(query.UnreachableError, match="does not answer"):
        query.neighbours(url, ["a"], timeout=2)


@pytest.mark.parametrize("url", ["ftp://host:1", "://host:1", "https:/host:1/x://"])
def test_schemes(url: str) -> None:
    with pytest.raises(query.InvalidQueryError, match="give host:port"):
        query.neighbours(url, ["a"])


@pytest.mark.parametrize("words", [[], "gold"], ids=["none", "a string"])
def test_words(words: list[str]) -> None:
    with pytest.raises(query.InvalidQueryError, match="at least one word"):
        query.vectors("127.0.0.1:1", words)
