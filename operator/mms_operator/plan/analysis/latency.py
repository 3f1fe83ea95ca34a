"""Whether a request takes longer in the canary than in the stable version, by more than a margin. Pure.

Of a block the mean times are known, not their spread. What is looked at is the logarithm of their ratio: what makes
both slower at a time cancels, and no unit or level is left. Bettors multiply their capital by 1 + c tanh(k y), y being
how far the logarithm is beyond the margin's. This is fair whenever y is distributed symmetrically around 0 or around
less: the spread need neither be known nor stay the same, tails may be heavy, and no block more than doubles what speaks
against the canary (de la Pena, 1999; Vovk and Wang, 2024: e-tests of symmetry). Of normal noise it takes about as many
blocks as the t-test that is valid at any time (Wang and Ramdas, 2024; Perez-Ortiz et al., 2024), save where that one
is done with three or four.

Assumed is that blocks are independent, and that a block's logarithm is symmetric around that of the ratio of the true
means. It is not quite: the logarithm of the mean of n times is too low by cv^2 / 2n on average, cv being the standard
deviation of a single time over its mean. With as many requests on both sides this cancels; else it is made up for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from mms_operator.plan.analysis.bets import evidence, evidence_late, grown, grown_late

if TYPE_CHECKING:
    from mms_operator.plan.analysis.types import Side, Spec

STEEPNESS = (0.25, 1.5, 9.0)  # over the logarithm of 1 + margin: from much noise to little
PARTS = (1 / 3, 1 / 3, 1 / 3)  # of the capital
STAKE = 0.9  # nobody stakes all: a block in which one side was held up for once is survived
PRIOR_VARIATION = 2.0  # cv^2, assumed at first: 1 if times are exponential, 1.7 if lognormal with sigma 1
PRIOR_BLOCKS = 2.0  # that it counts for
LARGEST_VARIATION = 10.0  # cv^2 that one block can show: one that was held up for once says little about others
RECENT = 9  # blocks whose median is told
SHORTEST = 1e-9  # seconds: Triton counts nanoseconds


class Times(NamedTuple):
    """Requests whose time is known, and their seconds in all."""

    canary: int = 0
    canary_seconds: float = 0.0
    stable: int = 0
    stable_seconds: float = 0.0


NOTHING = Times()


@dataclass(frozen=True, slots=True)
class Latency:
    """What is carried on. good, bad: logarithms of the capitals of those who bet on a good canary, and on a bad one.

    recent: the log ratios of the last blocks. weight: of the last one, 1 / (1 / canary's requests + 1 / stable's): the
    variance of its ratio is cv^2 over that. squares: the sum of the cv^2 that each block after the first shows by its
    distance from the one before.
    """

    margin: float
    blocks: int = 0
    pending: Times = NOTHING
    counted: Times = NOTHING
    recent: tuple[float, ...] = ()
    weight: float = 0.0
    squares: float = 0.0
    good: tuple[float, ...] = ()
    bad: tuple[float, ...] = ()

    @property
    def ratio(self) -> float | None:
        """Of the times, typically: the median of the last blocks."""
        return math.exp(median(self.recent)) if self.recent else None


def fold(spec: Spec, latency: Latency, canary: Side, stable: Side) -> Latency:
    """With an interval's times. Without any on one side there is nothing to compare: it is left out."""
    if not (canary.timed and stable.timed):
        return latency
    block = _sum(latency.pending, Times(canary.timed, canary.seconds, stable.timed, stable.seconds))
    if min(block.canary, block.stable) < spec.block_requests:
        return replace(latency, pending=block)
    ratio = math.log(_mean(block.canary_seconds, block.canary) / _mean(block.stable_seconds, block.stable))
    allowed = math.log1p(latency.margin)
    low = shortfall(latency, block.canary, block.stable)
    # The variation is an estimate: so it may only make it harder for those who bet.
    good = gains(spec, latency.margin, allowed - ratio - max(0.0, low))
    bad = gains(spec, latency.margin, ratio + min(0.0, low) - allowed)
    blocks = latency.blocks + 1
    weight = 1 / (1 / block.canary + 1 / block.stable)
    return Latency(
        latency.margin,
        blocks,
        counted=_sum(latency.counted, block),
        recent=(*latency.recent, ratio)[-RECENT:],
        weight=weight,
        squares=latency.squares + _variation(latency, ratio, weight),
        good=grown(latency.good, good),
        bad=grown_late(latency.bad, bad, blocks),
    )


def held(latency: Latency) -> float:
    """Logarithm of the evidence that a request takes less than 1 + margin times as long."""
    return evidence(PARTS, latency.good)


def broken(latency: Latency) -> float:
    """Logarithm of the evidence that it takes longer than that."""
    return evidence_late(PARTS, latency.bad, latency.blocks)


def gains(spec: Spec, margin: float, beyond: float) -> list[float]:
    """What a block does to the capitals' logarithms that is so far on the side that is bet on."""
    scale = math.log1p(margin)
    return [math.log1p(STAKE * math.tanh(steepness / scale * beyond)) / spec.dependence for steepness in STEEPNESS]


def shortfall(latency: Latency, requests: int, stable_requests: int) -> float:
    """By how much the log ratio of so many requests' means is too low on average, by what was seen before."""
    seen = max(0, latency.blocks - 1)
    variation = (PRIOR_BLOCKS * PRIOR_VARIATION + latency.squares) / (PRIOR_BLOCKS + seen)
    return variation / 2 * (1 / requests - 1 / stable_requests)


def _variation(latency: Latency, ratio: float, weight: float) -> float:
    """cv^2 as the distance of two blocks shows it, whose variances are cv^2 over their weights."""
    if not latency.recent:
        return 0.0
    square = (ratio - latency.recent[-1]) ** 2 / (1 / weight + 1 / latency.weight)
    return min(square, LARGEST_VARIATION)


def _mean(seconds: float, requests: int) -> float:
    return max(seconds, SHORTEST) / requests


def _sum(one: Times, other: Times) -> Times:
    return Times(
        one.canary + other.canary,
        one.canary_seconds + other.canary_seconds,
        one.stable + other.stable,
        one.stable_seconds + other.stable_seconds,
    )
