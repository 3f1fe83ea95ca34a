"""The bound: by hand, below whatever meets the objective, and near to what can be reached."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_operator.lab.optimum import bound
from mms_operator.lab.peers import Hpa, Kpa, Static
from mms_operator.lab.simulate import simulate
from mms_operator.plan.scaling.objective import Objective, Spec
from mms_operator.plan.scaling.types import Capacity, Decision

if TYPE_CHECKING:
    from mms_operator.lab.simulate import Scaler
    from mms_operator.plan.scaling.types import Observed

SECOND = Capacity(service_seconds=1.0, objective_seconds=1.5)
# So short objectives that small traces have many windows, and full ones.
CAPACITIES = st.builds(
    lambda service, slack, concurrency: Capacity(service, service + slack, concurrency),
    st.sampled_from([0.25, 0.5]),
    st.sampled_from([0.25, 0.5]),
    st.sampled_from([1, 2]),
)
TIMES = st.lists(
    st.tuples(st.integers(0, 240), st.integers(1, 12)), min_size=2, max_size=60, unique_by=lambda one: one[0]
).map(lambda bursts: sorted(at / 4 for at, count in bursts for _ in range(count)))


class Told:
    """Replicas by a schedule, of one number a second."""

    every = 1.0

    def __init__(self, schedule: list[int]) -> None:
        self.schedule = schedule

    def decide(self, observed: Observed) -> Decision:
        return Decision(self.schedule[int(observed.now) % len(self.schedule)], "told")


def test_no_request_in_a_whole_window_takes_nothing() -> None:
    assert bound([0.0], SECOND, 5.0, 0.01) == 0
    assert bound([0.0, 0.1], SECOND, 5.0, 0.01) == 0


def test_a_fleet_that_is_always_busy_takes_about_its_work() -> None:
    # 4 requests/s of a second each keep four replicas busy: 4000 s of four are 16000, of which 1 % may be missed.
    times = [k / 4 for k in range(16001)]
    assert 0.93 * 16_000 <= bound(times, SECOND, 5.0, 0.01) <= 0.99 * 16_000


def test_starting_costs() -> None:
    # Two bursts of 100 s with nothing for 1000 s between them: replicas stay, or start again for what that costs.
    times = [k / 4 for k in range(400)] + [1100 + k / 4 for k in range(400)]
    found = [bound(times, SECOND, cold_start, 0.01) for cold_start in (0.0, 30.0, 300.0, 10_000.0)]
    assert found == sorted(found)
    assert found[1] - found[0] == pytest.approx(4 * 30, rel=0.15)
    assert found[3] >= 3.5 * 1150, "they stay"


def test_more_may_be_late_for_less() -> None:
    chance = random.Random(1)
    times = sorted(300 * chance.random() for _ in range(900))
    found = [bound(times, SECOND, 5.0, part) for part in (0.0, 0.01, 0.1, 0.5)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[3] > 0


@settings(max_examples=150)
@given(TIMES, CAPACITIES, st.sampled_from([0.0, 0.1, 0.3]), st.integers(1, 8))
def test_no_static_fleet_that_meets_the_objective_is_below(
    times: list[float], capacity: Capacity, late_part: float, replicas: int
) -> None:
    out = simulate(times, Static(replicas), capacity, 0.0, replicas)
    if out.late <= late_part * len(times):
        assert bound(times, capacity, 0.0, late_part) <= out.replica_seconds + 1e-6


@settings(max_examples=150)
@given(
    TIMES, CAPACITIES, st.sampled_from([0.0, 0.5, 3.0]), st.lists(st.integers(0, 12), min_size=1, max_size=40),
    st.integers(0, 8),
)  # fmt: skip
def test_no_schedule_is_below_for_as_many_late(
    times: list[float], capacity: Capacity, cold_start: float, schedule: list[int], initial: int
) -> None:
    out = simulate(times, Told(schedule), capacity, cold_start, initial)
    assert bound(times, capacity, cold_start, out.late / len(times)) <= out.replica_seconds + 1e-6


@pytest.mark.parametrize("cold_start", [0.0, 5.0, 30.0])
def test_no_scaler_is_below_for_as_many_late(cold_start: float) -> None:
    chance = random.Random(2)
    capacity = Capacity(0.5, 2.0)
    times, now = [], 0.0
    while now < 900:
        now += chance.expovariate(12 if 300 < now < 500 else 4)
        times.append(now)
    scalers: list[Scaler] = [Objective(Spec(capacity, cold_start)), Kpa(capacity), Hpa(capacity)]
    for scaler in scalers:
        out = simulate(times, scaler, capacity, cold_start, 4)
        lowest = bound(times, capacity, cold_start, out.late / out.requests)
        assert 0.5 * len(times) * out.within * 0.8 < lowest <= out.replica_seconds
