"""Many analyses at a time, in numpy: the same arithmetic as the functions that the operator calls.

`agrees` proves it, run by run: verdicts and evidence are compared with those of `sequential.decide`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mms_operator.plan.analysis import disagreement, errors, latency
from mms_operator.plan.analysis.bets import DIGITS
from mms_operator.plan.analysis.sequential import Memory, decide
from mms_operator.plan.analysis.types import Sample, Side, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mms_operator.plan.analysis.types import Metric, Spec

    Numbers = NDArray[np.float64]

NEVER = 10_000
LETTERS = {Verdict.PROMOTE: 1, Verdict.ROLLBACK: -1, Verdict.CONTINUE: 0}


@dataclass(frozen=True)
class Outcome:
    """good, bad: logarithms of the evidence; verdicts: 1, -1 or 0. Each of shape (runs, intervals)."""

    good: Numbers
    bad: Numbers
    verdicts: NDArray[np.int8]

    @property
    def first(self) -> NDArray[np.int8]:
        """What ends each run, or 0."""
        return np.where(self.at < NEVER, np.take_along_axis(self.verdicts, self.index[:, None], 1)[:, 0], 0)

    @property
    def index(self) -> NDArray[np.intp]:
        return (self.verdicts != 0).argmax(axis=1)

    @property
    def at(self) -> NDArray[np.intp]:
        """The interval that ends each run, counted from 1, or NEVER."""
        return np.where((self.verdicts != 0).any(axis=1), self.index + 1, NEVER)

    def share(self, verdict: Verdict) -> float:
        return float((self.first == LETTERS[verdict]).mean())

    def median(self, verdict: Verdict) -> int:
        """Intervals to it; NEVER if less than half of the runs come to it."""
        return int(np.median(np.where(self.first == LETTERS[verdict], self.at, NEVER)))


def run_errors(
    spec: Spec,
    canary: Sequence[int],
    stable: Sequence[int],
    failed: NDArray[np.int64],
    stable_failed: NDArray[np.int64],
) -> Outcome:
    """canary, stable: requests in each interval, a block each. failed, stable_failed: of shape (runs, intervals)."""
    margin = spec.error_margin or 0.0
    sides = (
        (errors.good_bettors(margin), spec.alpha_promote, False),
        (errors.bad_bettors(margin), spec.alpha_bad / errors.LATE, True),
    )
    found = []
    for bettors, alpha, late in sides:
        ceilings = np.array(errors.needs(bettors, alpha)) / spec.least_blocks
        parts = np.array([bettor.part for bettor in bettors])
        stakes = {
            pair: np.array([errors.stakes(bettor, margin, *pair) for bettor in bettors])
            for pair in set(zip(canary, stable, strict=True))
        }
        gains = []
        for t, (n, m) in enumerate(zip(canary, stable, strict=True)):
            stake, one, other = stakes[n, m], failed[:, t, None], stable_failed[:, t, None]
            # In the order in which it is added up there: so rounding is the same, too.
            gain = one * stake[:, 0] + (n - one) * stake[:, 1]
            gain = gain + other * stake[:, 2] + (m - other) * stake[:, 3]
            gains.append(np.minimum(gain / spec.dependence, ceilings))
        found.append(_evidence(parts, gains, late=late))
    return _judged(spec, *found, _enough(spec, canary))


def run_latency(
    spec: Spec, canary: Sequence[int], stable: Sequence[int], means: Numbers, stable_means: Numbers
) -> Outcome:
    """canary, stable: requests in each interval, a block each. Means in seconds, of shape (runs, intervals)."""
    margin = spec.latency_margin or 0.0
    ratios = np.log(means / stable_means)
    squares = np.zeros(len(ratios))
    good, bad = [], []
    for t, (n, m) in enumerate(zip(canary, stable, strict=True)):
        ratio = ratios[:, t]
        variation = (latency.PRIOR_BLOCKS * latency.PRIOR_VARIATION + squares) / (latency.PRIOR_BLOCKS + max(0, t - 1))
        low = variation / 2 * (1 / n - 1 / m)
        for gains, beyond in (
            (good, math.log1p(margin) - ratio - np.maximum(low, 0)),
            (bad, ratio + np.minimum(low, 0) - math.log1p(margin)),
        ):
            steep = np.array(latency.STEEPNESS) / math.log1p(margin)
            gains.append(np.log1p(latency.STAKE * np.tanh(steep * beyond[:, None])) / spec.dependence)
        if t:
            spread = 1 / n + 1 / m + 1 / canary[t - 1] + 1 / stable[t - 1]
            squares += np.minimum((ratio - ratios[:, t - 1]) ** 2 / spread, latency.LARGEST_VARIATION)
    parts = np.array(latency.PARTS)
    found = _evidence(parts, good, late=False), _evidence(parts, bad, late=True)
    return _judged(spec, *found, _enough(spec, canary))


def run_disagreement(
    spec: Spec,
    compared: Sequence[int],
    differing: NDArray[np.int64],
    limit: float | None = None,
    dependence: float = 1.0,
) -> Outcome:
    """compared: inputs in each interval. differing: of shape (runs, intervals). dependence: inputs that are as one."""
    limit = limit or spec.disagreement_limit or 0.0
    total, differ = np.cumsum(compared), np.cumsum(differing, axis=1)[:, :, None]
    found = []
    for bets, parts in (
        (disagreement.good_rates(limit), disagreement.GOOD_PARTS),
        (disagreement.bad_rates(limit), disagreement.BAD_PARTS),
    ):
        rates = np.array(bets)
        ratios = differ * np.log(rates / limit) + (total[:, None] - differ) * np.log((1 - rates) / (1 - limit))
        found.append(np.logaddexp.reduce(ratios / dependence + np.log(parts), axis=2))
    return _judged(spec, *found, total >= spec.least_inputs)


def agrees(spec: Spec, metric: Metric, samples: Iterator[Sample], outcome: Outcome, run: int) -> bool:
    """Whether `decide` comes to the same, look by look, until it ends the run. The spec is without a warm-up."""
    memory = Memory()
    for t, sample in enumerate(samples):
        memory, decision = decide(spec, memory, sample)
        finding = next(finding for finding in decision.findings if finding.metric is metric)
        evidence = [-math.expm1(-max(0.0, float(side[run, t]))) for side in (outcome.good, outcome.bad)]
        same = np.allclose([finding.held, finding.broken], evidence, rtol=0, atol=1e-6)
        if not same or LETTERS[finding.verdict] != outcome.verdicts[run, t]:
            return False
        if finding.verdict is not Verdict.CONTINUE:
            return True
    return True


def of_errors(
    canary: Sequence[int], stable: Sequence[int], failed: NDArray[np.int64], stable_failed: NDArray[np.int64]
) -> Iterator[Sample]:
    """One run's samples."""
    for n, k, m, j in zip(canary, failed.tolist(), stable, stable_failed.tolist(), strict=True):
        yield Sample(Side(n, k), Side(m, j))


