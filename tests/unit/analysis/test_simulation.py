"""Ten thousand rollouts of each kind: how often the wrong verdict ends them, how often and how soon the right one does.

The runs are vectorised; of each kind some are gone through with `decide` itself, which must come to the same at each
look. A rate is below what is stated only if it is by three standard errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mms_operator.plan.analysis.sequential import Memory, decide
from mms_operator.plan.analysis.types import Metric, Sample, Side, Spec, Verdict
from tests.unit.analysis.vectorised import (
    LETTERS,
    Outcome,
    agrees,
    of_errors,
    of_latency,
    run_disagreement,
    run_errors,
    run_latency,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Noise = Callable[[np.random.Generator], NDArray[np.float64]]

RUNS, LOOKS, FEWER = 10_000, 60, 40
ERRORS = Spec(latency_margin=None, disagreement_limit=None, warmup_intervals=0)
LATENCY = Spec(error_margin=None, disagreement_limit=None, warmup_intervals=0)
DISAGREEMENT = Spec(error_margin=None, latency_margin=None)
LIVE = Spec(error_margin=None, latency_margin=None, disagreement_limit=None, live_limit=0.05)
ALPHA = 0.05
MARGIN, BOUND = 0.01, math.log(1.2)
TIME = np.arange(LOOKS)
VARYING = 0.002 + 0.05 * (1 + np.sin(TIME / 3))  # a failure rate that goes up and down
SHARES = [20] * 20 + [100] * 20 + [180] * 20  # of 200 requests, as a canary gets more of them


def at_most(share: float, stated: float) -> bool:
    return share + 3 * math.sqrt(max(share, 1 / RUNS) * (1 - share) / RUNS) <= stated


def some(outcome: Outcome) -> list[int]:
    """Runs that are gone through one by one: the first two, and the first two that come to each verdict."""
    ended = [np.flatnonzero(outcome.first == letter)[:2].tolist() for letter in LETTERS.values()]
    return sorted({0, 1, *(run for runs in ended for run in runs)})


def errors(
    canary_rate: float | NDArray[np.float64],
    stable_rate: float | NDArray[np.float64],
    requests: tuple[int, int] | None = (50, 450),
    *,
    spec: Spec = ERRORS,
    looks: int = LOOKS,
    together: int = 1,
) -> Outcome:
    """requests: of canary and stable version in each interval. None: of 200, as many as SHARES says.

    together: how many requests fail or succeed as one.
    """
    chance = np.random.default_rng(1)
    canary, stable = ([n] * looks for n in requests) if requests else (SHARES, SHARES[::-1])
    failed = together * chance.binomial(np.array(canary) // together, canary_rate, (RUNS, looks))
    stable_failed = together * chance.binomial(np.array(stable) // together, stable_rate, (RUNS, looks))
    outcome = run_errors(spec, canary, stable, failed, stable_failed)
    for run in some(outcome):
        samples = of_errors(canary, stable, failed[run], stable_failed[run])
        assert agrees(spec, Metric.ERRORS, samples, outcome, run)
    return outcome


def latency(
    ratio: float | NDArray[np.float64],
    noise: Noise,
    requests: tuple[int, int] = (1000, 1000),
    spec: Spec = LATENCY,
) -> Outcome:
    """noise: of the blocks' log ratios. requests: of canary and stable version in each interval."""
    means = ratio * np.exp(noise(np.random.default_rng(2)))
    ones = np.ones_like(means)
    canary, stable = ([n] * means.shape[1] for n in requests)
    outcome = run_latency(spec, canary, stable, means, ones)
    for run in some(outcome):
        samples = of_latency(canary, stable, means[run], ones[run])
        assert agrees(spec, Metric.LATENCY, samples, outcome, run)
    return outcome


def normal(sigma: float) -> Noise:
    return lambda chance: sigma * chance.normal(size=(RUNS, LOOKS))


def heavy(sigma: float) -> Noise:
    """Student's t with three degrees of freedom."""
    return lambda chance: sigma * chance.standard_t(3, size=(RUNS, LOOKS))


def lasting(sigma: float, correlation: float) -> Noise:
    """Each block has something of the one before."""

    def noise(chance: np.random.Generator) -> NDArray[np.float64]:
        found = chance.normal(size=(RUNS, LOOKS))
        for t in range(1, LOOKS):
            found[:, t] = correlation * found[:, t - 1] + math.sqrt(1 - correlation**2) * found[:, t]
        return sigma * found

    return noise


