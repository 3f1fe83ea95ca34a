"""Words made of n-grams: which those are, gradients against autograd, and what unseen words are worth."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mms_workloads.contract import Subwords, WordEmbedding
from mms_workloads.embedding import subwords, word2vec
from mms_workloads.embedding.distribution import Distribution, alias, distribution
from mms_workloads.embedding.parameters import Parameters, initial_parameters, no_touches
from mms_workloads.embedding.subwords import Pieces

WORDS = [f"w{'abcdefghij'[i % 10]}{i}" for i in range(40)]
NOISE = 39
MODES: dict[str, dict[str, Any]] = {
    "skip-gram": {},
    "cbow": {"model": "CBOW"},
    "skip-gram, tree": {"objective": "HierarchicalSoftmax"},
    "cbow, tree": {"model": "CBOW", "objective": "HierarchicalSoftmax"},
}


def test_ngrams() -> None:
    """Of <wo>: w, o, <w, wo, o>, <wo, wo>, <wo>."""
    all_ = Subwords(minLength=1, maxLength=6, buckets=1 << 30)
    found = subwords.buckets_of("wo", all_)
    assert len(found) == len(set(found)) == 8
    assert len({*found} - {*subwords.buckets_of("wo2", all_), *subwords.buckets_of("1wo", all_)}) == 1
    assert subwords.buckets_of("漢字", Subwords(minLength=5, maxLength=6)) == [], "characters, not bytes"
    assert all(bucket < 7 for bucket in subwords.buckets_of("anything", Subwords(buckets=7)))


@given(
    words=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=6),
    shortest=st.integers(1, 5),
    more=st.integers(0, 4),
    buckets=st.integers(1, 2**31 - 8),
)
def test_buckets_are_those_of_the_definition(words: list[str], shortest: int, more: int, buckets: int) -> None:
    settings = Subwords(minLength=shortest, maxLength=shortest + more, buckets=buckets)
    found = subwords.pieces(words, settings)
    assert len(found.starts) == len(words) + 1
    for number, (word, (start, end)) in enumerate(zip(words, itertools.pairwise(found.starts), strict=True)):
        marked = f"<{word}>"
        marks = {(0, 1), (len(word) + 1, len(word) + 2)}
        spans = set(itertools.combinations(range(len(marked) + 1), 2)) - marks
        ngrams = [marked[a:b] for a, b in spans if shortest <= b - a <= shortest + more]
        expected = [number, *(len(words) + zlib.crc32(one.encode()) % buckets for one in ngrams)]
        assert sorted(found.rows[start:end].tolist()) == sorted(expected)
        assert found.rows[start] == number


def test_pieces() -> None:
    settings = Subwords(minLength=3, maxLength=3, buckets=100)
    found = subwords.pieces(["ab", "x", "abc"], settings)
    assert found.starts.tolist() == [0, 3, 5, 9]
    assert found.rows[:3].tolist() == [0, *(3 + bucket for bucket in subwords.buckets_of("ab", settings))]
    assert found.rows[3] == 1


@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_composed(size: int) -> None:
    words = [str(i) for i in range(size)]
    parts = subwords.pieces(words, Subwords(buckets=50))
    vectors = np.random.default_rng(1).standard_normal((size + 50, 4)).astype(np.float32)
    found = subwords.composed(vectors, parts)
    for word in (0, size // 2, size - 1):
        expected = vectors[parts.rows[parts.starts[word] : parts.starts[word + 1]]].mean(axis=0)
        np.testing.assert_allclose(found[word], expected, atol=1e-6)


def loss_by_definition(
    vectors: Tensor, contexts: Tensor, sentence: list[int], *, task: WordEmbedding, words: Distribution
) -> Tensor:
    """With a window of 1, all of whose negatives are NOISE; each row of a bag has the whole of the mean's gradient."""
    pieces = words.pieces
    assert pieces is not None
    total = torch.zeros((), dtype=vectors.dtype)
    for place, centre in enumerate(sentence):
        around = [sentence[i] for i in (place - 1, place + 1) if 0 <= i < len(sentence)]
        inputs, outputs = ([centre], around) if task.model == "SkipGram" else (around, [centre])
        rows = vectors[np.concatenate([pieces.rows[pieces.starts[w] : pieces.starts[w + 1]] for w in inputs])]
        whole = rows.sum(0)
        mean = rows.mean(0).detach() + whole - whole.detach()
        for output in outputs:
            if words.tree is None:
                total = total - functional.logsigmoid(mean @ contexts[output])
                total = total - task.negatives * functional.logsigmoid(-(mean @ contexts[NOISE]))
                continue
            for node, code in zip(*words.tree.path(output), strict=True):
                total = total - functional.logsigmoid((1 - 2 * code) * (mean @ contexts[node]))
    return total


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize(("dimensions", "negatives"), [(100, 5), (3, 1), (48, 17)])
def test_gradients(mode: dict[str, Any], dimensions: int, negatives: int) -> None:
    rng = np.random.default_rng(3)
    fields = {**mode, "dimensions": dimensions, "window": 1, "negatives": negatives, "subsample": 0}
    task = WordEmbedding.model_validate({**fields, "subwords": {"buckets": 60}})
    counts = np.arange(len(WORDS), 0, -1)
    words = distribution(counts, task, WORDS)
    if words.noise is not None:
        words = Distribution(words.keep, alias(np.eye(len(WORDS))[NOISE]), None, words.pieces)
    start = initial_parameters(len(WORDS), dimensions, 1, 60)
    for one in (start.vectors, start.contexts):
        one[:] = rng.standard_normal(one.shape) / dimensions**0.5
    sentence = rng.permutation(NOISE)[:31].tolist()  # twice the same word in a window would be one output
    vectors, contexts = (torch.tensor(one).double().requires_grad_() for one in (start.vectors, start.contexts))
    loss_by_definition(vectors, contexts, sentence, task=task, words=words).backward()  # type: ignore[no-untyped-call]
    moved, rate = start.copy(), 1e-4
    stats = word2vec.train_block(moved, np.array(sentence, np.int32), words, task, rates=(rate, rate), seed=1)
    assert (stats.words, stats.pairs) == (31, 31 if task.model == "CBOW" else 60)
    for before, after, leaf in ((start.vectors, moved.vectors, vectors), (start.contexts, moved.contexts, contexts)):
        assert leaf.grad is not None
        error = ((torch.tensor(before) - torch.tensor(after)).double() / rate - leaf.grad).norm(dim=1)
        assert bool((error <= 0.03 * leaf.grad.norm(dim=1) + 0.02).all()), error.max()


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_touches_say_which_rows_changed(mode: dict[str, Any]) -> None:
    task = WordEmbedding.model_validate(
        {**mode, "dimensions": 8, "window": 3, "subsample": 0, "subwords": {"buckets": 5000}}
    )
    words = distribution(np.arange(len(WORDS), 0, -1), task, WORDS)
    start = initial_parameters(len(WORDS), 8, 1, 5000)
    start.contexts[:] = np.random.default_rng(1).random(start.contexts.shape)
    moved, touches = start.copy(), no_touches(len(WORDS), 5000)
    tokens = np.array([1, 2, 3, 4, -1, 5, 6, -1], np.int32)
    word2vec.train_block(moved, tokens, words, task, rates=(0.1, 0.1), seed=5, touches=touches)
    told = word2vec.rows(tokens, words, task, seed=5)
    for before, after, found, rows in (
        (start.vectors, moved.vectors, touches.vectors, told[0]),
        (start.contexts, moved.contexts, touches.contexts, told[1]),
    ):
        assert np.array_equal((before != after).any(axis=1), found > 0)
        assert np.array_equal(np.flatnonzero(found), rows)
        assert (found == 0).any()


