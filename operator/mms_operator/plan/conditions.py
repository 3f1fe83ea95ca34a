"""Conditions by metav1's rules: lastTransitionTime moves only when the status does.

Reconciling and Stalled follow kstatus (kubernetes-sigs/cli-utils): they exist only while true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mms_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from pydantic import ValidationError

    from mms_operator.plan.types import Object

MESSAGE_LIMIT = 4096  # characters; the API allows more, kubectl describe should stay readable
_ONLY_WHILE_TRUE = frozenset({names.Condition.RECONCILING, names.Condition.STALLED})

Value = Literal["True", "False", "Unknown"]


@dataclass(frozen=True)
class Condition:
    status: Value
    reason: str
    message: str = ""


def invalid_spec(error: ValidationError) -> str:
    """What of a spec cannot be read, each with its field."""
    return "; ".join(
        f"spec.{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
    )


def rfc3339(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def since(time: str | None, now: datetime) -> datetime:
    """From when; now where nobody knows, and where that lies ahead: the clock has been set back."""
    return min(now, now.fromisoformat(time)) if time else now


def render(
    wanted: Mapping[names.Condition, Condition], previous: Sequence[Object], generation: int, now: datetime
) -> list[Object]:
    """The conditions of a status, in the order of `wanted`. `previous` are those that are there."""
    before = {condition["type"]: condition for condition in previous}
    rendered = []
    for kind, condition in wanted.items():
        if kind in _ONLY_WHILE_TRUE and condition.status != "True":
            continue
        known = before.get(str(kind))
        same = known is not None and known["status"] == condition.status
        rendered.append(
            {
                "type": str(kind),
                "status": condition.status,
                "reason": str(condition.reason),
                "message": condition.message[:MESSAGE_LIMIT],
                "lastTransitionTime": known["lastTransitionTime"] if known and same else rfc3339(now),
                "observedGeneration": generation,
            }
        )
    return rendered


def find(conditions: Sequence[Object], kind: names.Condition) -> Object | None:
    return next((condition for condition in conditions if condition["type"] == kind), None)
