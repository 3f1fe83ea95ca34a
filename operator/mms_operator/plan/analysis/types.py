"""What an analysis is asked, what it is given, and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

LARGEST_ERROR_MARGIN = 0.5  # beyond it there is little room for a rate that is worse
LARGEST_LATENCY_MARGIN = 100.0
LARGEST_LIMIT = 0.8
LARGEST_ALPHA = 0.5


class Verdict(StrEnum):
    PROMOTE = "Promote"
    ROLLBACK = "Rollback"
    CONTINUE = "Continue"
    PAUSE = "Pause"  # by policy only, once the time is over


class Metric(StrEnum):
    ERRORS = "errors"
    LATENCY = "latency"
    DISAGREEMENT = "disagreement"
    LIVE_INPUTS = "liveInputs"


@dataclass(frozen=True, slots=True)
class Spec:
    """What is asked of a canary. A bound that is None is not asked. ValueError: what makes no sense.

    alpha_rollback: the probability, over the whole rollout and all metrics, that a canary is rolled back that keeps
    each bound. alpha_promote: the probability that one is promoted that breaks one.
    """

    error_margin: float | None = 0.01  # by which the failure rate may be above the stable version's
    latency_margin: float | None = 0.2  # by which a request may take longer: 0.2 is 1.2 times as long
    disagreement_limit: float | None = 0.05  # of the answers that may differ from the stable version's
    live_limit: float | None = None  # the same, of the answers to inputs that clients have sent
    alpha_rollback: float = 0.05
    alpha_promote: float = 0.05
    warmup_intervals: int = 1  # with requests to the canary, that are not counted at first
    block_requests: int = 20  # of each side: intervals are put together until they have so many
    least_blocks: int = 3  # before requests decide; none counts for more than its part of these
    least_requests: int = 50  # to the canary, before they decide
    least_inputs: int = 20  # answered by both, before disagreement decides
    dependence: float = 1.0  # requests that go together count for one: what clients do is worth so much less
    at_end: Verdict = Verdict.PAUSE  # when the time is over and nothing is decided

    def __post_init__(self) -> None:
        for name, value, most in (
            ("error_margin", self.error_margin, LARGEST_ERROR_MARGIN),
            ("latency_margin", self.latency_margin, LARGEST_LATENCY_MARGIN),
            ("disagreement_limit", self.disagreement_limit, LARGEST_LIMIT),
            ("live_limit", self.live_limit, LARGEST_LIMIT),
            ("alpha_rollback", self.alpha_rollback, LARGEST_ALPHA),
            ("alpha_promote", self.alpha_promote, LARGEST_ALPHA),
        ):
            # With a bound of zero no evidence could tell a canary that is just as good.
            if value is not None and not 0 < value <= most:
                raise ValueError(f"{name} is {value}: it is to be above 0 and at most {most:g}")
        for name, number, least in (
            ("warmup_intervals", self.warmup_intervals, 0),
            ("block_requests", self.block_requests, 1),
            ("least_blocks", self.least_blocks, 1),
            ("least_requests", self.least_requests, 1),
            ("least_inputs", self.least_inputs, 1),
        ):
            if number < least:
                raise ValueError(f"{name} is {number}: it is to be at least {least}")
        if not 1 <= self.dependence < math.inf:
            raise ValueError(f"dependence is {self.dependence}: it is to be at least 1")
        if self.at_end is Verdict.CONTINUE:
            raise ValueError("at_end is Continue: when the time is over it is Promote, Rollback or Pause")
        if not self.metrics:
            raise ValueError("no metric is asked: give a margin or a limit")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those that are asked."""
        bounds = (
            (Metric.ERRORS, self.error_margin),
            (Metric.LATENCY, self.latency_margin),
            (Metric.DISAGREEMENT, self.disagreement_limit),
            (Metric.LIVE_INPUTS, self.live_limit),
        )
        return tuple(metric for metric, bound in bounds if bound is not None)

    @property
    def alpha_bad(self) -> float:
        """A metric's part of the false rollbacks: any one of them rolls back, so they share what is allowed.

        A false promotion needs no sharing: all metrics must agree, the one that is violated among them.
        """
        return self.alpha_rollback / len(self.metrics)


@dataclass(frozen=True, slots=True)
class Side:
    """What a version did in an interval: differences of its pods' counters. ValueError: what can't have been."""

    requests: int = 0
    failed: int = 0  # of these requests
    timed: int = 0  # requests that Triton counted the time of: those that succeeded
    seconds: float = 0.0  # that these took in all, in the queue and computing

    def __post_init__(self) -> None:
        for name in ("requests", "failed", "timed", "seconds"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}: after a restart, count from zero instead of handing in less")
        if self.failed > self.requests:
            raise ValueError(f"{self.failed} of {self.requests} requests can't have failed")


@dataclass(frozen=True, slots=True)
class Sample:
    """An interval. Each evaluation input is counted once in a rollout: asking it again tells nothing new.

    own: whether the requests, and those of them that failed, are questions of the agents, of both versions.
    """

    canary: Side = field(default_factory=Side)
    stable: Side = field(default_factory=Side)
    compared: int = 0  # evaluation inputs that both answered
    differing: int = 0  # of these, those that they answered differently
    live_compared: int = 0  # inputs of clients that both answered
    live_differing: int = 0
    own: bool = False

    def __post_init__(self) -> None:
        for differing, compared in (
            (self.differing, self.compared),
            (self.live_differing, self.live_compared),
        ):
            if not 0 <= differing <= compared:
                raise ValueError(f"{differing} of {compared} answers can't differ")


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known about a metric. None: nothing yet.

    canary, stable: failure rates, or seconds a request. estimate: the difference of the rates, the ratio of the times
    (the median of the last blocks), or the rate of different answers; bound: the largest that is allowed. held, broken:
    the confidence, valid at any time, that the bound is kept, or is not. message: for people.
    """

    metric: Metric
    verdict: Verdict
    enough: bool  # whether there is as much as a decision takes at least
    canary: float | None
    stable: float | None
    estimate: float | None
    bound: float
    canary_requests: int  # that count; of disagreement: inputs
    stable_requests: int
    held: float
    broken: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """conclusive: whether the evidence decided, and not the policy. message: for people."""

    verdict: Verdict
    conclusive: bool
    findings: tuple[Finding, ...]
    message: str
