"""What to do about a service now: choose the artifact, refuse what is not allowed, roll it out, say how it stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_operator.api import names
from mms_operator.api.names import Reason
from mms_operator.api.rollout import BlueGreen, Strategy
from mms_operator.api.service import ServiceSpec
from mms_operator.api.service_status import Outcome, RolloutPhase, ServedVersion, ServiceStatus, Versions
from mms_operator.plan import conditions, pod_template, pods, stores
from mms_operator.plan.conditions import rfc3339
from mms_operator.plan.service import commands, history, objects, rollout, saying, swapping, target
from mms_operator.plan.service.objects import Serving
from mms_operator.plan.service.rollout import Route
from mms_operator.plan.service.saying import State
from mms_operator.plan.service.seen import Seen
from mms_operator.plan.types import AgentCalls, Annotation, Plan
from mms_workloads import contract

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mms_operator.api.names import Condition as Kind
    from mms_operator.api.service_status import PastVersion
    from mms_operator.plan.conditions import Condition
    from mms_operator.plan.service.swapping import Running
    from mms_operator.plan.stores import SecretProblem
    from mms_operator.plan.types import Event, Object, ObservedService, Settings

SWAP_SECONDS = 0.5  # between two questions to an agent while its pod is to take another artifact
QUIET_SECONDS = 10.0  # and otherwise
SECRET_SECONDS = 10.0  # between two looks for a Secret that is not there


def references(cr: Object) -> frozenset[str]:
    """The Secrets that the spec names, and those of the versions that are pinned."""
    spec, status = cr.get("spec") or {}, cr.get("status") or {}
    versions = status.get("versions") or {}
    places = [(spec.get("model") or {}).get("artifact") or {}, *(version or {} for version in versions.values())]
    found = ((place.get("secretRef") or {}).get("name") for place in places)
    return frozenset(name for name in found if name)


@dataclass(frozen=True)
class _Course:
    """What the decision came to: which pods there are to be, who answers, and what is said of it."""

    status: ServiceStatus
    state: State
    fleets: tuple[tuple[ServedVersion, int], ...] = ()  # versions and their replicas, the one that is wanted first
    route: ServedVersion | None = None  # the only one that clients are sent to; None: all
    requeue: float | None = None
    prune: bool = True  # whether what there is of other versions goes
    tell: tuple[Running, ...] = ()  # running pods that are to take the first of `fleets`


@dataclass(frozen=True)
class _Look:
    """What the decisions are made from."""

    serving: Serving
    status: ServiceStatus
    seen: Seen
    now: datetime

    @property
    def replicas(self) -> int:
        return self.serving.spec.replicas

    def status_with(self, **changes: object) -> ServiceStatus:
        return self.status.model_copy(update=changes)

    def counted(self, version: ServedVersion) -> ServedVersion:
        """With the number of its pods that answer rightly."""
        return version.model_copy(update={"replicas": self.seen.ready_of(version)})

    def kept_seconds(self) -> float:
        """For which the pods of the version before stay."""
        until = self.status.keptUntil
        return (datetime.fromisoformat(until) - self.now).total_seconds() if until else 0.0


def plan(cr: Object, observed: ObservedService, settings: Settings, now: datetime) -> Plan:
    """Pure: the same arguments give the same plan, and a plan that was carried out plans nothing more."""
    status = ServiceStatus.model_validate(cr.get("status") or {})
    try:
        spec = ServiceSpec.model_validate(cr["spec"])
    except ValidationError as error:
        state = saying.refused(Reason.INVALID_SPEC, conditions.invalid_spec(error))
        return _left(cr, status, state, now, sum(pods.is_ready(pod) for pod in observed.pods))
    serving = Serving(cr, spec, settings)
    seen = Seen.of(serving, observed)
    found = pod_template.violations(
        "spec.server.podTemplate", spec.server.podTemplate, settings.policy, objects.CONTAINERS, objects.VOLUMES
    )
    if found:
        return _left(cr, status, saying.refused(Reason.POD_TEMPLATE_FORBIDDEN, "; ".join(found)), now, seen.ready)
    source = target.choose(spec.model, status.versions, observed.training, settings.default_store)
    named = None if isinstance(source, target.Missing) else source
    status, told = commands.carry_out(cr, status, commands.Context(spec.rollout, spec.replicas, named, now))
    look = _Look(serving, status, seen, now)
    return _plan(look, _course(look, source, observed), told)


def _course(look: _Look, source: ServedVersion | target.Missing, observed: ObservedService) -> _Course:
    if isinstance(source, target.Missing):
        return _nothing_to_serve(look, source)
    stable = look.status.versions.stable
    withheld = history.given_up(look.status.history, source.digest)
    chosen = (look.status.versions.next or stable or source) if withheld else source
    if problem := stores.secret_problem(look.serving.location(chosen), observed.secrets):
        return _wait_for_secret(look, chosen, problem)
    if stable is None:
        return _first(look, chosen)
    if stable.digest == chosen.digest:
        return _steady(look, chosen.model_copy(update={"base": stable.base}), withheld)
    if _can_swap(look, chosen, stable):
        return _swap(look, chosen.model_copy(update={"base": stable.lineage}), stable)
    return _roll_out(look, chosen, stable)


def _first(look: _Look, chosen: ServedVersion) -> _Course:
    """Nothing answers yet that could be spared: all pods at once."""
    counted, fleets = look.counted(chosen), ((chosen, look.replicas),)
    if not look.seen.fleet(chosen, look.replicas).complete:
        state = _trouble(look.serving, chosen, look.seen) or saying.rolling(chosen, None, None)
        return _Course(look.status_with(versions=Versions(next=counted)), state, fleets, chosen)
    past = history.record(look.status.history, chosen, Outcome.SERVED, look.now)
    status = look.status_with(versions=Versions(stable=counted), history=past)
    return _Course(status, saying.served(chosen, look.replicas), fleets, chosen)


def _steady(look: _Look, chosen: ServedVersion, withheld: PastVersion | None) -> _Course:
    """What is wanted is what answers. The version before may be kept for a while."""
    counted, replicas = look.counted(chosen), look.replicas
    astray = swapping.astray(swapping.running(look.seen, chosen.lineage), chosen.digest)
    if look.seen.fleet(chosen, replicas).complete and not astray:
        state = saying.given_up(withheld, chosen) if withheld else saying.served(chosen, replicas)
    else:
        state = _trouble(look.serving, chosen, look.seen) or saying.scaling(counted.replicas, replicas)
    ended = look.status.rollout
    if look.status.versions.next is not None and ended is not None:  # the spec went back to what answers
        ended = ended.model_copy(update={"phase": RolloutPhase.ABORTED, "percent": 0, "paused": False})
    previous, left = look.status.versions.previous, look.kept_seconds()
    if previous is None or left <= 0:
        status = look.status_with(versions=Versions(stable=counted), rollout=ended, keptUntil=None)
        return _Course(status, state, ((chosen, replicas),), chosen, tell=astray)
    versions = Versions(stable=counted, previous=look.counted(previous))
    status = look.status_with(versions=versions, rollout=ended)
    return _Course(status, state, ((chosen, replicas), (previous, replicas)), chosen, min(left, rollout.DAY_SECONDS))


def _roll_out(look: _Look, chosen: ServedVersion, stable: ServedVersion) -> _Course:
    """One version takes the place of the other, as far as it may go now."""
    how, replicas, seen = look.serving.spec.rollout, look.replicas, look.seen
    following = look.status.versions.next
    under_way = look.status.rollout if following and following.digest == chosen.digest else None
    begun = under_way or rollout.begin(how, replicas, look.now)
    pods_of = rollout.Fleets(replicas, seen.fleet(stable, replicas), seen.fleet(chosen, replicas))
    step = rollout.advance(how, begun, pods_of, look.now)
    fleets = ((chosen, step.next_replicas), (stable, step.stable_replicas))
    if not step.done:
        versions = Versions(stable=look.counted(stable), next=look.counted(chosen))
        state = _trouble(look.serving, chosen, seen) or saying.rolling(versions.next or chosen, stable, step.status)
        status = look.status_with(versions=versions, rollout=step.status, keptUntil=None)
        route = stable if step.route is Route.STABLE else None
        return _Course(status, state, fleets, route, step.requeue)
    blue_green = how.blueGreen or BlueGreen()
    keep = blue_green.keepSeconds if how.strategy is Strategy.BLUE_GREEN and not begun.rollback else 0
    status = look.status_with(
        versions=Versions(stable=look.counted(chosen), previous=look.counted(stable) if keep else None),
        rollout=step.status,
        history=history.record(look.status.history, chosen, Outcome.SERVED, look.now),
        keptUntil=rfc3339(look.now + timedelta(seconds=keep)) if keep else None,
    )
    return _Course(status, saying.served(chosen, replicas), fleets, chosen)


def _can_swap(look: _Look, chosen: ServedVersion, stable: ServedVersion) -> bool:
    """Whether the running pods are to take the version: they have the keys of the store that they began with."""
    serving = look.serving
    asked = serving.spec.rollout.strategy is Strategy.HOT_SWAP or chosen.digest == stable.lineage
    same = serving.location(chosen).secret == serving.location(stable).secret
    return asked and same and bool(look.replicas) and stable.lineage in look.seen.deployments


def _swap(look: _Look, chosen: ServedVersion, stable: ServedVersion) -> _Course:
    """The running pods take the version, as far as it may go now. `chosen.base` says whose pods they are."""
    how, following = look.serving.spec.rollout, look.status.versions.next
    under_way = look.status.rollout if following and following.digest == chosen.digest else None
    begun = under_way or rollout.begin(how, look.replicas, look.now)
    swap = swapping.advance(how, begun, swapping.running(look.seen, stable.lineage), chosen.digest, look.now)
    if swap.failed:
        pod, report = swap.failed
        why = saying.refused_by(pod.name, chosen, report)
        past = history.record(look.status.history, chosen, Outcome.ABORTED, look.now, why)
        ended = swap.status.model_copy(update={"phase": RolloutPhase.ABORTED, "percent": 0})
        status = look.status_with(versions=Versions(stable=look.counted(stable)), rollout=ended, history=past)
        return _Course(status, saying.given_up(past[0], stable), ((stable, look.replicas),), stable)
    if swap.done:
        past = history.record(look.status.history, chosen, Outcome.SERVED, look.now)
        versions = Versions(stable=look.counted(chosen))
        status = look.status_with(versions=versions, rollout=swap.status, history=past, keptUntil=None)
        return _Course(status, saying.served(chosen, look.replicas), ((chosen, look.replicas),), chosen)
    versions = Versions(stable=look.counted(stable), next=look.counted(chosen))
    state = _trouble(look.serving, stable, look.seen) or saying.rolling(versions.next or chosen, stable, swap.status)
    status = look.status_with(versions=versions, rollout=swap.status, keptUntil=None)
    fleets = ((stable, look.replicas),)
    return _Course(status, state, fleets, stable, swap.requeue, tell=swap.tell)


def _nothing_to_serve(look: _Look, missing: target.Missing) -> _Course:
    """There is no artifact. What was served before, of another source, goes on until there is one."""
    state = State(ready=False, reason=missing.reason, message=missing.message)
    stable = look.status.versions.stable
    status = look.status_with(versions=Versions(stable=stable), keptUntil=None)
    return _Course(status, state, ((stable, look.replicas),) if stable else (), stable)


def _wait_for_secret(look: _Look, chosen: ServedVersion, problem: SecretProblem) -> _Course:
    """No pod can be made without it. What is served already goes on, with whatever else the spec asks for."""
    state = State(ready=False, reason=problem.reason, message=problem.message)
    stable = look.status.versions.stable
    waits = None if stable and stable.digest == chosen.digest else chosen
    status = look.status_with(versions=Versions(stable=stable, next=waits), keptUntil=None)
    fleets = ((stable, look.replicas),) if stable else ()
    return _Course(status, state, fleets, stable, SECRET_SECONDS, prune=bool(fleets))


def _trouble(serving: Serving, chosen: ServedVersion, seen: Seen) -> State | None:
    """What keeps the pods of the artifact from being ready: as their containers, the scheduler or the kubelet say.

    What another try cannot mend makes the service stalled, although the kubelet goes on trying.
    """
    mine = [pod for pod in seen.began_with(chosen.lineage) if not pods.is_ready(pod)]
    for pod in mine:
        for ended in pods.failures(pod):
            if ended.outcome is not None:
                about = ended.outcome.message
                if ended.outcome.reason in (contract.Reason.CREDENTIALS_INVALID, contract.Reason.STORAGE_DENIED):
                    about = f"{about}. ({serving.location(chosen).whose()})"
                return State(ready=False, reason=ended.reason, message=about, waits=ended.retryable)
    for pod in mine:
        if trouble := pods.trouble(pod):
            return State(ready=False, reason=trouble.reason, message=trouble.message)
    for pod in mine:
        for ended in pods.failures(pod):
            said = f"a container of pod {pod['metadata']['name']} does not stay up: {ended.message}"
            return State(ready=False, reason=ended.reason, message=said)
    if (late := seen.overdue(chosen)) is not None:
        remedy = "`kubectl describe pods` says more; spec.rollout.progressDeadlineSeconds is the time it has"
        return State(ready=False, reason=Reason.PROGRESS_DEADLINE, message=f"{late}: {remedy}", waits=False)
    return None


def _waves(serving: Serving, course: _Course) -> tuple[tuple[Object, ...], ...]:
    """Each version has its file and its Deployment. Clients are sent elsewhere only after its pods are there."""
    versions = [version for version, _ in course.fleets]
    first = [
        objects.network_policy(serving),
        objects.disruption_budget(serving),
        *(objects.config_map(serving, version) for version in versions),
    ]
    if any(version.installationStore for version in versions) and (secret := objects.store_secret(serving)):
        first.append(secret)
    deployments = tuple(objects.deployment(serving, version, replicas) for version, replicas in course.fleets)
    services = [objects.service(serving, course.route)]
    following = course.status.versions.next
    if following is not None and course.status.versions.stable is not None:
        services.append(objects.next_service(serving, following))
    return ((*first, *services), deployments)


def _plan(look: _Look, course: _Course, told: Sequence[Event]) -> Plan:
    serving, seen = look.serving, look.seen
    status = course.status.model_copy(
        update={
            "url": f"http://{serving.host}:{contract.TRITON_HTTP_PORT}",
            "grpcUrl": f"{serving.host}:{contract.TRITON_GRPC_PORT}",
            "replicas": seen.replicas,
            "readyReplicas": seen.ready,
            "selector": ",".join(f"{key}={value}" for key, value in sorted(serving.selector.items())),
        }
    )
    said = saying.said_of(course.state, seen.ready, look.replicas)
    return Plan(
        status=_body(serving.cr, status, said, look.now),
        waves=_waves(serving, course) if course.fleets else (),
        events=(*told, *saying.told(serving.cr, status, course.state)),
        requeue_after=course.requeue,
        prune=course.prune,
        agents=_agents(look, course),
        annotations=_told(look, course),
    )


def _told(look: _Look, course: _Course) -> tuple[Annotation, ...]:
    """Running pods hear what they are to take: what is being rolled out, else what is stable."""
    versions = course.status.versions
    version = versions.next or versions.stable
    if not course.tell or version is None:
        return ()
    text = objects.serve_file(look.serving, version).model_dump_json(exclude_none=True)
    return tuple(
        Annotation(look.serving.namespace, pod.name, pod.uid, {names.ANNOTATION_SERVE: text}) for pod in course.tell
    )


def _agents(look: _Look, course: _Course) -> AgentCalls | None:
    """The pods whose agents say what they serve, where it may be another artifact than they began with."""
    versions = course.status.versions
    stable = versions.stable
    if stable is None or (look.serving.spec.rollout.strategy is not Strategy.HOT_SWAP and not stable.base):
        return None
    mine = look.seen.began_with(stable.lineage)
    hosts = {pod["metadata"]["uid"]: ip for pod in mine if (ip := (pod.get("status") or {}).get("podIP"))}
    moves = versions.next is not None or bool(course.tell)
    return AgentCalls(hosts, SWAP_SECONDS if moves else QUIET_SECONDS)


def _left(cr: Object, status: ServiceStatus, state: State, now: datetime, available: int) -> Plan:
    """A spec that is refused: everything that is there stays as it is."""
    body = _body(cr, status, saying.said_of(state, available, replicas=0), now)
    return Plan(status=body, events=saying.told(cr, status, state), prune=False)


def _body(cr: Object, status: ServiceStatus, said: Mapping[Kind, Condition], now: datetime) -> Object:
    known = (cr.get("status") or {}).get("conditions") or []
    generation = cr["metadata"]["generation"]
    body = status.model_copy(update={"observedGeneration": generation}).model_dump(
        exclude_none=True, exclude={"conditions"}, mode="json"
    )
    return {**body, "conditions": conditions.render(said, known, generation, now)}
