"""`needed` against a queue of fluid that is worked out step by step."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mms_operator.plan.scaling.demand import GROWTH, needed
from mms_operator.plan.scaling.types import Capacity

COUNTS = st.lists(st.one_of(st.just(0), st.integers(0, 50)), min_size=1, max_size=60)
CAPACITIES = st.builds(
    lambda service, slack, concurrency: Capacity(service, service + slack, concurrency),
    st.sampled_from([0.1, 0.5, 2.0]),
    st.sampled_from([0.0, 0.5, 1.5, 20.0, 300.0]),
    st.sampled_from([1, 4]),
)
BINS = st.sampled_from([0.5, 2.0, 10.0])


def longest_wait(counts: list[int], bin_seconds: float, rate: float) -> float:
    """Seconds, at that many requests served per second. Fluid waits longest where a bin ends, or begins."""
    queue = worst = 0.0
    for count in counts:
        # Within a bin the queue grows or shrinks evenly.
        queue = max(0.0, queue + count - rate * bin_seconds)
        worst = max(worst, queue)
    return worst / rate


@pytest.mark.parametrize(
    ("counts", "backlog", "replicas"),
    [
        ([], 0, 0.0),
        ([0, 0], 0, 0.0),
        ([7], 0, 1.0),  # 7 in 2 s, and 1.5 s of slack: 7 / 3.5 s are 2 requests/s, of which a replica serves 2
        ([7, 7], 0, 14 / 5.5 / 2),  # the longer interval takes more
        ([1, 21, 1], 0, 3.0),  # the busiest bin: 21 / 3.5 / 2
        ([7], 7, 2.0),  # who waits already
    ],
)
def test_by_hand(counts: list[int], backlog: int, replicas: float) -> None:
    assert needed(counts, 2.0, Capacity(0.5, 2.0), backlog) == pytest.approx(replicas)


def test_what_comes_at_both_ends_counts_together() -> None:
    # With so much slack the whole stretch is the busiest interval, whatever lengths are looked at.
    counts = [10, *[0] * 7, 10]
    assert needed(counts, 1.0, Capacity(1.0, 92.0)) == pytest.approx(20 / 100)


@given(COUNTS, BINS, CAPACITIES, st.sampled_from([0, 5, 100]))
def test_with_what_is_needed_nobody_waits_longer_than_the_slack(
    counts: list[int], bin_seconds: float, capacity: Capacity, backlog: int
) -> None:
    replicas = needed(counts, bin_seconds, capacity, backlog)
    assume(replicas > 0)
    rate = GROWTH * replicas * capacity.rate
    assert longest_wait(counts, bin_seconds, rate) <= capacity.slack + 1e-9
    rate = math.ceil(GROWTH * replicas) * capacity.rate
    assert longest_wait(counts, bin_seconds, rate) <= capacity.slack + 1e-9


@given(COUNTS, BINS, CAPACITIES)
def test_with_less_somebody_does(counts: list[int], bin_seconds: float, capacity: Capacity) -> None:
    replicas = needed(counts, bin_seconds, capacity)
    assume(replicas > 0)
    assert longest_wait(counts, bin_seconds, 0.99 * replicas * capacity.rate) > capacity.slack


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), BINS, CAPACITIES, st.integers(0, 100))
def test_of_short_stretches_every_length_is_looked_at(
    counts: list[int], bin_seconds: float, capacity: Capacity, backlog: int
) -> None:
    replicas = needed(counts, bin_seconds, capacity)
    assume(replicas > 0)
    assert longest_wait(counts, bin_seconds, replicas * capacity.rate) == pytest.approx(capacity.slack)
    more = needed(counts, bin_seconds, capacity, backlog)
    assert more >= replicas
    after_the_first = longest_wait([counts[0] + backlog, *counts[1:]], bin_seconds, more * capacity.rate)
    assert after_the_first <= capacity.slack + 1e-9


@given(COUNTS, CAPACITIES)
def test_more_arrivals_need_no_less(counts: list[int], capacity: Capacity) -> None:
    more = [count + 1 for count in counts]
    assert needed(more, 2.0, capacity) > needed(counts, 2.0, capacity)
    assert needed([*counts, 0], 2.0, capacity) == pytest.approx(needed(counts, 2.0, capacity), rel=GROWTH - 1)
