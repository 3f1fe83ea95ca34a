"""The analysis of a rollout: from what the pods' agents said to a verdict, and to what the status keeps of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from mms_operator.api.service_status import AnalysisStatus, Finding
from mms_operator.plan.analysis import forecast, sequential
from mms_operator.plan.analysis.errors import NOTHING, Counts
from mms_operator.plan.analysis.forecast import Traffic
from mms_operator.plan.analysis.sequential import Memory
from mms_operator.plan.analysis.types import Decision, Metric, Sample, Side, Spec, Verdict
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

CLIENTS = 3  # requests of a version that are clients', and no chance of when the counters were read
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
    compared = bool(known and known.compared) and _counts(spec, memory)
    sampled = known.sampledTime if known else None
    expected = known.forecast if known else None
    if interval is not None and _is_new(interval, sampled, now):
        found, carried, newly = sample(interval, pair, memory.carried, compared=compared)
        memory, compared = sequential.fold(spec, replace(memory, carried=carried), found), compared or newly
        expected = expected or _expected(spec, found)
        sampled = interval.ended.isoformat()
    began = known.startTime if known else None
    if began is not None and datetime.fromisoformat(began) > now:
        began = rfc3339(now)  # the clock has been set back
    if began is None and interval is not None and any(one.digest == pair.canary for one in interval.after.values()):
        began = rfc3339(now)
    over = began is not None and now >= datetime.fromisoformat(began) + timedelta(seconds=analysis.limitSeconds)
    decision = _decision(spec, memory, _incomparable(spec, memory, pair, compared=compared), over=over)
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


def _counts(spec: Spec, memory: Memory) -> bool:
    """Whether comparisons that were counted are known by the limit of now."""
    known = memory.disagreement
    return spec.disagreement_limit is None or (known is not None and known.limit == spec.disagreement_limit)


def _incomparable(spec: Spec, memory: Memory, pair: inputs.Pair, *, compared: bool) -> str | None:
    """Why the artifact's comparisons will never decide; None: they may."""
    if spec.disagreement_limit is None:
        return None
    if not pair.comparisons:
        return "the version before is no artifact of a training, and brings no comparisons"
    found = memory.disagreement.compared if memory.disagreement else 0
    if compared and found < spec.least_inputs:
        return f"there are {found} comparisons with the version before, {spec.least_inputs} are the least"
    return None


def _decision(spec: Spec, memory: Memory, incomparable: str | None, *, over: bool) -> Decision:
    """On what can be judged. What can't be has no part of the false rollbacks: it could not have brought any."""
    if incomparable is None:
        return sequential.judge(spec, memory, over=over)
    left_out = f"{Metric.DISAGREEMENT} is not judged: {incomparable}"
    if set(spec.metrics) == {Metric.DISAGREEMENT}:
        said = f"Nothing can be judged, {spec.at_end} by policy: {left_out}"
        return Decision(spec.at_end, conclusive=False, findings=(), message=said)
    found = sequential.judge(replace(spec, disagreement_limit=None), memory, over=over)
    return replace(found, message=f"{found.message}. {left_out}")


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


@dataclass(frozen=True, slots=True)
class _Did:
    """What a version's pods did in an interval: requests of their agents, clients', and the times of all."""

    own: int = 0
    own_failed: int = 0
    clients: int = 0  # may be below 0: an answer is sent before it is counted
    clients_failed: int = 0
    timed: int = 0
    seconds: float = 0.0


def sample(
    interval: Interval, pair: inputs.Pair, carried: Counts = NOTHING, *, compared: bool
) -> tuple[Sample, Counts, bool]:
    """What both versions did in the interval, and whether the comparisons are in it; they count once in a rollout.

    carried: clients' requests of intervals before, which were too few to be counted then; and those that are now.
    While clients ask both versions, only their requests say how many fail: the agents' own are always right where a pod
    is ready. Else the agents' own are compared, on both sides: clients ask otherwise, and may fail for what they ask.
    """
    did = {pair.canary: _Did(), pair.stable: _Did()}
    for uid, after in interval.after.items():
        before = interval.before.get(uid)
        # A pod that took another artifact meanwhile did some for one and some for the other.
        if before and before.digest == after.digest and after.digest in did:
            did[after.digest] = _more(did[after.digest], before, after)
    canary, stable = did[pair.canary], did[pair.stable]
    clients = _with_clients(carried, canary, stable)
    own = min(clients.canary, clients.stable) < CLIENTS
    counted = Counts(canary.own, canary.own_failed, stable.own, stable.own_failed) if own else clients
    comparison = None if compared else _comparison(interval.after, pair)
    told = (comparison.compared, comparison.differing) if comparison else (0, 0)
    found = Sample(
        _side(counted.canary, counted.canary_failed, canary),
        _side(counted.stable, counted.stable_failed, stable),
        *told,
        *inputs.compared(interval, pair),
        own=own,
    )
    return found, clients if own else NOTHING, comparison is not None


def _side(requests: int, failed: int, did: _Did) -> Side:
    return Side(requests, min(max(0, failed), requests), did.timed, did.seconds)


def _with_clients(carried: Counts, canary: _Did, stable: _Did) -> Counts:
    """Clients' requests that are to be counted. An interval in which none reached the canary is left out."""
    asked = max(carried.canary + canary.clients, -CLIENTS)
    failed = max(carried.canary_failed + canary.clients_failed, -CLIENTS)
    if asked <= 0:
        return Counts(asked, failed)
    return Counts(asked, failed, carried.stable + stable.clients, carried.stable_failed + stable.clients_failed)


def _comparison(reports: Mapping[str, AgentReport], pair: inputs.Pair) -> Comparison | None:
    for report in reports.values():
        found = report.comparison
        if report.digest == pair.canary and found and found.reference == pair.stable:
            return found
    return None


def _more(did: _Did, before: AgentReport, after: AgentReport) -> _Did:
    """What a pod did, beside what others did."""
    if before.counters is None or after.counters is None:
        return did
    total, own = _between(before.counters, after.counters), _between(before.own, after.own)
    if total is None or own is None:
        return did  # Triton or the agent has been started again: what it did in between nobody has counted
    return _Did(
        own=did.own + own.requests,
        own_failed=did.own_failed + own.failed,
        clients=did.clients + total.requests - own.requests,
        clients_failed=did.clients_failed + total.failed - own.failed,
        timed=did.timed + total.timed,
        seconds=did.seconds + total.seconds,
    )


def _between(before: Counters, after: Counters) -> Counters | None:
    """None where something has been counted anew."""
    if after.starts != before.starts or after.requests < before.requests:
        return None
    if after.timed < before.timed or after.seconds < before.seconds:
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
