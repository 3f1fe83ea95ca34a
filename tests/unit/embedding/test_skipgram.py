"""Skip-gram: the gradients against autograd, what is learnt, and that the same seed gives the same bits."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from mms_workloads.contract import WordEmbedding
from mms_workloads.embedding import evaluation, skipgram
from mms_workloads.embedding.skipgram import SHARED_NEGATIVES, Parameters

TOPICS, WORDS_OF_TOPIC = 6, 10


def one_step(
    parameters: Parameters, centres: Tensor, outputs: Tensor, positive: Tensor, *, negatives: int, rate: float
) -> tuple[float, float | None]:
    touches = skipgram.no_touches(parameters.vectors.shape[0])
    return skipgram._step(
        parameters, touches, centres, outputs, positive, negatives=negatives, rate=rate, with_loss=True
    )


def loss_by_definition(
    vectors: Tensor, contexts: Tensor, centres: Tensor, outputs: Tensor, positive: Tensor, *, negatives: int
) -> Tensor:
    """Word by word: -log sigma of pairs and, for each pair, the shared negatives' mean times `negatives`."""
    total, width = torch.zeros((), dtype=vectors.dtype), positive.shape[2]
    for group in range(centres.shape[0]):
        for place in range(centres.shape[1]):
            vector = vectors[centres[group, place]]
            noise = [contexts[n] @ vector for n in outputs[group, width:]]
            for other in range(width):
                if positive[group, place, other]:
                    total = total - torch.nn.functional.logsigmoid(contexts[outputs[group, other]] @ vector)
                    each = [torch.nn.functional.logsigmoid(-score) for score in noise]
                    total = total - negatives / SHARED_NEGATIVES * torch.stack(each).sum()
    return total


@pytest.mark.parametrize("negatives", [1, 5])
def test_gradients(negatives: int) -> None:
    """At a rate so small that nothing is damped, a step is -rate times the gradient of the definition."""
    rng = torch.Generator().manual_seed(3)
    size, dimensions, groups, length, window = 12, 4, 2, 3, 2
    start = Parameters(torch.randn(size, dimensions, generator=rng), torch.randn(size, dimensions, generator=rng))
    centres = torch.randint(0, size, (groups, length), generator=rng)
    outputs = torch.randint(0, size, (groups, length + 2 * window + SHARED_NEGATIVES), generator=rng)
    positive = torch.randint(0, 2, (groups, length, length + 2 * window), generator=rng).float()
    vectors, contexts = start.vectors.double().requires_grad_(), start.contexts.double().requires_grad_()
    loss = loss_by_definition(vectors, contexts, centres, outputs, positive, negatives=negatives)
    loss.backward()  # type: ignore[no-untyped-call]
    moved, rate = start.clone(), 1e-4
    pairs, reported = one_step(moved, centres, outputs, positive, negatives=negatives, rate=rate)
    assert pairs == float(positive.sum())
    assert reported == pytest.approx(loss.item(), rel=1e-5)
    for before, after, leaf in ((start.vectors, moved.vectors, vectors), (start.contexts, moved.contexts, contexts)):
        assert leaf.grad is not None
        torch.testing.assert_close((before - after).double() / rate, leaf.grad, rtol=2e-3, atol=2e-3)


def test_frequent_rows_are_damped() -> None:
    """A row that a batch names 500 times closes at most the whole gap; the plain sum would overshoot it many times."""
    start = Parameters(torch.full((2, 4), 0.5), torch.full((2, 4), 0.5))
    centres = torch.zeros(500, 1, dtype=torch.long)
    outputs = torch.ones(500, 1 + SHARED_NEGATIVES, dtype=torch.long)
    moved = start.clone()
    one_step(moved, centres, outputs, torch.ones(500, 1, 1), negatives=5, rate=1.0)
    assert torch.isfinite(moved.vectors).all()
    # The pull of 1 pair and 5 negatives on one dimension, closed at most 1 / CURVATURE times over.
    pull = abs(0.5 * (1 - torch.tensor(1.0).sigmoid() - 5 * torch.tensor(1.0).sigmoid()))
    assert float((moved.vectors - start.vectors).abs().max()) <= float(pull) / skipgram.CURVATURE / 6 * 1.01


def corpus(seed: int = 0, sentences: int = 1500) -> tuple[list[Tensor], Tensor]:
    """Blocks of sentences whose words are of one topic each; word number = topic * WORDS_OF_TOPIC + place."""
    rng = random.Random(seed)
    numbers: list[int] = []
    for _ in range(sentences):
        topic = rng.randrange(TOPICS)
        numbers += [topic * WORDS_OF_TOPIC + rng.randrange(WORDS_OF_TOPIC) for _ in range(8)] + [-1]
    tokens = torch.tensor(numbers)
    counts = torch.bincount(tokens[tokens >= 0], minlength=TOPICS * WORDS_OF_TOPIC)
    return list(tokens.split(3000)), counts


