"""What went wrong while a plan was applied: a value on its way into a condition, an event, a metric and a log line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mms_operator.api.names import Condition

if TYPE_CHECKING:
    from mms_operator.plan.types import Object

MESSAGE_LIMIT = 1024  # bytes of an event's note


@dataclass(frozen=True)
class Problem:
    reason: str  # CamelCase
    message: str


class ReconcileError(Exception):
    """A plan could not be carried out. It is tried again later."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problem = Problem(problems[0].reason, str(self)[:MESSAGE_LIMIT])


def with_problem(status: Object, previous: Object, problem: Problem, now: str) -> Object:
    """The status while a plan cannot be carried out: not ready, and the reason why.

    `previous` is the status that is there; a condition's lastTransitionTime moves only when its status does.
    """
    generation = status.get("observedGeneration")
    overlaid = {Condition.READY: "False", Condition.RECONCILING: "True"}
    conditions = [
        _condition(kind, value, problem, _time(previous, kind, value) or now, generation)
        for kind, value in overlaid.items()
    ]
    kept = [condition for condition in status.get("conditions") or () if condition["type"] not in overlaid]
    return {**status, "conditions": [*kept, *conditions]}


def _condition(kind: str, value: str, problem: Problem, time: str, generation: int | None) -> dict[str, Any]:
    condition = {
        "type": str(kind),
        "status": value,
        "reason": problem.reason,
        "message": problem.message,
        "lastTransitionTime": time,
    }
    return condition if generation is None else {**condition, "observedGeneration": generation}


def _time(previous: Object, kind: str, value: str) -> str | None:
    for condition in previous.get("conditions") or ():
        if condition["type"] == kind and condition["status"] == value:
            time: str = condition["lastTransitionTime"]
            return time
    return None
