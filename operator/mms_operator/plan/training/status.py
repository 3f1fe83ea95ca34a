"""From the state of a training to its status: phase and conditions together, by one table, and what the master says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Phase, Reason
from mms_operator.api.training_status import (
    ArtifactStatus,
    BadKindStatus,
    BadRecordStatus,
    CheckpointStatus,
    DataStatus,
    PrivacyStatus,
    Progress,
    ShardsStatus,
    TrainingStatus,
    WorkersStatus,
)
from mms_operator.api.types import SecretReference
from mms_operator.plan import conditions
from mms_operator.plan.conditions import Condition, rfc3339
from mms_operator.plan.training import attempts, incidents

if TYPE_CHECKING:
    from datetime import datetime

    from mms_operator.plan.pods import Trouble
    from mms_operator.plan.stores import Location
    from mms_operator.plan.training.accept import Refusal
    from mms_operator.plan.types import Object
    from mms_workloads.contract import ArtifactRef, CheckpointRef, DataReport, PrivacyReport, StatusReport

_WAITING = frozenset({Phase.PENDING, Phase.RESTARTING, Phase.SUSPENDING})

NAMED_BAD_RECORDS, NAMED_BAD_KINDS = 10, 10
HUGE = 1e15  # a number that a status has in powers of ten


@dataclass(frozen=True)
class State:
    """The state that a plan comes to: the phase, and why in a word and for people."""

    phase: Phase
    reason: str
    message: str
    refusal: Refusal | None = None
    degraded: Trouble | None = None  # it runs with less than the spec asks for


def render(status: TrainingStatus, state: State, previous: Object, generation: int, now: datetime) -> Object:
    """The status as it is written. `previous` is the one that is there."""
    found = status.model_copy(update={"observedGeneration": generation, "phase": str(state.phase)})
    body: Object = found.model_dump(exclude_none=True, exclude={"conditions"})
    known = previous.get("conditions") or []
    body["conditions"] = conditions.render(_conditions(state), known, generation, now)
    return body


def _conditions(state: State) -> dict[Kind, Condition]:
    """The table of the API's documentation. Finished is true on either end, and its reason says which."""
    phase = state.phase
    stalled = phase is Phase.FAILED or state.refusal is not None
    ready = phase in (Phase.RUNNING, Phase.SUSPENDED, Phase.COMPLETE) and state.refusal is None
    why = (state.reason, state.message)
    accepted = (
        Condition("False", state.refusal.reason, state.refusal.message)
        if state.refusal
        else Condition("True", Reason.ACCEPTED, "the spec can be carried out")
    )

    def is_phase(*phases: Phase) -> Condition:
        if phase in phases:
            return Condition("True", *why)
        return Condition("False", phase, f"the training is {phase}")

    lacks = state.degraded
    degraded = Condition("True", lacks.reason, lacks.message) if lacks else None
    suspended = Condition("Unknown", *why) if phase is Phase.SUSPENDING else is_phase(Phase.SUSPENDED)
    return {
        Kind.ACCEPTED: accepted,
        Kind.READY: Condition("True" if ready else "False", *why),
        Kind.RECONCILING: Condition("True" if phase in _WAITING and not stalled else "False", *why),
        Kind.STALLED: Condition("True" if stalled else "False", *why),
        Kind.RUNNING: is_phase(Phase.RUNNING),
        Kind.RESTARTING: is_phase(Phase.RESTARTING),
        Kind.DEGRADED: degraded or Condition("False", phase, f"the training is {phase}"),
        Kind.SUSPENDED: suspended,
        Kind.COMPLETE: is_phase(Phase.COMPLETE),
        Kind.FAILED: is_phase(Phase.FAILED),
        Kind.FINISHED: is_phase(Phase.COMPLETE, Phase.FAILED),
    }


