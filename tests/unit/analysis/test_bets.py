"""Capitals by hand, and that no way of staking them makes more than 1 of 1."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mms_operator.plan.analysis.bets import (
    DIGITS,
    confidence,
    evidence,
    evidence_late,
    geometric,
    grown,
    grown_late,
    parts,
)


def test_capitals_grow_by_what_is_gained() -> None:
    once = grown((), [math.log(2), math.log(0.5)])
    assert once == pytest.approx((math.log(2), -math.log(2)), abs=1 / DIGITS)
    twice = grown(once, [math.log(3), 0.0])
    assert [math.exp(capital) for capital in twice] == pytest.approx([6, 0.5], rel=3 / DIGITS)
    # Half of what they began with each: 6 / 2 + 0.5 / 2.
    assert math.exp(evidence((0.5, 0.5), twice)) == pytest.approx(3.25, rel=3 / DIGITS)


def test_capital_that_enters_late_by_hand() -> None:
    # 1/2 enters with the first block, 1/6 with the second; doubled each time: 1/2 * 4 + 1/6 * 2, and 1/3 is kept.
    once = grown_late((), [math.log(2)], 1)
    assert math.exp(once[0]) == pytest.approx(1, rel=1 / DIGITS)
    assert math.exp(evidence_late((1.0,), once, 1)) == pytest.approx(1.5, rel=1 / DIGITS)
    twice = grown_late(once, [math.log(2)], 2)
    assert math.exp(twice[0]) == pytest.approx(7 / 3, rel=3 / DIGITS)
    assert math.exp(evidence_late((1.0,), twice, 2)) == pytest.approx(8 / 3, rel=3 / DIGITS)


def test_before_the_first_block_there_is_no_evidence() -> None:
    assert evidence((0.5, 0.5), ()) == 0
    assert evidence_late((1.0,), (), 0) == 0
    assert confidence(0.0) == 0


@pytest.mark.parametrize(("log_evidence", "expected"), [(math.log(20), 0.95), (math.log(100), 0.99), (-3.0, 0.0)])
def test_confidence(log_evidence: float, expected: float) -> None:
    assert confidence(log_evidence) == pytest.approx(expected)


def test_a_past_without_evidence_shields_from_nothing() -> None:
    # Twenty blocks that ruin who was there, then blocks that double.
    early, late = (), ()
    for block in range(1, 41):
        gain = [-1.0] if block <= 20 else [math.log(2)]
        early, late = grown(early, gain), grown_late(late, gain, block)
    assert evidence((1.0,), early) < 0
    assert evidence_late((1.0,), late, 40) > math.log(20)


@given(
    st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0.1, 0.9)), min_size=1, max_size=6),
    st.floats(0.1, 0.9),
    st.booleans(),
)
def test_fair_games_bring_nothing_on_average(games: list[tuple[float, float]], share: float, late: bool) -> None:
    """Each game: how likely it is won, and what part is staked at fair odds. Two bettors, the other on the opposite."""
    total = 0.0
    for outcome in product((True, False), repeat=len(games)):
        capitals: tuple[float, ...] = ()
        chance = 1.0
        for block, (won, (likely, stake)) in enumerate(zip(outcome, games, strict=True), 1):
            chance *= likely if won else 1 - likely
            gains = [
                math.log(1 - stake + (stake / likely if won else 0)),
                math.log(1 - stake + (0 if won else stake / (1 - likely))),
            ]
            capitals = grown_late(capitals, gains, block) if late else grown(capitals, gains)
        weights = (share, 1 - share)
        found = evidence_late(weights, capitals, len(games)) if late else evidence(weights, capitals)
        total += chance * math.exp(found)
    # Rounding takes a little each time, and never gives.
    assert 1 - 2 * len(games) / DIGITS <= total <= 1 + 1e-9


def test_parts_and_steps() -> None:
    assert parts((1, 1 / 2, 1 / 2)) == pytest.approx((0.5, 0.25, 0.25))
    assert geometric(1, 8, 4) == pytest.approx([1, 2, 4, 8])
