"""Word vectors mapped from disk, and the answers of the two served models. numpy only: this runs inside Triton.

A request is a Question; its answer is a value or a RequestError, so that one bad request in a batch touches no other.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

WEIGHTS = "model.safetensors"
VOCABULARY = "vocabulary.txt"
UNIT_VECTORS = "unit_vectors.npy"  # made from the weights by fetch: both models map files, none holds a copy

DEFAULT_K = 10
MAX_NEIGHBOURS = 1 << 20  # in one answer: 12 MB of words and scores, which fit the shared memory of a container
SCORE_BYTES = 64 << 20  # of the matrix of scores that is held at a time
BLOCK = 64  # scores whose maximum stands for them when the k best are sought
SHOWN = 3  # words or ids that an error names


class RequestError(ValueError):
    """What is wrong with a request and how to put it right."""


class UnknownWordError(RequestError):
    """A word that the model has no vector for."""


class ArtifactError(ValueError):
    """Files of an artifact that do not fit together; the message names the file."""


@dataclass(frozen=True, slots=True)
class Embedding:
    words: NDArray[np.object_]  # [V] of bytes, UTF-8
    ids: dict[bytes, int]  # row of each word
    rows: NDArray[np.float32]  # [V, d]


@dataclass(frozen=True, slots=True)
class Question:
    """The inputs of one request as Triton gives them: WORDS object [n, 1], IDS int64 [n, 1], K int32 [n, 1]."""

    words: NDArray[Any] | None = None
    ids: NDArray[Any] | None = None
    k: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class Nearest:
    ids: NDArray[np.int64]  # [n, k], best first
    scores: NDArray[np.float32]  # [n, k], cosines


def vectors(embedding: Embedding, questions: Sequence[Question]) -> list[NDArray[np.float32] | RequestError]:
    """The vectors [n, d] of each question's words."""
    answers: list[NDArray[np.float32] | RequestError] = []
    for question in questions:
        try:
            answers.append(embedding.rows[resolve(embedding, question)])
        except RequestError as error:
            answers.append(error)
    return answers


