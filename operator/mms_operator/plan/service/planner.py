"""What to do about a service now: choose the artifact, refuse what is not allowed, roll it out, say how it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_operator.api import names
from mms_operator.api.names import Condition as Kind
from mms_operator.api.names import Reason
from mms_operator.api.service import ServedVersion, ServiceSpec, ServiceStatus, Versions
from mms_operator.plan import conditions, pod_template, pods, stores
from mms_operator.plan.conditions import Condition
from mms_operator.plan.service import objects, target
from mms_operator.plan.service.objects import Serving
from mms_operator.plan.types import Event, Plan
from mms_workloads import contract

if TYPE_CHECKING:
    from datetime import datetime

    from mms_operator.plan.stores import SecretProblem
    from mms_operator.plan.types import Object, ObservedService, Settings

ACCEPTED = Condition("True", Reason.ACCEPTED, "the spec can be carried out")
SECRET_SECONDS = 10.0  # between two looks for a Secret that is not there


@dataclass(frozen=True)
class _State:
    """How the service stands. `waits`: it goes on by itself; `accepted`: the spec can be carried out."""

    ready: bool
    reason: str
    message: str
    waits: bool = True
    accepted: Condition = ACCEPTED


def references(cr: Object) -> frozenset[str]:
    """The Secrets that the spec names, and those of the versions that are pinned."""
    spec, status = cr.get("spec") or {}, cr.get("status") or {}
    versions = status.get("versions") or {}
    places = (
        (spec.get("model") or {}).get("artifact") or {},
        versions.get("stable") or {},
        versions.get("next") or {},
    )
    found = ((place.get("secretRef") or {}).get("name") for place in places)
    return frozenset(name for name in found if name)


def plan(cr: Object, observed: ObservedService, settings: Settings, now: datetime) -> Plan:
    """Pure: the same arguments give the same plan, and a plan that was carried out plans nothing more."""
    previous = cr.get("status") or {}
    status = ServiceStatus.model_validate(previous)
    try:
        spec = ServiceSpec.model_validate(cr["spec"])
    except ValidationError as error:
        return _plan(
            cr,
            status,
            _refused(Reason.INVALID_SPEC, conditions.invalid_spec(error)),
            now,
            available=_ready_pods(observed),
        )
    serving = Serving(cr, spec, settings)
    seen = _Seen.of(serving, observed)
    found = pod_template.violations(
        "spec.server.podTemplate", spec.server.podTemplate, settings.policy, objects.CONTAINERS, objects.VOLUMES
    )
    if found:
        state = _refused(Reason.POD_TEMPLATE_FORBIDDEN, "; ".join(found))
        return _plan(cr, status, state, now, available=seen.ready)
    chosen = target.choose(spec.model, status.versions, observed.training, settings.default_store)
    if isinstance(chosen, target.Missing):
        return _nothing_to_serve(serving, status, chosen, seen, now)
    if problem := stores.secret_problem(serving.location(chosen), observed.secrets):
        return _wait_for_secret(serving, status, chosen, problem, seen=seen, now=now)
    return _roll_out(serving, status, chosen, seen, now)


@dataclass(frozen=True)
class _Seen:
    """The pods and the Deployment, as far as the decisions need them."""

    deployment: Object | None
    pods: tuple[Object, ...]

    @classmethod
    def of(cls, serving: Serving, observed: ObservedService) -> _Seen:
        wanted = serving.selector.items()
        mine = (pod for pod in observed.pods if wanted <= (pod["metadata"].get("labels") or {}).items())
        return cls(observed.deployment, tuple(mine))

    @property
    def ready(self) -> int:
        return sum(pods.is_ready(pod) for pod in self.pods)

    def of_digest(self, digest: str) -> list[Object]:
        return [pod for pod in self.pods if _digest(pod) == digest]

    def rolled_out(self, version: ServedVersion, replicas: int) -> bool:
        """Whether the Deployment is of this artifact and all of its pods are, and nothing else is left."""
        if self.deployment is None:
            return False
        found = self.deployment.get("status") or {}
        metadata = self.deployment["metadata"]
        if (metadata.get("annotations") or {}).get(names.ANNOTATION_DIGEST) != version.digest:
            return False
        if found.get("observedGeneration") != metadata.get("generation"):
            return False
        counts = {found.get(key, 0) for key in ("replicas", "updatedReplicas", "readyReplicas")}
        return counts == {replicas} and self.deployment["spec"].get("replicas") == replicas

    def overdue(self, version: ServedVersion) -> str | None:
        """What the Deployment says when it has not advanced within its deadline."""
        if self.deployment is None:
            return None
        metadata, found = self.deployment["metadata"], self.deployment.get("status") or {}
        if (metadata.get("annotations") or {}).get(names.ANNOTATION_DIGEST) != version.digest:
            return None
        if found.get("observedGeneration") != metadata.get("generation"):
            return None
        for condition in found.get("conditions") or ():
            if condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
                return str(condition.get("message", ""))
        return None


def _roll_out(serving: Serving, status: ServiceStatus, chosen: ServedVersion, seen: _Seen, now: datetime) -> Plan:
    """The Deployment's rolling update; the version that was stable stays so until all pods are of the next."""
    replicas = serving.spec.replicas
    ready = sum(pods.is_ready(pod) for pod in seen.of_digest(chosen.digest))
    counted = chosen.model_copy(update={"replicas": ready})
    stable = status.versions.stable
    if seen.rolled_out(chosen, replicas):
        versions = Versions(stable=counted)
        state = _served(chosen, replicas)
    elif stable and stable.digest == chosen.digest:
        versions = Versions(stable=counted)
        state = _trouble(serving, chosen, seen) or _scaling(ready, replicas)
    else:
        before = stable and stable.model_copy(
            update={"replicas": sum(pods.is_ready(pod) for pod in seen.of_digest(stable.digest))}
        )
        versions = Versions(stable=before, next=counted)
        state = _trouble(serving, chosen, seen) or _rolling(chosen, stable)
    status = status.model_copy(update={"versions": versions})
    return _plan(
        serving.cr,
        _addressed(serving, status, seen),
        state,
        now,
        available=seen.ready,
        waves=_waves(serving, chosen, stable),
        replicas=replicas,
    )


