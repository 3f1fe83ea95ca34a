"""The objects of a training, as they should be. Pure builders: a job in, plain Kubernetes objects out."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from mms_operator.api import names
from mms_operator.api.names import Role
from mms_operator.plan import objects, pod_template
from mms_operator.plan.training.job import job_file, not_followed
from mms_workloads import contract

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mms_operator.plan.training.job import Job
    from mms_operator.plan.types import Object

TEMPLATE_DIGITS = 12
VOLUMES = {"job": "/etc/mms", "scratch": contract.SCRATCH_DIR, "tmp": "/tmp"}  # noqa: S108 - the pod's own
_JOB_FILE = contract.JOB_FILE.rpartition("/")[2]
_ETC = contract.JOB_FILE.rpartition("/")[0]
_SUPERVISOR = "mms_workloads.train.supervisor"  # it looks at its role
_MODULES = {Role.MASTER: "mms_workloads.sync.master", Role.WORKER: _SUPERVISOR, Role.SHARD: _SUPERVISOR}
# Where the spec gives none, enough to be scheduled sensibly. The master counts words and holds no parameters.
_REQUESTS = {
    Role.MASTER: {"cpu": "50m", "memory": "128Mi"},
    Role.WORKER: {"cpu": "100m", "memory": "512Mi"},
    Role.SHARD: {"cpu": "100m", "memory": "512Mi"},
}
_COMPUTING = (Role.WORKER, Role.SHARD, Role.SERVER, Role.EVALUATOR)
_AVOID_WEIGHT = 100  # the greatest


def labels(job: Job, component: str) -> dict[str, str]:
    return objects.labels(names.LABEL_TRAINING, job.name, component)


def selector(name: str, role: str) -> str:
    return f"{names.LABEL_TRAINING}={name},{names.LABEL_ROLE}={role}"


def config_map(job: Job, served: Iterable[str] = ()) -> Object:
    text = job_file(job, served).model_dump_json(indent=1, exclude_none=True)
    return owned(job, "v1", "ConfigMap", job.config_map, data={_JOB_FILE: text})


def store_secret(job: Job) -> Object | None:
    """The installation's keys, where a location of this training uses them."""
    default = job.settings.default_store
    if default is None or not any(location.installation and location.secret for location in job.locations):
        return None
    own = labels(job, "training")
    return objects.store_secret(job.store_secret, own, default.access_key_id, default.secret_access_key)


def master_service(job: Job, incarnation: int) -> Object:
    """Headless: its name is the newest master's address, which can be reached before it is ready."""
    wanted = {
        names.LABEL_TRAINING: job.name,
        names.LABEL_ROLE: str(Role.MASTER),
        names.LABEL_INCARNATION: str(incarnation),
    }
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": wanted,
        "ports": [{"name": "control", "port": contract.MASTER_PORT, "protocol": "TCP"}],
    }
    return owned(job, "v1", "Service", job.service, spec=spec)


def network_policy(job: Job) -> Object:
    """Pods of the training reach each other; the operator reaches the master, and anybody its metrics.

    Serving pods ask the master who trains, and a worker for the parameters; their certificate lets them.
    """
    own = {"podSelector": {"matchLabels": {names.LABEL_TRAINING: job.name}}}
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": job.settings.operator_namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "operator"}},
    }
    serving = {"podSelector": {"matchExpressions": [{"key": names.LABEL_SERVICE, "operator": "Exists"}]}}
    asked = [{"port": port, "protocol": "TCP"} for port in (contract.MASTER_PORT, contract.PARAMETERS_PORT)]
    spec = {
        "podSelector": {"matchLabels": {names.LABEL_TRAINING: job.name}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [own]},
            {"from": [operator], "ports": [{"port": contract.MASTER_PORT, "protocol": "TCP"}]},
            {"ports": [{"port": contract.MASTER_HEALTH_PORT, "protocol": "TCP"}]},
            *([{"from": [serving], "ports": asked}] if not_followed(job.cr) is None else []),
        ],
    }
    return owned(job, "networking.k8s.io/v1", "NetworkPolicy", f"{job.name}-training", spec=spec)


