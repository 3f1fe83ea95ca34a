"""Ranks of which the master hears no more: their pods may look well for as long as their node is not missed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.causes import Cause
from mms_operator.api.names import Role
from mms_operator.plan.training.slots import Loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_operator.plan.pods import Seen
    from mms_operator.plan.training.slots import Incarnate
    from mms_workloads.contract import StatusReport

# A process that crashed is started again within its pod in less. The kubelet's node would be missed after 40 s.
GONE_SECONDS = 3.0


def silent(report: StatusReport | None, pods: Sequence[Seen]) -> dict[Incarnate, Loss]:
    """Pods that seem to run and are not heard of, by role, rank and incarnation.

    Where others on the same node are heard of, the node is well, and it is the process that is at fault.
    """
    if report is None:
        return {}
    seconds = {(str(one.role), one.rank, one.incarnation): one.seconds for one in report.gone}
    running = [pod for pod in pods if pod.runs and pod.live]
    heard = {pod.node for pod in running if _place(pod) not in seconds}
    return {
        _place(pod): _loss(pod, seconds[_place(pod)], heard)
        for pod in running
        if seconds.get(_place(pod), 0.0) >= GONE_SECONDS
    }


def _place(pod: Seen) -> Incarnate:
    return pod.role, pod.rank, pod.incarnation


def _loss(pod: Seen, seconds: float, heard: set[str]) -> Loss:
    well = bool(pod.node) and pod.node in heard
    cause = Cause.SILENT if well else Cause.NODE_UNREACHABLE
    whose = "others there are heard of" if well else "nor is any other there"
    said = f"has not been heard of for {seconds:.0f} s on node {pod.node or 'unknown'} ({cause}: {whose})"
    return Loss(Role(pod.role), pod.rank, cause, said)
