"""Augmentation makes a classifier of images robust, by the metrics of the artifacts: over three seeds. The figures of
docs/tasks.md are what `pytest --log-cli-level=INFO` shows of it.
"""

from __future__ import annotations

import logging
import statistics
from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.contract import SPOILS
from tests.unit.tasks import datasets
from tests.unit.tasks.test_task_runs import PICTURE, job, metrics, run

if TYPE_CHECKING:
    from pathlib import Path

SEEDS = (1, 2, 3)
METRICS = ("accuracy", *(f"accuracy{how}" for how in SPOILS))


def measured(folder: Path, digits: str, data: dict[str, Any]) -> dict[str, float]:
    """Means over the seeds."""
    found = []
    for seed in SEEDS:
        (place := folder / str(seed)).mkdir(parents=True)
        optimizer = {"epochs": 12, "seed": seed}
        training = job(place, {"imageClassification": PICTURE}, digits, data=data, optimizer=optimizer)
        found.append(metrics(run(place, training)))
    return {name: statistics.mean(one[name] for one in found) for name in METRICS}


@pytest.mark.slow
def test_augmentation_makes_a_classifier_robust(tmp_path: Path) -> None:
    digits = datasets.image_folder(tmp_path / "digits")
    plain = measured(tmp_path / "plain", digits, {})
    transforms = ["Identity", "Colour", "Mixup"]
    augmented = measured(tmp_path / "augmented", digits, {"augmentation": {"transforms": transforms}})
    logging.getLogger(__name__).info("as they are: %s; augmented: %s", plain, augmented)
    gains = {name: augmented[name] - plain[name] for name in METRICS}
    assert gains["accuracyOcclusion"] > 0.03, (plain, augmented)
    assert gains["accuracyResize"] > 0.1, (plain, augmented)
    assert gains["accuracy"] > -0.01, "and hardly costs anything"
    assert gains["accuracyNoise"] > -0.01
