"""One look at a canary: what an interval brought is folded in, and judged. Pure.

    memory, decision = decide(spec, memory, sample)

Every look is allowed: the evidence is valid at any time, so the first look with enough of it may decide. A rollback
takes one metric whose bound is broken. A promotion takes all metrics at the same look, each with its bound kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from mms_operator.plan.analysis import disagreement, errors, latency, saying
from mms_operator.plan.analysis.bets import confidence
from mms_operator.plan.analysis.disagreement import Disagreement
from mms_operator.plan.analysis.errors import NOTHING, Counts, Errors
from mms_operator.plan.analysis.latency import Latency
from mms_operator.plan.analysis.types import Decision, Finding, Metric, Verdict

if TYPE_CHECKING:
    from mms_operator.plan.analysis.types import Sample, Spec

FORMAT = 1  # of what is kept: another one for other bettors, whose capitals these are


@dataclass(frozen=True, slots=True)
class Memory:
    """What is carried from one look to the next: about 1 kB, however long it takes. None: is not asked."""

    format: int = FORMAT
    warmed: int = 0  # intervals that were left out at first
    errors: Errors | None = None
    latency: Latency | None = None
    disagreement: Disagreement | None = None
    live: Disagreement | None = None  # of inputs that clients have sent
    carried: Counts = NOTHING  # clients' requests that are too few to be counted yet


ADAPTER = TypeAdapter(Memory)


def dump(memory: Memory) -> str:
    """As JSON, for the status."""
    return ADAPTER.dump_json(memory, exclude_none=True).decode()


def load(text: str) -> Memory:
    """What `dump` wrote. Of other bettors nothing is known any more. ValueError: it is no such thing."""
    memory = ADAPTER.validate_json(text)
    return memory if memory.format == FORMAT else Memory()


def decide(spec: Spec, memory: Memory, sample: Sample, *, over: bool = False) -> tuple[Memory, Decision]:
    """After an interval. over: whether the time is over, so that it must end one way or another."""
    memory = fold(spec, memory, sample)
    return memory, judge(spec, memory, over=over)


def fold(spec: Spec, memory: Memory, sample: Sample) -> Memory:
    """What was known, and an interval more."""
    memory = _asked(spec, memory)
    if memory.disagreement:
        found = disagreement.fold(memory.disagreement, sample.compared, sample.differing)
        memory = replace(memory, disagreement=found)
    if memory.live:
        found = disagreement.fold(memory.live, sample.live_compared, sample.live_differing)
        memory = replace(memory, live=found)
    if memory.warmed < spec.warmup_intervals:
        # Requests fill caches: an interval without any warms nothing.
        warms = sample.canary.requests or sample.canary.timed
        return replace(memory, warmed=memory.warmed + 1, carried=NOTHING) if warms else memory
    if memory.errors:
        memory = replace(memory, errors=errors.fold(spec, memory.errors, sample.canary, sample.stable, own=sample.own))
    if memory.latency:
        memory = replace(memory, latency=latency.fold(spec, memory.latency, sample.canary, sample.stable))
    return memory


def judge(spec: Spec, memory: Memory, *, over: bool = False) -> Decision:
    """The verdict on what is known."""
    memory = _asked(spec, memory)
    found = [
        _errors(spec, memory.errors),
        _latency(spec, memory.latency),
        _disagreement(spec, memory.disagreement),
        _disagreement(spec, memory.live, Metric.LIVE_INPUTS, spec.dependence),
    ]
    findings = tuple(finding for finding in found if finding)
    verdicts = {finding.verdict for finding in findings}
    if Verdict.ROLLBACK in verdicts:
        verdict = Verdict.ROLLBACK
    elif verdicts == {Verdict.PROMOTE}:
        verdict = Verdict.PROMOTE
    elif over:
        return Decision(spec.at_end, conclusive=False, findings=findings, message=saying.at_end(spec, findings))
    else:
        verdict = Verdict.CONTINUE
    conclusive = verdict is not Verdict.CONTINUE
    return Decision(verdict, conclusive, findings, saying.decision(verdict, findings))


def _asked(spec: Spec, memory: Memory) -> Memory:
    """What of it answers what is asked now: a metric whose bound was edited begins anew."""
    error, late = memory.errors, memory.latency
    if (margin := spec.error_margin) is None:
        error = None
    elif error is None or error.margin != margin:
        error = Errors(margin)
    if (margin := spec.latency_margin) is None:
        late = None
    elif late is None or late.margin != margin:
        late = Latency(margin)
    return replace(
        memory,
        errors=error,
        latency=late,
        disagreement=_compared(memory.disagreement, spec.disagreement_limit),
        live=_compared(memory.live, spec.live_limit),
    )


def _compared(known: Disagreement | None, limit: float | None) -> Disagreement | None:
    if limit is None:
        return None
    return known if known is not None and known.limit == limit else Disagreement(limit)


def _errors(spec: Spec, known: Errors | None) -> Finding | None:
    if known is None:
        return None
    counted = known.counted
    canary = counted.canary_failed / counted.canary if counted.canary else None
    stable = counted.stable_failed / counted.stable if counted.stable else None
    good, bad = errors.held(known), errors.broken(known)
    enough = known.blocks >= spec.least_blocks and counted.canary >= spec.least_requests
    return saying.worded(
        spec,
        Finding(
            Metric.ERRORS,
            _verdict(spec, good, bad, enough=enough),
            enough,
            canary,
            stable,
            None if canary is None or stable is None else canary - stable,
            known.margin,
            counted.canary,
            counted.stable,
            confidence(good),
            confidence(bad),
        ),
    )


def _latency(spec: Spec, known: Latency | None) -> Finding | None:
    if known is None:
        return None
    counted = known.counted
    good, bad = latency.held(known), latency.broken(known)
    enough = known.blocks >= spec.least_blocks and counted.canary >= spec.least_requests
    return saying.worded(
        spec,
        Finding(
            Metric.LATENCY,
            _verdict(spec, good, bad, enough=enough),
            enough,
            counted.canary_seconds / counted.canary if counted.canary else None,
            counted.stable_seconds / counted.stable if counted.stable else None,
            known.ratio,
            1 + known.margin,
            counted.canary,
            counted.stable,
            confidence(good),
            confidence(bad),
        ),
    )


def _disagreement(
    spec: Spec, known: Disagreement | None, metric: Metric = Metric.DISAGREEMENT, dependence: float = 1.0
) -> Finding | None:
    if known is None:
        return None
    rate = known.differing / known.compared if known.compared else None
    good, bad = disagreement.held(known, dependence), disagreement.broken(known, dependence)
    enough = known.compared >= spec.least_inputs
    return saying.worded(
        spec,
        Finding(
            metric,
            _verdict(spec, good, bad, enough=enough),
            enough,
            None,
            None,
            rate,
            known.limit,
            known.compared,
            known.compared,
            confidence(good),
            confidence(bad),
        ),
    )


def _verdict(spec: Spec, good: float, bad: float, *, enough: bool) -> Verdict:
    """good, bad: logarithms of the evidence."""
    if enough and bad >= -math.log(spec.alpha_bad):
        return Verdict.ROLLBACK
    # What was good once and isn't any more speaks for both: that is no time for a promotion.
    if enough and good >= -math.log(spec.alpha_promote) and bad <= 0:
        return Verdict.PROMOTE
    return Verdict.CONTINUE
