"""The kernels: gradients against autograd, what is learnt, and that the same seed gives the same bits."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from mms_workloads.contract import WordEmbedding
from mms_workloads.embedding import evaluation, native, word2vec
from mms_workloads.embedding.distribution import Distribution, alias, distribution, huffman
from mms_workloads.embedding.parameters import BlockStats, Parameters, initial_parameters, no_touches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

TOPICS, WORDS_OF_TOPIC = 6, 10
TASKS = {
    "skip-gram": {"model": "SkipGram"},
    "cbow": {"model": "CBOW"},
    "skip-gram, tree": {"model": "SkipGram", "objective": "HierarchicalSoftmax"},
    "cbow, tree": {"model": "CBOW", "objective": "HierarchicalSoftmax"},
}
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@pytest.fixture(params=["avx512", "avx2", "scalar", "neon"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    best = native.kernels()
    try:
        native.choose(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    native.choose(best)


@pytest.fixture(params=[1, 2], ids=["alone", "with copies"])
def copies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, which may take it that others train beside it: then it has copies of the most frequent rows."""
    passes = word2vec._passes

    def of(*args: Any) -> list[native.Pass]:
        found = passes(*args)
        for one in found:
            one.threads = request.param
        return found

    monkeypatch.setattr(word2vec, "_passes", of)


def noise_of(word: int, size: int) -> NDArray[np.void]:
    """Tables by which each negative is this word."""
    weights = np.zeros(size)
    weights[word] = 1.0
    return alias(weights)


def loss_by_definition(
    vectors: Tensor, contexts: Tensor, sentence: list[int], *, task: WordEmbedding, words: Distribution, noise: int
) -> Tensor:
    """With a window of 1, all of whose negatives are the same word; a bag's words each have the mean's gradient."""
    total = torch.zeros((), dtype=vectors.dtype)
    for place, centre in enumerate(sentence):
        around = [sentence[i] for i in (place - 1, place + 1) if 0 <= i < len(sentence)]
        inputs = vectors[around]
        if task.model == "CBOW":
            whole = inputs.sum(0)
            inputs = (inputs.mean(0).detach() + whole - whole.detach())[None]
        if words.tree is None:
            total = total - functional.logsigmoid(inputs @ contexts[centre]).sum()
            total = total - task.negatives * functional.logsigmoid(-(inputs @ contexts[noise])).sum()
            continue
        nodes, codes = words.tree.path(centre)
        for node, code in zip(nodes, codes, strict=True):
            total = total - functional.logsigmoid((1 - 2 * code) * (inputs @ contexts[node])).sum()
    return total


@every_task
@pytest.mark.parametrize(("dimensions", "negatives"), [(100, 5), (3, 1), (48, 17), (300, 6)])
@pytest.mark.usefixtures("copies")
def test_gradients(kernels: str, task: dict[str, str], dimensions: int, negatives: int) -> None:
    """At a rate so small that the order does not matter, training is -rate times the gradient of the definition."""
    rng = np.random.default_rng(3)
    size, noise = 40, 39
    settings = WordEmbedding.model_validate(
        {**task, "dimensions": dimensions, "window": 1, "negatives": negatives, "subsample": 0}
    )
    start = Parameters(*(rng.standard_normal((2, size, dimensions), np.float32) / np.float32(dimensions**0.5)))
    sentence = rng.integers(0, noise, 31).tolist()
    words = distribution(np.arange(size, 0, -1), settings)
    if words.tree is None:
        words = Distribution(words.keep, noise_of(noise, size))
    vectors, contexts = (torch.from_numpy(one).double().requires_grad_() for one in (start.vectors, start.contexts))
    loss = loss_by_definition(vectors, contexts, sentence, task=settings, words=words, noise=noise)
    loss.backward()  # type: ignore[no-untyped-call]
    moved, rate = start.copy(), 2e-5
    tokens = np.array(sentence, np.int32)
    stats = word2vec.train_block(moved, tokens, words, settings, rates=(rate, rate), seed=1)
    assert (stats.words, stats.pairs) == (31, 31 if settings.model == "CBOW" else 60)
    for before, after, leaf in ((start.vectors, moved.vectors, vectors), (start.contexts, moved.contexts, contexts)):
        assert leaf.grad is not None
        gradient = leaf.grad.numpy()
        error = np.linalg.norm((before - after).astype(np.float64) / rate - gradient, axis=1)
        assert (error <= 0.01 * np.linalg.norm(gradient, axis=1) + 0.01).all(), error.max()


