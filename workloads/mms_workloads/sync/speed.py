"""How fast a run trains and how its loss goes, from what the rounds report."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

WINDOW_SECONDS = 10.0  # over which the speed is measured
LOSS_SMOOTHING = 0.9


class _Round(NamedTuple):
    time: float
    fraction: float  # of the work, after it
    samples: int


@dataclass(slots=True)
class Speed:
    loss: float | None = None  # the mean over its terms, smoothed
    rounds: deque[_Round] = field(default_factory=deque)

    def add(self, now: float, fraction: float, samples: int, weight: float, loss: float) -> None:
        """A round; loss: the sum over its `weight` terms."""
        self.rounds.append(_Round(now, fraction, samples))
        while len(self.rounds) > 1 and self.rounds[0].time < now - WINDOW_SECONDS:
            self.rounds.popleft()
        if weight:
            mean = loss / weight
            self.loss = mean if self.loss is None else LOSS_SMOOTHING * self.loss + (1 - LOSS_SMOOTHING) * mean

    def pause(self) -> None:
        """Between two membership epochs nobody trains: the time does not count."""
        self.rounds.clear()

    def samples_per_second(self) -> int | None:
        seconds = self._seconds()
        return int(sum(r.samples for r in list(self.rounds)[1:]) / seconds) if seconds else None

    def seconds_left(self, fraction: float) -> int | None:
        """Till the end at this speed, when `fraction` of the work is done."""
        seconds = self._seconds()
        done = self.rounds[-1].fraction - self.rounds[0].fraction if seconds else 0.0
        return int((1 - fraction) * seconds / done) if done > 0 and fraction < 1 else None

    def _seconds(self) -> float:
        """0 while there are fewer than the two points that a speed needs."""
        return self.rounds[-1].time - self.rounds[0].time if self.rounds else 0.0
