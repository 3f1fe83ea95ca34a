"""wordEmbedding's learner: how many blocks a round has, and what is written."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mms_workloads import memory
from mms_workloads.contract import DataFile, JobFile, Reason, WordEmbedding
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.embedding import learner as module
from mms_workloads.embedding.learner import EmbeddingLearner
from mms_workloads.embedding.parameters import BlockStats
from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.store import JobError
from mms_workloads.sync.leases import Progress, Slice
from mms_workloads.sync.plan import Plan
from mms_workloads.train.communicator import Stats
from mms_workloads.train.learner import Place

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "one two three four five six seven eight\n" * 500
WORDS = tuple(dict.fromkeys(TEXT.split()))


def learner(tmp_path: Path, blocks: int, **task: Any) -> EmbeddingLearner:
    path = tmp_path / "text"
    path.write_text(TEXT)
    size = path.stat().st_size
    job = JobFile.model_validate(
        {
            "job": {"namespace": "d", "name": "n", "uid": "u", "run": 1},
            "task": {"wordEmbedding": {"dimensions": 8, "subsample": 0, **task}},
            "data": {"store": {"uri": f"file://{path}"}},
            "evaluation": {"split": 0},
            "workers": 1,
            "storage": {"uri": f"file://{tmp_path}/run"},
            "masterHost": "127.0.0.1",
            "optimizer": {"name": "SGD", "learningRate": 0.05, "epochs": 2},
        }
    )
    plan = Plan((DataFile(uri=f"file://{path}", size=size),), -(-size // blocks), Vocabulary(WORDS, (500,) * 8))
    assert job.task.wordEmbedding is not None
    return EmbeddingLearner.of(job, job.task.wordEmbedding, plan, tmp_path / "cache")


def trained(it: EmbeddingLearner) -> EmbeddingState:
    """As after a pair."""
    state = it.start()
    assert isinstance(state, EmbeddingState)
    state.base.contexts[0] = 0.1
    return state


@pytest.mark.parametrize(
    ("blocks", "members", "expected"),
    [
        (1, 1, 1),
        (7, 2, 1),
        (64, 2, 8),
        (64, 1, 8),
        (300, 4, 4),
        (600, 1, module.LONGEST_ROUND),
        (6000, 2, module.LONGEST_ROUND),
        (6000, 4, module.LONGEST_ROUND // 4),
        (200, 100, 1),
    ],
)
def test_blocks_of_a_round(tmp_path: Path, blocks: int, members: int, expected: int) -> None:
    assert learner(tmp_path, blocks).batch(Place(0, members)) == expected


def test_a_round_of_more_work_has_fewer_blocks(tmp_path: Path) -> None:
    """It takes a second or so, whatever the task."""
    sizes = [
        learner(tmp_path, 6000, **{"dimensions": 100, **task}).batch(Place(0, 2))
        for task in ({}, {"dimensions": 300, "window": 10}, {"subwords": {"buckets": 1000}}, {"negatives": 2})
    ]
    assert sizes[0] == sizes[3] == module.LONGEST_ROUND
    assert sizes[1] == sizes[0] // 6
    assert sizes[2] == sizes[0] // module.GRAMS
    assert module.work(WordEmbedding(objective="Softmax"), 10_000) > 100 * module.work(WordEmbedding(), 10_000)


def test_a_round_has_no_more_blocks_than_there_is_memory_for(tmp_path: Path) -> None:
    """Of rows that are pulled: one at first, then by what the last rounds needed, half of the memory at most."""
    held = learner(tmp_path, 64, dimensions=16, subwords={"buckets": 1_000_000})
    row = module.HELD * 16 * 4
    assert held.fitting(None) == held.fitting(4 * row * 1_000_000) == module.LONGEST_ROUND
    assert held.fitting(row * 1000) == 1
    held.needed.append((1, 100))
    assert held.fitting(row * (1000 - 100)) == 5
    held.needed.append((5, 300))
    assert held.fitting(row * (1000 - 300)) == 5
    assert held.fitting(0) == 1


def test_the_rate_falls_within_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of four blocks ends where the next one begins."""
    it = learner(tmp_path, 4)
    state = it.start()
    state.agreement.progress = Progress.none(4)
    rates, real = list[tuple[float, float]](), module.training.train_block

    def watched(*given: Any, **how: Any) -> Any:
        rates.append(how["rates"])
        return real(*given, **how)

    monkeypatch.setattr(module.training, "train_block", watched)
    stats = it.compute(state, [Slice(0, block, 0, 1, 1) for block in range(4)], Place(0, 1))
    assert rates[0][0] == pytest.approx(0.05)
    assert rates[-1][1] == pytest.approx(0.025), "half of two data epochs"
    assert all(a[1] == b[0] for a, b in itertools.pairwise(rates))
    assert stats.samples == 4000
    losses = [loss for _, loss in it.losses]
    assert abs(stats.loss - np.mean(losses)) < 0.2 * abs(losses[-1] - np.mean(losses)), "of all blocks, not the last"
    assert [words for words, _ in it.losses] == [1000, 2000, 3000, 4000]


