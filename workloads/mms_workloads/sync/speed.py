"""How fast a run trains and how its loss goes, from what the rounds report."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_SECONDS = 10.0  # over which words per second are measured
LOSS_SMOOTHING = 0.9


@dataclass(slots=True)
class Speed:
    loss: float | None = None  # per pair, smoothed
    rounds: deque[tuple[float, int]] = field(default_factory=deque)  # when, words

    def add(self, now: float, words: int, pairs: float, loss: float) -> None:
        """A round; loss: the sum over its pairs."""
        self.rounds.append((now, words))
        while len(self.rounds) > 1 and self.rounds[0][0] < now - WINDOW_SECONDS:
            self.rounds.popleft()
        if pairs:
            mean = loss / pairs
            self.loss = mean if self.loss is None else LOSS_SMOOTHING * self.loss + (1 - LOSS_SMOOTHING) * mean

    def pause(self) -> None:
        """Between two membership epochs nobody trains: the time does not count."""
        self.rounds.clear()

    def words_per_second(self) -> int | None:
        if len(self.rounds) < 2:  # noqa: PLR2004 - a speed needs two points
            return None
        seconds = self.rounds[-1][0] - self.rounds[0][0]
        return int(sum(words for _, words in list(self.rounds)[1:]) / seconds) if seconds else None
