"""The metrics: 0.5 where there is nothing to know, near 1 where there is, whatever the frequencies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mms_workloads.contract import WordEmbedding
from mms_workloads.embedding import evaluation
from mms_workloads.embedding.distribution import distribution
from mms_workloads.embedding.parameters import initial_parameters
from tests.unit.embedding.test_word2vec import TOPICS, WORDS_OF_TOPIC, corpus, train

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def trained() -> NDArray[np.float32]:
    return train(*corpus(), seed=1).vectors


def auc(vectors: NDArray[np.float32], seed: int = 1) -> float:
    blocks, counts = corpus(seed=99, sentences=800)
    return evaluation.context_auc(vectors, blocks, distribution(counts, WordEmbedding(subsample=0)), 4, seed)


def test_trained_vectors(trained: NDArray[np.float32]) -> None:
    assert auc(trained) > 0.85
    assert auc(trained) == auc(trained)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_vectors_that_know_nothing(trained: NDArray[np.float32], seed: int) -> None:
    size = TOPICS * WORDS_OF_TOPIC
    untrained = initial_parameters(size, 16, seed).vectors
    # The sample is some thousand pairs of only 60 words: random vectors are right or wrong by words, not by pairs.
    assert auc(untrained) == pytest.approx(0.5, abs=0.06)
    shuffled = np.random.default_rng(seed).permutation(trained)
    assert auc(shuffled) == pytest.approx(0.5, abs=0.15)
    assert auc(np.zeros((size, 16), np.float32)) == 0.5


def test_frequency_alone_wins_nothing() -> None:
    """Vectors that are the more alike the more frequent both words are, in text without any order."""
    rng = np.random.default_rng(1)
    weights = 1 / np.arange(1, 201)
    tokens = rng.choice(200, 40_000, p=weights / weights.sum()).astype(np.int32)
    counts = np.bincount(tokens, minlength=200)
    vectors = np.stack((np.sqrt(weights), 0.01 * rng.standard_normal(200)), 1).astype(np.float32)
    found = evaluation.context_auc(vectors, [tokens], distribution(counts, WordEmbedding(subsample=1e-3)), 5, 1)
    assert found == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("tokens", [[], [0, -1, 1, -1], [0, 0, 0]], ids=["empty", "single words", "one word"])
def test_no_pair_to_compare(tokens: list[int]) -> None:
    words = distribution(np.array([5, 5]), WordEmbedding(subsample=0))
    blocks = [np.array(tokens, np.int32)]
    assert evaluation.context_auc(np.eye(2, dtype=np.float32), blocks, words, 5, 1) == 0.5


def test_related_pairs_are_words() -> None:
    pairs = evaluation.related_pairs()
    assert len(pairs) > 60
    assert all(word.isalpha() and word.islower() for pair in pairs for word in pair)
    assert ("war", "peace") in pairs
    assert ("black", "white") in pairs


def test_related_auc() -> None:
    pairs = evaluation.related_pairs()
    words = sorted({word for pair in pairs for word in pair})
    vectors = np.random.default_rng(1).standard_normal((len(words), 40), np.float32)
    assert evaluation.related_auc(vectors, words, 1) == pytest.approx(0.5, abs=0.1)
    for first, second in pairs:
        vectors[words.index(second)] = vectors[words.index(first)] + 0.1 * vectors[words.index(second)]
    related = evaluation.related_auc(vectors, words, 1)
    assert related is not None
    assert related > 0.9
    assert evaluation.related_auc(vectors, ["war", "peace"], 1) is None


def test_unit_rows() -> None:
    units = evaluation.unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32))
    assert units.dtype == np.float32
    np.testing.assert_allclose(units, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
