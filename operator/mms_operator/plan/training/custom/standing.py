"""How a custom task that goes on stands: its state in a word and for people, from its pods alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Phase, Reason, Role
from mms_operator.plan.conditions import find
from mms_operator.plan.training.status import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_operator.plan.training.look import Look
    from mms_operator.plan.training.slots import Slot

_UNDER_WAY = (Phase.RUNNING, Phase.RESTARTING)


def state(look: Look, slots: Sequence[Slot], waits_for: Sequence[str] = ()) -> State:
    """Running once all pods do. `waits_for` are pods of an earlier attempt that have not ended."""
    if all(slot.runs or _done(slot) for slot in slots):
        return State(Phase.RUNNING, Reason.TRAINING, _working(slots))
    phase = Phase.RESTARTING if look.phase in _UNDER_WAY else Phase.PENDING
    if trouble := next((slot.pod.trouble for slot in slots if slot.pod and slot.stuck), None):
        return State(phase, trouble.reason, trouble.message)
    known = find(look.previous.get("conditions") or [], Kind.READY) or {}
    if phase is Phase.RESTARTING and known.get("reason") == Reason.WORLD_RESTARTS:
        return State(phase, Reason.WORLD_RESTARTS, known["message"])
    if waits_for:
        said = f"pods of the attempt before end first: {', '.join(waits_for)}"
        return State(phase, Reason.WAITING_FOR_PODS, said)
    return State(phase, Reason.WAITING_FOR_PODS, "the pods are starting")


def _done(slot: Slot) -> bool:
    return slot.pod is not None and slot.pod.ended is not None and slot.pod.ended.good


def _working(slots: Sequence[Slot]) -> str:
    said = []
    for role in (Role.WORKER, Role.SERVER, Role.SCHEDULER, Role.EVALUATOR):
        of_role = [slot for slot in slots if slot.role is role]
        done = sum(_done(slot) for slot in of_role)
        if of_role:
            ended = f", {done} of them to the end" if done else ""
            said.append(f"{len(of_role)} {role}{'s' * (len(of_role) > 1)}{ended}")
    return f"all pods run: {'; '.join(said)}. How far they are only the program knows"