def test_the_loss_is_that_of_the_definition() -> None:
    """Where nothing changes, it is the mean of all windows that are measured: here of equal ones."""
    task = WordEmbedding(dimensions=8, window=1, subsample=0)
    start = Parameters(np.full((3, 8), 0.3, np.float32), np.full((3, 8), 0.2, np.float32))
    words = Distribution(np.ones(3, np.float32), noise_of(2, 3))
    tokens = np.array([0, 1] * 2000, np.int32)
    stats = word2vec.train_block(start.copy(), tokens, words, task, rates=(1e-9, 1e-9), seed=1)
    score = torch.tensor(8 * 0.3 * 0.2)
    assert stats.loss == pytest.approx(
        float(-functional.logsigmoid(score) - 5 * functional.logsigmoid(-score)), rel=1e-3
    )


def test_frequent_words_are_skipped() -> None:
    """Every second one of 20,000 words is used once in four times: 12,500 words with a neighbour to each side."""
    task = WordEmbedding(dimensions=4, window=1)
    words = Distribution(np.array([0.25, 1.0, 1.0], np.float32), noise_of(2, 3))
    start, tokens = initial_parameters(3, 4, 1), np.array([0, 1] * 10_000, np.int32)
    stats = word2vec.train_block(start, tokens, words, task, rates=(0.01, 0.01), seed=1)
    assert stats.words == 20_000
    assert stats.pairs == pytest.approx(2 * 12_500, rel=0.02)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_rate_falls_through_the_block(threads: int) -> None:
    """At rates so small that gradients stay the same, one that falls to zero moves the rows half as far."""
    task, size = WordEmbedding(dimensions=8, window=1, subsample=0), word2vec.LEAST_TOKENS
    start = Parameters(np.full((5, 8), 0.3, np.float32), np.full((5, 8), 0.2, np.float32))
    # Each half has words of its own: of two threads that move the same row at once one's step may be lost.
    tokens = np.array([0, 1, -1] * size + [2, 3, -1] * size, np.int32)
    words = Distribution(np.ones(5, np.float32), noise_of(4, 5))
    moved = []
    for last in (5e-7, 0.0):
        rows = start.copy()
        word2vec.train_block(rows, tokens, words, task, rates=(5e-7, last), seed=1, threads=threads)
        moved.append(sum(float(np.linalg.norm(rows.vectors[row] - start.vectors[row])) for row in (0, 2)))
    assert moved[1] == pytest.approx(moved[0] / 2, rel=0.15), "rounding and curvature aside"


def corpus(seed: int = 0, sentences: int = 1500) -> tuple[list[NDArray[np.int32]], NDArray[np.int64]]:
    """Blocks of sentences whose words are of one topic each; word number = topic * WORDS_OF_TOPIC + place."""
    rng = random.Random(seed)
    numbers: list[int] = []
    for _ in range(sentences):
        topic = rng.randrange(TOPICS)
        numbers += [topic * WORDS_OF_TOPIC + rng.randrange(WORDS_OF_TOPIC) for _ in range(8)] + [-1]
    tokens = np.array(numbers, np.int32)
    counts = np.bincount(tokens[tokens >= 0], minlength=TOPICS * WORDS_OF_TOPIC)
    return np.split(tokens, range(3000, len(tokens), 3000)), counts


def train(
    blocks: list[NDArray[np.int32]],
    counts: NDArray[np.int64],
    seed: int,
    epochs: int = 8,
    start: int | None = None,
    **task: Any,
) -> Parameters:
    """start: the seed of the parameters, where it is not that of all else."""
    settings = WordEmbedding.model_validate({"dimensions": 16, "window": 4, "subsample": 0, **task})
    words = distribution(counts, settings)
    parameters = initial_parameters(len(counts), settings.dimensions, seed if start is None else start)
    for epoch, (number, block) in itertools.product(range(epochs), enumerate(blocks)):
        word2vec.train_block(
            parameters, block, words, settings, rates=(0.05, 0.05), seed=seed * 10_000 + epoch * 100 + number
        )
    return parameters


@every_task
def test_related_words_come_together(kernels: str, task: dict[str, str]) -> None:
    units = evaluation.unit_rows(train(*corpus(), seed=1, **task).vectors)
    scores = units @ units.T
    np.fill_diagonal(scores, -2)
    best = np.argsort(-scores)[:, : WORDS_OF_TOPIC - 1] // WORDS_OF_TOPIC
    topic = np.arange(len(units)) // WORDS_OF_TOPIC
    assert (best == topic[:, None]).mean() > 0.95


