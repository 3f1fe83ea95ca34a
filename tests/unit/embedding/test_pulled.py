"""Word vectors of which a worker holds some rows: the same training as with all of them, in less memory."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mms_workloads import memory
from mms_workloads.contract import WordEmbedding
from mms_workloads.embedding import parameters, training
from mms_workloads.embedding.distribution import distribution
from mms_workloads.embedding.golden import nearest
from mms_workloads.embedding.parameters import initial_parameters, initial_rows, no_touches
from mms_workloads.embedding.pulled import PulledState
from mms_workloads.store import JobError
from mms_workloads.sync.layout import Table
from tests.unit.embedding.test_word2vec import corpus

if TYPE_CHECKING:
    from mms_workloads.embedding.parameters import Parameters

TASKS = {
    "negatives": {"model": "SkipGram"},
    "bag": {"model": "CBOW", "negatives": 2},
    "tree": {"model": "SkipGram", "objective": "HierarchicalSoftmax"},
    "n-grams": {"model": "SkipGram", "subwords": {"buckets": 5000}},
    "bag of n-grams": {"model": "CBOW", "subwords": {"buckets": 5000}, "objective": "HierarchicalSoftmax"},
    "softmax": {"model": "SkipGram", "objective": "Softmax"},
}
SIZE = 40  # dimensions, of rows of 48


def pulled(whole: Parameters, vectors: np.ndarray, contexts: np.ndarray) -> PulledState:
    """With these rows, as from shards."""
    tables = (Table("vectors", len(whole.vectors), SIZE), Table("contexts", len(whole.contexts), SIZE))
    state = PulledState.of(*tables)
    hold(state, whole, vectors, contexts)
    return state


def hold(state: PulledState, whole: Parameters, vectors: np.ndarray, contexts: np.ndarray) -> None:
    for name, rows, of in (("vectors", vectors, whole.vectors), ("contexts", contexts, whole.contexts)):
        state.held[name].hold(torch.from_numpy(rows))
        cut = len(rows) // 2
        for part in (slice(0, cut), slice(cut, len(rows))):
            state.held[name].put(part, torch.from_numpy(of[rows[part]]))


@pytest.mark.parametrize("fields", TASKS.values(), ids=TASKS)
def test_it_trains_as_with_all_rows(fields: dict[str, Any]) -> None:
    """To the bit, round after round, and changes are those of the same rows."""
    task = WordEmbedding.model_validate({"dimensions": SIZE, "subsample": 0, **fields})
    buckets = task.subwords.buckets if task.subwords else 0
    blocks, counts = corpus(sentences=1000)
    counts = np.append(counts, np.ones(2000, np.int64))  # words that blocks need as negatives at most
    words = distribution(counts, task, [f"w{i}" for i in range(len(counts))])
    whole = initial_parameters(len(counts), SIZE, 1, buckets)
    state = None
    for seed in range(3):
        tokens = blocks[seed]
        how: dict[str, Any] = {"rates": (0.05, 0.04), "seed": seed, "threads": 1}
        vectors, contexts = training.rows(tokens, words, task, seed=seed)
        assert len(vectors) < len(whole.vectors)
        if state is None:
            state = pulled(whole, vectors, contexts)
        else:
            hold(state, whole, vectors, contexts)
        before, touches = whole.copy(), no_touches(len(counts), buckets)
        said = training.train_block(whole, tokens, words, task, touches=touches, **how)
        same = training.train_block(state.training(), tokens, words, task, touches=state.touches.touches(), **how)
        assert said == same
        touched = state.touched()
        assert touched.tolist() == [*touches.vectors, *touches.contexts]
        rows = touched.nonzero().squeeze(1)
        changes, squares = state.changes(rows)
        both = [np.concatenate((one.vectors, one.contexts)) for one in (whole, before)]
        expected = (both[0] - both[1])[rows.numpy()]
        assert torch.equal(changes, torch.from_numpy(expected))
        assert squares == pytest.approx(float((expected.astype(np.float64) ** 2).sum()), rel=1e-5)
        state.next_round()
        assert not state.touched().any()


def test_memory_is_of_the_rows_that_are_held() -> None:
    """And grows with a round that needs more, not with the table."""
    state = PulledState.of(Table("vectors", 10_000_000, 300), Table("contexts", 100, 300))
    held = state.held["vectors"]
    for count in (10, 1000, 20):
        held.hold(torch.arange(0, 1000 * count, 1000)[:count])
        held.put(slice(0, count), torch.full((count, 300), float(count)))
    assert len(held.base) == len(held.working) == 1250
    assert (held.working[:20] == 20).all()
    assert held.places[:20_000:1000].tolist() == list(range(20))
    assert held.places.count_nonzero() == 19


def test_rows_of_the_round_before_go_before_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    held = PulledState.of(Table("vectors", 100_000, 30), Table("contexts", 100, 30)).held["vectors"]
    made, real, rows = list[weakref.ref[np.ndarray]](), parameters.matrix, list[int]()

    def matrix(*shape: int) -> np.ndarray:
        made.append(weakref.ref(found := real(*shape)))
        return found

    monkeypatch.setattr(parameters, "matrix", matrix)
    monkeypatch.setattr(
        parameters, "room", lambda *_: rows.append(sum(len(a) for one in made if (a := one()) is not None))
    )
    held.hold(torch.arange(10))
    held.hold(torch.arange(1000))
    assert len(held.base) == 1250
    assert rows == [0, 0]


def test_a_round_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    held = PulledState.of(Table("vectors", 1_000_000, 300), Table("contexts", 100, 300)).held["vectors"]
    monkeypatch.setattr(memory, "available", lambda: 1 << 20)
    with pytest.raises(JobError, match=r"a round that needs 100,000 rows of word vectors takes .* GiB"):
        held.hold(torch.arange(100_000))
    held.hold(torch.arange(100))


def test_all_rows_are_gathered_in_files(tmp_path: Path) -> None:
    state = PulledState.of(Table("vectors", 50, 3), Table("contexts", 20, 3))
    for name, slots in state.gather(tmp_path).items():
        slots["parameters"].copy_(torch.arange(3 * len(slots["parameters"])).view(-1, 3) + len(name))
    whole = state.parameters()
    assert whole.vectors[49].tolist() == [154, 155, 156]
    assert whole.contexts[19].tolist() == [65, 66, 67]
    made = state.matrix(1000, 7)
    made[:] = 1
    assert not list(tmp_path.iterdir()), "they have no names, and go with their memory"
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert len(mapped) == 3


@pytest.mark.parametrize(("first", "count"), [(0, 10), (16_380, 10), (16_384, 1), (20_000, 20_000)])
def test_rows_begin_as_they_do_with_all(first: int, count: int) -> None:
    whole = initial_parameters(40_000, 5, 7).vectors
    rows = np.zeros((count, 5), np.float32)
    initial_rows(rows, first, 7)
    assert np.array_equal(rows, whole[first : first + count])


def test_the_nearest_are_found_in_parts() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(5000, 8)).astype(np.float32)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    without = [(3,), (7, 4000, 2048), ()]
    for found, direction, left_out in zip(nearest(vectors, units[:3], without, 11), units[:3], without, strict=True):
        scores = units @ direction
        scores[list(left_out)] = -2
        expected = np.argsort(-scores)[:11]
        assert found.numbers == expected.tolist()
        assert found.scores == pytest.approx(scores[expected].tolist(), abs=1e-6)
        assert found.gap == pytest.approx(float(np.diff(-scores[expected]).min()), abs=1e-6)


def test_fewer_words_than_are_asked_for() -> None:
    (found,) = nearest(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[:1], [(0,)], 11)
    assert sorted(found.numbers) == [1, 2]
