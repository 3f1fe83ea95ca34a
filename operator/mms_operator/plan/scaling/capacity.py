"""How many requests a pod answers within the objective: from the curve that was measured, and what clients show. Pure.

The curve is (requests at a time, requests per second, p99). Of its points that meet the objective the one with the most
requests per second counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.plan.scaling.types import Capacity

if TYPE_CHECKING:
    from collections.abc import Sequence

# Of the correction, in one step. Slow answers are counted over a minute, so that each is seen thirty times.
UP, DOWN = 0.02, 0.002
LEAST, MOST = 0.3, 3.0  # of the correction: beyond that the pod is another one than was measured
BUSY = 0.5  # of the capacity: below that, slow answers are no sign that it is too much


@dataclass(frozen=True, slots=True)
class Point:
    concurrency: int
    rate: float  # requests per second
    p99: float  # seconds


@dataclass(frozen=True, slots=True)
class Known:
    """met: whether even one request at a time meets the objective."""

    capacity: Capacity
    met: bool


def of_curve(curve: Sequence[Point], objective: float, correction: float = 1.0) -> Known:
    """objective: seconds. `curve` has a point at least, and each a rate above 0."""
    good = [point for point in curve if point.p99 <= objective]
    best = max(good, key=lambda point: point.rate) if good else min(curve, key=lambda point: point.p99)
    seconds = best.concurrency / (best.rate * correction)
    return Known(Capacity(seconds, max(objective, seconds), best.concurrency), bool(good))


def corrected(correction: float, capacity: Capacity, rate: float, late: float, within: float = 0.99) -> float:
    """What clients show: rate is the requests per second of a pod, late the part of them beyond the objective.

    More than the capacity in time: it is more. Busy, and too many late: it is less. Else nothing is known.
    """
    if late <= 1 - within:
        wanted = correction * rate / capacity.rate if rate > capacity.rate else correction
    elif rate > BUSY * capacity.rate:
        wanted = correction * min(1.0, rate / capacity.rate) * (1 - DOWN)
    else:
        wanted = correction
    step = min(max(wanted, correction * (1 - DOWN)), correction * (1 + UP))
    return min(max(step, LEAST), MOST)
