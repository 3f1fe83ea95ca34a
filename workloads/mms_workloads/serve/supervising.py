"""The agent's life: it brings the models up, proves by golden cases that they answer rightly, and takes what is wanted.

Models that cannot be loaded or answer wrongly end it by JobError. A Triton that restarts has lost its models: they are
loaded and verified again, not ready meanwhile. Another artifact that the pod is told to serve takes the place of the
one that serves without a restart: swap.py. One that fails is reported, and what served serves on. While it serves a
running training's parameters, a process beside it (following.py) has the models take the next ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from mms_workloads.contract import AgentReport, Reason, SwapReport
from mms_workloads.serve import agent_state, following
from mms_workloads.serve.agent_state import State
from mms_workloads.serve.asking import AnswerError
from mms_workloads.serve.control import TritonGoneError
from mms_workloads.serve.golden import GoldenError
from mms_workloads.serve.swap import GONE_LOOKS, LOOK_SECONDS
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mms_workloads.contract import Golden, Load, Measured, ServeFile
    from mms_workloads.serve.agent_state import Phase
    from mms_workloads.serve.artifact import Artifact
    from mms_workloads.serve.control import Triton
    from mms_workloads.serve.following import Following
    from mms_workloads.serve.inputs import Inputs

    Proof = tuple[Golden, str]  # questions, and the digest of what answers them

WATCH_SECONDS = 0.5  # between two looks at Triton
COMING_SECONDS = 0.05  # while it starts
WANTED_SECONDS = 0.05  # between two looks at what the pod is told: a small file
DRAIN_SECONDS = 30.0
SUMMARY_SECONDS = 75.0  # for which Triton's summaries of a minute may know of the measurement
RETRY_SECONDS = 10.0  # after a swap that another try may mend

log = structlog.get_logger()


async def _no_load() -> Load | None:
    return None


@dataclass(frozen=True)
class Measure:
    """What is measured, and asked for the analysis of a rollout.

    reference: the digest of what an artifact, by its digest, is to be compared with. read: an artifact, where fetch has
    it. probe: questions a second. load: what Triton has to do. survey: what the pod can do; None: nobody wants to know.
    """

    reference: Callable[[str], str | None] = lambda _: None
    read: Callable[[str], Artifact | None] = lambda _: None
    probe: Callable[[], float] = lambda: 0.0
    load: Callable[[], Awaitable[Load | None]] = _no_load
    survey: Callable[[Proof], Awaitable[Measured]] | None = None


class Agent:
    """Holds the state; `supervise` is its life.

    take: makes the pod serve what a file says, swap.swap. settle: before the models are loaded, versions.settle.
    """

    def __init__(
        self,
        artifact: Artifact,
        triton: Triton,
        wanted: Callable[[], ServeFile | None] = lambda: None,
        take: Callable[[ServeFile, Callable[[str], None]], Awaitable[Artifact]] | None = None,
        measure: Measure | None = None,
        *,
        following: Following | None = None,
        inputs: Inputs | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self.artifact = artifact
        self.triton = triton
        self.state = State()
        self._wanted = wanted
        self._take = take
        self._measure = measure or Measure()
        self._following = following
        self.inputs = inputs
        self._settle = settle
        self._retry_at = 0.0  # the clock's time from when a swap that failed may be tried again
        self._ended_in: tuple[str, str] | None = None  # the swap, by its digest and attempt, in which Triton ended last
        self._started = time.monotonic()
        self._ready: tuple[float, dict[str, bool]] = (float("-inf"), {})
        self._measured_at = float("-inf")

    async def supervise(self) -> None:
        """Brings the models up and keeps them so, and takes what is wanted. Ends only by JobError."""
        while True:
            try:
                if self.state.phase != "Verified" or not all((await self._looked()).values()):
                    await self._follow(on=False)
                    await self._bring_up()
                elif (serve := self._next()) is not None:
                    await self._follow(on=False)
                    await self._swap(serve)
                else:
                    await self._follow(on=True)
                    await self._compare()
            except TritonGoneError as error:
                self._enter("WaitingForTriton", f"Triton went away: {error}")
            await self._rest()

    async def ready(self) -> dict[str, bool]:
        """Which models answer now."""
        asked, verifications = time.monotonic(), self.state.verifications
        found = await self.triton.ready()
        if verifications == self.state.verifications:  # else it may be of models that were lost, and are back
            self._ready = asked, found
        return found

    async def _looked(self) -> dict[str, bool]:
        """The same; probes may have asked a moment ago."""
        at, found = self._ready
        return found if time.monotonic() - at < WATCH_SECONDS else await self.ready()

    async def _follow(self, *, on: bool) -> None:
        """Whether the training's next parameters are taken, where it is one's parameters that serve."""
        if self._following is not None:
            await self._following.keep(self.artifact.digest if on else None)

    async def _rest(self) -> None:
        """Until Triton is to be looked at again, or something else is wanted."""
        waits = self.state.phase == "WaitingForTriton"
        until = time.monotonic() + (COMING_SECONDS if waits else WATCH_SECONDS)
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, WANTED_SECONDS))
            if self.state.phase == "Verified" and self._next() is not None:
                return

    async def _bring_up(self) -> None:
        if not await self.triton.live():
            if self.state.phase != "WaitingForTriton":
                self._enter("WaitingForTriton", "Triton does not answer")
            return
        self._enter("Loading", f"loading {', '.join(self.triton.models)}")
        await asyncio.to_thread(self._settle)
        await self.triton.load()
        self._enter("Verifying", "asking the golden cases")
        proof = await asyncio.to_thread(self._following.proof) if self._following else None
        asked = proof or (self.artifact.golden, self.artifact.digest)
        right = await self.triton.verify(*asked)
        if self._measure.survey is not None and not self.state.verifications and self.state.measured is None:
            self._enter("Measuring", "asking so many golden questions at a time as it can answer")
            measured = await self._measure.survey(asked)
            log.info("measured", points=len(measured.curve), seconds=measured.seconds, error=measured.error)
            self.state = replace(self.state, measured=measured)
            self._measured_at = time.monotonic()
        self._verified(right)

    def _verified(self, right: int) -> None:
        self._ready = (float("-inf"), {})  # what was seen before says nothing of them
        self.state = replace(
            self.state,
            phase="Verified",
            message="",
            golden_right=right,
            verified_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds_to_ready=self.state.seconds_to_ready or time.monotonic() - self._started,
            verifications=self.state.verifications + 1,
        )
        log.info("verified", golden=right, digest=self.artifact.digest, version=self.artifact.manifest.version)

    async def _compare(self) -> None:
        """Once with what is served elsewhere while this artifact is rolled out."""
        digest, known = self._measure.reference(self.artifact.digest), self.state.comparison
        if digest is None or (known and known.reference == digest) or (reference := self._measure.read(digest)) is None:
            return
        found = await self.triton.compare(self.artifact, reference)
        self.state = replace(self.state, comparison=found)
        log.info("compared", reference=found.reference, compared=found.compared, differing=found.differing)

    async def probe(self) -> None:
        """Asks golden cases in turn, as many a second as the pod is told, so that there is something to measure."""
        for case in itertools.count():
            rate = self._measure.probe()
            await asyncio.sleep(1 / rate if rate else WATCH_SECONDS)
            if rate and self.state.phase == "Verified":
                cases = self.artifact.golden.cases
                if not cases:
                    continue
                with contextlib.suppress(AnswerError, GoldenError):  # it counts as failed
                    await self.triton.ask(cases[case % len(cases)], self.artifact.digest)

    async def sample(self) -> None:
        """Inputs of clients, while the pod is told to: what the agent itself asks is none."""
        while self.inputs is not None:
            await self.inputs.keep(self.artifact.digest if self.state.phase == "Verified" else None)
            await asyncio.sleep(WATCH_SECONDS)

    def _next(self) -> ServeFile | None:
        """What is wanted and does not serve, unless it has failed for good, or just now."""
        serve = self._wanted() if self._take else None
        if serve is None:
            return None
        last = self.state.swap
        if last and last.phase == "Failed" and (last.digest, last.attempt) != (serve.artifact.digest, serve.attempt):
            # Something else has been said since: what failed may be asked for again.
            self._retry_at = 0.0
            self.state = replace(self.state, swap=None)
        if serve.artifact.digest == self.artifact.digest or time.monotonic() < self._retry_at:
            return None
        return serve

    async def _swap(self, serve: ServeFile) -> None:
        """What fails is told, and what served serves on; so it does when something else is wanted meanwhile."""
        assert self._take is not None  # noqa: S101 - asked for by `_next`
        began = time.monotonic()
        report = SwapReport(digest=serve.artifact.digest, attempt=serve.attempt, phase="Fetching")

        def tell(phase: str) -> None:
            log.info("swap", phase=phase, digest=report.digest)
            self.state = replace(self.state, swap=report.model_copy(update={"phase": phase}))

        taking = asyncio.ensure_future(self._take(serve, tell))
        try:
            while not taking.done():
                await asyncio.wait({taking}, timeout=WANTED_SECONDS)
                if not taking.done() and self._is_off(serve):
                    taking.cancel()
                    await asyncio.wait({taking})  # it puts back what it has changed
            if taking.cancelled():
                log.info("swap given up", digest=report.digest)
                self.state = replace(self.state, swap=None)
                return
            self.artifact = taking.result()  # also of one that served before it heard that it is off
        except TritonGoneError as error:
            self._failed(report, self._ended(report, str(error)))
            raise
        except JobError as error:
            # Who loads it hears of Triton's end as of any other failure; one that is back has no models.
            loading = self.state.swap is not None and self.state.swap.phase != "Fetching"
            gone = error.retryable and loading and await self._gone()
            self._failed(report, self._ended(report, error.message) if gone else error)
            return
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
        done = report.model_copy(update={"phase": "Done", "seconds": time.monotonic() - began})
        self.state = replace(self.state, swap=done, swaps=self.state.swaps + 1, comparison=None)
        self._verified(len(self.artifact.golden.cases))

    async def _gone(self) -> bool:
        """Whether Triton has lost its models: one that has much to do may miss a look."""
        for _ in range(GONE_LOOKS):
            if all((await self.triton.ready()).values()):
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True

    def _failed(self, report: SwapReport, error: JobError) -> None:
        log.error("swap failed", digest=report.digest, reason=error.reason, message=error.message)
        self._retry_at = time.monotonic() + RETRY_SECONDS if error.retryable else float("inf")
        failed = {"phase": "Failed", "reason": error.reason, "message": error.message, "retryable": error.retryable}
        self.state = replace(
            self.state, swap=report.model_copy(update=failed), swaps_failed=self.state.swaps_failed + 1
        )

    def _ended(self, report: SwapReport, why: str) -> JobError:
        """Triton has ended while it took a version. It may have been chance once; twice it was the version."""
        again = self._ended_in == (report.digest, report.attempt)
        self._ended_in = report.digest, report.attempt
        often = "twice" if again else "once"
        said = f"Triton ended {often} while the version was loaded, probably since its memory is too small for both"
        return JobError(Reason.MODEL_LOAD_FAILED, f"{said}: {why}", retryable=not again)

    def _is_off(self, serve: ServeFile) -> bool:
        """Whether something else is wanted by now."""
        wanted = self._wanted()
        return wanted is None or wanted.artifact.digest != serve.artifact.digest

    def fail(self, error: JobError) -> None:
        self._enter("Failed", f"{error.reason}: {error.message}")

    async def drain(self) -> None:
        """Not ready from now on; returns when Triton is gone or its time is over."""
        self._enter("Draining", "the pod is ending")
        deadline = time.monotonic() + DRAIN_SECONDS
        # Triton's end is no event of this process: only asking shows it.
        while time.monotonic() < deadline and await self.triton.live():  # noqa: ASYNC110
            await asyncio.sleep(WATCH_SECONDS)

    async def end(self) -> None:
        """Leaves no process behind."""
        await self._follow(on=False)
        if self.inputs is not None:
            await self.inputs.end()

    def _enter(self, phase: Phase, message: str) -> None:
        self.state = replace(self.state, phase=phase, message=message, golden_right=0)
        log.info("phase", phase=phase, message=message)

    async def report(self) -> AgentReport:
        """What the operator asks for."""
        (counters, own), load = await asyncio.gather(self.triton.counters(), self._measure.load())
        if self.state.phase == "Measuring":
            counters = load = None  # what is asked then is nobody's
        elif load is not None and time.monotonic() - self._measured_at < SUMMARY_SECONDS:
            models = {name: model.model_copy(update={"quantiles": {}}) for name, model in load.models.items()}
            load = load.model_copy(update={"models": models})
        return AgentReport(
            digest=self.artifact.digest,
            version=self.artifact.manifest.version,
            files=self.artifact.files,
            precision=self.artifact.precision,
            models=list(self.triton.models),
            phase=self.state.phase,
            message=self.state.message,
            goldenCases=len(self.artifact.golden.cases),
            goldenRight=self.state.golden_right,
            verifiedAt=self.state.verified_at,
            swap=self.state.swap,
            counters=counters,
            own=own,
            comparison=self.state.comparison,
            load=load,
            measured=self.state.measured,
            inputs=self.inputs.report() if self.inputs else None,
            live=self._following.report(self.artifact.digest) if self._following else None,
        )

    def metrics(self) -> str:
        """The text of /metrics."""
        text = agent_state.metrics(self.state, len(self.artifact.golden.cases))
        if self._following is not None and (report := self._following.report(self.artifact.digest)) is not None:
            text += following.metrics(report)
        return text