def test_what_was_not_measured_is_no_term_of_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = iter([BlockStats(10, 20.0, None), BlockStats(10, 30.0, 2.0), BlockStats(10, 5.0, None)])
    monkeypatch.setattr(module.training, "train_block", lambda *_, **__: next(blocks))
    it = learner(tmp_path, 4)
    state = it.start()
    state.agreement.progress = Progress.none(4)
    stats = it.compute(state, [Slice(0, block, 0, 1, 1) for block in range(3)], Place(0, 1))
    assert stats == Stats(30, 30.0, 2.0)
    assert it.losses == [(2000, 2.0)]


def test_where_there_is_a_gpu_it_trains_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stand-in is another name of the processor. The rows that it touches are those that were told."""
    monkeypatch.setattr(module.device, "chosen", lambda: torch.device("cpu", 0))
    monkeypatch.setattr(module.training, "train_block", None)
    it = learner(tmp_path, 4)
    state = it.start()
    state.agreement.step, state.agreement.progress = 0, Progress.none(4)
    slices = [Slice(0, 0, 0, 1, 1), Slice(0, 2, 0, 1, 1)]
    told = it.rows(slices)
    stats = it.compute(state, slices, Place(0, 1))
    assert stats.samples > 0
    assert torch.equal(told["vectors"], state.touches.vectors.nonzero().squeeze(1))
    assert torch.equal(told["contexts"], state.touches.contexts.nonzero().squeeze(1))
    assert not np.array_equal(state.training().vectors, it.start().training().vectors)


def test_rows_are_those_that_are_touched(tmp_path: Path) -> None:
    it = learner(tmp_path, 4, subwords={"buckets": 1000})
    state = it.start()
    state.agreement.progress = Progress.none(4)
    slices = [Slice(0, block, 0, 1, 1) for block in (1, 3)]
    told = it.rows(slices)
    it.compute(state, slices, Place(0, 1))
    assert torch.equal(told["vectors"], state.touches.vectors.nonzero().squeeze(1))
    assert torch.equal(told["contexts"], state.touches.contexts.nonzero().squeeze(1))
    assert [(t.name, t.rows) for t in it.tables()] == [("vectors", 1008), ("contexts", 8)]
    assert it.rows([]) == {}


@pytest.mark.parametrize("least", [9, 8], ids=["few words", "many"])
def test_a_graph_of_many_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(module.graph, "LEAST_WORDS", least)
    it = learner(tmp_path, 4)
    state = trained(it)
    folder = tmp_path / "artifact"
    folder.mkdir()
    it.write(state, it.evaluate(state), folder)
    assert (folder / "neighbours.usearch").exists() == (least <= len(WORDS))


def test_parameters_that_no_pair_has_changed_are_no_model(tmp_path: Path) -> None:
    """Whoever trained: the one that exports may not have seen a block."""
    it = learner(tmp_path, 4)
    with pytest.raises(JobError, match="no two words stand in one line") as raised:
        it.evaluate(it.start())
    assert raised.value.reason == Reason.DATA_INVALID
    it.evaluate(trained(it))


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ({}, r"a model of 8 words and 1,000 buckets of 8 dimensions .* subwords\.buckets, .* \(sync\.mode: Param"),
        ({"parameterServer": {}}, r"a worker keeps of 8 words and 1,000 buckets.*: lower maxVocabulary or subwords\.b"),
    ],
    ids=["ring", "parameter server"],
)
def test_memory_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: dict[str, Any], said: str
) -> None:
    it = learner(tmp_path, 4, subwords={"buckets": 1000})
    it.job = JobFile.model_validate({**it.job.model_dump(), **mode})
    it.start()
    monkeypatch.setattr(memory, "available", lambda: 1016 * 12 - 1)
    with pytest.raises(JobError, match=said) as raised:
        it.start()
    assert (raised.value.reason, raised.value.retryable) == (Reason.OUT_OF_MEMORY, False)


def test_what_is_written(tmp_path: Path) -> None:
    it = learner(tmp_path, 4, subwords={"buckets": 1000})
    state = trained(it)
    evaluation = it.evaluate(state)
    folder = tmp_path / "artifact"
    folder.mkdir()
    golden = it.write(state, evaluation, folder)
    assert {path.name for path in folder.iterdir()} == {
        "model.json", "model.safetensors", "report.html", "vocabulary.txt",
    }  # fmt: skip
    assert {case.model for case in golden.cases} >= {"vectors"}
    assert set(evaluation.metrics) == {"trainingContextAUC"}
    assert np.isfinite(list(evaluation.metrics.values())).all()
