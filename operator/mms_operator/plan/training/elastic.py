"""How many workers a training has to go on with, while some have no node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mms_operator.plan.pods import Trouble
    from mms_operator.plan.training.job import Job
    from mms_operator.plan.training.slots import Assignment


@dataclass(frozen=True)
class Strength:
    """`able` workers run, or are on the way to. The others wait for what time alone does not bring, and stay so. Those
    that stand by make up for them.
    """

    wanted: int
    least: int
    able: int
    trouble: Trouble | None  # of the first worker or shard that waits

    @classmethod
    def of(cls, job: Job, assignment: Assignment) -> Strength:
        workers, places = job.spec.workers, (*assignment.workers, *assignment.shards)
        able = workers.replicas + workers.standby - sum(slot.stuck for slot in assignment.workers)
        return cls(
            wanted=workers.replicas,
            least=workers.minReplicas,
            able=min(able, workers.replicas),
            trouble=next((slot.pod.trouble for slot in places if slot.stuck and slot.pod), None),
        )

    @property
    def short(self) -> bool:
        """Whether nobody trains, for want of workers."""
        return self.able < self.least

    @property
    def target(self) -> int:
        """With how many the master is to train: it waits for no other."""
        return max(self.able, self.least)
