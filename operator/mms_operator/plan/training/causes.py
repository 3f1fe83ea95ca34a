"""Why a pod is to be replaced: from what is seen of it to a cause of the table in api/causes.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mms_operator.api.causes import RULES, Cause
from mms_operator.plan.pods import BY_KUBELET, SIGNALLED
from mms_workloads import contract
from mms_workloads.contract import EXIT_RETRY

if TYPE_CHECKING:
    from mms_operator.plan.pods import Ended, Seen

# The words of KEP-3329's condition, of the kubelet, and of the controllers that delete pods of lost nodes.
_DISRUPTIONS = {
    "PreemptionByScheduler": Cause.PREEMPTED,
    "Preempting": Cause.PREEMPTED,
    "EvictionByEvictionAPI": Cause.DRAINED,
    "DeletionByTaintManager": Cause.NODE_LOST,
    "DeletionByPodGC": Cause.NODE_LOST,
    "NodeLost": Cause.NODE_LOST,
    "NodeShutdown": Cause.NODE_SHUTDOWN,
    "Shutdown": Cause.NODE_SHUTDOWN,
    "Terminated": Cause.NODE_SHUTDOWN,
    "Evicted": Cause.EVICTED,
    BY_KUBELET: Cause.EVICTED,
}


def of(pod: Seen) -> Cause | None:
    """None: it runs, or is about to."""
    if pod.leaving and not pod.ended_before:
        return _from_outside(pod.disruption) or Cause.DELETED
    if pod.ended is not None:
        return _of_end(pod.ended, pod.disruption)
    return Cause.NOT_STARTED if pod.trouble else None


def words(pod: Seen, cause: Cause) -> str:
    """For the message: what became of it."""
    if pod.ended is not None:
        return f"ended ({pod.ended.reason}: {pod.ended.message})"
    return f"is taken away ({cause}: {RULES[cause].seen.rstrip('.')})"


def _of_end(ended: Ended, disruption: str) -> Cause:
    if ended.good:
        return Cause.DONE
    if ended.exit_code is None:
        return _DISRUPTIONS.get(disruption, Cause.REJECTED)
    if found := _from_outside(disruption):
        return found
    if ended.reason == contract.Reason.OUT_OF_MEMORY:
        return Cause.OUT_OF_MEMORY
    if ended.reason == contract.Reason.STALE_PEER:
        return Cause.STALE
    if ended.reason == contract.Reason.PEERS_UNREACHABLE:
        return Cause.PEERS_UNREACHABLE
    if ended.reason == contract.Reason.PEERS_STILL_UNREACHABLE:
        return Cause.PEERS_STILL_UNREACHABLE
    if ended.exit_code >= SIGNALLED:
        return Cause.KILLED
    said = ended.outcome
    again = said.retryable if said else ended.exit_code == EXIT_RETRY
    if not again:
        return Cause.PERMANENT
    return Cause.MASTER_FAILED if said and said.heard else Cause.RETRY


def _from_outside(disruption: str) -> Cause | None:
    """A disruption by whom no word is known is one all the same."""
    return _DISRUPTIONS.get(disruption, Cause.DISRUPTED) if disruption else None
