"""A run that goes on: every place has its pod, within the budget, and the status says how far it is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Phase, Reason, Role
from mms_operator.api.training import Incarnation
from mms_operator.plan.conditions import find, rfc3339
from mms_operator.plan.training import accept, ending, objects, slots
from mms_operator.plan.training import status as statuses
from mms_operator.plan.training.attempts import begun_attempt, ended_attempt
from mms_operator.plan.training.draft import certificates, delete, draft, master_call, waves
from mms_operator.plan.training.look import Look, seconds_since
from mms_operator.plan.training.status import State
from mms_operator.plan.types import Event
from mms_workloads import contract
from mms_workloads.contract import Activity

if TYPE_CHECKING:
    from mms_operator.api.training import TrainingStatus
    from mms_operator.plan import pods as reading
    from mms_operator.plan.stores import SecretProblem
    from mms_operator.plan.training.job import Job
    from mms_operator.plan.training.slots import Assignment
    from mms_operator.plan.types import Plan

SECRET_SECONDS = 10.0  # between two looks for a Secret that is not there
_BUSY = frozenset({Activity.COUNTING, Activity.TRAINING, Activity.EXPORTING})


def carry_on(look: Look, events: tuple[Event, ...] = ()) -> Plan:
    """Every place filled, as far as the budget allows."""
    job, observed = look.job, look.observed
    refusal = accept.refusal(job, observed)
    live = any(pod.live for pod in look.pods)
    if refusal and not live:
        state = State(Phase.PENDING, refusal.reason, refusal.message, refusal)
        return draft(look, look.status, state, deletions=delete(look.others), waves=())
    problem = accept.secret_problem(job, observed)
    if problem and not live:
        state = State(Phase.PENDING, problem.reason, problem.message)
        return draft(look, look.status, state, deletions=delete(look.others), waves=(), requeue=SECRET_SECONDS)

    workers = job.spec.workers.replicas
    begins = not any(attempt.number == job.attempt for attempt in look.status.attempts)
    if begins:
        assignment = slots.start(workers, look.known)
    else:
        assignment = slots.keep(workers, look.known, look.pods, objects.template(job))
    if refusal or problem:
        return _hold(look, assignment, refusal, problem)
    counted = [loss for loss in assignment.losses if loss.counts]
    restarts, limit = look.status.restarts + len(counted), job.spec.runPolicy.backoffLimit
    if counted and restarts > limit:
        loss = counted[-1]
        return ending.fail(
            look,
            Reason.BACKOFF_LIMIT,
            f"{limit} pods were replaced, as spec.runPolicy.backoffLimit allows, and then {loss.role} {loss.rank} "
            f"{loss.why()}. Put that right, then raise spec.runPolicy.run to start another run",
        )
    return draft(
        look,
        placed(look, assignment, restarts),
        _state(look, assignment),
        waves=waves(job, assignment),
        certificates=certificates(look),
        deletions=delete([*look.others, *slots.superfluous(look.pods, assignment)]),
        events=(*events, *(_loss_event(job, loss, assignment) for loss in assignment.losses)),
        master=master_call(job, assignment, suspend=False),
        requeue=deadline(look),
    )


def next_attempt(look: Look, why: Reason) -> Plan:
    """All pods anew, from the last checkpoint: after a suspension, and where certificates were lost."""
    number = look.job.attempt + 1
    status = look.status.model_copy(
        update={
            "attempt": number,
            "attempts": ended_attempt(look.status.attempts, why, look.now),
            "phase": str(Phase.PENDING),
            "workers": None,
        }
    )
    job = replace(look.job, attempt=number)
    following = Look(job, status, look.previous, look.observed, look.now)
    event = Event("Normal", why, f"attempt {number} of run {job.run} begins")
    return carry_on(following, events=(event,))


def deadline(look: Look) -> float | None:
    """Seconds that are left of the attempt that runs; None without a limit, or while none runs."""
    limit = look.job.spec.runPolicy.activeDeadlineSeconds
    running = next((one for one in look.status.attempts if one.number == look.job.attempt and not one.endTime), None)
    if limit is None or running is None:
        return None
    return limit - seconds_since(running.startTime, look.now)


def _hold(look: Look, assignment: Assignment, refusal: accept.Refusal | None, problem: SecretProblem | None) -> Plan:
    """What runs goes on, and nothing is made until what is wrong has been put right. A loss is counted then."""
    told = refusal or problem
    assert told is not None  # noqa: S101 - the caller has looked
    status = placed(look, assignment, look.status.restarts)
    present = sum(slot.pod is not None for slot in assignment.workers)
    status = status.model_copy(update={"incarnations": look.status.incarnations, "replicas": present})
    state = replace(_state(look, assignment), reason=told.reason, message=told.message, refusal=refusal)
    (objects_of_pods, _) = waves(look.job, assignment)
    return draft(
        look,
        status,
        state,
        waves=(objects_of_pods,),
        deletions=delete(look.others),
        master=master_call(look.job, assignment, suspend=False),
        requeue=SECRET_SECONDS if problem else None,
    )


def placed(look: Look, assignment: Assignment, restarts: int) -> TrainingStatus:
    job = look.job
    status = statuses.with_report(look.status, look.report, look.now) if look.report else look.status
    kept = slots.remember(look.known, assignment, look.pods)
    return status.model_copy(
        update={
            "run": job.run,
            "attempt": job.attempt,
            "startTime": status.startTime or rfc3339(look.now),
            "restarts": restarts,
            "attempts": begun_attempt(status, job.attempt, look.now),
            "replicas": len(assignment.workers),
            "selector": objects.selector(job.name, Role.WORKER),
            "incarnations": [
                Incarnation(pod=place, number=one.number, started=one.started) for place, one in sorted(kept.items())
            ],
        }
    )


def _state(look: Look, assignment: Assignment) -> State:
    """Pending until the master reports work; Restarting from the loss of a pod until all are whole again."""
    report, wanted = look.report, len(assignment.workers)
    whole = all(slot.runs for slot in assignment.slots)
    waits = _waits(assignment)
    busy = report is not None and report.activity in _BUSY and report.workersReady > 0
    if look.phase in (Phase.RUNNING, Phase.RESTARTING):
        back = whole and report is not None and report.workersReady >= wanted
        if assignment.losses or (look.phase is Phase.RESTARTING and not back):
            return State(Phase.RESTARTING, Reason.REPLACING_POD, _replacing(look, assignment, waits))
    if look.phase in (Phase.RUNNING, Phase.RESTARTING) or busy:
        if look.observed.master_error:
            return State(Phase.RUNNING, Reason.MASTER_UNREACHABLE, _unreachable(look.observed.master_error))
        return State(Phase.RUNNING, Reason.TRAINING, _working(report, wanted, waits))
    if look.observed.master_error:
        return State(Phase.PENDING, Reason.MASTER_UNREACHABLE, _unreachable(look.observed.master_error))
    if waits:
        return State(Phase.PENDING, waits.reason, waits.message)
    if whole:
        return State(Phase.PENDING, Reason.STARTING, "the pods run; the workers connect to the master")
    return State(Phase.PENDING, Reason.WAITING_FOR_PODS, "the pods are starting")


def _waits(assignment: Assignment) -> reading.Trouble | None:
    """What keeps a pod from starting, the master's first."""
    return next((slot.pod.trouble for slot in assignment.slots if slot.pod and slot.pod.trouble), None)


def _replacing(look: Look, assignment: Assignment, waits: reading.Trouble | None) -> str:
    if waits:
        return waits.message
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


def _working(report: contract.StatusReport | None, wanted: int, waits: reading.Trouble | None) -> str:
    match report.activity if report else None:
        case Activity.COUNTING:
            return "the workers read the data set once: sizes and vocabulary"
        case Activity.EXPORTING:
            return "the parameters are complete: they are evaluated and written"
        case _:
            ready = min(report.workersReady, wanted) if report else wanted
            if ready == wanted:
                return f"{wanted} workers train" if wanted > 1 else "1 worker trains"
            return f"{ready} of {wanted} workers train" + (f"; {waits.message}" if waits else "")


def _loss_event(job: Job, loss: slots.Loss, assignment: Assignment) -> Event:
    name = objects.pod_name(job, loss.role, loss.rank, assignment.number(loss.role, loss.rank))
    return Event("Warning", Reason.REPLACING_POD, f"{loss.role} {loss.rank} {loss.why()}: {name} takes its place")
