"""The operator's side of a master, against a real HTTPS server with the job's certificates."""

from __future__ import annotations

import asyncio
import dataclasses
from base64 import b64decode, b64encode
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from mms_cluster.ports import free_ports
from mms_operator.api import names
from mms_operator.engine import polls as module
from mms_operator.engine.certificates import secrets
from mms_operator.engine.kubeapi import ApiError
from mms_operator.engine.metrics import Metrics
from mms_operator.engine.polls import Polls
from mms_operator.engine.resources import Key
from mms_operator.plan.types import Certificates, MasterCall, Plan
from mms_workloads.contract import OU_OPERATOR, Activity, CheckpointRef, Desired, Gone, Incident, Outcome, StatusReport
from mms_workloads.sync import tls
from tests.unit.engine.fake_api import FakeApi, training

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

Object = dict[str, Any]
WORDS = Key(names.TRAINING, "ns", "words")
CR = {**training(), "status": {"run": 1, "attempt": 1}}
REPORT = StatusReport(uid="uid-words", run=1, attempt=1, activity=Activity.TRAINING, epoch=1, workersReady=2)
SECONDS = 10.0
RUBBISH = {"rubbish": b"rubbish", "bytes": b"\xff", "letters": "ä".encode()}


class Master:
    """Answers as a master does. `before` may do or refuse something first."""

    def __init__(self) -> None:
        self.report = REPORT
        self.told: list[Desired] = []
        self.asked = 0
        self.running = self.most = 0
        self.units: set[str] = set()
        self.raw: bytes | None = None
        self.answer_slowly = False
        self.before: Callable[[], None] = lambda: None
        self.hold = asyncio.Event()
        self.hold.set()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.hold.wait()
            self.before()
            yield
        finally:
            self.running -= 1

    async def put_desired(self, request: web.Request) -> web.StreamResponse:
        async with self.held():
            self.told.append(Desired.model_validate_json(await request.read()))
            return web.Response(body=self.report.model_dump_json())

    async def get_status(self, request: web.Request) -> web.StreamResponse:
        try:
            async with self.held():
                return await self.answer(request)
        finally:
            self.asked += 1

    async def answer(self, request: web.Request) -> web.StreamResponse:
        assert request.transport
        self.units |= tls.organisational_units(request.transport.get_extra_info("peercert"))
        body = self.raw if self.raw is not None else self.report.model_dump_json().encode()
        if not self.answer_slowly:
            return web.Response(body=body)
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(body), 100):
            await response.write(body[start : start + 100])
            await asyncio.sleep(0.001)
        return response


