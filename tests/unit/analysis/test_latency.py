"""Bets on the ratio of times: by hand, fair for symmetric noise, one way in what they are about."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_operator.plan.analysis.latency import (
    LARGEST_VARIATION,
    PRIOR_VARIATION,
    RECENT,
    STAKE,
    STEEPNESS,
    Latency,
    Times,
    broken,
    fold,
    gains,
    held,
    shortfall,
)
from mms_operator.plan.analysis.types import Side, Spec

SPEC = Spec(block_requests=10)
MARGIN = 0.2
RATIOS = st.lists(st.floats(-3, 3), min_size=1, max_size=12)


def timed(requests: int, seconds: float) -> Side:
    """So many requests that took so many seconds each."""
    return Side(requests, 0, requests, requests * seconds)


def folded(blocks: list[tuple[int, int, float]]) -> Latency:
    """Of each block the requests of canary and stable version, and the logarithm of the ratio of their times."""
    latency = Latency(MARGIN)
    for canary, stable, ratio in blocks:
        latency = fold(SPEC, latency, timed(canary, 0.02 * math.exp(ratio)), timed(stable, 0.02))
    return latency


def test_gains_by_hand() -> None:
    scale = math.log(1.2)
    assert gains(SPEC, MARGIN, 0.0) == [0.0, 0.0, 0.0]
    assert gains(SPEC, MARGIN, scale) == pytest.approx([math.log(1 + 0.9 * math.tanh(k)) for k in (0.25, 1.5, 9.0)])
    assert gains(SPEC, MARGIN, -1e3) == pytest.approx([math.log(0.1)] * 3), "what isn't staked is left"
    assert max(gains(SPEC, MARGIN, 1e3)) == pytest.approx(math.log(1.9)), "no block decides alone"


def test_blocks_that_depend_on_each_other_count_for_less() -> None:
    spec = replace(SPEC, dependence=2.0)
    for beyond in (-0.1, 0.2):
        assert gains(spec, MARGIN, beyond) == pytest.approx([gain / 2 for gain in gains(SPEC, MARGIN, beyond)])


@given(st.floats(-50, 50), st.sampled_from([0.05, 0.2, 1.0]))
def test_a_block_is_fair_for_symmetric_noise(beyond: float, margin: float) -> None:
    for up, down in zip(gains(SPEC, margin, beyond), gains(SPEC, margin, -beyond), strict=True):
        assert (math.exp(up) + math.exp(down)) / 2 == pytest.approx(1)


def test_all_blocks_together_are_fair_for_symmetric_noise() -> None:
    # At the margin, three blocks a little or much above or below it: all 4^3 outcomes are equally likely.
    steps = [math.log(1.2) + noise for noise in (-0.5, -0.05, 0.05, 0.5)]
    outcomes = [folded([(50, 50, a), (50, 50, b), (50, 50, c)]) for a in steps for b in steps for c in steps]
    for side in (held, broken):
        mean = np.mean([math.exp(side(latency)) for latency in outcomes])
        assert 0.999 < mean <= 1


def test_a_lucky_streak_by_hand() -> None:
    # Six blocks with equal times and no noise: each bettor's third grows as if alone.
    latency = folded([(100, 100, 0.0)] * 6)
    each = [(1 + STAKE * math.tanh(steepness)) ** 6 / 3 for steepness in STEEPNESS]
    assert math.exp(held(latency)) == pytest.approx(sum(each), rel=1e-3)
    assert latency.ratio == pytest.approx(1)
    assert latency.counted == pytest.approx(Times(600, 12.0, 600, 12.0))
    assert broken(latency) < 0


def test_the_logarithm_of_few_requests_mean_is_too_low() -> None:
    # The mean of n exponential times: digamma(n) - log(n) is -0.0252 for n = 20, -0.0028 for n = 180.
    known = Latency(MARGIN, blocks=1001, squares=1000.0)  # cv^2 = 1, seen often enough
    assert shortfall(known, 20, 180) == pytest.approx(0.0252 - 0.0028, abs=1e-3)
    assert shortfall(known, 180, 20) == pytest.approx(0.0028 - 0.0252, abs=1e-3)
    assert shortfall(known, 20, 20) == 0
    assert shortfall(Latency(MARGIN), 20, 180) == pytest.approx(PRIOR_VARIATION / 2 * (1 / 20 - 1 / 180))


def test_what_few_requests_make_uncertain_speaks_for_nobody() -> None:
    even, uneven = folded([(100, 100, 0.0)]), folded([(20, 180, 0.0)])
    assert held(uneven) < held(even)
    assert broken(uneven) == broken(even)
    slow_even, slow_uneven = folded([(100, 100, 0.5)]), folded([(180, 20, 0.5)])
    assert broken(slow_uneven) < broken(slow_even)
    assert held(slow_uneven) == held(slow_even)


def test_variation_by_hand() -> None:
    # Weights of 25 and 18: the distance of 0.2 has the variance cv^2 (1/25 + 1/18).
    latency = folded([(50, 50, 0.1), (20, 180, -0.1)])
    assert latency.squares == pytest.approx(0.04 / (1 / 25 + 1 / 18))
    assert latency.weight == pytest.approx(18)
    assert folded([(50, 50, 0.0), (50, 50, 3.0), (50, 50, 0.0)]).squares == 2 * LARGEST_VARIATION


def test_the_ratio_is_the_median_of_the_last_blocks() -> None:
    assert Latency(MARGIN).ratio is None
    latency = folded([(50, 50, 0.5)] * 20 + [(50, 50, 0.1)] * 5 + [(50, 50, 3.0)] * 4)
    assert latency.ratio == pytest.approx(math.exp(0.1))
    assert len(latency.recent) == RECENT


def test_variation_is_that_of_a_single_request() -> None:
    chance = np.random.default_rng(1)
    blocks = [
        (n, 9 * n, float(np.log(chance.gamma(n * 4) / n / (chance.gamma(9 * n * 4) / 9 / n))))
        for n in chance.integers(20, 200, 2000).tolist()
    ]
    # The mean of n times with cv^2 = 1/4.
    assert folded(blocks).squares / len(blocks) == pytest.approx(0.25, rel=0.1)


@given(RATIOS, st.data())
def test_a_slower_block_speaks_against_the_canary(ratios: list[float], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(ratios) - 1))
    by = data.draw(st.floats(0, 3))
    slower = [ratio + by * (i == at) for i, ratio in enumerate(ratios)]
    before, after = (folded([(50, 50, ratio) for ratio in each]) for each in (ratios, slower))
    assert held(after) <= held(before) + 1e-9
    assert broken(after) >= broken(before) - 1e-9


@given(RATIOS)
def test_one_block_changes_little(ratios: list[float]) -> None:
    before, after = folded([(50, 50, r) for r in ratios]), folded([(50, 50, r) for r in [*ratios, 3.0]])
    assert broken(after) <= max(0.0, broken(before)) + math.log(1 + STAKE) + 1e-9
    assert held(after) >= held(before) + math.log(1 - STAKE) - 1e-3


@settings(max_examples=30)
@given(st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=6), st.sampled_from([1e-3, 7.0]))
def test_neither_unit_nor_level_counts(levels: list[float], unit: float) -> None:
    one, other = Latency(MARGIN), Latency(MARGIN)
    for level in levels:
        one = fold(SPEC, one, timed(30, 1.5 * level), timed(40, level))
        other = fold(SPEC, other, timed(30, 1.5 * level * unit), timed(40, level * unit))
    assert one.good == pytest.approx(other.good, abs=2e-4 * len(levels))
    assert one.bad == pytest.approx(other.bad, abs=2e-4 * len(levels))


def test_a_block_is_put_together() -> None:
    latency = fold(SPEC, Latency(MARGIN), timed(5, 0.02), timed(50, 0.01))
    assert latency.blocks == 0
    assert latency.pending == pytest.approx(Times(5, 0.1, 50, 0.5))
    latency = fold(SPEC, latency, timed(5, 0.04), timed(50, 0.02))
    assert (latency.blocks, latency.pending) == (1, Times())
    assert latency.ratio == pytest.approx(2)


@pytest.mark.parametrize(
    ("canary", "stable"), [(Side(9, 9), timed(50, 0.02)), (timed(50, 0.02), Side()), (Side(), Side())]
)
def test_an_interval_without_times_on_a_side_is_left_out(canary: Side, stable: Side) -> None:
    latency = fold(SPEC, Latency(MARGIN), timed(5, 0.02), timed(50, 0.01))
    assert fold(SPEC, latency, canary, stable) == latency


def test_no_time_is_the_shortest_that_is_counted() -> None:
    latency = fold(SPEC, Latency(MARGIN), timed(10, 0.0), timed(10, 1e-9))
    assert latency.ratio == pytest.approx(0.1)
