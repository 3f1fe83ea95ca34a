"""A pod finds out what it can do, and how it does the most, before it answers clients."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from mms_workloads.contract import Measured
from mms_workloads.serve import generations, repository, tuning
from mms_workloads.serve.control import TritonGoneError
from mms_workloads.serve.layout import read_models
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from mms_workloads.contract import Batching, Golden, ServeFile
    from mms_workloads.serve.control import Triton
    from mms_workloads.serve.layout import Layout

BACK_SECONDS = 10.0  # that are left for the last load: the best way of batching
GONE_SECONDS = 60.0  # that a Triton may take to be there again, when one way of batching was too much for it
LOOK_SECONDS = 0.5

log = structlog.get_logger()


async def survey(serve: ServeFile, layout: Layout, triton: Triton, proof: tuple[Golden, str]) -> Measured:
    """proof: golden questions, and the digest of what answers them.

    Raises TritonGoneError, and JobError when the models cannot be had back as they were asked for.
    """
    wanted, (cases, digest) = serve.measure, proof
    assert wanted is not None  # noqa: S101 - or nobody would ask
    if wanted.objectiveSeconds is None:
        return await triton.measure(cases, wanted.limitSeconds, wanted.withinSeconds)
    objective, began = wanted.objectiveSeconds, time.monotonic()
    deadline = began + wanted.limitSeconds - BACK_SECONDS
    runs: Batching | None = None

    async def measure(batching: Batching) -> Measured:
        nonlocal runs
        try:
            if batching != runs:
                await run(batching, layout, triton)
                runs = batching
            found = await triton.measure(cases, max(1.0, deadline - time.monotonic()), objective)
        except (JobError, TritonGoneError) as error:
            # Too little memory for so many processes, say. A Triton that begins anew must not begin with them.
            write(serve.batching, layout)
            runs = None
            await _back(triton)
            found = Measured(seconds=0.0, error=str(error))
        log.info(
            "tried", batching=batching.model_dump(), rate=tuning.rate(found.curve, objective), error=found.error
        )  # fmt: skip
        return found

    found, tried = await tuning.search(
        serve.batching, measure, objective, lambda: deadline - time.monotonic(), wanted.processors
    )
    best = found.batching or serve.batching
    if best != runs:
        await run(best, layout, triton)
    await triton.verify(cases, digest)
    log.info("tuned", batching=best.model_dump(), tried=tried)
    return found.model_copy(update={"seconds": time.monotonic() - began})


def write(batching: Batching, layout: Layout) -> None:
    """What a Triton loads from now on."""
    for name, text in repository.configs(layout.generations, batching, read_models(layout.running)).items():
        file = layout.repository / name
        part = file.with_name(f".{file.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    generations.write(layout.batching, batching)
    generations.forget_reports(layout.generations)


async def run(batching: Batching, layout: Layout, triton: Triton) -> None:
    """Makes the models run that way. Raises JobError, TritonGoneError."""
    write(batching, layout)
    await triton.load()
    # Processes that Triton has kept report again when the file is another one.
    generations.write(layout.generations, generations.read(layout.generations))


async def _back(triton: Triton) -> None:
    """Waits for a Triton that may have ended. Raises TritonGoneError."""
    deadline = time.monotonic() + GONE_SECONDS
    while not await triton.live():
        if time.monotonic() > deadline:
            raise TritonGoneError("it did not come back after a way of batching that was too much for it")
        await asyncio.sleep(LOOK_SECONDS)
