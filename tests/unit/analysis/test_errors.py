"""Bets on failure rates: by hand, fair for every pair of rates in the claim, and one way in what they are about."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_operator.plan.analysis.bets import DIGITS
from mms_operator.plan.analysis.errors import (
    Bettor,
    Counts,
    Errors,
    bad_bettors,
    bad_gains,
    broken,
    fold,
    good_bettors,
    good_gains,
    held,
    needs,
    stakes,
)
from mms_operator.plan.analysis.types import Side, Spec

MARGINS = st.sampled_from([0.001, 0.01, 0.1, 0.5])
SPEC = Spec(block_requests=10)
BLOCKS = st.lists(
    st.tuples(st.integers(10, 400), st.floats(0, 1), st.integers(10, 400), st.floats(0, 1)), min_size=1, max_size=8
).map(lambda rows: [Counts(n, round(n * k), m, round(m * j)) for n, k, m, j in rows])


def folded(blocks: list[Counts], spec: Spec = SPEC) -> Errors:
    errors = Errors(spec.error_margin or 0.0)
    for block in blocks:
        errors = fold(spec, errors, Side(block.canary, block.canary_failed), Side(block.stable, block.stable_failed))
    return errors


def binomial(number: int, count: int, rate: float) -> float:
    return comb(number, count) * rate**count * (1 - rate) ** (number - count)


@pytest.mark.parametrize(
    ("bettor", "nearest", "stable_nearest"),
    [
        # With as many requests on both sides, rates that lie evenly around a half have nearest ones that do, too.
        (Bettor(1, 0.5, 0.5), 0.6, 0.4),
        (Bettor(1, 0.9, 0.1), 0.6, 0.4),
        (Bettor(1, 0.7, 0.3), 0.6, 0.4),
    ],
)
def test_stakes_by_hand(bettor: Bettor, nearest: float, stable_nearest: float) -> None:
    expected = (
        math.log(bettor.canary / nearest),
        math.log((1 - bettor.canary) / (1 - nearest)),
        math.log(bettor.stable / stable_nearest),
        math.log((1 - bettor.stable) / (1 - stable_nearest)),
    )
    assert stakes(bettor, 0.2, 30, 30) == pytest.approx(expected)


def test_where_one_side_has_nearly_all_requests_the_other_rate_gives_way() -> None:
    # The stable version's rate is then as good as known: nearest is the margin above it.
    found = stakes(Bettor(1, 0.05, 0.05), 0.1, 1, 10**9)
    assert found.canary_failed == pytest.approx(math.log(0.05 / 0.15), rel=1e-6)
    assert found.stable_failed == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("margin", [0.001, 0.01, 0.5])
def test_bettors(margin: float) -> None:
    good, bad = good_bettors(margin), bad_bettors(margin)
    for bettors in (good, bad):
        assert math.fsum(bettor.part for bettor in bettors) == pytest.approx(1)
        assert all(0 < rate < 1 for bettor in bettors for rate in (bettor.canary, bettor.stable))
    assert all(bettor.canary < bettor.stable + margin for bettor in good)
    assert all(bettor.canary > bettor.stable + margin for bettor in bad)


@settings(max_examples=60)
@given(MARGINS, st.integers(1, 5), st.integers(1, 5), st.floats(0, 1), st.floats(0, 1))
def test_a_block_is_fair_for_each_pair_of_rates_in_the_claim(
    margin: float, canary: int, stable: int, one: float, other: float
) -> None:
    """one, other: where the rates lie within what the claim allows; all outcomes are gone through."""
    spec = Spec(error_margin=margin)
    stable_rate = other * (1 - margin)
    within, beyond = one * (stable_rate + margin), stable_rate + margin + one * (1 - stable_rate - margin)
    for gains, rate in ((bad_gains, within), (good_gains, beyond)):
        means = [0.0] * len(gains(spec, margin, Counts(canary, 0, stable, 0)))
        for k, j in product(range(canary + 1), range(stable + 1)):
            chance = binomial(canary, k, min(rate, 1.0)) * binomial(stable, j, stable_rate)
            for i, gain in enumerate(gains(spec, margin, Counts(canary, k, stable, j))):
                means[i] += chance * math.exp(gain)
        assert max(means) <= 1 + 1e-9


@pytest.mark.parametrize("side", ["good", "bad"])
def test_at_the_margin_all_blocks_together_bring_nothing_on_average(side: str) -> None:
    # Two blocks with different rates and different shares of the requests: all 3 * 2 * 2 * 4 outcomes.
    spec = Spec(error_margin=0.1, block_requests=1)
    mean = 0.0
    for k, j, k2, j2 in product(range(3), range(2), range(2), range(4)):
        errors = folded([Counts(2, k, 1, j), Counts(1, k2, 3, j2)], spec)
        chance = binomial(2, k, 0.15) * binomial(1, j, 0.05) * binomial(1, k2, 0.5) * binomial(3, j2, 0.4)
        mean += chance * math.exp(held(errors) if side == "good" else broken(errors))
    assert 0.8 < mean <= 1


def test_one_block_brings_no_more_than_its_part() -> None:
    margin = 0.01
    all_failed = bad_gains(SPEC, margin, Counts(10_000, 10_000, 10_000, 0))
    assert all_failed == pytest.approx(
        [need / SPEC.least_blocks for need in needs(bad_bettors(margin), SPEC.alpha_bad / 2)]
    )
    none_failed = good_gains(SPEC, margin, Counts(10**6, 0, 10**6, 0))
    ceilings = [need / SPEC.least_blocks for need in needs(good_bettors(margin), SPEC.alpha_promote)]
    assert all(gain <= ceiling for gain, ceiling in zip(none_failed, ceilings, strict=True))
    assert none_failed[0] == ceilings[0]


def test_where_five_fail_together_they_count_for_one() -> None:
    spec = replace(SPEC, dependence=5.0)
    groups, requests = Counts(200, 10, 200, 5), Counts(40, 2, 40, 1)
    assert good_gains(spec, 0.01, groups) == pytest.approx(good_gains(SPEC, 0.01, requests))
    assert bad_gains(spec, 0.01, groups) == pytest.approx(bad_gains(SPEC, 0.01, requests))


def test_a_block_is_put_together() -> None:
    errors = fold(SPEC, Errors(0.01), Side(6, 1), Side(50, 2))
    assert (errors.blocks, errors.pending, errors.counted) == (0, Counts(6, 1, 50, 2), Counts())
    assert held(errors) == broken(errors) == 0
    errors = fold(SPEC, errors, Side(4, 0), Side(40, 0))
    assert (errors.blocks, errors.pending, errors.counted) == (1, Counts(), Counts(10, 1, 90, 2))


@pytest.mark.parametrize(("canary", "stable"), [(Side(), Side(50, 2)), (Side(50, 2), Side()), (Side(), Side())])
def test_an_interval_without_requests_on_a_side_is_left_out(canary: Side, stable: Side) -> None:
    errors = fold(SPEC, Errors(0.01), Side(6, 1), Side(50, 2))
    assert fold(SPEC, errors, canary, stable) == errors


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=6))
def test_within_a_block_it_makes_no_difference_how_requests_came(intervals: list[tuple[int, int]]) -> None:
    spec = replace(SPEC, block_requests=1000)
    errors = Errors(0.01)
    for canary, stable in intervals:
        errors = fold(spec, errors, Side(canary, canary // 2), Side(stable, stable // 3))
    together = fold(
        spec,
        Errors(0.01),
        Side(sum(n for n, _ in intervals), sum(n // 2 for n, _ in intervals)),
        Side(sum(m for _, m in intervals), sum(m // 3 for _, m in intervals)),
    )
    assert errors == together


@settings(max_examples=40)
@given(BLOCKS, st.data())
def test_for_a_promotion_the_order_of_blocks_makes_no_difference(blocks: list[Counts], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(blocks))
    assert held(folded(shuffled)) == pytest.approx(held(folded(blocks)), abs=2 * len(blocks) / DIGITS)


@settings(max_examples=60)
@given(BLOCKS, st.data())
def test_one_more_failure_speaks_for_its_side(blocks: list[Counts], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(blocks) - 1))
    block = blocks[at]
    before = folded(blocks)
    if block.canary_failed < block.canary:
        worse = folded([*blocks[:at], block._replace(canary_failed=block.canary_failed + 1), *blocks[at + 1 :]])
        assert held(worse) <= held(before)
        assert broken(worse) >= broken(before)
    if block.stable_failed < block.stable:
        better = folded([*blocks[:at], block._replace(stable_failed=block.stable_failed + 1), *blocks[at + 1 :]])
        assert held(better) >= held(before)
        assert broken(better) <= broken(before)
