"""Rounds of blocks that have different transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_workloads.sync.leases import Slice
from mms_workloads.train.learner import Place
from tests.unit.tasks import datasets, taught
from tests.unit.tasks.test_task_runs import PICTURE, job

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 2), (1, 2)])
def test_mixed_blocks_and_others_in_one_round(tmp_path: Path, order: tuple[int, int], one_thread: None) -> None:
    """The loss of a round is the sum of its blocks': each sample has its own labels."""
    uri = datasets.image_folder(tmp_path / "data", 200)
    data = {"augmentation": {"transforms": ["Identity", "Mixup", "Flip"]}, "blockBytes": 2 << 10}
    one = taught.learner(job(tmp_path, {"imageClassification": PICTURE}, uri, data=data), tmp_path / "scratch")
    state, place = one.start(), Place(0, 1)
    parts = [[Slice(0, block, 0, one.size(block), one.size(block))] for block in order]
    alone = []
    for slices in parts:
        state.reset()
        stats = one.compute(state, slices, place)
        alone.append(stats.loss * stats.samples)
    state.reset()
    together = one.compute(state, [s for slices in parts for s in slices], place)
    assert together.samples == sum(one.size(block) for block in order)
    assert together.loss * together.samples == pytest.approx(sum(alone), rel=1e-5)