def changing(chance: np.random.Generator) -> NDArray[np.float64]:
    """Quiet and noisy times in turn."""
    return np.where(TIME % 20 < 10, 0.05, 0.4) * chance.normal(size=(RUNS, LOOKS))


def hiccups(chance: np.random.Generator) -> NDArray[np.float64]:
    """One block in twenty takes the canary about five times as long."""
    noise = 0.1 * chance.normal(size=(RUNS, LOOKS))
    return np.where(chance.random((RUNS, LOOKS)) < 0.05, noise + math.log(5), noise)


def requests(sigma: float, canary: int, stable: int, looks: int = 30) -> Noise:
    """Means of lognormal times of single requests; of the stable version's many the mean is as good as gamma."""

    def noise(chance: np.random.Generator) -> NDArray[np.float64]:
        means = np.empty((RUNS, looks))
        for t in range(looks):
            means[:, t] = np.exp(sigma * chance.standard_normal((RUNS, canary), dtype=np.float32)).mean(axis=1)
        square = math.expm1(sigma**2)
        others = chance.gamma(stable / square, square / stable, (RUNS, looks)) * math.exp(sigma**2 / 2)
        return np.log(means / others)

    return noise


def disagreement(rate: float, inputs: int) -> Outcome:
    differing = np.random.default_rng(3).binomial(inputs, rate, (RUNS, LOOKS))
    outcome = run_disagreement(DISAGREEMENT, [inputs] * LOOKS, differing)
    for run in some(outcome):
        samples = (Sample(compared=inputs, differing=k) for k in differing[run].tolist())
        assert agrees(DISAGREEMENT, Metric.DISAGREEMENT, samples, outcome, run)
    return outcome