def _served(chosen: ServedVersion, replicas: int) -> _State:
    if replicas == 0:
        return _State(
            ready=True, reason=Reason.SCALED_TO_ZERO, message="spec.replicas is 0: nothing is served", waits=False
        )
    noun = "pod answers" if replicas == 1 else "pods answer"
    said = f"{replicas} {noun} with {_called(chosen)}; the golden inferences were right on each"
    return _State(ready=True, reason=Reason.AVAILABLE, message=said, waits=False)


def _scaling(ready: int, replicas: int) -> _State:
    return _State(ready=False, reason=Reason.WAITING_FOR_PODS, message=f"{ready} of {replicas} pods are ready")


def _rolling(chosen: ServedVersion, stable: ServedVersion | None) -> _State:
    meanwhile = f"; {_called(stable)} answers meanwhile" if stable else ""
    said = f"{_called(chosen)} is fetched, loaded and checked{meanwhile}"
    return _State(ready=False, reason=Reason.ROLLING_OUT, message=said)


def _trouble(serving: Serving, chosen: ServedVersion, seen: _Seen) -> _State | None:
    """What keeps the pods of the artifact from being ready: as their containers, the scheduler or the kubelet say.

    What another try cannot mend makes the service stalled, although the kubelet goes on trying.
    """
    mine = [pod for pod in seen.of_digest(chosen.digest) if not pods.is_ready(pod)]
    for pod in mine:
        for ended in pods.failures(pod):
            if ended.outcome is not None:
                about = ended.outcome.message
                if ended.outcome.reason in (contract.Reason.CREDENTIALS_INVALID, contract.Reason.STORAGE_DENIED):
                    about = f"{about}. ({serving.location(chosen).whose()})"
                return _State(ready=False, reason=ended.reason, message=about, waits=ended.retryable)
    for pod in mine:
        if trouble := pods.trouble(pod):
            return _State(ready=False, reason=trouble.reason, message=trouble.message)
    for pod in mine:
        for ended in pods.failures(pod):
            said = f"a container of pod {pod['metadata']['name']} does not stay up: {ended.message}"
            return _State(ready=False, reason=ended.reason, message=said)
    if (late := seen.overdue(chosen)) is not None:
        remedy = "`kubectl describe pods` says more; spec.rollout.progressDeadlineSeconds is the time it has"
        return _State(ready=False, reason=Reason.PROGRESS_DEADLINE, message=f"{late}: {remedy}", waits=False)
    return None


def _nothing_to_serve(
    serving: Serving, status: ServiceStatus, missing: target.Missing, seen: _Seen, now: datetime
) -> Plan:
    """There is no artifact. What was served before, of another source, goes on until there is one."""
    state = _State(ready=False, reason=missing.reason, message=missing.message)
    stable = status.versions.stable
    status = status.model_copy(update={"versions": Versions(stable=stable)})
    waves = _waves(serving, stable, None) if stable else ()
    return _plan(
        serving.cr, _addressed(serving, status, seen), state, now, available=seen.ready, waves=waves,
        replicas=serving.spec.replicas if stable else 0, prune=stable is None,
    )  # fmt: skip


