"""What went wrong in a run: the last incidents, and how many there were of each kind."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mms_operator.api.training_status import IncidentStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_operator.api.training_status import TrainingStatus
    from mms_workloads.contract import Incident

KEPT = 50
_ACTION_LIMIT = 256  # characters


def of_master(one: Incident) -> IncidentStatus:
    return IncidentStatus(time=one.time, kind=one.kind, rank=one.rank, step=one.step, action=one.action[:_ACTION_LIMIT])


def ours(time: str, kind: str, rank: int | None, step: int, action: str) -> IncidentStatus:
    return IncidentStatus(time=time, kind=kind, rank=rank, step=step, action=action[:_ACTION_LIMIT])


def added(status: TrainingStatus, said: Sequence[IncidentStatus]) -> TrainingStatus:
    """The status with what is said, in the order of time; what it has already is not counted again.

    A master that was replaced has forgotten the incidents before it: they stay. One that is older than all that are
    kept, where no more can be, was counted when it was among them.
    """
    known = status.incidents
    forgotten = known[0].time if len(known) >= KEPT else ""
    fresh = [one for one in dict.fromkeys(said) if one not in known and one.time > forgotten]
    if not fresh:
        return status
    counts = Counter(status.incidentCounts)
    counts.update(one.kind for one in fresh)
    kept = sorted([*known, *fresh], key=lambda one: one.time)[-KEPT:]
    return status.model_copy(update={"incidents": kept, "incidentCounts": dict(sorted(counts.items()))})
