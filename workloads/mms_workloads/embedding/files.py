"""The files of trained word vectors: of an artifact, and those that other tools read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mms_workloads import tensors as weights
from mms_workloads.contract import Reason
from mms_workloads.embedding.subwords import composed
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mms_workloads.contract import WordEmbedding
    from mms_workloads.data.vocabulary import Vocabulary
    from mms_workloads.embedding.distribution import Distribution
    from mms_workloads.embedding.parameters import Parameters

WEIGHTS, VOCABULARY, TASK = "model.safetensors", "vocabulary.txt", "model.json"
REPORT = "report.html"
BINARY, TEXT = "vectors.bin", "vectors.txt"
ROWS_AT_ONCE = 4096


def words_of(
    parameters: Parameters, words: Distribution, matrix: Callable[[int, int], NDArray[np.float32]] | None = None
) -> NDArray[np.float32]:
    """The words' vectors [V, d]; matrix: makes room for them where they are made of n-grams."""
    if words.pieces is None:
        return parameters.vectors
    room = matrix(len(words.keep), parameters.vectors.shape[1]) if matrix else None
    return composed(parameters.vectors, words.pieces, room)


def write(
    folder: Path,
    parameters: Parameters,
    vectors: NDArray[np.float32],
    vocabulary: Vocabulary,
    task: WordEmbedding,
) -> None:
    """model.json, vocabulary.txt, and model.safetensors: vectors [V, d], contexts [V, d].

    With subwords: also ngrams [buckets, d]. vectors: as words_of gives them. Raises JobError when a number is not
    finite, OSError.
    """
    check(parameters)
    tensors = {"vectors": vectors, "contexts": parameters.contexts}
    if task.subwords:
        tensors["ngrams"] = parameters.vectors[len(vocabulary) :]
    weights.write(folder / WEIGHTS, tensors)
    with (folder / VOCABULARY).open("w", encoding="utf-8") as file:
        file.writelines(vocabulary.lines())
    (folder / TASK).write_text(task.model_dump_json(indent=1), encoding="utf-8")


def check(parameters: Parameters) -> None:
    """Raises JobError when a number is not finite."""
    if not all(np.isfinite(part).all() for one in (parameters.vectors, parameters.contexts) for part in parts(one)):
        raise JobError(
            Reason.INTERNAL, "the parameters are not finite: lower optimizer.learningRate and start another run"
        )


def word2vec_text(
    path: Path, words: Sequence[str], vectors: NDArray[np.float32], tell: Callable[[float], None] = lambda _: None
) -> None:
    """As word2vec.c writes it: how many words and dimensions, then a word and its vector a line.

    tell: is told the part that is written, 0 to 1.
    """

    def line(word: bytes, row: NDArray[np.float32]) -> bytes:
        return word + b" " + " ".join(map(repr, row.tolist())).encode() + b"\n"

    _write(path, words, vectors, line, tell)


def word2vec_binary(
    path: Path, words: Sequence[str], vectors: NDArray[np.float32], tell: Callable[[float], None] = lambda _: None
) -> None:
    """As word2vec.c writes it with -binary 1: float32, little-endian. tell: as above."""
    _write(path, words, vectors, lambda word, row: word + b" " + row.astype("<f4").tobytes() + b"\n", tell)


def _write(
    path: Path,
    words: Sequence[str],
    vectors: NDArray[np.float32],
    line: Callable[[bytes, NDArray[np.float32]], bytes],
    tell: Callable[[float], None],
) -> None:
    with path.open("wb") as file:
        file.write(f"{len(vectors)} {vectors.shape[1]}\n".encode())
        for number, (word, row) in enumerate(zip(words, vectors, strict=True), 1):
            file.write(line(word.encode(), row))
            if number % ROWS_AT_ONCE == 0:
                tell(number / len(vectors))


def parts(matrix: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Of rows, so that what is made of one takes little memory."""
    return [matrix[first : first + ROWS_AT_ONCE] for first in range(0, len(matrix), ROWS_AT_ONCE)]
