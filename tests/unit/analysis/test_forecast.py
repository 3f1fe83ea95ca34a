"""What is told beforehand: by hand, one way in what it depends on, and near to what then happens."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_operator.plan.analysis.forecast import Effort, Traffic, forecast
from mms_operator.plan.analysis.types import Metric, Spec, Verdict
from tests.unit.analysis.vectorised import run_disagreement, run_errors, run_latency

SPEC = Spec()
TRAFFIC = Traffic(canary_requests=50, stable_requests=450, inputs=10, failure_rate=0.001)


def intervals(effort: Effort | None) -> float:
    return effort.intervals if effort else math.inf


def test_by_hand() -> None:
    # One bettor has 12/25 of the capital and gains log((1 - 0.05/32) / 0.95) with each input, and so on: 66 are the
    # first with which all four together have 20.
    spec = Spec(error_margin=None, latency_margin=None, warmup_intervals=3)
    (found,) = forecast(spec, TRAFFIC)
    parts = ((12, 32), (6, 8), (4, 4), (3, 2))
    capital = [sum(part / 25 * ((1 - 0.05 / rate) / 0.95) ** n for part, rate in parts) for n in (65, 66)]
    assert capital[0] < 20 <= capital[1]
    assert found.metric is Metric.DISAGREEMENT
    assert found.promote == Effort(intervals=7, requests=66)
    assert found.message.startswith(
        "disagreement: about 7 intervals (66 inputs) if the canary is like the stable version"
    )


def test_what_is_the_least_is_kept() -> None:
    traffic = Traffic(10_000, 90_000, 10_000, 0.0, 0.01)
    errors, latency, disagreement = forecast(replace(SPEC, least_requests=200_000, least_inputs=15_000), traffic)
    # Twenty intervals, and the one of the warm-up.
    assert errors.promote == errors.rollback == latency.promote == Effort(21, 210_000)
    assert disagreement.promote == Effort(2, 15_000)
    errors, *_ = forecast(SPEC, traffic)
    assert errors.promote == Effort(1 + SPEC.least_blocks, 40_000)


@pytest.mark.parametrize(("canary", "stable", "inputs"), [(0, 500, 0), (500, 0, 0)])
def test_without_traffic_there_is_no_end(canary: float, stable: float, inputs: float) -> None:
    for each in forecast(SPEC, Traffic(canary, stable, inputs)):
        assert each.promote is None
        assert each.rollback is None
        assert each.message == (
            f"{each.metric}: never if the canary is like the stable version, never if it is twice as bad as is allowed"
        )


def test_where_requests_fail_together_it_takes_as_many_more() -> None:
    spec = Spec(latency_margin=None, disagreement_limit=None, warmup_intervals=0)
    (alone,) = forecast(spec, TRAFFIC)
    (together,) = forecast(replace(spec, dependence=5.0), TRAFFIC)
    assert alone.promote is not None
    assert together.promote is not None
    assert 4 * alone.promote.intervals < together.promote.intervals <= 5 * alone.promote.intervals


def test_few_requests_are_put_together() -> None:
    # Twenty of each side make a block, whether in an interval or in ten.
    (much,) = forecast(Spec(latency_margin=None, disagreement_limit=None), Traffic(20, 20))
    (little,) = forecast(Spec(latency_margin=None, disagreement_limit=None), Traffic(2, 2))
    assert much.promote is not None
    assert little.promote is not None
    assert little.promote.intervals - 1 == 10 * (much.promote.intervals - 1)


@given(st.floats(1, 500), st.floats(1, 500), st.floats(0.0001, 0.2), st.floats(0.1, 2))
def test_more_is_known_of_more_requests_and_wider_margins(
    canary: float, stable: float, rate: float, variation: float
) -> None:
    spec = Spec(disagreement_limit=None)
    wide = replace(spec, error_margin=0.02, latency_margin=0.4)
    traffic = Traffic(canary, stable, 0, rate, variation)
    more = replace(traffic, canary_requests=4 * canary, stable_requests=4 * stable)
    for before, wider, busier in zip(
        forecast(spec, traffic), forecast(wide, traffic), forecast(spec, more), strict=True
    ):
        assert intervals(wider.promote) <= intervals(before.promote)
        assert intervals(busier.promote) <= intervals(before.promote) + 1


@pytest.mark.parametrize(
    "traffic",
    [TRAFFIC, Traffic(200, 1800, 50, 0.01), Traffic(100, 100, 20, 0.0, 0.5)],
    ids=["a tenth", "much", "half"],
)
def test_half_of_all_rollouts_take_less(traffic: Traffic) -> None:
    chance, runs, looks = np.random.default_rng(1), 1000, 120
    canary, stable = int(traffic.canary_requests), int(traffic.stable_requests)
    each = [canary] * looks, [stable] * looks
    shape = 1 / traffic.variation**2
    stable_failed = chance.binomial(stable, traffic.failure_rate, (runs, looks))
    stable_means = chance.gamma(stable * shape, 1 / stable, (runs, looks))
    for verdict, worse, longer, differing in (
        (Verdict.PROMOTE, 0.0, 1.0, 0.0),
        (Verdict.ROLLBACK, 2 * 0.01, 1.4, 2 * 0.05),
    ):
        failed = chance.binomial(canary, traffic.failure_rate + worse, (runs, looks))
        means = longer * chance.gamma(canary * shape, 1 / canary, (runs, looks))
        differ = chance.binomial(int(traffic.inputs), differing, (runs, looks))
        outcomes = (
            run_errors(SPEC, *each, failed, stable_failed),
            run_latency(SPEC, *each, means, stable_means),
            run_disagreement(SPEC, [int(traffic.inputs)] * looks, differ),
        )
        for told, outcome, warmup in zip(forecast(SPEC, traffic), outcomes, (1, 1, 0), strict=True):
            effort = told.promote if verdict is Verdict.PROMOTE else told.rollback
            assert effort is not None
            median = warmup + outcome.median(verdict)
            assert median <= effort.intervals <= math.ceil(1.4 * median), told.message
