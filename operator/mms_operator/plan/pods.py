"""What a pod's status says: does it run, how did it end, what keeps it from starting."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mms_operator.api import names
from mms_operator.api.names import Reason
from mms_workloads import contract
from mms_workloads.contract import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mms_operator.plan.types import Object

_PULL_REASONS = frozenset(
    {
        "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
        "RegistryUnavailable", "SignatureValidationFailed",
    }
)  # fmt: skip
_CONFIG_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"}
)
SIGNALLED = 128  # exit codes from here on are 128 + a signal's number
BY_KUBELET = "TerminationByKubelet"
# Reasons of pods that the kubelet or the node's controllers have ended, where no condition says so.
_OUTSIDE = frozenset({"Evicted", "NodeLost", "NodeShutdown", "Preempting", "Shutdown", "Terminated"})
_PLACE = (names.LABEL_RANK, names.LABEL_INCARNATION, names.LABEL_RUN, names.LABEL_ATTEMPT)
TEXT_LIMIT = 1000  # characters of a log's end that a message quotes

OUT_OF_MEMORY = (
    "the container ran out of memory: raise the memory limit in resources, or make the work smaller (dimensions, "
    "maxVocabulary)"
)


@dataclass(frozen=True)
class Trouble:
    """What keeps a pod from starting."""

    reason: str
    message: str


@dataclass(frozen=True)
class Ended:
    """How a pod's own container ended."""

    exit_code: int | None  # None: the pod ended without saying, as when it is evicted
    outcome: Outcome | None  # what it wrote into the termination log, where it did
    reason: str
    message: str
    retryable: bool

    @property
    def good(self) -> bool:
        return self.exit_code == contract.EXIT_DONE


@dataclass(frozen=True)
class Seen:
    """A training's pod."""

    name: str
    uid: str
    namespace: str
    role: str
    rank: int
    incarnation: int
    run: int
    attempt: int
    ip: str | None
    node: str  # empty until the scheduler has found one
    runs: bool  # its own container does
    started: str  # when that began, in UTC; empty while it does not run
    finished: str  # when its own container ended, in UTC; empty where nobody says
    leaving: bool  # it is being deleted
    ended: Ended | None
    ended_before: bool  # it had ended when its deletion was asked for
    disruption: str  # who ends it from outside, and why, in a word; empty where nobody does
    trouble: Trouble | None
    template: str  # what it was made from

    @property
    def has_run(self) -> bool:
        """Whether a process of it has existed."""
        return self.runs or (self.ended is not None and self.ended.exit_code is not None)

    @property
    def live(self) -> bool:
        return self.ended is None and not self.leaving


def seen(pod: Object, container: str) -> Seen:
    """`container` is the name of the pod's own container, whose end is the pod's, whatever its sidecars do."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata.get("labels") or {}
    ended = _ended(status, container)
    rank, incarnation, run, attempt = _place(labels)
    return Seen(
        name=metadata["name"],
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        role=labels.get(names.LABEL_ROLE, ""),
        rank=rank,
        incarnation=incarnation,
        run=run,
        attempt=attempt,
        ip=status.get("podIP"),
        node=(pod.get("spec") or {}).get("nodeName", ""),
        runs="running" in _state(status, container),
        started=(_state(status, container).get("running") or {}).get("startedAt") or "",
        finished=(_state(status, container).get("terminated") or {}).get("finishedAt") or "",
        leaving="deletionTimestamp" in metadata,
        ended=ended,
        ended_before=ended is not None and _ended_before(metadata, status, container),
        disruption=_disruption(status),
        trouble=trouble(pod),
        template=(metadata.get("annotations") or {}).get(names.ANNOTATION_TEMPLATE, ""),
    )


def _place(labels: Object) -> list[int]:
    """Rank, incarnation, run and attempt. Where somebody has written over one it is a pod of no run."""
    try:
        return [int(labels.get(label, "0")) for label in _PLACE]
    except ValueError:
        return [-1] * len(_PLACE)


def trouble(pod: Object) -> Trouble | None:
    """What keeps the pod's containers from starting, if anything does that waiting alone will not end."""
    status = pod.get("status") or {}
    name = pod["metadata"]["name"]
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            said = condition.get("message", "")
            if condition.get("reason") in ("Unschedulable", "SchedulerError"):
                return Trouble(
                    Reason.UNSCHEDULABLE,
                    f"no node takes pod {name}: {said} Lower the resources it asks for, or add a node",
                )
            if condition.get("reason") == "SchedulingGated":
                return Trouble(Reason.UNSCHEDULABLE, f"pod {name} is held back by a scheduling gate: {said}")
    for container in _statuses(status):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, said = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _PULL_REASONS:
            # The detail is the same in the first failure and while the kubelet waits for the next try.
            detail = said.rpartition("ErrImagePull: ")[2]
            return Trouble(
                Reason.IMAGE_PULL,
                f"image {container.get('image')} of pod {name} cannot be pulled: {detail[:TEXT_LIMIT]}. Check its "
                "name, that the nodes reach the registry, and the pull secrets",
            )
        if reason in _CONFIG_REASONS:
            return Trouble(
                Reason.CONTAINER_CONFIG,
                f"container {container['name']} of pod {name} cannot be made ({reason}): {said[:TEXT_LIMIT]}",
            )
    return None


