"""A cluster on paper: plans are carried out on it, pods start and end as a test says, the clock moves by hand."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from mms_operator.api import names
from mms_operator.plan import service, training
from mms_operator.plan.types import (
    DefaultStore,
    Images,
    ObservedService,
    ObservedTraining,
    Plan,
    ReferencedSecret,
    Settings,
)
from mms_workloads.contract import Activity, ArtifactRef, CheckpointRef, Desired, Gone, Outcome, StatusReport

if TYPE_CHECKING:
    from mms_operator.plan.types import Object

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STORE = DefaultStore("s3://mms", "http://store.mms-system.svc:8333", "us-east-1", "key", "secret")
SETTINGS = Settings(Images("registry/worker:1", "registry/server:1"), STORE)
ARTIFACT = ArtifactRef(
    uri="s3://mms/d/words/runs/1/artifact", digest="sha256:" + "a" * 64, version=1, metrics={"contextAUC": 0.71}
)
CHECKPOINT = CheckpointRef(
    uri="s3://mms/d/words/runs/1/checkpoints/step-9", step=9, digest="sha256:" + "b" * 64, time="2026-01-01T00:00:09Z"
)
COMPLETE = Outcome(result="Complete", reason="TrainingComplete", artifact=ARTIFACT, checkpoint=CHECKPOINT, step=20)
SUSPENDED = Outcome(result="Suspended", reason="Suspended", checkpoint=CHECKPOINT, step=9)


def spec(**parts: Any) -> Object:
    return {
        "task": {"wordEmbedding": {"dimensions": 16}},
        "data": {"uri": "s3://corpora/text/*.txt"},
        "workers": {"replicas": 2},
        "runPolicy": {"run": 1, "suspend": False, "backoffLimit": 3},
        **parts,
    }


def cr(kind: str = names.TRAINING, name: str = "words", **parts: Any) -> Object:
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": "d", "uid": "uid-0123456789", "generation": 1},
        "spec": parts,
    }


@dataclass
class World:
    """One training. `step` plans and carries the plan out; it must come to rest."""

    cr: Object
    settings: Settings = SETTINGS
    now: datetime = NOW
    pods: dict[str, Object] = field(default_factory=dict)
    others: dict[str, Object] = field(default_factory=dict)  # what was applied, by kind/name
    secrets: dict[str, ReferencedSecret] = field(default_factory=dict)
    certificates: datetime | None = None
    report: StatusReport | None = None
    confirmed: Desired | None = None  # what the master had confirmed when it reported
    storage_owner: str | None = None
    pretrained: Object | None = None  # the training that spec.pretrained names
    served: frozenset[str] = frozenset()
    master_error: str | None = None
    silent_master: tuple[str, float] | None = None  # the pod that answered before, seconds since then
    refuse_pods: bool = False  # the API server does, and the engine says so in the conditions
    events: list[Any] = field(default_factory=list)
    names_used: set[str] = field(default_factory=set)
    plan: Plan | None = None

    @property
    def held(self) -> bool:
        """Whether the custom resource stays for now when it is deleted."""
        return bool(self.cr["metadata"].get("finalizers"))

    @property
    def status(self) -> Object:
        return self.cr.get("status") or {}

    def observed(self) -> ObservedTraining:
        status, report = self.status, self.report
        current = report and (report.run, report.attempt) == (status.get("run"), status.get("attempt"))
        return ObservedTraining(
            pods=tuple(copy.deepcopy(list(self.pods.values()))),
            certificates_expire=self.certificates,
            secrets=self.secrets,
            report=report if current else None,
            confirmed=self.confirmed if current else None,
            master_error=self.master_error,
            master_silence=self._silence(),
            pretrained=self.pretrained,
            storage_owner=self.storage_owner,
            served=self.served,
        )

    def _silence(self) -> float | None:
        """Of the master that the plan before has named: a successor's silence is not its predecessor's."""
        name, seconds = self.silent_master or ("", 0.0)
        call = self.plan.master if self.plan else None
        asked = call and name in self.pods and self.pods[name]["status"].get("podIP") == call.host
        return seconds if asked else None

    def step(self) -> Plan:
        before = copy.deepcopy(self.cr)
        self.names_used |= {name for name, pod in self.pods.items() if "containerStatuses" in pod["status"]}
        plan = training.plan(self.cr, self.observed(), self.settings, self.now)
        assert self.cr == before, "a plan changed what it was given"
        self.cr = {**self.cr, "status": copy.deepcopy(plan.status)}
        if plan.certificates:
            self.certificates = self.now + timedelta(days=plan.certificates.lifetime_days)
        for wave in plan.waves:
            for obj in wave:
                self._apply(obj)
        if plan.prune:
            planned = {f"{o['kind']}/{o['metadata']['name']}" for wave in plan.waves for o in wave}
            self.others = {k: o for k, o in self.others.items() if k in planned or k.startswith("Secret/")}
        for deletion in plan.deletions:
            pod = self.pods.get(deletion.name)
            if pod and pod["metadata"]["uid"] == deletion.uid:
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        if plan.finalizer is not None:
            finalizers = [names.FINALIZER] if plan.finalizer else []
            self.cr = {**self.cr, "metadata": {**self.cr["metadata"], "finalizers": finalizers}}
        self.events += plan.events
        self.plan = plan
        return plan

    def settle(self) -> Plan:
        """Plans until a plan changes nothing, as the engine does."""
        for _ in range(10):
            before = (copy.deepcopy(self.status), set(self.pods), copy.deepcopy(self.others))
            plan = self.step()
            if (self.status, set(self.pods), self.others) == before and not plan.events:
                return plan
        raise AssertionError(f"it does not come to rest: {self.status}")

    def _apply(self, obj: Object) -> None:
        if obj["kind"] != "Pod":
            self.others[f"{obj['kind']}/{obj['metadata']['name']}"] = obj
            return
        name = obj["metadata"]["name"]
        if name in self.pods or self.refuse_pods:
            return
        assert name not in self.names_used, f"the name {name} is used by a second process"
        pod = copy.deepcopy(obj)
        pod["metadata"] |= {"uid": f"uid-{name}", "namespace": "d"}
        pod["status"] = {"phase": "Pending"}
        self.pods[name] = pod

    # What happens to pods

    def run(self, *pods: str, node: str = "") -> None:
        """The pods get a node (each its own, if none is named) and run."""
        for name in pods or [n for n, p in self.pods.items() if p["status"]["phase"] == "Pending"]:
            self.pods[name]["spec"]["nodeName"] = node or f"node-of-{name}"
            self.pods[name]["status"] = {
                "phase": "Running",
                "podIP": f"10.0.0.{len(self.names_used) + list(self.pods).index(name)}",
                "containerStatuses": [
                    {"name": role_of(self.pods[name]), "state": {"running": {"startedAt": self._time()}}}
                ],
            }

    def end(self, name: str, code: int, outcome: Outcome | str = "", reason: str = "Error") -> None:
        text = outcome if isinstance(outcome, str) else outcome.model_dump_json(exclude_none=True)
        state = {"terminated": {"exitCode": code, "reason": reason, "message": text}}
        self.pods[name]["status"] = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [{"name": role_of(self.pods[name]), "state": state}],
        }

    def gone(self, *pods: str) -> None:
        """Deleted, and away."""
        for name in pods or [n for n, p in self.pods.items() if "deletionTimestamp" in p["metadata"]]:
            del self.pods[name]

    def waits(self, *pods: str, message: str = "0/2 nodes are available: 2 Insufficient cpu.") -> None:
        """The scheduler finds no node for the pods."""
        for name in pods:
            said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            self.pods[name]["status"] = {"phase": "Pending", "conditions": [said]}

    def says(self, activity: Activity = Activity.TRAINING, **fields: Any) -> None:
        """The master's report of the current run and attempt, when it has taken up what was wanted last."""
        self.confirmed = self.plan.master.desired if self.plan and self.plan.master else None
        shards = (self.cr["spec"].get("sync") or {}).get("parameterServer", {}).get("shards", 0)
        known = {"epoch": 1, "workersReady": 2, "shardsReady": shards, "step": 5, "percent": 25, "loss": 0.5}
        self.report = StatusReport(
            uid=self.cr["metadata"]["uid"],
            run=self.status["run"],
            attempt=self.status["attempt"],
            activity=activity,
            **{**known, **fields},
        )

    def misses(self, *pods: str, seconds: float = 3.0, **fields: Any) -> None:
        """The master has not heard of these for so long."""
        gone = []
        for name in pods:
            labels = self.pods[name]["metadata"]["labels"]
            rank, number = int(labels[names.LABEL_RANK]), int(labels[names.LABEL_INCARNATION])
            gone.append(Gone(role=labels[names.LABEL_ROLE], rank=rank, incarnation=number, seconds=seconds))
        self.says(**{"gone": gone, **fields})

    def change(self, **parts: Any) -> None:
        """An edit of the spec: whole parts are replaced."""
        metadata = {**self.cr["metadata"], "generation": self.cr["metadata"]["generation"] + 1}
        self.cr = {**self.cr, "metadata": metadata, "spec": {**self.cr["spec"], **parts}}

    def deleted(self) -> None:
        """By a user."""
        self.cr = {**self.cr, "metadata": {**self.cr["metadata"], "deletionTimestamp": self._time()}}

    def _time(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def training(self) -> None:
        """To the phase Running, with all pods."""
        self.settle()
        self.run()
        self.says()
        self.settle()
        assert self.status["phase"] == "Running"

    # What is seen

    def condition(self, kind: str) -> Object:
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {"status": None})

    def live(self) -> set[str]:
        return {
            name
            for name, pod in self.pods.items()
            if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] in ("Pending", "Running")
        }


def role_of(pod: Object) -> str:
    found: str = pod["metadata"]["labels"][names.LABEL_ROLE]
    return found


def plan_service(found: Object, observed: ObservedService, settings: Settings = SETTINGS) -> Plan:
    return service.plan(found, observed, settings, NOW)
