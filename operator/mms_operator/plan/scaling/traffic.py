"""What the agents of a service's pods have said, as numbers: requests that came, wait, and took too long. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mms_workloads.contract import AgentReport, Load


PERCENT = 0.99  # of requests, whose longest time is told
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Sample:
    """A pod at a moment, since its Triton's start. own: requests of its agent, which are no client's."""

    requests: int
    own: int
    pending: int
    models: Mapping[str, int]  # requests of each


@dataclass(frozen=True, slots=True)
class Traffic:
    """Between two moments. p99: seconds, of the last minute; None without requests."""

    arrivals: int = 0
    answered: int = 0
    pending: int = 0
    late: float = 0.0  # the part of requests that took longer than the objective
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class Slowness:
    """Requests of one model in one pod: how many, and the seconds of each quantile, ascending."""

    requests: float
    quantiles: tuple[tuple[float, float], ...]

    def above(self, seconds: float) -> float:
        """The part that took longer, between two quantiles in proportion. Beyond the last quantile, as much as it."""
        part, at = 0.0, 0.0
        for quantile, value in self.quantiles:
            if value > seconds:
                return 1 - (part + (quantile - part) * max(0.0, seconds - at) / max(value - at, 1e-9))
            part, at = quantile, value
        return 0.0


def sample(report: AgentReport) -> Sample | None:
    """None where its Triton did not say."""
    load, counters = report.load, report.counters
    if load is None or counters is None:
        return None
    models = {name: model.requests for name, model in load.models.items()}
    return Sample(counters.requests, report.own.requests, load.pending, models)


def between(
    before: Mapping[str, Sample], after: Mapping[str, Sample], loads: Mapping[str, Load], objective: float
) -> Traffic:
    """By the pods' uids. A pod that was not there before has counted from nothing.

    objective: seconds.
    """
    arrivals = answered = 0
    slow: list[Slowness] = []
    for uid, now in after.items():
        then = before.get(uid) or Sample(0, 0, 0, {})
        counted = _grown(then.requests, now.requests) - _grown(then.own, now.own)
        answered += max(0, counted)
        arrivals += max(0, counted + now.pending - then.pending)
        slow += _slow(now, then, loads.get(uid))
    total = sum(one.requests for one in slow)
    late = sum(one.requests * one.above(objective) for one in slow) / total if total else 0.0
    return Traffic(arrivals, answered, sum(one.pending for one in after.values()), late, _p99(slow, total))


def _grown(then: int, now: int) -> int:
    """Of a counter, which begins anew with the process that counts."""
    return now - then if now >= then else now


def _slow(now: Sample, then: Sample, load: Load | None) -> Iterable[Slowness]:
    for name, model in (load.models if load else {}).items():
        requests = _grown(then.models.get(name, 0), now.models.get(name, 0))
        if requests > 0 and model.quantiles:
            found = sorted((float(quantile), seconds) for quantile, seconds in model.quantiles.items())
            yield Slowness(requests, tuple(found))


def _p99(slow: Sequence[Slowness], total: float) -> float | None:
    """The smallest of the times that are known which 99 of 100 requests keep."""
    if not total:
        return None
    times = sorted({seconds for one in slow for _, seconds in one.quantiles})
    kept = (
        seconds
        for seconds in times
        if sum(one.requests * one.above(seconds) for one in slow) <= (1 - PERCENT + ROUNDING) * total
    )
    return next(kept, times[-1])
