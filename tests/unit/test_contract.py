"""The documents that the operator and the pods exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from mms_workloads import contract

if TYPE_CHECKING:
    from mms_workloads.contract import Contract

JOB = {"namespace": "default", "name": "words", "uid": "u-1", "run": 2}
CHECKPOINT = {
    "uri": "s3://b/runs/2/checkpoints/step-1",
    "step": 7,
    "digest": "sha256:ab",
    "time": "2026-01-01T00:00:00Z",
}
ARTIFACT = {"uri": "s3://b/runs/2/artifact", "digest": "sha256:cd", "version": 2, "metrics": {"contextAUC": 0.9}}
OUTCOME = {
    "result": "Complete",
    "reason": "TrainingComplete",
    "artifact": ARTIFACT,
    "checkpoint": CHECKPOINT,
    "step": 9,
}
JOB_FILE = {
    "job": JOB,
    "task": {"wordEmbedding": {"dimensions": 32}},
    "data": {"store": {"uri": "s3://b/*.txt", "endpoint": "http://s3:9000", "credentials": "data"}},
    "workers": 3,
    "storage": {"uri": "s3://b/runs/2"},
    "masterHost": "words-master",
}
PROVENANCE = {
    "job": JOB,
    "createdAt": "2026-01-01T00:00:00Z",
    "mmsVersion": "0.1.0",
    "seed": 1,
    "workers": 3,
    "data": [{"uri": "s3://b/a.txt", "size": 10}],
    "jobFileDigest": "sha256:ef",
}
DOCUMENTS: dict[str, tuple[type[Contract], dict[str, Any]]] = {
    "job file": (contract.JobFile, JOB_FILE),
    "status": (
        contract.StatusReport,
        {
            "uid": "u-1",
            "run": 2,
            "attempt": 1,
            "activity": "Training",
            "checkpoint": CHECKPOINT,
            "incidents": [{"time": "2026-01-01T00:00:00Z", "kind": "WorkerLost", "rank": 1}],
            "outcome": OUTCOME,
        },
    ),
    "desired": (contract.Desired, {"suspend": True, "workers": 4}),
    "outcome": (contract.Outcome, OUTCOME),
    "manifest": (
        contract.ArtifactManifest,
        {
            "kind": "wordEmbedding",
            "version": 2,
            "files": {"golden.json": {"sha256": "ab", "size": 3}},
            "metrics": {"contextAUC": 0.9},
            "provenance": PROVENANCE,
        },
    ),
    "golden": (
        contract.Golden,
        {"cases": [{"model": "vectors", "inputs": {"IDS": [1]}, "outputs": {"VECTORS": [0.5, -1.0]}}]},
    ),
    "serve file": (
        contract.ServeFile,
        {"namespace": "default", "name": "words", "artifact": ARTIFACT, "storage": {"uri": "s3://b/runs/2/artifact"}},
    ),
}


def add_unknown(value: Any) -> Any:
    """The document as a newer writer could write it: a field more in every object that is not a map by name."""
    if isinstance(value, list):
        return [add_unknown(item) for item in value]
    if not isinstance(value, dict):
        return value
    maps = {"files", "metrics", "inputs", "outputs"}
    return {k: v if k in maps else add_unknown(v) for k, v in value.items()} | {"fromTheFuture": [1]}


@pytest.mark.parametrize(("kind", "fields"), DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_round_trip(kind: type[Contract], fields: dict[str, Any]) -> None:
    document = kind.model_validate(fields)
    assert kind.model_validate_json(document.model_dump_json()) == document
    assert kind.model_validate_json(document.model_dump_json(exclude_none=True)) == document


@pytest.mark.parametrize(("kind", "fields"), DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_a_newer_writers_fields_are_ignored(kind: type[Contract], fields: dict[str, Any]) -> None:
    assert kind.model_validate(add_unknown(fields)) == kind.model_validate(fields)


@pytest.mark.parametrize(
    "kind",
    [
        contract.JobFile,
        contract.StatusReport,
        contract.Outcome,
        contract.ArtifactManifest,
        contract.Golden,
        contract.ServeFile,
    ],
)
def test_the_version_is_written_and_checked(kind: type[Contract]) -> None:
    fields = next(f for k, f in DOCUMENTS.values() if k is kind)
    assert kind.model_validate(fields).model_dump()["contractVersion"] == contract.CONTRACT_VERSION
    with pytest.raises(ValidationError, match="contractVersion"):
        kind.model_validate({**fields, "contractVersion": contract.CONTRACT_VERSION + 1})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"workers": 0}, "workers"),
        ({"syncMode": "Gossip"}, "syncMode"),
        ({"optimizer": {"learningRate": 0}}, "learningRate"),
        ({"task": {"wordEmbedding": {"subsample": -1}}}, "subsample"),
        ({"data": {"store": {"uri": "s3://b"}, "blockBytes": 0}}, "blockBytes"),
        ({"job": {**JOB, "run": 0}}, "run"),
    ],
    ids=["workers", "sync mode", "learning rate", "subsample", "block bytes", "run"],
)
def test_a_job_file_that_cannot_be_run_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        contract.JobFile.model_validate({**JOB_FILE, **change})


def test_what_names_a_version() -> None:
    digest = "sha256:" + "a1" * 32
    run = contract.live_digest("0123456789ab-cdef", 12)
    assert (contract.short(digest), contract.live_run(digest)) == ("a1a1a1a1a1a1", None)
    assert contract.short(run) == contract.short(f"{run}:7:1000") == "0123456r12"
    assert contract.live_run(f"{run}:7:1000") == contract.live_run(run) == run
    assert len(contract.short(contract.live_digest("0123456789ab", 999_999))) == 12


def test_documents_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        contract.Desired(workers=1).workers = 2  # type: ignore[misc]


def test_reasons_are_names_of_conditions() -> None:
    assert all(reason.value.isalnum() and reason.value[0].isupper() for reason in contract.Reason)
