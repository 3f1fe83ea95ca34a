"""A cluster on paper with one service: Deployments make pods, which become ready or not; plans are carried out."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tests.unit.plan.world import NOW, SETTINGS, cr

from mms_operator.api import names
from mms_operator.plan import service
from mms_operator.plan.types import Event, ObservedService, Plan

if TYPE_CHECKING:
    from mms_operator.plan.types import Object

DIGITS = 12


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


@dataclass
class Pod:
    digest: str
    ready: bool = False


@dataclass
class ServingWorld:
    """`serve` names the wanted artifact by a letter; those in `bad` never become ready."""

    spec: Object
    bad: frozenset[str] = frozenset()
    now: Any = NOW
    cr: Object = field(default_factory=dict)
    deployments: dict[str, Object] = field(default_factory=dict)  # by digest
    pods: list[Pod] = field(default_factory=list)
    objects: dict[str, Object] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    plan: Plan | None = None

    def __post_init__(self) -> None:
        self.cr = cr(names.SERVICE, "words", **self.spec)

    # ---- what a user does

    def serve(self, letter: str) -> None:
        self.cr["spec"]["model"] = {"artifact": {"uri": f"s3://mms/{letter}", "digest": digest(letter)}}
        self.cr["metadata"]["generation"] += 1

    def say(self, command: str | None) -> None:
        annotations = self.cr["metadata"].setdefault("annotations", {})
        if command is None:
            annotations.pop(names.ANNOTATION_ROLLOUT, None)
        else:
            annotations[names.ANNOTATION_ROLLOUT] = command

    def scale(self, replicas: int) -> None:
        self.cr["spec"]["replicas"] = replicas
        self.cr["metadata"]["generation"] += 1

    # ---- what happens

    def look(self) -> Plan:
        """One reconciliation, carried out."""
        observed = ObservedService(
            deployments=tuple(self._deployment(one) for one in self.deployments.values()),
            pods=tuple(_object(pod, number) for number, pod in enumerate(self.pods)),
        )
        self.plan = service.plan(self.cr, observed, SETTINGS, self.now)
        self.cr["status"] = copy.deepcopy(self.plan.status)
        self.events += self.plan.events
        planned = {f"{obj['kind']}/{obj['metadata']['name']}": obj for wave in self.plan.waves for obj in wave}
        self.objects = planned if self.plan.prune else {**self.objects, **planned}
        self.deployments = {
            obj["metadata"]["annotations"][names.ANNOTATION_DIGEST]: obj
            for obj in self.objects.values()
            if obj["kind"] == "Deployment"
        }
        return self.plan

    def deploy(self) -> None:
        """Deployments make and take away pods; new ones are not ready."""
        for one in {pod.digest for pod in self.pods} | set(self.deployments):
            wanted = self.deployments[one]["spec"]["replicas"] if one in self.deployments else 0
            mine = sorted((pod for pod in self.pods if pod.digest == one), key=lambda pod: not pod.ready)
            for pod in mine[wanted:]:
                self.pods.remove(pod)
            self.pods += [Pod(one) for _ in range(wanted - len(mine))]

    def start(self, most: int | None = None) -> None:
        """Pods become ready, at most so many."""
        for pod in [pod for pod in self.pods if not pod.ready and pod.digest not in self.bad][:most]:
            pod.ready = True

    def turn(self) -> None:
        self.look()
        self.deploy()
        self.start()

    def settle(self, turns: int = 40) -> None:
        """Until nothing changes but by time."""
        for _ in range(turns):
            before = (copy.deepcopy(self.cr["status"]) if "status" in self.cr else None, self.counts())
            self.turn()
            if (self.cr["status"], self.counts()) == before:
                return
        raise AssertionError(f"it does not come to rest: {self.cr['status']}")

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # ---- what is seen

    def counts(self) -> dict[str, int]:
        """Pods of each version, by its letter."""
        return {letter: sum(pod.digest == digest(letter) for pod in self.pods) for letter in self._letters()}

    def ready(self) -> dict[str, int]:
        return {
            letter: sum(pod.ready for pod in self.pods if pod.digest == digest(letter)) for letter in self._letters()
        }

    def answering(self) -> dict[str, int]:
        """Ready pods that the Service leads to."""
        selector = self.objects["Service/words"]["spec"]["selector"]
        only = selector.get(names.LABEL_ARTIFACT)
        return {letter: n for letter, n in self.ready().items() if n and only in (None, letter * DIGITS)}

    def condition(self, kind: str) -> tuple[str, str] | None:
        for one in self.cr["status"]["conditions"]:
            if one["type"] == kind:
                return one["status"], one["reason"]
        return None

    @property
    def rollout(self) -> Object:
        return self.cr["status"]["rollout"]

    def _letters(self) -> list[str]:
        return sorted({pod.digest[-1] for pod in self.pods})

    def _deployment(self, planned: Object) -> Object:
        """As the API server has it."""
        found = copy.deepcopy(planned)
        mine = [pod for pod in self.pods if pod.digest == found["metadata"]["annotations"][names.ANNOTATION_DIGEST]]
        found["metadata"]["generation"] = 1
        found["status"] = {
            "observedGeneration": 1, "replicas": len(mine), "updatedReplicas": len(mine),
            "readyReplicas": sum(pod.ready for pod in mine),
        }  # fmt: skip
        return found


def _object(pod: Pod, number: int) -> Object:
    return {
        "metadata": {
            "name": f"words-{pod.digest[7:10]}-{number}",
            "uid": f"u{number}",
            "labels": {"mms.dev/service": "words", "app.kubernetes.io/component": "server"},
            "annotations": {names.ANNOTATION_DIGEST: pod.digest},
        },
        "status": {"conditions": [{"type": "Ready", "status": "True" if pod.ready else "False"}]},
    }
