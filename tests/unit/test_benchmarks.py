"""Benchmarks find each other's parts, whatever packages of that name others have installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import autotune, embedding_distributed, tasks
from mms_workloads.data import blocks
from tests.unit.tasks import plain

ROOT = Path(__file__).parents[2]


def test_the_package_is_ours() -> None:
    """As the Makefile runs them: Python looks there before where it installs."""
    folders = (ROOT / "cluster", ROOT / "operator", ROOT / "workloads", ROOT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    said = subprocess.run(
        [sys.executable, "-c", "from benchmarks import on_cluster; print(on_cluster.__file__)"],
        cwd=ROOT / "tests", env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    assert Path(said.stdout.strip()) == ROOT / "benchmarks" / "on_cluster.py"


def test_what_they_train_is_a_job(tmp_path: Path) -> None:
    assert autotune.job(tmp_path, {"textClassification": {}}, "file:///nowhere").workers == 1
    how = {"workers": 2, "syncMode": "ParameterServer", "compression": "None"}
    assert embedding_distributed.job(tmp_path, tmp_path, 1, 1, **how).workers == 2


@pytest.mark.parametrize("name", tasks.CASES)
def test_what_tasks_are_measured_by_is_held_out(tmp_path: Path, name: str) -> None:
    job = tasks.job(name, tmp_path, tasks.CASES[name].data(tmp_path / "data"), seed=1, workers=2)
    trained_on, held_out = blocks.split(len(plain.counted(job, tmp_path).blocks()), job.evaluation.split)
    assert len(trained_on) >= job.workers
    assert held_out
