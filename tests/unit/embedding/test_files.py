"""What other tools read: by their libraries where those are here, else by the format's definition."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from mms_workloads.contract import Reason, Subwords, WordEmbedding
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.embedding import files
from mms_workloads.embedding.distribution import Distribution
from mms_workloads.embedding.parameters import Parameters, initial_parameters
from mms_workloads.embedding.subwords import composed, pieces
from mms_workloads.serve.vectors_file import map_tensor, read_task, read_vocabulary
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WORDS = ("the", "größe", "漢字_字", "o'clock")


def parameters(buckets: int = 0) -> Parameters:
    made = initial_parameters(len(WORDS), 5, 1, buckets)
    made.contexts[:] = np.arange(20, dtype=np.float32).reshape(4, 5)
    return made


def read_word2vec(path: Path, *, binary: bool) -> dict[str, NDArray[np.float32]]:
    """As gensim's KeyedVectors.load_word2vec_format does, which takes what it does not know for something else."""
    content = path.read_bytes()
    head, _, rest = content.partition(b"\n")
    count, size = map(int, head.decode().split(" "))
    found = {}
    for _ in range(count):
        if binary:
            first, space, rest = rest.partition(b" ")
            row, end, rest = np.frombuffer(rest[: 4 * size], "<f4"), rest[4 * size : 4 * size + 1], rest[4 * size + 1 :]
            word = first.decode()
        else:
            line, end, rest = rest.partition(b"\n")
            word, *numbers = line.rstrip().decode().split(" ")
            row, space = np.array([np.float32(number) for number in numbers]), line[len(word.encode()) :][:1]
        assert (space, end, len(row)) == (b" ", b"\n", size)
        assert word not in found
        assert word.split() == [word], "white space ends a word"
        found[word] = row
    assert rest == b""
    return found


@pytest.mark.parametrize("binary", [True, False])
def test_word2vec_formats(tmp_path: Path, binary: bool) -> None:
    vectors = parameters().vectors
    write = files.word2vec_binary if binary else files.word2vec_text
    write(tmp_path / "v", WORDS, vectors)
    found = read_word2vec(tmp_path / "v", binary=binary)
    assert list(found) == list(WORDS)
    for word, row in zip(WORDS, vectors, strict=True):
        assert np.array_equal(found[word], row), "to the last bit"


@pytest.mark.parametrize("buckets", [0, 7])
def test_files_of_an_artifact(tmp_path: Path, buckets: int) -> None:
    made, subwords = parameters(buckets), Subwords(buckets=buckets) if buckets else None
    task = WordEmbedding(dimensions=5, tokenizer="Characters", subwords=subwords)
    words = Distribution(np.ones(4, np.float32), pieces=pieces(WORDS, subwords) if subwords else None)
    vectors = files.words_of(made, words)
    files.write(tmp_path, made, vectors, Vocabulary(WORDS, (9, 5, 5, 1)), task)
    found = load_file(tmp_path / "model.safetensors")
    assert np.array_equal(found["vectors"], vectors)
    assert np.array_equal(found["contexts"], made.contexts)
    assert np.array_equal(map_tensor(tmp_path / "model.safetensors", "contexts"), made.contexts)
    assert [word.decode() for word in read_vocabulary(tmp_path / "vocabulary.txt")] == list(WORDS)
    assert read_task(tmp_path / "model.json") == task
    assert json.loads((tmp_path / "model.json").read_text())["tokenizer"] == "Characters"
    assert set(found) == {"vectors", "contexts"} | ({"ngrams"} if buckets else set())
    if subwords:
        assert words.pieces is not None
        np.testing.assert_allclose(found["vectors"], composed(made.vectors, words.pieces))
        assert np.array_equal(found["ngrams"], made.vectors[4:])


def test_numbers_that_are_not_finite_are_not_published(tmp_path: Path) -> None:
    made = parameters()
    made.contexts[2, 3] = np.inf
    with pytest.raises(JobError, match=r"not finite: lower optimizer\.learningRate") as raised:
        files.write(tmp_path, made, made.vectors, Vocabulary(WORDS, (1, 1, 1, 1)), WordEmbedding())
    assert raised.value.reason == Reason.INTERNAL
    assert not (tmp_path / "model.safetensors").exists()
