"""When the agent says that the pod is ready, and what it does when Triton comes, goes or answers wrongly."""
# ruff: noqa: ARG002 - the stand-in has the signatures of the real one

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from mms_cluster.ports import free_ports
from mms_workloads.contract import (
    ArtifactManifest,
    ArtifactPin,
    Comparison,
    Counters,
    Golden,
    GoldenCase,
    Measured,
    Outcome,
    Reason,
    ServeFile,
    Store,
    SwapReport,
)
from mms_workloads.serve import agent as agents
from mms_workloads.serve import agent_state, supervising
from mms_workloads.serve.agent_state import State
from mms_workloads.serve.artifact import Artifact
from mms_workloads.serve.control import TritonGoneError
from mms_workloads.serve.repository import MODELS
from mms_workloads.serve.supervising import Agent, Measure
from mms_workloads.store import JobError
from tests.unit.serve import artifacts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

READY = dict.fromkeys(MODELS, True)


@pytest.mark.parametrize(
    ("state", "models", "status", "reason"),
    [
        (State(), {}, 503, "WaitingForTriton"),
        (State(phase="Loading"), READY, 503, "Loading"),
        (State(phase="Verifying"), READY, 503, "Verifying"),
        (State(phase="Measuring"), READY, 503, "Measuring"),
        (State(phase="Failed", message="why"), READY, 503, "Failed"),
        (State(phase="Draining"), READY, 503, "Draining"),
        (State(phase="Verified"), {**READY, "vectors": False}, 503, "ModelNotReady"),
        (State(phase="Verified", golden_right=3), READY, 200, None),
    ],
    ids=lambda value: value.phase if isinstance(value, State) else None,
)
def test_readiness(state: State, models: dict[str, bool], status: int, reason: str | None) -> None:
    found, body = agent_state.readiness(state, models)
    assert (found, body.get("reason")) == (status, reason)
    assert body["ready"] is (status == 200)
    if reason == "ModelNotReady":
        assert "vectors" in body["message"]


def test_metrics() -> None:
    text = agent_state.metrics(State(phase="Verified", golden_right=3, seconds_to_ready=1.5, verifications=2), 3)
    values = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
    assert values == {
        "mms_agent_ready": "1",
        "mms_agent_golden_cases": "3",
        "mms_agent_golden_right": "3",
        "mms_agent_verifications_total": "2",
        "mms_agent_ready_seconds": "1.5",
        "mms_agent_swaps_total": "0",
        "mms_agent_swaps_failed_total": "0",
    }


class FakeTriton:
    """A Triton as the agent sees it; a test starts, stops and spoils it."""

    def __init__(self) -> None:
        self.models = MODELS
        self.up = True
        self.loaded = False
        self.wrong: JobError | None = None
        self.dies_while_loading = 0
        self.loads = 0
        self.looks = 0
        self.closed = False
        self.compared = self.asked = 0

    async def live(self) -> bool:
        self.looks += 1
        return self.up

    async def ready(self) -> dict[str, bool]:
        self.looks += 1
        return dict.fromkeys(READY, self.up and self.loaded)

    async def load(self) -> None:
        self.loads += 1
        if self.dies_while_loading:
            self.dies_while_loading -= 1
            raise TritonGoneError("connection reset")
        self.loaded = True

    async def verify(self, cases: Golden, digest: str) -> int:
        if self.wrong:
            raise self.wrong
        return len(cases.cases)

    async def counters(self) -> tuple[Counters | None, Counters]:
        return Counters(requests=7, failed=1, timed=6, seconds=0.5), Counters(requests=2, timed=2)

    async def compare(self, artifact: Artifact, reference: Artifact) -> Comparison:
        self.compared += 1
        return Comparison(reference=reference.digest, compared=4, differing=1)

    async def ask(self, case: GoldenCase, digest: str) -> dict[str, Any]:
        self.asked += 1
        return {}

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> FakeTriton:
    monkeypatch.setattr(supervising, "WATCH_SECONDS", 0.001)
    return FakeTriton()