def test_many_words_around_are_all_learnt_from() -> None:
    """More outputs than a step takes at once, and a pool that gives each negative its weight."""
    task = WordEmbedding(dimensions=4, window=20, windowing="Fixed", subsample=0, subwords=Subwords(buckets=10))
    size = 2000
    words = distribution(np.full(size, 5), task, [str(i) for i in range(size)])
    start, touches = initial_parameters(size, 4, 1, 10), no_touches(size, 10)
    tokens = np.arange(40, dtype=np.int32)
    stats = word2vec.train_block(start, tokens, words, task, rates=(0.01, 0.01), seed=1, touches=touches)
    assert stats.pairs == sum(min(39, i + 20) - max(0, i - 20) for i in range(40))
    positives, negatives = stats.pairs, task.negatives * stats.pairs
    assert touches.contexts.sum() == pytest.approx(positives + negatives, rel=0.03), "words around are no negatives"


@pytest.mark.parametrize("size", [1, 2, 5])
def test_words_that_are_all_around_are_negatives_of_each_other(size: int) -> None:
    """Of uniform noise one in `size` is the word itself, for which it is no negative."""
    task = WordEmbedding(dimensions=4, window=5, windowing="Fixed", subsample=0, subwords=Subwords(buckets=10))
    words = distribution(np.full(size, 5), task, [str(i) for i in range(size)])
    start, touches = initial_parameters(size, 4, 1, 10), no_touches(size, 10)
    tokens = np.random.default_rng(1).integers(0, size, 5000).astype(np.int32)
    stats = word2vec.train_block(start, tokens, words, task, rates=(0.01, 0.01), seed=1, touches=touches)
    negatives = task.negatives * stats.pairs * (1 - 1 / size)
    assert touches.contexts.sum() == pytest.approx(stats.pairs + negatives, rel=0.03)


