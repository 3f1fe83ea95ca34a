"""Suspension: a checkpoint first, then all pods are released."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Phase, Reason, Role
from mms_operator.plan.training import attempts
from mms_operator.plan.training import status as statuses
from mms_operator.plan.training.draft import delete, draft, master_call, waves
from mms_operator.plan.training.look import selector
from mms_operator.plan.training.running import assign, placed
from mms_operator.plan.training.status import State
from mms_operator.plan.types import Event

if TYPE_CHECKING:
    from mms_operator.api.training_status import CheckpointStatus
    from mms_operator.plan.training.look import Look
    from mms_operator.plan.types import Plan
    from mms_workloads.contract import Outcome

SUSPEND_SECONDS = 300.0  # for the last checkpoint; then what is durable already has to do


def suspend(look: Look) -> Plan:
    """A checkpoint first, then all pods are released. Where nothing runs there is nothing to save."""
    waited = statuses.seconds_in(look.previous, Kind.SUSPENDED, "Unknown", look.now)
    if look.phase is Phase.SUSPENDED or not any(pod.live and pod.runs for pod in look.pods):
        return suspended(look, None)
    if waited > SUSPEND_SECONDS:
        said = f"the last checkpoint was not complete after {SUSPEND_SECONDS:.0f} s; the one before it counts"
        return suspended(look, None, (Event("Warning", Reason.SUSPEND_TIMEOUT, said),))
    job = look.job
    assignment = assign(look)
    # A worker that is lost now is not replaced: the others write the checkpoint. A master is, for it alone hears that
    # the checkpoint is durable, and a shard is, for the checkpoint is whole only with its part.
    kept = tuple(slot for slot in assignment.slots if slot.pod or slot.role is not Role.WORKER)
    assignment = replace(assignment, slots=kept)
    status = placed(look, assignment, look.status.restarts)
    then = "all pods are released" if job.spec.runPolicy.suspend else "the training goes on from it"
    state = State(Phase.SUSPENDING, Reason.SUSPENDING, f"the workers write a checkpoint; then {then}")
    return draft(
        look,
        status,
        state,
        waves=waves(look, assignment),
        deletions=delete(look.others),
        master=master_call(job, assignment, suspend=True),
        requeue=SUSPEND_SECONDS - waited + 1.0,
    )


def suspended(look: Look, ended: Outcome | None, events: tuple[Event, ...] = (), held: str = "") -> Plan:
    """`held` says what there is to go on from, where no master does."""
    status = statuses.with_report(look.status, look.report, look.now) if look.report else look.status
    saved = (statuses.checkpoint(ended.checkpoint) if ended else None) or status.checkpoint
    status = status.model_copy(
        update={"checkpoint": saved, "replicas": 0, "workers": None, "shards": None, "selector": selector(look)}
    )  # fmt: skip
    if status.attempts:
        done = attempts.ended(status.attempts, Reason.SUSPENDED, look.now, saved.step if saved else 0)
        status = status.model_copy(update={"attempts": done})
    held = held or _durable(saved)
    state = State(Phase.SUSPENDED, Reason.SUSPENDED, f"{held}; set spec.runPolicy.suspend to false to go on")
    return draft(look, status, state, waves=(), deletions=delete([*look.pods, *look.others]), events=events)


def _durable(saved: CheckpointStatus | None) -> str:
    return f"the checkpoint of step {saved.step} is durable" if saved else "there is no checkpoint yet"
