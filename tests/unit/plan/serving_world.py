"""A cluster on paper with one service: Deployments make pods, which become ready or not; plans are carried out."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mms_operator.api import names
from mms_operator.plan import service
from mms_operator.plan.types import Event, Interval, ObservedService, Plan, ReferencedSecret
from mms_workloads.contract import (
    AgentReport,
    Comparison,
    Counters,
    InputsReport,
    LiveReport,
    PrecisionReport,
    ServeFile,
    SwapReport,
    short,
)
from tests.unit.plan.world import NOW, SETTINGS, cr

if TYPE_CHECKING:
    from mms_operator.plan.types import Object

STEPS = [{"percent": 20, "seconds": 60}, {"percent": 60, "seconds": 30, "approval": True}]
CANARY = {"strategy": "Canary", "canary": {"steps": STEPS}}
HOT_SWAP = {"strategy": "HotSwap"}
BLUE_GREEN = {"strategy": "BlueGreen", "blueGreen": {"approval": True, "keepSeconds": 100}}


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


@dataclass
class Pod:
    digest: str  # that it began with
    ready: bool = False
    uid: str = ""
    told: str | None = None  # its annotation
    probe: str | None = None  # another one
    orders: str | None = None  # another one
    inputs: str | None = None  # another one
    compared: InputsReport | None = None  # inputs of clients, as its agent says
    live: LiveReport | None = None  # what its follower says
    serves: str = ""
    silent: bool = False  # its agent does not answer
    failed: str = ""  # to take what it was told: the reason
    tries_again: bool = False
    broken: bool = False  # takes nothing rightly
    counters: Counters = field(default_factory=Counters)

    @property
    def letter(self) -> str:
        return self.serves[-1]


@dataclass
class ServingWorld:
    """`serve` names the wanted artifact by a letter; those in `bad` never become ready.

    strange: those that no running pod takes for one that is not strange, and the other way round.
    """

    spec: Object
    bad: frozenset[str] = frozenset()
    strange: frozenset[str] = frozenset()
    now: Any = NOW
    cr: Object = field(default_factory=dict)
    deployments: dict[str, Object] = field(default_factory=dict)  # by digest
    pods: list[Pod] = field(default_factory=list)
    objects: dict[str, Object] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    plan: Plan | None = None
    made: int = 0  # pods
    # Of a version, by its letter: what each of its pods answers in an interval, as (requests, failed, seconds each).
    traffic: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    comparison: Comparison | None = None
    interval: Interval | None = None
    precision: PrecisionReport | None = None  # that pods measure
    files: str | None = None  # of a model that was not trained here, as pods find them
    gateway_api: bool = True
    training: Object | None = None  # the one that the spec names
    secrets: dict[str, ReferencedSecret] = field(default_factory=dict)

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
        self.plan = service.plan(self.cr, self.observed(), replace(SETTINGS, gateway_api=self.gateway_api), self.now)
        self.cr["status"] = copy.deepcopy(self.plan.status)
        self.events += self.plan.events
        for wanted in self.plan.annotations:
            pod = next(one for one in self.pods if one.uid == wanted.uid)
            if names.ANNOTATION_SERVE in wanted.values:
                pod.told, pod.failed = wanted.values[names.ANNOTATION_SERVE], ""
            pod.probe = wanted.values.get(names.ANNOTATION_PROBE, pod.probe)
            pod.inputs = wanted.values.get(names.ANNOTATION_INPUTS, pod.inputs)
            pod.orders = wanted.values.get(names.ANNOTATION_LIVE, pod.orders)
        planned = {f"{obj['kind']}/{obj['metadata']['name']}": obj for wave in self.plan.waves for obj in wave}
        kept = {f"{kind}/{name}" for kind, name in self.plan.kept}
        left = {key: obj for key, obj in self.objects.items() if not self.plan.prune or key in kept}
        self.objects = left | planned
        self.deployments = {
            obj["metadata"]["annotations"][names.ANNOTATION_DIGEST]: obj
            for obj in self.objects.values()
            if obj["kind"] == "Deployment"
        }
        return self.plan

    def observed(self) -> ObservedService:
        return ObservedService(
            training=self.training,
            deployments=tuple(self._deployment(one) for one in self.deployments.values()),
            pods=tuple(self._object(pod) for pod in self.pods),
            agents=self._reports(),
            interval=self.interval,
            secrets=self.secrets,
        )

    def deploy(self) -> None:
        """Deployments make and take away pods; new ones are not ready."""
        for one in {pod.digest for pod in self.pods} | set(self.deployments):
            wanted = self.deployments[one]["spec"]["replicas"] if one in self.deployments else 0
            mine = sorted((pod for pod in self.pods if pod.digest == one), key=lambda pod: not pod.ready)
            for pod in mine[wanted:]:
                self.pods.remove(pod)
            for _ in range(wanted - len(mine)):
                self.made += 1
                self.pods.append(Pod(one, uid=f"u{self.made:03}", serves=self._first(one)))

    def start(self, most: int | None = None) -> None:
        """Pods become ready, at most so many."""
        for pod in [pod for pod in self.pods if not pod.ready and pod.digest not in self.bad][:most]:
            pod.ready = True

    def take(self, most: int | None = None) -> None:
        """Agents take what their pods are told, at most so many."""
        for pod in [pod for pod in self.pods if pod.told and digest_in(pod.told) != pod.serves][:most]:
            wanted = digest_in(pod.told or "")
            unfit = (wanted in self.strange) != (pod.serves in self.strange)
            pod.failed = "NewPodsNeeded" if unfit else "GoldenMismatch" if wanted in self.bad or pod.broken else ""
            if not pod.failed:
                pod.serves = digest_in(pod.told or "")

    def turn(self) -> None:
        self.look()
        self.deploy()
        self.start()
        self.take()

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

    def serve_clients(self, seconds: float = 2.0) -> None:
        """An interval of answers, which the agents count."""
        began, before = self.now, self._reports()
        for pod in self.pods:
            requests, failed, each = self.traffic.get(pod.letter, (0, 0, 0.0))
            if pod.ready:
                known = pod.counters
                pod.counters = Counters(
                    requests=known.requests + requests,
                    failed=known.failed + failed,
                    timed=known.timed + requests - failed,
                    seconds=known.seconds + each * (requests - failed),
                )
        self.wait(seconds)
        if self.plan and self.plan.agents and self.plan.agents.each:
            self.interval = Interval(began, self.now, before, self._reports())

    # ---- what is seen

    def counts(self) -> dict[str, int]:
        """Pods of each version, by its letter."""
        return {letter: sum(pod.letter == letter for pod in self.pods) for letter in self._letters()}

    def ready(self) -> dict[str, int]:
        letters = self._letters()
        return {letter: sum(pod.ready for pod in self.pods if pod.letter == letter) for letter in letters}

    def answering(self) -> dict[str, int]:
        """Ready pods that the Service leads to."""
        only = self.objects["Service/words"]["spec"]["selector"].get(names.LABEL_ARTIFACT)
        asked = [pod for pod in self.pods if pod.ready and only in (None, short(pod.digest))]
        return {letter: n for letter in self._letters() if (n := sum(pod.letter == letter for pod in asked))}

    def condition(self, kind: str) -> tuple[str, str] | None:
        for one in self.cr["status"]["conditions"]:
            if one["type"] == kind:
                return one["status"], one["reason"]
        return None

    @property
    def rollout(self) -> Object:
        return self.cr["status"]["rollout"]

    def _letters(self) -> list[str]:
        return sorted({pod.letter for pod in self.pods})

    def _first(self, lineage: str) -> str:
        """What a new pod begins with: as the file of its Deployment says."""
        file = self.objects[f"ConfigMap/words-serve-{short(lineage)}"]["data"]["serve.json"]
        return digest_in(file)

    def _reports(self) -> dict[str, AgentReport]:
        """Of the agents that the last plan wanted to hear of."""
        if self.plan is None or self.plan.agents is None:
            return {}
        asked = [pod for pod in self.pods if pod.ready and not pod.silent and pod.uid in self.plan.agents.hosts]
        more = {"comparison": self.comparison, "files": self.files, "precision": self.precision}
        return {pod.uid: _report(pod).model_copy(update=more) for pod in asked}

    def _object(self, pod: Pod) -> Object:
        return _object(pod)

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


def digest_in(file: str) -> str:
    return ServeFile.model_validate_json(file).artifact.digest


def file_in(text: str) -> ServeFile:
    return ServeFile.model_validate_json(text)


def _report(pod: Pod) -> AgentReport:
    swap = None
    if pod.failed and pod.told:
        told = file_in(pod.told)
        swap = SwapReport(
            digest=told.artifact.digest,
            attempt=told.attempt,
            phase="Failed",
            reason=pod.failed,
            message="the artifact wants other tensors" if pod.failed == "NewPodsNeeded" else "",
            retryable=pod.tries_again,
        )
    return AgentReport(
        digest=pod.serves,
        version=1,
        models=[],
        phase="Verified",
        goldenCases=1,
        goldenRight=1,
        swap=swap,
        counters=pod.counters,
        live=pod.live,
        inputs=pod.compared,
    )


def _object(pod: Pod) -> Object:
    annotations = {
        names.ANNOTATION_SERVE: pod.told, names.ANNOTATION_PROBE: pod.probe, names.ANNOTATION_LIVE: pod.orders,
        names.ANNOTATION_INPUTS: pod.inputs,
    }  # fmt: skip
    return {
        "metadata": {
            "name": f"words-{pod.digest[7:10]}-{pod.uid}",
            "uid": pod.uid,
            "labels": {"mms.dev/service": "words", "app.kubernetes.io/component": "server"},
            "annotations": {
                names.ANNOTATION_DIGEST: pod.digest,
                **{name: value for name, value in annotations.items() if value is not None},
            },
        },
        "status": {
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True" if pod.ready else "False"}],
        },
    }


def world(rollout: Object | None = None, replicas: int = 5, bad: str = "", strange: str = "") -> ServingWorld:
    """A service that answers with a."""
    of = [frozenset(digest(one) for one in letters) for letters in (bad, strange)]
    found = ServingWorld({"replicas": replicas, "rollout": rollout or {}}, *of)
    found.serve("a")
    found.settle()
    assert found.answering() == {"a": replicas}
    assert found.condition("Ready") == ("True", "Available")
    return found
