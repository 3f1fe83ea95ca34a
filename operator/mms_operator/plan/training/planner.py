"""What to do about a training now.

Read it as a checklist: stand back where another controller acts, read the spec, begin the run that it asks for, save
what is deleted, leave ended runs alone, leave custom tasks to their own checklist, refuse what cannot be carried out,
take up how the attempt ended, suspend or resume, keep each place filled, say how it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_operator.api import names
from mms_operator.api.names import Phase, Reason
from mms_operator.api.training import TrainingSpec
from mms_operator.api.training_status import ArtifactStatus, TrainingStatus
from mms_operator.plan.conditions import Condition, invalid_spec, render
from mms_operator.plan.training import accept, deletion, ending, outcome, pretrained, running, suspension
from mms_operator.plan.training import status as statuses
from mms_operator.plan.training.custom import world
from mms_operator.plan.training.draft import events_of
from mms_operator.plan.training.job import Job
from mms_operator.plan.training.look import Look
from mms_operator.plan.training.status import State
from mms_operator.plan.types import Plan

if TYPE_CHECKING:
    from datetime import datetime

    from mms_operator.plan.types import Object, ObservedTraining, Settings


def references(cr: Object) -> frozenset[str]:
    """The Secrets that the spec names, and the one of the store that it starts from."""
    spec = cr.get("spec") or {}
    started = ((cr.get("status") or {}).get("pretrained") or {}).get("secretRef") or {}
    key = ((spec.get("data") or {}).get("encryption") or {}).get("keySecretRef") or {}
    found = ((spec.get(part) or {}).get("secretRef") or {} for part in ("data", "storage", "pretrained"))
    return frozenset(one["name"] for one in (*found, started, key) if one.get("name"))


def plan(cr: Object, observed: ObservedTraining, settings: Settings, now: datetime) -> Plan:
    """Pure: the same arguments give the same plan, and a plan that was carried out plans nothing more."""
    previous = cr.get("status") or {}
    if (cr.get("spec") or {}).get("managedBy", names.CONTROLLER) != names.CONTROLLER:
        return _stand_back(cr, previous, now)
    try:
        spec = TrainingSpec.model_validate(cr["spec"])
    except ValidationError as error:
        return _unreadable(cr, previous, error, now)
    status = _begin_run(TrainingStatus.model_validate(previous), spec)
    start = pretrained.choose(spec.pretrained, status, observed.pretrained)
    made = start if isinstance(start, ArtifactStatus) else None
    status = status.model_copy(update={"pretrained": made})
    job = Job(cr, spec, settings, status.run or 1, status.attempt or 1, made)
    look = Look(job, status, previous, observed, now, start if isinstance(start, pretrained.Missing) else None)
    if deletion.is_deleted(look):
        return deletion.before_it_goes(look)
    if look.phase in (Phase.COMPLETE, Phase.FAILED):
        return ending.rest(look)
    if job.custom is not None:
        return world.plan(look)
    return (
        _conclude(look)
        or running.time_out(look)
        or _hold_or_resume(look)
        or _start_over(look)
        or running.carry_on(look)
    )


def _stand_back(cr: Object, previous: Object, now: datetime) -> Plan:
    """Says so where nobody has said anything yet. What the other controller writes is never touched."""
    if previous.get("conditions"):
        return Plan(status=previous, prune=False)
    other = cr["spec"]["managedBy"]
    said = f"spec.managedBy is {other}: this operator does nothing for the training, whatever its spec says"
    told = {names.Condition.ACCEPTED: Condition("Unknown", Reason.MANAGED_BY_ANOTHER, said)}
    conditions = render(told, (), cr["metadata"]["generation"], now)
    return Plan(status={**previous, "conditions": conditions}, prune=False)


def _begin_run(status: TrainingStatus, spec: TrainingSpec) -> TrainingStatus:
    """A raised run begins with nothing of the one before but its numbers of incarnations, and the artifact it made."""
    if status.run == spec.runPolicy.run:
        return status
    return TrainingStatus(
        run=spec.runPolicy.run, attempt=1, incarnations=status.incarnations, artifact=status.artifact
    )  # fmt: skip


def _conclude(look: Look) -> Plan | None:
    """What follows when somebody says how the attempt ended."""
    ended = outcome.of(look.report, look.pods)
    match ended.result if ended else None:
        case "Complete" if ended and ended.artifact is not None:
            return ending.complete(look, ended)
        case "Failed" if ended:
            return ending.fail(look, ended.reason, outcome.explain(ended, look.job.locations))
        case "Suspended" if ended:
            suspend = look.job.spec.runPolicy.suspend
            if suspend:
                return suspension.suspended(look, ended)
            return running.next_attempt(look, Reason.RESUMED, ended.checkpoint)
    return None


def _hold_or_resume(look: Look) -> Plan | None:
    if look.job.spec.runPolicy.suspend or look.phase is Phase.SUSPENDING:
        return suspension.suspend(look)  # a suspension that has begun is finished first
    if look.phase is Phase.SUSPENDED and look.status.attempts:
        return running.next_attempt(look, Reason.RESUMED)
    return None


def _start_over(look: Look) -> Plan | None:
    """Pods whose certificates are lost can be joined by no other."""
    if look.observed.certificates_expire is None and any(pod.live for pod in look.pods):
        return running.next_attempt(look, Reason.CERTIFICATES_LOST)
    return None


def _unreadable(cr: Object, previous: Object, error: ValidationError, now: datetime) -> Plan:
    """A spec that this release cannot read, such as one of a newer CRD. What runs is left as it is."""
    problems = invalid_spec(error)
    refusal = accept.Refusal(Reason.INVALID_SPEC, problems)
    state = State(Phase(previous.get("phase") or Phase.PENDING), refusal.reason, problems, refusal)
    status = TrainingStatus.model_validate(previous)
    return Plan(
        status=statuses.render(status, state, previous, cr["metadata"]["generation"], now),
        events=events_of(previous, state),
        prune=False,
        finalizer=False if "deletionTimestamp" in cr["metadata"] else None,
    )
