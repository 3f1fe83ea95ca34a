"""Follows a running training: its parameters become those that the pod's models answer from, again and again.

    python -m mms_workloads.serve.follow <live:uid:run>

A process of its own beside the agent, so that what it takes is gone when it ends. It takes the parameters from a
worker, looks at them, writes them beside those that answer, and has the models answer from them, between two batches.
What is not finite, or worse at telling neighbours of held-out text from chance than the best so far less a margin, is
not served: what was good before answers until something good comes. What it does, and how old what answers is, it
writes into live.json, at least once a second.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from mms_workloads import contract, logs
from mms_workloads.contract import LiveOrders, LivePhase, LiveReport
from mms_workloads.serve import generations, live_files
from mms_workloads.serve.ages import Ages
from mms_workloads.serve.generations import Generation, Generations
from mms_workloads.serve.layout import Layout, live_source, read_batching, read_layout, read_live_report, read_orders
from mms_workloads.serve.live_files import Sample, UnfitError
from mms_workloads.serve.repository import MODELS
from mms_workloads.serve.trainers import Source, UnreachableError
from mms_workloads.serve.vectors_file import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mms_workloads.contract import LiveSource
    from mms_workloads.serve.trainers import Got

PART = 0.8  # of the bound, that what answers is as old as at most, as long as nothing takes longer than usual
LATELY = 0.3  # what the last time counts for in what is usual
LEAST_SECONDS = 0.02  # between two questions to a worker
RETRY_SECONDS = 0.2  # after nobody has answered
PAUSED_SECONDS = 0.2  # between two looks at the orders meanwhile
REPORT_SECONDS = 1.0
HOLD_SECONDS = 10.0  # that the models have to switch
LOOK_SECONDS = 0.005  # between two looks at what they report

log = structlog.get_logger()


def reader_tls(environment: Mapping[str, str]) -> Path | None:
    """The reader's certificate; None where the variable is empty: without TLS."""
    folder = environment.get("MMS_READER_TLS_DIR", contract.READER_TLS_DIR)
    return Path(folder) if folder else None


def source_of(live: LiveSource, environment: Mapping[str, str] = os.environ) -> Source:
    number = zlib.crc32(socket.gethostname().encode())
    port = int(environment.get("MMS_MASTER_PORT", contract.MASTER_PORT))
    return Source(live, reader_tls(environment), number, port)


