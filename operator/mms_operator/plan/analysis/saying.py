"""What an analysis tells people. Pure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from mms_operator.plan.analysis.types import Metric, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_operator.plan.analysis.types import Finding, Spec

PERCENT = 0.01
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def worded(spec: Spec, finding: Finding) -> Finding:
    """With its message: the numbers, the bound, and how sure it is that it is kept or broken."""
    if finding.estimate is None:
        return replace(finding, message="nothing to compare yet")
    match finding.metric:
        case Metric.ERRORS:
            numbers = (
                f"{finding.canary or 0.0:.2%} of {finding.canary_requests:,} requests failed, "
                f"{finding.stable or 0.0:.2%} of {finding.stable_requests:,} of the stable version"
            )
            kept, exceeded = (
                f"at most {_points(finding.bound)} above it",
                f"more than {_points(finding.bound)} above it",
            )
        case Metric.LATENCY:
            numbers = (
                f"{_time(finding.canary or 0.0)} a request, {_time(finding.stable or 0.0)} of the stable version, "
                f"typically {finding.estimate:.3g} times as long"
            )
            kept, exceeded = f"at most {finding.bound:g} times", f"more than {finding.bound:g} times"
        case Metric.DISAGREEMENT | Metric.LIVE_INPUTS:
            numbers = f"{finding.estimate:.2%} of {finding.canary_requests:,} answers differ"
            kept, exceeded = f"at most {_share(finding.bound)}", f"more than {_share(finding.bound)}"
    return replace(finding, message=f"{numbers}: {_sure(spec, finding, kept, exceeded)}")


def decision(verdict: Verdict, findings: Sequence[Finding]) -> str:
    """What decides comes first: who reads no further has read why."""
    return f"{verdict}: {_all(verdict, findings)}"


def at_end(spec: Spec, findings: Sequence[Finding]) -> str:
    """When the time is over and nothing is decided."""
    return f"Inconclusive when the time was over, {spec.at_end} by policy: {_all(Verdict.CONTINUE, findings)}"


def _all(first: Verdict, findings: Sequence[Finding]) -> str:
    ordered = sorted(findings, key=lambda finding: finding.verdict is not first)
    return ". ".join(f"{finding.metric}: {finding.message}" for finding in ordered)


def _sure(spec: Spec, finding: Finding, kept: str, exceeded: str) -> str:
    held, broken = f"{kept} with {_confidence(finding.held)}", f"{exceeded} with {_confidence(finding.broken)}"
    match finding.verdict:
        case Verdict.PROMOTE:
            return f"{held} confidence"
        case Verdict.ROLLBACK:
            return f"{broken} confidence"
    if not finding.enough:
        return f"too little to judge by, {_least(spec, finding)}"
    if finding.held == finding.broken == 0:
        return "no evidence either way yet"
    if finding.held and finding.broken:
        return f"it has changed, {held} and {broken} confidence"
    if finding.held >= finding.broken:
        return f"{held} confidence, {_confidence(1 - spec.alpha_promote)} are needed"
    return f"{broken} confidence, {_confidence(1 - spec.alpha_bad)} are needed"


def _least(spec: Spec, finding: Finding) -> str:
    if finding.metric in {Metric.DISAGREEMENT, Metric.LIVE_INPUTS}:
        return f"{spec.least_inputs} inputs are the least"
    return f"{spec.least_requests} requests in {spec.least_blocks} blocks of {spec.block_requests} are the least"


def _confidence(confidence: float) -> str:
    """Rounded down: what is shown as enough is enough."""
    return f"{math.floor(confidence * 1000 + 1e-9) / 10:g}%"


def _share(part: float) -> str:
    return f"{100 * part:g}%"


def _points(part: float) -> str:
    return f"{100 * part:g} percentage point{'s' * (part != PERCENT)}"


def _time(seconds: float) -> str:
    unit, name = next((pair for pair in UNITS if seconds >= pair[0]), UNITS[-1])
    return f"{seconds / unit:.3g} {name}"
