"""How a run that goes on stands: its state in a word and for people, from its places and the master's report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Phase, Reason, Role
from mms_operator.plan.conditions import find
from mms_operator.plan.pods import Trouble
from mms_operator.plan.training.elastic import Strength
from mms_operator.plan.training.status import State
from mms_workloads import contract
from mms_workloads.contract import Activity

if TYPE_CHECKING:
    from mms_operator.plan.training.look import Look
    from mms_operator.plan.training.slots import Assignment

_BUSY = frozenset({Activity.COUNTING, Activity.TRAINING, Activity.EXPORTING})
_UNDER_WAY = (Phase.RUNNING, Phase.RESTARTING)


def state(look: Look, assignment: Assignment) -> State:
    """Pending until the master reports work; Restarting from the loss of a pod until as many as can train do again."""
    report, strength = look.report, Strength.of(look.job, assignment)
    others = all(slot.runs for slot in assignment.slots if slot.role is not Role.WORKER)
    whole = others and sum(slot.runs for slot in assignment.workers) >= strength.target
    busy = report is not None and report.activity in _BUSY and report.workersReady > 0
    waits = _waits(assignment)
    if look.phase in _UNDER_WAY:
        joined = report is not None and _joined(report, strength.target, look.job.shards)
        back = whole and busy and joined
        if assignment.losses or strength.short or (look.phase is Phase.RESTARTING and not back):
            return _restarting(look, assignment, waits)
    if look.phase in _UNDER_WAY or busy:
        if look.observed.master_error:
            return State(Phase.RUNNING, Reason.MASTER_UNREACHABLE, _unreachable(look.observed.master_error))
        working = _working(look, strength)
        degraded = Trouble(strength.trouble.reason, working) if strength.trouble else _dead_data(report)
        return State(Phase.RUNNING, Reason.TRAINING, working, degraded=degraded)
    if look.observed.master_error:
        return State(Phase.PENDING, Reason.MASTER_UNREACHABLE, _unreachable(look.observed.master_error))
    if waits:
        return State(Phase.PENDING, waits.reason, waits.message)
    if whole:
        return State(Phase.PENDING, Reason.STARTING, "the pods run; the workers connect to the master")
    return State(Phase.PENDING, Reason.WAITING_FOR_PODS, "the pods are starting")


def _dead_data(report: contract.StatusReport | None) -> Trouble | None:
    if report is None or not report.quarantined:
        return None
    blocks = f"{report.quarantined} block{'s' if report.quarantined > 1 else ''}"
    said = f"{blocks} of the data are nearly all the same and are not trained on: status.incidents lists them"
    return Trouble(Reason.DEAD_DATA, said)


def _joined(report: contract.StatusReport, workers: int, shards: int) -> bool:
    return report.workersReady >= workers and report.shardsReady >= shards


def _waits(assignment: Assignment) -> Trouble | None:
    """What keeps a pod from starting, the master's first."""
    return next((slot.pod.trouble for slot in assignment.slots if slot.pod and slot.stuck), None)


def _restarting(look: Look, assignment: Assignment, waits: Trouble | None) -> State:
    if waits and not assignment.losses:
        return State(Phase.RESTARTING, waits.reason, waits.message)
    return State(Phase.RESTARTING, Reason.REPLACING_POD, _replacing(look, assignment))


def _replacing(look: Look, assignment: Assignment) -> str:
    if assignment.losses:
        return "; ".join(f"{loss.role} {loss.rank} {loss.why()} and is being replaced" for loss in assignment.losses)
    absent = [f"{slot.role} {slot.rank}" for slot in assignment.slots if not slot.runs]
    if absent:
        return f"{', '.join(absent)} is being replaced"
    known = find(look.previous.get("conditions") or [], Kind.READY)
    same = known and known["reason"] == Reason.REPLACING_POD
    return known["message"] if known and same else "the replaced pods join the training"


def _unreachable(error: str) -> str:
    return (
        f"the master does not answer the operator ({error}): what is shown of the progress is old. Let the operator's "
        f"namespace reach port {contract.MASTER_PORT} of the training's pods (NetworkPolicies, the cluster's network)"
    )


def _working(look: Look, strength: Strength) -> str:
    report = look.report
    match report.activity if report else None:
        case Activity.COUNTING:
            said = "the workers read the data set once: sizes and vocabulary"
        case Activity.EXPORTING:
            said = "the parameters are complete: they are evaluated and written"
        case _:
            said = _training(look, strength)
    return f"{said}; {strength.trouble.message}" if strength.trouble else said


def _training(look: Look, strength: Strength) -> str:
    report, wanted, shards = look.report, strength.wanted, look.job.shards
    ready = min(report.workersReady, wanted) if report else wanted
    if ready < wanted:
        said = f"{ready} of {wanted} workers train"
    else:
        said = f"{wanted} workers train" if wanted > 1 else "1 worker trains"
    if standby := look.job.spec.workers.standby:
        there = report.workersStandby if report else standby
        said += f", {there} of {standby} stand by" if there < standby else f", {standby} stand{'s' * (standby == 1)} by"
    if report and report.shardsReady != shards:
        said += f"; {report.shardsReady} shards hold the parameters, {shards} are to"
    return said