@dataclass(slots=True)
class Follower:
    """Times are of the monotonic clock."""

    live: LiveSource
    layout: Layout
    source: Source
    orders: Callable[[], LiveOrders]
    ages: Ages = field(default_factory=Ages)
    report: LiveReport = field(init=False)
    _sample: Sample | None = None
    _plan: str = ""  # of the words
    _words: int = 0
    _tag: str = ""  # of what answers
    _number: int = 0  # of the next folder
    _takes: float = 0.0  # seconds from a copy to its answering, usually

    def __post_init__(self) -> None:
        """Goes on from what the file of generations and the last report say."""
        now = time.monotonic()
        serving = generations.read(self.layout.generations).serving
        numbers = [int(one.name.rpartition("-")[2]) for one in self._later()]
        self._number = 1 + max(numbers, default=-1)
        known = read_live_report(self.layout)
        ours = known is not None and contract.live_run(known.digest) == self.run
        age = known.age + max(0.0, time.time() - known.time) if known is not None and ours else 0.0
        self.ages.switched(now, now - age)
        best = known.bestQuality if known is not None and ours else None
        quality = known.quality if known is not None and ours else None
        self.report = LiveReport(
            phase=LivePhase.FOLLOWING, digest=serving, time=time.time(), age=age, quality=quality, bestQuality=best
        )

    @property
    def run(self) -> str:
        return contract.live_digest(self.live.uid, self.live.run)

    def step(self) -> float:
        """One look; the seconds until the next one."""
        began, orders = time.monotonic(), self.orders()
        if orders.paused:
            self.source.close()
            self._say(LivePhase.PAUSED, "what answers stays, as was asked for")
            return PAUSED_SECONDS
        try:
            self._follow(orders)
        except UnreachableError as error:
            self._say(LivePhase.UNREACHABLE, str(error))
            return RETRY_SECONDS
        except (UnfitError, ArtifactError) as error:
            if self.report.phase is not LivePhase.WITHHELD:
                log.warning("withheld", why=str(error), step=self.report.step)
            self._say(LivePhase.WITHHELD, str(error), withheld=self.report.withheld + 1)
        except OSError as error:
            why = f"cannot write to {self.layout.models}: {error}: its volume needs room for the vectors four times"
            self._say(LivePhase.WITHHELD, why, withheld=self.report.withheld + 1)
        else:
            self._say(LivePhase.FOLLOWING, "")
        bound = orders.maxStalenessMilliseconds / 1000
        return max(LEAST_SECONDS, began + PART * bound - self._takes - time.monotonic())

    def tell(self) -> None:
        """Writes the report, as of now."""
        now = time.monotonic()
        seen = self.ages.distribution(now)
        self.report = self.report.model_copy(
            update={
                "time": time.time(), "age": max(0.0, self.ages.age(now)), "ageP50": seen.p50, "ageP99": seen.p99,
                "ageMax": seen.longest,
            }
        )  # fmt: skip
        generations.write(self.layout.live_report, self.report, durable=False)

    def _say(self, phase: LivePhase, message: str, **more: object) -> None:
        self.report = self.report.model_copy(update={"phase": phase, "message": message, **more})
        self.tell()

    def _follow(self, orders: LiveOrders) -> None:
        """Raises UnreachableError, UnfitError, ArtifactError."""
        got = self.source.get("parameters", after=self._tag if self._plan else "")
        if got.plan != self._plan:
            self._learn_words(got.plan)
        if got.body is None:  # nothing was trained since
            self.ages.switched(time.monotonic(), got.copied)
            return
        rows = live_files.matrix(got.body, got.rows, got.columns)
        if len(rows) != self._words:
            raise UnfitError(f"{len(rows)} vectors of {self._words} words")
        quality = self._sample.quality(rows) if self._sample else None
        self._judge(quality, orders.qualityMargin)
        self._serve(got, self._written(rows))
        now = time.monotonic()
        self.ages.switched(now, got.copied)
        takes = now - got.copied
        self._takes = LATELY * takes + (1 - LATELY) * self._takes if self._takes else takes
        self._tag = got.tag
        best = max((one for one in (quality, self.report.bestQuality) if one is not None), default=None)
        news = {"step": got.step, "taken": self.report.taken + 1, "quality": quality, "bestQuality": best}
        self.report = self.report.model_copy(update=news)

    def _judge(self, quality: float | None, margin: float) -> None:
        """Raises UnfitError."""
        best = self.report.bestQuality
        if quality is None or best is None or quality >= best - margin:
            return  # NaN does not get here
        raise UnfitError(
            f"neighbours of held-out text are told from chance in {quality:.3f} of the comparisons; the best so far "
            f"was {best:.3f}, and {margin:g} less is allowed"
        )

    def _learn_words(self, plan: str) -> None:
        """The words of another plan, and what they are judged by. What answers keeps its own files."""
        folder = self.layout.artifact(self.run)
        parts = {what: self.source.get(what) for what in ("vocabulary", "task", "sample")}
        if {one.plan for one in parts.values()} != {plan}:
            raise UnreachableError("the training is counting its words again")
        bodies = {what: bytes(one.body or b"") for what, one in parts.items()}
        try:
            self._words = live_files.write_run(folder, bodies["vocabulary"], bodies["task"])
        except ValueError as error:
            raise UnfitError(f"the training's words: {error}") from error
        self._sample, self._plan, self._tag = live_files.sample(bodies["sample"]), plan, ""

    def _written(self, rows: NDArray[np.uint16]) -> Path:
        run = self.layout.artifact(self.run)
        folder = run.with_name(f"{run.name}-{self._number}")
        self._number += 1
        live_files.write_generation(folder, run, rows)
        return folder

    def _serve(self, got: Got, folder: Path) -> None:
        """Has the models answer from a folder. Raises UnfitError where they cannot hold it."""
        copied = round(1000 * (time.time() - time.monotonic() + got.copied))
        following = Generation(digest=f"{self.run}:{got.step}:{copied}", version=self.live.run, folder=str(folder))
        before = generations.read(self.layout.generations)
        serving = before.of(before.serving)
        held = [following, serving] if serving else [following]
        generations.write(self.layout.generations, Generations(serving=following.digest, held=held), durable=False)
        try:
            self._switched(following.digest)
        except UnfitError:
            generations.write(self.layout.generations, before, durable=False)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.report = self.report.model_copy(update={"digest": following.digest})
        self._tidy({one.folder for one in held})

    def _switched(self, digest: str) -> None:
        deadline, instances = time.monotonic() + HOLD_SECONDS, read_batching(self.layout).instances
        for model in MODELS:
            while not self._stands(model, instances, digest):
                if time.monotonic() > deadline:
                    raise UnfitError(f"model {model} did not take them within {HOLD_SECONDS:.0f} s")
                time.sleep(LOOK_SECONDS)

    def _stands(self, model: str, instances: int, digest: str) -> bool:
        try:
            return generations.stands(self.layout.generations, model, instances, digest, serving=True)
        except generations.RefusedError as error:
            raise UnfitError(str(error)) from None

    def _tidy(self, kept: set[str]) -> None:
        """Later parameters that nobody holds."""
        for folder in self._later():
            if str(folder) not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def _later(self) -> list[Path]:
        """The folders of all but the run's first parameters."""
        return list(self.layout.models.glob(f"{self.layout.artifact(self.run).name}-[0-9]*"))


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    layout, parent = read_layout(environment), os.getppid()
    live = live_source(arguments[0], environment)
    if live is None:
        log.error("no file of this pod says what is followed", digest=arguments[0])
        return contract.EXIT_PERMANENT
    follower = Follower(live, layout, source_of(live, environment), lambda: read_orders(environment) or live.orders)
    while os.getppid() == parent:  # an agent that was killed leaves nobody behind
        until = time.monotonic() + follower.step()
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, REPORT_SECONDS))
            if left > REPORT_SECONDS:
                follower.tell()
    return contract.EXIT_DONE


if __name__ == "__main__":
    logs.configure()
    sys.exit(main(sys.argv[1:]))
