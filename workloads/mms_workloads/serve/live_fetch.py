"""The first parameters of a running training, in a pod that is to follow it: a folder like an artifact's."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import structlog

from mms_workloads.contract import JobIdentity, Reason, live_run
from mms_workloads.serve import generations, live_files
from mms_workloads.serve.artifact import read_artifact
from mms_workloads.serve.follow import source_of
from mms_workloads.serve.live_files import UnfitError
from mms_workloads.serve.trainers import UnreachableError
from mms_workloads.serve.vectors_file import ArtifactError
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_workloads.contract import ArtifactManifest, LiveSource, ServeFile
    from mms_workloads.serve.layout import Layout
    from mms_workloads.serve.trainers import Source

WAIT_SECONDS = 60.0  # for a training that is between two membership epochs, or whose master is replaced
RETRY_SECONDS = 0.5

log = structlog.get_logger()


def fetch(
    serve: ServeFile, live: LiveSource, layout: Layout, environment: Mapping[str, str] = os.environ
) -> ArtifactManifest:
    """Makes the pod's volume hold the run's words and present parameters. Raises JobError."""
    try:
        source = source_of(live, environment)
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return _take(serve, live, layout, source)
            except (UnreachableError, UnfitError) as error:
                if time.monotonic() > deadline:
                    if (kept := _kept(serve, layout)) is not None:
                        log.warning("the pod goes on with what it has", why=str(error))
                        return kept
                    raise JobError(
                        Reason.PARAMETERS_UNREACHABLE,
                        f"run {live.run} of the training gives no parameters: {error}: a new pod can begin when it "
                        "trains, or when its artifact is there",
                        retryable=True,
                    ) from error
                log.info("no parameters yet", why=str(error))
            finally:
                source.close()
            time.sleep(RETRY_SECONDS)
    except (ArtifactError, OSError) as error:
        raise JobError(
            Reason.INTERNAL, f"cannot write the parameters to {layout.models}: {error}: its volume needs more room",
            retryable=True,
        ) from error  # fmt: skip


def _kept(serve: ServeFile, layout: Layout) -> ArtifactManifest | None:
    """Of parameters of this very run that the pod has from before its containers were made anew."""
    try:
        serving = generations.read(layout.generations).serving
        kept = read_artifact(layout, serve.artifact.digest).manifest
    except (OSError, ValueError, JobError):
        return None
    return kept if live_run(serving) == serve.artifact.digest else None


def _take(serve: ServeFile, live: LiveSource, layout: Layout, source: Source) -> ArtifactManifest:
    folder = layout.artifact(serve.artifact.digest)
    got = {what: source.get(what) for what in ("vocabulary", "task", "parameters")}
    if len({one.plan for one in got.values()}) != 1:
        raise UnreachableError("the training is counting its words again")
    vocabulary, task, parameters = (got[what].body or memoryview(b"") for what in ("vocabulary", "task", "parameters"))
    words = live_files.write_run(folder, bytes(vocabulary), bytes(task))
    rows = live_files.matrix(parameters, got["parameters"].rows, got["parameters"].columns)
    if len(rows) != words:
        raise UnfitError(f"{len(rows)} vectors of {words} words")
    job = JobIdentity(namespace=serve.namespace, name=serve.name, uid=live.uid, run=live.run)
    return live_files.write_first(folder, rows, job)
