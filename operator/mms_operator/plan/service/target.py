"""Which artifact a service should serve: pinned by its digest, with all that fetching it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api.names import Phase, Reason
from mms_operator.api.service_status import ServedVersion
from mms_operator.plan import stores
from mms_operator.plan.service import pretrained
from mms_workloads.contract import Store

if TYPE_CHECKING:
    from mms_operator.api.service import Artifact, ModelSource
    from mms_operator.api.service_status import Versions
    from mms_operator.plan.stores import Location
    from mms_operator.plan.types import DefaultStore, Object

CREDENTIALS = "storage"  # the folder of the keys, below CREDENTIALS_DIR


@dataclass(frozen=True)
class Missing:
    """There is nothing to serve yet."""

    reason: Reason
    message: str


def choose(
    model: ModelSource, versions: Versions, training: Object | None, default: DefaultStore | None
) -> ServedVersion | Missing:
    """What is pinned stays when its training is deleted or made again; a completed run is followed."""
    if model.artifact is not None:
        return _of_address(model.artifact, default)
    if model.pretrained is not None:
        return pretrained.version_of(model.pretrained, default)
    name = model.trainingRef.name if model.trainingRef else ""
    if training is not None and (made := (training.get("status") or {}).get("artifact")):
        return _of_training(name, made)
    following = None if versions.next and versions.next.live else versions.next  # it has begun in no pod for sure
    pinned = next((one for one in (following, versions.stable) if one and one.training == name), None)
    if pinned is not None:
        return pinned.model_copy(update={"replicas": 0})
    if training is None:
        return Missing(
            Reason.TRAINING_NOT_FOUND,
            f"there is no ModelTraining {name} in this namespace: make it, or correct "
            "spec.model.trainingRef.name. It is served as soon as it is complete",
        )
    return _incomplete(name, training)


def location(version: ServedVersion, default: DefaultStore | None, secret: str) -> Location:
    """Where the artifact is fetched from. `secret` is the name of the copy of the installation's keys."""
    if version.installationStore and default is not None:
        return stores.installation("spec.model", version.uri, default, CREDENTIALS, secret)
    named = version.secretRef.name if version.secretRef else None
    store = Store(
        uri=version.uri, endpoint=version.endpoint, region=version.region, credentials=CREDENTIALS if named else None
    )
    field = "spec.model.pretrained" if version.pretrained else "spec.model.artifact"
    field = "spec.storage of the training" if version.training else field
    return stores.Location(field, store, named)


def _of_address(artifact: Artifact, default: DefaultStore | None) -> ServedVersion:
    return ServedVersion(
        digest=artifact.digest,
        uri=artifact.uri.rstrip("/"),
        installationStore=stores.is_default(artifact.uri, artifact, default),
        endpoint=artifact.endpoint,
        region=artifact.region,
        secretRef=artifact.secretRef,
    )


def _of_training(name: str, made: Object) -> ServedVersion:
    return ServedVersion(
        version=made["version"],
        digest=made["digest"],
        uri=made["uri"],
        training=name,
        installationStore=made.get("installationStore", False),
        endpoint=made.get("endpoint"),
        region=made.get("region"),
        secretRef=made.get("secretRef"),
    )


def _incomplete(name: str, training: Object) -> Missing:
    if ((training.get("spec") or {}).get("task") or {}).get("custom"):
        said = (
            f"ModelTraining {name} is a custom task and publishes no artifact: give the address of what it wrote in "
            "spec.model.pretrained.uri, in place of trainingRef"
        )
        return Missing(Reason.TRAINING_NOT_COMPLETE, said)
    phase = (training.get("status") or {}).get("phase", Phase.PENDING)
    what = {
        Phase.FAILED: "has failed, so it has no artifact: `kubectl describe mt` says why",
        Phase.SUSPENDED: "is suspended: it is served once it is complete",
    }.get(phase, "has no artifact yet: it is served once it is complete")
    return Missing(Reason.TRAINING_NOT_COMPLETE, f"ModelTraining {name} {what}")
