"""The answers of the served models of word vectors. numpy and the native tokenizer only: this runs inside Triton.

A request is a Question; its answer is a value or a RequestError, so that one bad request in a batch touches no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mms_workloads.data.text import PAIR, Words
from mms_workloads.embedding import graph
from mms_workloads.embedding.subwords import buckets_of
from mms_workloads.serve.vectors_file import Embedding, shown, unit_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Answer = TypeVar("Answer")

DEFAULT_K = 10
MAX_NEIGHBOURS = 1 << 20  # in one answer: 12 MB of words and scores, which fit the shared memory of a container
MAX_TEXT_BYTES = 1 << 18  # bounds the vectors that are held at a time: 26 MB at d = 100
MAX_WORD_BYTES = 1024  # what is longer is no word (data/text.py), and would have too many n-grams
SCORE_BYTES = 64 << 20  # of the matrix of scores that is held at a time
BLOCK = 64  # scores whose maximum stands for them when the k best are sought
SHOWN = 3  # words or ids that an error names


class RequestError(ValueError):
    """What is wrong with a request and how to put it right."""


class UnknownWordError(RequestError):
    """A word that the model has no vector for."""


@dataclass(frozen=True, slots=True)
class Question:
    """The inputs of one request as Triton gives them.

    WORDS object and IDS int64 [n, 1] or, of analogies, [n, 3]; K int32 [n, 1]; TEXTS object [n, 2].
    """

    words: NDArray[Any] | None = None
    ids: NDArray[Any] | None = None
    k: NDArray[Any] | None = None
    texts: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Words looked up. Of a word that is not in the vocabulary the row is -1; if it is unknown its vector is 0."""

    rows: NDArray[np.int64]  # [n]
    vectors: NDArray[np.float32]  # [n, d]
    known: NDArray[np.bool_]  # [n], has a vector


@dataclass(frozen=True, slots=True)
class Search:
    """For the k words that are nearest to each target."""

    targets: NDArray[np.float32]  # [n, d], of length 1 or 0
    left_out: NDArray[np.int64]  # [n, c] rows that are no answer; -1: none
    k: int  # at most V - c


@dataclass(frozen=True, slots=True)
class Nearest:
    ids: NDArray[np.int64]  # [n, k], best first
    scores: NDArray[np.float32]  # [n, k], cosines


def vectors(embedding: Embedding, questions: Sequence[Question]) -> list[NDArray[np.float32] | RequestError]:
    """The vectors [n, d] of each question's words."""
    return _each(lambda question: asked(embedding, question).vectors, questions)


def neighbours(embedding: Embedding, questions: Sequence[Question]) -> list[Nearest | RequestError]:
    """The k nearest words of each question's words by cosine, the word itself left out. `embedding` is of length 1."""

    def search(question: Question) -> Search:
        found = asked(embedding, question)
        k = count(question.k, len(found.rows), len(embedding.words) - 1)
        return Search(found.vectors, found.rows[:, None], k)

    return nearest(embedding, _each(search, questions))


def analogies(embedding: Embedding, questions: Sequence[Question]) -> list[Nearest | RequestError]:
    """The k nearest words to b - a + c of each (a, b, c), the three left out: 3CosAdd (Mikolov et al., 2013).

    `embedding` is of length 1.
    """

    def search(question: Question) -> Search:
        found = asked(embedding, question)
        a, b, c = (found.vectors[place::3] for place in range(3))
        k = count(question.k, len(a), len(embedding.words) - 3)
        return Search(unit_rows(b - a + c), found.rows.reshape(-1, 3), k)

    return nearest(embedding, _each(search, questions))


def similarity(embedding: Embedding, questions: Sequence[Question]) -> list[NDArray[np.float32] | RequestError]:
    """The cosine [n, 1] of each pair of texts: of the means of their words' vectors. `embedding` is of length 1."""

    def cosines(question: Question) -> NDArray[np.float32]:
        if question.texts is None:
            raise RequestError("TEXTS not given: give two texts a row")
        means = unit_rows(np.stack([mean_of(embedding, text) for text in question.texts.ravel()]))
        scores: NDArray[np.float32] = (means[::2] * means[1::2]).sum(axis=1, keepdims=True)
        return scores

    return _each(cosines, questions)


