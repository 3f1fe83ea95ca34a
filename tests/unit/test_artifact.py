"""The artifact: complete, verified, with golden answers that are right, and valid by its manifest alone."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from tests.unit.test_contract import JOB_FILE

from mms_workloads import artifact
from mms_workloads import store as stores
from mms_workloads.artifact import GOLDEN_GAP, Evaluation
from mms_workloads.contract import ArtifactManifest, DataFile, Golden, JobFile, Reason
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.embedding.skipgram import Parameters
from mms_workloads.pod import Pod
from mms_workloads.store import JobError
from mms_workloads.sync.plan import Plan

if TYPE_CHECKING:
    from pathlib import Path

WORDS = tuple(f"wört{i}" for i in range(300))
PLAN = Plan((DataFile(uri="file:///a.txt", size=9),), 4, Vocabulary(WORDS, tuple(range(400, 100, -1))))
EVALUATION = Evaluation({"contextAUC": 0.75}, 300, 1000, 3, [1], "as it was measured")


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    (tmp_path / "scratch").mkdir()
    job = JobFile.model_validate({**JOB_FILE, "storage": {"uri": f"file://{tmp_path}/run"}})
    return Pod("worker", 0, 0, 1, "", job, "sha256:jj", tmp_path, tmp_path / "scratch", tmp_path / "log", 0, 0)


def parameters(seed: int = 0, size: int = 300) -> Parameters:
    rng = torch.Generator().manual_seed(seed)
    return Parameters(torch.randn(size, 8, generator=rng), torch.randn(size, 8, generator=rng))


def test_publish(pod: Pod, tmp_path: Path) -> None:
    trained, folder = parameters(), tmp_path / "run" / "artifact"
    found = artifact.publish(pod, trained, PLAN, EVALUATION, lambda: True)
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
    assert torch.equal(tensors["vectors"], trained.vectors)
    assert torch.equal(tensors["contexts"], trained.contexts)
    assert (folder / "vocabulary.txt").read_text().splitlines()[1] == "wört1\t399"
    assert json.loads((folder / "evaluation.json").read_text())["heldOutBlocks"] == [1]
    assert not list(pod.scratch.iterdir())


def test_another_export_replaces_it(pod: Pod, tmp_path: Path) -> None:
    first = artifact.publish(pod, parameters(1), PLAN, EVALUATION, lambda: True)
    second = artifact.publish(pod, parameters(2), PLAN, EVALUATION, lambda: True)
    assert first is not None
    assert second is not None
    assert first.digest != second.digest
    data = (tmp_path / "run" / "artifact" / "manifest.json").read_bytes()
    assert second.digest == "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_worker_that_is_no_longer_asked_leaves_the_manifest_alone(pod: Pod, tmp_path: Path) -> None:
    artifact.publish(pod, parameters(1), PLAN, EVALUATION, lambda: True)
    manifest = tmp_path / "run" / "artifact" / "manifest.json"
    before = manifest.read_bytes()
    assert artifact.publish(pod, parameters(1), PLAN, EVALUATION, lambda: False) is None
    assert manifest.read_bytes() == before


@pytest.mark.parametrize("name", ["upload", "write_bytes", "open_read", "read_bytes"])
def test_a_store_that_fails_midway(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No manifest, no artifact; the next export makes it whole."""

    def fail(*_: object) -> None:
        raise JobError(Reason.STORAGE_UNREACHABLE, "away", retryable=True)

    with monkeypatch.context() as patched:
        patched.setattr(stores, name, fail)
        with pytest.raises(JobError, match="away"):
            artifact.publish(pod, parameters(), PLAN, EVALUATION, lambda: True)
    if name != "read_bytes":
        assert not (tmp_path / "run" / "artifact" / "manifest.json").exists()
    assert artifact.publish(pod, parameters(), PLAN, EVALUATION, lambda: True) is not None


def test_what_is_stored_is_read_back(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    original = stores.upload

    def flip(place: stores.Store, local: Path) -> None:
        local.write_bytes(local.read_bytes()[:-1])
        original(place, local)

    monkeypatch.setattr(stores, "upload", flip)
    with pytest.raises(JobError, match="is not what was written") as raised:
        artifact.publish(pod, parameters(), PLAN, EVALUATION, lambda: True)
    assert raised.value.reason == Reason.ARTIFACT_CORRUPT


def test_parameters_that_are_not_finite(pod: Pod) -> None:
    spoiled = parameters()
    spoiled.vectors[3, 1] = float("nan")
    with pytest.raises(JobError, match=r"lower optimizer\.learningRate"):
        artifact.publish(pod, spoiled, PLAN, EVALUATION, lambda: True)


def answer(vectors: torch.Tensor, words: tuple[str, ...], number: int, k: int) -> tuple[list[str], list[float]]:
    """By the definition, in float64."""
    units = torch.nn.functional.normalize(vectors.double(), dim=1)
    scores = [(float(units[number] @ units[i]), i) for i in range(len(words)) if i != number]
    best = sorted(scores, reverse=True)[:k]
    return [words[i] for _, i in best], [s for s, _ in best]


@pytest.mark.parametrize("size", [2, 3, 12, 300])
def test_golden_answers_are_right(size: int) -> None:
    vectors, words = parameters(size=size).vectors, WORDS[:size]
    golden = artifact.golden(vectors, words)
    assert Golden.model_validate_json(golden.model_dump_json()) == golden
    kinds = [case.model for case in golden.cases]
    assert kinds.count("vectors") >= min(artifact.GOLDEN_VECTORS, size // 2 + 1)
    assert kinds.count("neighbours") >= (1 if size < 300 else artifact.GOLDEN_NEIGHBOURS)
    for case in golden.cases:
        (asked,) = case.inputs.get("WORDS") or case.inputs["IDS"]
        number = words.index(asked) if isinstance(asked, str) else int(asked)
        if case.model == "vectors":
            assert case.outputs["VECTORS"] == vectors[number].tolist()
            continue
        expected, scores = answer(vectors, words, number, int(case.inputs["K"][0]))
        assert case.outputs["WORDS"] == expected
        assert case.outputs["SCORES"] == pytest.approx(scores, abs=1e-5)


def test_golden_cases_do_not_hang_by_rounding() -> None:
    """Of two words with the same vector either could come first."""
    vectors = parameters(size=40).vectors
    vectors[1::2] = vectors[0::2]
    golden = artifact.golden(vectors, WORDS[:40])
    assert {case.model for case in golden.cases} == {"vectors"}
    assert GOLDEN_GAP > 0
