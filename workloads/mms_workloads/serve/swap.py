"""Another artifact in a running pod: fetched, held beside the one that serves, proved, and made to serve.

The processes that answer map it, where only weights are others (taking.py); where its program is another one, it gets
processes of its own, a version of the models in Triton beside theirs (versions.py). Those that answer go on answering
all the while; what is not proved never serves. The one before stays held, so that going back takes two writes, or one
and the end of a version.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from mms_workloads.contract import Reason, live_run
from mms_workloads.serve import child, generations, taking, versions
from mms_workloads.serve.artifact import read_artifact
from mms_workloads.serve.control import TritonGoneError
from mms_workloads.serve.generations import Generation, Generations
from mms_workloads.serve.layout import MODELS_FILE, read_batching, read_models
from mms_workloads.serve.taking import Way
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mms_workloads.contract import ServeFile
    from mms_workloads.serve.artifact import Artifact
    from mms_workloads.serve.control import Triton
    from mms_workloads.serve.layout import Layout

HOLD_SECONDS = 120.0  # that the models have to map an artifact
REPORT_SECONDS = 0.02  # between two looks at what they report
LOOK_SECONDS = 0.5  # between two looks at Triton meanwhile
GONE_LOOKS = 3  # in a row, without an answer or models: a Triton that has much to do may miss one

log = structlog.get_logger()


async def swap(
    serve: ServeFile, layout: Layout, triton: Triton, environment: Mapping[str, str], tell: Callable[[str], None]
) -> Artifact:
    """Makes the pod serve another artifact. `tell` hears the phases.

    Raises JobError, TritonGoneError; what served before serves on, then. So it does where this is cancelled, unless the
    artifact serves already.
    """
    digest = serve.artifact.digest
    before = generations.read(layout.generations)
    serving = before.of(before.serving)
    assert serving is not None  # noqa: S101 - fetch and this function write no other file
    compared = {str(layout.artifact(serve.reference.artifact.digest))} if serve.reference else set()
    if before.of(digest) is None:
        # What an attempt that failed has left takes room.
        await asyncio.to_thread(_tidy, layout, _folders(layout, before.held) | compared)
        tell("Fetching")
        await child.run(
            layout, environment, "mms_workloads.serve.fetch", "--artifact", file=serve.model_dump_json()
        )  # fmt: skip
    artifact = read_artifact(layout, digest)
    following = before.of(digest) or _following(artifact, serving, layout)
    # A version that is not the newest in Triton cannot answer clients: who goes back to it leaves the newer one.
    left = [serving] if serving.triton <= following.triton else []
    try:
        tell("Holding")
        await _stand(Generations(serving=serving.digest, held=[serving, following]), layout, triton, environment)
        await _reported(layout, following, triton, serving=False)
        tell("Proving")
        await triton.verify(artifact.golden, digest, following.triton)
        tell("Switching")
        await _stand(Generations(serving=digest, held=[following, *left]), layout, triton, environment)
        await _reported(layout, following, triton, serving=True)
        if following.triton != serving.triton:
            await triton.verify(artifact.golden, digest)  # by whatever answers clients now
    except BaseException:
        await _put_back(before, layout, triton, environment)
        raise
    kept = _folders(layout, [following, serving]) | compared
    tidying = asyncio.ensure_future(asyncio.to_thread(_tidy, layout, kept))
    with contextlib.suppress(asyncio.CancelledError):  # it serves: there is nothing left to give up
        await asyncio.shield(tidying)
    await tidying
    return artifact


def _following(artifact: Artifact, serving: Generation, layout: Layout) -> Generation:
    """What the models are to hold. Raises JobError NewPodsNeeded where they cannot."""
    folder = layout.artifact(artifact.digest)
    found = taking.choose(read_models(Path(serving.folder) / MODELS_FILE), read_models(folder / MODELS_FILE))
    if found.way is Way.PODS:
        raise JobError(Reason.NEW_PODS_NEEDED, found.why)
    log.info("way", way=found.way.value, why=found.why)
    triton = serving.triton + (found.way is Way.VERSION)
    return Generation(digest=artifact.digest, version=artifact.manifest.version, folder=str(folder), triton=triton)


async def _stand(wanted: Generations, layout: Layout, triton: Triton, environment: Mapping[str, str]) -> None:
    """Has Triton run the versions whose processes hold these, and no other. Raises JobError, TritonGoneError."""
    loads = {one.triton for one in wanted.held} - versions.there(layout)
    if not await _arranged(wanted, layout):
        return
    if not loads:  # to let one go takes no longer than to begin a process that would say so
        await triton.load()
        return
    try:
        await versions.load(layout, environment)
    except JobError as error:
        if error.reason == Reason.MODEL_LOAD_FAILED and error.retryable:  # it may be back already, without models
            raise TritonGoneError(error.message) from error
        raise


async def _arranged(wanted: Generations, layout: Layout) -> bool:
    """Whether Triton is to hear of it. Raises JobError."""
    try:
        generations.write(layout.generations, wanted)
    except OSError as error:
        raise JobError(Reason.INTERNAL, f"cannot write {layout.generations}: {error}", retryable=True) from error
    return await asyncio.to_thread(versions.arrange, layout, {one.triton for one in wanted.held})


async def _put_back(before: Generations, layout: Layout, triton: Triton, environment: Mapping[str, str]) -> None:
    """What was held, as far as Triton still runs its version. Raises TritonGoneError: all is to be loaded anew."""
    serving = before.of(before.serving)
    kept = versions.there(layout) | ({serving.triton} if serving else set())
    held = [one for one in before.held if one.triton in kept]
    try:
        if await _arranged(Generations(serving=before.serving, held=held), layout):
            await versions.load(layout, environment, versions.UNLOAD_SECONDS)
    except JobError as error:
        # Behind a load that does not end Triton keeps the order; what served serves meanwhile.
        if not all((await triton.ready()).values()):
            raise TritonGoneError(error.message) from error
        log.warning("not put back yet", why=error.message)


async def _reported(layout: Layout, following: Generation, triton: Triton, *, serving: bool) -> None:
    """Returns when each model holds the artifact, or serves it. Raises JobError, TritonGoneError."""
    instances, path, digest = read_batching(layout).instances, layout.generations, following.digest
    look_at, missed = time.monotonic() + LOOK_SECONDS, 0
    try:
        async with asyncio.timeout(HOLD_SECONDS):
            for model in read_models(layout.running).names:
                while True:
                    if generations.stands(path, model, instances, digest, serving=serving, triton=following.triton):
                        break
                    await asyncio.sleep(REPORT_SECONDS)
                    if time.monotonic() >= look_at:
                        # A Triton that has been started again has no models, though it lives.
                        missed = 0 if all((await triton.ready()).values()) else missed + 1
                        if missed == GONE_LOOKS:
                            raise TritonGoneError(f"Triton has lost its models while artifact {digest} was taken")
                        look_at = time.monotonic() + LOOK_SECONDS
    except generations.RefusedError as error:
        raise JobError(Reason.MODEL_LOAD_FAILED, str(error)) from None
    except TimeoutError:
        message = f"the models did not take artifact {digest} within {HOLD_SECONDS:.0f} s"
        raise JobError(Reason.MODEL_LOAD_FAILED, message, retryable=True) from None


def _folders(layout: Layout, held: Iterable[Generation]) -> set[str]:
    """Of what is held; of live parameters also that of their run, which an agent that starts reads."""
    runs = {run for one in held if (run := live_run(one.digest)) is not None}
    return {one.folder for one in held} | {str(layout.artifact(run)) for run in runs}


def _tidy(layout: Layout, kept: set[str]) -> None:
    """Artifacts that nobody holds, or compares with, leave the pod's volume."""
    for folder in layout.models.glob("artifact-*"):
        if str(folder) not in kept:
            shutil.rmtree(folder, ignore_errors=True)
