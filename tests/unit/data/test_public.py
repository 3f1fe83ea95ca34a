"""Made-up questions: of the kind that a task takes, and no anomaly among its data."""

from __future__ import annotations

import numpy as np
import pytest

from mms_workloads.contract import Statistics
from mms_workloads.data import inspection, public
from mms_workloads.data.schema import Images, Schema, Spread
from mms_workloads.media import images


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.37), (0.5, 0.2), (0.05, 0.1), (0.9, 0.05)])
def test_images_are_as_bright_as_the_data(mean: float, std: float) -> None:
    said = Statistics(mean=[mean], std=[std], imageMean=[mean], imageMeanStd=[0.01], imageStd=[std], imageStdStd=[0.01])
    found = Images(1, Spread(8, 40, 90), Spread(8, 50, 90), Spread(1, 1, 1), said)
    schema = Schema("ImageFolder", "image", "string", {"a": 1, "b": 1}, 2, images=found)
    made = public.records("imageClassification", schema, 12)
    assert [record["label"] for record in made] == ["a", "b"] * 6
    assert len({record["input"] for record in made}) == 12
    for record in made:
        values = images.decode(record["input"], 1) / 255.0
        assert values.shape == (40, 50, 1)
        assert values.mean() == pytest.approx(mean, abs=0.01)
        assert values.std() == pytest.approx(std, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("textClassification", "text"),
        ("tokenClassification", "words"),
        ("textMatching", "pair"),
        ("speechRecognition", "audio"),
        ("videoUnderstanding", "image"),
        ("objectDetection", "image"),
    ],
)
def test_each_task_is_asked_what_it_takes(kind: str, wanted: str) -> None:
    for record in public.records(kind, Schema("CSV", wanted, "string", {"a": 1}), 5):
        assert inspection.kind_of(record["input"]) == wanted
    assert isinstance(public.records("videoUnderstanding", Schema("CSV", "image", "string"), 1)[0]["input"], np.ndarray)
