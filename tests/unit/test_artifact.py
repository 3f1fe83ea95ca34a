"""The artifact: complete, verified, with golden answers that are right, and valid by its manifest alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from mms_workloads import artifact
from mms_workloads import store as stores
from mms_workloads.contract import (
    ArtifactManifest,
    ArtifactRef,
    DataFile,
    EvaluationSpec,
    Gate,
    JobFile,
    Reason,
    WordEmbedding,
)
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.embedding.distribution import Distribution
from mms_workloads.embedding.learner import EmbeddingLearner
from mms_workloads.embedding.parameters import Parameters
from mms_workloads.embedding.state import EmbeddingState
from mms_workloads.pod import Pod
from mms_workloads.store import JobError
from mms_workloads.sync.plan import Plan
from mms_workloads.train.learner import Evaluation
from tests.unit.test_contract import JOB_FILE

if TYPE_CHECKING:
    from pathlib import Path

WORDS = tuple(f"wört{i}" for i in range(300))
PLAN = Plan((DataFile(uri="file:///a.txt", size=9),), 4, Vocabulary(WORDS, tuple(range(400, 100, -1))))


class Learned:
    """A learner at the end of its run."""

    kind = "wordEmbedding"
    vocabulary, task = PLAN.vocabulary, WordEmbedding(dimensions=8)
    words = Distribution(np.ones(300, np.float32))
    losses = ((100, 3.0), (200, 2.5))
    write = EmbeddingLearner.write

    def evaluate(self, _: object) -> Evaluation:
        return Evaluation({"contextAUC": 0.75}, {"heldOutBlocks": [1], "method": "as it was measured"})


def publish(pod: Pod, trained: Parameters, *, asked: bool = True) -> ArtifactRef | None:
    return artifact.publish(pod, Learned(), EmbeddingState.start(trained), PLAN, lambda: asked)  # type: ignore[arg-type]


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    (tmp_path / "scratch").mkdir()
    job = JobFile.model_validate({**JOB_FILE, "storage": {"uri": f"file://{tmp_path}/run"}})
    return Pod("worker", 0, 0, 1, "", job, "sha256:jj", tmp_path, tmp_path / "scratch", tmp_path / "log", 0, 0)


def parameters(seed: int = 0, size: int = 300) -> Parameters:
    return Parameters(*np.random.default_rng(seed).standard_normal((2, size, 8), np.float32))


def test_publish(pod: Pod, tmp_path: Path) -> None:
    trained, folder = parameters(), tmp_path / "run" / "artifact"
    found = publish(pod, trained)
    assert found is not None
    assert found.uri == f"file://{folder}"
    data = (folder / "manifest.json").read_bytes()
    assert found.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    manifest = ArtifactManifest.model_validate_json(data)
    assert {p.name for p in folder.iterdir()} == {*manifest.files, "manifest.json"}
    for name, entry in manifest.files.items():
        content = (folder / name).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry.sha256, entry.size)
    assert (manifest.version, found.version, found.metrics) == (2, 2, {"contextAUC": 0.75})
    assert manifest.provenance.jobFileDigest == "sha256:jj"
    assert manifest.provenance.data == list(PLAN.files)
    tensors = load_file(folder / "model.safetensors")
    assert np.array_equal(tensors["vectors"], trained.vectors)
    assert np.array_equal(tensors["contexts"], trained.contexts)
    assert (folder / "vocabulary.txt").read_text().splitlines()[1] == "wört1\t399"
    assert json.loads((folder / "evaluation.json").read_text())["heldOutBlocks"] == [1]
    assert not list(pod.scratch.iterdir())


def test_another_export_replaces_it(pod: Pod, tmp_path: Path) -> None:
    first = publish(pod, parameters(1))
    second = publish(pod, parameters(2))
    assert first is not None
    assert second is not None
    assert first.digest != second.digest
    data = (tmp_path / "run" / "artifact" / "manifest.json").read_bytes()
    assert second.digest == "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_worker_that_is_no_longer_asked_leaves_the_artifact_alone(pod: Pod, tmp_path: Path) -> None:
    publish(pod, parameters(1))
    files = list((tmp_path / "run" / "artifact").iterdir())
    before = [file.read_bytes() for file in files]
    assert publish(pod, parameters(2), asked=False) is None
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("name", ["upload", "write_bytes", "open_read", "read_bytes"])
def test_a_store_that_fails_midway(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No manifest, no artifact; the next export makes it whole."""

    def fail(*_: object) -> None:
        raise JobError(Reason.STORAGE_UNREACHABLE, "away", retryable=True)

    with monkeypatch.context() as patched:
        patched.setattr(stores, name, fail)
        with pytest.raises(JobError, match="away"):
            publish(pod, parameters())
    if name != "read_bytes":
        assert not (tmp_path / "run" / "artifact" / "manifest.json").exists()
    assert publish(pod, parameters()) is not None


def test_what_is_stored_is_read_back(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    original = stores.upload

    def flip(place: stores.Store, local: Path) -> None:
        local.write_bytes(local.read_bytes()[:-1])
        original(place, local)

    monkeypatch.setattr(stores, "upload", flip)
    with pytest.raises(JobError, match="is not what was written") as raised:
        publish(pod, parameters())
    assert raised.value.reason == Reason.ARTIFACT_CORRUPT


def test_parameters_that_are_not_finite(pod: Pod) -> None:
    spoiled = parameters()
    spoiled.vectors[3, 1] = float("nan")
    with pytest.raises(JobError, match=r"lower optimizer\.learningRate"):
        publish(pod, spoiled)


def test_a_gate_that_is_missed_publishes_nothing(pod: Pod, tmp_path: Path) -> None:
    for gate, says in (
        (
            {"metric": "contextAUC", "atLeast": 0.8},
            r"contextAUC is 0\.7500 and evaluation\.gate asks for at least 0\.8",
        ),
        ({"metric": "contextAUC", "atMost": 0.5}, r"asks for at most 0\.5"),
        ({"metric": "accuracy", "atLeast": 0.1}, r"asks for accuracy, which was not measured: there are contextAUC"),
    ):
        gated = pod.job.model_copy(update={"evaluation": EvaluationSpec(gate=Gate.model_validate(gate))})
        with pytest.raises(JobError, match=says) as raised:
            publish(dataclasses.replace(pod, job=gated), parameters())
        assert raised.value.reason == Reason.GATE_MISSED
        assert not raised.value.retryable
    assert not (tmp_path / "run" / "artifact").exists()


def test_a_gate_that_is_reached(pod: Pod) -> None:
    gate = Gate(metric="contextAUC", atLeast=0.75)
    gated = pod.job.model_copy(update={"evaluation": EvaluationSpec(gate=gate)})
    assert publish(dataclasses.replace(pod, job=gated), parameters()) is not None


def test_a_metric_that_is_not_a_number_misses_its_gate() -> None:
    with pytest.raises(JobError, match="nan"):
        artifact.check_gate(Gate(metric="m", atLeast=0.0), {"m": float("nan")})
