"""What the pods of a custom task find in their environment, as the launchers of each framework set it.

PyTorch: https://docs.pytorch.org/docs/stable/elastic/run.html and distributed.html (environment variable
initialization). TensorFlow: https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable.
ps-lite: https://github.com/dmlc/ps-lite/blob/master/docs/env.md and src/zmq_van.h.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mms_operator.api.names import Role
from mms_operator.plan.training.custom.places import counts, has_chief
from mms_workloads import contract

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mms_operator.api.custom_task import Custom
    from mms_operator.plan.stores import Location
    from mms_operator.plan.training.job import Job
    from mms_operator.plan.training.slots import Place
    from mms_operator.plan.types import Object

_TORCH_NAMES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PET_")
_TENSORFLOW_NAMES = ("TF_CONFIG",)
_DMLC_NAMES = ("DMLC_",)
_OF_FRAMEWORK = {
    "PyTorch": _TORCH_NAMES,
    "TensorFlow": _TENSORFLOW_NAMES,
    "Keras": (*_TENSORFLOW_NAMES, *_TORCH_NAMES),
    "MXNet": _DMLC_NAMES,
    "Other": (),
}


def own_variables(custom: Custom) -> tuple[str, ...]:
    """Names that a podTemplate may not set; one that ends with _ stands for all that begin so."""
    return _OF_FRAMEWORK[custom.framework]


def environment(job: Job, place: Place, incarnation: int, hosts: Mapping[Place, str]) -> list[Object]:
    """The variables of a pod's own container. `hosts` are the DNS names of all places. ValueError: it is not custom."""
    custom = job.custom
    if custom is None:
        raise ValueError("a training of ours reads its job file")
    values = _ours(job, custom, place, incarnation, hosts)
    if custom.framework in ("TensorFlow", "Keras"):
        values["TF_CONFIG"] = _tf_config(job, custom, place, hosts)
    if custom.framework in ("PyTorch", "Keras") and place[0] is Role.WORKER:
        values |= _torch(job, custom, place[1], hosts)
    if custom.framework == "MXNet":
        values |= _dmlc(job, custom, place[0], hosts)
    ip = {"name": contract.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    return [*({"name": name, "value": value} for name, value in values.items()), ip]


def _ours(job: Job, custom: Custom, place: Place, incarnation: int, hosts: Mapping[Place, str]) -> dict[str, str]:
    workers = job.spec.workers.replicas
    named = [hosts[Role.WORKER, rank] for rank in range(workers)]
    values = {
        "HOME": contract.SCRATCH_DIR,  # the user has none
        "PYTHONUNBUFFERED": "1",  # a condition quotes the end of the log
        "MMS_TRAINING": job.name,
        "MMS_NAMESPACE": job.namespace,
        "MMS_RUN": str(job.run),
        contract.ENV_ATTEMPT: str(job.attempt),
        contract.ENV_ROLE: str(place[0]),
        contract.ENV_RANK: str(place[1]),
        contract.ENV_INCARNATION: str(incarnation),
        "MMS_WORKERS": str(workers),
        "MMS_WORKER_HOSTS": ",".join(named),
        "MMS_PORT": str(custom.port),
        "MMS_SCRATCH_DIR": contract.SCRATCH_DIR,
    }
    for name, location in (("DATA", job.data), ("STORAGE", job.storage)):
        if location is not None:
            values |= _store(f"MMS_{name}", location)
    return values


def _store(prefix: str, location: Location) -> dict[str, str]:
    store = location.store
    found = {
        f"{prefix}_URI": store.uri,
        f"{prefix}_ENDPOINT": store.endpoint,
        f"{prefix}_REGION": store.region,
        f"{prefix}_CREDENTIALS_DIR": f"{contract.CREDENTIALS_DIR}/{store.credentials}" if store.credentials else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _torch(job: Job, custom: Custom, rank: int, hosts: Mapping[Place, str]) -> dict[str, str]:
    """One process a pod, unless torchrun is told otherwise. It reads PET_*, the process that it starts the others."""
    workers, first, port = str(job.spec.workers.replicas), hosts[Role.WORKER, 0], str(custom.port)
    return {
        "MASTER_ADDR": first,
        "MASTER_PORT": port,
        "RANK": str(rank),
        "WORLD_SIZE": workers,
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "PET_NNODES": workers,
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": first,
        "PET_MASTER_PORT": port,
    }


def _tf_config(job: Job, custom: Custom, place: Place, hosts: Mapping[Place, str]) -> str:
    """The evaluator is no part of the cluster. Without a chief the first worker does what a chief does."""
    addresses = {one: f"{host}:{custom.port}" for one, host in hosts.items()}
    workers = [addresses[Role.WORKER, rank] for rank in range(job.spec.workers.replicas)]
    servers = [addresses[Role.SERVER, rank] for rank in range(counts(job).get(Role.SERVER, 0))]
    chief = has_chief(job)
    cluster = {"worker": workers}
    if chief:
        cluster = {"chief": workers[:1], "worker": workers[1:], "ps": servers}
    role, rank = place
    kind, index = {Role.SERVER: "ps", Role.EVALUATOR: "evaluator"}.get(role, "worker"), rank
    if chief and role is Role.WORKER:
        kind, index = ("chief", 0) if rank == 0 else ("worker", rank - 1)
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def _dmlc(job: Job, custom: Custom, role: Role, hosts: Mapping[Place, str]) -> dict[str, str]:
    return {
        "DMLC_ROLE": str(role),
        "DMLC_PS_ROOT_URI": hosts[Role.SCHEDULER, 0],
        "DMLC_PS_ROOT_PORT": str(custom.port),
        "DMLC_NUM_WORKER": str(job.spec.workers.replicas),
        "DMLC_NUM_SERVER": str(counts(job)[Role.SERVER]),
        "DMLC_USE_KUBERNETES": "1",  # the scheduler listens on all addresses, not at its name
    }
