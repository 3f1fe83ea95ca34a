"""Whether a training may start: policies in the order in which their answers help most.

Each is a pure function to a Refusal or None. A Refusal stands until the spec or what it refers to changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api.names import Reason
from mms_operator.plan import pod_template, stores
from mms_operator.plan.training import objects
from mms_operator.plan.training.custom import environment

if TYPE_CHECKING:
    from mms_operator.plan.training.job import Job
    from mms_operator.plan.types import ObservedTraining


@dataclass(frozen=True)
class Refusal:
    reason: Reason
    message: str


def refusal(job: Job, observed: ObservedTraining) -> Refusal | None:
    """The first reason against carrying the spec out."""
    return (
        _numbers(job)
        or _pod_template(job)
        or _storage_is_named(job)
        or _storage_is_its_own(observed)
    )  # fmt: skip


def _numbers(job: Job) -> Refusal | None:
    """What a pattern cannot say of a decimal."""
    rate = job.spec.optimizer.learningRate
    if rate is not None and float(rate) <= 0:
        return Refusal(Reason.INVALID_SPEC, "spec.optimizer.learningRate must be more than 0, such as 0.025")
    return None


def _pod_template(job: Job) -> Refusal | None:
    found = pod_template.violations(
        "spec.workers.podTemplate",
        job.spec.workers.podTemplate,
        job.settings.policy,
        objects.own_containers(job),
        objects.VOLUMES,
        own_variables=environment.own_variables(job.custom) if job.custom else (),
    )
    return Refusal(Reason.POD_TEMPLATE_FORBIDDEN, "; ".join(found)) if found else None


def _storage_is_named(job: Job) -> Refusal | None:
    if job.storage is not None or job.custom is not None:
        return None
    return Refusal(
        Reason.STORAGE_MISSING,
        "there is no place for the results: set spec.storage.uri (with endpoint and secretRef where they are needed), "
        "or give the installation a store of its own (the chart's defaultStore or store.enabled)",
    )


def _storage_is_its_own(observed: ObservedTraining) -> Refusal | None:
    if observed.storage_owner is None:
        return None
    return Refusal(
        Reason.STORAGE_CONFLICT,
        f"the older training {observed.storage_owner} writes to the same spec.storage.uri: give this one another "
        "folder, or delete that one",
    )


def secret_problem(job: Job, observed: ObservedTraining) -> stores.SecretProblem | None:
    """A Secret that is not there or lacks a key. It is waited for."""
    found = (stores.secret_problem(location, observed.secrets) for location in job.locations)
    return next((problem for problem in found if problem), None) or _data_key_problem(job, observed)


def _data_key_problem(job: Job, observed: ObservedTraining) -> stores.SecretProblem | None:
    encryption = job.spec.data.encryption if job.spec.data else None
    if encryption is None or encryption.keySecretRef.name not in observed.secrets:
        return None
    reference = encryption.keySecretRef
    keys = observed.secrets[reference.name].keys
    named = f"the Secret {reference.name} that spec.data.encryption.keySecretRef names"
    if keys is None:
        return stores.SecretProblem(
            Reason.SECRET_NOT_FOUND, f"{named} does not exist: create it with the data key in its entry {reference.key}"
        )
    if reference.key not in keys:
        has = ", ".join(sorted(keys)) or "no key"
        return stores.SecretProblem(
            Reason.SECRET_KEY_MISSING, f"{named} has no entry {reference.key} (it has {has}): add it, or name another"
        )
    return None
