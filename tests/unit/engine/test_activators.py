"""What activators say, and the ports that services get there. The activators are real HTTP servers."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

from mms_operator.activator.report import Demand, Report
from mms_operator.api import names
from mms_operator.engine import activators as module
from mms_operator.engine.activators import FIRST_PORT, Activators
from mms_operator.engine.metrics import Metrics
from mms_operator.engine.resources import Key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from mms_operator.plan.types import Object

WORDS, OTHER = Key(names.SERVICE, "ns", "words"), Key(names.SERVICE, "ns", "other")
HOST = "127.0.0.1"


def cr(port: int | None = None, mode: str = "Objective") -> Object:
    metadata = {"creationTimestamp": "2026-01-01T00:00:00Z"}
    return {
        "metadata": metadata,
        "spec": {"autoscaling": {"mode": mode}},
        "status": {"autoscaling": {"activatorPort": port}},
    }


class World:
    def __init__(self, *addresses: str) -> None:
        self.woken: asyncio.Queue[Key] = asyncio.Queue()
        self.addresses = list(addresses or [HOST])
        self.report = Report(number=1, services={})
        self.news = asyncio.Event()
        self.activators = Activators("activator", 0, Metrics(), self.woken.put_nowait, self.resolve)

    async def resolve(self, _: str) -> list[str]:
        return self.addresses

    def say(self, *, draining: bool = False, **demand: tuple[int, int, int]) -> None:
        services = {
            f"ns/{name}": Demand(port=port, connections=connections, waiting=waiting)
            for name, (port, connections, waiting) in demand.items()
        }
        self.report = Report(number=self.report.number + 1, draining=draining, services=services)
        self.news.set()

    async def demand(self, request: web.Request) -> web.Response:
        if int(request.query["after"]) == self.report.number:
            self.news.clear()
            await self.news.wait()
        return web.Response(text=self.report.model_dump_json())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.add_routes([web.get("/v1/demand", self.demand)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        await web.TCPSite(runner, HOST, 0).start()
        self.activators.port = runner.addresses[0][1]
        task = asyncio.create_task(self.activators.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()

    async def woke(self) -> None:
        async with asyncio.timeout(5):
            await self.woken.get()
        while not self.woken.empty():
            self.woken.get_nowait()


def test_a_service_keeps_its_port() -> None:
    found = World().activators
    first, second = found.held(WORDS, cr()), found.held(OTHER, cr())
    assert first
    assert second
    assert (first.port, second.port) == (FIRST_PORT, FIRST_PORT + 2)
    assert found.held(WORDS, cr(FIRST_PORT)) == first
    found.drop(WORDS)
    other = found.held(Key(names.SERVICE, "ns", "third"), cr())
    assert other
    assert other.port == FIRST_PORT + 4, "some node may still lead the first one's clients there"
    found.clock = lambda: time.monotonic() + module.REST_SECONDS + 1
    again = found.held(WORDS, cr())
    assert again
    assert again.port == FIRST_PORT


def test_after_a_start_services_have_the_ports_that_they_had() -> None:
    found = World().activators
    older, younger = cr(FIRST_PORT), cr(FIRST_PORT)
    younger["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z"
    found.seed([(OTHER, younger), (WORDS, older), (Key(names.SERVICE, "ns", "off"), cr(20_200, mode="Off"))])
    unseen = found.held(Key(names.SERVICE, "ns", "new"), cr())
    first, second = found.held(WORDS, older), found.held(OTHER, younger)
    assert unseen
    assert first
    assert second
    assert first.port == FIRST_PORT
    assert len({unseen.port, first.port, second.port}) == 3


def test_who_is_not_scaled_needs_none_and_where_there_are_none_nobody_is_led_to_them() -> None:
    assert World().activators.held(WORDS, cr(mode="Off")) is None
    assert Activators(None, 0, Metrics(), lambda _: None).held(WORDS, cr()) is None


async def test_who_waits_wakes_the_service_at_once() -> None:
    world = World()
    assert world.activators.held(WORDS, cr())
    world.activators.follow(WORDS, cr())
    async with world.running():
        await world.woke()
        world.say(words=(FIRST_PORT, 0, 0))
        await world.woke()
        held = world.activators.held(WORDS, cr())
        assert held
        assert (held.addresses, held.waiting) == ((HOST,), 0)
        world.say(words=(FIRST_PORT, 3, 2), other=(20_002, 1, 0))
        await world.woke()
        held = world.activators.held(WORDS, cr())
        assert held
        assert (held.waiting, held.connections) == (2, 3)


async def test_one_that_listens_elsewhere_or_leaves_is_not_led_to() -> None:
    world = World()
    assert world.activators.held(WORDS, cr())
    world.activators.follow(WORDS, cr())
    async with world.running():
        await world.woke()
        world.say(words=(20_500, 0, 0))
        await world.woke()
        held = world.activators.held(WORDS, cr())
        assert held
        assert held.addresses == ()
        world.say(draining=True, words=(FIRST_PORT, 1, 1))
        await world.woke()
        held = world.activators.held(WORDS, cr())
        assert held
        assert (held.addresses, held.waiting) == ((HOST,), 1)  # it still takes and holds, and there is no other


async def test_one_that_does_not_answer_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(module, "RESOLVE_SECONDS", 0.01)
    world = World()
    assert world.activators.held(WORDS, cr())
    world.activators.follow(WORDS, cr())
    async with world.running():
        world.say(words=(FIRST_PORT, 0, 0))
        await world.woke()
        world.addresses = []
        await world.woke()
        held = world.activators.held(WORDS, cr())
        assert held
        assert held.addresses == ()
