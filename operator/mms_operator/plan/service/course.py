"""What the decisions about a service are made from, and what they come to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from mms_operator.api.rollout import BlueGreen

if TYPE_CHECKING:
    from mms_operator.api.service_status import ServedVersion, ServiceStatus
    from mms_operator.plan.service.autoscaling import Scaled
    from mms_operator.plan.service.objects import Serving
    from mms_operator.plan.service.saying import State
    from mms_operator.plan.service.seen import Seen
    from mms_operator.plan.service.swapping import Running
    from mms_operator.plan.types import Interval


@dataclass(frozen=True)
class Look:
    """What the decisions are made from."""

    serving: Serving
    status: ServiceStatus
    seen: Seen
    now: datetime
    interval: Interval | None
    scaled: Scaled

    @property
    def replicas(self) -> int:
        return self.serving.spec.replicas

    def status_with(self, **changes: object) -> ServiceStatus:
        return self.status.model_copy(update=changes)

    def counted(self, version: ServedVersion) -> ServedVersion:
        """With the number of its pods that answer rightly."""
        return version.model_copy(update={"replicas": self.seen.ready_of(version)})

    @property
    def keep_seconds(self) -> int:
        """How long the pods of the version before stay after a switch of BlueGreen."""
        return (self.serving.spec.rollout.blueGreen or BlueGreen()).keepSeconds

    def kept_until(self) -> datetime:
        """When the pods of the version before go: no later than if the switch were now, as after a clock's set back."""
        until = self.status.keptUntil
        latest = self.now + timedelta(seconds=self.keep_seconds)
        return min(datetime.fromisoformat(until), latest) if until else self.now


@dataclass(frozen=True)
class Course:
    """What the decision came to: which pods there are to be, who answers, and what is said of it."""

    status: ServiceStatus
    state: State
    fleets: tuple[tuple[ServedVersion, int], ...] = ()  # versions and their replicas, the one that is wanted first
    route: ServedVersion | None = None  # the only one that clients are sent to; None: all
    requeue: float | None = None
    prune: bool = True  # whether what there is of other versions goes
    tell: tuple[Running, ...] = ()  # running pods that are to take `take`
    take: ServedVersion | None = None
    attempt: str = ""  # of the rollout that they are told for
    swaps: bool = False  # whether pods that began with what is stable may serve another artifact now