@pytest.mark.parametrize(("window", "negatives"), [(5, 50), (10, 20), (1, 100), (20, 5)])
def test_many_negatives_do_not_diverge(window: int, negatives: int) -> None:
    """What one row stands for is bounded, whatever the settings: vectors stay as long as they are with few."""
    rng, size = np.random.default_rng(1), 300
    tokens = np.concatenate([[*(rng.zipf(1.3, 30) % size), -1] for _ in range(3000)]).astype(np.int32)
    fields = {"dimensions": 48, "window": window, "negatives": negatives, "subwords": {"buckets": 500}}
    task = WordEmbedding.model_validate(fields)
    words = distribution(np.bincount(tokens[tokens >= 0], minlength=size) + 1, task, [str(i) for i in range(size)])
    parameters = initial_parameters(size, 48, 1, 500)
    for epoch in range(3):
        word2vec.train_block(parameters, tokens, words, task, rates=(0.05, 0.05), seed=epoch)
    assert np.linalg.norm(parameters.vectors, axis=1).max() < 50
    assert np.linalg.norm(parameters.contexts, axis=1).max() < 50


def test_a_word_that_stands_twice_around_a_centre_is_learnt_from_twice() -> None:
    task = WordEmbedding.model_validate(
        {"dimensions": 16, "window": 1, "negatives": 1, "subsample": 0, "subwords": {"buckets": 60}}
    )
    words = distribution(np.arange(len(WORDS), 0, -1), task, WORDS)
    words = Distribution(words.keep, alias(np.eye(len(WORDS))[NOISE]), None, words.pieces)
    start = initial_parameters(len(WORDS), 16, 1, 60)
    start.vectors[:] = np.random.default_rng(1).standard_normal(start.vectors.shape)
    vectors, contexts = (torch.tensor(one).double().requires_grad_() for one in (start.vectors, start.contexts))
    loss_by_definition(vectors, contexts, [3, 7, 3], task=task, words=words).backward()  # type: ignore[no-untyped-call]
    moved = start.copy()
    word2vec.train_block(moved, np.array([3, 7, 3], np.int32), words, task, rates=(1e-4, 1e-4), seed=1)
    assert contexts.grad is not None
    np.testing.assert_allclose((start.contexts - moved.contexts)[3] / 1e-4, contexts.grad[3], rtol=0.01, atol=0.01)


def test_words_that_were_never_seen_are_near_those_they_are_made_of() -> None:
    """Stems of two topics with endings: an unseen form of a stem is nearer to its topic."""
    rng = np.random.default_rng(1)
    stems = [["kaldar", "movell", "trisan", "bolkin"], ["zephyo", "quilla", "fjorna", "wexlet"]]
    endings = ["", "en", "ung", "lich", "er"]
    words = [stem + ending for topic in stems for stem in topic for ending in endings]
    unseen = ["kaldarung", "zephyoung"]
    seen = [word for word in words if word not in unseen]
    topics = [[seen.index(w) for w in seen if any(w.startswith(s) for s in topic)] for topic in stems]
    tokens = np.concatenate([[*rng.choice(topics[i % 2], 8), -1] for i in range(3000)]).astype(np.int32)
    task = WordEmbedding(dimensions=16, subsample=0, subwords=Subwords(buckets=5000))
    known = distribution(np.bincount(tokens[tokens >= 0], minlength=len(seen)), task, seen)
    parameters = initial_parameters(len(seen), 16, 1, 5000)
    for epoch in range(3):
        word2vec.train_block(parameters, tokens, known, task, rates=(0.05, 0.05), seed=epoch)
    assert task.subwords is not None
    rows = [[len(seen) + bucket for bucket in subwords.buckets_of(word, task.subwords)] for word in unseen]
    of_unseen = subwords.composed(
        parameters.vectors, Pieces(np.array([0, *np.cumsum([len(r) for r in rows])]), np.concatenate(rows))
    )
    assert known.pieces is not None
    vectors = subwords.composed(parameters.vectors, known.pieces)
    for topic, vector in enumerate(of_unseen):
        scores = [float((vectors[t] @ vector / np.linalg.norm(vectors[t], axis=1)).mean()) for t in topics]
        assert scores[topic] > scores[1 - topic] + 0.5 * np.linalg.norm(vector)


def test_parameters_of_buckets() -> None:
    made = initial_parameters(3, 5, 1, 7)
    assert isinstance(made, Parameters)
    assert (made.vectors.shape, made.contexts.shape) == ((10, 5), (3, 5))
