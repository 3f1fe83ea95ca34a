"""The follower as the agent keeps it: one process at most, that of the run that serves."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

from mms_workloads.contract import ArtifactPin, LivePhase, LiveReport, LiveSource, ServeFile, Store, live_digest
from mms_workloads.serve import following, generations
from mms_workloads.serve.following import Following
from mms_workloads.serve.generations import Generation, Generations
from mms_workloads.serve.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

RUN = live_digest("u", 1)
REPORT = LiveReport(phase=LivePhase.FOLLOWING, digest=f"{RUN}:7:1000", step=7, time=0, age=0.2, quality=0.8)


def made(tmp_path: Path) -> tuple[Following, Layout]:
    layout = Layout(tmp_path)
    first = Generation(digest=RUN, version=1, folder=str(tmp_path / "artifact-ur1"))
    generations.write(layout.generations, Generations(serving=RUN, held=[first]))
    live = LiveSource(masterHost="127.0.0.1", uid="u", run=1)
    pin = ArtifactPin(uri="file:///none", digest=RUN)
    serve = ServeFile(namespace="d", name="words", artifact=pin, storage=Store(uri=pin.uri), live=live)
    (tmp_path / "serve.json").write_text(serve.model_dump_json())
    environment = {
        "MMS_MODELS_DIR": str(tmp_path), "MMS_SERVE_FILE": str(tmp_path / "serve.json"), "MMS_READER_TLS_DIR": "",
        "MMS_MASTER_PORT": "1", "PYTHONPATH": os.environ.get("PYTHONPATH", "workloads"),
    }  # fmt: skip
    return Following(layout, environment), layout


async def reported(layout: Layout, seconds: float = 20) -> LiveReport:
    deadline = time.monotonic() + seconds
    while not layout.live_report.exists():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    return LiveReport.model_validate_json(layout.live_report.read_bytes())


async def test_one_process_of_the_run_that_serves(tmp_path: Path) -> None:
    it, layout = made(tmp_path)
    await it.keep("sha256:a")
    assert it._process is None, "an artifact has nobody to follow"
    await it.keep(RUN)
    process = it._process
    assert process is not None
    await it.keep(RUN)
    assert it._process is process
    found = await reported(layout)
    assert found.phase is LivePhase.UNREACHABLE, "there is no training"
    said = it.report(RUN)
    assert said is not None
    assert said.phase is LivePhase.UNREACHABLE
    await it.keep(None)
    assert process.returncode is not None


async def test_one_that_has_ended_is_made_again(tmp_path: Path) -> None:
    it, layout = made(tmp_path)
    await it.keep(RUN)
    assert it._process is not None
    await reported(layout)
    it._process.kill()
    await it._process.wait()
    await it.keep(RUN)
    assert it._process is None, "not at once"
    it._not_before = 0.0
    await it.keep(RUN)
    assert it._process is not None
    await it.keep(None)


def test_what_was_said_grows_old(tmp_path: Path) -> None:
    it, layout = made(tmp_path)
    assert it.report(RUN) is None
    generations.write(layout.live_report, REPORT.model_copy(update={"time": time.time() - 5}))
    found = it.report(RUN)
    assert found is not None
    assert 5.2 <= found.age < 6
    assert found.ageMax == found.age
    assert it.report(live_digest("u", 2)) is None, "another run's"
    assert it.report("sha256:a") is None


def test_metrics() -> None:
    values = dict(line.split() for line in following.metrics(REPORT).splitlines() if not line.startswith("#"))
    assert values["mms_agent_live_age_seconds"] == "0.2"
    assert values["mms_agent_live_step"] == "7"
    assert values["mms_agent_live_quality"] == "0.8"
    assert "quality" not in following.metrics(REPORT.model_copy(update={"quality": None}))
