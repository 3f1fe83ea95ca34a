"""What the decisions about a training look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mms_operator.api import names
from mms_operator.api.names import Phase, Role
from mms_operator.plan import pods as reading
from mms_operator.plan.training import objects, slots

if TYPE_CHECKING:
    from datetime import datetime

    from mms_operator.api.training_status import TrainingStatus
    from mms_operator.plan.pods import Seen
    from mms_operator.plan.training.job import Job
    from mms_operator.plan.training.pretrained import Missing
    from mms_operator.plan.training.slots import Known
    from mms_operator.plan.types import Object, ObservedTraining
    from mms_workloads import contract


@dataclass(frozen=True)
class Look:
    """All that the decisions look at. `status` is what the plan starts from; `pods` are of its run and attempt."""

    job: Job
    status: TrainingStatus
    previous: Object
    observed: ObservedTraining
    now: datetime
    missing: Missing | None = None  # what the run is to start from
    others: tuple[Seen, ...] = field(init=False)  # pods of other runs and attempts
    pods: tuple[Seen, ...] = field(init=False)

    def __post_init__(self) -> None:
        seen = [reading.seen(pod, _container(pod)) for pod in self.observed.pods]
        mine = [pod for pod in seen if (pod.run, pod.attempt) == (self.job.run, self.job.attempt)]
        object.__setattr__(self, "pods", tuple(mine))
        object.__setattr__(self, "others", tuple(pod for pod in seen if pod not in mine))

    @property
    def phase(self) -> Phase:
        return Phase(self.status.phase or Phase.PENDING)

    @property
    def report(self) -> contract.StatusReport | None:
        """The master's last answer, if it is of the run and attempt that the plan is about."""
        report = self.observed.report
        return report if report and (report.run, report.attempt) == (self.job.run, self.job.attempt) else None

    @property
    def known(self) -> dict[str, Known]:
        return slots.known(self.status.incarnations)


def _container(pod: Object) -> str:
    """The pod's own container is called like its role."""
    labels = pod["metadata"].get("labels") or {}
    found: str = labels.get(names.LABEL_ROLE, "")
    return found


def seconds_since(time: str, now: datetime) -> float:
    return (now - now.fromisoformat(time)).total_seconds()


def selector(look: Look) -> str:
    return objects.selector(look.job.name, Role.WORKER)
