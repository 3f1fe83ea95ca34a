"""What agents say, as numbers; and what a pod can do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_operator.plan.scaling import capacity, traffic
from mms_operator.plan.scaling.capacity import Point
from mms_operator.plan.scaling.traffic import Sample
from mms_workloads.contract import Load, ModelLoad

FAST, SLOW = {"0.5": 0.01, "0.99": 0.02, "0.999": 0.03}, {"0.5": 0.1, "0.99": 0.2, "0.999": 0.3}


def sample(requests: int, own: int = 0, pending: int = 0, **models: int) -> Sample:
    return Sample(requests, own, pending, models or {"m": requests})


def load(**models: tuple[int, dict[str, float]]) -> Load:
    return Load(models={name: ModelLoad(requests=count, quantiles=found) for name, (count, found) in models.items()})


@pytest.mark.parametrize(
    ("before", "after", "arrivals"),
    [
        (sample(100), sample(130), 30),
        (sample(100, own=10), sample(130, own=25), 15),  # what the agent asked itself is nobody's
        (sample(100, pending=2), sample(130, pending=12), 40),  # what waits has come
        (sample(100, pending=12), sample(130, pending=2), 20),
        (sample(100), sample(7), 7),  # Triton has started again
        (sample(100, own=50), sample(130, own=5), 25),  # the agent has
        (None, sample(9, own=4), 5),  # a pod that was not there
    ],
)
def test_arrivals(before: Sample | None, after: Sample, arrivals: int) -> None:
    found = traffic.between({"1": before} if before else {}, {"1": after}, {}, 1.0)
    assert found.arrivals == arrivals


def test_slow_requests_by_what_was_asked() -> None:
    loads = {"1": load(fast=(900, FAST), slow=(100, SLOW))}
    found = traffic.between({}, {"1": sample(1000, fast=900, slow=100)}, loads, 0.05)
    assert found.late == pytest.approx(0.1 * (1 - 0.5 * 0.5))  # between nothing and the median, in proportion
    assert found.p99 == 0.2


def test_a_model_that_nobody_asked_does_not_count() -> None:
    loads = {"1": load(fast=(900, FAST), slow=(100, SLOW))}
    before = {"1": sample(600, fast=500, slow=100)}
    found = traffic.between(before, {"1": sample(1000, fast=900, slow=100)}, loads, 0.05)
    assert (found.late, found.p99) == (0.0, 0.02)


def test_without_requests_nothing_is_known() -> None:
    found = traffic.between({"1": sample(5)}, {"1": sample(5)}, {"1": load(m=(5, FAST))}, 0.05)
    assert (found.arrivals, found.late, found.p99) == (0, 0.0, None)


@given(st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_fewer_are_slower_than_a_longer_time(one: float, other: float) -> None:
    slow = traffic.Slowness(10, tuple(sorted((float(q), s) for q, s in SLOW.items())))
    low, high = sorted((one, other))
    assert 0 <= slow.above(high) <= slow.above(low) <= 1


CURVE = [Point(1, 20, 0.02), Point(2, 38, 0.03), Point(4, 50, 0.045), Point(8, 52, 0.2)]


@pytest.mark.parametrize(
    ("objective", "rate", "met"), [(0.05, 50, True), (0.5, 52, True), (0.025, 20, True), (0.01, 20, False)]
)
def test_the_capacity_is_the_most_within_the_objective(objective: float, rate: float, met: bool) -> None:
    found = capacity.of_curve(CURVE, objective)
    assert (found.capacity.rate, found.met) == (pytest.approx(rate), met)
    assert found.capacity.slack >= 0


def test_a_correction_is_of_the_rate() -> None:
    assert capacity.of_curve(CURVE, 0.05, 1.5).capacity.rate == pytest.approx(75)


@pytest.mark.parametrize(
    ("rate", "late", "direction"),
    [(80, 0.0, 1), (40, 0.0, 0), (45, 0.2, -1), (10, 0.2, 0), (80, 0.2, -1)],
    ids=["more, and in time", "less than it can", "busy, and late", "idle, and late", "more, and late"],
)
def test_what_clients_show_corrects_it(rate: float, late: float, direction: int) -> None:
    after = capacity.corrected(1.0, capacity.of_curve(CURVE, 0.05).capacity, rate, late)
    assert (after > 1) - (after < 1) == direction
    assert abs(after - 1) <= capacity.UP + 1e-9