@pytest.fixture
def agent(triton: FakeTriton, tmp_path: Path) -> Agent:
    built = artifacts.build(tmp_path)
    manifest = ArtifactManifest.model_validate_json((built.folder / "manifest.json").read_bytes())
    cases = Golden.model_validate_json((built.folder / "golden.json").read_bytes())
    return Agent(Artifact(built.digest, manifest, cases), triton)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while True:
            answer = condition()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.001)


@asynccontextmanager
async def supervised(agent: Agent) -> AsyncIterator[None]:
    task = asyncio.create_task(agent.supervise())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_waits_for_triton(agent: Agent, triton: FakeTriton) -> None:
    triton.up = False
    async with supervised(agent):
        await until(lambda: triton.looks > 3)
        assert agent.state.phase == "WaitingForTriton"
        assert triton.loads == 0
        triton.up = True
        await until(lambda: agent.state.phase == "Verified")
        looks = triton.looks
        await until(lambda: triton.looks > looks + 3)
    assert agent.state.golden_right == 3
    assert triton.loads == 1


async def test_a_triton_that_restarts_is_loaded_and_verified_again(agent: Agent, triton: FakeTriton) -> None:
    async with supervised(agent):
        await until(lambda: agent.state.phase == "Verified")
        triton.up = triton.loaded = False
        await until(lambda: agent.state.phase == "WaitingForTriton")
        assert agent.state.golden_right == 0
        triton.up = True
        await until(lambda: agent.state.verifications == 2)
    assert triton.loads == 2


async def test_a_triton_that_dies_while_loading_is_tried_again(agent: Agent, triton: FakeTriton) -> None:
    triton.dies_while_loading = 2
    async with supervised(agent):
        await until(lambda: agent.state.phase == "Verified")
    assert triton.loads == 3


async def run_until(agent: Agent) -> tuple[asyncio.Task[JobError | None], str]:
    (port,) = free_ports(1)
    return asyncio.create_task(agents.run(agent, port)), f"http://127.0.0.1:{port}"


async def status(session: aiohttp.ClientSession, url: str) -> int:
    try:
        async with session.get(url) as response:
            return response.status
    except aiohttp.ClientConnectionError:
        return 0


async def test_serves_and_drains(agent: Agent, triton: FakeTriton) -> None:
    task, url = await run_until(agent)
    async with aiohttp.ClientSession() as session:

        async def answers(wanted: int) -> bool:
            return await status(session, f"{url}/readyz") == wanted

        await until(lambda: answers(200))
        async with session.get(f"{url}/v1/served") as response:
            served = await response.json()
        assert served["digest"] == agent.artifact.digest
        assert served["version"] == 3
        assert served["goldenRight"] == 3
        assert await status(session, f"{url}/healthz") == 200
        async with session.get(f"{url}/metrics") as response:
            assert "mms_agent_ready 1" in await response.text()
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: agent.state.phase == "Draining")
        assert await status(session, f"{url}/readyz") == 503
        assert not task.done()
        triton.up = False
        assert await asyncio.wait_for(task, 5) is None
    assert triton.closed


async def test_a_wrong_answer_ends_it(agent: Agent, triton: FakeTriton) -> None:
    triton.wrong = JobError(Reason.GOLDEN_MISMATCH, "SCORES[3]: expected 1, got 2")
    task, _ = await run_until(agent)
    assert await asyncio.wait_for(task, 5) is triton.wrong
    assert agent.state.phase == "Failed"
    assert "SCORES[3]" in agent.state.message


async def test_finds_out_what_it_can_do_before_it_is_ready_for_the_first_time(agent: Agent, triton: FakeTriton) -> None:
    go, phases = asyncio.Event(), []

    async def survey(_: object) -> Measured:
        phases.append(measured.state.phase)
        await go.wait()
        return Measured(seconds=1.0)

    measured = Agent(agent.artifact, triton, measure=Measure(survey=survey))  # type: ignore[arg-type]
    async with supervised(measured):
        await until(lambda: phases == ["Measuring"])
        assert agent_state.readiness(measured.state, READY)[0] == 503
        go.set()
        await until(lambda: measured.state.phase == "Verified")
        assert measured.state.measured == Measured(seconds=1.0)
        triton.loaded = False  # it has started again
        await until(lambda: measured.state.verifications == 2)
        assert phases == ["Measuring"]