def train(blocks: list[Tensor], counts: Tensor, seed: int, epochs: int = 8) -> Parameters:
    task = WordEmbedding(dimensions=16, window=4, subsample=0)
    words = skipgram.distribution(counts, task.subsample)
    parameters = skipgram.initial_parameters(counts.numel(), task.dimensions, seed)
    touches = skipgram.no_touches(counts.numel())
    rng = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for block in blocks:
            skipgram.train_block(parameters, touches, skipgram.draw(block, words, task, rng), task, rates=(0.05, 0.05))
    return parameters


def test_related_words_come_together() -> None:
    parameters = train(*corpus(), seed=1)
    units = evaluation.unit_rows(parameters.vectors)
    scores = (units @ units.T).fill_diagonal_(-2)
    best = scores.topk(WORDS_OF_TOPIC - 1).indices // WORDS_OF_TOPIC
    topic = torch.arange(units.shape[0]) // WORDS_OF_TOPIC
    assert float((best == topic[:, None]).float().mean()) > 0.95


def test_the_same_seed_gives_the_same_bits() -> None:
    blocks, counts = corpus(sentences=300)
    first, again, other = (train(blocks, counts, seed, epochs=1) for seed in (1, 1, 2))
    assert torch.equal(first.vectors, again.vectors)
    assert torch.equal(first.contexts, again.contexts)
    assert not torch.equal(first.vectors, other.vectors)


def test_pairs_stay_inside_sentences() -> None:
    """Words of one-word sentences have no context: nothing is learnt from them."""
    task = WordEmbedding(dimensions=4, window=5, subsample=0)
    start = skipgram.initial_parameters(3, 4, 1)
    moved, touches = start.clone(), skipgram.no_touches(3)
    tokens = torch.tensor([0, -1, 1, -1, 2, -1] * 50)
    words = skipgram.distribution(torch.tensor([5, 5, 5]), 0)
    stats = skipgram.train_block(
        moved, touches, skipgram.draw(tokens, words, task, torch.Generator()), task, rates=(0.1, 0.1)
    )
    assert (stats.words, stats.pairs) == (150, 0)
    assert torch.equal(moved.vectors, start.vectors)
    assert float(touches.vectors.sum() + touches.contexts.sum()) == 0


@pytest.mark.parametrize("tokens", [[], [-1, -1], [-1]], ids=["nothing", "empty sentences", "end"])
def test_a_block_without_words(tokens: list[int]) -> None:
    task, words = WordEmbedding(dimensions=4), skipgram.distribution(torch.tensor([5, 5]), 1e-3)
    start = skipgram.initial_parameters(2, 4, 1)
    block = torch.tensor(tokens, dtype=torch.long)
    drawn = skipgram.draw(block, words, task, torch.Generator())
    stats = skipgram.train_block(start, skipgram.no_touches(2), drawn, task, rates=(0.1, 0.1))
    assert stats == skipgram.BlockStats(0, 0.0, 0.0)


def test_touches_say_which_rows_changed() -> None:
    """Rows without a touch do not travel between ranks: they must not have changed."""
    blocks, counts = corpus(sentences=5)
    counts = torch.cat((counts, torch.ones(40, dtype=counts.dtype)))
    task = WordEmbedding(dimensions=8, window=2, subsample=0)
    start = skipgram.initial_parameters(counts.numel(), 8, 1)
    moved, touches = start.clone(), skipgram.no_touches(counts.numel())
    words = skipgram.distribution(counts, 0)
    drawn = skipgram.draw(blocks[0], words, task, torch.Generator())
    skipgram.train_block(moved, touches, drawn, task, rates=(0.1, 0.1))
    for rows, found in zip(drawn.rows(), (touches.vectors, touches.contexts), strict=True):
        assert set(found.nonzero().squeeze(1).tolist()) <= set(rows.tolist())
    assert not ((moved.vectors != start.vectors).any(1) & (touches.vectors == 0)).any()
    assert not ((moved.contexts != start.contexts).any(1) & (touches.contexts == 0)).any()
    assert (touches.vectors == 0).any()


def test_distribution() -> None:
    counts = torch.tensor([1_000_000, 1000, 1])
    words = skipgram.distribution(counts, 1e-3)
    ratio = 1e-3 * 1_001_001 / 1_000_000
    assert float(words.keep[0]) == pytest.approx(ratio**0.5 + ratio, rel=1e-6)
    assert words.keep[1:].tolist() == [1.0, 1.0]
    assert words.noise[-1] == 1.0
    assert float(words.noise[0]) == pytest.approx(1e6**0.75 / (1e6**0.75 + 1000**0.75 + 1), rel=1e-6)
    assert skipgram.distribution(counts, 0).keep.tolist() == [1.0, 1.0, 1.0]
