"""How fast a run trains and how its loss goes, from what the rounds report."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

WINDOW_SECONDS = 10.0  # over which the speed is measured
LEAST_SECONDS = 0.1  # of less it says nothing
TOGETHER_SECONDS = 0.005  # rounds that a message tells together have come at once
LOSS_SMOOTHING = 0.9


class _Point(NamedTuple):
    """Rounds that were told together."""

    time: float
    fraction: float  # of the work, after them
    samples: int


@dataclass(slots=True)
class Speed:
    loss: float | None = None  # the mean over its terms, smoothed
    points: deque[_Point] = field(default_factory=deque)

    def add(self, now: float, fraction: float, samples: int, weight: float, loss: float) -> None:
        """A round; loss: the sum over its `weight` terms."""
        if self.points and now - self.points[-1].time < TOGETHER_SECONDS:
            last = self.points.pop()
            now, samples = last.time, samples + last.samples
        self.points.append(_Point(now, fraction, samples))
        while len(self.points) > 1 and self.points[0].time < now - WINDOW_SECONDS:
            self.points.popleft()
        if weight:
            mean = loss / weight
            self.loss = mean if self.loss is None else LOSS_SMOOTHING * self.loss + (1 - LOSS_SMOOTHING) * mean

    def pause(self) -> None:
        """Between two membership epochs nobody trains: the time does not count."""
        self.points.clear()

    def samples_per_second(self) -> int | None:
        seconds = self._seconds()
        return int(sum(point.samples for point in list(self.points)[1:]) / seconds) if seconds else None

    def seconds_left(self, fraction: float) -> int | None:
        """Till the end at this speed, when `fraction` of the work is done."""
        seconds = self._seconds()
        done = self.points[-1].fraction - self.points[0].fraction if seconds else 0.0
        return int((1 - fraction) * seconds / done) if done > 0 and fraction < 1 else None

    def _seconds(self) -> float:
        """0 while they are too few."""
        seconds = self.points[-1].time - self.points[0].time if self.points else 0.0
        return seconds if seconds >= LEAST_SECONDS else 0.0
