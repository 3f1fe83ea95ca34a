"""What a run starts from: an address as it is given, or the artifact of another training, fixed when the run starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api.names import Reason
from mms_operator.api.training_status import ArtifactStatus
from mms_operator.plan import stores
from mms_workloads import contract

if TYPE_CHECKING:
    from mms_operator.api.model_tasks import Pretrained
    from mms_operator.api.training_status import TrainingStatus
    from mms_operator.plan.stores import Location
    from mms_operator.plan.types import DefaultStore, Object

FIELD = "spec.pretrained"
FOLDER = "pretrained"  # of its keys, below CREDENTIALS_DIR


@dataclass(frozen=True)
class Missing:
    """It is waited for."""

    reason: Reason
    message: str


def reference(cr: Object) -> str | None:
    """The training that a custom resource starts from, as it was written."""
    given = ((cr.get("spec") or {}).get("pretrained") or {}).get("trainingRef") or {}
    found: str | None = given.get("name")
    return found


def choose(
    given: Pretrained | None, status: TrainingStatus, training: Object | None
) -> ArtifactStatus | Missing | None:
    """The artifact of spec.pretrained.trainingRef; None where none is named. A run that has started keeps its own."""
    if given is None or given.trainingRef is None:
        return None
    if status.startTime and status.pretrained:
        return status.pretrained
    name = given.trainingRef.name
    if training is None:
        return Missing(
            Reason.TRAINING_NOT_FOUND,
            f"{FIELD}.trainingRef names ModelTraining {name}, which is not in this namespace: make it, or give "
            "another name",
        )
    made = (training.get("status") or {}).get("artifact")
    if not made and ((training.get("spec") or {}).get("task") or {}).get("custom"):
        return Missing(
            Reason.TRAINING_NOT_COMPLETE,
            f"{FIELD}.trainingRef names ModelTraining {name}, whose custom task publishes no artifact: give the "
            f"address of what it wrote in {FIELD}.uri",
        )
    if not made:
        return Missing(
            Reason.TRAINING_NOT_COMPLETE,
            f"{FIELD}.trainingRef names ModelTraining {name}, which has no artifact yet: the run starts from it as "
            "soon as it is complete",
        )
    return ArtifactStatus.model_validate({**made, "metrics": {}})


def location(
    given: Pretrained | None, made: ArtifactStatus | None, default: DefaultStore | None, secret: str
) -> Location | None:
    """secret: the name of the copy of the installation's keys."""
    if given is None:
        return None
    if given.uri is not None:
        if default is not None and stores.is_default(given.uri, given, default):
            return stores.installation(FIELD, given.uri, default, FOLDER, secret)
        return stores.locate(FIELD, given.uri, given, FOLDER)
    if made is None:
        return None
    if made.installationStore and default is not None:
        return stores.installation(FIELD, made.uri, default, FOLDER, secret)
    named = made.secretRef.name if made.secretRef else None
    store = contract.Store(
        uri=made.uri, endpoint=made.endpoint, region=made.region, credentials=FOLDER if named else None
    )
    return stores.Location(f"spec.storage of the training that {FIELD} names", store, named)


def job_part(
    given: Pretrained | None, made: ArtifactStatus | None, where: Location | None
) -> contract.Pretrained | None:
    if given is None or where is None:
        return None
    adapter = contract.Adapter(**given.lora.model_dump()) if given.lora else contract.Adapter()
    digest = given.digest if given.uri is not None else made.digest if made else None
    return contract.Pretrained(store=where.store, digest=digest, method=given.method, adapter=adapter)
