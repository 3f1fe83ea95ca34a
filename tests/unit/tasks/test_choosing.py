"""What is looked at where not all can be is spread over all of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.serve.precision import inputs_of
from mms_workloads.tasks import choosing
from mms_workloads.tasks import learner as learners
from tests.unit.tasks import datasets, taught
from tests.unit.tasks.test_task_runs import PICTURE, job

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import Golden
    from mms_workloads.tasks.learner import TaskLearner

TASK = {"imageClassification": PICTURE}


@pytest.mark.parametrize("count", [0, 1, 2, 10, 97, 1000])
def test_the_first_ones_are_spread_evenly(count: int) -> None:
    order = choosing.spread(range(count))
    assert sorted(order) == list(range(count))
    for some in range(2, count, 7):
        first = sorted(order[:some])
        gaps = [b - a for a, b in zip(first, [*first[1:], count], strict=True)]
        assert max(gaps) <= 3 * count / some + 1


def data(sizes: list[int]) -> Any:
    """Records of which each tells its block and place."""
    return lambda block: [{"input": (block, place)} for place in range(sizes[block])]


@pytest.mark.parametrize("sizes", [[5, 5, 5], [1, 9, 0, 4], [3] * 40, [0], [], [100]])
def test_records_are_dealt_in_turn_and_each_once(sizes: list[int]) -> None:
    found = [one["input"] for one in choosing.dealt(range(len(sizes)), data(sizes), 12)]
    assert sorted(found) == [(block, place) for block, size in enumerate(sizes) for place in range(size)]
    there = sum(1 for size in sizes if size)
    assert len({block for block, _ in found[:12]}) == min(12, there)


def test_no_more_blocks_are_read_than_are_needed() -> None:
    read: list[int] = []

    def records(block: int) -> list[dict[str, int]]:
        read.append(block)
        return [{"input": block}] * 50

    dealt = choosing.dealt(range(1000), records, 10)
    assert len({next(dealt)["input"] for _ in range(10)}) == 10
    assert len(read) == 10


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ([5, 5, 5], [5, 5]),
        ([11, 3, 8, 7], [3, 7]),
        ([12, 11, 13, 14, 2, 2], [11]),  # to prove the artifact one is better than none
        ([], []),
    ],
)
def test_records_that_have_no_room_are_passed_over(sizes: list[int], kept: list[int]) -> None:
    found = choosing.fitting([{"input": size} for size in sizes], lambda one: one["input"], 4, 10)
    assert [one["input"] for one in found] == kept


@pytest.fixture
def digits(tmp_path: Path, one_thread: None) -> TaskLearner:
    """Files in the order of their digits."""
    training = job(tmp_path, TASK, datasets.image_folder(tmp_path / "digits", 900), data={"blockBytes": 2 << 10})
    return taught.learner(training, tmp_path / "scratch")


def written(one: TaskLearner, folder: Path) -> Golden:
    folder.mkdir()
    state = one.start()
    return one.write(state, one.evaluate(state), folder)


def test_the_golden_set_has_all_labels(digits: TaskLearner, tmp_path: Path) -> None:
    images, labels = datasets.digits()
    label_of = {datasets.png(image): label for image, label in zip(images, labels, strict=True)}
    golden = written(digits, tmp_path / "artifact")
    asked = Counter(label_of[inputs_of(case)["IMAGE"][0, 0]] for case in golden.comparisons)
    assert len(asked) == 10
    assert max(asked.values()) <= 25
    assert len({label_of[inputs_of(case)["IMAGE"][0, 0]] for case in golden.cases}) > 1


def test_an_evaluation_of_some_sees_all_labels(digits: TaskLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learners, "EVALUATION_SAMPLES", 60)
    used: list[int] = []
    sizes: list[int] = []
    seen = Counter[int]()
    for batch in digits.evaluated(list(digits.held_out), used, sizes):
        seen.update(batch["label"].tolist())
    assert 60 <= sum(sizes) < 100
    assert len(seen) >= 8
    assert digits.evaluate(digits.start()).report["heldOutBlocks"] == sorted(used)


def test_a_golden_set_has_bounds(digits: TaskLearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learners, "GOLDEN_BYTES", 1000)
    golden = written(digits, tmp_path / "artifact")
    sent = [len(inputs_of(case)["IMAGE"][0, 0]) for case in golden.comparisons]
    assert sum(sent) <= 1000
    assert len(sent) >= 4
    monkeypatch.setattr(learners, "GOLDEN_BYTES", 10)
    assert len(written(digits, tmp_path / "another").comparisons) == 1