def nearest(embedding: Embedding, searches: Sequence[Search | RequestError]) -> list[Nearest | RequestError]:
    """The answer of each; an error stays. All share the matrix products. Equal scores are ordered by row.

    `embedding.rows` are of length 1 (or 0); all `left_out` have as many columns.
    """
    answers: list[Nearest | RequestError] = []
    places: list[tuple[Nearest, int]] = []  # of each target
    for search in searches:
        if isinstance(search, RequestError):
            answers.append(search)
            continue
        shape = (len(search.targets), search.k)
        answer = Nearest(np.empty(shape, np.int64), np.empty(shape, np.float32))
        answers.append(answer)
        places += [(answer, i) for i in range(len(answer.ids))]
    if not places:
        return answers
    targets = np.concatenate([search.targets for search in searches if isinstance(search, Search)])
    left_out = np.concatenate([search.left_out for search in searches if isinstance(search, Search)])
    chunk = max(1, SCORE_BYTES // (4 * len(embedding.words)))
    if _in_graph(embedding, targets, left_out, places):
        return answers
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        scores = targets[part] @ embedding.rows.T
        row, column = np.nonzero(left_out[part] >= 0)
        scores[row, left_out[part][row, column]] = -np.inf
        bounds = _bounds(scores, max(answer.ids.shape[1] for answer, _ in places[part]))
        for of_target, bound, (answer, i) in zip(scores, bounds, places[part], strict=True):
            best = _best(of_target, bound, answer.ids.shape[1])
            answer.ids[i] = best
            answer.scores[i] = of_target[best]
    return answers


def _in_graph(
    embedding: Embedding,
    targets: NDArray[np.float32],
    left_out: NDArray[np.int64],
    places: Sequence[tuple[Nearest, int]],
) -> bool:
    """Whether there is one in which all were found."""
    most = max(answer.ids.shape[1] for answer, _ in places)
    if embedding.graph is None or most > graph.MOST:
        return False
    found = graph.search(embedding.graph, embedding.rows, targets, left_out, most)
    if any(len(ids) < most for ids, _ in found):
        return False
    for (ids, scores), (answer, i) in zip(found, places, strict=True):
        k = answer.ids.shape[1]
        answer.ids[i], answer.scores[i] = ids[:k], scores[:k]
    return True


def asked(embedding: Embedding, question: Question) -> Found:
    """The words that a question asks for, row by row. Raises RequestError."""
    if (question.words is None) == (question.ids is None):
        given = "neither" if question.words is None else "both"
        raise RequestError(f"{given} of WORDS and IDS given: give exactly one of them")
    if question.words is not None:
        words = question.words.ravel().tolist()
        found = find(embedding, words)
        if not found.known.all():
            raise _unknown(embedding, [word for word, known in zip(words, found.known, strict=True) if not known])
        return found
    size = len(embedding.words)
    ids = np.asarray(question.ids, dtype=np.int64).ravel()
    wrong = ids[(ids < 0) | (ids >= size)]
    if len(wrong):
        raise RequestError(
            f"IDS: {_some(list(map(int, wrong)))} out of range: ids are rows of the vocabulary, 0 to {size - 1}"
        )
    return Found(ids, embedding.rows[ids], np.ones(len(ids), np.bool_))


def find(embedding: Embedding, words: Sequence[bytes]) -> Found:
    """Words as they are, else as the training's tokenizer would have written them."""
    rows, words = embedding.words.rows(words), list(words)
    if embedding.task.tokenizer != "Whitespace" and (missing := np.flatnonzero(rows < 0).tolist()):
        for place in missing:
            words[place] = _lower(words[place])
        rows[missing] = embedding.words.rows([words[place] for place in missing])
    found = Found(rows, embedding.rows[rows], rows >= 0)
    for place in np.flatnonzero(rows < 0).tolist():
        made = composed(embedding, words[place])
        found.known[place] = made is not None
        found.vectors[place] = 0 if made is None else made
    return found


def _lower(word: bytes) -> bytes:
    try:
        return word.decode().lower().encode()
    except UnicodeDecodeError:
        return word


def composed(embedding: Embedding, word: bytes) -> NDArray[np.float32] | None:
    """The vector [d] of a word by its n-grams alone; None: it has none, or is no word."""
    if embedding.ngrams is None or embedding.task.subwords is None or not 0 < len(word) <= MAX_WORD_BYTES:
        return None
    try:
        buckets = buckets_of(word.decode(), embedding.task.subwords)
    except UnicodeDecodeError:
        return None
    if not buckets:
        return None
    mean: NDArray[np.float32] = embedding.ngrams[buckets].mean(axis=0)
    return unit_rows(mean) if embedding.unit else mean


def mean_of(embedding: Embedding, text: bytes) -> NDArray[np.float32]:
    """The mean [d] of the vectors of a text's words, as often as they occur; unknown ones left out.

    Raises RequestError.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise RequestError(
            f"TEXTS: {shown(text[:64])}... has {len(text)} bytes: a text may have {MAX_TEXT_BYTES}, ask for parts of it"
        )
    occurrences = words_in(text, embedding)
    found = find(embedding, [word.encode() for word in occurrences])
    if not found.known.any():
        raise RequestError(
            f"TEXTS: no known word in {shown(text)}: give a text with a word of the vocabulary "
            "(vocabulary.txt of the artifact has them all)"
        )
    weights = np.fromiter(occurrences.values(), np.float32, len(occurrences)) * found.known
    mean: NDArray[np.float32] = weights @ found.vectors / weights.sum()
    return mean


def words_in(text: bytes, embedding: Embedding) -> dict[str, int]:
    """The words that the training's tokenizer finds, phrases as one, and how often. Raises RequestError."""
    try:
        text.decode()
    except UnicodeDecodeError:
        raise RequestError(f"TEXTS: {text[:64]!r} is not UTF-8: encode texts as UTF-8") from None
    words, tokenizer = Words(), embedding.task.tokenizer
    words.count(text, tokenizer, pairs=embedding.task.phrases is not None)
    counted = words.above(0)
    pairs = [word for word in counted if PAIR in word]
    rows = embedding.words.rows([_one(pair).encode() for pair in pairs])
    phrases = [pair for pair, row in zip(pairs, rows.tolist(), strict=True) if row >= 0]
    if not phrases:
        return {word: count for word, count in counted.items() if PAIR not in word}
    names = [*(word for word in counted if PAIR not in word), *phrases]
    numbers = Words.numbered(names).encode(text, tokenizer, pairs=True)
    counts = np.bincount(numbers[numbers >= 0], minlength=len(names)).tolist()
    return {_one(name): count for name, count in zip(names, counts, strict=True) if count}


def _one(pair: str) -> str:
    """How the vocabulary has a phrase."""
    return pair.replace(PAIR, "_")


def count(k: NDArray[Any] | None, rows: int, limit: int) -> int:
    """How many words are asked for, from K [n, 1]; `limit`: that may be an answer. Raises RequestError."""
    values = {DEFAULT_K} if k is None else {int(value) for value in k.ravel()}
    if len(values) != 1:
        raise RequestError(f"K: {_some(sorted(values))} in one request: K must be the same for all its words")
    value = values.pop()
    if limit < 1:
        raise RequestError(
            "the model has too few words: none is left for an answer beside those of the question. Train it on a "
            "longer text, or with a lower minCount"
        )
    if k is None:
        value = min(value, limit)
    if not 1 <= value <= limit:
        raise RequestError(f"K: {value} neighbours asked for: K must be 1 to {limit}, all other words")
    if value * rows > MAX_NEIGHBOURS:
        raise RequestError(
            f"K: {rows} words with {value} neighbours each: at most {MAX_NEIGHBOURS} neighbours fit in an answer, "
            "ask for fewer words at a time"
        )
    return value


def _each(answer: Callable[[Question], Answer], questions: Sequence[Question]) -> list[Answer | RequestError]:
    answers: list[Answer | RequestError] = []
    for question in questions:
        try:
            answers.append(answer(question))
        except RequestError as error:
            answers.append(error)
    return answers


def _bounds(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """A number [m] that at least k scores of each row reach: the k-th largest of the maxima of its blocks.

    One pass of maxima replaces a selection over all scores, which takes ten times as long.
    """
    m, size = scores.shape
    blocks = size // BLOCK
    if blocks < k:
        return np.full(m, -np.inf, np.float32)
    maxima = scores[:, : blocks * BLOCK].reshape(m, BLOCK, blocks).max(axis=1)
    bounds: NDArray[np.float32] = np.partition(maxima, blocks - k, axis=1)[:, blocks - k]
    return bounds


def _best(row: NDArray[np.float32], bound: np.float32, k: int) -> NDArray[np.int64]:
    candidates = np.flatnonzero(row >= bound)
    return candidates[np.lexsort((candidates, -row[candidates]))[:k]]


def _unknown(embedding: Embedding, missing: list[bytes]) -> RequestError:
    for word in missing:
        try:
            word.decode()
        except UnicodeDecodeError:
            return RequestError(f"WORDS: {word[:64]!r} is not UTF-8: encode words as UTF-8")
    noun = "words" if len(missing) > 1 else "word"
    ngrams = "" if embedding.ngrams is None else " and without n-grams"
    return UnknownWordError(
        f"WORDS: unknown {noun} {_some([shown(word) for word in missing])}: not among the {len(embedding.words)} words "
        f"of this model{ngrams}; ask for words as the training's tokenizer writes them (vocabulary.txt of the artifact "
        "has them all)"
    )


def _some(items: Sequence[object]) -> str:
    named = ", ".join(str(item) for item in items[:SHOWN])
    return named if len(items) <= SHOWN else f"{named} and {len(items) - SHOWN} more"
