"""The probes go red when a restart would help, and say why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import pytest

from mms_cluster.ports import free_ports
from mms_operator.api import names
from mms_operator.engine import health as module
from mms_operator.engine.cache import Cache
from mms_operator.engine.health import QUEUE_SECONDS, STANDBY_SILENCE, WATCH_SERVER_SECONDS, WATCH_SILENCE, Health
from mms_operator.engine.intake import Intake
from mms_operator.engine.kubeapi import Call
from mms_operator.engine.metrics import Metrics
from mms_operator.engine.queue import WorkQueue
from mms_operator.engine.resources import POD, SECRET, WATCHED, Key

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = Key(names.TRAINING, "ns", "words")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Lease:
    leads: bool = True
    seen: float = 1000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease() -> Lease:
    return Lease()


@pytest.fixture
def health(clock: Clock, lease: Lease) -> Health:
    """A leader that has just begun."""
    health = Health(Metrics(), clock, lease, WorkQueue(clock), synced=True)  # type: ignore[arg-type]
    health.watch()
    return health


def reconnect(health: Health, but: str = "") -> None:
    for resource in WATCHED:
        if resource.plural != but:
            health.observe_call(Call("watch", resource.group, resource.plural), 200)


def test_a_leader_that_works_is_well(health: Health, clock: Clock, lease: Lease) -> None:
    for _ in range(10):
        clock.now = lease.seen = clock.now + WATCH_SERVER_SECONDS
        reconnect(health)
        assert health.troubles() == health.unready() == []


@pytest.mark.parametrize("plural", [resource.plural for resource in WATCHED])
def test_a_silent_watch_is_named(health: Health, clock: Clock, plural: str) -> None:
    clock.now += WATCH_SILENCE + 1
    reconnect(health, but=plural)
    assert health.troubles() == [f"the watch of {plural} is silent for {WATCH_SILENCE + 1:.0f} s"]


@pytest.mark.parametrize(
    ("verb", "status", "well"),
    [("watch", 200, True), ("watch", 403, False), ("watch", 0, False), ("list", 200, False)],
)
def test_only_a_watch_that_is_connected_lives(health: Health, clock: Clock, verb: str, status: int, well: bool) -> None:
    clock.now += WATCH_SILENCE + 1
    reconnect(health, but=POD.plural)
    health.observe_call(Call(verb, POD.group, POD.plural), status)
    assert (health.troubles() == []) == well


@pytest.mark.parametrize("kind", ["ADDED", "DELETED", None])
def test_an_event_is_a_sign_of_life(health: Health, clock: Clock, kind: str | None) -> None:
    clock.now += WATCH_SILENCE + 1
    reconnect(health, but=SECRET.plural)
    pod = {"metadata": {"name": "x", "namespace": "ns", "uid": "u", "resourceVersion": "1"}}
    intake = Intake(Cache(), WorkQueue(), health)
    intake.observe(POD, kind, pod)
    assert health.troubles() != []
    intake.observe(SECRET, kind, pod)
    assert health.troubles() == []


def test_a_watch_of_something_else_is_no_matter(health: Health, clock: Clock) -> None:
    health.observe_call(Call("watch", "", "nodes"), 200)
    clock.now += 1
    assert health.troubles() == []


def test_a_standby_has_no_watches(clock: Clock, lease: Lease) -> None:
    health = Health(Metrics(), clock, lease)  # type: ignore[arg-type]
    lease.leads = False
    clock.now = lease.seen = clock.now + 10 * WATCH_SILENCE
    assert health.troubles() == health.unready() == []


def test_a_queue_that_nobody_works_off(health: Health, clock: Clock) -> None:
    assert health.queue
    health.queue.add(WORDS)
    clock.now += QUEUE_SECONDS
    assert health.troubles() == []
    clock.now += 1
    assert health.troubles() == ["no key was taken from the queue for 61 s, and one is ready"]
    health.queue.take()
    assert health.troubles() == []


def test_a_leader_that_lost_the_lease(health: Health, lease: Lease) -> None:
    lease.leads = False
    assert health.troubles() == ["the Lease is lost"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(lambda health, _: setattr(health, "lease", None), "the API server does not answer", id="at start"),
        pytest.param(
            lambda _, clock: setattr(clock, "now", clock.now + STANDBY_SILENCE + 1),
            "the API server does not answer",
            id="silence",
        ),
        pytest.param(
            lambda health, _: setattr(health, "synced", False), "the state of the cluster is being read", id="filling"
        ),
    ],
)
def test_not_ready_is_no_reason_for_a_restart(
    health: Health, clock: Clock, change: Callable[[Health, Clock], None], why: str
) -> None:
    change(health, clock)
    assert health.unready() == [why]
    assert health.troubles() == []


async def test_the_probes_answer_with_the_reason(health: Health, clock: Clock) -> None:
    (port,) = free_ports(1)
    server = await module.serve(health, port)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

            async def ask(path: str) -> tuple[int, str]:
                async with session.get(path) as answer:
                    return answer.status, await answer.text()

            assert await ask("/healthz") == (200, "ok\n")
            assert await ask("/readyz") == (200, "ok\n")
            health.synced = False
            assert await ask("/readyz") == (503, "the state of the cluster is being read\n")
            clock.now += WATCH_SILENCE + 1
            status, text = await ask("/healthz")
            assert status == 503
            assert "the watch of pods is silent" in text
            assert text.count("\n") == len(WATCHED)
            status, text = await ask("/metrics")
            assert status == 200
            assert "mms_leader 0.0" in text
    finally:
        await server.cleanup()


async def test_a_port_that_is_taken(health: Health) -> None:
    (port,) = free_ports(1)
    server = await module.serve(health, port)
    try:
        with pytest.raises(OSError, match="in use"):
            await module.serve(health, port)
    finally:
        await server.cleanup()
