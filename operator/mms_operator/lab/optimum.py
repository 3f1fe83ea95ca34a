"""What a trace takes at least: a bound that no scaler can go below, found with the future known.

Time is cut into windows. A request that arrives so early in a window that its objective ends in it, too, is served in
that window or late: so all of these that are in time fit into the window's replica-seconds. The others are left out,
and so is what comes after the last whole window: that can only lower the bound, and cuts are where few are left out. A
dynamic programme over windows and mean numbers of replicas weighs replica-seconds, with those of starting, against late
requests at a price. Any price gives a valid bound (Lagrangian duality: Boyd and Vandenberghe, Convex Optimization,
2004, section 5.1), and so do any windows: the highest is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mms_operator.plan.scaling.types import Capacity

LENGTHS = (2, 4, 8, 16, 32, 64)  # of windows at least, in objectives; at most they are twice as long
CUTS = 8  # that are looked at in an objective
PARTS = 8  # of a replica, to which means are told apart
PRICES = 1e6  # replica-seconds for a late request, at most
_STEPS = 40  # of the bisection for the price
_NEAR = 1.001  # times a price: to see which way the bound grows, and where it is found


def bound(times: Sequence[float], capacity: Capacity, cold_start: float, late_part: float) -> float:
    """Replica-seconds that at least are spent where at most `late_part` of the requests are late.

    times: of arrivals, in seconds, ascending. Replicas that are there when it begins were started at no cost.
    """
    arrivals = np.asarray(times, np.float64)
    allowed = late_part * len(arrivals)
    return max(_bound(arrivals, capacity, cold_start, allowed, n * capacity.objective_seconds) for n in LENGTHS)


def _windows(times: NDArray[np.float64], length: float, objective: float) -> tuple[NDArray[np.float64], ...]:
    """Seconds of each window, and the requests that are served in it or late. times: not empty."""
    cuts, counts, cut = [0.0], list[int](), 0.0
    while True:
        ends = cut + np.arange(length, 2 * length, objective / CUTS)
        ends = ends[ends <= times[-1]]
        if not len(ends):
            return np.diff(cuts), np.array(counts, np.float64)
        until = np.searchsorted(times, ends - objective, "right")
        best = int(np.argmin(np.searchsorted(times, ends, "left") - until))
        counts.append(int(until[best] - np.searchsorted(times, cut, "left")))
        cut = float(ends[best])
        cuts.append(cut)


def _bound(times: NDArray[np.float64], capacity: Capacity, cold_start: float, allowed: float, length: float) -> float:
    lengths, counts = _windows(times, length, capacity.objective_seconds)
    if not counts.sum():
        return 0.0
    per_part = capacity.rate * lengths / PARTS
    # Rounded down: where costs bend at whole parts only, the best means are whole parts, too.
    enough = np.floor(counts / per_part + 1e-9)
    late = per_part[:, None] * np.maximum(0.0, enough[:, None] - np.arange(enough.max() + 1)[None, :])

    def found(price: float) -> float:
        return _cheapest(late, lengths, cold_start, price) - price * allowed

    low, high, best = 1 / PRICES, PRICES, 0.0
    for _ in range(_STEPS):
        price = (low * high) ** 0.5
        here, beyond = found(price), found(_NEAR * price)
        best = max(best, here, beyond)
        low, high = (price, high) if beyond > here else (low, price)
        if high / low < _NEAR:
            break
    return best


def _cheapest(late: NDArray[np.float64], lengths: NDArray[np.float64], cold_start: float, price: float) -> float:
    """Of all mean numbers of replicas, in PARTS, over the windows; late: [windows, parts], requests."""
    replicas = np.arange(late.shape[1], dtype=np.float64) / PARTS
    starting = cold_start * replicas
    total = lengths[0] * replicas + price * late[0]
    for length, missed in zip(lengths[1:].tolist(), late[1:], strict=True):
        # From m to n replicas: each of the n - m that are started costs the time until it is ready.
        grown = np.minimum.accumulate(total - starting) + starting
        shrunk = np.minimum.accumulate(total[::-1])[::-1]
        total = np.minimum(grown, shrunk) + length * replicas + price * missed
    return float(total.min())