def live(rate: float, inputs: int, *, spec: Spec = LIVE, together: int = 1) -> Outcome:
    """Inputs of clients, of which so many are always answered alike."""
    differing = together * np.random.default_rng(4).binomial(inputs // together, rate, (RUNS, LOOKS))
    outcome = run_disagreement(spec, [inputs] * LOOKS, differing, spec.live_limit, spec.dependence)
    for run in some(outcome):
        samples = (Sample(live_compared=inputs, live_differing=k) for k in differing[run].tolist())
        assert agrees(spec, Metric.LIVE_INPUTS, samples, outcome, run)
    return outcome


@dataclass(frozen=True)
class Boundary:
    """A canary that is exactly as bad as is allowed: both verdicts are false then, and both are to be rare."""

    name: str
    run: Callable[[], Outcome]
    stated: float = ALPHA


BOUNDARIES = [
    Boundary("errors, stable 0.1 %", partial(errors, 0.011, 0.001)),
    Boundary("errors, stable 5 %", partial(errors, 0.06, 0.05)),
    Boundary("errors, stable none, as many requests", partial(errors, 0.01, 0.0, (200, 200))),
    Boundary("errors, stable 1 %, few requests", partial(errors, 0.02, 0.01, (20, 20))),
    Boundary("errors, rate and share change", partial(errors, VARYING + MARGIN, VARYING, None)),
    Boundary("latency, sigma 0.02", partial(latency, 1.2, normal(0.02))),
    Boundary("latency, sigma 0.1", partial(latency, 1.2, normal(0.1))),
    Boundary("latency, sigma 0.4", partial(latency, 1.2, normal(0.4))),
    Boundary("latency, sigma 1", partial(latency, 1.2, normal(1.0))),
    Boundary("latency, heavy tails", partial(latency, 1.2, heavy(0.2))),
    Boundary("latency, quiet and noisy times", partial(latency, 1.2, changing)),
    Boundary("latency, lognormal requests, sigma 0.5", partial(latency, 1.2, requests(0.5, 20, 180), (20, 180))),
    Boundary("latency, lognormal requests, sigma 1", partial(latency, 1.2, requests(1.0, 20, 180), (20, 180))),
    # What is assumed does not hold: this is what that costs, and what it takes to make up for it.
    Boundary("errors, two fail together", partial(errors, 0.011, 0.001, together=2), 0.25),
    Boundary(
        "errors, five fail together, dependence 5",
        partial(errors, 0.011, 0.001, together=5, spec=replace(ERRORS, dependence=5.0)),
    ),
    Boundary(
        "latency, correlation 0.3, dependence 2",
        partial(latency, 1.2, lasting(0.2, 0.3), spec=replace(LATENCY, dependence=2.0)),
    ),
    Boundary("latency, lognormal requests, sigma 1.5", partial(latency, 1.2, requests(1.5, 20, 180), (20, 180)), 0.1),
    Boundary("latency, correlation 0.2", partial(latency, 1.2, lasting(0.2, 0.2)), 0.1),
    Boundary("latency, correlation 0.3", partial(latency, 1.2, lasting(0.2, 0.3)), 0.15),
    Boundary("disagreement, 5 inputs", partial(disagreement, 0.05, 5)),
    Boundary("disagreement, 50 inputs", partial(disagreement, 0.05, 50)),
    Boundary("live inputs, 10 an interval", partial(live, 0.05, 10)),
    Boundary("live inputs, two are alike", partial(live, 0.05, 4, together=2), 0.25),
    Boundary(
        "live inputs, five are alike, dependence 5",
        partial(live, 0.05, 10, together=5, spec=replace(LIVE, dependence=5.0)),
    ),
]


@pytest.mark.parametrize("case", BOUNDARIES, ids=lambda case: case.name)
def test_at_the_boundary_each_verdict_is_as_rare_as_stated(case: Boundary) -> None:
    outcome = case.run()
    assert at_most(outcome.share(Verdict.PROMOTE), case.stated)
    assert at_most(outcome.share(Verdict.ROLLBACK), case.stated)
    assert outcome.share(Verdict.CONTINUE) > 0.7, "else it was no boundary"


@dataclass(frozen=True)
class Known:
    """A canary that is good or bad: how rare the false verdict is, how often the right one comes, and how soon."""

    name: str
    run: Callable[[], Outcome]
    right: Verdict
    false: float
    share: float
    median: int  # intervals


GOOD, BAD = Verdict.PROMOTE, Verdict.ROLLBACK
LATE = np.where(TIME < 20, 0.001, 0.061)
KNOWN = [
    Known("errors, none fail", partial(errors, 0.0, 0.0, looks=25), GOOD, 0.001, 1.0, 8),
    Known("errors, equal, 1 %", partial(errors, 0.01, 0.01), GOOD, 0.001, 0.9, 25),
    Known("errors, equal, 1 %, much", partial(errors, 0.01, 0.01, (200, 1800), looks=25), GOOD, 0.001, 0.99, 9),
    Known("errors, a fifth beyond", partial(errors, 0.013, 0.001), BAD, ALPHA, 0.02, 10_000),
    Known("errors, twice the margin", partial(errors, 0.021, 0.001), BAD, 0.002, 0.9, 28),
    Known("errors, 5 % fail", partial(errors, 0.05, 0.001, looks=25), BAD, 0.001, 0.999, 6),
    Known("errors, all fail", partial(errors, 1.0, 0.001, looks=25), BAD, 0.001, 1.0, 3),
    Known("latency, equal, sigma 0.05", partial(latency, 1.0, normal(0.05)), GOOD, 0.001, 1.0, 6),
    Known("latency, equal, sigma 0.2", partial(latency, 1.0, normal(0.2)), GOOD, 0.002, 0.999, 11),
    Known("latency, equal, sigma 0.4", partial(latency, 1.0, normal(0.4)), GOOD, 0.004, 0.75, 36),
    Known("latency, equal, heavy tails", partial(latency, 1.0, heavy(0.1)), GOOD, 0.001, 0.999, 7),
    Known("latency, equal, hiccups", partial(latency, 1.0, hiccups), GOOD, 0.001, 0.999, 8),
    Known("latency, equal, correlation 0.3", partial(latency, 1.0, lasting(0.2, 0.3)), GOOD, 0.002, 0.99, 11),
    Known(
        "latency, equal, single requests",
        partial(latency, 1.0, requests(1.0, 50, 450), (50, 450)),
        GOOD,
        0.001,
        0.95,
        11,
    ),
    Known("latency, a twentieth beyond", partial(latency, 1.26, normal(0.2)), BAD, ALPHA, 0.2, 10_000),
    Known("latency, 1.4 times, sigma 0.2", partial(latency, 1.4, normal(0.2)), BAD, 0.002, 0.99, 16),
    Known("latency, twice, sigma 0.2", partial(latency, 2.0, normal(0.2)), BAD, 0.001, 1.0, 7),
    Known("latency, twice, heavy tails", partial(latency, 2.0, heavy(0.2)), BAD, 0.001, 0.999, 8),
    Known("disagreement, none", partial(disagreement, 0.0, 10), GOOD, 0.001, 1.0, 7),
    Known("disagreement, 1 %", partial(disagreement, 0.01, 10), GOOD, 0.001, 0.99, 14),
    Known("disagreement, a fifth beyond", partial(disagreement, 0.06, 10), BAD, ALPHA, 0.02, 10_000),
    Known("disagreement, 10 %", partial(disagreement, 0.1, 10), BAD, 0.002, 0.95, 20),
    Known("disagreement, 30 %", partial(disagreement, 0.3, 10), BAD, 0.001, 1.0, 3),
    Known(
        "live inputs, none, dependence 2",
        partial(live, 0.0, 10, spec=replace(LIVE, dependence=2.0)),
        GOOD,
        0.001,
        1,
        14,
    ),
]


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case.name)
def test_the_right_verdict_comes_and_the_false_one_does_not(case: Known) -> None:
    outcome = case.run()
    assert at_most(outcome.share(BAD if case.right is GOOD else GOOD), case.false)
    assert outcome.share(case.right) >= case.share
    assert outcome.median(case.right) <= case.median


