"""The starts of a run, as the status counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.training import Attempt
from mms_operator.plan.conditions import rfc3339
from mms_operator.plan.training.status import KEPT_ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from mms_operator.api.training import TrainingStatus


def ended_attempt(attempts: Sequence[Attempt], reason: str, now: datetime) -> list[Attempt]:
    *before, last = attempts or [Attempt(number=1, startTime=rfc3339(now))]
    if last.endTime is None:
        last = last.model_copy(update={"reason": str(reason), "endTime": rfc3339(now)})
    return [*before, last][-KEPT_ATTEMPTS:]


def begun_attempt(status: TrainingStatus, number: int, now: datetime) -> list[Attempt]:
    if any(attempt.number == number for attempt in status.attempts):
        return list(status.attempts)
    return [*status.attempts, Attempt(number=number, startTime=rfc3339(now))][-KEPT_ATTEMPTS:]
