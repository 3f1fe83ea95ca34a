"""What to do about a service now: choose the artifact, refuse what is not allowed, roll it out, say how it stands."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mms_operator.api.names import Reason
from mms_operator.api.rollout import BlueGreen, Strategy
from mms_operator.api.service import ServiceSpec
from mms_operator.api.service_status import Outcome, RolloutPhase, ServedVersion, ServiceStatus, Versions
from mms_operator.plan import conditions, pod_template, pods, stores
from mms_operator.plan.conditions import rfc3339
from mms_operator.plan.service import commands, history, judging, objects, rollout, saying, swapping, target, telling
from mms_operator.plan.service.course import Course, Look
from mms_operator.plan.service.judging import Judgement
from mms_operator.plan.service.objects import Serving
from mms_operator.plan.service.rollout import Route
from mms_operator.plan.service.saying import State
from mms_operator.plan.service.seen import Seen
from mms_operator.plan.types import Plan
from mms_workloads import contract

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mms_operator.api.names import Condition as Kind
    from mms_operator.api.service_status import PastVersion, RolloutStatus
    from mms_operator.plan.conditions import Condition
    from mms_operator.plan.stores import SecretProblem
    from mms_operator.plan.types import Event, Object, ObservedService, Settings

SECRET_SECONDS = 10.0  # between two looks for a Secret that is not there


def references(cr: Object) -> frozenset[str]:
    """The Secrets that the spec names, and those of the versions that are pinned."""
    spec, status = cr.get("spec") or {}, cr.get("status") or {}
    versions = status.get("versions") or {}
    places = [(spec.get("model") or {}).get("artifact") or {}, *(version or {} for version in versions.values())]
    found = ((place.get("secretRef") or {}).get("name") for place in places)
    return frozenset(name for name in found if name)


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
    if problem := _senseless(spec):
        return _left(cr, status, saying.refused(Reason.INVALID_SPEC, problem), now, seen.ready)
    source = target.choose(spec.model, status.versions, observed.training, settings.default_store)
    named = None if isinstance(source, target.Missing) else source
    status, told = commands.carry_out(cr, status, commands.Context(spec.rollout, spec.replicas, named, now))
    look = Look(serving, status, seen, now, observed.interval)
    return _plan(look, _course(look, source, observed), told)


def _senseless(spec: ServiceSpec) -> str | None:
    """What the analysis cannot be asked, and why."""
    try:
        if spec.rollout.analysis is not None:
            judging.spec_of(spec.rollout.analysis)
    except ValueError as error:
        return f"spec.rollout.analysis: {error}"
    return None


def _course(look: Look, source: ServedVersion | target.Missing, observed: ObservedService) -> Course:
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


def _first(look: Look, chosen: ServedVersion) -> Course:
    """Nothing answers yet that could be spared: all pods at once."""
    counted, fleets = look.counted(chosen), ((chosen, look.replicas),)
    if not look.seen.fleet(chosen, look.replicas).complete:
        state = _trouble(look.serving, chosen, look.seen) or saying.rolling(chosen, None, None)
        return Course(look.status_with(versions=Versions(next=counted)), state, fleets, chosen)
    past = history.record(look.status.history, chosen, Outcome.SERVED, look.now)
    status = look.status_with(versions=Versions(stable=counted), history=past)
    return Course(status, saying.served(chosen, look.replicas), fleets, chosen)


def _steady(look: Look, chosen: ServedVersion, withheld: PastVersion | None) -> Course:
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
        return Course(status, state, ((chosen, replicas),), chosen, tell=astray)
    versions = Versions(stable=counted, previous=look.counted(previous))
    status = look.status_with(versions=versions, rollout=ended)
    return Course(status, state, ((chosen, replicas), (previous, replicas)), chosen, min(left, rollout.DAY_SECONDS))


def _roll_out(look: Look, chosen: ServedVersion, stable: ServedVersion) -> Course:
    """One version takes the place of the other, as far as it may go now."""
    how, replicas, seen = look.serving.spec.rollout, look.replicas, look.seen
    following = look.status.versions.next
    under_way = look.status.rollout if following and following.digest == chosen.digest else None
    begun = under_way or rollout.begin(how, replicas, look.now)
    judgement = _judged(look, chosen, stable, begun)
    begun = begun.model_copy(update={"analysis": judgement.status})
    if judgement.give_up is not None:
        return _given_up(look, chosen, stable, begun, judgement.give_up)
    pods_of = rollout.Fleets(replicas, seen.fleet(stable, replicas), seen.fleet(chosen, replicas))
    step = rollout.advance(how, begun, pods_of, look.now, judgement.gate)
    fleets = ((chosen, step.next_replicas), (stable, step.stable_replicas))
    if not step.done:
        versions = Versions(stable=look.counted(stable), next=look.counted(chosen))
        state = _trouble(look.serving, chosen, seen) or saying.rolling(versions.next or chosen, stable, step.status)
        status = look.status_with(versions=versions, rollout=step.status, keptUntil=None)
        route = stable if step.route is Route.STABLE else None
        return Course(status, state, fleets, route, step.requeue)
    blue_green = how.blueGreen or BlueGreen()
    keep = blue_green.keepSeconds if how.strategy is Strategy.BLUE_GREEN and not begun.rollback else 0
    status = look.status_with(
        versions=Versions(stable=look.counted(chosen), previous=look.counted(stable) if keep else None),
        rollout=step.status,
        history=history.record(look.status.history, chosen, Outcome.SERVED, look.now),
        keptUntil=rfc3339(look.now + timedelta(seconds=keep)) if keep else None,
    )
    return Course(status, saying.served(chosen, replicas), fleets, chosen)


def _can_swap(look: Look, chosen: ServedVersion, stable: ServedVersion) -> bool:
    """Whether the running pods are to take the version: they have the keys of the store that they began with."""
    serving = look.serving
    asked = serving.spec.rollout.strategy is Strategy.HOT_SWAP or chosen.digest == stable.lineage
    same = serving.location(chosen).secret == serving.location(stable).secret
    return asked and same and bool(look.replicas) and stable.lineage in look.seen.deployments


def _swap(look: Look, chosen: ServedVersion, stable: ServedVersion) -> Course:
    """The running pods take the version, as far as it may go now. `chosen.base` says whose pods they are."""
    how, following = look.serving.spec.rollout, look.status.versions.next
    under_way = look.status.rollout if following and following.digest == chosen.digest else None
    begun = under_way or rollout.begin(how, look.replicas, look.now)
    judgement = _judged(look, chosen, stable, begun)
    begun = begun.model_copy(update={"analysis": judgement.status})
    if judgement.give_up is not None:
        return _given_up(look, chosen, stable, begun, judgement.give_up)
    goal = swapping.Goal(chosen.digest, judgement.gate)
    swap = swapping.advance(how, begun, swapping.running(look.seen, stable.lineage), goal, look.now)
    if swap.failed:
        pod, report = swap.failed
        return _given_up(look, chosen, stable, swap.status, saying.refused_by(pod.name, chosen, report))
    if swap.done:
        past = history.record(look.status.history, chosen, Outcome.SERVED, look.now)
        versions = Versions(stable=look.counted(chosen))
        status = look.status_with(versions=versions, rollout=swap.status, history=past, keptUntil=None)
        return Course(status, saying.served(chosen, look.replicas), ((chosen, look.replicas),), chosen)
    versions = Versions(stable=look.counted(stable), next=look.counted(chosen))
    state = _trouble(look.serving, stable, look.seen) or saying.rolling(versions.next or chosen, stable, swap.status)
    status = look.status_with(versions=versions, rollout=swap.status, keptUntil=None)
    fleets = ((stable, look.replicas),)
    return Course(status, state, fleets, stable, swap.requeue, tell=swap.tell)


def _judged(look: Look, chosen: ServedVersion, stable: ServedVersion, state: RolloutStatus) -> Judgement:
    """What the analysis says, where there is one, until all pods are being replaced."""
    analysis = look.serving.spec.rollout.analysis
    if analysis is None or state.rollback:
        return Judgement(None)
    if state.steps and state.step > state.steps:
        return Judgement(state.analysis)
    return judging.judge(analysis, state, judging.Pair(chosen.digest, stable.digest), look.interval, look.now)


def _given_up(look: Look, chosen: ServedVersion, stable: ServedVersion, state: RolloutStatus, why: str) -> Course:
    """Nobody asked for it: the status says why. What was told to take the version hears of it in the next look."""
    past = history.record(look.status.history, chosen, Outcome.ABORTED, look.now, why)
    ended = state.model_copy(update={"phase": RolloutPhase.ABORTED, "percent": 0, "paused": False})
    status = look.status_with(
        versions=Versions(stable=look.counted(stable)), rollout=ended, history=past, keptUntil=None
    )
    return Course(status, saying.given_up(past[0], stable), ((stable, look.replicas),), stable)


def _nothing_to_serve(look: Look, missing: target.Missing) -> Course:
    """There is no artifact. What was served before, of another source, goes on until there is one."""
    state = State(ready=False, reason=missing.reason, message=missing.message)
    stable = look.status.versions.stable
    status = look.status_with(versions=Versions(stable=stable), keptUntil=None)
    return Course(status, state, ((stable, look.replicas),) if stable else (), stable)


def _wait_for_secret(look: Look, chosen: ServedVersion, problem: SecretProblem) -> Course:
    """No pod can be made without it. What is served already goes on, with whatever else the spec asks for."""
    state = State(ready=False, reason=problem.reason, message=problem.message)
    stable = look.status.versions.stable
    waits = None if stable and stable.digest == chosen.digest else chosen
    status = look.status_with(versions=Versions(stable=stable, next=waits), keptUntil=None)
    fleets = ((stable, look.replicas),) if stable else ()
    return Course(status, state, fleets, stable, SECRET_SECONDS, prune=bool(fleets))


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


def _waves(serving: Serving, course: Course) -> tuple[tuple[Object, ...], ...]:
    """Each version has its file and its Deployment. Clients are sent elsewhere only after its pods are there."""
    versions = [version for version, _ in course.fleets]
    first = [
        objects.network_policy(serving),
        objects.disruption_budget(serving),
        *(objects.config_map(serving, version, telling.reference(course, version)) for version in versions),
    ]
    if any(version.installationStore for version in versions) and (secret := objects.store_secret(serving)):
        first.append(secret)
    deployments = tuple(objects.deployment(serving, version, replicas) for version, replicas in course.fleets)
    services = [objects.service(serving, course.route)]
    following = course.status.versions.next
    if following is not None and course.status.versions.stable is not None:
        services.append(objects.next_service(serving, following))
    return ((*first, *services), deployments)


def _plan(look: Look, course: Course, told: Sequence[Event]) -> Plan:
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
        agents=telling.asked(look, course),
        annotations=telling.told(look, course),
    )


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