def _wait_for_secret(
    serving: Serving,
    status: ServiceStatus,
    chosen: ServedVersion,
    problem: SecretProblem,
    *,
    seen: _Seen,
    now: datetime,
) -> Plan:
    """No pod can be made without it. What is served already goes on, with whatever else the spec asks for."""
    state = _State(ready=False, reason=problem.reason, message=problem.message)
    stable = status.versions.stable
    waits = None if stable and stable.digest == chosen.digest else chosen
    status = status.model_copy(update={"versions": Versions(stable=stable, next=waits)})
    return _plan(
        serving.cr, _addressed(serving, status, seen), state, now, available=seen.ready,
        waves=_waves(serving, stable, None) if stable else None, replicas=serving.spec.replicas,
        requeue=SECRET_SECONDS,
    )  # fmt: skip


def _refused(reason: Reason, message: str) -> _State:
    return _State(
        ready=False, reason=reason, message=message, waits=False, accepted=Condition("False", reason, message)
    )  # fmt: skip


def _waves(serving: Serving, chosen: ServedVersion, stable: ServedVersion | None) -> tuple[tuple[Object, ...], ...]:
    """Pods of the version before may be started again during a rollout: its file stays as long."""
    first = [
        objects.service(serving),
        objects.network_policy(serving),
        objects.disruption_budget(serving),
        objects.config_map(serving, chosen),
    ]
    if stable and stable.digest != chosen.digest:
        first.append(objects.config_map(serving, stable))
    uses_ours = any(version and version.installationStore for version in (chosen, stable))
    if uses_ours and (secret := objects.store_secret(serving)):
        first.append(secret)
    return (tuple(first), (objects.deployment(serving, chosen),))


def _addressed(serving: Serving, status: ServiceStatus, seen: _Seen) -> ServiceStatus:
    found = (seen.deployment or {}).get("status") or {}
    return status.model_copy(
        update={
            "url": f"http://{serving.host}:{contract.TRITON_HTTP_PORT}",
            "grpcUrl": f"{serving.host}:{contract.TRITON_GRPC_PORT}",
            "replicas": found.get("replicas", 0),
            "readyReplicas": seen.ready,
            "selector": ",".join(f"{key}={value}" for key, value in sorted(serving.selector.items())),
        }
    )


def _plan(
    cr: Object,
    status: ServiceStatus,
    state: _State,
    now: datetime,
    *,
    available: int,
    waves: tuple[tuple[Object, ...], ...] | None = None,
    replicas: int = 0,
    requeue: float | None = None,
    prune: bool = True,
) -> Plan:
    """Without `waves` everything that is there stays as it is."""
    previous = cr.get("status") or {}
    generation = cr["metadata"]["generation"]
    known = previous.get("conditions") or []
    rendered = conditions.render(_conditions(state, available, replicas), known, generation, now)
    found = status.model_copy(update={"observedGeneration": generation})
    body = found.model_dump(exclude_none=True, exclude={"conditions"})
    return Plan(
        status={**body, "conditions": rendered},
        waves=waves or (),
        events=_events(known, state),
        requeue_after=requeue,
        prune=prune and waves is not None,
    )


def _conditions(state: _State, available: int, replicas: int) -> dict[Kind, Condition]:
    why = (state.reason, state.message)
    stalled = not state.ready and not state.waits
    progressing = not state.ready and state.waits
    answers = available > 0
    noun = "pod answers" if available == 1 else "pods answer"
    return {
        Kind.ACCEPTED: state.accepted,
        Kind.READY: Condition("True" if state.ready else "False", *why),
        Kind.RECONCILING: Condition("True" if progressing else "False", *why),
        Kind.STALLED: Condition("True" if stalled else "False", *why),
        Kind.PROGRESSING: Condition("True" if progressing else "False", *why),
        Kind.AVAILABLE: Condition("True", Reason.AVAILABLE, f"{available} {noun}")
        if answers
        else Condition("False", Reason.SCALED_TO_ZERO if state.ready and not replicas else Reason.UNAVAILABLE,
                       "no pod answers"),
    }  # fmt: skip


def _events(known: list[Object], state: _State) -> tuple[Event, ...]:
    """One when readiness or its reason has changed."""
    before = conditions.find(known, Kind.READY)
    value = "True" if state.ready else "False"
    if before and (before["status"], before["reason"]) == (value, str(state.reason)):
        return ()
    usual = state.ready or state.reason in (
        Reason.ROLLING_OUT, Reason.WAITING_FOR_PODS, Reason.TRAINING_NOT_COMPLETE, Reason.TRAINING_NOT_FOUND
    )  # fmt: skip
    return (Event("Normal" if usual else "Warning", str(state.reason), state.message),)


def _ready_pods(observed: ObservedService) -> int:
    return sum(pods.is_ready(pod) for pod in observed.pods)


def _digest(pod: Object) -> str | None:
    found: str | None = (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_DIGEST)
    return found


def _called(version: ServedVersion) -> str:
    short = version.digest.removeprefix("sha256:")[:12]
    if version.version:
        return f"version {version.version} of {version.training} ({short})"
    return f"artifact {short}"
