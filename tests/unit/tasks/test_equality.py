"""Runs of 1, 2 and 4 workers in both modes learn as a plain loop of one process does: over three seeds, by margins that
were fixed before.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.tasks import datasets, plain, recorded
from tests.unit.tasks.test_task_runs import PICTURE, PS, job, metrics, run
from tests.unit.train import quick

if TYPE_CHECKING:
    from pathlib import Path

    from mms_workloads.contract import JobFile

SEEDS = (1, 2, 3)
PARTS = 5  # of a run, in whose means loss curves are compared
# Of the loss at the start, between the means of three seeds: batches of samples in another order differ by noise.
CURVE_MARGIN = 0.05
MARGINS = {"accuracy": 0.02, "entityF1": 0.03}

WAYS = {
    f"{mode}-{workers}": {"workers": workers, **sync}
    for workers in (1, 2, 4)
    for mode, sync in (("Ring", {}), ("ParameterServer", PS))
}

TASKS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "images": ({"imageClassification": PICTURE}, "accuracy", {"epochs": 6, "globalBatchSize": 64}),
    "texts": ({"textClassification": {"dimensions": 32, "maxLength": 64}}, "accuracy", {"epochs": 3}),
    "videos": (
        {"videoUnderstanding": {"height": 20, "width": 20, "channels": 1, "frames": 6}},
        "accuracy",
        {"epochs": 12, "globalBatchSize": 16},
    ),
    "names": ({"tokenClassification": {"dimensions": 32, "maxLength": 16}}, "entityF1", {"epochs": 4}),
}


def training(name: str, folder: Path, uri: str, seed: int, **changes: Any) -> JobFile:
    task, _, optimizer = TASKS[name]
    return job(folder, task, uri, optimizer={**optimizer, "seed": seed}, **changes)


class Alone:
    """The plain loops, each run once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.data = {
            "images": datasets.image_folder(folder / "digits"),
            "texts": datasets.opinions(folder / "opinions", 3000),
            "videos": datasets.tar_of(folder / "videos", datasets.videos(300)),
            "names": datasets.sentences(folder / "names"),
        }
        self._known: dict[str, list[plain.Loop]] = {}

    def of(self, name: str) -> list[plain.Loop]:
        if name not in self._known:
            trainings = {seed: training(name, self._folder, self.data[name], seed) for seed in SEEDS}
            self._known[name] = [plain.loop(one, self._folder / f"{name}-{seed}") for seed, one in trainings.items()]
        return self._known[name]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("alone"))


def curve(runs: list[list[float]]) -> list[float]:
    """The mean over the runs in each part of them."""
    return [
        statistics.mean(
            loss for losses in runs for loss in losses[part * len(losses) // PARTS : (part + 1) * len(losses) // PARTS]
        )
        for part in range(PARTS)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", TASKS)
def test_workers_learn_as_a_plain_loop_does(
    tmp_path: Path, alone: Alone, monkeypatch: pytest.MonkeyPatch, name: str, way: dict[str, Any]
) -> None:
    metric = TASKS[name][1]
    curves, scores = [], []
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        (folder / "losses").mkdir(parents=True)
        monkeypatch.setenv(recorded.FOLDER, str(folder / "losses"))
        monkeypatch.setenv(quick.LEARNER, recorded.MODULE)
        outcome = run(folder, training(name, folder, alone.data[name], seed, **way))
        curves.append(recorded.losses(folder / "losses"))
        scores.append(metrics(outcome)[metric])
    expected = alone.of(name)
    steps = [len(one.losses) for one in expected]
    assert all(abs(len(ours) - theirs) <= 0.1 * theirs for ours, theirs in zip(curves, steps, strict=True))
    mine, theirs = curve(curves), curve([one.losses for one in expected])
    margin = CURVE_MARGIN * expected[0].losses[0]
    assert mine == pytest.approx(theirs, abs=margin), (mine, theirs)
    assert statistics.mean(scores) == pytest.approx(
        statistics.mean(one.metrics[metric] for one in expected), abs=MARGINS[metric]
    ), scores