class World:
    def __init__(self, folder: Path) -> None:
        self.api, self.metrics, self.master = FakeApi(), Metrics(), Master()
        self.woken: list[Key] = []
        self.folder = folder
        (self.port,) = free_ports(1)
        self.polls = Polls(self.api, self.metrics, self.woken.append, self.port)  # type: ignore[arg-type]
        self.certify()

    def certify(self) -> None:
        """Fresh certificates, for the operator in the Secret and for the master in its folder."""
        made = secrets(Certificates(training(), {}, ("words-master",), 30), datetime.now(UTC))
        for secret in made:
            self.api.store(secret)
        for file, text in made[1]["data"].items():
            (self.folder / file).write_bytes(b64decode(text))

    def follow(self, *, host: str = "127.0.0.1", workers: int = 2, attempt: int = 1, suspend: bool = False) -> None:
        call = MasterCall(host, "words-master", Desired(workers=workers, suspend=suspend))
        self.polls.follow(WORDS, CR, Plan(status={"run": 1, "attempt": attempt}, master=call))

    @asynccontextmanager
    async def serving(self, *more: tuple[str, Any]) -> AsyncIterator[Master]:
        app = web.Application()
        app.add_routes([web.get(path, handler) for path, handler in more])
        app.add_routes([web.get("/v1/status", self.master.get_status), web.put("/v1/desired", self.master.put_desired)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=tls.server_context(self.folder)).start()
        try:
            yield self.master
        finally:
            self.master.hold.set()
            await runner.cleanup()

    @asynccontextmanager
    async def polling(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.polls.run())
        try:
            yield
            assert not task.done(), "the polls have ended"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not true():  # noqa: ASYNC110 - what is waited for is in another's hands
                await asyncio.sleep(0.002)

    async def asked(self, more: int = 2) -> None:
        """The master has answered so many more calls, begun after now."""
        target = self.master.asked + more
        await self.until(lambda: self.master.asked >= target)

    def count(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("mms_polls_total", {"result": result}) or 0

    def report(self, **status: int) -> StatusReport | None:
        return self.polls.report(WORDS, {**CR, "status": {"run": 1, "attempt": 1, **status}})


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(module, "PERIOD", 0.02)
    monkeypatch.setattr(module, "RATE", 10_000.0)
    return World(tmp_path)


async def test_what_is_desired_is_told_once_per_change(world: World) -> None:
    async with world.serving() as master, world.polling():
        world.follow()
        await world.asked(4)
        assert master.told == [Desired(workers=2)]
        world.follow(workers=3)
        world.follow(workers=3)
        await world.asked(4)
        assert master.told == [Desired(workers=2), Desired(workers=3)]
        world.follow(workers=3, suspend=True)
        await world.asked(4)
        assert master.told[2:] == [Desired(workers=3, suspend=True)]
        assert master.units == {OU_OPERATOR}
        assert world.report() == REPORT


async def test_a_change_need_not_wait_for_the_next_period(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERIOD", 3600.0)
    async with world.serving() as master, world.polling():
        world.follow()
        await world.until(lambda: master.asked == 1)
        world.follow(suspend=True)
        await world.until(lambda: master.asked == 2)
        assert master.told == [Desired(workers=2), Desired(workers=2, suspend=True)]


async def test_a_master_that_failed_is_told_again(world: World) -> None:
    async with world.serving() as master, world.polling():
        world.follow()
        await world.asked()

        def refuses() -> None:
            raise web.HTTPServiceUnavailable(text="the storage has not answered yet")

        master.before = refuses
        await world.until(lambda: world.count("error"))
        assert world.report() == REPORT, "the last report stays"
        master.before = lambda: None
        await world.until(lambda: len(master.told) == 2)
        assert master.told == [Desired(workers=2)] * 2


async def test_a_master_that_stays_silent_is_told_once_and_taken_back(world: World) -> None:
    now = 1000.0
    world.polls.clock = lambda: now
    async with world.polling():
        world.follow()
        await world.until(lambda: world.count("error") == 1)
        assert (world.polls.error(WORDS, CR), world.woken) == (None, []), "one failure is no matter for the status"
        for errors in (2, 3):
            now += module.SILENT_SECONDS
            world.polls._changed.set()
            await world.until(lambda errors=errors: world.count("error") == errors)
        assert world.woken == [WORDS]
        assert "Cannot connect" in (world.polls.error(WORDS, CR) or "")
        assert world.polls.error(WORDS, {**CR, "status": {"run": 1, "attempt": 2}}) is None
        async with world.serving():
            now += module.PERIOD
            world.polls._changed.set()
            await world.until(lambda: world.polls.error(WORDS, CR) is None)
            await world.until(lambda: world.woken == [WORDS, WORDS])


async def test_a_master_that_answered_and_answers_no_more_is_told_sooner(world: World) -> None:
    now = 1000.0
    world.polls.clock = lambda: now
    async with world.polling():
        async with world.serving() as master:
            world.follow()
            await world.until(lambda: master.asked == 1 and world.report() == REPORT)
            assert world.polls.silence(WORDS, CR) is None
        now += module.PERIOD
        world.polls._changed.set()
        await world.until(lambda: world.polls.silence(WORDS, CR) == 0.0)
        woken, failing = len(world.woken), now
        for silence in (module.MASTER_SILENT_SECONDS - 1, module.MASTER_SILENT_SECONDS, 15.0):
            now = failing + silence
            world.polls._changed.set()
            await world.until(lambda silence=silence: world.polls.silence(WORDS, CR) == silence)
            assert len(world.woken) - woken == (silence >= module.MASTER_SILENT_SECONDS)
        assert world.polls.silence(WORDS, {**CR, "status": {"run": 1, "attempt": 2}}) is None
        world.follow(host="localhost")
        assert world.polls.silence(WORDS, CR) is None, "its successor has not answered yet"


async def test_another_masters_address_is_another_master(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERIOD", 3600.0)
    async with world.serving() as master, world.polling():
        world.follow()
        await world.until(lambda: master.asked == 1)
        world.follow(host="localhost")
        await world.until(lambda: master.asked == 2)
        assert master.told == [Desired(workers=2)] * 2


async def test_an_answer_of_the_master_before_is_none_of_its_successors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PERIOD", 3600.0)
    async with world.serving() as master, world.polling():
        master.hold.clear()
        world.follow()
        await world.until(lambda: master.running == 1)
        world.follow(host="localhost")
        master.report = REPORT.model_copy(update={"epoch": 9})
        master.before = lambda: setattr(master, "report", REPORT)  # what the successor says
        master.hold.set()
        await world.until(lambda: world.report() is not None)
        assert len(master.told) == 2, "the successor was told, too"
        assert master.asked == 2


@pytest.mark.parametrize(
    "stale",
    [
        pytest.param({"uid": "uid-before"}, id="another training of that name"),
        pytest.param({"run": 2}, id="another run"),
        pytest.param({"attempt": 2}, id="another attempt"),
    ],
)
async def test_a_report_of_another_attempt_is_refused(world: World, stale: Object) -> None:
    world.master.report = REPORT.model_copy(update=stale)
    async with world.serving(), world.polling():
        world.follow()
        await world.until(lambda: world.count("error") >= 2)
        assert world.report() is None
        assert world.woken == []
        assert world.count("ok") == 0


async def test_a_new_attempt_begins_without_a_report(world: World) -> None:
    async with world.serving() as master, world.polling():
        world.follow()
        await world.until(world.report)
        world.follow(attempt=2)
        assert world.report(attempt=2) is None
        assert world.report(attempt=1) is None
        master.report = REPORT.model_copy(update={"attempt": 2})
        await world.until(lambda: world.report(attempt=2))
        assert len(master.told) >= 2


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"no json", id="no JSON"),
        pytest.param(b"{}", id="not valid"),
        pytest.param(b" " * (module.REPORT_LIMIT + 10), id="too long"),
    ],
)
async def test_nonsense_is_refused(world: World, raw: bytes) -> None:
    world.master.raw = raw
    async with world.serving(), world.polling():
        world.follow()
        await world.until(lambda: world.count("error") >= 1)
        assert world.report() is None


async def test_a_report_that_comes_in_pieces_is_read_to_its_end(world: World) -> None:
    incidents = [Incident(time="2026-01-01T00:00:00Z", kind="WorkerLost", action="x" * 100) for _ in range(50)]
    world.master.report = REPORT.model_copy(update={"incidents": incidents})
    world.master.answer_slowly = True
    async with world.serving(), world.polling():
        world.follow()
        await world.until(world.report)
        assert world.report() == world.master.report
        assert world.count("error") == 0


CHECKPOINT = CheckpointRef(uri="s3://x", step=1, digest="sha256:0", time="2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    "turn",
    [
        pytest.param({"activity": Activity.EXPORTING}, id="activity"),
        pytest.param({"epoch": 2}, id="membership"),
        pytest.param({"workersReady": 1}, id="workers"),
        pytest.param({"shardsReady": 1}, id="shards"),
        pytest.param({"gone": [Gone(role="worker", rank=1, incarnation=1, seconds=0.5)]}, id="missed"),
        pytest.param({"checkpoint": CHECKPOINT}, id="checkpoint"),
        pytest.param({"incidents": [Incident(time="2026-01-01T00:00:00Z", kind="WorkerLost")]}, id="incident"),
        pytest.param({"outcome": Outcome(result="Complete", reason="TrainingComplete")}, id="outcome"),
    ],
)
async def test_what_happens_wakes_at_once(world: World, turn: Object) -> None:
    async with world.serving() as master, world.polling():
        world.follow()
        await world.asked(3)
        assert world.woken == [WORDS], "the first report is news, and the same again is none"
        master.report = REPORT.model_copy(update=turn)
        await world.until(lambda: len(world.woken) == 2)
        await world.asked(3)
        assert len(world.woken) == 2


async def test_one_that_is_missed_for_long_wakes_once_more(world: World) -> None:
    def missed(seconds: float) -> StatusReport:
        return REPORT.model_copy(update={"gone": [Gone(role="shard", rank=0, incarnation=2, seconds=seconds)]})

    async with world.serving() as master, world.polling():
        world.follow()
        for seconds, woken in ((0.5, 1), (2.9, 1), (3.0, 2), (5.0, 2)):
            master.report = missed(seconds)
            await world.asked(3)
            assert len(world.woken) == woken, seconds


async def test_a_report_is_of_what_the_master_had_confirmed(world: World) -> None:
    async with world.serving() as master, world.polling():
        world.follow()
        await world.until(lambda: world.polls.report(WORDS, CR))
        assert world.polls.confirmed(WORDS, CR) == Desired(workers=2)
        master.hold.clear()
        world.follow(workers=3)
        await world.until(lambda: master.running)
        assert world.polls.confirmed(WORDS, CR) == Desired(workers=2), "it has not answered yet"
        woken = len(world.woken)
        master.hold.set()
        await world.until(lambda: world.polls.confirmed(WORDS, CR) == Desired(workers=3))
        assert len(world.woken) == woken + 1, "although its report is the same"
        assert world.polls.confirmed(WORDS, {**CR, "status": {"run": 1, "attempt": 2}}) is None


async def test_mere_progress_wakes_at_a_bounded_rate(world: World) -> None:
    class Clock:
        now = 1000.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    world.polls.clock = clock
    async with world.serving() as master, world.polling():
        for step in range(60):
            master.report = REPORT.model_copy(update={"step": step})
            before = master.asked
            clock.now += 0.5
            world.polls._changed.set()
            world.follow()
            await world.until(lambda before=before: master.asked > before)
    seconds = 0.5 * 60
    assert 1 + seconds / module.PROGRESS_SECONDS - 1 <= len(world.woken) <= 1 + seconds / module.PROGRESS_SECONDS


async def test_the_last_report_outlives_the_master_and_not_the_training(world: World) -> None:
    async with world.serving() as master, world.polling():
        world.follow()
        await world.until(world.report)
        world.polls.follow(WORDS, CR, Plan(status={"run": 1, "attempt": 1}))
        await world.until(lambda: master.running == 0)
        asked = master.asked
        world.polls._changed.set()
        for _ in range(20):
            await asyncio.sleep(0.005)  # ten periods
        assert master.asked <= asked + 1
        assert world.report() == REPORT
        world.follow()
        await world.asked(1)
        world.polls.drop(WORDS)
        assert world.report() is None


@pytest.mark.parametrize("phase", ["Complete", "Failed"])
async def test_of_a_run_that_has_ended_nothing_is_kept(world: World, phase: str) -> None:
    async with world.serving(), world.polling():
        world.follow()
        await world.until(world.report)
        world.polls.follow(WORDS, CR, Plan(status={"run": 1, "attempt": 1, "phase": phase}))
        assert world.report() is None
        assert WORDS not in world.polls._followed
        world.follow(attempt=2)
        assert WORDS in world.polls._followed, "a raised run is followed again"


async def test_new_certificates_are_taken_up(world: World) -> None:
    async with world.serving(), world.polling():
        world.follow()
        await world.asked()
    world.certify()
    async with world.polling(), world.serving() as master:
        await world.until(lambda: world.count("error"))
        await world.asked()
        assert master.units == {OU_OPERATOR}


@pytest.mark.parametrize("missing", ["all", "operator.key", "rubbish", "bytes", "letters"])
async def test_a_secret_that_is_gone_or_broken_fails_that_call_only(world: World, missing: str) -> None:
    place = ("Secret", "ns", "words-ca")
    good = world.api.objects[place]
    if missing == "all":
        del world.api.objects[place]
    elif missing in RUBBISH:
        rubbish = b64encode(RUBBISH[missing]).decode()
        world.api.objects[place] = {**good, "data": dict.fromkeys(good["data"], rubbish)}
    else:
        world.api.objects[place] = {**good, "data": {k: v for k, v in good["data"].items() if k != missing}}
    async with world.serving(), world.polling():
        world.follow()
        await world.until(lambda: world.count("error") >= 2)
        world.api.objects[place] = good
        await world.until(world.report)


async def test_nobody_is_led_elsewhere(world: World) -> None:
    """The image of a master is the user's, who is to see no more through the operator than by himself."""
    led = []

    async def elsewhere(_: web.Request) -> web.Response:
        led.append(1)
        return web.Response(body=REPORT.model_dump_json())

    def lead() -> None:
        raise web.HTTPSeeOther("/elsewhere")

    async with world.serving(("/elsewhere", elsewhere)) as master, world.polling():
        master.before = lead
        world.follow()
        await world.until(lambda: world.count("error") >= 2)
        assert led == []
        assert world.report() is None


async def test_ended_runs_slow_no_call_down(world: World) -> None:
    async with world.serving(), world.polling():
        for number in range(1000):
            key = Key(names.TRAINING, "ns", f"ended-{number}")
            call = MasterCall("127.0.0.1", "words-master", Desired(workers=1))
            world.polls.follow(key, CR, Plan(status={"run": 1, "attempt": 1}, master=call))
            world.polls.follow(key, CR, Plan(status={"run": 1, "attempt": 1}))
        world.follow()
        await world.until(world.report)
        assert world.polls._followed[WORDS].due - world.polls.clock() <= module.PERIOD


async def test_an_api_server_that_is_away_fails_that_call_only(world: World) -> None:
    def refuse(*_: str) -> None:
        raise ApiError(500, "InternalError", "no")

    world.api.refuse = refuse
    async with world.serving(), world.polling():
        world.follow()
        await world.until(lambda: world.count("error") >= 2)
        world.api.refuse = lambda *_: None
        await world.until(world.report)


async def test_a_slow_master_is_called_once_at_a_time(world: World) -> None:
    async with world.serving() as master, world.polling():
        master.hold.clear()
        world.follow()
        await world.until(lambda: master.running == 1)
        other = dataclasses.replace(world.polls._followed[WORDS], due=0.0, busy=False)
        world.polls._followed[Key(names.TRAINING, "ns", "other")] = other
        world.polls._changed.set()
        await world.until(lambda: master.running == 2)  # the loop goes on with the others
        for _ in range(20):
            world.polls._changed.set()
            await asyncio.sleep(0.005)
        assert master.most == 2
        master.hold.set()
        await world.asked(3)