async def test_compares_once_for_each_reference_and_asks_as_often_as_it_is_told(
    agent: Agent, triton: FakeTriton
) -> None:
    other = replace(agent.artifact, digest="sha256:other")
    told: dict[str, Any] = {"reference": "sha256:missing", "probe": 0.0}
    measure = Measure(
        lambda _: told["reference"], lambda one: other if one == other.digest else None, lambda: told["probe"]
    )
    measured = Agent(agent.artifact, triton, measure=measure)  # type: ignore[arg-type]
    probing = asyncio.create_task(measured.probe())
    async with supervised(measured):
        await until(lambda: triton.looks > 20)
        assert (triton.compared, triton.asked) == (0, 0)
        told.update(reference=other.digest, probe=10_000.0)
        await until(lambda: triton.asked > 20)
        await until(lambda: measured.state.comparison is not None)
        looks = triton.looks
        await until(lambda: triton.looks > looks + 20)
    assert triton.compared == 1
    probing.cancel()
    await asyncio.gather(probing, return_exceptions=True)


class Shop:
    """What is wanted, and what comes of taking it."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.wanted: ServeFile | None = None
        self.fails: JobError | None = None
        self.taken: list[str] = []
        self.put_back = 0
        self.serves_already = False  # when it hears that it is off
        self.may_end = asyncio.Event()
        self.may_end.set()

    def want(self, digest: str) -> None:
        pin = ArtifactPin(uri="file:///x", digest=digest)
        self.wanted = ServeFile(namespace="d", name="words", artifact=pin, storage=Store(uri="file:///x"))

    async def take(self, serve: ServeFile, tell: Callable[[str], None]) -> Artifact:
        self.taken.append(serve.artifact.digest)
        tell("Proving")
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            if not self.serves_already:
                self.put_back += 1
                raise
        if self.fails:
            raise self.fails
        return replace(self.artifact, digest=serve.artifact.digest)


@pytest.fixture
def shop(agent: Agent, triton: FakeTriton) -> tuple[Shop, Agent]:
    made = Shop(agent.artifact)
    return made, Agent(agent.artifact, triton, lambda: made.wanted, made.take)  # type: ignore[arg-type]


async def test_what_is_wanted_is_taken(shop: tuple[Shop, Agent]) -> None:
    made, agent = shop
    made.want(agent.artifact.digest)
    async with supervised(agent):
        await until(lambda: agent.state.phase == "Verified")
        assert made.taken == [], "it serves already"
        made.want("sha256:b")
        await until(lambda: agent.artifact.digest == "sha256:b")
        await until(lambda: agent.state.swaps == 1)
    assert agent.state.phase == "Verified"
    assert agent.state.swap is not None
    assert (agent.state.swap.phase, agent.state.swap.digest) == ("Done", "sha256:b")
    assert made.taken == ["sha256:b"]


@pytest.mark.parametrize("retryable", [False, True])
async def test_what_cannot_be_taken_is_told_and_what_served_serves_on(
    shop: tuple[Shop, Agent], triton: FakeTriton, monkeypatch: pytest.MonkeyPatch, retryable: bool
) -> None:
    made, agent = shop
    before = agent.artifact.digest
    made.fails = JobError(Reason.GOLDEN_MISMATCH, "wrong", retryable=retryable)
    monkeypatch.setattr(supervising, "RETRY_SECONDS", 0.0)
    async with supervised(agent):
        made.want("sha256:b")
        await until(lambda: agent.state.swaps_failed >= (2 if retryable else 1))
        looks = triton.looks
        await until(lambda: triton.looks > looks + 20)
        assert agent.artifact.digest == before
        assert agent.state.phase == "Verified"
        # A try that has begun again has no reason yet.
        await until(lambda: agent.state.swap is not None and agent.state.swap.reason == "GoldenMismatch")
        if not retryable:
            assert made.taken == ["sha256:b"], "once"
            made.want(before)
            await until(lambda: agent.state.swap is None)
            made.want("sha256:b")
            await until(lambda: made.taken == ["sha256:b"] * 2)


@pytest.mark.parametrize("told", [True, False], ids=["by Triton's absence", "by who loads it"])
async def test_a_version_in_which_triton_ends_twice_is_not_tried_a_third_time(
    shop: tuple[Shop, Agent], triton: FakeTriton, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    made, agent = shop
    before = agent.artifact.digest
    monkeypatch.setattr(supervising, "RETRY_SECONDS", 0.0)
    seen: list[tuple[str, bool]] = []

    async def take(serve: ServeFile, tell: Callable[[str], None]) -> Artifact:
        made.taken.append(serve.artifact.digest)
        tell("Holding")
        triton.loaded = False  # it has been started again meanwhile, and lives
        why = "the models are gone"
        raise TritonGoneError(why) if told else JobError(Reason.MODEL_LOAD_FAILED, why, retryable=True)

    agent._take = take
    agent_failed = agent._failed

    def failed(report: SwapReport, error: JobError) -> None:
        seen.append((error.message, error.retryable))
        agent_failed(report, error)

    monkeypatch.setattr(agent, "_failed", failed)
    async with supervised(agent):
        made.want("sha256:b")
        await until(lambda: len(seen) == 2)
        await until(lambda: agent.state.phase == "Verified")
        looks = triton.looks
        await until(lambda: triton.looks > looks + 20)
        assert (agent.artifact.digest, made.taken) == (before, ["sha256:b"] * 2)
        assert [retryable for _, retryable in seen] == [True, False]
        assert "Triton ended twice while the version was loaded" in seen[1][0]
        assert agent.state.swap is not None
        assert (agent.state.swap.phase, agent.state.swap.reason) == ("Failed", "ModelLoadFailed")


@pytest.mark.parametrize("instead", ["before", "another", "nothing"])
async def test_a_swap_that_is_no_longer_wanted_is_given_up(shop: tuple[Shop, Agent], instead: str) -> None:
    made, agent = shop
    before = agent.artifact.digest
    made.may_end.clear()
    async with supervised(agent):
        made.want("sha256:b")
        await until(lambda: made.taken == ["sha256:b"])
        if instead == "nothing":
            made.wanted = None
        else:
            made.want(before if instead == "before" else "sha256:c")
        await until(lambda: made.put_back == 1)
        await until(lambda: agent.state.swap is None or agent.state.swap.digest == "sha256:c")
        assert agent.artifact.digest == before
        assert (agent.state.phase, agent.state.swaps, agent.state.swaps_failed) == ("Verified", 0, 0)
        if instead == "another":
            made.may_end.set()
            await until(lambda: agent.artifact.digest == "sha256:c")


async def test_a_swap_that_serves_before_it_hears_that_it_is_off_is_undone(shop: tuple[Shop, Agent]) -> None:
    """By a swap of its own: what the agent says is what answers, all the time."""
    made, agent = shop
    before = agent.artifact.digest
    made.may_end.clear()
    made.serves_already = True
    async with supervised(agent):
        made.want("sha256:b")
        await until(lambda: made.taken == ["sha256:b"])
        made.want(before)
        await until(lambda: agent.artifact.digest == "sha256:b")
        made.may_end.set()
        await until(lambda: agent.artifact.digest == before)
        assert made.taken == ["sha256:b", before]
        await until(lambda: agent.state.swaps == 2)


async def test_another_attempt_is_another_try(shop: tuple[Shop, Agent]) -> None:
    made, agent = shop
    made.fails = JobError(Reason.GOLDEN_MISMATCH, "wrong")
    async with supervised(agent):
        made.want("sha256:b")
        await until(lambda: agent.state.swaps_failed == 1)
        assert made.wanted is not None
        made.wanted = made.wanted.model_copy(update={"attempt": "2"})
        await until(lambda: agent.state.swaps_failed == 2)
        assert agent.state.swap is not None
        assert agent.state.swap.attempt == "2"


def test_without_fetch(tmp_path: Path) -> None:
    log = tmp_path / "log"
    serve = artifacts.serve_file(tmp_path / "serve.json", tmp_path, "sha256:" + "0" * 64)
    environment = {
        "MMS_SERVE_FILE": str(serve), "MMS_MODELS_DIR": str(tmp_path), "MMS_TERMINATION_LOG": str(log),
    }  # fmt: skip
    assert agents.main(environment) == 1
    outcome = Outcome.model_validate(json.loads(log.read_text()))
    assert outcome.reason == "ModelLoadFailed"
    assert "fetch container must run first" in outcome.message
