"""How a service stands, in words: its conditions, and the events that tell of changes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Reason
from mms_operator.api.service_status import Outcome, RolloutPhase
from mms_operator.plan import conditions
from mms_operator.plan.conditions import Condition
from mms_operator.plan.types import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_operator.api.service import ServiceSpec
    from mms_operator.api.service_status import PastVersion, RolloutStatus, ServedVersion, ServiceStatus
    from mms_operator.plan.service.autoscaling import Scaled
    from mms_operator.plan.types import Object
    from mms_workloads.contract import SwapReport

ACCEPTED = Condition("True", Reason.ACCEPTED, "the spec can be carried out")
SHOWN = 3  # pods that a message names
# Reasons for not being ready that belong to the usual course of things.
_USUAL = frozenset(
    {
        Reason.ROLLING_OUT, Reason.WAITING_FOR_PODS, Reason.TRAINING_NOT_COMPLETE, Reason.TRAINING_NOT_FOUND,
        Reason.ROLLOUT_PAUSED, Reason.AWAITING_PROMOTION,
    }
)  # fmt: skip


@dataclass(frozen=True)
class State:
    """How the service stands. `waits`: it goes on by itself; `accepted`: the spec can be carried out."""

    ready: bool
    reason: str
    message: str
    waits: bool = True
    accepted: Condition = ACCEPTED


def refused(reason: Reason, message: str) -> State:
    found = Condition("False", reason, message)
    return State(ready=False, reason=reason, message=message, waits=False, accepted=found)


def served(chosen: ServedVersion, replicas: int) -> State:
    if replicas == 0:
        return State(
            ready=True, reason=Reason.SCALED_TO_ZERO, message="spec.replicas is 0: nothing is served", waits=False
        )
    noun = "pod answers" if replicas == 1 else "pods answer"
    said = f"{replicas} {noun} with {called(chosen)}; the golden inferences were right on each"
    return State(ready=True, reason=Reason.AVAILABLE, message=said, waits=False)


def scaling(ready: int, replicas: int) -> State:
    return State(ready=False, reason=Reason.WAITING_FOR_PODS, message=f"{ready} of {replicas} pods are ready")


def given_up(entry: PastVersion, stable: ServedVersion, not_back: Sequence[str] = ()) -> State:
    """What the spec names is not served, since somebody said so; what is served meanwhile is."""
    how, reason = (
        ("rolled back", Reason.ROLLED_BACK)
        if entry.outcome is Outcome.ROLLED_BACK
        else ("aborted while it was rolled out", Reason.ROLLOUT_ABORTED)
    )
    why = f": {entry.message}" if entry.message else ""
    said = (
        f"{called(entry)} was {how} at {entry.time}{why}. It is not tried again; {called(stable)} answers. Another "
        "artifact is rolled out as soon as there is one; `mms rollout retry` tries this one again"
    )
    if not_back:
        others = " and others" if not_back[SHOWN:] else ""
        said = f"{said}. Not back yet: {', '.join(not_back[:SHOWN])}{others}"
    return State(ready=False, reason=reason, message=said, waits=False)


def refused_by(pod: str, chosen: ServedVersion, swap: SwapReport) -> str:
    return f"pod {pod} could not take {called(chosen)}: {swap.reason}: {swap.message}"


def rolling(
    chosen: ServedVersion, stable: ServedVersion | None, state: RolloutStatus | None, *, by_route: bool = False
) -> State:
    """by_route: a Gateway splits the requests, and not a Service the connections."""
    if stable is None or state is None:
        said = f"{called(chosen)} is fetched, loaded and checked"
        return State(ready=False, reason=Reason.ROLLING_OUT, message=said)
    where = f"step {state.step} of {state.steps}" if state.step <= state.steps else "pod by pod"
    answers = f"{state.percent} % of the pods that answer are of it, the others of {called(stable)}"
    if by_route:
        answers = f"{state.percent} % of requests are sent to it, the others to {called(stable)}"
    if state.percent == 0:
        answers = f"{called(stable)} answers meanwhile"
    does = "is fetched, loaded and checked" if not chosen.replicas else f"is on {chosen.replicas} pods"
    how = f" by new pods, since the running ones cannot take it ({state.newPods})" if state.newPods else ""
    does_what = "comes back" if state.rollback else "is rolled out"
    about = f"{called(chosen)} {does_what}{how}, {where}: it {does}; {answers}"
    match state.phase:
        case RolloutPhase.PAUSED:
            remedy = "it stays so until `mms rollout resume`, or spec.rollout.paused is taken back"
            return State(ready=False, reason=Reason.ROLLOUT_PAUSED, message=f"{about}; {remedy}")
        case RolloutPhase.AWAITING_PROMOTION:
            remedy = "it goes on with `mms rollout promote` and goes back with `mms rollout abort`"
            return State(ready=False, reason=Reason.AWAITING_PROMOTION, message=f"{about}; {remedy}")
        case RolloutPhase.ANALYSING if state.analysis:
            about = f"{about}. {state.analysis.message}"
    return State(ready=False, reason=Reason.ROLLING_OUT, message=about)


def said_of(state: State, available: int, replicas: int) -> dict[Kind, Condition]:
    """The conditions. `available`: pods that answer."""
    why = (state.reason, state.message)
    stalled = not state.ready and not state.waits
    progressing = not state.ready and state.waits
    noun = "pod answers" if available == 1 else "pods answer"
    return {
        Kind.ACCEPTED: state.accepted,
        Kind.READY: Condition("True" if state.ready else "False", *why),
        Kind.RECONCILING: Condition("True" if progressing else "False", *why),
        Kind.STALLED: Condition("True" if stalled else "False", *why),
        Kind.PROGRESSING: Condition("True" if progressing else "False", *why),
        Kind.AVAILABLE: Condition("True", Reason.AVAILABLE, f"{available} {noun}")
        if available
        else Condition("False", Reason.SCALED_TO_ZERO if state.ready and not replicas else Reason.UNAVAILABLE,
                       "no pod answers"),
    }  # fmt: skip


def scaled(spec: ServiceSpec, found: Scaled) -> tuple[Event, ...]:
    if not found.decided or found.status is None:
        return ()
    message = f"from {spec.replicas} to {found.replicas} replicas: {found.status.reason}"
    return (Event("Normal", str(Reason.SCALED), message),)


def told(cr: Object, status: ServiceStatus, state: State) -> tuple[Event, ...]:
    """One event when readiness or its reason has changed, or else when a rollout has come to another step."""
    known = cr.get("status") or {}
    before = conditions.find(known.get("conditions") or [], Kind.READY)
    if before and (before["status"], before["reason"]) == ("True" if state.ready else "False", str(state.reason)):
        stepped = _place(known.get("rollout")) != _place(status.rollout.model_dump() if status.rollout else None)
        return (Event("Normal", str(Reason.ROLLOUT_STEP), state.message),) if stepped and status.versions.next else ()
    usual = state.ready or state.reason in _USUAL
    return (Event("Normal" if usual else "Warning", str(state.reason), state.message),)


def _place(rollout: Object | None) -> tuple[object, ...]:
    return (rollout.get("startTime"), rollout.get("step"), rollout.get("newPods")) if rollout else ()


def called(version: ServedVersion) -> str:
    if version.live:
        return f"run {version.version} of {version.training}, as it trains"
    short = version.digest.removeprefix("sha256:")[:12]
    if version.version:
        return f"version {version.version} of {version.training} ({short})"
    return f"artifact {short}"
