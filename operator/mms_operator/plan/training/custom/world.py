"""What to do about a custom task now, from what its pods show alone.

Read it as a checklist: the run is complete when its workers have ended well; it has a deadline; suspension ends the
pods, and a resumed one starts as another attempt; what is lost takes the world with it, within the budget; else every
place has its pod.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mms_operator.api.causes import RULES, Cause
from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Phase, Reason, Role
from mms_operator.api.training_status import WorkersStatus
from mms_operator.plan.conditions import rfc3339
from mms_operator.plan.training import attempts, causes, ending, incidents, running, slots, suspension
from mms_operator.plan.training import status as statuses
from mms_operator.plan.training.custom import objects, places, standing
from mms_operator.plan.training.draft import delete, draft
from mms_operator.plan.training.look import Look, seconds_since
from mms_operator.plan.training.slots import Assignment, Known, Loss
from mms_operator.plan.training.status import State
from mms_operator.plan.types import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_operator.api.training_status import IncidentStatus, TrainingStatus
    from mms_operator.plan.pods import Seen
    from mms_operator.plan.types import Object, Plan

# SIGTERM and the 30 s of grace that pods have by default; a pod of a node that is lost never ends.
RELEASE_SECONDS = 45.0


def plan(look: Look) -> Plan:
    return _conclude(look) or running.time_out(look) or _suspend_or_resume(look) or _carry_on(look)


def _conclude(look: Look) -> Plan | None:
    if not _begun(look):
        return None
    ended = {(pod.role, pod.rank, pod.incarnation) for pod in look.pods if _ended_well(pod)}
    known = look.known
    wanted = [
        (role, rank, known.get(slots.key(role, rank), Known(0)).number) for role, rank in places.finishing(look.job)
    ]
    if not all(place in ended for place in wanted):
        return None
    who = "the chief" if places.has_chief(look.job) else "every worker"
    storage = look.job.storage
    where = f"; its results are where the program wrote them, such as below {storage.store.uri}" if storage else ""
    return ending.done(look, f"{who} has ended with exit code 0{where}")


def _ended_well(pod: Seen) -> bool:
    """Of itself: not since somebody told it to."""
    return pod.ended is not None and pod.ended.good and pod.ended_before


def _suspend_or_resume(look: Look) -> Plan | None:
    if look.job.spec.runPolicy.suspend or look.phase is Phase.SUSPENDING:
        return _suspend(look)
    if look.phase is Phase.SUSPENDED and look.status.attempts:
        return _carry_on(_next(look, Reason.RESUMED, Phase.PENDING), (_begins(look, Reason.RESUMED),))
    return None


def _suspend(look: Look) -> Plan:
    waited = statuses.seconds_in(look.previous, Kind.SUSPENDED, "Unknown", look.now)
    remain = [pod for pod in (*look.pods, *look.others) if pod.ended is None]
    if not remain:
        return suspension.suspended(look, None, held="all pods have ended")
    names = ", ".join(sorted(pod.name for pod in remain))
    said = f"pods have not ended after {RELEASE_SECONDS:.0f} s, as on a node that is lost: {names}"
    if look.phase is Phase.SUSPENDED:
        return suspension.suspended(look, None, held=said)
    if waited > RELEASE_SECONDS:
        events = (Event("Warning", Reason.SUSPEND_TIMEOUT, said),)
        return suspension.suspended(look, None, events, held=said)
    status = look.status.model_copy(update={"workers": None})
    state = State(Phase.SUSPENDING, Reason.SUSPENDING, f"the pods are told to stop (SIGTERM) and have 30 s: {names}")
    requeue = RELEASE_SECONDS - waited + 1.0
    return draft(look, status, state, deletions=delete(remain), requeue=requeue, prune=False)


def _carry_on(look: Look, events: tuple[Event, ...] = ()) -> Plan:
    against = running.objection(look)
    if against is not None and not any(pod.live for pod in look.pods):
        return running.withheld(look, against)
    assignment = _assign(look)
    if against is not None:
        held = replace(
            standing.state(look, assignment.slots),
            reason=against.reason,
            message=against.message,
            refusal=against.refusal,
        )
        return draft(
            look, look.status, held, deletions=delete(look.others), events=events, requeue=against.requeue, prune=False
        )
    if assignment.losses:
        return _restart(look, _telling(look, assignment.losses))
    return _world(look, assignment, events)


def _assign(look: Look) -> Assignment:
    """Each place with its pod: at the start of an attempt all anew, then as they are. What is lost is told."""
    job = look.job
    wanted = places.places(job)
    if not _begun(look):
        return slots.start(wanted, look.known)
    template = objects.template(job)
    found = slots.keep(wanted, look.known, look.pods, template, {}, released=True)
    outdated = [
        Loss(Role(pod.role), pod.rank, Cause.OUTDATED)
        for pod in look.pods
        if pod.live and not objects.is_of_world(pod.template, template)
    ]
    return replace(found, losses=(*found.losses, *outdated))


def _begun(look: Look) -> bool:
    return any(attempt.number == look.job.attempt for attempt in look.status.attempts)


def _telling(look: Look, losses: Sequence[Loss]) -> Loss:
    """The one that the others follow from: what came from outside, else what ended first."""
    times = {(pod.role, pod.rank): pod.finished for pod in look.pods if pod.finished}
    return min(losses, key=lambda loss: (counts(loss), times.get((loss.role, loss.rank), "9"), loss.role, loss.rank))


def counts(loss: Loss) -> bool:
    """Against backoffLimit: what the program did itself, whatever its exit code."""
    return loss.cause is Cause.PERMANENT or RULES[loss.cause].counts


def _restart(look: Look, loss: Loss) -> Plan:
    """All pods anew: the others of a world that has lost one cannot go on."""
    job, counted = look.job, counts(loss)
    restarts, limit = look.status.restarts + counted, job.spec.runPolicy.backoffLimit
    what = (
        "the spec asks for another world" if loss.cause is Cause.OUTDATED else f"{loss.role} {loss.rank} {loss.why()}"
    )
    if counted and restarts > limit:
        return ending.fail(
            look,
            Reason.BACKOFF_LIMIT,
            f"all pods were started anew {limit} times, as spec.runPolicy.backoffLimit allows, and then {what}. Put "
            "that right, then raise spec.runPolicy.run to start another run",
        )
    said = f"{what}: all pods are started anew, as attempt {job.attempt + 1}"
    phase = Phase.PENDING if look.phase is Phase.PENDING and loss.cause is Cause.OUTDATED else Phase.RESTARTING
    following = _next(look, Reason.WORLD_RESTARTS if loss.cause is Cause.OUTDATED else loss.cause, phase)
    status = incidents.added(following.status, _incident(look, loss, said)).model_copy(update={"restarts": restarts})
    following = replace(following, status=status)
    event = Event("Normal" if loss.cause is Cause.OUTDATED else "Warning", Reason.WORLD_RESTARTS, said)
    return _world(following, _assign(following), (event,), State(phase, Reason.WORLD_RESTARTS, said))


def _incident(look: Look, loss: Loss, said: str) -> list[IncidentStatus]:
    if loss.cause is Cause.OUTDATED:
        return []
    return [incidents.ours(rfc3339(look.now), loss.cause, loss.rank, 0, said)]


def _next(look: Look, why: str, phase: Phase) -> Look:
    """The next attempt, of which there is no pod yet."""
    number = look.job.attempt + 1
    update = {
        "attempt": number,
        "attempts": attempts.ended(look.status.attempts, why, look.now),
        "phase": str(phase),
        "workers": None,
    }
    job = replace(look.job, attempt=number)
    return Look(job, look.status.model_copy(update=update), look.previous, look.observed, look.now)


def _begins(look: Look, why: Reason) -> Event:
    return Event("Normal", why, f"attempt {look.job.attempt + 1} of run {look.job.run} begins")


def _world(look: Look, assignment: Assignment, events: tuple[Event, ...] = (), state: State | None = None) -> Plan:
    status = _placed(look, assignment)
    held_up = _held_up(look, status)
    return draft(
        look,
        status,
        state or standing.state(look, assignment.slots, waits_for=sorted(pod.name for pod, _ in held_up)),
        waves=_waves(look, assignment, make=not held_up),
        deletions=delete([*_left_over(look), *slots.superfluous(look.pods, assignment)]),
        events=events,
        requeue=min([left for _, left in held_up] + [left for left in (running.deadline(look),) if left], default=None),
    )


def _left_over(look: Look) -> list[Seen]:
    """Pods of earlier attempts. Those of the last one that have ended stay, for their logs."""
    last = (look.job.run, look.job.attempt - 1)
    return [pod for pod in look.others if pod.ended is None or (pod.run, pod.attempt) != last]


def _held_up(look: Look, status: TrainingStatus) -> list[tuple[Seen, float]]:
    """Pods of earlier attempts that have not ended, each with for how long at most it is waited for.

    Two attempts at once would write the same checkpoints. Nobody waits for a node that is lost.
    """
    began = next(one.startTime for one in status.attempts if one.number == look.job.attempt)
    left = RELEASE_SECONDS - seconds_since(began, look.now)
    if left <= 0:
        return []
    return [
        (pod, left) for pod in look.others if pod.node and pod.ended is None and causes.of(pod) is not Cause.NODE_LOST
    ]


def _waves(look: Look, assignment: Assignment, *, make: bool) -> tuple[tuple[Object, ...], ...]:
    job = look.job
    first = (objects.service(job), objects.network_policy(job))
    if not make:
        return (first,)
    peers = objects.hosts(job, assignment.slots)
    lost = {pod.node for pod in look.others if pod.ended is None and pod.node}
    made = tuple(objects.pod(job, slot, peers, lost) for slot in assignment.slots if slot.pod is None)
    return (first, made)


def _placed(look: Look, assignment: Assignment) -> TrainingStatus:
    workers = assignment.workers
    return running.begun(look, look.status, assignment).model_copy(
        update={
            "replicas": len(workers),
            "workers": WorkersStatus(ready=sum(slot.runs for slot in workers), epoch=look.job.attempt),
        }
    )
