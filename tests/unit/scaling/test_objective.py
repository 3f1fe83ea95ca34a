"""What the decision is held to: it depends on what it is given only, rests on constant traffic, and pays on a day's."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_operator.lab.peers import Static
from mms_operator.lab.simulate import simulate
from mms_operator.plan.scaling.objective import (
    EVERY_SECONDS,
    FIRST,
    KNOWN_SECONDS,
    MARGIN,
    RULES,
    Memory,
    Objective,
    Spec,
    decide,
)
from mms_operator.plan.scaling.types import Capacity, Decision, Observed

CAPACITY = Capacity(service_seconds=0.5, objective_seconds=2.0)
SPEC = Spec(CAPACITY, cold_start_seconds=10.0)
STEPS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=60)


def run(spec: Spec, steps: list[tuple[int, int]], ready: int = 3) -> list[tuple[Memory, Decision]]:
    """steps: arrivals between decisions, and how many of them were late. What is wanted is ready at once."""
    memory, found = Memory(), list[tuple[Memory, Decision]]()
    for number, (arrivals, late) in enumerate(steps, 1):
        seen = Observed(number * EVERY_SECONDS, ready, 0, arrivals, min(late, arrivals), 0, float(arrivals))
        memory, decision = decide(spec, memory, seen)
        found.append((memory, decision))
        ready = decision.replicas
    return found


def poisson(seconds: float, rate: float, amplitude: float = 0.0, period: float = 1.0) -> list[float]:
    """Arrivals whose rate goes up and down, by thinning (Lewis and Shedler, 1979)."""
    chance, now, found = random.Random(1), 0.0, list[float]()
    while (now := now + chance.expovariate(rate * (1 + amplitude))) < seconds:
        there = 1 - amplitude * math.cos(2 * math.pi * now / period)
        if chance.random() < there / (1 + amplitude):
            found.append(now)
    return found


@settings(max_examples=30)
@given(STEPS)
def test_the_same_leads_to_the_same(steps: list[tuple[int, int]]) -> None:
    assert run(SPEC, steps) == run(SPEC, steps)


@settings(max_examples=30)
@given(STEPS, st.integers(0, 5), st.integers(0, 5))
def test_bounds_are_kept(steps: list[tuple[int, int]], least: int, more: int) -> None:
    spec = Spec(CAPACITY, 10.0, least=least, most=least + more)
    for memory, decision in run(spec, steps, ready=least):
        assert least <= decision.replicas <= least + more
        assert 0 < memory.margin <= 1
        assert len(memory.shadows) == len(RULES)
        for shadow in memory.shadows:
            assert 0 <= shadow.late <= shadow.requests
            assert shadow.ready + len(shadow.starting) <= max(least + more, least)


def test_memory_is_bounded() -> None:
    memory, _ = run(SPEC, [(5, 0)] * 700)[-1]
    assert len(memory.counts) * EVERY_SECONDS == RULES[-1][0]


def test_nothing_is_taken_away_before_shadows_know() -> None:
    quiet = int((KNOWN_SECONDS + SPEC.cold_start_seconds) / EVERY_SECONDS)
    found = [decision.replicas for _, decision in run(SPEC, [(1, 0)] * (quiet + 3), ready=9)]
    assert set(found[:quiet]) == {9}
    assert found[-1] < 9


def test_the_first_rule_decides_until_another_is_proved() -> None:
    for arrivals in (0, 10):
        for memory, _ in run(SPEC, [(arrivals, 0)] * int(KNOWN_SECONDS / EVERY_SECONDS)):
            assert memory.rule == FIRST


def test_a_burst_is_answered_at_once() -> None:
    steps = [(4, 0)] * 40 + [(200, 0)]
    *_, (_, before), (_, after) = run(SPEC, steps)
    # 200 requests in 2 s and 1.5 s of slack are 57.1/s, of which a replica serves two.
    assert before.replicas <= 3
    assert after.replicas >= 0.5 * 200 / 3.5 / 2


def test_what_waits_too_long_is_served_beside_what_comes() -> None:
    """Three replicas serve nine requests in the second and a half that they may wait."""

    def decided(waiting: int) -> Decision:
        return decide(SPEC, Memory(), Observed(2.0, 3, 0, 8, 0, waiting, 8.0))[1]

    assert decided(9) == decided(0)
    many = decided(1000)
    assert many.replicas == math.ceil((8 / 2 + 1000 / 10) / 2), "in a cold start, since none is there before"
    assert "1000 requests wait too long" in many.why


def test_a_shadow_catches_up_as_the_fleet_does() -> None:
    """So that what a rule costs is what it would have cost: the queue of a burst is in it."""
    burst = [(400, 400)] * 3 + [(2, 0)] * 60
    memory, _ = run(SPEC, [(2, 0)] * 40 + burst)[-1]
    careless = memory.shadows[RULES.index((10.0, 0.5))]
    assert careless.waiting == 0, "its rule alone would have let them wait"


def test_late_requests_make_it_careful() -> None:
    good, bad = run(SPEC, [(10, 0)] * 50)[-1][0], run(SPEC, [(10, 10)] * 50)[-1][0]
    assert bad.margin < MARGIN <= good.margin


def test_without_requests_nothing_is_learned_of_them() -> None:
    assert run(SPEC, [(0, 0)] * 50)[-1][0].margin == MARGIN


def test_decisions_say_why() -> None:
    found = [decision.why for _, decision in run(SPEC, [(10, 0)] * 40)]
    # 50 requests in 10 s and 1.5 s of slack are 4.35/s: 2.2 replicas' work.
    assert found[4] == "1.5 times the 2.2 replicas' work of 160 s, which decides at first"
    assert found[-1].endswith("which would have met 100.00%")


@pytest.mark.parametrize("arrivals", [0, 1, 7, 40])
def test_it_rests_on_constant_traffic(arrivals: int) -> None:
    found = [decision.replicas for _, decision in run(SPEC, [(arrivals, 0)] * 600)]
    rest = found[300:]
    assert len(set(rest)) == 1
    assert rest[0] >= arrivals / EVERY_SECONDS / CAPACITY.rate
    changes = [b - a for a, b in pairwise(found) if a != b]
    assert sum((a > 0) != (b > 0) for a, b in pairwise(changes)) <= 2, "up, down, and rest"


def test_a_day_takes_less_than_a_static_fleet() -> None:
    """Two days of twenty minutes: from 1 to 23 requests per second and back. A replica starts in half a minute."""
    times = poisson(2400, rate=12, amplitude=0.9, period=1200)
    static = next(n for n in range(1, 40) if simulate(times, Static(n), CAPACITY, 0, n).within >= 0.99)
    fixed = simulate(times, Static(static), CAPACITY, 0, static)
    ours = simulate(times, Objective(Spec(CAPACITY, 30.0)), CAPACITY, 30.0, static)
    assert ours.within >= 0.99
    assert ours.replica_hours < 0.9 * fixed.replica_hours
