"""Ranks of which the master hears no more, and a master of which the operator hears no more.

Their pods may look well for as long as their node is not missed.
"""

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
# Where the node is well its supervisor finds out that a process hangs, has it write its stacks, and starts it again.
HUNG_SECONDS = 12.0
# A master that is slow to answer must not be taken for a lost one: its workers would meet again for nothing. One that
# never answered is out of the operator's reach, which a successor would be, too.
MASTER_SILENT_SECONDS = 10.0


def silent(report: StatusReport | None, pods: Sequence[Seen]) -> dict[Incarnate, Loss]:
    """Pods that seem to run and are not heard of, by role, rank and incarnation.

    Where others on the same node are heard of, the node is well, and it is the process that is at fault.
    """
    if report is None:
        return {}
    seconds = {(str(one.role), one.rank, one.incarnation): one.seconds for one in report.gone}
    running = [pod for pod in pods if pod.runs and pod.live]
    began = max((pod.started for pod in running if pod.role == Role.MASTER), default="")
    older = {_place(pod): seconds.get((pod.role, pod.rank, 0)) for pod in running if pod.started < began}
    missed = {_place(pod): seconds.get(_place(pod), older.get(_place(pod))) for pod in running}
    heard = {pod.node for pod in running if missed[_place(pod)] is None}
    return {
        _place(pod): _loss(pod, since, heard)
        for pod in running
        if (since := missed[_place(pod)]) is not None
        and since >= (HUNG_SECONDS if pod.node and pod.node in heard else GONE_SECONDS)
    }


def silent_master(seconds: float | None, pods: Sequence[Seen]) -> dict[Incarnate, Loss]:
    """The master's pod that seems to run, where it answered the operator once and has not for so many seconds."""
    if seconds is None or seconds < MASTER_SILENT_SECONDS:
        return {}
    said = f"has not answered the operator for {seconds:.0f} s ({Cause.MASTER_SILENT})"
    return {
        _place(pod): Loss(Role.MASTER, pod.rank, Cause.MASTER_SILENT, f"{said}, on node {pod.node or 'unknown'}")
        for pod in pods
        if pod.role == Role.MASTER and pod.runs and pod.live
    }


def _place(pod: Seen) -> Incarnate:
    return pod.role, pod.rank, pod.incarnation


def _loss(pod: Seen, seconds: float, heard: set[str]) -> Loss:
    well = bool(pod.node) and pod.node in heard
    cause = Cause.SILENT if well else Cause.NODE_UNREACHABLE
    whose = "others there are heard of" if well else "nor is any other there"
    said = f"has not been heard of for {seconds:.0f} s on node {pod.node or 'unknown'} ({cause}: {whose})"
    return Loss(Role(pod.role), pod.rank, cause, said)
