"""Each task as real processes on loopback: it learns, and what it publishes is what is served."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mms_workloads.contract import METRICS, ArtifactManifest, Golden, JobFile, Outcome, metrics_of
from mms_workloads.serve import pipelines
from tests.unit.tasks import datasets
from tests.unit.train.quick import QuickRun

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SECONDS = 180.0
PICTURE = {"height": 8, "width": 8, "channels": 1}


def job(folder: Path, task: dict[str, Any], uri: str, *, workers: int = 2, **changes: Any) -> JobFile:
    data = {"store": {"uri": uri}, "blockBytes": 8 << 10, **changes.pop("data", {})}
    optimizer = {
        "name": "AdamW",
        "learningRate": 0.002,
        "globalBatchSize": 32,
        "epochs": 4,
        **changes.pop("optimizer", {}),
    }
    fields = {
        "job": {"namespace": "default", "name": "task", "uid": "u", "run": 1},
        "task": task,
        "data": data,
        "optimizer": optimizer,
        "evaluation": {"split": 0.2},
        "workers": workers,
        "storage": {"uri": f"file://{folder}/storage"},
        "masterHost": "127.0.0.1",
        **changes,
    }
    return JobFile.model_validate(fields)


def run(folder: Path, training: JobFile) -> Outcome:
    with QuickRun(folder / "run", training) as started:
        outcome = started.start().outcome(SECONDS)
        assert outcome.result == "Complete", f"{outcome}\n{started.logs()}"
    return outcome


def artifact(folder: Path) -> Path:
    return folder / "storage" / "artifact"


def served_as_published(folder: Path, kind: str, *, compared: bool = True) -> pipelines.Served:
    """The pipeline of the artifact, after its golden set. compared: numbers alone tell nothing of another version."""
    place = artifact(folder)
    manifest = ArtifactManifest.model_validate_json((place / "manifest.json").read_bytes())
    assert manifest.kind == kind
    assert {"model.onnx", "model.safetensors", "model.json", "pipeline.json", "golden.json"} <= set(manifest.files)
    golden = Golden.model_validate_json((place / "golden.json").read_bytes())
    assert golden.cases
    assert bool(golden.comparisons) == compared
    return pipelines.open(place)


@pytest.mark.parametrize("workers", [1, 2])
def test_records_that_lie_class_by_class(tmp_path: Path, workers: int) -> None:
    """Rounds from one block after the other would each be of one digit: nothing is learnt from them."""
    images, labels = datasets.digits()
    by_digit = sorted(range(len(labels)), key=lambda number: labels[number])
    samples = ({"png": datasets.png(images[number]), "cls": labels[number].encode()} for number in by_digit)
    uri = datasets.tar_of(tmp_path / "data", samples)
    task = {"imageClassification": PICTURE}
    optimizer = {"epochs": 6, "learningRate": 0.004}
    training = job(tmp_path, task, uri, workers=workers, data={"blockBytes": 32 << 10}, optimizer=optimizer)
    outcome = run(tmp_path, training)
    assert outcome.artifact is not None
    assert outcome.artifact.metrics["accuracy"] > 0.9


def metrics(outcome: Outcome) -> dict[str, float]:
    assert outcome.artifact is not None
    found = outcome.artifact.metrics
    assert any(found.keys() <= set(metrics_of(kind)) for kind in METRICS), "a gate may ask for each"
    return found


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    return datasets.image_folder(tmp_path_factory.mktemp("digits"))


PS = {"syncMode": "ParameterServer", "parameterServer": {"shards": 2}}


@pytest.mark.parametrize("sync", [{}, PS], ids=["Ring", "ParameterServer"])
def test_image_classification(tmp_path: Path, digits: str, sync: dict[str, Any]) -> None:
    outcome = run(tmp_path, job(tmp_path, {"imageClassification": PICTURE}, digits, **sync))
    found = metrics(outcome)
    assert found["accuracy"] > 0.93
    assert set(found) >= {"macroF1", "accuracyNoise", "accuracyOcclusion", "accuracyResize"}
    served = served_as_published(tmp_path, "imageClassification")
    images, labels = datasets.digits()
    files = np.array([[datasets.png(image)] for image in images[:50]], dtype=np.object_)
    answer = served.answer({"IMAGE": files})
    right = sum(row[0].decode() == label for row, label in zip(answer["LABELS"], labels[:50], strict=True))
    assert right >= 45


def test_object_detection(tmp_path: Path) -> None:
    uri = datasets.tar_of(tmp_path / "data", datasets.scenes(300, size=24))
    task = {"objectDetection": {"height": 24, "width": 24, "channels": 1}}
    optimizer = {"epochs": 8, "globalBatchSize": 16, "learningRate": 0.004}
    outcome = run(tmp_path, job(tmp_path, task, uri, optimizer=optimizer))
    assert metrics(outcome)["meanAveragePrecision"] > 0.03  # a tenth of that before it has learnt anything
    served_as_published(tmp_path, "objectDetection")


def test_image_generation(tmp_path: Path, digits: str) -> None:
    task = {"imageGeneration": {**PICTURE, "hidden": 16, "steps": 8}}
    outcome = run(tmp_path, job(tmp_path, task, digits, optimizer={"epochs": 4}))
    assert metrics(outcome)["flowLoss"] < 0.8  # of about 1.3 without knowledge
    drawn = drawings(served_as_published(tmp_path, "imageGeneration", compared=False))
    images, labels = datasets.digits()
    real = {label: flat(images[np.array(labels) == label] / 255) for label in drawn}
    known = [label for label, some in real.items() for _ in some]
    judge = LogisticRegression(max_iter=2000).fit(np.concatenate(list(real.values())), known)
    right = {label: float((judge.predict(flat(made)) == label).mean()) for label, made in drawn.items()}
    assert min(right.values()) >= 0.75, right
    assert sum(right.values()) >= 9, right
    blurred = np.repeat(flat(images / 255).mean(axis=0, keepdims=True), len(drawn), axis=0)
    assert (judge.predict(blurred) == list(drawn)).mean() <= 0.1, "what is no digit in particular would not do"
    for label, made in drawn.items():
        assert flat(made).std(axis=0).mean() > real[label].std(axis=0).mean() / 2, "nor the same image for each seed"


def drawings(served: pipelines.Served, count: int = 20) -> dict[str, NDArray[np.float32]]:
    """By label, PIXELS [count, 1, 8, 8] of different seeds."""
    seeds = np.arange(count)[:, None]
    return {
        label: served.answer({"LABEL": np.array([[label.encode()]] * count, np.object_), "SEED": seeds})["PIXELS"]
        for label in "0123456789"
    }


def flat(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels.reshape(len(pixels), -1)


def test_video_understanding(tmp_path: Path) -> None:
    uri = datasets.tar_of(tmp_path / "data", datasets.videos(240))
    task = {"videoUnderstanding": {"height": 20, "width": 20, "channels": 1, "frames": 6}}
    outcome = run(tmp_path, job(tmp_path, task, uri, optimizer={"epochs": 8, "globalBatchSize": 16}))
    assert metrics(outcome)["accuracy"] > 0.9
    served_as_published(tmp_path, "videoUnderstanding")


def test_text_classification(tmp_path: Path) -> None:
    uri = datasets.opinions(tmp_path / "data")
    task = {"textClassification": {"dimensions": 32, "maxLength": 32}}
    assert metrics(run(tmp_path, job(tmp_path, task, uri)))["accuracy"] > 0.95
    served = served_as_published(tmp_path, "textClassification")
    answer = served.answer({"TEXT": np.array([[b"the film was Brilliant"], [b"a dull story"]], dtype=np.object_)})
    assert [row[0] for row in answer["LABELS"]] == [b"good", b"bad"]


def test_token_classification(tmp_path: Path) -> None:
    uri = datasets.sentences(tmp_path / "data")
    task = {"tokenClassification": {"dimensions": 32, "maxLength": 16}}
    found = metrics(run(tmp_path, job(tmp_path, task, uri)))
    assert found["entityF1"] > 0.9
    assert found["tokenAccuracy"] > 0.9
    served_as_published(tmp_path, "tokenClassification")


def test_speech_recognition(tmp_path: Path) -> None:
    uri = datasets.melodies(tmp_path / "data")
    spec = {"alphabet": "abcd", "sampleRate": 8000, "maxSeconds": 2, "dimensions": 48, "layers": 1, "dropout": 0}
    data = {"blockBytes": 100 << 10}
    optimizer = {"epochs": 12, "globalBatchSize": 16, "learningRate": 0.004}
    outcome = run(tmp_path, job(tmp_path, {"speechRecognition": spec}, uri, data=data, optimizer=optimizer))
    assert metrics(outcome)["characterErrorRate"] < 0.1
    served_as_published(tmp_path, "speechRecognition")


def test_data_of_another_kind(tmp_path: Path, digits: str) -> None:
    with QuickRun(tmp_path / "run", job(tmp_path, {"textClassification": {}}, digits)) as started:
        outcome = started.start().outcome(SECONDS)
    assert (outcome.result, outcome.reason) == ("Failed", "DataInvalid")
    assert "learns from texts, and the records' input is image" in outcome.message


def test_data_that_the_task_cannot_learn_from(tmp_path: Path) -> None:
    uri = datasets.tar_of(tmp_path / "data", datasets.videos(120))
    with QuickRun(tmp_path / "run", job(tmp_path, {"imageClassification": PICTURE}, uri)) as started:
        outcome = started.start().outcome(SECONDS)
    assert (outcome.result, outcome.reason) == ("Failed", "DataInvalid")
    assert "images are uint8 [height, width]" in outcome.message


def test_a_gate(tmp_path: Path) -> None:
    gate = {"metric": "accuracy", "atLeast": 0.999}
    training = job(
        tmp_path,
        {"textClassification": {"dimensions": 8, "layers": 0}},
        datasets.opinions(tmp_path / "data", 200),
        optimizer={"epochs": 1, "learningRate": 1e-6},
        evaluation={"split": 0.2, "gate": gate},
    )
    with QuickRun(tmp_path / "run", training) as started:
        outcome = started.start().outcome(SECONDS)
    assert (outcome.result, outcome.reason) == ("Failed", "GateMissed")
    assert not artifact(tmp_path).joinpath("manifest.json").exists()
    assert json.loads((tmp_path / "run" / "job.json").read_text())["evaluation"]["gate"] == gate
