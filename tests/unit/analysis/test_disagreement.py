"""Bets on the rate of different answers: by hand, fair for each rate in the claim, one way in what they are about."""

from __future__ import annotations

import math
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_operator.plan.analysis.disagreement import (
    BAD_PARTS,
    GOOD_PARTS,
    Disagreement,
    bad_rates,
    broken,
    fold,
    good_rates,
    held,
)

LIMITS = st.sampled_from([0.01, 0.05, 0.3, 0.8])
COUNTS = st.tuples(st.integers(0, 200), st.floats(0, 1)).map(lambda pair: (pair[0], round(pair[0] * pair[1])))


def test_by_hand() -> None:
    # Parts 12, 6, 4 and 3 of 25 on rates of 1/32, 1/8, 1/4 and 1/2 of the limit.
    rates, parts = (0.05 / 32, 0.05 / 8, 0.05 / 4, 0.05 / 2), (12 / 25, 6 / 25, 4 / 25, 3 / 25)
    assert good_rates(0.05) == pytest.approx(rates)
    assert pytest.approx(parts) == GOOD_PARTS
    alike = sum(part * ((1 - rate) / 0.95) ** 60 for rate, part in zip(rates, parts, strict=True))
    assert math.exp(held(Disagreement(0.05, 60, 0))) == pytest.approx(alike)
    one = sum(part * (rate / 0.05) * ((1 - rate) / 0.95) ** 59 for rate, part in zip(rates, parts, strict=True))
    assert math.exp(held(Disagreement(0.05, 60, 1))) == pytest.approx(one)
    different = sum(rate / 0.05 / 5 for rate in bad_rates(0.05))
    assert math.exp(broken(Disagreement(0.05, 1, 1))) == pytest.approx(different)


def test_nothing_compared_is_no_evidence() -> None:
    assert held(Disagreement(0.05)) == pytest.approx(0)
    assert broken(Disagreement(0.05)) == pytest.approx(0)


@given(LIMITS)
def test_bets_are_on_the_right_side(limit: float) -> None:
    assert all(0 < rate < limit for rate in good_rates(limit))
    assert all(limit < rate < 1 for rate in bad_rates(limit))
    assert math.fsum(GOOD_PARTS) == pytest.approx(1)
    assert math.fsum(BAD_PARTS) == pytest.approx(1)


@given(LIMITS, st.integers(1, 12), st.floats(0, 1))
def test_it_is_fair_for_each_rate_in_the_claim(limit: float, inputs: int, part: float) -> None:
    for side, rate in ((broken, part * limit), (held, limit + part * (1 - limit))):
        mean = math.fsum(
            comb(inputs, k) * rate**k * (1 - rate) ** (inputs - k) * math.exp(side(Disagreement(limit, inputs, k)))
            for k in range(inputs + 1)
        )
        assert mean <= 1 + 1e-9


@given(LIMITS, st.lists(COUNTS, max_size=6), st.lists(COUNTS, max_size=6))
def test_it_makes_no_difference_in_what_portions_and_order_inputs_came(
    limit: float, first: list[tuple[int, int]], last: list[tuple[int, int]]
) -> None:
    one, other = Disagreement(limit), Disagreement(limit)
    for compared, differing in [*first, *last]:
        one = fold(one, compared, differing)
    for compared, differing in (
        (sum(n for n, _ in last), sum(k for _, k in last)),
        (sum(n for n, _ in first), sum(k for _, k in first)),
    ):
        other = fold(other, compared, differing)
    assert one == other


@given(LIMITS, st.integers(1, 500), st.data())
def test_a_different_answer_speaks_against_the_canary(limit: float, inputs: int, data: st.DataObject) -> None:
    differing = data.draw(st.integers(0, inputs - 1))
    before, after = Disagreement(limit, inputs, differing), Disagreement(limit, inputs, differing + 1)
    assert held(after) < held(before)
    assert broken(after) > broken(before)
    more = Disagreement(limit, inputs + 1, differing)
    assert held(more) > held(before)
    assert broken(more) < broken(before)
