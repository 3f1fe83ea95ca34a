"""Word vectors in batches, as a GPU trains them: here by the processor, or by a GPU where there is one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mms_workloads.contract import WordEmbedding
from mms_workloads.embedding import batched, evaluation
from mms_workloads.embedding.batched import OnDevice
from mms_workloads.embedding.distribution import Distribution, distribution
from mms_workloads.embedding.parameters import BlockStats, Parameters, initial_parameters, no_touches
from tests.unit.embedding.test_pulled import hold, pulled
from tests.unit.embedding.test_word2vec import TOPICS, WORDS_OF_TOPIC, corpus, loss_by_definition, noise_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODELS = ["SkipGram", "CBOW"]


def train(
    parameters: Parameters,
    tokens: NDArray[np.int32],
    words: Distribution,
    task: WordEmbedding,
    touches: Any = None,
    **how: Any,
) -> BlockStats:
    touches = touches or no_touches(len(words.keep))
    device = OnDevice(DEVICE, parameters, touches, words, task)
    said = device.block(tokens, **how)
    device.back()
    return said


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("negatives", [1, 5])
def test_gradients(model: str, negatives: int) -> None:
    """Of one batch, by autograd over the definition; at a small rate, where the sum of gradients is taken as it is."""
    task = WordEmbedding(dimensions=9, model=model, window=1, windowing="Fixed", subsample=0, negatives=negatives)  # type: ignore[arg-type]
    size, rate, sentence = 40, 1e-4, [3, 5, 7, 5, 9, 11]
    words = Distribution(np.ones(size, np.float32), noise_of(30, size))
    rng = np.random.default_rng(1)
    start = Parameters(*rng.normal(size=(2, size, 9)).astype(np.float32))
    vectors, contexts = (torch.from_numpy(one).double().requires_grad_() for one in (start.vectors, start.contexts))
    loss_by_definition(vectors, contexts, sentence, task=task, words=words, noise=30).backward()
    moved = start.copy()
    train(moved, np.array([*sentence, -1], np.int32), words, task, rates=(rate, rate), seed=1)
    for after, before, wanted in ((moved.vectors, start.vectors, vectors), (moved.contexts, start.contexts, contexts)):
        assert wanted.grad is not None
        np.testing.assert_allclose((before - after) / rate, wanted.grad.numpy(), atol=2e-2)


@pytest.mark.parametrize("model", MODELS)
def test_related_words_come_together(model: str) -> None:
    blocks, counts = corpus()
    task = WordEmbedding(dimensions=16, window=4, subsample=0, model=model)  # type: ignore[arg-type]
    words, parameters = distribution(counts, task), initial_parameters(len(counts), 16, 1)
    losses = [
        train(parameters, block, words, task, rates=(0.05, 0.05), seed=100 * epoch + number).loss
        for epoch, (number, block) in itertools.product(range(8), enumerate(blocks))
    ]
    assert losses[-1] < 0.8 * losses[0]
    units = evaluation.unit_rows(parameters.vectors)
    scores = units @ units.T
    np.fill_diagonal(scores, -2)
    best = np.argsort(-scores)[:, : WORDS_OF_TOPIC - 1] // WORDS_OF_TOPIC
    assert (best == np.arange(TOPICS * WORDS_OF_TOPIC)[:, None] // WORDS_OF_TOPIC).mean() > 0.95


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("windowing", ["Dynamic", "Fixed"])
def test_touches_say_which_rows_changed(model: str, windowing: str) -> None:
    blocks, counts = corpus(sentences=5)
    counts = np.concatenate((counts, np.ones(400, counts.dtype)))
    task = WordEmbedding(dimensions=8, window=2, subsample=0, model=model, windowing=windowing)  # type: ignore[arg-type]
    words = distribution(counts, task)
    start = Parameters(*np.random.default_rng(1).random((2, len(counts), 8), np.float32))
    moved, touches = start.copy(), no_touches(len(counts))
    said = train(moved, blocks[0], words, task, touches, rates=(0.1, 0.1), seed=5)
    told = batched.rows(blocks[0], words, task, seed=5)
    pairs = ((moved.vectors, start.vectors), (moved.contexts, start.contexts))
    for (after, before), found, rows in zip(pairs, (touches.vectors, touches.contexts), told, strict=True):
        assert np.array_equal((after != before).any(1), found > 0)
        assert np.array_equal(np.flatnonzero(found), rows)
        assert (found == 0).any()
    assert said.words == 40
    assert said.pairs * 5.5 < float(touches.contexts.sum()) <= said.pairs * 6


@pytest.mark.parametrize("model", MODELS)
def test_it_trains_rows_that_are_held(model: str) -> None:
    """To the same numbers as with all of them."""
    blocks, counts = corpus(sentences=400)
    counts = np.append(counts, np.ones(2000, np.int64))
    task = WordEmbedding(dimensions=40, subsample=0, model=model)  # type: ignore[arg-type]
    words, whole = distribution(counts, task), initial_parameters(len(counts), 40, 1)
    vectors, contexts = batched.rows(blocks[0], words, task, seed=3)
    state = pulled(whole, vectors, contexts)
    hold(state, whole, vectors, contexts)
    how: dict[str, Any] = {"rates": (0.05, 0.04), "seed": 3}
    touches = no_touches(len(counts))
    assert train(whole, blocks[0], words, task, touches, **how) == train(
        state.training(), blocks[0], words, task, state.touches.touches(), **how
    )
    for name, of_all in (("vectors", whole.vectors), ("contexts", whole.contexts)):
        held = state.held[name]
        np.testing.assert_array_equal(held.working[: len(held.numbers)].numpy(), of_all[held.numbers.numpy()])


@pytest.mark.parametrize("tokens", [[], [-1], [3, -1], [3]])
def test_a_block_without_pairs(tokens: list[int]) -> None:
    task = WordEmbedding(dimensions=8, subsample=0)
    words, parameters = distribution(np.ones(10, np.int64), task), initial_parameters(10, 8, 1)
    before = parameters.copy()
    said = train(parameters, np.array(tokens, np.int32), words, task, rates=(0.1, 0.1), seed=1)
    assert said == BlockStats(sum(token >= 0 for token in tokens), 0.0, None)
    assert np.array_equal(parameters.vectors, before.vectors)


def test_what_it_leaves_to_the_processor() -> None:
    assert batched.does(WordEmbedding())
    assert not batched.does(WordEmbedding(objective="HierarchicalSoftmax"))
    assert not batched.does(WordEmbedding.model_validate({"subwords": {}}))
