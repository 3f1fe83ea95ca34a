"""Who is asked what it serves, and when that makes a service be looked at again. The agents are real HTTP servers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from mms_operator.api import names
from mms_operator.engine import agents
from mms_operator.engine.agents import Agents
from mms_operator.engine.metrics import Metrics
from mms_operator.engine.resources import Key
from mms_operator.plan.types import AgentCalls, Plan
from mms_workloads.contract import AgentReport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

WORDS = Key(names.SERVICE, "ns", "words")


def report(digest: str) -> AgentReport:
    return AgentReport(digest=digest, version=1, models=[], phase="Verified", goldenCases=1, goldenRight=1)


class World:
    """One agent, at the loopback."""

    def __init__(self) -> None:
        self.woken: list[Key] = []
        self.said = report("a").model_dump_json()
        self.asked = 0
        self.metrics = Metrics()
        self.agents = Agents(self.metrics, self.woken.append, 0)

    def follow(self, period: float = 0.001, **hosts: str) -> None:
        self.agents.follow(WORDS, Plan(status={}, agents=AgentCalls(hosts, period)))

    async def served(self, _: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(text=self.said)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.add_routes([web.get("/v1/served", self.served)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.agents.port = runner.addresses[0][1]
        task = asyncio.create_task(self.agents.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - a condition of several parties
            await asyncio.sleep(0.001)


@pytest.fixture
def world() -> World:
    return World()


async def test_what_an_agent_says_wakes_when_it_is_another_thing(world: World) -> None:
    world.follow(u1="127.0.0.1")
    async with world.running():
        await until(lambda: world.woken)
        assert world.agents.reports(WORDS) == {"u1": report("a")}
        asked = world.asked
        await until(lambda: world.asked > asked + 5)
        assert world.woken == [WORDS], "once"
        world.said = report("b").model_dump_json()
        await until(lambda: len(world.woken) == 2)
        assert world.agents.reports(WORDS) == {"u1": report("b")}


@pytest.mark.parametrize("said", ["{}", "nonsense", "x" * 100_000], ids=["empty", "no JSON", "much"])
async def test_nonsense_says_nothing(world: World, said: str) -> None:
    world.follow(u1="127.0.0.1")
    async with world.running():
        await until(lambda: world.woken)
        world.said = said
        await until(lambda: len(world.woken) == 2)
        assert world.agents.reports(WORDS) == {}


async def test_one_that_does_not_answer_says_nothing_and_holds_no_other_up(world: World) -> None:
    world.follow(u1="127.0.0.1", u2="127.0.0.2")
    async with world.running():
        await until(lambda: world.agents.reports(WORDS))
        assert set(world.agents.reports(WORDS)) <= {"u1", "u2"}
        assert "u1" in world.agents.reports(WORDS)


async def test_a_plan_that_wants_nothing_ends_the_questions(world: World) -> None:
    world.follow(u1="127.0.0.1")
    async with world.running():
        await until(lambda: world.woken)
        world.agents.follow(WORDS, Plan(status={}))
        assert world.agents.reports(WORDS) == {}
        world.follow(u1="127.0.0.1")
        await until(lambda: len(world.woken) == 2)
        world.agents.drop(WORDS)
        assert world.agents.reports(WORDS) == {}


async def test_of_pods_that_are_gone_nothing_is_kept(world: World) -> None:
    world.follow(u1="127.0.0.1")
    async with world.running():
        await until(lambda: world.woken)
        world.follow(period=3600, u2="127.0.0.1")
        assert world.agents.reports(WORDS) == {}
        await until(lambda: "u2" in world.agents.reports(WORDS))
        assert set(world.agents._services[WORDS].missed) == {"u2"}


async def test_a_clock_that_is_set_back_makes_no_interval(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        time = datetime(2026, 1, 1, 12, tzinfo=UTC)

        @classmethod
        def now(cls, _: object) -> datetime:
            cls.time += timedelta(seconds=1)
            return cls.time

    monkeypatch.setattr(agents, "datetime", Clock)
    world.follow(u1="127.0.0.1")
    async with world.running():
        await until(lambda: world.agents.interval(WORDS))
        Clock.time -= timedelta(hours=1)
        await until(lambda: world.agents.interval(WORDS) is None)
        await until(lambda: world.agents.interval(WORDS))
        found = world.agents.interval(WORDS)
        assert found
        assert found.began < found.ended <= Clock.time


async def test_a_shorter_period_counts_at_once(world: World) -> None:
    world.follow(period=3600, u1="127.0.0.1")
    async with world.running():
        await until(lambda: world.woken)
        asked = world.asked
        world.follow(u1="127.0.0.1")
        await until(lambda: world.asked > asked + 3)
