"""How long an analysis takes until it knows, told before it begins. Pure.

It is what it takes if each block brings what blocks bring on average: somewhat more than the median of rollouts, so at
least half of them take less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from mms_operator.plan.analysis import disagreement, errors, latency
from mms_operator.plan.analysis.bets import evidence
from mms_operator.plan.analysis.errors import LATE
from mms_operator.plan.analysis.types import Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mms_operator.plan.analysis.errors import Bettor
    from mms_operator.plan.analysis.types import Spec

    Bets = Iterable[tuple[float, float]]

TWICE = 2.0  # the bound: as bad as a canary is whose rollback is forecast
QUANTILES = 50
MOST = 10**9  # blocks or inputs: that is never
CERTAIN = 0.999


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is expected of an interval."""

    canary_requests: float
    stable_requests: float
    inputs: float = 0.0  # evaluation inputs that both answer
    failure_rate: float = 0.0  # of the stable version
    variation: float = 1.0  # standard deviation of a request's time over its mean, in the stable version
    live_inputs: float = 0.0  # inputs of clients that both answer


@dataclass(frozen=True, slots=True)
class Effort:
    intervals: int
    requests: int  # to the canary; of disagreement: inputs


@dataclass(frozen=True, slots=True)
class Forecast:
    """About what it takes. None: there is no end to it at such traffic. message: for people."""

    metric: Metric
    promote: Effort | None  # of a canary that is like the stable version
    rollback: Effort | None  # of one for which the bound is to be twice as large
    message: str


def forecast(spec: Spec, traffic: Traffic) -> tuple[Forecast, ...]:
    """For each metric that is asked."""
    requests = min(traffic.canary_requests, traffic.stable_requests)
    ways = {
        Metric.ERRORS: (_errors, requests),
        Metric.LATENCY: (_latency, requests),
        Metric.DISAGREEMENT: (_disagreement, traffic.inputs),
        Metric.LIVE_INPUTS: (_live, traffic.live_inputs),
    }
    found = []
    for metric in spec.metrics:
        way, number = ways[metric]
        found.append(_worded(metric, *way(spec, traffic)) if number > 0 else _worded(metric, None, None))
    return tuple(found)


def _errors(spec: Spec, traffic: Traffic) -> tuple[Effort | None, Effort | None]:
    margin, rate = spec.error_margin or 0.0, traffic.failure_rate
    worse = min(rate + TWICE * margin, CERTAIN)
    promote, rollback = spec.alpha_promote, spec.alpha_bad / LATE
    return (
        _requests(spec, traffic, promote, _rates(spec, traffic, errors.good_bettors(margin), promote, rate)),
        _requests(spec, traffic, rollback, _rates(spec, traffic, errors.bad_bettors(margin), rollback, worse)),
    )


def _rates(spec: Spec, traffic: Traffic, bettors: Sequence[Bettor], alpha: float, canary_rate: float) -> Bets:
    """Of each bettor the part of the capital, and what a block brings on average."""
    canary, stable, rate = traffic.canary_requests, traffic.stable_requests, traffic.failure_rate
    intervals = _intervals(spec, traffic)
    for bettor, need in zip(bettors, errors.needs(bettors, alpha), strict=True):
        stake = errors.stakes(bettor, spec.error_margin or 0.0, canary, stable)
        gain = canary * (canary_rate * stake.canary_failed + (1 - canary_rate) * stake.canary_succeeded)
        gain += stable * (rate * stake.stable_failed + (1 - rate) * stake.stable_succeeded)
        yield bettor.part, min(intervals * gain / spec.dependence, need / spec.least_blocks)


def _latency(spec: Spec, traffic: Traffic) -> tuple[Effort | None, Effort | None]:
    margin = spec.latency_margin or 0.0
    worse = math.log1p(TWICE * margin) - math.log1p(margin)
    return (
        _requests(spec, traffic, spec.alpha_promote, _times(spec, traffic, math.log1p(margin))),
        _requests(spec, traffic, spec.alpha_bad / LATE, _times(spec, traffic, worse)),
    )


