"""What the learning rate is in a run whose number of workers changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mms_workloads.contract import Desired
from tests.unit.train import quick, rates, runs
from tests.unit.train.quick import QuickRun
from tests.unit.train.runs import SECONDS, until_step
from tests.unit.train.test_served_runs import LANGUAGE

if TYPE_CHECKING:
    from pathlib import Path

RATE, BATCH = 0.01, 32


@pytest.mark.parametrize(("rule", "rate", "share"), [("KeepGlobalBatch", 1, 0.5), ("ScaleLearningRate", 2, 1)])
def test_a_second_worker_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, rate: int, share: float
) -> None:
    """So many data epochs are left that the rate does not decay meanwhile."""
    monkeypatch.setenv(quick.LEARNER, rates.MODULE)
    optimizer = {"name": "AdamW", "learningRate": RATE, "globalBatchSize": BATCH, "epochs": 100_000}
    training = runs.job(tmp_path, task=LANGUAGE, optimizer={**optimizer, "whenWorkersChange": rule})
    with QuickRun(tmp_path / "run", training) as run:
        run.start()
        until_step(run, 3)
        run.desire(Desired(workers=2))
        run.start_worker(1)
        run.until(lambda _: any(members == 2 for members, _, _ in rates.read(run.folder / "worker-0")), SECONDS)
    found = {
        members: (pytest.approx(at, rel=0.01), batch) for members, at, batch in rates.read(run.folder / "worker-0")
    }
    assert found == {1: (RATE, BATCH), 2: (rate * RATE, share * BATCH)}