def pod_name(job: Job, role: Role, rank: int, incarnation: int) -> str:
    return f"{job.name}-{role}-{rank}-{incarnation}"


def pod(job: Job, role: Role, rank: int, incarnation: int, avoid: Iterable[str] = ()) -> Object:
    """A bare pod of a role that runs our program, rather on other nodes than `avoid`."""
    return bare_pod(
        job,
        (role, rank, incarnation),
        _container(job, role, rank, incarnation),
        _volumes(job, role),
        template(job),
        spread={Role.WORKER: job.spec.workers.replicas + job.spec.workers.standby, Role.SHARD: job.shards}.get(role, 1)
        > 1,
        avoid=avoid,
    )


def bare_pod(
    job: Job,
    place: tuple[Role, int, int],
    container: Object,
    volumes: list[Object],
    digest: str,
    *,
    spread: bool,
    avoid: Iterable[str] = (),
) -> Object:
    """A pod of a place (role, rank, incarnation) with its own container, under the spec's podTemplate.

    The podTemplate holds for all roles, its sidecars for workers only; its resources of container `worker` for shards
    and servers, too. `digest` tells what it is made from; `spread`: rather on other nodes than those of its role.
    """
    role, rank, incarnation = place
    metadata = {
        "name": pod_name(job, role, rank, incarnation),
        "labels": {
            **labels(job, role),
            names.LABEL_ROLE: str(role),
            names.LABEL_RANK: str(rank),
            names.LABEL_INCARNATION: str(incarnation),
            names.LABEL_RUN: str(job.run),
            names.LABEL_ATTEMPT: str(job.attempt),
        },
        "annotations": {names.ANNOTATION_TEMPLATE: digest},
    }
    spec = {
        **objects.pod_spec(job.settings),
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": volumes,
    }
    if job.spec.runPolicy.priorityClassName:
        spec["priorityClassName"] = job.spec.runPolicy.priorityClassName
    if spread:
        spec["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {names.LABEL_TRAINING: job.name, names.LABEL_ROLE: str(role)}},
            }
        ]
    plain = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    given = _of_role(job.spec.workers.podTemplate, role, own_containers(job))
    made = pod_template.overlay(plain, given, sidecars=role is Role.WORKER)
    return _avoiding(made, sorted(avoid))


def own_containers(job: Job) -> tuple[Role, ...]:
    """The names of the pods' own containers: those of their roles."""
    if job.custom is None:
        return (Role.WORKER, Role.MASTER, Role.SHARD)
    return (Role.WORKER, Role.SCHEDULER, Role.SERVER, Role.EVALUATOR)


def _avoiding(pod: Object, nodes: Sequence[str]) -> Object:
    """Prefers other nodes, by their names: a lost one looks well for as long as it is not missed."""
    if not nodes:
        return pod
    terms = [
        {
            "weight": _AVOID_WEIGHT,
            "preference": {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": [node]}]},
        }
        for node in nodes
    ]
    affinity = pod["spec"].get("affinity") or {}
    of_nodes = affinity.get("nodeAffinity") or {}
    preferred = [*(of_nodes.get("preferredDuringSchedulingIgnoredDuringExecution") or ()), *terms]
    of_nodes = {**of_nodes, "preferredDuringSchedulingIgnoredDuringExecution": preferred}
    return {**pod, "spec": {**pod["spec"], "affinity": {**affinity, "nodeAffinity": of_nodes}}}


def template(job: Job) -> str:
    """A digest of what pods are made from: one that waits with another is made anew."""
    workers, images = job.spec.workers, job.settings.images
    # What is not said stays unsaid: another operator may know more fields.
    own = job.custom.model_dump(exclude_defaults=True) if job.custom else workers.image or images.worker
    parts = [own, workers.resources.model_dump(exclude_defaults=True), workers.podTemplate]
    if job.spec.runPolicy.priorityClassName:
        parts.append(job.spec.runPolicy.priorityClassName)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:TEMPLATE_DIGITS]


