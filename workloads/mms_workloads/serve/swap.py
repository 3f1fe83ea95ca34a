"""Another artifact in a running pod: fetched, held beside the one that serves, proved, and made to serve.

The processes that answer go on answering all the while; what is not proved never serves. The one before stays held, so
that going back takes two writes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_workloads import contract
from mms_workloads.contract import Outcome, Reason
from mms_workloads.serve import generations, repository
from mms_workloads.serve.artifact import read_artifact
from mms_workloads.serve.generations import Generation, Generations
from mms_workloads.serve.layout import MODELS_FILE, read_batching, read_models
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mms_workloads.contract import ServeFile
    from mms_workloads.serve.artifact import Artifact
    from mms_workloads.serve.control import Triton
    from mms_workloads.serve.layout import Layout

HOLD_SECONDS = 120.0  # that the models have to map an artifact
REPORT_SECONDS = 0.02  # between two looks at what they report


async def swap(
    serve: ServeFile, layout: Layout, triton: Triton, environment: Mapping[str, str], tell: Callable[[str], None]
) -> Artifact:
    """Makes the pod serve another artifact. `tell` hears the phases.

    Raises JobError, TritonGoneError; what served before serves on, then.
    """
    digest = serve.artifact.digest
    before = generations.read(layout.generations)
    compared = {str(layout.artifact(serve.reference.artifact.digest))} if serve.reference else set()
    if before.of(digest) is None:
        # What an attempt that failed has left takes room.
        await asyncio.to_thread(_tidy, layout, {one.folder for one in before.held} | compared)
        tell("Fetching")
        await _fetch(serve, layout, environment)
    artifact = read_artifact(layout, digest)
    wanted = read_models(layout.artifact(digest) / MODELS_FILE)
    if why := repository.misfit(read_models(layout.running), wanted):
        message = f"{why}: pods take it anew: set spec.rollout.strategy to another one than HotSwap"
        raise JobError(Reason.MODEL_LOAD_FAILED, message)
    following = Generation(digest=digest, version=artifact.manifest.version, folder=str(layout.artifact(digest)))
    serving = before.of(before.serving)
    assert serving is not None  # noqa: S101 - fetch and this function write no other file
    try:
        tell("Holding")
        _write(layout, Generations(serving=serving.digest, held=[serving, following]))
        await _reported(layout, digest, serving=False)
        tell("Proving")
        await triton.verify(artifact.golden, digest)
        tell("Switching")
        _write(layout, Generations(serving=digest, held=[following, serving]))
        await _reported(layout, digest, serving=True)
    except BaseException:
        _write(layout, before)
        raise
    await asyncio.to_thread(_tidy, layout, {following.folder, serving.folder} | compared)
    return artifact


def _write(layout: Layout, wanted: Generations) -> None:
    try:
        generations.write(layout.generations, wanted)
    except OSError as error:
        raise JobError(Reason.INTERNAL, f"cannot write {layout.generations}: {error}", retryable=True) from error


async def _reported(layout: Layout, digest: str, *, serving: bool) -> None:
    """Returns when each model holds the artifact, or serves it. Raises JobError."""
    instances = read_batching(layout).instances
    try:
        async with asyncio.timeout(HOLD_SECONDS):
            for model in read_models(layout.running).names:
                while True:
                    if generations.stands(layout.generations, model, instances, digest, serving=serving):
                        break
                    await asyncio.sleep(REPORT_SECONDS)
    except generations.RefusedError as error:
        raise JobError(Reason.MODEL_LOAD_FAILED, str(error)) from None
    except TimeoutError:
        message = f"the models did not take artifact {digest} within {HOLD_SECONDS:.0f} s"
        raise JobError(Reason.MODEL_LOAD_FAILED, message, retryable=True) from None


async def _fetch(serve: ServeFile, layout: Layout, environment: Mapping[str, str]) -> None:
    """In a process of its own, whose memory is gone afterwards: the agent stays small. Raises JobError."""
    with tempfile.TemporaryDirectory(prefix="fetch-") as folder:
        job, said = Path(folder, "serve.json"), Path(folder, "outcome")
        job.write_text(serve.model_dump_json())  # noqa: ASYNC240 - a few hundred bytes
        own = {"MMS_SERVE_FILE": str(job), "MMS_TERMINATION_LOG": str(said), "MMS_MODELS_DIR": str(layout.models)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mms_workloads.serve.fetch", "--artifact", env={**os.environ, **environment, **own}
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if code != contract.EXIT_DONE:
            raise _failure(said, code)


def _failure(said: Path, code: int) -> JobError:
    try:
        outcome = Outcome.model_validate_json(said.read_bytes())
    except (OSError, ValidationError):
        return JobError(Reason.INTERNAL, f"the process that fetches ended with status {code}", retryable=True)
    return JobError(Reason(outcome.reason), outcome.message, retryable=outcome.retryable)


def _tidy(layout: Layout, kept: set[str]) -> None:
    """Artifacts that nobody holds, or compares with, leave the pod's volume."""
    for folder in layout.models.glob("artifact-*"):
        if str(folder) not in kept:
            shutil.rmtree(folder, ignore_errors=True)
