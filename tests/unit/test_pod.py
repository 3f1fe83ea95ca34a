"""A pod's view of itself, and the outcome that it leaves behind."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from mms_workloads import contract
from mms_workloads.contract import ArtifactRef, CheckpointRef, Outcome, Reason
from mms_workloads.pod import TERMINATION_LOG_BYTES, failed, read_pod, write_outcome
from mms_workloads.store import JobError
from tests.unit.test_contract import ARTIFACT, CHECKPOINT, JOB_FILE

if TYPE_CHECKING:
    from pathlib import Path


def test_read_pod(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps(JOB_FILE))
    pod = read_pod(
        {
            "MMS_JOB_FILE": str(file),
            "MMS_SCRATCH_DIR": "/elsewhere",
            contract.ENV_ROLE: "worker",
            contract.ENV_RANK: "2",
            contract.ENV_INCARNATION: "5",
            contract.ENV_ATTEMPT: "3",
            contract.ENV_POD_IP: "10.1.2.3",
        }
    )
    assert (pod.role, pod.rank, pod.incarnation, pod.attempt, pod.ip) == ("worker", 2, 5, 3, "10.1.2.3")
    assert pod.job.workers == 3
    assert pod.job_digest == "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert str(pod.scratch) == "/elsewhere"
    assert str(pod.tls_dir) == contract.TLS_DIR
    assert pod.master_port == contract.MASTER_PORT


@pytest.mark.parametrize(
    ("content", "rank", "says"),
    [
        (None, "0", "No such file"),
        ("{", "0", "Invalid JSON"),
        (json.dumps({**JOB_FILE, "workers": 0}), "0", "workers"),
        (json.dumps({**JOB_FILE, "task": {}}), "0", "set wordEmbedding"),
        (json.dumps({**JOB_FILE, "contractVersion": 2}), "0", "contractVersion"),
        (json.dumps(JOB_FILE), "first", "'first'"),
    ],
    ids=["missing", "no json", "invalid", "unknown task", "newer contract", "rank"],
)
def test_a_pod_that_cannot_start(tmp_path: Path, content: str | None, rank: str, says: str) -> None:
    file = tmp_path / "job.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(JobError, match=says) as raised:
        read_pod({"MMS_JOB_FILE": str(file), contract.ENV_RANK: rank})
    assert (raised.value.reason, raised.value.retryable) == (Reason.JOB_FILE_INVALID, False)
    assert str(file) in raised.value.message


@pytest.mark.parametrize(
    "message",
    [
        "short",
        "x" * 4096,
        "x" * 100_000,
        "höher " * 3000,
        "漢字" * 5000,
        "\x00\x01\n" * 4000,
        "🦀" * 3000,
        '"' * 5000,
        "\\" * 9000,
    ],
    ids=["short", "just over", "long", "umlauts", "wide", "control", "astral", "quotes", "backslashes"],
)
def test_an_outcome_fits_the_termination_log(tmp_path: Path, message: str) -> None:
    """References survive whole; of the message as much as fits."""
    outcome = Outcome(
        result="Failed",
        reason=Reason.INTERNAL,
        message=message,
        artifact=ArtifactRef.model_validate(ARTIFACT),
        checkpoint=CheckpointRef.model_validate({**CHECKPOINT, "uri": "s3://" + "k" * 1000}),
    )
    file = tmp_path / "log"
    write_outcome(file, outcome)
    data = file.read_bytes()
    assert len(data) <= TERMINATION_LOG_BYTES
    read = Outcome.model_validate_json(data)
    assert (read.artifact, read.checkpoint, read.reason) == (outcome.artifact, outcome.checkpoint, outcome.reason)
    kept = read.message.removesuffix("...")
    assert message.startswith(kept)
    if read.message != message:
        assert len(data) > TERMINATION_LOG_BYTES - 6  # one character more would not fit


def test_a_log_that_cannot_be_written_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_outcome(tmp_path / "no" / "log", Outcome(result="Complete", reason=Reason.COMPLETE))
    assert "TrainingComplete" in capsys.readouterr().out


def test_failed() -> None:
    outcome = failed(JobError(Reason.STORAGE_UNREACHABLE, "away", retryable=True), step=4)
    assert (outcome.result, outcome.reason, outcome.message) == ("Failed", "StorageUnreachable", "away")
    assert (outcome.retryable, outcome.step) == (True, 4)
