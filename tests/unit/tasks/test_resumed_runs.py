"""A run of one worker that is suspended and resumed is, to the bit, one that was not: what is random goes on, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from mms_workloads.contract import Desired
from tests.unit.tasks import datasets
from tests.unit.tasks.test_task_runs import SECONDS, artifact, job, run
from tests.unit.train.quick import QuickRun

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import JobFile

# Layers that leave values out at random, and records that are changed at random.
TASK = {"textClassification": {"dimensions": 32, "maxLength": 32, "dropout": 0.2}}
DATA = {"augmentation": {"transforms": ["Identity", "WordDropout", "WordSwap"]}, "blockBytes": 8 << 10}


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_suspended_and_resumed(tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # or sums are made in another order each time

    def training(folder: Path) -> JobFile:
        optimizer: dict[str, Any] = {"epochs": 8, "precision": precision}
        return job(folder, TASK, datasets.opinions(tmp_path / "data", 800), workers=1, data=DATA, optimizer=optimizer)

    run(tmp_path / "whole", training(tmp_path / "whole"))
    parts = tmp_path / "parts"
    with QuickRun(parts / "first", training(parts)) as first:
        first.start().until(lambda report: report.step >= 20, SECONDS)
        first.desire(Desired(suspend=True, workers=1))
        suspended = first.outcome(SECONDS)
    assert suspended.result == "Suspended"
    with QuickRun(parts / "second", training(parts), attempt=2) as second:
        assert second.start().outcome(SECONDS).result == "Complete"
    whole, resumed = (load_file(artifact(one) / "model.safetensors") for one in (tmp_path / "whole", parts))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
