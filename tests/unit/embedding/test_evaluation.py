"""The metrics: 0.5 where there is nothing to know, near 1 where there is, whatever the frequencies."""

from __future__ import annotations

import pytest
import torch
from tests.unit.embedding.test_word2vec import TOPICS, WORDS_OF_TOPIC, corpus, train

from mms_workloads.contract import WordEmbedding
from mms_workloads.embedding import evaluation, word2vec


@pytest.fixture(scope="module")
def trained() -> torch.Tensor:
    return train(*corpus(), seed=1).vectors


def auc(vectors: torch.Tensor, seed: int = 1) -> float:
    blocks, counts = corpus(seed=99, sentences=800)
    return evaluation.context_auc(vectors, blocks, word2vec.distribution(counts, WordEmbedding(subsample=0)), 4, seed)


def test_trained_vectors(trained: torch.Tensor) -> None:
    assert auc(trained) > 0.85
    assert auc(trained) == auc(trained)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_vectors_that_know_nothing(trained: torch.Tensor, seed: int) -> None:
    size = TOPICS * WORDS_OF_TOPIC
    untrained = word2vec.initial_parameters(size, 16, seed).vectors
    # The sample is some thousand pairs of only 60 words: random vectors are right or wrong by words, not by pairs.
    assert auc(untrained) == pytest.approx(0.5, abs=0.06)
    shuffled = trained[torch.randperm(size, generator=torch.Generator().manual_seed(seed))]
    assert auc(shuffled) == pytest.approx(0.5, abs=0.15)
    assert auc(torch.zeros(size, 16)) == 0.5


def test_frequency_alone_wins_nothing() -> None:
    """Vectors that are the more alike the more frequent both words are, in text without any order."""
    rng = torch.Generator().manual_seed(1)
    weights = 1 / torch.arange(1, 201).float()
    tokens = torch.multinomial(weights, 40_000, replacement=True, generator=rng)
    counts = torch.bincount(tokens, minlength=200)
    vectors = torch.stack((weights.sqrt(), 0.01 * torch.randn(200, generator=rng)), 1)
    found = evaluation.context_auc(
        vectors, [tokens], word2vec.distribution(counts, WordEmbedding(subsample=1e-3)), 5, 1
    )
    assert found == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("tokens", [[], [0, -1, 1, -1], [0, 0, 0]], ids=["empty", "single words", "one word"])
def test_no_pair_to_compare(tokens: list[int]) -> None:
    words = word2vec.distribution(torch.tensor([5, 5]), WordEmbedding(subsample=0))
    blocks = [torch.tensor(tokens, dtype=torch.long)]
    assert evaluation.context_auc(torch.eye(2), blocks, words, 5, 1) == 0.5


def test_related_pairs_are_words() -> None:
    pairs = evaluation.related_pairs()
    assert len(pairs) > 60
    assert all(word.isalpha() and word.islower() for pair in pairs for word in pair)
    assert ("war", "peace") in pairs
    assert ("black", "white") in pairs


def test_related_auc() -> None:
    pairs = evaluation.related_pairs()
    words = sorted({word for pair in pairs for word in pair})
    vectors = torch.randn(len(words), 40, generator=torch.Generator().manual_seed(1))
    assert evaluation.related_auc(vectors, words, 1) == pytest.approx(0.5, abs=0.1)
    for first, second in pairs:
        vectors[words.index(second)] = vectors[words.index(first)] + 0.1 * vectors[words.index(second)]
    related = evaluation.related_auc(vectors, words, 1)
    assert related is not None
    assert related > 0.9
    assert evaluation.related_auc(vectors, ["war", "peace"], 1) is None


def test_unit_rows() -> None:
    units = evaluation.unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(units, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
