"""A pod finds out what it can do, and how it does the most, before it answers clients."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from mms_workloads.contract import Measured
from mms_workloads.serve import generations, repository, tuning
from mms_workloads.serve.layout import read_batching
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from mms_workloads.contract import Batching, Measure
    from mms_workloads.serve.artifact import Artifact
    from mms_workloads.serve.control import Triton
    from mms_workloads.serve.layout import Layout

LOAD_SECONDS = 10.0  # that is left for the last load: the best way of batching

log = structlog.get_logger()


async def survey(wanted: Measure, layout: Layout, triton: Triton, artifact: Artifact) -> Measured:
    """Raises TritonGoneError, and JobError when the models cannot be had back as they were asked for."""
    deadline = time.monotonic() + wanted.limitSeconds - LOAD_SECONDS
    first = runs = read_batching(layout)
    if wanted.objectiveSeconds is None:
        return await triton.measure(artifact.golden, wanted.limitSeconds)

    async def measure(batching: Batching) -> Measured:
        nonlocal runs
        try:
            if batching != runs:
                await run(batching, layout, triton)
                runs = batching
        except JobError as error:  # too little memory for so many processes, say
            runs = batching
            return Measured(seconds=0.0, error=error.message)
        found = await triton.measure(artifact.golden, max(1.0, deadline - time.monotonic()))
        rate = tuning.rate(found.curve, wanted.objectiveSeconds or 0.0)
        log.info("tried", batching=batching.model_dump(), rate=rate, error=found.error)
        return found

    began = time.monotonic()
    found, tried = await tuning.search(
        first, measure, wanted.objectiveSeconds, lambda: deadline - time.monotonic()
    )  # fmt: skip
    if found.batching is not None and found.batching != runs:
        await run(found.batching, layout, triton)
    await triton.verify(artifact.golden, artifact.digest)
    log.info("tuned", batching=found.batching and found.batching.model_dump(), tried=tried)
    return found.model_copy(update={"seconds": time.monotonic() - began})


async def run(batching: Batching, layout: Layout, triton: Triton) -> None:
    """Makes the models run that way. Raises JobError, TritonGoneError."""
    for name, text in repository.configs(layout.generations, batching).items():
        file = layout.repository / name
        part = file.with_name(f".{file.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    generations.write(layout.batching, batching)
    generations.forget_reports(layout.generations)
    await triton.load()
    # Processes that Triton has kept report again when the file is another one.
    generations.write(layout.generations, generations.read(layout.generations))