def with_report(status: TrainingStatus, report: StatusReport, now: datetime) -> TrainingStatus:
    """What the master says, as the status shows it. The time of an unchanged report stays."""
    progress = Progress(
        activity=str(report.activity),
        percent=report.percent,
        step=report.step,
        loss=None if report.loss is None else _number(report.loss),
        samplesPerSecond=report.samplesPerSecond,
        etaSeconds=report.etaSeconds,
        bytes=report.data.doneBytes if report.data else None,
        records=report.data.doneRecords if report.data else None,
        updateTime=status.progress.updateTime if status.progress else None,
    )
    if progress != status.progress or progress.updateTime is None:
        progress = progress.model_copy(update={"updateTime": rfc3339(now)})
    known = status.model_copy(
        update={
            "progress": progress,
            "workers": WorkersStatus(ready=report.workersReady, standby=report.workersStandby, epoch=report.epoch),
            "shards": ShardsStatus(ready=report.shardsReady) if status.shards or report.shardsReady else None,
            "data": data(report.data) or status.data,
            "privacy": privacy(report.privacy) or status.privacy,
            "precision": report.precision or status.precision,
            # The only one may have been given up, when the guard took the run back behind it.
            "checkpoint": checkpoint(report.checkpoint) or (None if report.knowsCheckpoint else status.checkpoint),
            "attempts": attempts.followed(status.attempts, report),
        }
    )
    return incidents.added(known, [incidents.of_master(one) for one in report.incidents])


def _number(value: float) -> str:
    """Four digits behind the point; one that is so large that the field would not hold it by its power of ten."""
    return f"{value:.4f}" if abs(value) < HUGE else f"{value:.4e}"


def data(report: DataReport | None) -> DataStatus | None:
    if report is None or not report.files:
        return None
    return DataStatus(
        format=report.format,
        files=report.files,
        bytes=report.bytes,
        records=report.records,
        classes=report.classes,
        badRecords=report.badRecords,
        storeBytes=report.storeBytes,
        peerBytes=report.peerBytes,
        volumeBytes=report.volumeBytes,
        keysGiven=report.keysGiven,
        badKinds=[BadKindStatus(reason=one.reason[:256], count=one.count) for one in report.badKinds[:NAMED_BAD_KINDS]],
        bad=[
            BadRecordStatus(uri=one.uri[:1024], offset=one.offset, reason=one.reason[:256])
            for one in report.bad[:NAMED_BAD_RECORDS]
        ],
    )


def privacy(report: PrivacyReport | None) -> PrivacyStatus | None:
    if report is None:
        return None
    return PrivacyStatus(
        epsilonSpent=_number(report.epsilonSpent),
        delta=f"{report.delta:.12f}".rstrip("0"),
        noiseMultiplier=_number(report.noiseMultiplier),
    )


def checkpoint(ref: CheckpointRef | None) -> CheckpointStatus | None:
    if ref is None:
        return None
    return CheckpointStatus(uri=ref.uri, step=ref.step, digest=ref.digest, time=ref.time)


def artifact(ref: ArtifactRef, storage: Location | None) -> ArtifactStatus:
    """With how it is reached: the spec's storage may be another one for the next run."""
    own = storage is not None and not storage.installation
    return ArtifactStatus(
        uri=ref.uri,
        digest=ref.digest,
        version=ref.version,
        installationStore=not own,
        endpoint=storage.store.endpoint if storage and own else None,
        region=storage.store.region if storage and own else None,
        secretRef=SecretReference(name=storage.secret) if storage and own and storage.secret else None,
        metrics={name: f"{value:.4f}" for name, value in sorted(ref.metrics.items())},
    )


def seconds_in(previous: Object, kind: Kind, value: str, now: datetime) -> float:
    """How long a condition has had a value; 0 where it has not."""
    found = conditions.find(previous.get("conditions") or [], kind)
    if found is None or found["status"] != value:
        return 0.0
    return (now - now.fromisoformat(found["lastTransitionTime"])).total_seconds()
