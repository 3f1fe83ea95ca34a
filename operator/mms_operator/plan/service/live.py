"""A service that follows a running training: when, how its pods are to do it, and what is said of it. Pure.

While the run trains it stands among the versions like an artifact, under the digest live:<uid>:<run>. Its pods take
new parameters by themselves; the planner only says which run, how old parameters may be, and whether to pause. When the
run's artifact is there, running pods take it as in a hot swap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Phase, Reason
from mms_operator.api.rollout import LiveSync, Strategy
from mms_operator.api.service_status import LiveStatus, ServedVersion
from mms_operator.api.training import TrainingSpec
from mms_operator.api.types import SecretReference
from mms_operator.plan import conditions, pods
from mms_operator.plan.conditions import Condition
from mms_operator.plan.training.job import Job, not_followed
from mms_operator.plan.types import Event
from mms_workloads.contract import LIVE, Activity, LiveOrders, LivePhase, live_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_operator.api.rollout import Rollout
    from mms_operator.api.service_status import Versions
    from mms_operator.plan.service.course import Look
    from mms_operator.plan.service.objects import Serving
    from mms_operator.plan.types import Object
    from mms_workloads.contract import LiveReport

_TRAINS = frozenset({Activity.TRAINING, Activity.EXPORTING})  # workers have parameters
_UNUSUAL = frozenset({Reason.PARAMETERS_STALE, Reason.PARAMETERS_WITHHELD, Reason.NOT_FOLLOWED})
STARTING, STALE, ENDED = "Starting", "Stale", "Ended"  # phases of the status that are no pod's
SILENT_SECONDS = 30.0  # after a pod's readiness: agents are asked every five
DIGITS = 2  # of a number of milliseconds: the others change all the time and say nothing


def chosen(serving: Serving, versions: Versions, training: Object | None) -> ServedVersion | None:
    """The run that is to be followed; None: an artifact is to be served, if there is one.

    A run that is followed stays until its artifact is there, whatever becomes of the training.
    """
    if serving.spec.rollout.strategy is not Strategy.LIVE_SYNC or training is None:
        return None
    status = training.get("status") or {}
    run, made = status.get("run"), status.get("artifact") or {}
    if run is None or made.get("version") == run:
        return None
    digest = live_digest(training["metadata"]["uid"], run)
    followed = next((one for one in (versions.stable, versions.next) if one and one.digest == digest), None)
    if followed is not None and followed is versions.stable:
        return followed.model_copy(update={"replicas": 0})
    trains = status.get("phase") == Phase.RUNNING and (status.get("progress") or {}).get("activity") in _TRAINS
    if followed is not None and status.get("phase") in {Phase.RUNNING, Phase.RESTARTING}:
        return followed.model_copy(update={"replicas": 0})
    # A run begins with nothing learnt: while an artifact answers, its own artifact is what takes that one's place.
    how = serving.spec.rollout.liveSync or LiveSync()
    better = versions.stable is not None and not versions.stable.live and not how.replaceArtifacts
    if not trains or better or not_followed(training) is not None:
        return _kept(versions.stable, training, run, made)
    return _version(serving, training, digest, run)


def _kept(stable: ServedVersion | None, training: Object, run: int, made: Object) -> ServedVersion | None:
    """An earlier run's parameters, which answer until a later run has some, where no artifact is as late as they."""
    if stable is None or stable.version is None or not made.get("version", 0) < stable.version < run:
        return None
    ours = stable.digest == live_digest(training["metadata"]["uid"], stable.version)
    return stable.model_copy(update={"replicas": 0}) if ours and not_followed(training) is None else None


def _version(serving: Serving, training: Object, digest: str, run: int) -> ServedVersion | None:
    """With the store of the artifact that is to come, whose keys pods have from the beginning."""
    try:
        spec = TrainingSpec.model_validate(training["spec"])
    except ValidationError:  # its own status says what is wrong
        return None
    where = Job(training, spec, serving.settings, run, 1).storage
    if where is None:
        return None
    own = not where.installation
    return ServedVersion(
        version=run,
        digest=digest,
        uri=f"{where.store.uri}/artifact",
        training=training["metadata"]["name"],
        installationStore=where.installation,
        endpoint=where.store.endpoint if own else None,
        region=where.store.region if own else None,
        secretRef=SecretReference(name=where.secret) if own and where.secret else None,
    )


