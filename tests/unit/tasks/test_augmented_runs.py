"""Sounds and texts that are augmented, as real processes: workers train on samples that each transform has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.unit.tasks import datasets, dealt
from tests.unit.tasks.test_task_runs import job, metrics, run
from tests.unit.train import quick

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Case(NamedTuple):
    data: Callable[[Path], str]
    task: dict[str, Any]
    transforms: list[str]
    metric: str
    good: Callable[[float], bool]
    more: dict[str, Any] = {}  # noqa: RUF012 - of the job file


SPEECH = {"alphabet": "abcd", "sampleRate": 8000, "maxSeconds": 2, "dimensions": 48, "layers": 1, "dropout": 0}
CASES = {
    "sound": Case(
        datasets.melodies,
        {"speechRecognition": SPEECH},
        ["Identity", "Noise", "TimeMask", "FrequencyMask"],
        "characterErrorRate",
        lambda rate: rate < 0.4,
        {
            "data": {"blockBytes": 100 << 10},
            "optimizer": {"epochs": 12, "globalBatchSize": 16, "learningRate": 0.004},
        },
    ),
    "text": Case(
        datasets.opinions,
        {"textClassification": {"dimensions": 32, "maxLength": 32}},
        ["Identity", "WordDropout", "WordSwap"],
        "accuracy",
        lambda part: part > 0.95,
    ),
    "words with tags": Case(
        datasets.sentences,
        {"tokenClassification": {"dimensions": 32, "maxLength": 16}},
        ["Identity", "WordDropout", "WordSwap"],
        "entityF1",
        lambda part: part > 0.8,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_learns_from_augmented_records(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    (tmp_path / "dealt").mkdir()
    monkeypatch.setenv(dealt.FOLDER, str(tmp_path / "dealt"))
    monkeypatch.setenv(quick.LEARNER, dealt.MODULE)
    data = {**case.more.get("data", {}), "augmentation": {"transforms": case.transforms}}
    training = job(tmp_path, case.task, case.data(tmp_path / "data"), **{**case.more, "data": data})
    assert case.good(metrics(run(tmp_path, training))[case.metric])
    found = dealt.transforms(tmp_path / "dealt")
    plain = found.pop("Identity", (0, 0, True))
    assert plain[1] == 0
    assert set(found) == set(case.transforms) - {"Identity"}
    for samples, changed, together in found.values():
        assert changed > samples / 3
        assert together
