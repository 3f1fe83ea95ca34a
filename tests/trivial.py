"""Planners that decide next to nothing, for tests of the engine: a job file, an address, a pod and certificates.

`python -m tests.trivial` is the operator with them, for tests that need a process: of signals, and of replicas.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mms_operator.api import names
from mms_operator.engine.reconcile import Planner
from mms_operator.plan.types import Certificates, Event, ObservedService, ObservedTraining, Plan, Settings

if TYPE_CHECKING:
    from datetime import datetime

    from mms_operator.plan.types import Object

LIFETIME_DAYS = 30
OPTIONAL = "example.com/with-policy"  # the annotation that asks for a NetworkPolicy


def labels(cr: Object) -> dict[str, str]:
    return {
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_INSTANCE: cr["metadata"]["name"],
        names.LABEL_TRAINING: cr["metadata"]["name"],
    }


def child(cr: Object, api_version: str, kind: str, suffix: str, **body: Any) -> Object:
    metadata = {"name": f"{cr['metadata']['name']}-{suffix}", "labels": labels(cr)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}


def pod(cr: Object, rank: int) -> Object:
    container = {"name": "worker", "image": "localhost/worker:test"}
    spec = {"containers": [container], "restartPolicy": "Never", "automountServiceAccountToken": False}
    return child(cr, "v1", "Pod", f"worker-{rank}-1", spec=spec)


def plan_training(cr: Object, observed: ObservedTraining, settings: Settings, now: datetime) -> Plan:
    name, previous = cr["metadata"]["name"], cr.get("status") or {}
    time = previous.get("startTime") or now.strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": "Ready",
        "status": "False",
        "reason": "Starting",
        "message": "",
        "lastTransitionTime": time,
    }
    missing = [secret.name for secret in observed.secrets.values() if secret.keys is None]
    if missing:
        condition["reason"] = "SecretNotFound"
    elif observed.storage_owner:
        condition["reason"] = "StorageConflict"
    status = {
        "phase": "Pending",
        "observedGeneration": cr["metadata"]["generation"],
        "startTime": time,
        "conditions": [condition],
    }
    if missing or observed.storage_owner:
        return Plan(status=status, requeue_after=1 if missing else None)
    expires = observed.certificates_expire
    certificates = Certificates(cr, labels(cr), (f"{name}-master",), LIFETIME_DAYS) if expires is None else None
    first = [
        child(cr, "v1", "ConfigMap", "job", data={"job.json": cr["spec"]["data"]["uri"]}),
        child(cr, "v1", "Secret", "store", data={"key": "dmFsdWU="}),
        child(cr, "v1", "Service", "master", spec={"clusterIP": "None", "selector": labels(cr)}),
    ]
    if OPTIONAL in (cr["metadata"].get("annotations") or {}):
        first.append(child(cr, "networking.k8s.io/v1", "NetworkPolicy", "pods", spec={"podSelector": {}}))
    pods = tuple(pod(cr, rank) for rank in range(cr["spec"].get("workers", {}).get("replicas", 2)))
    events = () if previous else (Event("Normal", "Starting", "the pods are being made"),)
    return Plan(status=status, waves=(tuple(first), pods), certificates=certificates, events=events)


def plan_service(cr: Object, observed: ObservedService, settings: Settings, now: datetime) -> Plan:
    generation = observed.training["metadata"]["generation"] if observed.training else 0
    return Plan(status={"observedGeneration": cr["metadata"]["generation"], "replicas": generation})


def references(cr: Object) -> frozenset[str]:
    secret = (cr["spec"].get("data") or {}).get("secretRef") or {}
    return frozenset({secret["name"]} if secret else ())


PLANNERS = {
    names.TRAINING: Planner(plan_training, references),
    names.SERVICE: Planner(plan_service, references),
}


def run() -> None:
    """The operator's process. MMS_TEST_CALLS names a file for its calls, a line of JSON each."""
    from mms_operator import logs, main

    calls = Path(os.environ["MMS_TEST_CALLS"]).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115 - to the end
    observe = main.Operator.observe

    def recorded(self: main.Operator, call: Any, status: int) -> None:
        observe(self, call, status)
        calls.write(json.dumps([call.verb, call.group, call.resource, status]) + "\n")

    main.Operator.observe = recorded  # type: ignore[method-assign]
    logs.configure("INFO")
    asyncio.run(main.run_and_exit(main.Environment(), PLANNERS))


if __name__ == "__main__":
    run()
