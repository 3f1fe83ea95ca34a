"""The cluster on paper with clients: pods answer as much as they can, the rest waits; agents and activators tell."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mms_operator.api import names
from mms_operator.plan.conditions import rfc3339
from mms_operator.plan.types import Held, Interval, ObservedService, Plan
from mms_workloads.contract import AgentReport, Batching, Counters, Load, Measured, MeasuredPoint, ModelLoad
from tests.unit.plan.serving_world import Pod, ServingWorld

if TYPE_CHECKING:
    from mms_operator.plan.types import Object

TICK = 2.0  # seconds between two questions to the agents
FAST, SLOW = {"0.5": 0.01, "0.99": 0.03}, {"0.5": 0.5, "0.99": 0.9}
CURVE = ((1, 20.0, 0.02), (2, 38.0, 0.03), (4, 50.0, 0.045), (8, 52.0, 0.2))  # at a time, a second, p99


@dataclass
class Work:
    """What one pod has done and has to do."""

    made: Any
    ready: Any = None
    requests: int = 0
    pending: float = 0.0
    measured: Measured | None = None


@dataclass
class ScaledWorld(ServingWorld):
    rate: float = 0.0  # requests a second that come
    batching: Batching | None = None  # what a pod finds to be the best way
    power: float = 50.0  # requests a second that a pod answers
    start_seconds: float = 6.0
    curve: tuple[tuple[int, float, float], ...] = CURVE
    golden: int = 1  # cases of the model
    activators: tuple[str, ...] | None = ("10.0.0.9",)
    held: int = 0  # connections
    came: int = 0
    work: dict[str, Work] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)  # agents' answers, the last two
    carried: Any = None
    mute: frozenset[str] = frozenset()  # uids of pods whose agents do not answer
    refuses_scale: bool = False
    restarts: dict[str, int] = field(default_factory=dict)  # of a container, by the pods' uids

    def look(self) -> Plan:
        plan = super().look()
        self.carried = plan.scaling
        if plan.scale is not None and not self.refuses_scale:
            self.scale(plan.scale)
        return plan

    def observed(self) -> ObservedService:
        held = Held(self.activators, 20_000, self.held, self.came) if self.activators is not None else None
        return replace(super().observed(), scaling=self.carried, activator=held)

    def tick(self, times: int = 1) -> None:
        """So many times two seconds."""
        for _ in range(times):
            self.deploy()
            self._start()
            self._serve()
            self.wait(TICK)
            self._ask()
            self.look()
            self.look()  # what follows from what was written

    @property
    def scaling(self) -> Object:
        found: Object = self.cr["status"]["autoscaling"]
        return found

    @property
    def replicas(self) -> int:
        found: int = self.cr["spec"]["replicas"]
        return found

    def _start(self) -> None:
        for pod in self.pods:
            work = self.work.setdefault(pod.uid, Work(made=self.now))
            if not pod.ready and (self.now - work.made).total_seconds() >= self.start_seconds:
                pod.ready, work.ready = True, self.now
                if self._measures(pod):
                    points = [MeasuredPoint(concurrency=c, rate=r, p99=p) for c, r, p in self.curve]
                    work.measured = Measured(curve=points, seconds=10.0, batching=self.batching)

    def _measures(self, pod: Pod) -> bool:
        file = self.objects[f"ConfigMap/words-serve-{pod.digest[7:19]}"]["data"]["serve.json"]
        return '"measure"' in file

    def _serve(self) -> None:
        ready = [self.work[pod.uid] for pod in self.pods if pod.ready]
        self.came += 0 if ready else int(self.rate * TICK)
        self.held = 0 if ready else self.held + int(self.rate * TICK)
        for work in ready:
            work.pending += (self.rate * TICK + self.held) / len(ready)
            answered = min(int(work.pending), int(self.power * TICK))
            work.pending -= answered
            work.requests += answered
        self.held = 0 if ready else self.held

    def _ask(self) -> None:
        now = {pod.uid: self._said(pod) for pod in self.pods if pod.ready and pod.uid not in self.mute}
        before, self.asked = self.asked, [self.now, now]
        if before:
            self.interval = Interval(before[0], self.now, before[1], now)

    def _reports(self) -> dict[str, AgentReport]:
        return self.asked[1] if self.asked else {}

    def _said(self, pod: Pod) -> AgentReport:
        work = self.work[pod.uid]
        slow = work.pending > self.power
        model = ModelLoad(requests=work.requests, quantiles=SLOW if slow else FAST)
        return AgentReport(
            digest=pod.serves, version=1, models=[], phase="Verified", goldenCases=self.golden, goldenRight=self.golden,
            counters=Counters(requests=work.requests, timed=work.requests),
            load=Load(pending=int(work.pending), models={"neighbours": model}), measured=work.measured,
        )  # fmt: skip

    def _object(self, pod: Pod) -> Object:
        found = super()._object(pod)
        work = self.work.get(pod.uid)
        found["metadata"]["creationTimestamp"] = rfc3339(work.made if work else self.now)
        template = self.deployments[pod.digest]["spec"]["template"] if pod.digest in self.deployments else {}
        told = (template.get("metadata") or {}).get("annotations") or {}
        if names.ANNOTATION_CAPACITY in told:
            found["metadata"]["annotations"][names.ANNOTATION_CAPACITY] = told[names.ANNOTATION_CAPACITY]
        found["status"]["containerStatuses"] = [{"name": "agent", "restartCount": self.restarts.get(pod.uid, 0)}]
        if work and work.ready:
            for one in found["status"]["conditions"]:
                one["lastTransitionTime"] = rfc3339(work.ready)
        return found