def test_a_canary_that_turns_bad_is_rolled_back() -> None:
    # Other metrics keep it from being promoted meanwhile: here, that so much confidence is asked for.
    outcome = errors(LATE, 0.001, spec=replace(ERRORS, alpha_promote=1e-9))
    assert outcome.share(BAD) == 1.0
    assert outcome.median(BAD) <= 28


def three_metrics(failure: float, ratio: float, differing: float) -> Outcome:
    """What all metrics together come to: with a tenth of the traffic, exponential times, and 10 inputs an interval."""
    spec, chance = replace(Spec(), warmup_intervals=0), np.random.default_rng(4)
    canary, stable = [50] * FEWER, [450] * FEWER
    failed = chance.binomial(50, failure, (RUNS, FEWER))
    stable_failed = chance.binomial(450, 0.001, (RUNS, FEWER))
    means = ratio * chance.gamma(50, 1 / 50, (RUNS, FEWER))
    stable_means = chance.gamma(450, 1 / 450, (RUNS, FEWER))
    differ = chance.binomial(10, differing, (RUNS, FEWER))
    outcomes = (
        run_errors(spec, canary, stable, failed, stable_failed),
        run_latency(spec, canary, stable, means, stable_means),
        run_disagreement(spec, [10] * FEWER, differ),
    )
    verdicts = overall(outcomes)
    for run in some(verdicts)[:4]:
        memory = Memory()
        for t in range(FEWER):
            one, other = failed[run, t].item(), stable_failed[run, t].item()
            sample = Sample(
                Side(50, one, 50, 50 * means[run, t].item()),
                Side(450, other, 450, 450 * stable_means[run, t].item()),
                10,
                differ[run, t].item(),
            )
            memory, decision = decide(spec, memory, sample)
            assert LETTERS[decision.verdict] == verdicts.verdicts[run, t]
            if decision.verdict is not Verdict.CONTINUE:
                break
    return verdicts


def overall(outcomes: Sequence[Outcome]) -> Outcome:
    verdicts = np.stack([outcome.verdicts for outcome in outcomes])
    found = np.where((verdicts == -1).any(axis=0), -1, np.where((verdicts == 1).all(axis=0), 1, 0))
    return Outcome(outcomes[0].good, outcomes[0].bad, found.astype(np.int8))


def test_all_metrics_at_the_boundary_roll_back_as_rarely_as_stated() -> None:
    outcome = three_metrics(0.011, 1.2, 0.05)
    assert at_most(outcome.share(BAD), ALPHA)
    assert at_most(outcome.share(GOOD), 0.002), "all three would have to be wrong at the same time"


@pytest.mark.parametrize(("failure", "ratio", "differing"), [(0.011, 1.0, 0.0), (0.001, 1.2, 0.0), (0.001, 1.0, 0.05)])
def test_one_metric_at_the_boundary_promotes_as_rarely_as_stated(
    failure: float, ratio: float, differing: float
) -> None:
    outcome = three_metrics(failure, ratio, differing)
    assert at_most(outcome.share(GOOD), ALPHA)
    assert at_most(outcome.share(BAD), ALPHA)


def test_a_canary_that_is_as_good_is_promoted() -> None:
    outcome = three_metrics(0.001, 1.0, 0.01)
    assert outcome.share(GOOD) >= 0.98
    assert at_most(outcome.share(BAD), 0.002)
    assert outcome.median(GOOD) <= 16


def test_a_proof_of_agreement_can_fail() -> None:
    """`agrees` is no proof if it says yes to anything."""
    outcome = errors(0.05, 0.001)
    samples = [Sample(Side(50, 0), Side(450, 0))] * LOOKS
    run = int(np.flatnonzero(outcome.first == LETTERS[BAD])[0])
    assert not agrees(ERRORS, Metric.ERRORS, iter(samples), outcome, run)