def _times(spec: Spec, traffic: Traffic, beyond: float) -> Bets:
    """The same of a log ratio that is so far beyond the bound on average, with normal noise."""
    square = traffic.variation**2 / _intervals(spec, traffic)
    noise = math.sqrt(sum(math.log1p(square / n) for n in (traffic.canary_requests, traffic.stable_requests)))
    quantiles = [NormalDist().inv_cdf((i + 0.5) / QUANTILES) for i in range(QUANTILES)]
    gains = [latency.gains(spec, spec.latency_margin or 0.0, beyond + noise * quantile) for quantile in quantiles]
    return zip(latency.PARTS, [math.fsum(column) / QUANTILES for column in zip(*gains, strict=True)], strict=True)


def _disagreement(spec: Spec, traffic: Traffic) -> tuple[Effort | None, Effort | None]:
    return _answers(spec, spec.disagreement_limit or 0.0, traffic.inputs)


def _live(spec: Spec, traffic: Traffic) -> tuple[Effort | None, Effort | None]:
    return _answers(spec, spec.live_limit or 0.0, traffic.live_inputs, spec.dependence)


def _answers(spec: Spec, limit: float, inputs: float, dependence: float = 1.0) -> tuple[Effort | None, Effort | None]:
    """inputs: in an interval."""
    good = zip(disagreement.GOOD_PARTS, disagreement.good_rates(limit), strict=True)
    bad = zip(disagreement.BAD_PARTS, disagreement.bad_rates(limit), strict=True)
    worse = min(TWICE * limit, CERTAIN)
    return (
        _inputs(spec, inputs, spec.alpha_promote, ((p, _likelihood(limit, bet, 0.0) / dependence) for p, bet in good)),
        _inputs(spec, inputs, spec.alpha_bad, ((p, _likelihood(limit, bet, worse) / dependence) for p, bet in bad)),
    )


def _likelihood(limit: float, bet: float, rate: float) -> float:
    return rate * math.log(bet / limit) + (1 - rate) * math.log((1 - bet) / (1 - limit))


def _requests(spec: Spec, traffic: Traffic, alpha: float, bets: Bets) -> Effort | None:
    blocks = _least(bets, alpha)
    if blocks is None:
        return None
    per_block = _intervals(spec, traffic)
    blocks = max(blocks, spec.least_blocks, math.ceil(spec.least_requests / per_block / traffic.canary_requests))
    intervals = spec.warmup_intervals + blocks * per_block
    return Effort(intervals, math.ceil(intervals * traffic.canary_requests))


def _inputs(spec: Spec, per_interval: float, alpha: float, bets: Bets) -> Effort | None:
    inputs = _least(bets, alpha)
    if inputs is None:
        return None
    inputs = max(inputs, spec.least_inputs)
    return Effort(math.ceil(inputs / per_interval), inputs)


def _least(bets: Bets, alpha: float) -> int | None:
    """After how many times the same gains all capital together refutes the claim. None: never."""
    parts, gains = zip(*bets, strict=True)
    low, high = 0, 1
    while evidence(parts, [high * gain for gain in gains]) < -math.log(alpha):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > 1:
        number = (low + high) // 2
        enough = evidence(parts, [number * gain for gain in gains]) >= -math.log(alpha)
        low, high = (low, number) if enough else (number, high)
    return high


def _intervals(spec: Spec, traffic: Traffic) -> int:
    """That are put together to a block."""
    return math.ceil(spec.block_requests / min(traffic.canary_requests, traffic.stable_requests))


def _worded(metric: Metric, promote: Effort | None, rollback: Effort | None) -> Forecast:
    what = "inputs" if metric in {Metric.DISAGREEMENT, Metric.LIVE_INPUTS} else "requests to the canary"
    good, bad = _effort(promote, what), _effort(rollback, what)
    message = f"{metric}: {good} if the canary is like the stable version, {bad} if it is twice as bad as is allowed"
    return Forecast(metric, promote, rollback, message)


def _effort(effort: Effort | None, what: str) -> str:
    if effort is None:
        return "never"
    return f"about {effort.intervals:,} intervals ({effort.requests:,} {what})"
