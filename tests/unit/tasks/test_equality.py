"""Runs of 1, 2 and 4 workers in both modes learn as a plain loop of one process does: over three seeds, by margins that
were fixed before.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.tasks import cases, plain, recorded
from tests.unit.tasks.cases import CASES
from tests.unit.tasks.test_task_runs import PS, metrics, run
from tests.unit.train import quick

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = (1, 2, 3)
PARTS = 5  # of a run, in whose means loss curves are compared

WAYS = {
    f"{mode}-{workers}": {"workers": workers, **sync}
    for workers in (1, 2, 4)
    for mode, sync in (("Ring", {}), ("ParameterServer", PS))
}
QUICK = "token-classification", "Ring-2"
PAIRS = [
    pytest.param(name, WAYS[way], id=f"{name}-{way}", marks=() if (name, way) == QUICK else pytest.mark.slow)
    for name in CASES
    for way in WAYS
]


class Alone:
    """The data sets and the plain loops of all seeds, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[str, list[plain.Loop]]] = {}

    def of(self, name: str) -> tuple[str, list[plain.Loop]]:
        """The data set's URI, and the loops."""
        if name not in self._known:
            folder = self._folder / name
            uri = CASES[name].data(folder / "data")
            trainings = {seed: cases.training(name, folder, uri, seed=seed) for seed in SEEDS}
            self._known[name] = uri, [plain.loop(one, folder / str(seed)) for seed, one in trainings.items()]
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


@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_workers_learn_as_a_plain_loop_does(
    tmp_path: Path, alone: Alone, monkeypatch: pytest.MonkeyPatch, name: str, way: dict[str, Any]
) -> None:
    case, (uri, expected) = CASES[name], alone.of(name)
    curves, scores = [], []
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        (folder / "losses").mkdir(parents=True)
        monkeypatch.setenv(recorded.FOLDER, str(folder / "losses"))
        monkeypatch.setenv(quick.LEARNER, recorded.MODULE)
        outcome = run(folder, cases.training(name, folder, uri, seed=seed, **way))
        curves.append(recorded.losses(folder / "losses"))
        scores.append(metrics(outcome)[case.metric])
    steps = [len(one.losses) for one in expected]
    assert all(abs(len(ours) - theirs) <= 0.1 * theirs for ours, theirs in zip(curves, steps, strict=True))
    mine, theirs = curve(curves), curve([one.losses for one in expected])
    margin = case.curve * expected[0].losses[0]
    assert mine == pytest.approx(theirs, abs=margin), (mine, theirs)
    wanted = [one.metrics[case.metric] for one in expected]
    assert statistics.mean(scores) == pytest.approx(statistics.mean(wanted), abs=case.margin), (scores, wanted)
