"""A run that goes on: every place has its pod, within the budget, and the status says how far it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mms_operator.api.causes import Cause
from mms_operator.api.names import Phase, Reason, Role
from mms_operator.api.training_status import ShardsStatus
from mms_operator.plan.conditions import rfc3339
from mms_operator.plan.training import accept, attempts, ending, heartbeats, incidents, objects, shards, slots, standing
from mms_operator.plan.training import status as statuses
from mms_operator.plan.training.draft import certificates, delete, draft, master_call, waves
from mms_operator.plan.training.look import Look, seconds_since
from mms_operator.plan.training.status import State
from mms_operator.plan.types import Event

if TYPE_CHECKING:
    from mms_operator.api.training_status import IncidentStatus, TrainingStatus
    from mms_operator.plan.training.job import Job
    from mms_operator.plan.training.slots import Assignment
    from mms_operator.plan.types import Plan
    from mms_workloads.contract import CheckpointRef

SECRET_SECONDS = 10.0  # between two looks for a Secret that is not there


def carry_on(look: Look, events: tuple[Event, ...] = ()) -> Plan:
    """Every place filled, as far as the budget allows."""
    job = look.job
    if (against := objection(look)) is not None:
        return _hold(look, against) if any(pod.live for pod in look.pods) else withheld(look, against)
    assignment = assign(look)
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
        standing.state(look, assignment),
        waves=waves(look, assignment),
        certificates=certificates(look),
        deletions=delete([*look.others, *slots.superfluous(look.pods, assignment)]),
        events=(*events, *(_loss_event(job, loss, assignment) for loss in assignment.losses)),
        master=master_call(job, assignment, suspend=False),
        requeue=deadline(look),
    )


@dataclass(frozen=True)
class Objection:
    """Why no pod is made now: a refusal of the spec, or something that is waited for."""

    reason: Reason
    message: str
    refusal: accept.Refusal | None = None

    @property
    def requeue(self) -> float | None:
        return SECRET_SECONDS if self.refusal is None else None


def objection(look: Look) -> Objection | None:
    if refusal := accept.refusal(look.job, look.observed):
        return Objection(refusal.reason, refusal.message, refusal)
    problem = accept.secret_problem(look.job, look.observed) or look.missing
    return Objection(problem.reason, problem.message) if problem else None


def withheld(look: Look, against: Objection) -> Plan:
    """Where nothing runs, nothing is made."""
    state = State(Phase.PENDING, against.reason, against.message, against.refusal)
    return draft(look, look.status, state, deletions=delete(look.others), waves=(), requeue=against.requeue)


def time_out(look: Look) -> Plan | None:
    left = deadline(look)
    if left is None or left > 0:
        return None
    limit = look.job.spec.runPolicy.activeDeadlineSeconds
    said = f"the attempt took longer than spec.runPolicy.activeDeadlineSeconds ({limit} s) allows"
    return ending.fail(look, Reason.DEADLINE_EXCEEDED, said)


def assign(look: Look, *, patient: bool = False) -> Assignment:
    """The places of the attempt: all anew at its start, then each with its pod or the successor of a lost one.

    patient: pods that seem to run and are not heard of are none that is lost.
    """
    job = look.job
    wanted = slots.places(job.spec.workers.replicas + job.spec.workers.standby, job.shards)
    if not any(attempt.number == job.attempt for attempt in look.status.attempts):
        return slots.start(wanted, look.known)
    masters = heartbeats.silent_master(look.observed.master_silence, look.pods)
    silent = {} if patient else heartbeats.silent(look.report, look.pods) | masters
    return slots.keep(wanted, look.known, look.pods, objects.template(job), silent, released=shards.released(look))


def next_attempt(look: Look, why: Reason, saved: CheckpointRef | None = None) -> Plan:
    """All pods anew, from the last checkpoint: after a suspension, and where certificates were lost."""
    number = look.job.attempt + 1
    status = statuses.with_report(look.status, look.report, look.now) if look.report else look.status
    checkpoint = statuses.checkpoint(saved) or status.checkpoint
    status = status.model_copy(
        update={
            "attempt": number,
            "attempts": attempts.ended(status.attempts, why, look.now, checkpoint.step if checkpoint else 0),
            "checkpoint": checkpoint,
            "phase": str(Phase.PENDING),
            "workers": None,
            "shards": None,
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


def _hold(look: Look, against: Objection) -> Plan:
    """What runs goes on, and nothing is made until what is wrong has been put right. A loss is counted then."""
    assignment = assign(look, patient=True)
    status = placed(look, replace(assignment, losses=()), look.status.restarts)
    present = min(sum(slot.pod is not None for slot in assignment.workers), look.job.spec.workers.replicas)
    status = status.model_copy(update={"replicas": present, "incarnations": look.status.incarnations})
    state = standing.state(look, assignment)
    state = replace(state, reason=against.reason, message=against.message, refusal=against.refusal)
    (objects_of_pods, _) = waves(look, assignment)
    return draft(
        look,
        status,
        state,
        waves=(objects_of_pods,),
        deletions=delete(look.others),
        master=master_call(look.job, assignment, suspend=False),
        requeue=against.requeue,
    )


def placed(look: Look, assignment: Assignment, restarts: int) -> TrainingStatus:
    job = look.job
    status = statuses.with_report(look.status, look.report, look.now) if look.report else look.status
    status = incidents.added(status, _incidents(look, assignment))
    return begun(look, status, assignment).model_copy(
        update={
            "restarts": restarts,
            "replicas": min(len(assignment.workers), job.spec.workers.replicas),
            "shards": status.shards or ShardsStatus() if job.shards else None,
        }
    )


def begun(look: Look, status: TrainingStatus, assignment: Assignment) -> TrainingStatus:
    """What holds of any attempt whose places are assigned."""
    job = look.job
    kept = slots.remember(look.known, assignment, (*look.pods, *look.others))
    return status.model_copy(
        update={
            "run": job.run,
            "attempt": job.attempt,
            "startTime": status.startTime or rfc3339(look.now),
            "attempts": attempts.begun(status, job.attempt, look.now),
            "selector": objects.selector(job.name, Role.WORKER),
            "incarnations": slots.incarnations(kept),
        }
    )


def _incidents(look: Look, assignment: Assignment) -> list[IncidentStatus]:
    """One for each pod that is replaced, but for those that never ran."""
    step = look.status.progress.step if look.status.progress else 0
    return [
        incidents.ours(
            rfc3339(look.now),
            loss.cause,
            None if loss.role is Role.MASTER else loss.rank,
            step,
            _told(look.job, loss, assignment),
        )
        for loss in assignment.losses
        if loss.cause is not Cause.OUTDATED
    ]


def _loss_event(job: Job, loss: slots.Loss, assignment: Assignment) -> Event:
    return Event("Warning", Reason.REPLACING_POD, _told(job, loss, assignment))


def _told(job: Job, loss: slots.Loss, assignment: Assignment) -> str:
    number = assignment.number(loss.role, loss.rank)
    if number is None:
        return f"{loss.role} {loss.rank} {loss.why()}: the others write the checkpoint"
    name = objects.pod_name(job, loss.role, loss.rank, number)
    return f"{loss.role} {loss.rank} {loss.why()}: {name} takes its place"
