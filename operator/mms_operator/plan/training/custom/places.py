"""Which pods a custom task has, and whose end is the run's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.names import Role

if TYPE_CHECKING:
    from mms_operator.plan.training.job import Job
    from mms_operator.plan.training.slots import Place


def counts(job: Job) -> dict[Role, int]:
    """How many pods of each role; the roles that it has not are left out. ValueError: the task is not custom."""
    custom = job.custom
    if custom is None:
        raise ValueError("a training of ours has other places")
    mxnet = custom.framework == "MXNet"
    found = {
        Role.SCHEDULER: int(mxnet),
        Role.SERVER: custom.servers or int(mxnet),
        Role.WORKER: job.spec.workers.replicas,
        Role.EVALUATOR: int(custom.evaluator),
    }
    return {role: count for role, count in found.items() if count}


def places(job: Job) -> list[Place]:
    return [(role, rank) for role, count in counts(job).items() for rank in range(count)]


def has_chief(job: Job) -> bool:
    """TensorFlow's parameter servers have a coordinator, the chief: the first worker. The others serve it."""
    return job.custom is not None and job.custom.framework != "MXNet" and Role.SERVER in counts(job)


def finishing(job: Job) -> list[Place]:
    """The run is complete when all of these have ended with exit code 0. The others are ended then."""
    return [(Role.WORKER, rank) for rank in range(1 if has_chief(job) else job.spec.workers.replicas)]
