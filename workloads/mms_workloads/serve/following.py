"""The agent's side of a pod that follows a training: a process that does so, kept or ended, and what it says."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from mms_workloads import contract
from mms_workloads.serve import generations
from mms_workloads.serve.layout import read_live_report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_workloads.contract import Golden, LiveReport
    from mms_workloads.serve.layout import Layout

AGAIN_SECONDS = 1.0  # after one that has ended by itself
END_SECONDS = 5.0

log = structlog.get_logger()


class Following:
    """One process at most."""

    def __init__(self, layout: Layout, environment: Mapping[str, str]) -> None:
        self._layout, self._environment = layout, environment
        self._process: asyncio.subprocess.Process | None = None
        self._digest = ""
        self._not_before = 0.0  # monotonic seconds

    async def keep(self, digest: str | None) -> None:
        """The run that is to be followed, as contract.live_digest has it; None or an artifact's: nobody is followed."""
        wanted = digest if digest and digest.startswith(contract.LIVE) else None
        if self._process is not None and self._process.returncode is not None:
            log.warning("the follower has ended", status=self._process.returncode)
            self._process, self._not_before = None, time.monotonic() + AGAIN_SECONDS
        if self._process is not None and wanted != self._digest:
            await self._end(self._process)
        if wanted and self._process is None and time.monotonic() >= self._not_before:
            self._digest = wanted
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "mms_workloads.serve.follow", wanted, env={**os.environ, **self._environment}
            )

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Writes of the process are whole or not at all: it may end at any moment."""
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
        self._process = None

    def proof(self) -> tuple[Golden, str] | None:
        """Questions that show that the models answer from what they are said to, and its digest.

        None where an artifact serves, which brings its own.
        """
        now = generations.read(self._layout.generations)
        serving = now.of(now.serving)
        if serving is None or not serving.digest.startswith(contract.LIVE):
            return None
        from mms_workloads.serve import live_files  # noqa: PLC0415 - numpy, for pods that follow only

        return live_files.proof(Path(serving.folder)), serving.digest

    def report(self, digest: str) -> LiveReport | None:
        """What was said last of the run that serves, with its age as of now."""
        said = read_live_report(self._layout) if digest.startswith(contract.LIVE) else None
        if said is None or contract.live_run(said.digest) != digest:
            return None
        now = time.time()
        later = max(0.0, now - said.time)
        return said.model_copy(
            update={"time": now, "age": said.age + later, "ageMax": max(said.ageMax, said.age + later)}
        )


def metrics(report: LiveReport) -> str:
    """Lines of /metrics."""
    values: list[tuple[str, str, str, float | None]] = [
        ("age_seconds", "gauge", "Age of the parameters that answer.", report.age),
        ("age_p50_seconds", "gauge", "Its median over the last minute.", report.ageP50),
        ("age_p99_seconds", "gauge", "Its 99th percentile over the last minute.", report.ageP99),
        ("age_max_seconds", "gauge", "The longest of the last minute.", report.ageMax),
        ("step", "gauge", "Rounds of the training that are part of them.", report.step),
        ("taken_total", "counter", "Parameters that were taken, since the follower's start.", report.taken),
        ("withheld_total", "counter", "Parameters that were not good enough to answer.", report.withheld),
        ("quality", "gauge", "How often neighbours of held-out text are told from chance.", report.quality),
    ]
    names = [(f"mms_agent_live_{name}", *more) for name, *more in values]
    return "".join(
        f"# HELP {n} {text}\n# TYPE {n} {kind}\n{n} {float(value):g}\n"
        for n, kind, text, value in names
        if value is not None
    )
