"""Replicas that arrivals take, by network calculus (Le Boudec and Thiran, 2001). Pure.

n replicas serve n * rate requests per second. A request waits longer than the slack exactly where some interval that
ends with it, of t seconds, has brought more than n * rate * (t + slack) requests: the arrival curve is then above the
service curve by more than the slack. So the replicas that a stretch of time takes follow from its busiest intervals.
"""

from __future__ import annotations

from itertools import accumulate
from operator import sub
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mms_operator.plan.scaling.types import Capacity

GROWTH = 1.25  # from one length of intervals that is looked at to the next: what lies between is at most so much larger


def needed(counts: Sequence[int], bin_seconds: float, capacity: Capacity, backlog: int = 0) -> float:
    """Replicas, not rounded, with which no request of these bins waits longer than the slack.

    Up to GROWTH times as many where the busiest interval has a length between those that are looked at. backlog:
    requests that wait already when the first bin begins. Arrivals are spread over their bins.
    """
    sums = [0, *accumulate(counts)]
    most = 0.0
    for length in _lengths(len(counts)):
        seconds = length * bin_seconds + capacity.slack
        largest = max(map(sub, sums[length:], sums))
        most = max(most, largest / seconds, (backlog + sums[length]) / seconds)
    return most / capacity.rate


def _lengths(longest: int) -> Iterator[int]:
    length = 1
    while length < longest:
        yield length
        length = max(length + 1, int(length * GROWTH))
    if longest:
        yield longest