def neighbours(embedding: Embedding, questions: Sequence[Question]) -> list[Nearest | RequestError]:
    """The k nearest words of each question's words by cosine, the word itself left out.

    `embedding.rows` are of length 1 (or 0). All questions share the matrix products. Equal scores are ordered by row.
    """
    answers: list[Nearest | RequestError] = []
    asked: list[NDArray[np.int64]] = []
    ks: list[int] = []
    for question in questions:
        try:
            ids = resolve(embedding, question)
            ks.append(count(question.k, len(ids), len(embedding.words)))
            asked.append(ids)
            answers.append(Nearest(np.empty((len(ids), ks[-1]), np.int64), np.empty((len(ids), ks[-1]), np.float32)))
        except RequestError as error:
            answers.append(error)
    if not asked:
        return answers
    rows = np.concatenate(asked)
    targets = [(answer, i) for answer in answers if isinstance(answer, Nearest) for i in range(len(answer.ids))]
    chunk = max(1, SCORE_BYTES // (4 * len(embedding.words)))
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        scores = embedding.rows[part] @ embedding.rows.T
        scores[np.arange(len(part)), part] = -np.inf
        bounds = _bounds(scores, max(answer.ids.shape[1] for answer, _ in targets[start : start + chunk]))
        for row, bound, (answer, i) in zip(scores, bounds, targets[start : start + chunk], strict=True):
            best = _best(row, bound, answer.ids.shape[1])
            answer.ids[i] = best
            answer.scores[i] = row[best]
    return answers


def resolve(embedding: Embedding, question: Question) -> NDArray[np.int64]:
    """The rows [n] that a question asks for. Raises RequestError."""
    if (question.words is None) == (question.ids is None):
        given = "neither" if question.words is None else "both"
        raise RequestError(f"{given} of WORDS and IDS given: give exactly one of them")
    size = len(embedding.words)
    if question.words is not None:
        found = [embedding.ids.get(word, -1) for word in question.words.ravel()]
        if -1 in found:
            missing = [word for word, row in zip(question.words.ravel(), found, strict=True) if row < 0]
            raise _unknown(missing, size)
        return np.asarray(found, dtype=np.int64)
    ids = np.asarray(question.ids, dtype=np.int64).ravel()
    wrong = ids[(ids < 0) | (ids >= size)]
    if len(wrong):
        raise RequestError(
            f"IDS: {_some(list(map(int, wrong)))} out of range: ids are rows of the vocabulary, 0 to {size - 1}"
        )
    return ids


def count(k: NDArray[Any] | None, words: int, size: int) -> int:
    """How many neighbours are asked for, from K [n, 1]. Raises RequestError."""
    values = {DEFAULT_K} if k is None else {int(value) for value in k.ravel()}
    if len(values) != 1:
        raise RequestError(f"K: {_some(sorted(values))} in one request: K must be the same for all its words")
    value = values.pop()
    if k is None:
        value = min(value, size - 1)
    if not 1 <= value <= size - 1:
        raise RequestError(f"K: {value} neighbours asked for: K must be 1 to {size - 1}, all other words")
    if value * words > MAX_NEIGHBOURS:
        raise RequestError(
            f"K: {words} words with {value} neighbours each: at most {MAX_NEIGHBOURS} neighbours fit in an answer, "
            "ask for fewer words at a time"
        )
    return value


def load(directory: Path, *, unit: bool) -> Embedding:
    """Maps an artifact's vectors, or the same at length 1. Raises ArtifactError, OSError."""
    words = read_vocabulary(directory / VOCABULARY)
    rows = np.load(directory / UNIT_VECTORS, mmap_mode="r") if unit else map_tensor(directory / WEIGHTS, "vectors")
    if len(rows) != len(words):
        raise ArtifactError(f"{VOCABULARY} has {len(words)} words, {WEIGHTS} has {len(rows)} vectors")
    ids = {word: row for row, word in enumerate(words)}
    if len(ids) != len(words):
        twice = next(word for row, word in enumerate(words) if ids[word] != row)
        raise ArtifactError(f"{VOCABULARY} has the word {_text(twice)} twice")
    objects = np.empty(len(words), dtype=np.object_)
    objects[:] = words
    return Embedding(objects, ids, rows)


def read_vocabulary(path: Path) -> list[bytes]:
    """The words in the order of their rows. Raises ArtifactError."""
    words = []
    # Only \n ends a line: a word may hold other characters that count as line breaks somewhere.
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        word, tab, _ = line.rpartition(b"\t")
        if not tab or not word:
            raise ArtifactError(f"{path.name}: line {number} is not `word<TAB>count`")
        words.append(word)
    return words


def map_tensor(path: Path, name: str) -> NDArray[np.float32]:
    """A float32 matrix of a safetensors file, mapped read-only. Raises ArtifactError.

    The format: 8 bytes of header length, little-endian; a JSON header with each tensor's dtype, shape and place in the
    bytes that follow (huggingface/safetensors, README).
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ArtifactError(f"{path.name}: the header is longer than the file")
            entry = json.loads(file.read(length))[name]
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path.name}: no readable tensor {name!r}: {error!r}") from error
    if dtype != "F32" or len(shape) != 2 or min(shape) < 1:  # noqa: PLR2004 - a matrix
        raise ArtifactError(f"{path.name}: tensor {name!r} is {dtype} {list(shape)}, not a float32 matrix")
    if end - begin != 4 * math.prod(shape) or not 0 <= begin <= end <= size - 8 - length:
        raise ArtifactError(f"{path.name}: tensor {name!r} lies outside the file")
    return np.memmap(path, dtype="<f4", mode="r", offset=8 + length + begin, shape=shape)


def write_unit_vectors(directory: Path, rows_at_a_time: int = 65_536) -> int:
    """Writes the vectors at length 1 beside the weights; a vector of zeros stays. Returns d. Raises ArtifactError."""
    matrix = map_tensor(directory / WEIGHTS, "vectors")
    part = directory / f".{UNIT_VECTORS}.part"
    out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=matrix.shape)
    for start in range(0, len(matrix), rows_at_a_time):
        rows = np.asarray(matrix[start : start + rows_at_a_time])
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        if not np.isfinite(lengths).all():
            row = start + int(np.flatnonzero(~np.isfinite(lengths))[0])
            raise ArtifactError(f"{WEIGHTS}: vector {row} is not finite")
        out[start : start + rows_at_a_time] = rows / np.where(lengths > 0, lengths, 1)[:, None]
    out.flush()
    part.replace(directory / UNIT_VECTORS)
    return int(matrix.shape[1])


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


def _unknown(missing: list[bytes], size: int) -> RequestError:
    for word in missing:
        try:
            word.decode()
        except UnicodeDecodeError:
            return RequestError(f"WORDS: {word[:64]!r} is not UTF-8: encode words as UTF-8")
    noun = "words" if len(missing) > 1 else "word"
    return UnknownWordError(
        f"WORDS: unknown {noun} {_some([_text(word) for word in missing])}: not among the {size} words of this model; "
        "ask for words as the training's tokenizer writes them (vocabulary.txt of the artifact has them all)"
    )


def _text(word: bytes) -> str:
    return json.dumps(word[:256].decode(errors="replace"), ensure_ascii=False)


def _some(items: Sequence[object]) -> str:
    shown = ", ".join(str(item) for item in items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"
