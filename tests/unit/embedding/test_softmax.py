"""The exact model: gradients against autograd, which pairs there are, and that the fast ones come near to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from mms_workloads.contract import WordEmbedding
from mms_workloads.embedding import softmax, training
from mms_workloads.embedding.distribution import Distribution, distribution
from mms_workloads.embedding.parameters import initial_parameters, no_touches

SIZE, DIMENSIONS = 30, 8


def everything(size: int = SIZE) -> Distribution:
    return Distribution(np.ones(size, np.float32))


@pytest.mark.parametrize("model", ["SkipGram", "CBOW"])
def test_a_step_is_against_the_gradient(model: str) -> None:
    """Of the summed cross-entropy; a bag's words each have the whole of the mean's gradient."""
    rng = np.random.default_rng(1)
    task = WordEmbedding.model_validate({"model": model, "objective": "Softmax", "window": 3, "subsample": 0})
    tokens = np.array([*rng.integers(0, SIZE, 40), -1, 3, 3, -1, 7], np.int32)
    parameters = initial_parameters(SIZE, DIMENSIONS, 1)
    parameters.vectors[:], parameters.contexts[:] = rng.standard_normal((2, SIZE, DIMENSIONS))
    start = parameters.copy()
    batch = softmax.windows(tokens, everything(), task, rng)
    loss = softmax.step(parameters, batch, 0.01)
    vectors, contexts = (torch.tensor(one).requires_grad_() for one in (start.vectors, start.contexts))
    total = torch.zeros(())
    for owner, target in zip(batch.owners, batch.targets, strict=True):
        rows = vectors[batch.words[batch.starts[owner] : batch.starts[owner + 1]]]
        mean = rows.mean(0).detach() + rows.sum(0) - rows.sum(0).detach()
        total = total + functional.cross_entropy((contexts @ mean)[None], torch.tensor([int(target)]))
    total.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    for before, after, leaf in (
        (start.vectors, parameters.vectors, vectors),
        (start.contexts, parameters.contexts, contexts),
    ):
        assert leaf.grad is not None
        np.testing.assert_allclose((before - after) / 0.01, leaf.grad.numpy(), atol=2e-3)


@pytest.mark.parametrize(("model", "window"), [("SkipGram", 2), ("CBOW", 2), ("SkipGram", 1)])
def test_fixed_windows(model: str, window: int) -> None:
    task = WordEmbedding.model_validate({"model": model, "window": window, "windowing": "Fixed"})
    tokens = [4, 5, 6, 7, -1, -1, 8, 9, -1, 3]
    found = softmax.windows(np.array(tokens, np.int32), everything(), task, np.random.default_rng(1))
    sentences = [[4, 5, 6, 7], [8, 9], [3]]
    expected = {
        (place, sentence[i], sentence[j])
        for place, sentence in enumerate(sentences)
        for i in range(len(sentence))
        for j in range(max(0, i - window), min(len(sentence), i + window + 1))
        if i != j
    }
    pairs = set()
    for owner, target in zip(found.owners, found.targets, strict=True):
        for word in found.words[found.starts[owner] : found.starts[owner + 1]]:
            place = next(i for i, s in enumerate(sentences) if word in s)
            pairs.add((place, int(target), int(word)))
    assert pairs == expected
    assert len(found.targets) == (len(expected) if model == "SkipGram" else 6)


def test_dynamic_windows_reach_near_words_more_often() -> None:
    task = WordEmbedding(window=3)
    tokens = np.tile(np.arange(20, dtype=np.int32), 500)
    found = softmax.windows(tokens, everything(), task, np.random.default_rng(1))
    distance = np.abs(found.words[found.owners].astype(int) - found.targets) % 20
    distance = np.minimum(distance, 20 - distance)
    counts = np.bincount(distance, minlength=4) / len(tokens)
    assert counts[1:4] == pytest.approx([2.0, 4 / 3, 2 / 3], rel=0.05)
    assert len(counts) == 4


def test_frequent_words_are_skipped() -> None:
    words = Distribution(np.array([0.25, 1.0], np.float32))
    tokens = np.array([0, 1] * 4000, np.int32)
    found = softmax.windows(tokens, words, WordEmbedding(window=1), np.random.default_rng(1))
    assert (found.words == 0).sum() / (found.words == 1).sum() == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("model", ["SkipGram", "CBOW"])
def test_a_block_is_trained(model: str) -> None:
    """The loss falls from that of chance; the same seed gives the same bits; touches are in proportion."""
    task = WordEmbedding.model_validate({"model": model, "objective": "Softmax", "dimensions": 16, "subsample": 0})
    rng = np.random.default_rng(1)
    tokens = np.concatenate([[*rng.integers(0, 10, 8) + 10 * (i % 3), -1] for i in range(400)]).astype(np.int32)
    words, found = distribution(np.bincount(tokens[tokens >= 0]), task), []
    for _ in range(2):
        parameters, touches = initial_parameters(SIZE, 16, 1), no_touches(SIZE)
        losses = [
            training.train_block(parameters, tokens, words, task, rates=(0.05, 0.01), seed=e, touches=touches).loss
            for e in range(4)
        ]
        found.append(parameters)
    assert losses[0] < np.log(SIZE)
    assert losses[-1] == pytest.approx(np.log(10), rel=0.05), "a word's neighbours are of its ten"
    assert np.array_equal(found[0].vectors, found[1].vectors)
    told = training.rows(tokens, words, task, seed=1)
    assert set(np.flatnonzero(touches.vectors)) <= set(told[0])
    assert told[1].tolist() == list(range(SIZE))
    assert (touches.contexts > 0).all()


def test_all_of_a_long_block_is_trained_on() -> None:
    """Windows are held for a part of it at a time."""
    task = WordEmbedding(objective="Softmax", dimensions=4, window=1, windowing="Fixed", subsample=0)
    size = 2 * softmax.TOKENS + 500
    tokens = np.tile(np.arange(5, dtype=np.int32), size // 5)
    stats = softmax.train_block(initial_parameters(5, 4, 1), tokens, everything(5), task, rates=(0.01, 0.01), seed=1)
    assert stats.pairs == 2 * size - 6, "a word of three parts has one neighbour at each end"


@pytest.mark.parametrize("tokens", [[], [-1, -1], [5], [1, -1, 2, -1]])
def test_a_block_without_pairs(tokens: list[int]) -> None:
    task = WordEmbedding(objective="Softmax")
    parameters = initial_parameters(SIZE, DIMENSIONS, 1)
    before = parameters.copy()
    stats = softmax.train_block(
        parameters, np.array(tokens, np.int32), everything(), task, rates=(0.1, 0.1), seed=1, touches=no_touches(SIZE)
    )
    assert (stats.pairs, stats.loss) == (0.0, None)
    assert np.array_equal(parameters.vectors, before.vectors)


@pytest.mark.parametrize("objective", ["NegativeSampling", "HierarchicalSoftmax"])
def test_the_fast_objectives_rank_as_the_exact_one(objective: str) -> None:
    """On text of overlapping topics the similarities of words agree with the reference's."""
    rng = np.random.default_rng(1)
    tokens = np.concatenate([[*(rng.integers(0, 8, 8) + 4 * (i % 6)), -1] for i in range(4000)]).astype(np.int32)
    found = []
    for kind in ("Softmax", objective):
        task = WordEmbedding.model_validate({"objective": kind, "dimensions": 12, "subsample": 0, "window": 4})
        counts = np.bincount(tokens[tokens >= 0])
        words, parameters = distribution(counts, task), initial_parameters(len(counts), 12, 1)
        for epoch in range(6):
            training.train_block(parameters, tokens, words, task, rates=(0.05, 0.05), seed=epoch)
        units = parameters.vectors / np.linalg.norm(parameters.vectors, axis=1, keepdims=True)
        found.append((units @ units.T)[np.triu_indices(len(counts), 1)])
    assert np.corrcoef(found)[0, 1] > 0.6
