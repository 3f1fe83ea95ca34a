"""The analysis of a rollout: from what the pods' agents said to a verdict, and to what the status keeps of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from mms_operator.api.service_status import AnalysisStatus, Finding
from mms_operator.plan.analysis import forecast, sequential
from mms_operator.plan.analysis.forecast import Traffic
from mms_operator.plan.analysis.sequential import Memory
from mms_operator.plan.analysis.types import Metric, Sample, Side, Spec, Verdict
from mms_operator.plan.conditions import rfc3339
from mms_operator.plan.service import inputs
from mms_operator.plan.service.rollout import Gate
from mms_workloads.contract import Counters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_operator.api.rollout import Analysis
    from mms_operator.api.service_status import RolloutStatus
    from mms_operator.plan.analysis import types
    from mms_operator.plan.types import Interval
    from mms_workloads.contract import AgentReport, Comparison

CLIENTS = 3  # requests of an interval that are clients', and no chance of when the counters were read
DIGITS = 4  # of the numbers in the status
MESSAGE = 2048  # characters of one in the status


@dataclass(frozen=True)
class Judgement:
    """What the analysis says now."""

    status: AnalysisStatus | None
    gate: Gate = Gate.OPEN
    give_up: str | None = None  # why


def spec_of(analysis: Analysis) -> Spec:
    """Raises ValueError: what makes no sense, and why."""

    def number(text: str | None) -> float | None:
        return None if text is None else float(text)

    return Spec(
        error_margin=number(analysis.errorMargin),
        latency_margin=number(analysis.latencyMargin),
        disagreement_limit=number(analysis.disagreementLimit),
        live_limit=number(analysis.disagreementLimit) if analysis.liveInputs else None,
        alpha_rollback=float(analysis.falseRollback),
        alpha_promote=float(analysis.falsePromote),
        at_end=Verdict(analysis.atEnd),
        dependence=analysis.dependence,
    )


def judge(
    analysis: Analysis, state: RolloutStatus, pair: inputs.Pair, interval: Interval | None, now: datetime
) -> Judgement:
    """Counts the interval, if it is another one than the last, and says what follows."""
    spec, known = spec_of(analysis), state.analysis
    memory = _memory(known)
    compared = bool(known and known.compared)
    sampled = known.sampledTime if known else None
    expected = known.forecast if known else None
    if interval is not None and _is_new(interval, sampled, now):
        found, newly = sample(interval, pair, compared=compared)
        memory, compared = sequential.fold(spec, memory, found), compared or newly
        expected = expected or _expected(spec, found)
        sampled = interval.ended.isoformat()
    began = known.startTime if known else None
    if began is not None and datetime.fromisoformat(began) > now:
        began = rfc3339(now)  # the clock has been set back
    if began is None and interval is not None and any(one.digest == pair.canary for one in interval.after.values()):
        began = rfc3339(now)
    over = began is not None and now >= datetime.fromisoformat(began) + timedelta(seconds=analysis.limitSeconds)
    decision = sequential.judge(spec, memory, over=over)
    live = inputs.status(analysis, memory.live, interval, pair, known.liveInputs if known else None)
    message = f"{decision.message}. Live inputs: {live.message}" if live and live.message else decision.message
    status = AnalysisStatus(
        verdict=decision.verdict,
        message=message[:MESSAGE],
        findings=[_finding(one) for one in decision.findings],
        forecast=expected,
        startTime=began,
        sampledTime=sampled,
        compared=compared,
        liveInputs=live,
        memory=sequential.dump(memory),
    )
    match decision.verdict:
        case Verdict.ROLLBACK:
            return Judgement(status, Gate.CLOSED, status.message)
        case Verdict.CONTINUE:
            return Judgement(status, Gate.CLOSED)
        case Verdict.PAUSE:
            return Judgement(status, Gate.WORD)
        case Verdict.PROMOTE:
            return Judgement(status)


def _is_new(interval: Interval, sampled: str | None, now: datetime) -> bool:
    """Whether it is another one than the last. What was sampled in the future was so before the clock was set back."""
    if sampled is None:
        return True
    known = datetime.fromisoformat(sampled)
    return interval.began >= known or (interval.ended <= now < known)


def _expected(spec: Spec, found: Sample) -> str | None:
    """About what it takes to be sure, where both versions are asked."""
    canary, stable = found.canary.requests, found.stable.requests
    if not canary or not stable:
        return None
    traffic = Traffic(canary, stable, failure_rate=found.stable.failed / stable)
    of_requests = {Metric.ERRORS, Metric.LATENCY}
    told = [one.message for one in forecast.forecast(spec, traffic) if one.metric in of_requests]
    return "; ".join(told) or None


def sample(interval: Interval, pair: inputs.Pair, *, compared: bool) -> tuple[Sample, bool]:
    """What both versions did in the interval, and whether the comparisons are in it; they count once in a rollout."""
    sides = {pair.canary: Side(), pair.stable: Side()}
    for uid, after in interval.after.items():
        before = interval.before.get(uid)
        # A pod that took another artifact meanwhile did some for one and some for the other.
        if before and before.digest == after.digest and after.digest in sides:
            sides[after.digest] = _more(sides[after.digest], before, after)
    comparison = None if compared else _comparison(interval.after, pair)
    told = (comparison.compared, comparison.differing) if comparison else (0, 0)
    found = Sample(sides[pair.canary], sides[pair.stable], *told, *inputs.compared(interval, pair))
    return found, comparison is not None


def _comparison(reports: Mapping[str, AgentReport], pair: inputs.Pair) -> Comparison | None:
    for report in reports.values():
        found = report.comparison
        if report.digest == pair.canary and found and found.reference == pair.stable:
            return found
    return None


def _more(side: Side, before: AgentReport, after: AgentReport) -> Side:
    """What a pod did, beside what others did.

    While clients ask, only their requests say how many fail: the agent's own are always right where its pod is ready.
    """
    if before.counters is None or after.counters is None:
        return side
    total, own = _between(before.counters, after.counters), _between(before.own, after.own)
    if total is None or own is None:
        return side  # Triton or the agent has been started again: what it did in between nobody has counted
    clients = total.requests - own.requests
    requests, failed = own.requests, own.failed
    if clients >= CLIENTS:
        requests, failed = clients, total.failed - own.failed
    return Side(
        requests=side.requests + requests,
        failed=side.failed + min(max(0, failed), requests),
        timed=side.timed + total.timed,
        seconds=side.seconds + total.seconds,
    )


def _between(before: Counters, after: Counters) -> Counters | None:
    """None where something has been counted anew."""
    if after.requests < before.requests or after.timed < before.timed or after.seconds < before.seconds:
        return None
    return Counters(
        requests=after.requests - before.requests,
        failed=max(0, after.failed - before.failed),
        timed=after.timed - before.timed,
        seconds=after.seconds - before.seconds,
    )


def _memory(known: AnalysisStatus | None) -> Memory:
    """What is no memory of ours is begun anew: less is known, and nothing wrong."""
    try:
        return sequential.load(known.memory) if known and known.memory else Memory()
    except ValueError:
        return Memory()


def _finding(found: types.Finding) -> Finding:
    def shown(value: float | None) -> str | None:
        return None if value is None else f"{value:.{DIGITS}g}"

    return Finding(
        metric=found.metric,
        verdict=found.verdict,
        canary=shown(found.canary),
        stable=shown(found.stable),
        estimate=shown(found.estimate),
        bound=f"{found.bound:.{DIGITS}g}",
        message=found.message,
    )
