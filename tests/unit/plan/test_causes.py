"""What becomes of a pod, from all that Kubernetes says of one."""

from __future__ import annotations

from typing import Any

import pytest

from mms_operator.api.causes import RULES, Cause, Follows
from mms_operator.plan import pods
from mms_operator.plan.training import causes
from mms_workloads.contract import Outcome

Object = dict[str, Any]
NOON = "2026-01-01T12:00:00Z"


def ended(code: int, text: str = "", why: str = "Error", at: str = NOON, **status: Any) -> Object:
    terminated = {"exitCode": code, "reason": why, "message": text, "finishedAt": at}
    containers = [{"name": "worker", "state": {"terminated": terminated}}]
    return {"status": {"phase": "Failed" if code else "Succeeded", "containerStatuses": containers, **status}}


def target(reason: str) -> Object:
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason}]}


def running(**status: Any) -> Object:
    return {
        "status": {"phase": "Running", "containerStatuses": [{"name": "worker", "state": {"running": {}}}], **status}
    }


def waiting(reason: str, message: str = "") -> Object:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"status": {"phase": "Pending", "containerStatuses": [{"name": "worker", "image": "x", "state": state}]}}


def leaving(pod: Object, at: str = "2026-01-01T12:00:30Z", grace: int = 30) -> Object:
    """Its deletion was asked for at noon."""
    return {**pod, "metadata": {"deletionTimestamp": at, "deletionGracePeriodSeconds": grace}}


def said(reason: str, *, retryable: bool, heard: bool = False) -> str:
    return Outcome(result="Failed", reason=reason, retryable=retryable, heard=heard).model_dump_json()


def failed(reason: str, **status: Any) -> Object:
    return {"status": {"phase": "Failed", "reason": reason, "message": "why", **status}}


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no cpu"}

CASES: dict[str, tuple[Object, Cause | None]] = {
    "runs": (running(), None),
    "is being made": ({"status": {"phase": "Pending"}}, None),
    "its image is being pulled": (waiting("ContainerCreating"), None),
    "exit 0": (ended(0), Cause.DONE),
    "exit 0 in a drain": (ended(0, **target("EvictionByEvictionAPI")), Cause.DONE),
    "exit 1": (ended(1), Cause.PERMANENT),
    "exit 127": (ended(127), Cause.PERMANENT),
    "exit 75": (ended(75), Cause.RETRY),
    "exit 1 with an outcome that another try mends": (
        ended(1, said("StorageUnreachable", retryable=True)), Cause.RETRY,
    ),
    "exit 75 with what the master has said": (
        ended(75, said("StorageUnreachable", retryable=True, heard=True)), Cause.MASTER_FAILED,
    ),
    "exit 75 with an outcome that no other try mends": (ended(75, said("DataEmpty", retryable=False)), Cause.PERMANENT),
    "cut off again": (
        ended(1, said("PeersStillUnreachable", retryable=True)),
        Cause.PEERS_STILL_UNREACHABLE,
    ),
    "cut off from its peers": (ended(1, said("PeersUnreachable", retryable=True)), Cause.PEERS_UNREACHABLE),
    "turned away": (ended(1, said("StalePeer", retryable=False)), Cause.STALE),
    "SIGKILL": (ended(137), Cause.KILLED),
    "SIGSEGV": (ended(139, "Segmentation fault"), Cause.KILLED),
    "exit 255": (ended(255), Cause.KILLED),
    "OOMKilled": (ended(137, why="OOMKilled"), Cause.OUT_OF_MEMORY),
    "OOMKilled with exit 1": (ended(1, why="OOMKilled"), Cause.OUT_OF_MEMORY),
    "the supervisor saw the memory's end": (ended(137, said("OutOfMemory", retryable=True)), Cause.OUT_OF_MEMORY),
    "ImagePullBackOff": (waiting("ImagePullBackOff", "not found"), Cause.NOT_STARTED),
    "ErrImageNeverPull": (waiting("ErrImageNeverPull"), Cause.NOT_STARTED),
    "CreateContainerConfigError": (waiting("CreateContainerConfigError"), Cause.NOT_STARTED),
    "no node": ({"status": {"phase": "Pending", "conditions": [UNSCHEDULABLE]}}, Cause.NOT_STARTED),
    "evicted by the kubelet": (failed("Evicted", **target("TerminationByKubelet")), Cause.EVICTED),
    "evicted by the kubelet, its container killed": (
        ended(137, reason="Evicted", **target("TerminationByKubelet")), Cause.EVICTED,
    ),
    "evicted by an old kubelet": (failed("Evicted"), Cause.EVICTED),
    "node shutdown": (failed("Terminated", **target("TerminationByKubelet")), Cause.NODE_SHUTDOWN),
    "not admitted while the node shuts down": (failed("NodeShutdown"), Cause.NODE_SHUTDOWN),
    "not admitted": (failed("OutOfcpu"), Cause.REJECTED),
    "preempted": (failed("", **target("PreemptionByScheduler")), Cause.PREEMPTED),
    "preempted, its container stopped": (ended(143, **target("PreemptionByScheduler")), Cause.PREEMPTED),
    "being preempted": (leaving(running(**target("PreemptionByScheduler"))), Cause.PREEMPTED),
    "being drained": (leaving(running(**target("EvictionByEvictionAPI"))), Cause.DRAINED),
    "another's disruption": (leaving(running(**target("DeviceTaint"))), Cause.DISRUPTED),
    "its node is lost": (leaving(running(**target("DeletionByTaintManager"))), Cause.NODE_LOST),
    "its node is gone": (failed("", **target("DeletionByPodGC")), Cause.NODE_LOST),
    "its node is lost, as older releases say": (leaving(running(reason="NodeLost")), Cause.NODE_LOST),
    "being deleted": (leaving(running()), Cause.DELETED),
    "being deleted before it ran": (leaving({"status": {"phase": "Pending"}}), Cause.DELETED),
    "deleted, and stopped for that": (leaving(ended(143, at="2026-01-01T12:00:01Z")), Cause.DELETED),
    "deleted, and killed for that": (leaving(ended(137, at="2026-01-01T12:00:30Z")), Cause.DELETED),
    "deleted after it had crashed": (leaving(ended(139, at="2026-01-01T11:59:00Z")), Cause.KILLED),
    "deleted after it was done": (leaving(ended(0, at="2026-01-01T11:59:00Z")), Cause.DONE),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_cause(case: str) -> None:
    pod, cause = CASES[case]
    metadata = {"name": "words-worker-0-1", "uid": "u", "namespace": "d", **pod.get("metadata", {})}
    seen = pods.seen({**pod, "metadata": metadata}, "worker")
    assert causes.of(seen) == cause


def test_each_cause_that_a_pod_shows_has_a_case() -> None:
    elsewhere = {Cause.SILENT, Cause.MASTER_SILENT, Cause.NODE_UNREACHABLE, Cause.OUTDATED}
    assert {cause for _, cause in CASES.values() if cause} == set(Cause) - elsewhere


def test_only_what_the_program_did_itself_counts() -> None:
    counted = {cause for cause, rule in RULES.items() if rule.counts}
    assert counted == {
        Cause.RETRY, Cause.KILLED, Cause.OUT_OF_MEMORY, Cause.STALE, Cause.SILENT, Cause.MASTER_SILENT,
        Cause.EVICTED, Cause.REJECTED, Cause.PEERS_STILL_UNREACHABLE,
    }  # fmt: skip
    assert all(RULES[cause].follows is Follows.REPLACED for cause in counted)