def orders(rollout: Rollout, status: LiveStatus | None) -> LiveOrders:
    """What pods hear."""
    how = rollout.liveSync or LiveSync()
    return LiveOrders(
        maxStalenessMilliseconds=how.maxStalenessMilliseconds,
        qualityMargin=float(how.qualityMargin),
        paused=rollout.paused or bool(status and status.paused),
    )


@dataclass(frozen=True)
class Found:
    """How it stands."""

    status: LiveStatus | None
    condition: Condition | None  # None: nothing is to be followed


def found(look: Look, stable: ServedVersion | None, training: Object | None) -> Found:
    """From what the agents said. `stable`: what answers by now."""
    if look.serving.spec.rollout.strategy is not Strategy.LIVE_SYNC:
        return Found(None, None)
    if stable is None or not stable.live:
        return Found(None, _not_live(stable, training))
    reports = [one.live for uid, one in sorted(look.seen.agents.items()) if one.digest == stable.digest and one.live]
    bound = orders(look.serving.spec.rollout, look.status.live)
    status = _status(stable, look.status.live, reports, bound)
    ended = _ended(stable, training)
    phase, reason, message = _standing(reports, _silent(look, stable), bound, ended)
    if not reports and not ended and look.status.live is not None:  # an operator that starts has not asked yet
        phase, message = look.status.live.phase, look.status.live.message
        reason = _reason(phase)
    status = status.model_copy(update={"phase": phase, "message": message[:1024]})
    good = phase == LivePhase.FOLLOWING
    return Found(status, Condition("True" if good else "False", reason, message))


def _not_live(stable: ServedVersion | None, training: Object | None) -> Condition:
    """What is to be followed is not, or not yet."""
    if training is None:
        return Condition("False", Reason.TRAINING_NOT_FOUND, "the training that is to be followed is not there")
    name, status = training["metadata"]["name"], training.get("status") or {}
    if why := not_followed(training):
        said = f"ModelTraining {name} cannot be followed while it runs: {why}. Its artifact is served"
        return Condition("False", Reason.NOT_FOLLOWED, said)
    if (status.get("artifact") or {}).get("version") == status.get("run") is not None:
        said = f"run {status['run']} of {name} is complete: its artifact is served"
        return Condition("False", Reason.TRAINING_ENDED, said)
    if status.get("phase") == Phase.FAILED:
        answers = "what was served before answers" if stable else "it gave no parameters to any pod"
        return Condition("False", Reason.TRAINING_ENDED, f"run {status.get('run')} of {name} has failed: {answers}")
    return Condition("False", Reason.TRAINING_NOT_COMPLETE, f"{name} has no parameters yet that pods could follow")


def _ended(stable: ServedVersion, training: Object | None) -> str | None:
    """Why nothing more comes from the run that is followed; None: it may."""
    kept = "the last good parameters answer"
    if training is None:
        return f"ModelTraining {stable.training} is gone: {kept}; a new pod has nothing to begin with"
    status = training.get("status") or {}
    if live_digest(training["metadata"]["uid"], status.get("run") or 1) != stable.digest:
        return f"another run of {stable.training} has begun: {kept} until it has parameters"
    match status.get("phase"):
        case Phase.FAILED:
            return f"run {stable.version} of {stable.training} has failed: {kept}; a new pod has nothing to begin with"
        case Phase.SUSPENDED:
            return f"{stable.training} is suspended: {kept} until it goes on"
        case Phase.COMPLETE:
            return f"run {stable.version} of {stable.training} is complete: {kept} until its artifact does"
    return None


def _silent(look: Look, stable: ServedVersion) -> list[str]:
    """Names of the pods that answer clients, and whose agents have not said for long with what."""
    return sorted(
        pod["metadata"]["name"]
        for pod in look.seen.began_with(stable.lineage)
        if (pods.ready_seconds(pod, look.now) or 0.0) > SILENT_SECONDS
        and pod["metadata"]["uid"] not in look.seen.agents
    )


