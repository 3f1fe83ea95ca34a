"""A process of the agent's own, whose memory is gone when it ends: the agent stays small."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_workloads import contract
from mms_workloads.contract import Outcome, Reason
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_workloads.serve.layout import Layout


async def run(layout: Layout, environment: Mapping[str, str], module: str, *arguments: str, file: str = "") -> None:
    """Returns when it is done. file: the text of its file of the service. Raises JobError as it ended."""
    try:
        with tempfile.TemporaryDirectory(prefix="child-") as folder:
            job, said = Path(folder, "serve.json"), Path(folder, "outcome")
            job.write_text(file)  # noqa: ASYNC240 - a few hundred bytes
            own = {"MMS_SERVE_FILE": str(job), "MMS_TERMINATION_LOG": str(said), "MMS_MODELS_DIR": str(layout.models)}
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, *arguments, env={**os.environ, **environment, **own}
            )
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                process.kill()
                await process.wait()
                raise
            if code != contract.EXIT_DONE:
                raise _failure(module, said, code)
    except OSError as error:  # such as a disk that is full, or no process that may begin
        message = f"the process of {module} could not be run: {error}"
        raise JobError(Reason.INTERNAL, message, retryable=True) from error


def _failure(module: str, said: Path, code: int) -> JobError:
    try:
        outcome = Outcome.model_validate_json(said.read_bytes())
    except (OSError, ValidationError):
        return JobError(Reason.INTERNAL, f"the process of {module} ended with status {code}", retryable=True)
    return JobError(Reason(outcome.reason), outcome.message, retryable=outcome.retryable)