def of_latency(canary: Sequence[int], stable: Sequence[int], means: Numbers, stable_means: Numbers) -> Iterator[Sample]:
    for n, one, m, other in zip(canary, means.tolist(), stable, stable_means.tolist(), strict=True):
        yield Sample(Side(n, 0, n, n * one), Side(m, 0, m, m * other))


def _evidence(parts: Numbers, gains: Sequence[Numbers], *, late: bool) -> Numbers:
    capitals = np.full(gains[0].shape, -np.inf if late else 0.0)
    found = np.empty((len(capitals), len(gains)))
    for t, gain in enumerate(gains, 1):
        if late:
            # No capital comes near to what a float can't hold: a block brings a part of what is needed at most.
            capitals = np.log(np.exp(capitals) + 1 / (t * (t + 1)))
        capitals = np.floor((capitals + gain) * DIGITS) / DIGITS
        if late:
            found[:, t - 1] = np.log(np.exp(capitals) @ parts + 1 / (t + 1))
        else:
            most = capitals.max(axis=1)
            found[:, t - 1] = most + np.log(np.exp(capitals - most[:, None]) @ parts)
    return found


def _enough(spec: Spec, canary: Sequence[int]) -> NDArray[np.bool_]:
    blocks = np.arange(1, len(canary) + 1) >= spec.least_blocks
    return blocks & (np.cumsum(canary) >= spec.least_requests)


def _judged(spec: Spec, good: Numbers, bad: Numbers, enough: NDArray[np.bool_]) -> Outcome:
    promote = (good >= -math.log(spec.alpha_promote)) & (bad <= 0)
    rollback = bad >= -math.log(spec.alpha_bad)
    verdicts = np.where(enough, np.where(rollback, -1, np.where(promote, 1, 0)), 0)
    return Outcome(good, bad, verdicts.astype(np.int8))