def _standing(
    reports: Sequence[LiveReport], silent: Sequence[str], bound: LiveOrders, ended: str | None
) -> tuple[str, str, str]:
    """Phase, reason and words."""
    limit = bound.maxStalenessMilliseconds / 1000
    if ended is not None:
        return ENDED, _reason(ENDED), ended
    if bound.paused:
        said = "the pods keep the parameters that they have until `mms rollout resume`"
        return LivePhase.PAUSED, _reason(LivePhase.PAUSED), said
    if not reports:
        return STARTING, _reason(STARTING), "no pod has said yet what it answers with"
    if withheld := [one for one in reports if one.phase is LivePhase.WITHHELD]:
        said = f"{len(withheld)} of {len(reports)} pods keep what was good: {withheld[0].message}"
        return LivePhase.WITHHELD, _reason(LivePhase.WITHHELD), said
    late = [one for one in reports if max(one.age, one.ageP99) > limit]
    if late:
        oldest = max(late, key=lambda one: one.age)
        why = f": {oldest.message}" if oldest.message else ""
        said = (
            f"{len(late)} of {len(reports)} pods answer with parameters older than {bound.maxStalenessMilliseconds} "
            f"ms{why}"
        )
        return STALE, _reason(STALE), said
    if silent:
        said = f"{len(silent)} of {len(silent) + len(reports)} pods do not say what they answer with: {silent[0]}"
        return STALE, _reason(STALE), said
    said = f"{len(reports)} pod{'s' * (len(reports) > 1)} follow{'s' * (len(reports) == 1)} the training"
    return LivePhase.FOLLOWING, _reason(LivePhase.FOLLOWING), said


def _reason(phase: str) -> Reason:
    reasons = {
        LivePhase.FOLLOWING: Reason.FOLLOWING,
        LivePhase.PAUSED: Reason.FOLLOWING_PAUSED,
        LivePhase.WITHHELD: Reason.PARAMETERS_WITHHELD,
        STARTING: Reason.WAITING_FOR_PODS,
        ENDED: Reason.TRAINING_ENDED,
    }
    return reasons.get(phase, Reason.PARAMETERS_STALE)


def _status(
    stable: ServedVersion, known: LiveStatus | None, reports: Sequence[LiveReport], bound: LiveOrders
) -> LiveStatus:
    """The numbers. Those that are there stay while nobody answers."""
    run = stable.version or 1
    before = known if known and known.run == run else LiveStatus(phase=STARTING, run=run)
    if not reports:
        return before.model_copy(update={"pods": 0})
    limit = bound.maxStalenessMilliseconds / 1000
    qualities = [one.quality for one in reports if one.quality is not None]
    return before.model_copy(
        update={
            "step": min(one.step for one in reports),
            "pods": sum(one.phase is LivePhase.FOLLOWING and one.age <= limit for one in reports),
            "ageMilliseconds": _shown(max(one.age for one in reports)),
            "ageP50Milliseconds": _shown(max(one.ageP50 for one in reports)),
            "ageP99Milliseconds": _shown(max(one.ageP99 for one in reports)),
            "ageMaxMilliseconds": _shown(max(one.ageMax for one in reports)),
            "quality": f"{min(qualities):.3f}" if qualities else None,
        }
    )


def _shown(seconds: float) -> int:
    return int(float(f"{1000 * seconds:.{DIGITS}g}"))


def told(cr: Object, condition: Condition | None) -> tuple[Event, ...]:
    """An event when the condition has changed."""
    if condition is None:
        return ()
    before = conditions.find((cr.get("status") or {}).get("conditions") or [], Kind.LIVE)
    if before and (before["status"], before["reason"]) == (condition.status, str(condition.reason)):
        return ()
    kind = "Warning" if condition.reason in _UNUSUAL else "Normal"
    return (Event(kind, str(condition.reason), condition.message),)  # type: ignore[arg-type]


def uses_reader(rollout: Rollout, version: ServedVersion) -> bool:
    """Whether a version's pods have a reader's certificate, so that those that serve an artifact can follow, too."""
    return rollout.strategy is Strategy.LIVE_SYNC or version.lineage.startswith(LIVE)
