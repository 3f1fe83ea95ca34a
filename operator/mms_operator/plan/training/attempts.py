"""The starts of a run, as the status counts them, and what each of them lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.training_status import Attempt
from mms_operator.plan.conditions import rfc3339
from mms_workloads.contract import Activity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from mms_operator.api.training_status import TrainingStatus
    from mms_workloads.contract import StatusReport

KEPT = 20
_TRAINED = frozenset({Activity.TRAINING, Activity.EXPORTING})  # the step is then that of the parameters


def begun(status: TrainingStatus, number: int, now: datetime) -> list[Attempt]:
    if any(attempt.number == number for attempt in status.attempts):
        return list(status.attempts)
    return [*status.attempts, Attempt(number=number, startTime=rfc3339(now))][-KEPT:]


def followed(attempts: Sequence[Attempt], report: StatusReport) -> list[Attempt]:
    """With the step that the attempt has come to. A step below the one before: what was between is lost."""
    return [
        _at(attempt, report.step) if attempt.number == report.attempt and report.activity in _TRAINED else attempt
        for attempt in attempts
    ]


def ended(attempts: Sequence[Attempt], reason: str, now: datetime, resumed_at: int | None = None) -> list[Attempt]:
    """`resumed_at` is the step of the checkpoint from which the next attempt goes on; None: there is no next one."""
    *before, last = attempts or [Attempt(number=1, startTime=rfc3339(now))]
    if last.endTime is None:
        lost = 0 if resumed_at is None else max(last.steps - resumed_at, 0)
        update = {"reason": str(reason), "endTime": rfc3339(now), "lostSteps": last.lostSteps + lost}
        last = last.model_copy(update=update)
    return [*before, last][-KEPT:]


def _at(attempt: Attempt, step: int) -> Attempt:
    lost = max(attempt.steps - step, 0)
    return attempt.model_copy(update={"steps": step, "lostSteps": attempt.lostSteps + lost})
