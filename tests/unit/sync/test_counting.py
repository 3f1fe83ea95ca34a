"""The counting pass: each task once, whoever is lost, and what it makes of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_workloads.contract import Reason, WordEmbedding
from mms_workloads.data import vocabulary
from mms_workloads.data.blocks import COUNTING_BYTES
from mms_workloads.store import Found, JobError
from mms_workloads.sync import plan as plans
from mms_workloads.sync.counting import Counting
from tests.unit.data.words import words_of

if TYPE_CHECKING:
    import random

TASK = WordEmbedding(minCount=1)


def found(*names_and_sizes: tuple[str, int]) -> list[Found]:
    return [Found(f"file:///{name}", size, "e") for name, size in names_and_sizes]


@given(st.randoms(use_true_random=False), st.integers(1, 5))
def test_each_task_counts_once_whoever_is_lost(rng: random.Random, workers: int) -> None:
    counting = Counting.start(found(("a.txt", 3 * COUNTING_BYTES), ("b.gz", 5), ("c.txt", 10)))
    busy: dict[int, int] = {}
    while not counting.complete():
        rank = rng.randrange(workers)
        if rank not in busy:
            task = counting.take(rank)
            if task is not None:
                assert task not in busy.values()
                busy[rank] = task
            continue
        task = busy.pop(rank)
        if rng.random() < 0.3:
            counting.give_back(rank)
        if rng.random() < 0.8:  # a result that comes although the task was given back counts once all the same
            counting.add(task, words_of({"word": 1}), {0: 7} if counting.tasks[task][0].file == 1 else {}, TASK)
        else:
            counting.give_back(rank)
    assert counting.counts.words(1) == {"word": len(counting.tasks)}


def test_a_second_result_of_a_task_changes_nothing() -> None:
    counting = Counting.start(found(("a.txt", 10)))
    counting.add(0, words_of({"a": 2, "b": 1}), {}, TASK)
    counting.add(0, words_of({"a": 9}), {0: 99}, TASK)
    plan = counting.plan(TASK, 4)
    assert (plan.vocabulary.words, plan.vocabulary.counts) == (("a", "b"), (2, 1))
    assert [f.size for f in plan.files] == [10]


def test_the_plan_has_decompressed_sizes() -> None:
    counting = Counting.start(found(("a.txt", 10), ("b.xz", 3)))
    for task in range(len(counting.tasks)):
        counting.add(task, words_of({"a": 1, "b": 1}), {1: 25} if counting.tasks[task][0].file == 1 else {}, TASK)
    plan = counting.plan(TASK, 20)
    assert [(f.uri, f.size, f.etag) for f in plan.files] == [("file:///a.txt", 10, "e"), ("file:///b.xz", 25, "e")]
    assert len(plan.blocks()) == 2
    assert plans.unpack(plans.pack(plan)) == plan
    assert plans.digest(plans.pack(plan)) == plans.digest(plans.pack(plans.unpack(plans.pack(plan))))


@pytest.mark.parametrize(
    ("files", "counts", "reason"),
    [
        ([("a.txt", 0), ("b.txt", 0)], {}, Reason.DATA_EMPTY),
        ([("a.txt", 5)], {}, Reason.DATA_EMPTY),
        ([("a.txt", 5)], {"a": 3}, Reason.VOCABULARY_TOO_SMALL),
    ],
    ids=["empty files", "no word", "one word"],
)
def test_data_that_cannot_be_trained_on(files: list[tuple[str, int]], counts: dict[str, int], reason: Reason) -> None:
    counting = Counting.start(found(*files))
    for task in range(len(counting.tasks)):
        counting.add(task, words_of(counts), {}, TASK)
    assert counting.complete()
    with pytest.raises(JobError) as raised:
        counting.plan(TASK, 4)
    assert (raised.value.reason, raised.value.retryable) == (reason, False)


def test_the_counts_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words and pairs, 30 of each."""
    monkeypatch.setattr(vocabulary, "COUNTER_FLOOR", 30)
    counting = Counting.start(found(("a.txt", 5 * COUNTING_BYTES)))
    settings = WordEmbedding(minCount=1, maxVocabulary=2)
    for task in range(5):
        rare = {f"w{task}{i}": 1 for i in range(20)}
        counting.add(task, words_of({"often": 9, "often often": 8, **rare}), {}, settings)
    words = counting.counts.words(1)
    assert words["often"] == 45
    assert len(words) <= 30
    assert dict(counting.counts.pairs(1)) == {"often often": 40}
