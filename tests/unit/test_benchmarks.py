"""Benchmarks find each other's parts, whatever packages of that name others have installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import autotune, embedding_distributed, hotswap_clients, tasks
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


SWAPS = [(10.0, 11.0), (20.0, 21.0)]
REQUESTS: dict[str, tuple[tuple[float, float], bool]] = {
    "before all": ((8.0, 9.0), False),
    "until it begins": ((9.0, 10.0), False),
    "when it begins": ((9.9, 10.1), True),
    "in it": ((10.4, 10.6), True),
    "when it ends": ((10.9, 11.1), True),
    "all of it": ((9.0, 12.0), True),
    "between two": ((12.0, 19.0), False),
    "the second one": ((19.5, 20.5), True),
    "after all": ((21.0, 22.0), False),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_which_requests_a_swap_can_hold_up(name: str) -> None:
    span, wanted = REQUESTS[name]
    assert hotswap_clients.overlapping([span], SWAPS) == ([span] if wanted else [])


def test_a_stall_of_a_few_requests_is_seen() -> None:
    """Eight of a thousand, which their p99 does not show."""
    quick = [(at / 100, at / 100 + 0.005) for at in range(992)]
    held_up = [(9.925, 10.925)] * 8
    found = hotswap_clients.times([*quick, *held_up])
    assert found["requests"] == 1000
    assert found["p99"] == pytest.approx(5)
    assert found["p999"] == pytest.approx(1000)
    only = hotswap_clients.times(hotswap_clients.overlapping([*quick, *held_up], [(9.93, 9.95)]))
    assert (only["requests"], only["p99"]) == (8, pytest.approx(1000))
