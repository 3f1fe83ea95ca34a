"""The end of a run: complete, failed, and at rest until another run is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api import names
from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Phase, Reason
from mms_operator.plan.conditions import find, rfc3339
from mms_operator.plan.training import attempts
from mms_operator.plan.training import status as statuses
from mms_operator.plan.training.draft import delete, draft
from mms_operator.plan.training.look import seconds_since, selector
from mms_operator.plan.training.status import State
from mms_operator.plan.types import Deletion, Event
from mms_workloads.contract import Activity

if TYPE_CHECKING:
    from mms_operator.api.training_status import TrainingStatus
    from mms_operator.plan.training.look import Look
    from mms_operator.plan.types import Plan
    from mms_workloads.contract import Outcome

STRAGGLER_SECONDS = 15.0  # after the end of a run its pods end by themselves within this, or are deleted


def complete(look: Look, ended: Outcome) -> Plan:
    assert ended.artifact is not None  # noqa: S101 - the caller has looked
    status = _finished(look, Reason.COMPLETE, ended)
    status = status.model_copy(update={"artifact": statuses.artifact(ended.artifact, look.job.storage)})
    if status.progress:
        update = {"percent": 100, "activity": str(Activity.DONE), "etaSeconds": None, "samplesPerSecond": None}
        status = status.model_copy(update={"progress": status.progress.model_copy(update=update)})
    metrics = ", ".join(
        f"{name} {value}" for name, value in (status.artifact.metrics if status.artifact else {}).items()
    )
    said = f"artifact version {ended.artifact.version} is at {ended.artifact.uri}" + (
        f" ({metrics})" if metrics else ""
    )
    return _end(look, status, State(Phase.COMPLETE, Reason.COMPLETE, said))


def done(look: Look, message: str) -> Plan:
    """Complete without an artifact of ours."""
    return _end(look, _finished(look, Reason.COMPLETE, None), State(Phase.COMPLETE, Reason.COMPLETE, message))


def fail(look: Look, reason: str, message: str) -> Plan:
    return _end(look, _finished(look, reason, None), State(Phase.FAILED, reason, message))


def _finished(look: Look, reason: str, ended: Outcome | None) -> TrainingStatus:
    status = statuses.with_report(look.status, look.report, look.now) if look.report else look.status
    saved = statuses.checkpoint(ended.checkpoint) if ended else None
    return status.model_copy(
        update={
            "run": look.job.run,
            "attempt": look.job.attempt,
            "completionTime": status.completionTime or rfc3339(look.now),
            "attempts": attempts.ended(status.attempts, reason, look.now),
            "checkpoint": saved or status.checkpoint,
            "selector": selector(look),
            "replicas": 0,
            "workers": None,
        }
    )


def _end(look: Look, status: TrainingStatus, state: State) -> Plan:
    """Pods end by themselves: the master lingers until the workers have heard how the run ended."""
    return draft(look, status, state, deletions=delete(look.others), requeue=STRAGGLER_SECONDS + 1.0, prune=False)


def rest(look: Look) -> Plan:
    """A run that has ended does not begin again. Ended pods stay for their logs; what still runs is taken away."""
    # Not Ready: that may say what came in the way of the last look.
    known = find(look.previous.get("conditions") or [], Kind.FINISHED) or {}
    state = State(look.phase, known.get("reason", ""), known.get("message", ""))
    passed = seconds_since(look.status.completionTime or rfc3339(look.now), look.now)
    left = STRAGGLER_SECONDS - passed
    live = [pod for pod in look.pods if pod.live]
    if live and left > 0:
        return draft(look, look.status, state, deletions=delete(look.others), requeue=left + 1.0, prune=False)
    ttl = look.job.spec.runPolicy.ttlSecondsAfterFinished
    if ttl is not None and passed >= ttl:
        return _expire(look, state)
    return draft(
        look,
        look.status,
        state,
        waves=(),
        deletions=delete([*live, *look.others]),
        requeue=None if ttl is None else ttl - passed,
    )


def _expire(look: Look, state: State) -> Plan:
    """The custom resource itself is deleted, and with it all it owns. The store keeps what it made."""
    job = look.job
    itself = Deletion(job.cr["apiVersion"], names.TRAINING, job.namespace, job.name, job.uid)
    said = "spec.runPolicy.ttlSecondsAfterFinished has passed: the training is deleted, its results stay in the store"
    return draft(
        look, look.status, state, deletions=(itself,), events=(Event("Normal", Reason.EXPIRED, said),), prune=False
    )
