"""The agent's dealings with Triton, on a stand-in that speaks HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from mms_workloads.contract import Counters, Golden
from mms_workloads.serve import control
from mms_workloads.serve.control import Triton, TritonGoneError
from mms_workloads.serve.generations import PIN
from mms_workloads.serve.repository import MODELS
from mms_workloads.store import JobError
from tests.unit.serve import artifacts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.unit.serve.artifacts import Built

KEY = "secret"


class Server:
    """Answers the golden cases in turn."""

    def __init__(self, built: Built) -> None:
        self.digest = self.built_digest = built.digest
        self.ready = {"vectors"}
        self.counted = list(MODELS)
        self.versions = ["1"]  # of each model, that are ready
        self.refusal: tuple[int, str] | None = None  # of loads and questions
        self.hangs = False
        self.body: bytes | None = None  # instead of an answer
        self.cases = Golden.model_validate_json((built.folder / "golden.json").read_bytes())
        self.answers = [dict(case.outputs) for case in self.cases.cases]
        self.asked: list[tuple[str, str]] = []
        self.loaded: list[str] = []
        self.runner: web.AppRunner | None = None

    async def start(self) -> str:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v2/health/live", self.live),
                web.post("/v2/repository/index", self.index),
                web.get("/v2/models/stats", self.stats),
                web.post("/v2/models/{model}/infer", self.infer),
                web.post("/v2/repository/models/{model}/load", self.load),
            ]
        )
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self.runner:
            await self.runner.cleanup()

    async def live(self, _: web.Request) -> web.Response:
        return web.Response()

    async def index(self, request: web.Request) -> web.Response:
        assert request.headers["mms-control-key"] == KEY
        states = [{"name": model, "state": "READY" if model in self.ready else "UNAVAILABLE"} for model in MODELS[:2]]
        return web.json_response(states)

    async def load(self, request: web.Request) -> web.Response:
        assert request.headers["mms-control-key"] == KEY
        if self.hangs:
            await asyncio.sleep(10)
        self.loaded.append(request.match_info["model"])
        return self.refused() or web.Response()

    async def infer(self, request: web.Request) -> web.Response:
        if self.hangs:
            await asyncio.sleep(10)
        if (refused := self.refused()) is not None:
            return refused
        asked = await request.json()
        key, _, digest = asked["parameters"][PIN].partition(" ")
        assert key == KEY
        answer = self.answers[len(self.asked)]
        self.asked.append((request.match_info["model"], digest))
        assert {one["name"] for one in asked["outputs"]} == {*answer, "DIGEST"}
        outputs = {**answer, "DIGEST": [self.digest]}
        kinds = {float: "FP32", int: "INT64", str: "BYTES"}
        tensors = [
            {"name": name, "datatype": kinds[type(values[0])], "shape": [1, len(values)], "data": values}
            for name, values in outputs.items()
        ]
        return web.Response(body=self.body or json.dumps({"outputs": tensors}).encode())

    async def stats(self, _: web.Request) -> web.Response:
        stats = {"success": {"count": 10, "ns": 1}, "fail": {"count": 3}, "queue": {"ns": 500000000},
                 "compute_infer": {"ns": 1000000000}}  # fmt: skip
        names = [*self.counted, "another"]
        said = [
            {"name": name, "version": version, "inference_stats": stats} for name in names for version in self.versions
        ]
        return web.json_response({"model_stats": said})

    def refused(self) -> web.Response | None:
        if self.refusal is None:
            return None
        status, message = self.refusal
        return web.json_response({"error": message}, status=status)


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return artifacts.build(tmp_path)


@pytest.fixture
async def server(built: Built) -> AsyncIterator[Server]:
    server = Server(built)
    yield server
    await server.stop()


@pytest.fixture
async def triton(server: Server) -> AsyncIterator[Triton]:
    triton = Triton(await server.start(), KEY)
    yield triton
    await triton.close()


async def test_load_and_verify(triton: Triton, server: Server, built: Built) -> None:
    await triton.load()
    assert server.loaded == list(MODELS)
    assert await triton.verify(server.cases, server.built_digest) == 3
    assert server.asked == [(model, built.digest) for model in ("vectors", "neighbours", "neighbours")]
    assert await triton.ready() == {"vectors": True, "neighbours": False, "analogies": False, "similarity": False}


async def test_gone(triton: Triton, server: Server) -> None:
    assert await triton.live()
    await server.stop()
    assert not await triton.live()
    assert await triton.ready() == dict.fromkeys(MODELS, False)
    with pytest.raises(TritonGoneError):
        await triton.load()
    with pytest.raises(TritonGoneError):
        await triton.verify(server.cases, server.built_digest)


async def test_a_load_that_fails(triton: Triton, server: Server) -> None:
    server.refusal = (400, "boom in initialize")
    with pytest.raises(JobError) as error:
        await triton.load()
    assert error.value.reason == "ModelLoadFailed"
    assert "vectors: boom in initialize" in error.value.message


async def test_a_load_that_hangs(triton: Triton, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LOAD_SECONDS", 0.05)
    server.hangs = True
    with pytest.raises(JobError, match="no answer within"):
        await triton.load()


async def test_another_artifact_answers(triton: Triton, server: Server) -> None:
    server.digest = "sha256:other"
    with pytest.raises(JobError, match="artifact sha256:other answered") as error:
        await triton.verify(server.cases, server.built_digest)
    assert error.value.reason == "GoldenMismatch"


async def test_a_wrong_answer(triton: Triton, server: Server) -> None:
    scores = [float(one) for one in server.answers[1]["SCORES"]]
    scores[3] += 0.01
    server.answers[1] = {**server.answers[1], "SCORES": scores}
    with pytest.raises(JobError) as error:
        await triton.verify(server.cases, server.built_digest)
    assert error.value.reason == "GoldenMismatch"
    said = "golden case 1 (neighbours, WORDS ['word0', 'höhe', 'word7'], K [5]): SCORES[3]: expected"
    assert said in error.value.message


async def test_an_error_for_an_answer(triton: Triton, server: Server) -> None:
    server.refusal = (404, "unknown word")
    with pytest.raises(JobError, match=r"GoldenMismatch.*case 0.*unknown word"):
        await triton.verify(server.cases, server.built_digest)


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"outputs": [{"name": "X", "data": [NaN'])
async def test_what_is_no_answer(triton: Triton, server: Server, body: bytes) -> None:
    server.body = body
    with pytest.raises(JobError, match=r"GoldenMismatch.*cannot be read"):
        await triton.verify(server.cases, server.built_digest)


async def test_no_cases(triton: Triton) -> None:
    with pytest.raises(JobError, match="no golden case"):
        await triton.verify(Golden(cases=[]), "sha256:any")
    assert (await triton.measure(Golden(cases=[]), 1.0)).error == "its model has no golden question to be measured by"


async def test_what_is_asked_here_is_counted_apart(triton: Triton, server: Server) -> None:
    await triton.verify(server.cases, server.built_digest)
    server.refusal = (400, "no")
    with pytest.raises(JobError):
        await triton.verify(server.cases, server.built_digest)
    total, own = await triton.counters()
    assert own == Counters(requests=4, failed=1, timed=3)
    assert total == Counters(requests=4 * 13, failed=4 * 3, timed=4 * 10, seconds=4 * 1.5)
    gone = server.counted.pop()
    assert await triton.counters() == (None, own), "what a model had counted is gone with it"
    server.counted.append(gone)
    await server.stop()
    assert await triton.counters() == (None, own)


async def test_what_a_version_has_counted_stays_when_it_is_unloaded(triton: Triton, server: Server) -> None:
    """A total that falls would be taken for that of another Triton, which has answered all of it lately."""
    server.versions = ["1", "2"]
    both, _ = await triton.counters()
    server.versions = ["2"]
    assert (await triton.counters())[0] == both == Counters(requests=2 * 52, failed=24, timed=80, seconds=12.0)


async def test_a_question_that_takes_long_keeps_nobody_waiting(
    server: Server, triton: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told meanwhile was counted before it: between the two no question of our own is seen by halves."""
    monkeypatch.setattr(control, "PROBE_SECONDS", 0.05)
    await triton.ask(server.cases.cases[0], server.built_digest)
    before = await triton.counters()
    assert before[0] is not None
    server.hangs = True
    asking = asyncio.create_task(triton.ask(server.cases.cases[1], server.built_digest))
    await asyncio.sleep(0)
    async with asyncio.timeout(2):
        assert await triton.counters() == before
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
