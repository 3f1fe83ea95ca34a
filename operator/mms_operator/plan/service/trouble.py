"""What keeps the pods of an artifact from being ready. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.names import Reason
from mms_operator.plan import pods
from mms_operator.plan.service.saying import State
from mms_workloads import contract

if TYPE_CHECKING:
    from mms_operator.api.service_status import ServedVersion
    from mms_operator.plan.service.objects import Serving
    from mms_operator.plan.service.seen import Seen


def of(serving: Serving, chosen: ServedVersion, seen: Seen) -> State | None:
    """What keeps the pods of the artifact from being ready: as their containers, the scheduler or the kubelet say.

    What another try cannot mend makes the service stalled, although the kubelet goes on trying.
    """
    mine = [pod for pod in seen.began_with(chosen.lineage) if not pods.is_ready(pod)]
    for pod in mine:
        for ended in pods.failures(pod):
            if ended.outcome is not None:
                about = ended.outcome.message
                if ended.outcome.reason in (contract.Reason.CREDENTIALS_INVALID, contract.Reason.STORAGE_DENIED):
                    about = f"{about}. ({serving.location(chosen).whose()})"
                return State(ready=False, reason=ended.reason, message=about, waits=ended.retryable)
    for pod in mine:
        if trouble := pods.trouble(pod):
            return State(ready=False, reason=trouble.reason, message=trouble.message)
    for pod in mine:
        for ended in pods.failures(pod):
            said = f"a container of pod {pod['metadata']['name']} does not stay up: {ended.message}"
            return State(ready=False, reason=ended.reason, message=said)
    if (late := seen.overdue(chosen)) is not None:
        remedy = "`kubectl describe pods` says more; spec.rollout.progressDeadlineSeconds is the time it has"
        return State(ready=False, reason=Reason.PROGRESS_DEADLINE, message=f"{late}: {remedy}", waits=False)
    return None
