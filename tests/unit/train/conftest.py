"""What the tests of a worker's parts share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from mms_workloads.contract import JobFile
from mms_workloads.pod import Pod
from tests import faults
from tests.unit.test_contract import JOB_FILE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    job = JobFile.model_validate({**JOB_FILE, "storage": {"uri": f"file://{tmp_path}/run"}})
    return Pod("worker", 1, 0, 1, "127.0.0.1", job, "sha256:0", tmp_path, tmp_path, tmp_path / "log", 0, 0)


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of a test's runs take a little while, or they might be over before anything is done to them."""
    fault = {"kind": "slow", "seconds": 0.02, "from": 0, "to": 1_000_000}
    monkeypatch.setenv(faults.VARIABLE, json.dumps([fault]))
