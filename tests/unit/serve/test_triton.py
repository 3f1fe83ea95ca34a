"""How tritonserver is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mms_workloads.contract import Outcome
from mms_workloads.serve import triton
from mms_workloads.serve.layout import Layout

if TYPE_CHECKING:
    import pytest


def test_flags() -> None:
    flags = triton.flags(Layout(Path("/models")), "secret", 20)
    for flag in (
        "--model-repository=/models/repository",
        "--model-control-mode=explicit",
        "--strict-readiness=false",
        "--exit-timeout-secs=20",
        "--grpc-max-connection-age=10000",
        "--grpc-max-connection-age-grace=20000",
        "--http-port=8000",
        "--grpc-port=8001",
        "--metrics-port=8002",
        "--http-restricted-api=model-repository,shared-memory,trace,logging:mms-control-key=secret",
        "--grpc-restricted-protocol=model-repository,shared-memory,trace,logging:mms-control-key=secret",
    ):
        assert flag in flags


def test_stale_regions(tmp_path: Path) -> None:
    prefix = triton.region_prefix(Layout(Path("/models")))
    for name in (f"{prefix}1", f"{prefix}2", "mms_triton_9000_1", "sem.other"):
        (tmp_path / name).touch()
    assert triton.remove_stale_regions(tmp_path, prefix) == [f"{prefix}1", f"{prefix}2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mms_triton_9000_1", "sem.other"]


def test_environment() -> None:
    environment = triton.server_environment({"PATH": "/bin", "OMP_NUM_THREADS": "4"}, "/opt/venv/bin/python")
    assert environment["PATH"] == "/opt/venv/bin:/bin"
    assert environment["OMP_NUM_THREADS"] == "4"  # what the pod's template says counts
    assert environment["OPENBLAS_NUM_THREADS"] == "1"


def test_started_with_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "control-key").write_text("secret\n")
    seen: list[list[str]] = []
    monkeypatch.setattr(triton.os, "execvpe", lambda _, arguments, __: seen.append(arguments))
    monkeypatch.setattr(triton, "SHARED_MEMORY", tmp_path)
    triton.main(["--log-verbose=1"], {"MMS_MODELS_DIR": str(tmp_path), "MMS_EXIT_TIMEOUT_SECONDS": "7"})
    assert seen[0][0] == "tritonserver"
    assert seen[0][-1] == "--log-verbose=1"
    assert "--exit-timeout-secs=7" in seen[0]
    assert any(argument.endswith(":mms-control-key=secret") for argument in seen[0])


def test_without_fetch(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert triton.main([], {"MMS_MODELS_DIR": str(tmp_path), "MMS_TERMINATION_LOG": str(log)}) == 1
    assert "fetch container must run first" in Outcome.model_validate_json(log.read_bytes()).message
