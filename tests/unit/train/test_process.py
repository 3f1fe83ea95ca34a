"""What a worker's or shard's process says when it ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.contract import EXIT_PERMANENT, EXIT_RETRY, Outcome, Reason
from mms_workloads.store import JobError
from mms_workloads.train import process
from mms_workloads.train.pulse import Pulse

if TYPE_CHECKING:
    from pathlib import Path


class Here:
    """Stands for a worker, which hears of an outcome or fails by itself."""

    def __init__(self, ends: Outcome | JobError) -> None:
        self.ends = ends

    def __call__(self, *_: Any, **__: Any) -> Here:
        return self

    def stop(self) -> None:
        """Nothing."""

    def run(self) -> Outcome:
        if isinstance(self.ends, JobError):
            raise self.ends
        return self.ends


HEARD = Outcome(result="Failed", reason="StorageUnreachable", retryable=True)


@pytest.mark.parametrize(
    ("ends", "code", "heard"),
    [
        (HEARD, EXIT_RETRY, True),
        (HEARD.model_copy(update={"retryable": False}), EXIT_PERMANENT, True),
        (JobError(Reason.STORAGE_UNREACHABLE, "it is away", retryable=True), EXIT_RETRY, False),
    ],
    ids=["the master's", "for good", "its own"],
)
def test_whose_failure_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: Outcome | JobError, code: int, heard: bool
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("MMS_TERMINATION_LOG", str(log))
    monkeypatch.setattr(process, "read_pod", lambda: _Pod(tmp_path))
    monkeypatch.setattr(process, "Worker", Here(ends))
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    monkeypatch.setattr(process.logs, "configure", lambda: None)
    monkeypatch.setattr(process.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(process.structlog.contextvars, "bind_contextvars", lambda **_: None)
    assert process.run(pulse=Pulse()) == code
    assert json.loads(log.read_text()).get("heard", False) is heard


class _Pod:
    role, rank = "worker", 0

    def __init__(self, folder: Path) -> None:
        self.scratch = folder / "scratch"
        self.job = self

    namespace, name = "d", "words"