@every_task
def test_the_same_seed_gives_the_same_bits(task: dict[str, str]) -> None:
    blocks, counts = corpus(sentences=300)
    first, again, other = (train(blocks, counts, seed, epochs=1, start=7, **task) for seed in (1, 1, 2))
    assert np.array_equal(first.vectors, again.vectors)
    assert np.array_equal(first.contexts, again.contexts)
    assert not np.array_equal(first.vectors, other.vectors)


def test_all_processors_learn_the_same() -> None:
    blocks, counts = corpus(sentences=300)
    best, found = native.kernels(), []
    for name in ("avx512", "avx2", "scalar", "neon"):
        try:
            native.choose(name)
        except ValueError:
            continue
        found.append(train(blocks, counts, 1, epochs=1).vectors)
    native.choose(best)
    for one in found:
        np.testing.assert_allclose(one, found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
def test_several_threads_share_a_block(threads: int) -> None:
    blocks, counts = corpus(sentences=12_000)
    block = np.concatenate(blocks)
    settings = WordEmbedding(dimensions=16, window=4, subsample=0)
    words, parameters = distribution(counts, settings), initial_parameters(len(counts), 16, 1)
    stats = word2vec.train_block(parameters, block, words, settings, rates=(0.05, 0.01), seed=1, threads=threads)
    assert stats.words == 12_000 * 8
    assert stats.loss < 6 * 0.69, "what it knew at the start"
    assert evaluation.context_auc(parameters.vectors, corpus(seed=9)[0], words, 4, 1) > 0.85


def test_pairs_stay_inside_sentences() -> None:
    """Words of one-word sentences have no context: nothing is learnt from them."""
    task = WordEmbedding(dimensions=4, window=5, subsample=0)
    start = initial_parameters(3, 4, 1)
    moved, touches = start.copy(), no_touches(3)
    tokens = np.array([0, -1, 1, -1, 2, -1] * 50, np.int32)
    words = distribution(np.array([5, 5, 5]), task)
    stats = word2vec.train_block(moved, tokens, words, task, rates=(0.1, 0.1), seed=1, touches=touches)
    assert (stats.words, stats.pairs) == (150, 0)
    assert np.array_equal(moved.vectors, start.vectors)
    assert float(touches.vectors.sum() + touches.contexts.sum()) == 0


@pytest.mark.parametrize("tokens", [[], [-1, -1], [-1]], ids=["nothing", "empty sentences", "end"])
def test_a_block_without_words(tokens: list[int]) -> None:
    task = WordEmbedding(dimensions=4)
    start, words = initial_parameters(2, 4, 1), distribution(np.array([5, 5]), task)
    stats = word2vec.train_block(start, np.array(tokens, np.int32), words, task, rates=(0.1, 0.1), seed=1)
    assert stats == BlockStats(0, 0.0, None)


@every_task
def test_pairs_that_were_not_measured_have_no_loss(task: dict[str, str]) -> None:
    """The first window of a block is measured, and then each 64th: here the first one has no pair."""
    settings = WordEmbedding.model_validate({**task, "dimensions": 8, "window": 2, "subsample": 0})
    words, start = distribution(np.ones(3, np.int64), settings), initial_parameters(3, 8, 1)
    tokens = np.array([0, -1, 1, 2, -1], np.int32)
    stats = word2vec.train_block(start, tokens, words, settings, rates=(0.1, 0.1), seed=1)
    assert stats.pairs > 0
    assert stats.loss is None


@every_task
@pytest.mark.usefixtures("copies")
def test_touches_say_which_rows_changed(task: dict[str, str]) -> None:
    """Rows without a touch do not travel between ranks: they must not have changed."""
    blocks, counts = corpus(sentences=5)
    counts = np.concatenate((counts, np.ones(400, counts.dtype)))
    settings = WordEmbedding.model_validate({**task, "dimensions": 8, "window": 2, "subsample": 0})
    start = Parameters(*np.random.default_rng(1).random((2, len(counts), 8), np.float32))
    moved, touches = start.copy(), no_touches(len(counts))
    words = distribution(counts, settings)
    stats = word2vec.train_block(moved, blocks[0], words, settings, rates=(0.1, 0.1), seed=5, touches=touches)
    untold = start.copy()
    word2vec.train_block(untold, blocks[0], words, settings, rates=(0.1, 0.1), seed=5)
    assert np.array_equal(untold.vectors, moved.vectors)
    assert np.array_equal(untold.contexts, moved.contexts)
    told = word2vec.rows(blocks[0], words, settings, seed=5)
    pairs = ((moved.vectors, start.vectors), (moved.contexts, start.contexts))
    for (after, before), found, rows in zip(pairs, (touches.vectors, touches.contexts), told, strict=True):
        assert np.array_equal((after != before).any(1), found > 0)
        assert np.array_equal(np.flatnonzero(found), rows)
        assert (found == 0).any()
    if words.tree is None:
        assert float(touches.contexts.sum()) <= stats.pairs * (1 + settings.negatives)
        assert float(touches.contexts.sum()) > stats.pairs * (0.9 + settings.negatives)


@every_task
def test_what_is_not_touched_is_not_written(task: dict[str, str]) -> None:
    """Threads count in the same memory: who adds nothing could take back what another one has just counted."""
    settings = WordEmbedding.model_validate({**task, "dimensions": 8, "window": 2, "subsample": 0})
    words, touches = distribution(np.ones(400, np.int64), settings), no_touches(400)
    for one in (touches.vectors, touches.contexts):
        one[:] = -0.0  # with 0 added it would be 0.0
    start, tokens = initial_parameters(400, 8, 1), np.array([0, -1, 1, 2, -1], np.int32)
    word2vec.train_block(start, tokens, words, settings, rates=(0.1, 0.1), seed=1, touches=touches)
    for one in (touches.vectors, touches.contexts):
        assert one.any()
        assert np.signbit(one[one == 0]).all()


@pytest.mark.parametrize("model", ["SkipGram", "CBOW"])
@pytest.mark.parametrize("negatives", [1, 5, 50, 100])
@pytest.mark.usefixtures("copies")
def test_no_change_of_a_negative_is_lost(model: str, negatives: int) -> None:
    """It stands many times in the pool, and so in a window; a copy of it is changed while it goes to the matrix."""
    task = WordEmbedding.model_validate({"dimensions": 2, "subsample": 0, "negatives": negatives, "model": model})
    words = Distribution(np.ones(4, np.float32), noise_of(3, 4))
    start, touches = initial_parameters(4, 2, 1), no_touches(4)
    rate = 2.0**-50  # scores stay at 0 and vectors at 1 to the last bit, and sums of such changes are exact
    start.vectors[:] = 1
    tokens = np.random.default_rng(1).integers(0, 3, 2000).astype(np.int32)
    word2vec.train_block(start, tokens, words, task, rates=(rate, rate), seed=1, touches=touches)
    assert touches.contexts[3] > 0.9 * negatives * len(tokens)
    assert (start.contexts[3] == -rate / 2 * touches.contexts[3]).all()


@pytest.mark.parametrize("model", ["SkipGram", "CBOW"])
@pytest.mark.usefixtures("copies")
def test_a_wide_window_reaches_all_words_around(model: str) -> None:
    """Further than rows are fetched ahead of narrow ones, and beyond both ends of the sentence."""
    task = WordEmbedding.model_validate(
        {"model": model, "dimensions": 3, "window": 20, "windowing": "Fixed", "subsample": 0, "negatives": 1}
    )
    size = 100
    words = Distribution(np.ones(size, np.float32), noise_of(size - 1, size))
    start = initial_parameters(size, 3, 1)
    start.vectors[:], start.contexts[:-1] = 0, np.eye(3, dtype=np.float32)[np.arange(size - 1) % 3]
    moved, rate = start.copy(), 1e-3
    tokens = np.arange(60, dtype=np.int32)
    stats = word2vec.train_block(moved, tokens, words, task, rates=(rate, rate), seed=1)
    around = [[i for i in range(at - 20, at + 21) if i != at and 0 <= i < 60] for at in range(60)]
    assert stats.pairs == (60 if model == "CBOW" else sum(len(each) for each in around))
    expected = np.array([start.contexts[around[at]].sum(axis=0) * rate / 2 for at in range(60)])
    assert moved.vectors[:60] == pytest.approx(expected, rel=0.02, abs=1e-5)


def test_the_largest_settings() -> None:
    task = WordEmbedding(dimensions=4096, window=100, negatives=100, subsample=0)
    words = distribution(np.array([5] * 300), task)
    parameters, tokens = initial_parameters(300, 4096, 1), np.arange(300, dtype=np.int32)
    word2vec.train_block(parameters, tokens, words, task, rates=(0.01, 0.01), seed=1)
    assert np.isfinite(parameters.vectors).all()
    assert (parameters.contexts != 0).any()


def test_windows_for_which_there_is_no_room() -> None:
    task = WordEmbedding(dimensions=5, window=101)
    words, tokens = distribution(np.array([5, 5]), task), np.array([0, 1], np.int32)
    with pytest.raises(ValueError, match="window of 101 words"):
        word2vec.train_block(initial_parameters(2, 5, 1), tokens, words, task, rates=(0.1, 0.1), seed=1)


def test_tokens_of_another_vocabulary() -> None:
    task = WordEmbedding(dimensions=5)
    words, tokens = distribution(np.array([5, 5]), task), np.array([0, 2], np.int32)
    with pytest.raises(ValueError, match="token 2 of a vocabulary of 2 words"):
        word2vec.train_block(initial_parameters(2, 5, 1), tokens, words, task, rates=(0.1, 0.1), seed=1)
    with pytest.raises(ValueError, match="token 2"):
        word2vec.rows(tokens, words, task, seed=1)


def test_rows_that_are_not_on_cache_lines_are_refused() -> None:
    task = WordEmbedding(dimensions=5)
    words, tokens = distribution(np.array([5, 5]), task), np.array([0, 1], np.int32)
    good, packed = initial_parameters(2, 5, 1), np.zeros((2, 5), np.float32)
    beside = initial_parameters(2, 32, 1).vectors[:, 1:6]
    for start in (
        Parameters(packed, packed),
        Parameters(good.vectors, packed),
        Parameters(packed, good.contexts),
        Parameters(good.vectors, beside),
    ):
        with pytest.raises(ValueError, match="cache lines"):
            word2vec.train_block(start, tokens, words, task, rates=(0.1, 0.1), seed=1)
    word2vec.train_block(Parameters(packed, packed).copy(), tokens, words, task, rates=(0.1, 0.1), seed=1)


def test_distribution() -> None:
    counts = np.array([1_000_000, 1000, 1])
    words = distribution(counts, WordEmbedding(subsample=1e-3))
    ratio = 1e-3 * 1_001_001 / 1_000_000
    assert float(words.keep[0]) == pytest.approx(ratio**0.5 + ratio, rel=1e-6)
    assert words.keep[1:].tolist() == [1.0, 1.0]
    assert distribution(counts, WordEmbedding(subsample=0)).keep.tolist() == [1.0, 1.0, 1.0]
    weights = counts**0.75
    assert implied(words) == pytest.approx((weights / weights.sum()).tolist(), abs=1e-8)


def implied(words: Distribution) -> list[float]:
    """The probability with which each word is the noise, by its tables."""
    assert words.noise is not None
    size = len(words.keep)
    found = [0.0] * size
    for word, (share, other) in enumerate(
        zip(words.noise["share"].tolist(), words.noise["other"].tolist(), strict=True)
    ):
        found[word] += share / 2**32 / size
        found[other] += (1 - share / 2**32) / size
    return found


def test_the_noise_is_drawn_by_its_weights() -> None:
    """By the kernel: of so many draws the part of each word is within five standard deviations."""
    task = WordEmbedding(dimensions=2, window=1, subsample=0)
    counts = np.array([4000, 1000, 200, 50, 1, 1])
    words, tokens = distribution(counts, task), np.array([4, 5] * 20_000, np.int32)
    touches, start = no_touches(6), initial_parameters(6, 2, 1)
    word2vec.train_block(start, tokens, words, task, rates=(1e-3, 1e-3), seed=1, touches=touches)
    drawn, weights = touches.contexts[:4].astype(np.float64), counts[:4] ** 0.75
    expected = weights / weights.sum()
    independent = drawn.sum() / 2 / 8  # a pair counts twice, and a row of the pool is drawn eight times
    deviation = np.sqrt(expected * (1 - expected) / independent)
    assert (np.abs(drawn / drawn.sum() - expected) < 5 * deviation).all()


def test_tree() -> None:
    """Huffman's: the more frequent a word, the shorter its code, and no code begins with another."""
    tree = huffman(np.array([50, 20, 20, 6, 3, 1]))
    codes = ["".join(map(str, tree.path(word)[1])) for word in range(6)]
    assert [len(code) for code in codes] == [1, 3, 3, 3, 4, 4] or [len(code) for code in codes] == [1, 2, 3, 4, 5, 5]
    assert all(not b.startswith(a) for a, b in itertools.permutations(codes, 2))
    assert sum(2.0 ** -len(code) for code in codes) == 1.0
    assert max(node for word in range(6) for node in tree.path(word)[0]) == 4, "one less than words"
    assert {tree.path(word)[0][0] for word in range(6)} == {4}, "all ways begin at the root"
