"""An evaluation has something to look at, and its report says how much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_workloads.contract import Reason
from mms_workloads.data.schema import Schema
from mms_workloads.store import JobError
from mms_workloads.tasks.learner import TaskLearner
from tests.unit.tasks import datasets, taught
from tests.unit.tasks.test_task_runs import PICTURE, job

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

TASK = {"imageClassification": PICTURE}


class Blocks:
    """Records of which each block has so many."""

    def __init__(self, counts: Sequence[int]) -> None:
        images, labels = datasets.digits()
        self._records = [
            [{"input": datasets.png(images[i]), "label": labels[i]} for i in range(count)] for count in counts
        ]
        self.blocks = self._records
        classes = dict.fromkeys("0123456789", 1)
        self.schema = Schema("ImageFolder", "image", "string", classes, records=sum(counts))

    def records(self, block: int) -> Sequence[Mapping[str, Any]]:
        return self._records[block]

    def count(self, block: int) -> int:
        return len(self._records[block])


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ([3, 3, 0, 3, 3], r"nothing to evaluate: of 12 records .* in the 1 blocks"),
        ([0, 0, 3, 0, 0], r"nothing to train on: of 3 records .* in the 4 blocks"),
        ([0], r"nothing to evaluate: of 0 records .* in the 1 blocks"),
    ],
)
def test_an_evaluation_of_nothing_is_none(tmp_path: Path, counts: list[int], why: str, one_thread: None) -> None:
    training = job(tmp_path, TASK, "file:///x")
    made = taught.learner(job(tmp_path, TASK, datasets.image_folder(tmp_path / "d", 60)), tmp_path / "s")
    one = TaskLearner.of(training, made.task, Blocks(counts))
    with pytest.raises(JobError, match=why) as raised:
        one.evaluate(one.start())
    assert raised.value.reason is Reason.DATA_EMPTY


def test_the_report_counts_what_was_measured(tmp_path: Path, one_thread: None) -> None:
    made = taught.learner(job(tmp_path, TASK, datasets.image_folder(tmp_path / "d", 60)), tmp_path / "s")
    one = TaskLearner.of(job(tmp_path, TASK, "file:///x"), made.task, Blocks([2, 2, 3, 2, 2]))
    report = one.evaluate(one.start()).report
    assert (report["records"], report["leftOut"], report["heldOutBlocks"]) == (3, 0, [2])
