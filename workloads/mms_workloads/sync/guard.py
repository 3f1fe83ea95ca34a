"""What counts as an anomaly of training. Pure: all ranks and all shards that see the same decide the same.

Robust statistics throughout (Rousseeuw and Croux, 1993): a median and the median absolute deviation are not moved by
the very values that they are to find.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_workloads.contract import Guard

SIGMA = 1.4826  # a normal distribution's standard deviation in median absolute deviations
WINDOW = 64  # values that a history looks back over
LEARNED = 16  # of them before it judges: the first steps of a model change fast
# A gradient is an outlier beyond this many times the usual. Batches of one data set differ by less than 3; what does
# harm is larger by orders of magnitude.
OUTLIER = 10.0
DEVIATIONS = 10.0
PAIR = 2
SPIKE = 0.5  # of the usual loss on top of it, at least


class Verdict(StrEnum):
    GOOD = "Good"
    NOT_FINITE = "NonFinite"
    OUTLIER = "GradientOutlier"


@dataclass(frozen=True, slots=True)
class Sign:
    """What one rank's contribution to a step looks like."""

    samples: int
    norm: float  # of its gradient, summed over its samples
    finite: bool = True
    suspected: bool = False  # by the rank itself: far beyond its own history


@dataclass(slots=True)
class History:
    """The last values of one quantity that were found good."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def add(self, value: float) -> None:
        """What is not finite says nothing of what is usual."""
        if math.isfinite(value):
            self.values.append(value)

    def median(self) -> float | None:
        """Of the latest LEARNED, so that it follows a trend; None before it has learned."""
        return statistics.median(list(self.values)[-LEARNED:]) if len(self.values) >= LEARNED else None

    def excess(self, value: float) -> float | None:
        """How far the value is above the median, in standard deviations; None before it has learned."""
        median = self.median()
        if median is None:
            return None
        # From one value to the next (von Neumann et al., 1941): a loss that falls is not spread, it moves.
        steps = [abs(b - a) for a, b in itertools.pairwise(self.values)]
        deviation = SIGMA * statistics.median(steps) / math.sqrt(2)
        return (value - median) / max(deviation, 1e-12)


def scales(norm: float, samples: int) -> tuple[float, float]:
    """What norms of different numbers of samples are compared by, for at least one sample.

    The sum of n gradients grows by n where they agree and by the root of n where they are noise. Only what is too large
    by both is out of the ordinary: the last, short block of a file is too large by one of them.
    """
    return norm / samples, norm / math.sqrt(samples)


def suspicious(histories: Sequence[History], norm: float, samples: int) -> bool:
    """histories: of the logarithms of the rank's own `scales`. Its part of the outlier rule."""
    return all(map(_far, histories, scales(norm, samples)))


def _far(history: History, value: float) -> bool:
    excess, median = history.excess(log(value)), history.median()
    return excess is not None and median is not None and excess > DEVIATIONS and log(value) - median > log(OUTLIER)


def judge(signs: Sequence[Sign], guard: Guard) -> list[Verdict]:
    """Whose gradients go into the parameters, by rank.

    With three ranks and more the median says what is usual, the upper one of two. With two there is no majority: a rank
    is the odd one when it finds itself beyond its own history and the other does not. One rank alone is compared with
    nobody: what gets worse then is found by the loss. What all ranks see at once is no outlier of one.
    """
    verdicts = [Verdict.GOOD if sign.finite else Verdict.NOT_FINITE for sign in signs]
    if guard.gradientOutlier == "Off":
        return verdicts
    there = [i for i, sign in enumerate(signs) if sign.finite and sign.samples]
    if len(there) == PAIR:
        odd = [i for i in there if signs[i].suspected]
        odd = odd if len(odd) == 1 else []
    else:
        odd = _beyond([scales(signs[i].norm, signs[i].samples) for i in there], there)
    return [Verdict.OUTLIER if i in odd else verdict for i, verdict in enumerate(verdicts)]


def _beyond(values: Sequence[tuple[float, float]], positions: Sequence[int]) -> list[int]:
    """Where nothing is usual, as the change of most is none at all, nothing is beyond it."""
    usual = [statistics.median_high(each) for each in zip(*values, strict=True)]
    return [
        i
        for i, value in zip(positions, values, strict=True)
        if all(0 < OUTLIER * typical < one for typical, one in zip(usual, value, strict=True))
    ]


def included(verdict: Verdict, guard: Guard) -> bool:
    return verdict is Verdict.GOOD or (verdict is Verdict.OUTLIER and guard.gradientOutlier == "Report")


@dataclass(frozen=True, slots=True)
class Parting:
    """Ranks that should hold the same do not. odd: positions of those that the majority outvotes."""

    odd: frozenset[int]
    majority: bool  # False: nobody knows who is right


def compare(checksums: Sequence[int]) -> Parting | None:
    """None when all are equal. By position; the majority is more than half."""
    value, count = Counter(checksums).most_common(1)[0]
    if count == len(checksums):
        return None
    if 2 * count <= len(checksums):
        return Parting(frozenset(range(len(checksums))), majority=False)
    return Parting(frozenset(i for i, c in enumerate(checksums) if c != value), majority=True)


def spiked(losses: History, loss: float) -> bool:
    """Whether a step's loss is far above what it was."""
    if not math.isfinite(loss):
        return losses.median() is not None
    excess, median = losses.excess(loss), losses.median()
    return excess is not None and median is not None and excess > DEVIATIONS and loss - median > SPIKE * abs(median)


def log(value: float) -> float:
    return math.log(max(value, 1e-30)) if math.isfinite(value) else math.inf
