"""What a user of the client functions is told when there is no answer."""

from __future__ import annotations

import pytest
from tritonclient.utils import InferenceServerException

from mms_workloads.serve import query


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
    ],
)
def test_errors(message: str, status: str, kind: type[query.QueryError]) -> None:
    error = query._explain("host:1", InferenceServerException(message, status))
    assert type(error) is kind
    assert message in str(error)


@pytest.mark.parametrize("url", ["127.0.0.1:1", "grpc://127.0.0.1:1", "http://127.0.0.1:1"])
def test_nothing_there(url: str) -> None:
    with pytest.raises(query.UnreachableError, match="does not answer"):
        query.neighbours(url, ["a"], timeout=2)


@pytest.mark.parametrize("url", ["ftp://host:1", "://host:1", "https://host:1"])
def test_schemes(url: str) -> None:
    with pytest.raises(query.InvalidQueryError, match="give host:port"):
        query.neighbours(url, ["a"])


@pytest.mark.parametrize("words", [[], "gold"], ids=["none", "a string"])
def test_words(words: list[str]) -> None:
    with pytest.raises(query.InvalidQueryError, match="at least one word"):
        query.vectors("127.0.0.1:1", words)
