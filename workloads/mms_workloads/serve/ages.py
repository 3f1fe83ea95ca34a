"""How old the parameters are that a pod answers with. Pure: callers say what time it is.

At a moment the age is the time since the parameters were those that the training went on from. It grows as time does
and falls with each switch; what is told is its distribution over time, as one sees it who asks at random.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW_SECONDS = 60.0
GRID_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Distribution:
    """Seconds, over the last minute."""

    p50: float
    p99: float
    longest: float


@dataclass(slots=True)
class Ages:
    """All times are of one monotonic clock, in seconds."""

    _switches: deque[tuple[float, float]] = field(default_factory=deque)  # since when which copy's time counts

    def switched(self, now: float, copied: float) -> None:
        """From now on answers come from parameters that were copied then, or are known to be what they were then."""
        self._switches.append((now, copied))
        while len(self._switches) > 1 and self._switches[1][0] < now - WINDOW_SECONDS:
            self._switches.popleft()

    def age(self, now: float) -> float:
        return now - self._switches[-1][1] if self._switches else 0.0

    def distribution(self, now: float) -> Distribution:
        if not self._switches:
            return Distribution(0.0, 0.0, 0.0)
        since, copied = (np.array(column) for column in zip(*self._switches, strict=True))
        moments = np.arange(max(float(since[0]), now - WINDOW_SECONDS), now, GRID_SECONDS)
        # The oldest of each stretch is just before the next switch, which the grid may miss.
        ends: NDArray[np.float64] = np.append(since[1:], now) - copied
        if not len(moments):
            return Distribution(float(ends[-1]), float(ends[-1]), float(ends[-1]))
        ages = moments - copied[np.searchsorted(since, moments, side="right") - 1]
        p50, p99 = np.percentile(ages, [50, 99]).tolist()
        seen = np.append(since[1:], now) > now - WINDOW_SECONDS
        return Distribution(p50, p99, float(ends[seen].max()))
