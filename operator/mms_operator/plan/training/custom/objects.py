"""The objects of a custom task: pods with names that DNS knows, and who may reach them. Pure builders."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from mms_operator.api import names
from mms_operator.api.names import Role
from mms_operator.plan import objects as common
from mms_operator.plan.training import objects
from mms_operator.plan.training.custom.environment import environment
from mms_operator.plan.training.custom.places import counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mms_operator.plan.training.job import Job
    from mms_operator.plan.training.slots import Place, Slot
    from mms_operator.plan.types import Object

_SCHEDULER_REQUESTS = {"cpu": "50m", "memory": "128Mi"}
_REQUESTS = {"cpu": "100m", "memory": "512Mi"}  # where the spec gives none
_WORLD_DIGITS = 8


def service_name(job: Job) -> str:
    return f"{job.name}-pods"


def service(job: Job) -> Object:
    """Headless: each pod has a name in DNS from the moment that it has an address, ready or not."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {names.LABEL_TRAINING: job.name},
        "ports": [{"name": "rendezvous", "port": job.custom.port if job.custom else 0, "protocol": "TCP"}],
    }
    return objects.owned(job, "v1", "Service", service_name(job), spec=spec)


def network_policy(job: Job) -> Object:
    """The pods reach each other, and nobody else does."""
    own = {"podSelector": {"matchLabels": {names.LABEL_TRAINING: job.name}}}
    spec = {**own, "policyTypes": ["Ingress"], "ingress": [{"from": [own]}]}
    return objects.owned(job, "networking.k8s.io/v1", "NetworkPolicy", f"{job.name}-training", spec=spec)


def hosts(job: Job, slots: Sequence[Slot]) -> dict[Place, str]:
    """The DNS names. An attempt's differ from those of the one before: nobody meets a pod that is on its way out."""
    domain = f"{service_name(job)}.{job.namespace}.svc.{job.settings.cluster_domain}"
    return {
        (slot.role, slot.rank): f"{objects.pod_name(job, slot.role, slot.rank, slot.incarnation)}.{domain}"
        for slot in slots
    }


def template(job: Job) -> str:
    """A digest of what makes a world, then one of what its pods are made from.

    Where the first is another, all pods are made anew, even those that run; for the second those that wait are reason
    enough.
    """
    # What is not said stays unsaid: another operator may know more fields.
    parts = [job.custom.model_dump(exclude_defaults=True) if job.custom else None, counts(job)]
    world = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:_WORLD_DIGITS]
    return f"{world}-{objects.template(job)}"


def is_of_world(made_from: str, wanted: str) -> bool:
    return made_from.partition("-")[0] == wanted.partition("-")[0]


def pod(job: Job, slot: Slot, peers: Mapping[Place, str], avoid: Iterable[str] = ()) -> Object:
    place = (slot.role, slot.rank, slot.incarnation)
    made = objects.bare_pod(
        job,
        place,
        _container(job, slot, peers),
        _volumes(job),
        template(job),
        spread=counts(job)[slot.role] > 1,
        avoid=avoid,
    )
    return {**made, "spec": {**made["spec"], "hostname": made["metadata"]["name"], "subdomain": service_name(job)}}


def _container(job: Job, slot: Slot, peers: Mapping[Place, str]) -> Object:
    custom = job.custom
    if custom is None:
        raise ValueError("a training of ours has other pods")
    requests = _SCHEDULER_REQUESTS if slot.role is Role.SCHEDULER else _REQUESTS
    given = {} if slot.role is Role.SCHEDULER else job.spec.workers.resources.model_dump(exclude_defaults=True)
    mounted = {name: path for name, path in objects.VOLUMES.items() if name != "job" or _secrets(job)}
    return {
        "name": str(slot.role),
        "image": custom.image,
        **({"command": list(custom.command)} if custom.command else {}),
        **({"args": list(custom.args)} if custom.args else {}),
        "env": environment(job, (slot.role, slot.rank), slot.incarnation, peers),
        "resources": given or {"requests": requests},
        "securityContext": common.CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": name, "mountPath": path, **({"readOnly": True} if name == "job" else {})}
            for name, path in mounted.items()
        ],
    }


def _secrets(job: Job) -> list[Object]:
    """The keys of stores that the spec names a Secret for, and no other: the image is not ours."""
    return [
        common.credentials_source(location.secret, location.store.credentials or "")
        for location in job.locations
        if location.secret
    ]


def _volumes(job: Job) -> list[Object]:
    sources = _secrets(job)
    own = [{"name": "job", "projected": {"defaultMode": 0o440, "sources": sources}}] if sources else []
    return [*own, {"name": "scratch", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
