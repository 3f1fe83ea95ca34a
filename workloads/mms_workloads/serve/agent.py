"""The sidecar beside Triton: loads the models, proves by the golden cases that they answer rightly, and says so.

    python -m mms_workloads.serve.agent

    GET /readyz     200 while all models are ready in Triton and all golden cases were right since they were loaded
    GET /healthz    200 while the process lives
    GET /v1/served  what is served, and when it was verified
    GET /metrics    for Prometheus
    POST /v1/inputs an input of a client and another version's answer, sealed: inputs.py

A pod that is told so (`measure` in its file) finds out what it can do before it is ready for the first time.
Models that cannot be loaded or answer wrongly end the process: the reason is in the termination log and the kubelet
starts it again. A Triton that restarts has lost its models: they are loaded and verified again, not ready meanwhile.
Another artifact that the pod is told to serve (`wanted`) takes the place of the one that serves without a restart:
swap.py. One that fails is reported, and what served serves on. While it serves a running training's parameters, a
process beside it (following.py) has the models take the next ones.
After SIGTERM it is not ready at once and ends when Triton has, or after 30 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import structlog
from aiohttp import web

from mms_workloads import contract, logs, pod
from mms_workloads.contract import AgentReport, Comparison, Load, Measured, Outcome, Reason, SwapReport
from mms_workloads.serve import following, generations, versions
from mms_workloads.serve.artifact import Artifact, read_artifact
from mms_workloads.serve.asking import AnswerError
from mms_workloads.serve.control import Triton, TritonGoneError
from mms_workloads.serve.following import Following
from mms_workloads.serve.golden import GoldenError
from mms_workloads.serve.inputs import BOX_BYTES, Inputs, read_orders
from mms_workloads.serve.layout import Layout, read_layout, read_models, read_probe, read_serve_file, read_wanted
from mms_workloads.serve.load import Metrics
from mms_workloads.serve.surveying import survey
from mms_workloads.serve.swap import swap
from mms_workloads.store import JobError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mms_workloads.contract import Golden, ServeFile

    Proof = tuple[Golden, str]  # questions, and the digest of what answers them

WATCH_SECONDS = 0.5  # between two looks at Triton
WANTED_SECONDS = 0.05  # between two looks at what the pod is told: a small file
DRAIN_SECONDS = 30.0
SUMMARY_SECONDS = 75.0  # for which Triton's summaries of a minute may know of the measurement
RETRY_SECONDS = 10.0  # after a swap that another try may mend

Phase = Literal["WaitingForTriton", "Loading", "Verifying", "Measuring", "Verified", "Failed", "Draining"]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class State:
    """How far the agent is."""

    phase: Phase = "WaitingForTriton"
    message: str = "Triton does not answer yet"
    golden_right: int = 0
    verified_at: str | None = None  # RFC 3339
    seconds_to_ready: float | None = None  # from the start of the agent to the first verification
    verifications: int = 0
    swaps: int = 0  # that succeeded
    swaps_failed: int = 0
    swap: SwapReport | None = None  # the last one
    comparison: Comparison | None = None
    measured: Measured | None = None


def readiness(state: State, models: Mapping[str, bool]) -> tuple[int, dict[str, Any]]:
    """The status and body of /readyz. `models`: which are ready in Triton now."""
    if state.phase != "Verified":
        return 503, {"ready": False, "reason": state.phase, "message": state.message}
    missing = sorted(model for model, ready in models.items() if not ready)
    if missing:
        return 503, {"ready": False, "reason": "ModelNotReady", "message": f"not ready in Triton: {', '.join(missing)}"}
    return 200, {"ready": True, "golden": state.golden_right, "verifiedAt": state.verified_at}


def metrics(state: State, cases: int) -> str:
    """The text of /metrics."""
    values: list[tuple[str, str, str, float]] = [
        ("mms_agent_ready", "gauge", "1 while the golden cases were right.", state.phase == "Verified"),
        ("mms_agent_golden_cases", "gauge", "Golden cases of the artifact.", cases),
        ("mms_agent_golden_right", "gauge", "Golden cases that were right when last asked.", state.golden_right),
        ("mms_agent_verifications_total", "counter", "Times that all golden cases were right.", state.verifications),
    ]
    values += [
        (
            "mms_agent_swaps_total",
            "counter",
            "Artifacts that took the place of another in the running pod.",
            state.swaps,
        ),
        ("mms_agent_swaps_failed_total", "counter", "Artifacts that could not.", state.swaps_failed),
    ]
    if state.swap is not None and state.swap.seconds is not None:
        seconds = state.swap.seconds
        values.append(("mms_agent_swap_seconds", "gauge", "That the last swap took, fetching included.", seconds))
    if state.seconds_to_ready is not None:
        values.append(("mms_agent_ready_seconds", "gauge", "From the agent's start to ready.", state.seconds_to_ready))
    return "".join(f"# HELP {n} {text}\n# TYPE {n} {kind}\n{n} {float(value):g}\n" for n, kind, text, value in values)


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
        self._started = time.monotonic()
        self._measured_at = float("-inf")

    async def supervise(self) -> None:
        """Brings the models up and keeps them so, and takes what is wanted. Ends only by JobError."""
        while True:
            try:
                if self.state.phase != "Verified" or not all((await self.triton.ready()).values()):
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

    async def _follow(self, *, on: bool) -> None:
        """Whether the training's next parameters are taken, where it is one's parameters that serve."""
        if self._following is not None:
            await self._following.keep(self.artifact.digest if on else None)

    async def _rest(self) -> None:
        """Until Triton is to be looked at again, or something else is wanted."""
        until = time.monotonic() + WATCH_SECONDS
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
                if self._is_off(serve):
                    log.info("swap given up", digest=report.digest)
                    self.state = replace(self.state, swap=None)
                    return
            self.artifact = taking.result()
        except JobError as error:
            log.error("swap failed", digest=report.digest, reason=error.reason, message=error.message)  # noqa: TRY400
            self._retry_at = time.monotonic() + RETRY_SECONDS if error.retryable else float("inf")
            failed = {"phase": "Failed", "reason": error.reason, "message": error.message, "retryable": error.retryable}
            self.state = replace(
                self.state, swap=report.model_copy(update=failed), swaps_failed=self.state.swaps_failed + 1
            )
            return
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)  # it puts back what it has changed
        done = report.model_copy(update={"phase": "Done", "seconds": time.monotonic() - began})
        self.state = replace(self.state, swap=done, swaps=self.state.swaps + 1, comparison=None)
        self._verified(len(self.artifact.golden.cases))

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

    async def readyz(self, _: web.Request) -> web.Response:
        state = self.state
        ready = await self.triton.ready() if state.phase == "Verified" else {}
        # The models may have been lost and loaded again while they were asked for: the later state decides.
        status, body = readiness(self.state, ready)
        return web.json_response(body, status=status)

    async def served(self, _: web.Request) -> web.Response:
        (counters, own), load = await asyncio.gather(self.triton.counters(), self._measure.load())
        if self.state.phase == "Measuring":
            counters = load = None  # what is asked then is nobody's
        elif load is not None and time.monotonic() - self._measured_at < SUMMARY_SECONDS:
            models = {name: model.model_copy(update={"quantiles": {}}) for name, model in load.models.items()}
            load = load.model_copy(update={"models": models})
        report = AgentReport(
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
        return web.json_response(text=report.model_dump_json(exclude_none=True))

    async def healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"phase": self.state.phase})

    async def metricsz(self, _: web.Request) -> web.Response:
        text = metrics(self.state, len(self.artifact.golden.cases))
        if self._following is not None and (report := self._following.report(self.artifact.digest)) is not None:
            text += following.metrics(report)
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def run(agent: Agent, port: int) -> JobError | None:
    """Serves until SIGTERM (None) or until the models cannot be served (why)."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app = web.Application(client_max_size=BOX_BYTES)
    app.add_routes(
        [
            web.get("/readyz", agent.readyz),
            web.get("/healthz", agent.healthz),
            web.get("/v1/served", agent.served),
            web.get("/metrics", agent.metricsz),
        ]
    )
    if agent.inputs is not None:
        app.add_routes([web.post("/v1/inputs", agent.inputs.take)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    supervisor = asyncio.create_task(agent.supervise())
    others = [asyncio.create_task(agent.probe()), asyncio.create_task(agent.sample())]
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({supervisor, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if supervisor.done():
            supervisor.result()  # raises: supervision ends no other way
        supervisor.cancel()
        with contextlib.suppress(asyncio.CancelledError, JobError):
            await supervisor
        await agent.drain()
    except JobError as error:
        agent.fail(error)
        return error
    else:
        return None
    finally:
        stopping.cancel()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await agent.end()
        await runner.cleanup()
        await agent.triton.close()


async def start(environment: Mapping[str, str]) -> JobError | None:
    try:
        layout = read_layout(environment)
        serving = _serving(layout)
        artifact = read_artifact(layout, contract.live_run(serving) or serving)
        key = layout.control_key.read_text().strip()
        models = read_models(layout.running)
    except JobError as error:
        return error
    except OSError as error:
        return JobError(Reason.MODEL_LOAD_FAILED, f"{error}: the fetch container must run first, on the same volume")
    triton = Triton(f"http://127.0.0.1:{layout.http_port}", key, models.names)
    metrics = Metrics(f"http://127.0.0.1:{layout.metrics_port}")
    agent = Agent(
        artifact,
        triton,
        lambda: read_wanted(environment),
        lambda serve, tell: swap(serve, layout, triton, environment, tell),
        Measure(
            lambda digest: _reference(digest, environment),
            lambda digest: _fetched(layout, digest),
            lambda: read_probe(environment),
            metrics.load,
            _survey(layout, triton, environment),
        ),
        following=Following(layout, environment),
        inputs=Inputs(layout, triton, models.models, lambda: read_orders(environment)),
        settle=lambda: versions.settle(layout),
    )
    try:
        return await run(agent, layout.agent_port)
    finally:
        await metrics.close()


def _survey(
    layout: Layout, triton: Triton, environment: Mapping[str, str]
) -> Callable[[Proof], Awaitable[Measured]] | None:
    serve = read_serve_file(environment)
    return None if serve.measure is None else lambda proof: survey(serve, layout, triton, proof)


def _reference(digest: str, environment: Mapping[str, str]) -> str | None:
    """The digest of what an artifact is to be compared with, where the file that names it says so."""
    serve = read_wanted(environment)
    try:
        if serve is None or serve.artifact.digest != digest:
            serve = read_serve_file(environment)
    except JobError:
        return None
    return serve.reference.artifact.digest if serve.reference and serve.artifact.digest == digest else None


def _fetched(layout: Layout, digest: str) -> Artifact | None:
    try:
        return read_artifact(layout, digest)
    except JobError:
        return None


def _serving(layout: Layout) -> str:
    """What the models serve: it may be another one than the pod began with. Raises JobError."""
    try:
        return generations.read(layout.generations).serving
    except (OSError, ValueError) as error:
        raise JobError(
            Reason.MODEL_LOAD_FAILED,
            f"{layout.generations}: {error}: the fetch container must run first, on the same volume",
        ) from error


def main(environment: Mapping[str, str] = os.environ) -> int:
    error = asyncio.run(start(environment))
    if error is None:
        return contract.EXIT_DONE
    log.error("not serving", reason=error.reason, message=error.message)
    outcome = Outcome(result="Failed", reason=error.reason, message=error.message, retryable=error.retryable)
    pod.write_outcome(pod.termination_log(environment), outcome)
    return contract.EXIT_RETRY if error.retryable else contract.EXIT_PERMANENT


if __name__ == "__main__":
    logs.configure()
    sys.exit(main())