def failures(pod: Object) -> list[Ended]:
    """How containers of the pod failed, the last time that each did: of a pod whose containers are started again."""
    found = []
    for container in _statuses(pod.get("status") or {}):
        if (container.get("state") or {}).get("running") and container.get("ready"):
            continue
        for key in ("state", "lastState"):
            terminated = (container.get(key) or {}).get("terminated")
            if terminated and terminated.get("exitCode"):
                found.append(_of_container(terminated))
                break
    return found


def is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def ready_seconds(pod: Object, now: datetime) -> float | None:
    """Since when it is ready; None where it is not, infinity where that is not known."""
    if not is_ready(pod):
        return None
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Ready" and condition.get("lastTransitionTime"):
            return (now - datetime.fromisoformat(condition["lastTransitionTime"])).total_seconds()
    return math.inf


def _statuses(status: Object) -> Iterable[Object]:
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _state(status: Object, container: str) -> dict[str, Any]:
    for one in status.get("containerStatuses") or ():
        if one["name"] == container:
            return one.get("state") or {}
    return {}


def _ended(status: Object, container: str) -> Ended | None:
    if terminated := _state(status, container).get("terminated"):
        return _of_container(terminated)
    if status.get("phase") in ("Failed", "Succeeded"):
        message = status.get("message") or "the pod ended without its container saying how"
        return Ended(None, None, status.get("reason") or "PodEnded", message, retryable=True)
    return None


def _ended_before(metadata: Object, status: Object, container: str) -> bool:
    """DeletionTimestamp is when the grace period is over."""
    if "deletionTimestamp" not in metadata:
        return True
    finished = (_state(status, container).get("terminated") or {}).get("finishedAt")
    if finished is None:
        return False
    over = datetime.fromisoformat(metadata["deletionTimestamp"])
    asked = over - timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)
    return datetime.fromisoformat(finished) < asked


def _disruption(status: Object) -> str:
    """The reason of condition DisruptionTarget (KEP-3329); the kubelet's word is in the pod's own reason."""
    own: str = status.get("reason") or ""
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            said: str = condition.get("reason") or "Unknown"
            return own or said if said == BY_KUBELET else said
    return own if own in _OUTSIDE else ""


def _of_container(terminated: Object) -> Ended:
    code, text = terminated.get("exitCode", 0), (terminated.get("message") or "").strip()
    outcome = _outcome(text)
    if terminated.get("reason") == "OOMKilled":
        return Ended(code, outcome, contract.Reason.OUT_OF_MEMORY, OUT_OF_MEMORY, retryable=True)
    if outcome is not None:
        retryable = outcome.retryable or code >= SIGNALLED
        return Ended(code, outcome, outcome.reason, outcome.message, retryable=retryable)
    said = f": {text[-TEXT_LIMIT:]}" if text else ""
    if code >= SIGNALLED:
        return Ended(code, None, contract.Reason.WORKER_CRASHED, f"it died by {_signal(code)}{said}", retryable=True)
    return Ended(
        code, None, contract.Reason.WORKER_CRASHED, f"it ended with exit code {code}{said}",
        retryable=code == contract.EXIT_RETRY,
    )  # fmt: skip


def _signal(code: int) -> str:
    try:
        return signal.Signals(code - SIGNALLED).name
    except ValueError:
        return f"exit code {code}"


def _outcome(text: str) -> Outcome | None:
    if not text.startswith("{"):
        return None
    try:
        return Outcome.model_validate_json(text)
    except ValidationError:
        return None