def _of_role(template: Object | None, role: Role, own_containers: Sequence[Role]) -> Object | None:
    """What the template says to a role: of its own container, and to the others of container `worker`, too.

    Resources of master and scheduler are their own: those of `worker` are for what computes.
    """
    if template is None or "spec" not in template:
        return template
    spec = template["spec"] or {}
    given = {container["name"]: container for container in spec.get("containers") or []}
    if role is Role.WORKER:
        kept = [container for name, container in given.items() if name == role or name not in own_containers]
        return {**template, "spec": {**spec, "containers": kept}}
    of_worker, own = given.get(Role.WORKER, {}), given.get(role, {})
    both: Object = {"name": str(role)}
    for key in ("env", "envFrom", "volumeMounts"):
        if both_ones := [*of_worker.get(key, []), *own.get(key, [])]:
            both[key] = both_ones
    resources = own.get("resources") or (of_worker.get("resources") if role in _COMPUTING else None)
    if resources:
        both["resources"] = resources
    return {**template, "spec": {**spec, "containers": [both]}}


def _container(job: Job, role: Role, rank: int, incarnation: int) -> Object:
    images, workers = job.settings.images, job.spec.workers
    given = {} if role is Role.MASTER else workers.resources.model_dump(exclude_defaults=True)
    container: dict[str, Any] = {
        "name": str(role),
        "image": workers.image or images.worker,
        "imagePullPolicy": images.pull_policy,
        "command": ["python", "-m", _MODULES[role]],
        "env": [
            {"name": contract.ENV_ROLE, "value": str(role)},
            {"name": contract.ENV_RANK, "value": str(rank)},
            {"name": contract.ENV_INCARNATION, "value": str(incarnation)},
            {"name": contract.ENV_ATTEMPT, "value": str(job.attempt)},
            {"name": contract.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "resources": given or {"requests": _REQUESTS[role]},
        "securityContext": objects.CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": name, "mountPath": path, **({"readOnly": True} if name == "job" else {})}
            for name, path in VOLUMES.items()
        ],
    }
    if role is Role.MASTER:
        probe = {"httpGet": {"path": "/healthz", "port": contract.MASTER_HEALTH_PORT}}
        container["ports"] = [
            {"name": "control", "containerPort": contract.MASTER_PORT},
            {"name": "metrics", "containerPort": contract.MASTER_HEALTH_PORT},
        ]
        container["startupProbe"] = {**probe, "periodSeconds": 1, "failureThreshold": 120}
        container["readinessProbe"] = {**probe, "periodSeconds": 5}
        container["livenessProbe"] = {**probe, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6}
    return container


def _volumes(job: Job, role: Role) -> list[Object]:
    """The job file, the role's certificate and the stores' keys in one folder, read-only; the master's data key."""
    tls = contract.TLS_DIR.removeprefix(f"{_ETC}/")
    files = [{"key": key, "path": f"{tls}/{key}"} for key in ("tls.crt", "tls.key", "ca.crt")]
    sources = [
        objects.config_source(job.config_map, _JOB_FILE),
        {"secret": {"name": f"{job.name}-{role}-tls", "items": files}},
        *(
            objects.credentials_source(location.secret, location.store.credentials or "")
            for location in job.locations
            if location.secret
        ),
    ]
    encryption = job.spec.data.encryption if job.spec.data else None
    if role is Role.MASTER and encryption is not None:
        reference = encryption.keySecretRef
        file = {"key": reference.key, "path": contract.DATA_KEY_FILE.removeprefix(f"{_ETC}/")}
        sources.append({"secret": {"name": reference.name, "items": [file]}})
    return [
        {"name": "job", "projected": {"defaultMode": 0o440, "sources": sources}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
    ]


def owned(job: Job, api_version: str, kind: str, name: str, **body: Any) -> Object:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "labels": labels(job, "training")},
        **body,
    }
